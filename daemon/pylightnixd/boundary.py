"""Where what goes wrong in one task ends. What leaves a task of a nursery that all share ends the daemon. Must not know any task."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from pylightnix.errors import PylightnixException

__all__ = ["guarded"]

_log = logging.getLogger("pylightnixd")


async def guarded(what: str, task: Callable[[], Awaitable[object]]) -> None:
    """Run a task; log what it raises."""
    try:
        await task()
    except (OSError, PylightnixException) as error:
        _log.warning("%s: %s", what, error)
    except Exception:  # noqa: BLE001  # one task's trouble must not end the daemon
        _log.exception("BUG: %s", what)
