"""What goes wrong between a client and a daemon, split by whose fault it is.

- `LocalProtocolError`: this end misused a connection. Nothing was sent; the connection is as it was.
- `RemoteProtocolError`: the other end broke the stream. The connection is over.
- `MessageInvalid`: one message of the other end is not valid, in a stream that is. Only that message fails.
- `DaemonRefusal` and below: the daemon understood and says no.

Each has its stable code, as all errors of the package. Must not know sockets, nor how errors travel.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Optional

from pylightnix.errors import PylightnixException

__all__ = [
    "BeyondBudget",
    "BuildDied",
    "CannotTravel",
    "DaemonRefusal",
    "Draining",
    "HandshakeExpected",
    "InternalError",
    "LocalProtocolError",
    "MatcherLost",
    "MessageInvalid",
    "MessageTooDeep",
    "MessageTooLarge",
    "MissingLog",
    "NoSuchClaim",
    "NoSuchOperation",
    "NotYours",
    "OperationCancelled",
    "ProtocolError",
    "RemoteProtocolError",
    "ResultDropped",
    "TooMany",
    "UnknownError",
    "UnknownMethod",
    "UnsupportedVersion",
    "WorkerFailed",
    "WorkerMismatch",
]


class ProtocolError(PylightnixException):
    """Two ends do not understand each other."""

    code = "protocol"
    exit_status = 76


class LocalProtocolError(ProtocolError):
    """This end used a connection in a way that the protocol has no place for. Nothing was sent."""

    code = "local-protocol"


class RemoteProtocolError(ProtocolError):
    """The other end sent what is not this protocol, or too much of it; nothing after it can be read."""

    code = "invalid-message"
    # Defaults, for those that come without them over the wire.
    field: Optional[str] = None
    request_id: Optional[int] = None
    """The request in which it happened, as far as that could be read."""

    def __init__(self, problem: str, field: Optional[str] = None, request_id: Optional[int] = None) -> None:
        self.problem, self.field, self.request_id = problem, field, request_id
        super().__init__(f"broken protocol: {_located(problem, field)}; the connection is closed")


class MessageTooLarge(RemoteProtocolError):
    """A message, or something in it, is longer than the limits say."""

    code = "too-large"


class MessageTooDeep(RemoteProtocolError):
    """Arrays and maps are nested deeper than the limits say."""

    code = "too-deep"


class HandshakeExpected(RemoteProtocolError):
    """Something came before `hello` was answered."""

    code = "handshake-expected"


class UnsupportedVersion(RemoteProtocolError):
    """No version of the protocol is known to both ends."""

    code = "unsupported-version"

    def __init__(self, offered: Sequence[int], known: Sequence[int], request_id: Optional[int] = None) -> None:
        self.offered, self.known = list(offered), list(known)
        super().__init__(f"versions {self.offered} were offered, {self.known} are known here", "$.versions", request_id)


class MessageInvalid(ProtocolError):
    """A message that is whole and in a sound stream, but not one of the protocol. Only that message fails."""

    code = "invalid-message"
    field: Optional[str] = None
    request_id: Optional[int] = None

    def __init__(self, problem: str, field: Optional[str] = None, request_id: Optional[int] = None) -> None:
        self.problem, self.field, self.request_id = problem, field, request_id
        super().__init__(f"invalid message: {_located(problem, field)}")


class UnknownMethod(MessageInvalid):
    """A request names a method that the other end does not have, perhaps because it is older."""

    code = "unknown-method"

    def __init__(self, method: str, request_id: Optional[int] = None) -> None:
        self.method = method
        super().__init__(f"there is no method {method[:64]!r}; the daemon may be older than the client", None, request_id)


class DaemonRefusal(PylightnixException):
    """The daemon understood a request and refused it. Nothing was changed by it."""

    code = "refused"


class NoSuchOperation(DaemonRefusal):
    """An operation is not known to the daemon: it never was, or it ended before much else did."""

    code = "no-such-operation"
    exit_status = 66

    def __init__(self, operation: str) -> None:
        self.operation = operation
        super().__init__(f"there is no operation {operation}; `ps` lists those there are")


class ResultDropped(DaemonRefusal):
    """An operation has ended, and its result is not kept any more. `ended` says when, in UTC seconds since the epoch."""

    code = "result-dropped"
    exit_status = 66

    def __init__(self, operation: str, ended: float, why: str) -> None:
        self.operation, self.ended, self.why = operation, ended, why
        super().__init__(
            f"the operation {operation} ended at {datetime.fromtimestamp(ended, UTC):%Y-%m-%d %H:%M:%S} UTC, its result {why}; "
            "ask for the same again: what was built is in the store"
        )


class NoSuchClaim(DaemonRefusal):
    """A connection answers a `claim` or `match` that it was not sent, has answered, or whose operation has ended."""

    code = "no-such-claim"
    exit_status = 66

    def __init__(self, claim: str) -> None:
        self.claim = claim
        super().__init__(
            f"nothing waits for an answer to {claim} from this connection: it was answered already, its operation has ended, "
            "or it is another connection's; nothing was kept of this answer"
        )


class NotYours(DaemonRefusal):
    """Something belongs to another user."""

    code = "not-yours"
    exit_status = 77

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(f"{what} belongs to another user; ask its owner")


class Draining(DaemonRefusal):
    """The daemon is stopping and takes nothing new. What was asked for can be asked again of its successor."""

    code = "draining"
    retryable = True
    exit_status = 75
    retry_after: float = 1.0
    """Seconds after which to connect again."""

    def __init__(self, retry_after: float) -> None:
        self.retry_after = retry_after
        super().__init__(f"the daemon is stopping and takes no new work; connect again in {retry_after:g} s")


class TooMany(DaemonRefusal):
    """A user or a connection has as many of something as it may have at a time."""

    code = "too-many"
    retryable = True
    exit_status = 75
    retry_after: Optional[float] = None

    def __init__(self, what: str, limit: int, retry_after: Optional[float] = None) -> None:
        self.what, self.limit, self.retry_after = what, limit, retry_after
        super().__init__(f"too many {what}: {limit} is the limit; wait until some are done")


class InternalError(PylightnixException):
    """The daemon failed in a way nobody foresaw. Its log has the details under `incident`."""

    code = "internal"
    exit_status = 70

    def __init__(self, incident: str) -> None:
        self.incident = incident
        super().__init__(f"the daemon failed in a way that is a bug; its log tells more under {incident}")


class UnknownError(PylightnixException):
    """The daemon answered with an error that this version does not know."""

    code = "unknown"

    def __init__(self, remote_code: str, message: str) -> None:
        self.remote_code = remote_code
        super().__init__(f"{message} [{remote_code}]")


# --- what became of builds and operations ----------------------------------------------------------------


class BuildDied(PylightnixException):
    """The process of a build ended, or was ended, before it had reported."""

    code = "build-died"

    def __init__(self, dref: str, how: str, build: str) -> None:
        self.dref, self.how, self.build = dref, how, build
        super().__init__(f"building {dref} failed: its process {how}; see its log: pylightnix log {dref}")


class BeyondBudget(PylightnixException):
    """A build takes more of something than its daemon has at all, so it could never start. `option` names what."""

    code = "beyond-budget"

    def __init__(self, dref: str, option: str, wanted: int, available: int) -> None:
        self.dref, self.option, self.wanted, self.available = dref, option, wanted, available
        unit = " bytes" if option == "memory" else ""
        setting = "jobs" if option == "cpus" else option
        super().__init__(
            f"{dref} can never be built here: its option {option} asks for {wanted}{unit}, and the daemon has {available}{unit}; "
            f"ask for less, or raise the daemon's setting {setting}"
        )


class CannotTravel(PylightnixException):
    """A realizer or matcher cannot leave the caller's process, and nobody offered to run it there."""

    code = "cannot-travel"

    def __init__(self, dref: str, what: str, reason: str) -> None:
        self.dref, self.what, self.reason = dref, what, reason
        super().__init__(
            f"the {what} of {dref} cannot be sent to the daemon: {reason}; define it in a module or at the top of your script, "
            "without open files, locks or other things of this process"
        )


class MissingLog(PylightnixException):
    """There is no log of that build (any more)."""

    code = "missing-log"
    exit_status = 66

    def __init__(self, ref: str) -> None:
        self.ref = ref
        super().__init__(
            f"there is no log of {ref}: no daemon of this store built it, or its log was removed; "
            "a build without a daemon writes to its terminal, and keep-logs says how long logs are kept"
        )


class MatcherLost(PylightnixException):
    """A matcher took too long, or its process was lost."""

    code = "matcher-lost"

    def __init__(self, dref: str, problem: str) -> None:
        self.dref, self.problem = dref, problem
        super().__init__(f"the matcher of {dref} {problem}; a matcher should look at a few small files and decide")


class OperationCancelled(PylightnixException):
    """An operation was cancelled; what it had built is kept."""

    code = "cancelled"

    def __init__(self, operation: str) -> None:
        self.operation = operation
        super().__init__(f"the operation {operation} was cancelled; what was finished is kept")


class WorkerFailed(PylightnixException):
    """A worker cannot be started in the caller's environment."""

    code = "worker-failed"

    def __init__(self, interpreter: str, problem: str, said: str, advice: str = "") -> None:
        self.interpreter, self.problem, self.said = interpreter, problem, said
        if "No module named" in said and "pylightnix" in said:
            advice = "install pylightnix in that environment"
        advice = advice or "check that this interpreter runs, and that its environment is whole"
        shown = f"\n{said}" if said else ""
        super().__init__(f"the worker {interpreter} {problem}; {advice}{shown}")


class WorkerMismatch(WorkerFailed):
    """The caller's environment holds another version of this package, whose worker the daemon cannot talk to."""

    code = "worker-mismatch"

    def __init__(self, interpreter: str, theirs: str, ours: str, problem: str) -> None:
        self.theirs, self.ours = theirs, ours
        advice = f"install pylightnix {ours} in that environment, or serve the store with its version of pylightnixd"
        super().__init__(interpreter, f"is of pylightnix {theirs}, which does not understand this daemon's {ours} ({problem})", "", advice)


def _located(problem: str, field: Optional[str]) -> str:
    return f"{field}: {problem}" if field else problem
