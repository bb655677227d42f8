"""A descriptor whose last close takes as long as its maker chose: a TCP socket that lingers, with bytes that nobody takes."""

from __future__ import annotations

import array
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def lingering_socket(seconds: int) -> Iterator[socket.socket]:
    """Yield it. Whoever has its last descriptor, and closes that while the block runs, waits for so long."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with socket.socket() as line:
            line.connect(server.getsockname())
            line.setblocking(False)
            try:
                while True:
                    line.send(bytes(1 << 16))
            except BlockingIOError:
                pass
            line.setblocking(True)
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, seconds))
            yield line
            if line.fileno() >= 0:  # nobody was given it
                line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))


def pass_on(line: socket.socket, data: bytes, passed: socket.socket) -> None:
    """Send bytes and a descriptor beside them, and keep none of it."""
    try:
        line.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [passed.fileno()]))])
    except BaseException:
        passed.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
        raise
    passed.setblocking(True)
    passed.close()
