"""A copy of the index, made once a day while nobody asks for anything: what `store reindex` adds to the trees if the index is lost."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from dataclasses import dataclass, field
from typing import Final

import trio

from pylightnix.store.room import is_nearly_full
from pylightnix.store.store import Store
from pylightnixd.threads import run_in_thread

__all__ = ["EVERY_SECONDS", "Snapshots"]

_log = logging.getLogger("pylightnixd")
EVERY_SECONDS: Final = 86_400.0


@dataclass(slots=True, eq=False)
class Snapshots:
    """Makes the snapshots of one store."""

    store: Store
    """A view that nothing else uses."""
    _limiter: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(1))

    async def take_if_due(self) -> None:
        """Make a copy if the last one is a day old. Others read and write the index meanwhile. A failure is logged."""
        await run_in_thread(self._take_if_due, limiter=self._limiter)

    def _take_if_due(self) -> None:
        layout, index = self.store.layout, self.store.index
        try:
            if _age_seconds(layout.snapshot) < EVERY_SECONDS or is_nearly_full(layout) or index.is_empty():
                return
            index.snapshot(layout.snapshot)
        except (OSError, sqlite3.Error) as error:
            _log.warning("cannot copy the index to %s: %s", layout.snapshot, error)


def _age_seconds(path: str) -> float:
    try:
        age = time.time() - os.stat(path).st_mtime
    except FileNotFoundError:
        return EVERY_SECONDS
    return age if age >= 0 else EVERY_SECONDS  # the clock was set back
