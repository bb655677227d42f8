"""Descriptors that a client passes unasked. The protocol has no place for them, and to close one may take as long as its sender chose.

The last close of a TCP socket that lingers waits for its peer; that of a file on a dead server, for the server. A plain receive
drops what was passed, which closes it in the middle of the loop. So the kernel is told to refuse them, which it can since
Linux 6.16; where it cannot, a `WaryStream` takes them, has threads close them, and hangs up. Must not know the protocol.
"""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import trio

from pylightnixd.boundary import SharedNursery
from pylightnixd.threads import run_in_thread

__all__ = ["Closer", "WaryStream", "refuse_descriptors"]

_SO_PASSRIGHTS: Final = 83
"""Of <asm-generic/socket.h>, which Python does not know yet."""
_PASSED_MAX: Final = 253
"""SCM_MAX_FD: how many descriptors one message can carry."""
_CLOSING_AT_ONCE: Final = 8


def refuse_descriptors(line: socket.socket | trio.socket.SocketType) -> bool:
    """Have the kernel refuse whoever passes a descriptor to a Unix socket, or to what that will accept; return whether it can."""
    try:
        line.setsockopt(socket.SOL_SOCKET, _SO_PASSRIGHTS, 0)
    except OSError:
        return False
    return True


@dataclass(slots=True, eq=False)
class WaryStream(trio.abc.Stream):
    """A stream over a Unix socket whose peer may pass descriptors, and must not."""

    socket: trio.socket.SocketType
    close_all: Callable[[Sequence[int]], None]
    """Closes descriptors, and returns at once."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return bytes as they come; none at the end.

        Raises:
            trio.BrokenResourceError: descriptors came, too.
        """
        space = socket.CMSG_SPACE(_PASSED_MAX * array.array("i").itemsize)
        try:
            data, ancillary, flags, _ = await self.socket.recvmsg(max_bytes or 1 << 16, space, socket.MSG_CMSG_CLOEXEC)
        except OSError as error:
            raise trio.BrokenResourceError(str(error)) from error
        passed = array.array("i")
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                passed.frombytes(content[: len(content) - len(content) % passed.itemsize])
        if passed:
            self.close_all(passed)
        if passed or flags & socket.MSG_CTRUNC:
            raise trio.BrokenResourceError("the client passed descriptors")
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes, all of them."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[await self.socket.send(rest) :]
        except OSError as error:
            raise trio.BrokenResourceError(str(error)) from error

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until there is room."""
        await trio.lowlevel.wait_writable(self.socket)

    async def aclose(self) -> None:
        """Hang up. What nobody has received may hold descriptors, so that is no work for this thread either."""
        if self.socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self.socket)
            self.close_all([self.socket.detach()])
        await trio.lowlevel.checkpoint()


@dataclass(slots=True, eq=False)
class Closer:
    """Closes descriptors in threads of its own: what takes long there holds up other closing only."""

    nursery: SharedNursery
    _limiter: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(_CLOSING_AT_ONCE))

    def close(self, fds: Sequence[int]) -> None:
        """Have them closed soon."""
        work = partial(run_in_thread, _close_each, list(fds), abandon_on_cancel=True, limiter=self._limiter)
        self.nursery.start_soon("closing what a client passed", work)


def _close_each(fds: Sequence[int]) -> None:
    for fd in fds:
        try:
            os.close(fd)
        except OSError:
            pass  # what it says is the business of whoever wrote there
