"""How the C library keeps memory that is free. Must not know what the memory is for."""

from __future__ import annotations

import ctypes
from typing import Final

__all__ = ["return_free_blocks", "return_large_blocks"]

_M_MMAP_THRESHOLD: Final = -3  # malloc.h
LARGE_BYTES: Final = 128 << 10
"""What glibc begins with. Left to itself, it keeps raising this, up to 32 MiB."""


def return_large_blocks() -> None:
    """Have large blocks that are free go back to the system at once: blobs, messages and failures come and go by the hundred.

    Nothing is done where the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)


def return_free_blocks() -> None:
    """Give back what is free now of all sizes. Takes some milliseconds: it has to look for it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
