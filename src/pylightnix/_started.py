"""When this program began, to tell which files are younger than what it has loaded of them."""

from __future__ import annotations

import os
import time
from typing import Final

__all__ = ["PROGRAM_STARTED"]


def _process_start() -> float:
    """Return when this process began, UTC seconds since the epoch; 0 where the system does not tell.

    One tick of the system's later, by which nothing of the project can have been read yet.
    """
    try:
        with open("/proc/self/stat", encoding="utf-8", errors="replace") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
        booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        return booted + (ticks + 1) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0


PROGRAM_STARTED: Final = _process_start()
"""Of the process that imported this package first: one that is forked from it has its modules."""
