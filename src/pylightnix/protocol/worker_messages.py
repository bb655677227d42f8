"""The language of a daemon and its workers. The daemon is the client here: it connects, and it asks.

File descriptors that go with a request are passed in the same ``sendmsg`` as the first byte of its frame;
their number is part of the method. Must not know how a worker forks or a daemon schedules.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Optional, TypeAlias, Union

from msgspec import UNSET, Meta, UnsetType, field

from pylightnix.protocol import _values as v
from pylightnix.protocol._operations import Candidate, Done
from pylightnix.protocol.limits import BLOB_BYTES_MAX, Limits
from pylightnix.protocol.vocabulary import HELLO, Hello, Message, Method, NotificationType, Side, Vocabulary, Welcome

__all__ = [
    "Build",
    "BuildEnded",
    "BuildKind",
    "BuildReport",
    "Forked",
    "Kill",
    "MATCHER_VOCABULARY",
    "MatchAnswered",
    "MatchRequest",
    "Matcher",
    "WORKER_LIMITS",
    "WORKER_VOCABULARY",
    "WorkerHello",
    "WorkerWelcome",
]

BuildKind: TypeAlias = Literal["python", "command", "mknode", "fetch"]


class WorkerHello(Hello, frozen=True, kw_only=True):
    """What the daemon asks of a new worker."""

    versions: Annotated[list[int], Meta(min_length=1, max_length=100)]
    features: Annotated[list[v.Word], Meta(max_length=100)] = field(default_factory=list)
    import_path: Annotated[list[v.ImportPath], Meta(max_length=1000)]
    umask: v.Umask


class WorkerWelcome(Welcome, frozen=True, kw_only=True):
    """What the worker runs: the user's environment may hold another version of this package."""

    package: v.Label
    python: v.Label
    pid: v.Pid


class Build(Message, frozen=True, kw_only=True):
    """Fork a build. Two descriptors go with it: the log's write end, the status pipe's write end."""

    build: v.Id
    folder: v.PathText
    root: v.PathText
    storage: v.PathText
    dref: v.DRefText
    context: v.Canonical
    realizer: Optional[v.Callable] = None
    kind: BuildKind
    args: Optional[v.Piece] = None
    digest: Optional[v.Label] = None
    at_once: v.Positive = 1
    token: Optional[v.Label] = None
    variables: dict[v.VariableName, v.VariableValue] = field(default_factory=dict)


class Forked(Message, frozen=True, kw_only=True):
    """The child that was forked."""

    pid: v.Pid


class Kill(Message, frozen=True, kw_only=True):
    """Kill all processes of a build; `ended` follows."""

    build: v.Id


class BuildEnded(Message, frozen=True, kw_only=True):
    """A build's child was reaped, and every process of that build is dead, but for those in `left`, which cannot be killed."""

    build: v.Id
    pid: v.Pid
    exit_code: Optional[v.Status] = None
    signal: Optional[v.Status] = None
    left: Union[Annotated[list[v.Pid], Meta(max_length=10_000)], UnsetType] = UNSET

    @property
    def undead(self) -> list[int]:
        """Process ids of those that are left."""
        return self.left or []


class BuildReport(Message, frozen=True, kw_only=True):
    """What a build says of itself on its status pipe: the names of its outputs in the build folder, or the error."""

    outputs: Annotated[list[v.FolderName], Meta(max_length=10_000)]
    error: Optional[dict[str, Any]] = None
    manifest: Optional[str] = None
    told: Annotated[list[v.Text], Meta(max_length=1000)] = field(default_factory=list)
    """Warnings for who asked."""
    started: v.Seconds
    stopped: v.Seconds


class Matcher(Message, frozen=True, kw_only=True):
    """Fork a matcher child. One descriptor goes with it: the socket on which it serves `MATCHER_VOCABULARY`."""

    operation: v.Id
    root: v.PathText
    storage: v.PathText


class MatchRequest(Message, frozen=True, kw_only=True):
    """Which of these realizations count?"""

    dref: v.DRefText
    matcher: v.Callable
    candidates: list[Candidate]


class MatchAnswered(Message, frozen=True, kw_only=True):
    """These do; None asks for a build. Warnings that the matcher gave go with it, as ``[category, text]``."""

    answer: Optional[v.RRefs] = None
    told: list[tuple[v.Word, v.Text]] = field(default_factory=list)


WORKER_VOCABULARY: Final = Vocabulary.of(
    {
        HELLO: Method(WorkerHello, WorkerWelcome),
        "build": Method(Build, Forked),
        "kill": Method(Kill, Done),
        "matcher": Method(Matcher, Forked),
    },
    {"ended": NotificationType(BuildEnded, Side.server)},
)

MATCHER_VOCABULARY: Final = Vocabulary.of({"match": Method(MatchRequest, MatchAnswered)}, {})
"""What a matcher child answers. It has no handshake: the worker that forked it had one."""

WORKER_LIMITS: Final = Limits(message_bytes=BLOB_BYTES_MAX + 16 * 1024 * 1024, binary_bytes=BLOB_BYTES_MAX)
"""A realizer travels to its worker in one piece."""
