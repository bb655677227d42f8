"""Watching an operation: events and logs to one client, as far as its credit goes.

Events wait in a bounded buffer and are dropped, with a mark, when it is full: a client that never reads
costs a few hundred kilobytes. Logs wait in their files, and are read when there is credit.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import trio

from pylightnix.protocol.messages import Ended, Event, Events, LogPiece
from pylightnix.store.build_logs import read_log
from pylightnixd.boundary import SharedNursery
from pylightnixd.jobs import RunningBuild
from pylightnixd.operation import Operation
from pylightnixd.session import Session
from pylightnixd.threads import run_in_thread

__all__ = ["Watch"]

EVENTS_MAX: Final = 1000
EVENTS_PER_MESSAGE: Final = 200
LOG_PIECE_BYTES: Final = 1 << 16


@dataclass(slots=True, eq=False)
class Watch:
    """One client's subscription to one operation."""

    session: Session
    operation: Operation
    log: bool
    credit: int
    _events: deque[Event] = field(default_factory=deque)
    _dropped: int = 0
    _changed: trio.Event = field(default_factory=trio.Event)
    _following: dict[str, None] = field(default_factory=dict)
    _waits: dict[trio.CancelScope, None] = field(default_factory=dict)
    """What waits for more of a log."""

    def event(self, event: Event) -> None:
        """Take an event in; must not await."""
        if len(self._events) >= EVENTS_MAX:
            self._dropped += 1
        else:
            self._events.append(event)
        self._wake()

    def add_credit(self, credit: int) -> None:
        """Allow that many notifications more."""
        self.credit += credit
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def run(self) -> None:
        """Send what there is, until the operation has ended and was told so.

        What still waits then, and has no credit, is left out: the end is told whether there is credit or not.
        """
        operation, me = self.operation, id(self)
        async with trio.open_nursery() as nursery:
            shared = SharedNursery(nursery)

            def follow(running: RunningBuild) -> None:
                if self.log and running.id not in self._following:
                    self._following[running.id] = None
                    shared.start_soon(f"telling of the log of build {running.id}", partial(self._follow, running))

            operation.telling.watchers[me] = self.event
            operation.log_watchers[me] = follow
            nursery.start_soon(self._wake_at_end)
            try:
                for running in list(operation.running.values()):
                    follow(running)
                await self._tell_events()
            finally:
                operation.telling.watchers.pop(me, None)
                operation.log_watchers.pop(me, None)
        self.session.notify("ended", Ended(operation=operation.id, dropped=len(self._events) + self._dropped))

    async def _wake_at_end(self) -> None:
        await self.operation.ended.wait()
        self._wake()
        for scope in list(self._waits):
            scope.cancel()

    async def _spend(self) -> bool:
        """Wait for room and credit, and take one; False if the operation ended and there is no credit."""
        await self.session.wait_room()
        while self.credit < 1:
            if self.operation.ended.is_set():
                return False
            await self._changed.wait()
        self.credit -= 1
        return True

    async def _tell_events(self) -> None:
        while self._events or self._dropped or not self.operation.ended.is_set():
            if not self._events and not self._dropped:
                await self._changed.wait()
                continue
            if not await self._spend():
                return
            batch = [self._events.popleft() for _ in range(min(len(self._events), EVENTS_PER_MESSAGE))]
            dropped, self._dropped = self._dropped, 0
            self.session.notify("events", Events(operation=self.operation.id, events=batch, dropped=dropped))

    async def _follow(self, running: RunningBuild) -> None:
        """Send a build's log, from its beginning, at this client's pace."""
        offset = 0
        while True:
            await self._wait_log(running, offset)
            self.operation.builds.logs.touch(running.log.path)
            data = await run_in_thread(read_log, running.log.path, offset, LOG_PIECE_BYTES)
            if not data or not await self._spend():
                return  # that was all, or nobody has credit for it
            offset += len(data)
            piece = LogPiece(operation=self.operation.id, build=running.id, dref=running.job.key.dref, data=data)
            self.session.notify("log", piece)

    async def _wait_log(self, running: RunningBuild, offset: int) -> None:
        """Wait for more of a log, or for its end, or for that of the operation: others may want the build still."""
        with trio.CancelScope() as scope:
            self._waits[scope] = None
            if self.operation.ended.is_set():
                scope.cancel()
            try:
                await running.log.wait_beyond(offset)
            finally:
                del self._waits[scope]
