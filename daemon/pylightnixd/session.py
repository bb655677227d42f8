"""One connection: its bytes in and out, and the order in which it is answered.

Three kinds of tasks: one reads, one writes, and one for each request, so that answers come out of order
and nothing waits behind a long `wait`. What is sent is queued: notifications only while there is credit and
room, and answers that may be long only when there is room, one after the other: they are made no sooner. Nor is
more read while much of what was read waits for its answer. So a client that never reads costs a few times
`QUEUE_BYTES_MAX`, whatever it asks. Must not know what a request means: see `requests`.
"""

from __future__ import annotations

import logging
import secrets
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, Optional

import trio

from pylightnix.protocol.connection import (
    ConnectionEnded,
    ConnectionState,
    Greeted,
    NotificationReceived,
    ProtocolFailed,
    RequestReceived,
    RequestRefused,
    ServerEvent,
)
from pylightnix.protocol.errors import InternalError, LocalProtocolError
from pylightnix.protocol.errors_on_wire import WireError, error_to_wire
from pylightnix.protocol.limits import HELLO_DEADLINE_SECONDS
from pylightnix.protocol.server import ServerConnection
from pylightnix.protocol.vocabulary import Message
from pylightnixd.boundary import contained, entered

__all__ = ["Session"]

_log = logging.getLogger("pylightnixd")

READ_BYTES: Final = 1 << 13
"""How much is read at a time: the smallest requests that fit take ten milliseconds, and then others have their turns."""
UNCOUNTED_BYTES: Final = 1 << 10
"""What is shorter needs no turn to be looked at."""
QUEUE_BYTES_MAX: Final = 4 << 20
"""How much may wait to be sent when another long answer is made, or more is read."""
ASKED_BYTES_MAX: Final = 16 << 20
"""How long the requests that wait for their answers may be together when more is read."""
ROOM_BYTES: Final = 1 << 18
"""How much may be queued when a notification of many is added."""
SEND_SECONDS: Final = 60.0
"""How long a client may refuse to take what it asked for."""

Handler = Callable[["Session", str, Message], Awaitable[Message]]
Listener = Callable[["Session", str, Message], None]


def _nothing() -> None:
    pass


@dataclass(slots=True, eq=False)
class Session:
    """One client's connection, from hello to its end."""

    stream: trio.abc.Stream
    connection: ServerConnection
    uid: int
    """Whose connection it is, as the kernel says."""
    handle: Handler
    hear: Listener
    in_order: frozenset[str] = frozenset()
    """Methods after which everything waits until they are answered: what follows may build on them."""
    hearing: trio.Lock = field(default_factory=trio.Lock)
    """Held by the connection whose bytes are looked at, one for all connections."""
    on_greeted: Callable[[], None] = _nothing
    """Called when the client's hello was accepted."""
    on_end: list[Callable[[], None]] = field(default_factory=list)
    """Called once when the connection is over, however it ended."""
    _queue: deque[bytes] = field(default_factory=deque)
    _queued_bytes: int = 0
    _wake: trio.Event = field(default_factory=trio.Event)
    _left: trio.Event = field(default_factory=trio.Event)
    """Set, and replaced, whenever something was sent or answered."""
    _turn: trio.Lock = field(default_factory=trio.Lock)
    """Held by the request whose long answer is being made."""
    _read_bytes: int = 0
    """How much was read since the last message."""
    _asked_bytes: int = 0
    """How long the requests are that were not answered."""
    _last_in_order: Optional[trio.Event] = None
    """Set when the latest of those that others wait for was answered."""
    _nursery: Optional[trio.Nursery] = None

    async def run(self) -> None:
        """Serve the connection until it ends. Raises nothing but cancellation."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._write)
                await self._read()
                nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            pass  # the client is gone, which is its right
        except* trio.TooSlowError:
            _log.info("a client of user %d does not read; hung up", self.uid)
        except* Exception as group:  # noqa: BLE001  # one client's trouble must not end the daemon
            entered("a session", group)
        finally:
            for leave in self.on_end:
                with contained("the end of a session"):  # the others must leave, too
                    leave()
            with trio.move_on_after(1, shield=True):
                await trio.aclose_forcefully(self.stream)

    def hang_up(self) -> None:
        """End the connection now, whatever it is at."""
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    def start(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run something for this client for as long as the connection lasts."""
        if self._nursery is not None:
            self._nursery.start_soon(task)

    # --- in -------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        deadline = trio.current_time() + HELLO_DEADLINE_SECONDS
        while True:
            until = deadline if self.connection.version is None else float("inf")
            with trio.move_on_at(until) as scope:
                data = await self.stream.receive_some(READ_BYTES)
            if scope.cancelled_caught:
                return
            self._read_bytes += len(data)
            if self._read_bytes <= UNCOUNTED_BYTES:
                goes_on = self._hear(data)
            else:  # one connection at a time: many that flood are no worse for the others than one
                async with self.hearing:
                    await trio.lowlevel.checkpoint()
                    goes_on = self._hear(data)
            if not goes_on:
                await self._flush()
                return
            if not data:
                return
            # Room must be made before more is asked: a flood of requests waits in the kernel, not here. Whether the
            # client reads is the writer's to see.
            while self._queued_bytes > QUEUE_BYTES_MAX or self._asked_bytes > ASKED_BYTES_MAX:
                await self._sent()

    def _hear(self, data: bytes | bytearray) -> bool:
        """Act on what bytes say, none being the end; tell whether the connection goes on."""
        events = self.connection.receive_data(data) if data else self.connection.receive_eof()
        return all(self._take(event) for event in events)

    def _take(self, event: ServerEvent) -> bool:
        """Act on one event; tell whether the connection goes on."""
        size, self._read_bytes = self._read_bytes, 0
        if isinstance(event, (Greeted, RequestRefused, ProtocolFailed)) and event.reply:
            self._send(event.reply)
        if isinstance(event, Greeted):
            if event.accepted:
                self.on_greeted()
            return event.accepted
        if isinstance(event, RequestReceived):
            if self._nursery is None:
                raise AssertionError("BUG: a request before the session runs")
            before, done = self._last_in_order, trio.Event()
            if event.method in self.in_order:
                self._last_in_order = done
            self._asked_bytes += size
            self._nursery.start_soon(self._answer, event, size, before, done)
        elif isinstance(event, NotificationReceived):
            self.hear(self, event.method, event.params)
        return not isinstance(event, (ProtocolFailed, ConnectionEnded))

    async def _answer(self, request: RequestReceived, size: int, before: Optional[trio.Event], done: trio.Event) -> None:
        if before is not None:
            await before.wait()
        try:
            self._send(await self._answer_to(request.id, request.method, request.params))
        finally:
            done.set()
            self._asked_bytes -= size
            self._tell_sent()
            if self._turn.statistics().owner is trio.lowlevel.current_task():
                self._turn.release()

    async def _answer_to(self, request_id: int, method: str, params: Message) -> bytes:
        try:
            answer = await self.handle(self, method, params)
            if self.connection.state is ConnectionState.closed:
                return b""  # who asked is gone
            return self.connection.respond(request_id, answer)
        except Exception as error:  # noqa: BLE001  # one request's trouble must not end the daemon
            incident = secrets.token_hex(6)
            wire = error_to_wire(error, incident)
            if wire.code == InternalError.code:
                _log.error("BUG: incident %s while answering %s", incident, method, exc_info=error)
            return self._refusal(request_id, wire)

    def _refusal(self, request_id: int, error: WireError) -> bytes:
        try:
            return self.connection.fail(request_id, error)
        except LocalProtocolError:
            return b""  # the connection was closed meanwhile

    # --- out ------------------------------------------------------------------------------------------

    def notify(self, method: str, params: Message) -> None:
        """Send a notification. The caller minds the client's credit."""
        try:
            self._send(self.connection.notify(method, params))
        except LocalProtocolError:
            pass  # the connection was closed meanwhile

    def _send(self, data: bytes) -> None:
        if data:
            self._queue.append(data)
            self._queued_bytes += len(data)
            self._wake.set()

    async def _write(self) -> None:
        while True:
            while self._queue:
                data = self._queue.popleft()
                with trio.fail_after(SEND_SECONDS):
                    await self.stream.send_all(data)
                self._queued_bytes -= len(data)
                self._tell_sent()
            self._wake = trio.Event()
            await self._wake.wait()

    async def wait_room(self) -> None:
        """Wait until little is queued: whoever sends much asks this first, and so gives others their turn."""
        await trio.lowlevel.checkpoint()
        while self._queued_bytes > ROOM_BYTES:
            await self._sent()

    async def wait_turn(self) -> None:
        """Wait until there is room for a long answer. Whoever answers a request calls it once, right before it makes that."""
        await self._turn.acquire()
        while self._queued_bytes > QUEUE_BYTES_MAX:
            await self._sent()

    async def _sent(self) -> None:
        """Wait until something has left, or was answered."""
        await self._left.wait()

    def _tell_sent(self) -> None:
        self._left.set()
        self._left = trio.Event()

    async def _flush(self) -> None:
        """Give the last words a moment to leave."""
        with trio.move_on_after(1):
            while self._queued_bytes:
                await self._sent()
