"""What went wrong, as people and programs are told: the one place that turns exceptions into reports.

Users see tracebacks of their own code only, from their first frame on; defects of this program show
everything. Must not print.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, Optional

import click

import pylightnix.errors
from pylightnix.errors import BuildError, Misuse, PylightnixException, RemoteFailure
from pylightnix.store.kept import left_by
from pylightnix.travel.failures import RemoteTraceback
from pylightnix.workfolder import program_folder
from pylightnix_client.errors import TargetFailed

__all__ = [
    "EXIT_BUILD_FAILED",
    "EXIT_INTERNAL",
    "EXIT_INTERRUPTED",
    "EXIT_PIPE",
    "Report",
    "build_report",
    "failure_code",
    "report",
    "user_traceback",
]

EXIT_BUILD_FAILED: Final = 1
EXIT_INTERNAL: Final = 70
EXIT_INTERRUPTED: Final = 130
"""What shells report for a program that Ctrl-C ended."""
EXIT_PIPE: Final = 141
"""What shells report for a program whose reader went away."""

_OWN_FOLDERS: Final = tuple(
    os.path.dirname(os.path.abspath(path)) + os.sep for path in (str(pylightnix.errors.__file__), __file__, str(click.__file__))
)
"""Where the frames come from that lead to the user's: our library's, this program's, its command line parser's."""


@dataclass(frozen=True, slots=True)
class Report:
    """A failure, ready to be shown."""

    code: str
    """Stable name for programs."""
    message: str
    exit_status: int
    traceback: Optional[str] = None
    """Where in the user's code it happened, if that was where."""
    kept: tuple[str, ...] = ()
    """Folders with unfinished output."""

    def fields(self) -> dict[str, Any]:
        """Return the report as fields of a JSON object, without those that say nothing."""
        found: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.traceback is not None:
            found["traceback"] = self.traceback
        if self.kept:
            found["kept"] = list(self.kept)
        return found


def report(error: BaseException) -> Report:
    """Return the report of an exception that ended a command."""
    if isinstance(error, click.ClickException):
        return Report("usage", error.format_message(), error.exit_code)
    if isinstance(error, KeyboardInterrupt):
        return Report("interrupted", "interrupted; what was finished before is kept", EXIT_INTERRUPTED)
    if isinstance(error, SystemExit):
        message = f"a realizer or a matcher ended the program: sys.exit({error.code!r}); what was finished before is kept"
        return Report(BuildError.code, message, EXIT_BUILD_FAILED, user_traceback(error))
    if isinstance(error, TargetFailed) and error.__cause__ is not None:
        return Report(error.code, str(error), error.exit_status, user_traceback(error.__cause__))
    if isinstance(error, PylightnixException):
        return Report(error.code, str(error), error.exit_status)
    if isinstance(error, FileNotFoundError) and error.filename is None and program_folder() is None:
        gone = "the folder that this command was started in was removed; go to another one"
        return Report(Misuse.code, gone, Misuse.exit_status)
    message = f"{type(error).__name__}: {error}; this is a defect of Pylightnix, please report it with the traceback"
    return Report("internal", message, EXIT_INTERNAL, "".join(traceback.format_exception(error)))


def build_report(error: BaseException) -> Report:
    """Return the report of a failed build: always with the exit status of one, whoever raised what."""
    found = _build_report(error)
    notes = [note for note in getattr(error, "__notes__", ()) if note not in (found.traceback or "")]
    return replace(found, message="\n".join([found.message, *notes]))


def _build_report(error: BaseException) -> Report:
    if isinstance(error, BuildError):
        return Report(error.code, str(error), EXIT_BUILD_FAILED, user_traceback(error.exception), tuple(map(str, error.outpaths)))
    if isinstance(error, PylightnixException) and not isinstance(error, RemoteFailure):
        return Report(error.code, str(error), EXIT_BUILD_FAILED, kept=tuple(map(str, left_by(error))))
    found = str(error)
    message = found if isinstance(error, RemoteFailure) else f"{type(error).__name__}{': ' if found else ''}{found}"
    return Report(failure_code(error), message, EXIT_BUILD_FAILED, user_traceback(error))


def failure_code(error: BaseException) -> str:
    """Return the code of a failed build: that of an error of this package, and one for all that users' code raises, wherever it ran."""
    if isinstance(error, PylightnixException) and not isinstance(error, RemoteFailure):
        return error.code
    return BuildError.code


def user_traceback(error: BaseException) -> Optional[str]:
    """Return the traceback of `error` from the first frame on that is not ours, its causes' likewise.

    None for an error of ours that no frame of the user's led to: its message says all there is.
    """
    if isinstance(error.__cause__, RemoteTraceback):
        return error.__cause__.text.rstrip() + "\n"  # it was raised in a worker, and has no frames here
    shown = traceback.TracebackException.from_exception(error)
    if isinstance(error, PylightnixException) and not _from_user(shown.stack):
        return None
    for link in _links(shown):
        # An error that came up in our own frames only (a broken symlink met by a builtin stage) keeps them.
        link.stack = traceback.StackSummary.from_list(_from_user(link.stack) or list(link.stack))
    if isinstance(error, SyntaxError) and all(_is_ours(frame.filename) for frame in shown.stack):
        return "".join(shown.format_exception_only())  # it names the user's file and line by itself
    return "".join(shown.format())


def _links(shown: traceback.TracebackException) -> Iterator[traceback.TracebackException]:
    stack = [shown]
    while stack:
        link = stack.pop()
        yield link
        stack.extend(other for other in (link.__cause__, link.__context__, *(link.exceptions or ())) if other is not None)


def _from_user(stack: traceback.StackSummary) -> list[traceback.FrameSummary]:
    frames = list(stack)
    for i, frame in enumerate(frames):
        if not _is_ours(frame.filename):
            return frames[i:]
    return []


def _is_ours(filename: str) -> bool:
    return filename.startswith((*_OWN_FOLDERS, "<frozen importlib"))
