"""Messages of watching an operation, of coming back to it, and of ending it."""

from __future__ import annotations

from typing import Literal, Optional, TypeAlias

from msgspec import field

from pylightnix.protocol import _values as v
from pylightnix.protocol.vocabulary import Message

__all__ = [
    "Attach",
    "Attached",
    "Cancel",
    "Credit",
    "DrainingNotice",
    "Ended",
    "Event",
    "EventKind",
    "EventPhase",
    "Events",
    "Fetched",
    "Fetching",
    "LogPiece",
    "Resources",
    "Subscribe",
]

EventKind: TypeAlias = Literal["plan", "wait", "match", "fetch", "copy", "build", "commit"]
EventPhase: TypeAlias = Literal["start", "progress", "stop"]


class Subscribe(Message, frozen=True, kw_only=True):
    """Be told what happens. One credit is spent by each notification."""

    operation: v.Id
    credit: v.Positive
    log: bool = False


class Credit(Message, frozen=True, kw_only=True):
    """Allow that many notifications more."""

    operation: v.Id
    credit: v.Positive


class Fetched(Message, frozen=True, kw_only=True):
    """The client knows all that it wants to know of an operation that has ended."""

    operation: v.Id


class Cancel(Message, frozen=True, kw_only=True):
    """End an operation; builds that others want go on."""

    operation: v.Id


class Attach(Message, frozen=True, kw_only=True):
    """Become a client of an operation that exists."""

    operation: v.Id


class Attached(Message, frozen=True, kw_only=True):
    """Where the operation is."""

    state: v.Word
    targets: v.DRefs
    total: v.Count
    done: v.Count


class Resources(Message, frozen=True, kw_only=True, omit_defaults=True):
    """What a build takes of the host: of each kind how much, and of tagged things which."""

    cpus: v.Count = 0
    memory: v.Count = 0
    tags: v.Tags = field(default_factory=dict)
    devices: v.Devices = field(default_factory=dict)


class Fetching(Message, frozen=True, kw_only=True, omit_defaults=True):
    """How far a fetch is."""

    bytes: v.Count
    total: Optional[v.Count] = None
    bytes_per_second: v.Seconds = 0.0
    mirror: v.Text = ""
    attempt: v.Positive = 1
    waiting: v.Text = ""


class Event(Message, frozen=True, kw_only=True):
    """A change of a span. Carries no RRef: that is told only once it is durable."""

    id: v.Count
    parent: Optional[v.Count] = None
    kind: EventKind
    phase: EventPhase
    time: v.Seconds
    dref: Optional[v.DRefText] = None
    build: Optional[v.Id] = None
    text: Optional[v.Text] = None
    ok: Optional[bool] = None
    done: Optional[v.Count] = None
    total: Optional[v.Count] = None
    code: Optional[v.Word] = None
    joined: Optional[bool] = None
    resources: Optional[Resources] = None
    fetch: Optional[Fetching] = None


class Events(Message, frozen=True, kw_only=True):
    """What happened, oldest first."""

    operation: v.Id
    events: list[Event]
    dropped: v.Count = 0


class LogPiece(Message, frozen=True, kw_only=True):
    """What a build wrote."""

    operation: v.Id
    build: v.Id
    dref: v.DRefText
    data: v.Piece


class Ended(Message, frozen=True, kw_only=True, omit_defaults=True):
    """An operation has ended: `wait` answers at once."""

    operation: v.Id
    dropped: v.Count = 0


class DrainingNotice(Message, frozen=True, kw_only=True):
    """The daemon is stopping."""

    retry_after: v.Seconds
