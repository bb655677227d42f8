"""Messages of what a caller does by hand: deciding at a pause, and handing over a folder that no realizer filled."""

from __future__ import annotations

from typing import Optional

from pylightnix.protocol import _values as v
from pylightnix.protocol._operations import FailedRow
from pylightnix.protocol.vocabulary import Message

__all__ = ["Insert", "InsertOpen", "InsertOpened", "Inserted", "Pause", "PauseAnswer"]


class Pause(Message, frozen=True, kw_only=True):
    """What is to become of this derivation, whose dependencies are these?"""

    operation: v.Id
    pause: v.Id
    dref: v.DRefText
    context: v.Canonical
    error: Optional[FailedRow] = None


class PauseAnswer(Message, frozen=True, kw_only=True):
    """These realizations settle it; None has it built. With `error` it failed, and `rrefs` means nothing."""

    operation: v.Id
    pause: v.Id
    rrefs: Optional[v.RRefs] = None
    error: Optional[FailedRow] = None


class InsertOpen(Message, frozen=True, kw_only=True):
    """Make a folder in which an output can be handed over."""


class InsertOpened(Message, frozen=True, kw_only=True):
    """The folder."""

    folder: v.PathText


class Insert(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Make this folder inside of that one a realization; with `rref`, only if it is that one."""

    dref: v.DRefText
    context: v.Canonical
    output: v.FolderName
    started: v.Seconds
    rref: Optional[v.RRefText] = None
    dynamic: Optional[v.Canonical] = None
    stopped: Optional[v.Seconds] = None
    host: Optional[v.Label] = None


class Inserted(Message, frozen=True, kw_only=True):
    """The realization that it is now."""

    rref: v.RRefText
