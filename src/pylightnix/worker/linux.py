"""What the worker needs of Linux that Python's `os` does not have."""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Final

__all__ = ["become_subreaper", "children_of", "die_with_parent", "flush_c_streams", "gain_no_privileges", "own_children"]

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_SET_NO_NEW_PRIVS: Final = 38

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    # Variadic: what is not given is whatever lies in the registers, and some options want zeros there.
    if _libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def become_subreaper() -> None:
    """Let orphans among this process's descendants become its own children, not those of init."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def gain_no_privileges() -> None:
    """Let no program that this process or a descendant runs gain anything by a set-id bit or file capabilities. For good.

    Threads that are there already are not affected. A process that gains nothing can be killed by whoever started it.
    """
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when `parent`, which forked it, dies."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os.kill(os.getpid(), signal.SIGKILL)


def flush_c_streams() -> None:
    """Write out what C code has printed and C's own streams still hold."""
    _libc.fflush(None)


def own_children() -> list[int]:
    """Return the children of this process, which has one thread; zombies count.

    Exact as long as none is reaped meanwhile, which only this process can do.
    """
    pid = os.getpid()
    try:
        with open(f"/proc/self/task/{pid}/children", "rb") as file:
            return [int(word) for word in file.read().split()]
    except FileNotFoundError:
        return children_of(pid)  # a kernel without that file


def children_of(parent: int) -> list[int]:
    """Return the children of a process, whichever of its threads forked them; zombies count."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                with open(f"/proc/{entry}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue  # it ended meanwhile
            if int(fields[1]) == parent:
                found.append(int(entry))
    return found
