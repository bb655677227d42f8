"""The errors that only the client can make: leaves of the tree in `pylightnix.errors`.

Must import nothing but that tree and the protocol's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Optional

from pylightnix.errors import InvalidReference, PylightnixException, shown
from pylightnix.protocol.errors import TooMany

__all__ = [
    "AmbiguousReference",
    "DaemonForeign",
    "DaemonFull",
    "DaemonGone",
    "DaemonLeft",
    "DaemonNotStarted",
    "DaemonStopped",
    "InvalidArgument",
    "LeftAlone",
    "LinkRefused",
    "NoDaemon",
    "NoSuchFile",
    "NoSuchReference",
    "NotBuilt",
    "OutputLost",
    "SocketRefused",
    "TargetFailed",
    "UnreadableFile",
]


REFERENCE_FORMS: Final = (
    "dref:… or rref:…, 4 or more digits of a hash, a path in the store such as a result link, FILE.py:STAGE, PACKAGE.MODULE:STAGE, "
    "or the name of a stage"
)
"""How a reference may be given."""
CANDIDATES_MAX: Final = 8
"""How many of the things that a reference may mean are listed."""


class NoSuchReference(InvalidReference):
    """A text names nothing in the store, or nothing at all."""

    def __init__(self, found: str, suggestion: str) -> None:
        self.found, self.expected = found, REFERENCE_FORMS
        super(InvalidReference, self).__init__(
            f"nothing in the store is called {shown(found, 400)}{suggestion}\nexpected {REFERENCE_FORMS}"
        )


class AmbiguousReference(InvalidReference):
    """A text names several things in the store. `candidates` are lines that say which, the newest first."""

    code = "ambiguous-reference"

    def __init__(self, found: str, candidates: Sequence[str]) -> None:
        self.found, self.expected, self.candidates = found, "one of several", tuple(candidates)
        listed = "".join(f"\n  {line}" for line in candidates[:CANDIDATES_MAX])
        more = f"\n  and {len(candidates) - CANDIDATES_MAX} more" if len(candidates) > CANDIDATES_MAX else ""
        super(InvalidReference, self).__init__(
            f"{shown(found, 400)} may mean {len(candidates)} things; give one of these, the newest first:{listed}{more}"
        )


class NotBuilt(PylightnixException):
    """What was named has no realization yet."""

    code = "not-built"
    exit_status = 66

    def __init__(self, found: str, problem: str, target: str) -> None:
        self.found, self.problem = found, problem
        super().__init__(f"{found} is not built yet ({problem}); build it with: pylightnix build {target}")


class InvalidArgument(PylightnixException):
    """An ``--arg`` that cannot be read, that no target takes, or that one lacks."""

    code = "invalid-argument"
    exit_status = 2


class TargetFailed(PylightnixException):
    """The user's own code raised while it was imported or while its stage registered derivations.

    The cause (`__cause__`) is what it raised. Nothing was built.
    """

    code = "target-failed"
    exit_status = 2

    def __init__(self, target: str, doing: str, cause: Optional[BaseException], advice: str = "nothing was built") -> None:
        self.target, self.doing = target, doing
        found = str(cause)
        super().__init__(f"{target}: {doing} raised {type(cause).__name__}{': ' if found else ''}{found}; {advice}")


class LinkRefused(PylightnixException):
    """An out-link cannot be made where it was asked for. What stands there is untouched."""

    code = "link-refused"
    exit_status = 73

    def __init__(self, path: str, problem: str) -> None:
        self.path, self.problem = path, problem
        super().__init__(f"cannot put a link at {path}: {problem}; give another --out-link, or move away what is there")


class NoSuchFile(PylightnixException):
    """There is no such file where the command was told to look."""

    code = "no-such-file"
    exit_status = 66

    def __init__(self, path: str, where: str, advice: str) -> None:
        self.path, self.where, self.advice = path, where, advice
        super().__init__(f"no {path!r} in {where}; {advice}")


class UnreadableFile(PylightnixException):
    """What is there cannot be read as was asked: it is a folder, or the system refuses."""

    code = "unreadable-file"
    exit_status = 66

    def __init__(self, path: str, problem: str, advice: str) -> None:
        self.path, self.problem, self.advice = path, problem, advice
        super().__init__(f"cannot read {path}: {problem}; {advice}")


class OutputLost(PylightnixException):
    """Standard output does not take what is written to it."""

    code = "output-lost"
    exit_status = 74

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"cannot write to standard output: {reason}; free some room there, or send it elsewhere")


class NoDaemon(PylightnixException):
    """Nobody answers where a daemon should listen."""

    code = "no-daemon"
    retryable = True
    exit_status = 69

    def __init__(self, where: str, problem: str) -> None:
        self.where, self.problem = where, problem
        super().__init__(f"no daemon at {where}: {problem}; start one with pylightnixd --store ROOT")


class DaemonNotStarted(PylightnixException):
    """A daemon was to be started, and does not come up. `status` is its exit status, where it had one."""

    code = "daemon-not-started"
    exit_status = 69

    def __init__(self, where: str, problem: str, log: Optional[str] = None, status: Optional[int] = None) -> None:
        self.where, self.problem, self.log, self.status = where, problem, log, status
        known = f"; its log is {log}" if log else ""
        super().__init__(f"no daemon could be started on {where}: {problem}{known}; to build in this process, use build --no-daemon")


class DaemonGone(PylightnixException):
    """The daemon ended, or fell silent, in the middle of a conversation. What it had finished is kept."""

    code = "daemon-gone"
    retryable = True
    exit_status = 69

    def __init__(self, where: str, problem: str) -> None:
        self.where, self.problem = where, problem
        super().__init__(f"the daemon at {where} {problem}; what it had finished is kept, so ask again")


class DaemonStopped(PylightnixException):
    """The daemon's process is stopped, by Ctrl-Z or SIGSTOP: it answers nobody until it goes on."""

    code = "daemon-stopped"
    exit_status = 69

    def __init__(self, where: str, pid: int, waited_seconds: float) -> None:
        self.where, self.pid, self.waited_seconds = where, pid, waited_seconds
        super().__init__(
            f"the daemon at {where}, process {pid}, is stopped; waited {waited_seconds:g} s; let it go on with kill -CONT {pid}, or end it"
        )


class DaemonFull(TooMany):
    """The daemon has as many connections of this user as it takes, and still had when one had waited for a while."""

    # Not by the constructor's arguments: what the daemon said comes along whole.
    def __init__(self, refusal: TooMany) -> None:
        self.__dict__.update(vars(refusal))
        self.args = refusal.args


class LeftAlone(PylightnixException):
    """Ctrl-C ended the watching of an operation, and not the operation. `command` would."""

    code = "interrupted"
    exit_status = 130

    def __init__(self, operation: str, command: str) -> None:
        self.operation, self.command = operation, command
        super().__init__(f"interrupted; the operation {operation} goes on for whoever asked for it; to end it: {command}")


class DaemonLeft(PylightnixException):
    """The daemon ended in the middle of what somebody only looked at. Whoever asked for that asks the next daemon."""

    code = "daemon-left"
    retryable = True
    exit_status = 75

    def __init__(self, where: str, watched: str, command: str) -> None:
        self.where, self.watched, self.command = where, watched, command
        super().__init__(
            f"the daemon at {where} went away in the middle of {watched}; what it had finished is kept, and the program that asked "
            f"for the rest asks the next daemon by itself; what that is at: {command}"
        )


class DaemonForeign(PylightnixException):
    """The daemon is another user's, and what was asked would be done in folders which that user can change meanwhile."""

    code = "daemon-foreign"
    exit_status = 77

    def __init__(self, where: str, doing: str) -> None:
        self.where, self.doing = where, doing
        super().__init__(
            f"{doing}: expected a daemon of your own or of root, found one of another user at {where}, who could exchange files there; "
            "ask that user to do it, or work in a store of your own"
        )


class SocketRefused(PylightnixException):
    """The system does not let this user connect to the daemon, or the daemon is not one to talk to."""

    code = "socket-refused"
    exit_status = 77

    def __init__(self, where: str, problem: str) -> None:
        self.where, self.problem = where, problem
        super().__init__(f"cannot talk to the daemon at {where}: {problem}")
