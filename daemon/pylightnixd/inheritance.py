"""What a daemon inherits from whoever starts it: descriptors, signals, a umask, a limit on open files.

A daemon lives longer than its starter, and runs builds for others. What it inherits by chance must neither be held
open for so long nor reach a build. Must not know what the daemon does.
"""

from __future__ import annotations

import io
import os
import resource
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pylightnix.errors import PylightnixException

__all__ = ["Inherited", "TooFewFiles", "renew_streams", "settle"]

OPEN_FILES_MIN: Final = 64
"""With fewer a daemon could not serve even one client and one build in peace."""
OPEN_FILES_WANTED: Final = 1 << 16
OPEN_FILES_AT_REST: Final = 46
"""What a daemon has open with some clients and no build."""
OPEN_FILES_OF_BUILD: Final = 6
_PYTHONS_OWN: Final = frozenset({signal.SIGPIPE, signal.SIGXFSZ})
"""What Python itself ignores, and gives back to programs that it starts."""


class TooFewFiles(PylightnixException):
    """The limit on open files is too low for a daemon."""

    code = "too-few-files"
    exit_status = 78

    def __init__(self, limit: int) -> None:
        self.limit = limit
        super().__init__(
            f"expected a limit of at least {OPEN_FILES_MIN} open files, found {limit}; raise it with ulimit -n, or LimitNOFILE= of a unit"
        )


@dataclass(frozen=True, slots=True)
class Inherited:
    """What was found."""

    lacked: frozenset[int]
    """Those of the descriptors 0, 1 and 2 that were closed."""
    open_files: tuple[int, int]
    """The soft and the hard limit on open files, for the processes of builds."""
    builds_max: int
    """How many builds at a time this process has descriptors for."""


def settle(kept: Sequence[int] = ()) -> Inherited:
    """Make this process independent of its starter. Call it before anything is opened.

    Descriptors other than 0, 1, 2 and `kept` are closed, and 0, 1 and 2 are open afterwards. Signals that were
    ignored or blocked work as usual. The owner's part of the umask is cleared, for the daemon must be able to use what it
    makes. The limit on open files is raised as far as it may be.

    Raises:
        TooFewFiles: that is not far enough.
    """
    lacked = _open_standard()
    for low, high in zip([2, *sorted(kept)], [*sorted(kept), 1 << 20], strict=True):
        os.closerange(low + 1, high)
    if 2 in lacked:
        renew_streams()
    _reset_signals()
    os.umask(os.umask(0o077) & 0o077)
    before, wanted = _raise_open_files()
    return Inherited(lacked, before, (wanted - OPEN_FILES_AT_REST) // OPEN_FILES_OF_BUILD)


def _open_standard() -> frozenset[int]:
    lacked = set()
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            # The lowest free number, which is this one. Whatever this process starts gets it as well.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
            lacked.add(fd)
    return frozenset(lacked)


def renew_streams() -> None:
    """Give Python standard output and standard error on descriptors 1 and 2, which it does without where they were closed at its start."""
    for name, fd in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            stream = io.TextIOWrapper(os.fdopen(fd, "wb", 0, closefd=False), "utf-8", "backslashreplace", write_through=True)
            setattr(sys, name, stream)


def _reset_signals() -> None:
    for number in signal.valid_signals():
        if signal.getsignal(number) is signal.SIG_IGN and number not in _PYTHONS_OWN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _raise_open_files() -> tuple[tuple[int, int], int]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES_WANTED if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES_WANTED)
    if wanted < OPEN_FILES_MIN:
        raise TooFewFiles(wanted)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return (soft, hard), wanted
