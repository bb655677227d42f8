"""Waiting, in tests, for what comes about by itself."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from typing import Final, Optional

SECONDS: Final = 60.0


def wait_until(condition: Callable[[], bool], said: Callable[[], object] = lambda: "", seconds: float = SECONDS) -> None:
    """Return as soon as `condition` holds; fail with what is `said` then if it does not in `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"it did not come about in {seconds:g} s: {said()}"
        time.sleep(0.005)


def is_readable(fd: int, seconds: Optional[float]) -> bool:
    """Wait until a descriptor can be read; tell whether it can. Not by `select.select`, which knows none above 1023."""
    waiting = select.poll()
    waiting.register(fd, select.POLLIN)
    return bool(waiting.poll(None if seconds is None else seconds * 1000))
