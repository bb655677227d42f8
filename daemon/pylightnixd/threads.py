"""Blocking work in threads, whose lack is the system's refusal and no mistake of ours."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from typing import Final, Optional, TypeVar, TypeVarTuple

import trio

__all__ = ["run_in_thread", "start_thread"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
_NO_THREAD: Final = "can't start new thread"
"""All that Python says of what the system refused."""


async def run_in_thread(
    work: Callable[[*Ts], T], *args: *Ts, limiter: Optional[trio.CapacityLimiter] = None, abandon_on_cancel: bool = False
) -> T:
    """Run `work` as `trio.to_thread.run_sync` does. OSError (EAGAIN) if the system allows no more threads."""
    try:
        return await trio.to_thread.run_sync(work, *args, limiter=limiter, abandon_on_cancel=abandon_on_cancel)
    except RuntimeError as error:
        if str(error) != _NO_THREAD:
            raise
        raise _refused() from error


def start_thread(thread: threading.Thread) -> None:
    """Start a thread. OSError (EAGAIN) if the system allows no more."""
    try:
        thread.start()
    except RuntimeError as error:
        if str(error) != _NO_THREAD:
            raise
        raise _refused() from error


def _refused() -> OSError:
    return OSError(errno.EAGAIN, f"{os.strerror(errno.EAGAIN)}: no thread can be started")
