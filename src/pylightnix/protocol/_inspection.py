"""Messages of looking at a daemon and its store: what runs, what is there, what was written."""

from __future__ import annotations

from typing import Literal, Optional, TypeAlias

from msgspec import field

from pylightnix.protocol import _values as v
from pylightnix.protocol._watching import Resources
from pylightnix.protocol.vocabulary import Message

__all__ = [
    "BuildLine",
    "Code",
    "CodeResult",
    "DaemonStatus",
    "GivenUpLine",
    "Held",
    "Info",
    "InfoResult",
    "Log",
    "LogResult",
    "OperationLine",
    "Processes",
    "Ps",
    "Query",
    "QueryWhat",
    "Register",
    "Registered",
    "Status",
]

QueryWhat: TypeAlias = Literal["allrrefs", "drefrrefs", "drefrrefsC", "rootrrefs", "starts"]


class Register(Message, frozen=True, kw_only=True):
    """Put derivations into the store."""

    configs: v.Configs


class Registered(Message, frozen=True, kw_only=True):
    """Their references, in the same order."""

    drefs: v.DRefs


class Ps(Message, frozen=True, kw_only=True):
    """Ask what is going on."""


class OperationLine(Message, frozen=True, kw_only=True):
    """One operation of `ps`."""

    operation: v.Id
    state: v.Word
    targets: v.DRefs
    user: v.Label
    started: Optional[v.Seconds]
    done: v.Count
    total: v.Count
    clients: v.Count


class BuildLine(Message, frozen=True, kw_only=True):
    """One build of `ps`."""

    build: v.Id
    dref: v.DRefText
    state: v.Word
    operations: list[v.Id]
    pid: Optional[v.Pid]
    started: Optional[v.Seconds]
    user: v.Label
    waiting_for: v.Text = ""
    resources: Optional[Resources] = None


class GivenUpLine(Message, frozen=True, kw_only=True):
    """One process of `ps` that could not be ended and is not waited for any more."""

    pid: v.Pid
    what: v.Text
    since: v.Seconds
    folder: Optional[v.PathText] = None


class Processes(Message, frozen=True, kw_only=True, omit_defaults=True):
    """All operations that have not ended, the builds, and the operations whose results are kept, or as many as are told of."""

    operations: list[OperationLine]
    builds: list[BuildLine]
    more_builds: v.Count = 0
    given_up: list[GivenUpLine] = field(default_factory=list)
    ended: list[OperationLine] = field(default_factory=list)


class Status(Message, frozen=True, kw_only=True):
    """Ask how the daemon is."""


class Held(Message, frozen=True, kw_only=True):
    """What the daemon holds for its clients, and how much that may be."""

    operations_bytes: v.Count
    operations_bytes_max: v.Count
    results: v.Count
    results_bytes: v.Count
    results_bytes_max: v.Count
    results_seconds: v.Seconds


class DaemonStatus(Message, frozen=True, kw_only=True, omit_defaults=True):
    """How the daemon is."""

    pid: v.Pid
    version: v.Label
    uptime_seconds: v.Seconds
    store: v.PathText
    slots: v.Count
    busy: v.Count
    queued: v.Count
    operations: v.Count
    workers: v.Count
    draining: bool
    lost_wakeups: v.Count
    given_up: v.Count = 0
    held: Optional[Held] = None


class Log(Message, frozen=True, kw_only=True):
    """Ask for a part of a build's log, by the build or by what it built."""

    ref: v.Subject
    offset: v.Count = 0
    limit: v.PieceSize = 1024 * 1024
    tail: bool = False


class LogResult(Message, frozen=True, kw_only=True):
    """A part of a log. It is all there is when `finished` and `data` is empty."""

    data: v.Piece
    next: v.Count
    finished: bool
    build: v.Id
    path: v.PathText


class Code(Message, frozen=True, kw_only=True):
    """What does this digest of a realizer cover?"""

    digest: v.Sha256


class CodeResult(Message, frozen=True, kw_only=True):
    """That, as JSON; None if it was not recorded."""

    manifest: Optional[str] = None


class Info(Message, frozen=True, kw_only=True):
    """Ask what is known of a realization."""

    ref: v.RRefText


class InfoResult(Message, frozen=True, kw_only=True):
    """What is known of a realization."""

    rref: v.RRefText
    dref: v.DRefText
    tree_hash: v.Sha256
    nar_bytes: v.Count
    started: v.Seconds
    stopped: v.Seconds
    builder: v.Label
    host: v.Label
    realizer_digest: Optional[v.Label]


class Query(Message, frozen=True, kw_only=True):
    """Enumerate realizations."""

    what: QueryWhat
    dref: Optional[v.DRefText] = None
    context: Optional[v.Canonical] = None
    rrefs: v.RRefs = field(default_factory=list)
    offset: v.Count = 0
    limit: v.PageSize = 1000
