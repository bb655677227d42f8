"""The room on the daemon's disk: what goes when it is full, what goes when it is beyond its bounds, and the reserve.

Whoever meets a full disk fails at once, with that word. Here it is made room meanwhile, as `pylightnix.store.room` says, once
for all who met it, and not again and again where that frees nothing. Must not know builds.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import trio

from pylightnix.errors import StoreFull
from pylightnix.store.kept import KeepFailed, drop_failed
from pylightnix.store.layout import StoreLayout
from pylightnix.store.room import RESERVE_BYTES, is_nearly_full, make_reserve, make_room
from pylightnixd.threads import run_in_thread

__all__ = ["Room"]

TIDY_SECONDS: Final = 60.0
PAUSE_SECONDS: Final = 5.0
"""How long nothing is looked for after it was: on a full disk, builds may fail by the thousand."""


@dataclass(slots=True, eq=False)
class Room:
    """Keeps room on the disk of a store. `run` must be running."""

    layout: StoreLayout
    empty_trash: Callable[[], Awaitable[None]]
    """In steps, between which the daemon may end."""
    keep_failed: KeepFailed = field(default_factory=KeepFailed)
    reserve_bytes: int = RESERVE_BYTES
    _limiter: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(1))
    _wanted: trio.Event = field(default_factory=trio.Event)
    _is_met: bool = False
    """Whether somebody met a full disk since it was seen to. Of a quota nothing else tells."""

    def look(self) -> None:
        """Have it looked, soon, whether the disk is full: something failed."""
        self._wanted.set()

    @contextmanager
    def minded(self) -> Iterator[None]:
        """Have room made, soon, if the block meets a full disk; it fails all the same. For the trio thread."""
        try:
            yield
        except StoreFull:
            self._is_met = True
            self._wanted.set()
            raise

    async def run(self) -> None:
        """See to it for as long as the daemon lives."""
        while True:
            met, self._is_met, self._wanted = self._is_met, False, trio.Event()
            await run_in_thread(self._see_to_it, met, limiter=self._limiter)
            await self.empty_trash()
            await trio.sleep(PAUSE_SECONDS)
            with trio.move_on_after(TIDY_SECONDS):
                await self._wanted.wait()

    def _see_to_it(self, met: bool) -> None:
        if met or is_nearly_full(self.layout):
            make_room(self.layout, 0.0)
            return
        drop_failed(self.layout, self.keep_failed)
        make_reserve(self.layout, self.reserve_bytes)
