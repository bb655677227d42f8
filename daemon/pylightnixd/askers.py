"""Which connections want to know what comes of operations, and the results that are kept for them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import trio

from pylightnixd.allocation import return_free_blocks
from pylightnixd.kept_results import KeptResults
from pylightnixd.results import Result
from pylightnixd.session import Session

__all__ = ["Askers"]

GIVE_BACK_BYTES: Final = 8 << 20
"""After how much that was dropped memory is given back."""


@dataclass(slots=True, eq=False)
class Askers:
    """Those of one daemon. `run` must be running."""

    under_way: Container[str]
    """The operations that have not ended, by name."""
    kept: KeptResults = field(default_factory=KeptResults)
    _asking: dict[Session, set[str]] = field(default_factory=dict)
    """The operations that each connection has asked about, and has not said that it knows all."""
    _changed: trio.Event = field(default_factory=trio.Event)

    async def run(self, in_thread: Callable[[Callable[[], None]], Awaitable[None]]) -> None:
        """Drop results that were kept for long enough, for as long as the daemon lives; and give back their memory."""
        while True:
            self.kept.expire(trio.current_time())
            if self.kept.dropped_bytes >= GIVE_BACK_BYTES:
                self.kept.dropped_bytes = 0
                await in_thread(return_free_blocks)
            deadline = self.kept.deadline()
            with trio.move_on_at(float("inf") if deadline is None else deadline):
                await self._changed.wait()
            self._changed = trio.Event()

    def keep(self, result: Result) -> None:
        """Keep what came of an operation that has ended just now."""
        self.kept.keep(trio.current_time(), result)
        self._changed.set()

    def asks(self, session: Session, operation: str) -> None:
        """Enter that a connection wants to know what comes of an operation."""
        if session not in self._asking:
            self._asking[session] = set()
            session.on_end.append(partial(self._asking.__delitem__, session))
        # By name: a connection may live long, and what is forgotten here is to be gone.
        known = self._asking[session] = {name for name in self._asking[session] if name in self.under_way or name in self.kept}
        known.add(operation)

    def knows(self, session: Session, operation: str) -> None:
        """Let go a result that a connection has asked for, and has, if no other one has asked for it."""
        if operation in self.kept and operation in self._asking.get(session, ()):
            self._asking[session].discard(operation)
            if not any(operation in names for names in self._asking.values()):
                self.kept.fetched(operation)
                self._changed.set()
