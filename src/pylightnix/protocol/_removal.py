"""Messages of removing what is in a store, and of mending it."""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta, field

from pylightnix.protocol import _values as v
from pylightnix.protocol.limits import ROWS_PER_MESSAGE_MAX
from pylightnix.protocol.vocabulary import Message

__all__ = ["MEND_MAX", "NEEDED_BY_MAX", "KeptRow", "Mend", "Mended", "MendedRow", "Remove", "Removed"]

NEEDED_BY_MAX: Final = 10
"""How many of those that need something an answer names."""

MEND_MAX: Final = 100
"""How many realizations one request has mended: each is hashed."""

_SomeDRefs: TypeAlias = Annotated[list[v.DRefText], Meta(max_length=ROWS_PER_MESSAGE_MAX)]
_SomeRRefs: TypeAlias = Annotated[list[v.RRefText], Meta(max_length=ROWS_PER_MESSAGE_MAX)]


class Remove(Message, frozen=True, kw_only=True):
    """Take derivations, with all their realizations, and realizations out of the store."""

    drefs: _SomeDRefs = field(default_factory=list)
    rrefs: _SomeRRefs = field(default_factory=list)
    only_unused: bool = False


class KeptRow(msgspec.Struct, frozen=True, array_like=True):
    """``[ref, [name, …]]``: something that was to go, and by what it is needed."""

    ref: v.Subject
    needed_by: list[v.Text]


class Removed(Message, frozen=True, kw_only=True):
    """What is gone, and what is needed still."""

    drefs: v.DRefs
    rrefs: v.RRefs
    more: v.Count = 0
    kept: list[KeptRow] = field(default_factory=list)


class Mend(Message, frozen=True, kw_only=True):
    """Hash realizations again, and mend them or move them to the quarantine where they are damaged."""

    rrefs: Annotated[list[v.RRefText], Meta(max_length=MEND_MAX)]


class MendedRow(msgspec.Struct, frozen=True, array_like=True):
    """``[rref, outcome, damage, detail, moved_to]``: what became of a realization."""

    rref: v.RRefText
    outcome: v.Word
    damage: v.Text
    detail: v.Text
    moved_to: v.PathText | None


class Mended(Message, frozen=True, kw_only=True):
    """What became of each, in the order of the request."""

    mended: list[MendedRow]
