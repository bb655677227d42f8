"""A worker whose other end a test plays, in simulated time and without a process."""

from __future__ import annotations

import array
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Optional, cast

import msgpack  # type: ignore[import-untyped]  # it ships no type information
import trio
import trio.testing

from pylightnixd.patience import Debts
from pylightnixd.worker import Worker

LIMIT = 60.0
BIG = b"x" * (8 << 20)
"""More than a socket takes that nobody reads."""


class FakeProcess:
    pid = 4711

    def poll(self) -> Optional[int]:
        return None


class Theirs:
    """The worker's end of the line."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = trio.socket.from_stdlib_socket(connection)  # which the test closes
        self._unpacker = msgpack.Unpacker(max_buffer_size=0)
        self._fds: deque[int] = deque()

    async def hear(self) -> tuple[int, str, dict[str, Any]]:
        """Read the next request."""
        while True:
            for _, number, method, (params,) in self._unpacker:
                return number, method, params
            data, rights, _, _ = await self._socket.recvmsg(1 << 20, 1000)
            assert data, "the daemon hung up"
            for _, _, content in rights:
                self._fds.extend(array.array("i", content))
            self._unpacker.feed(data)

    def take_socket(self) -> socket.socket:
        """Return the socket that came with a request."""
        return socket.socket(fileno=self._fds.popleft())

    async def read_some(self) -> None:
        """Read some of what is there, and forget it."""
        await self._socket.recv(1 << 20)

    async def hear_end(self) -> None:
        while await self._socket.recv(1 << 20):
            pass

    async def answer(self, number: int, **result: object) -> None:
        await self.say([1, number, None, result])

    async def tell_end(self, build: str, **more: object) -> None:
        await self.say([2, "ended", [{"build": build, "pid": 5, "exit_code": 0, "signal": None, **more}]])

    async def say(self, message: object) -> None:
        data = msgpack.packb(message)
        while data:
            data = data[await self._socket.send(data) :]


def talk(script: Callable[[Worker, Theirs], Awaitable[None]]) -> None:
    """Run a script of both ends, at once as far as its waits go, and see that the line ends."""

    async def main() -> None:
        ours, theirs = socket.socketpair()
        worker = Worker("key", "/bin/python", cast("trio.Process", FakeProcess()), trio.socket.from_stdlib_socket(ours), Debts(LIMIT))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.serve)
            with theirs:
                await script(worker, Theirs(theirs))
            worker.hang_up()
        assert worker.lost

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.01))
