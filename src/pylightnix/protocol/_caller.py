"""Messages of work that cannot travel: builds and matchers that the daemon hands back to the caller."""

from __future__ import annotations

from typing import Annotated, Optional

from msgspec import Meta

from pylightnix.protocol import _values as v
from pylightnix.protocol._operations import Candidate, FailedRow
from pylightnix.protocol.vocabulary import Message

__all__ = ["Abandon", "Claim", "Deliver", "Match", "MatchAnswer"]


class Claim(Message, frozen=True, kw_only=True):
    """Build this, in this folder, with these direct dependencies."""

    operation: v.Id
    claim: v.Id
    dref: v.DRefText
    context: v.Canonical
    folder: v.PathText


class Deliver(Message, frozen=True, kw_only=True):
    """It was built: these folders inside the claim's folder are its outputs."""

    claim: v.Id
    outputs: Annotated[list[v.FolderName], Meta(max_length=10_000)]
    started: v.Seconds


class Abandon(Message, frozen=True, kw_only=True):
    """It was not built."""

    claim: v.Id
    error: FailedRow


class Match(Message, frozen=True, kw_only=True):
    """Which of these realizations count?"""

    operation: v.Id
    match: v.Id
    dref: v.DRefText
    candidates: list[Candidate]


class MatchAnswer(Message, frozen=True, kw_only=True):
    """These do; None asks for a build. With `error` the matcher raised, and `answer` means nothing."""

    operation: v.Id
    match: v.Id
    answer: Optional[v.RRefs] = None
    error: Optional[FailedRow] = None
