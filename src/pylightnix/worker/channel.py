"""MessagePack-RPC over a Unix stream socket, blocking, with descriptors that come along.

A request is ``[0, id, method, [params]]``, a response ``[1, id, error, result]``, a notification
``[2, method, [params]]``. Descriptors are matched to requests by order: bytes sent before them may arrive
together with them. Trusts the peer, which started this process. Must not know any method.
"""

from __future__ import annotations

import array
import socket
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgpack  # type: ignore[import-untyped]  # it ships no type information

__all__ = ["Channel", "Gone", "Request"]

_READ_BYTES: Final = 1 << 18
_FDS_AT_ONCE: Final = 64


class Gone(Exception):
    """The peer cannot be reached any more."""


@dataclass(frozen=True, slots=True)
class Request:
    """Something that the peer asks."""

    id: int
    method: str
    params: Mapping[str, Any]


class Channel:
    """One end of a connection: the one that is asked."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        # Paths may hold bytes that are no UTF-8; they are surrogates here, as everywhere in Python.
        self._unpacker = msgpack.Unpacker(max_buffer_size=0, unicode_errors="surrogateescape")
        self._packer = msgpack.Packer(unicode_errors="surrogateescape")
        self._fds: deque[int] = deque()

    def fileno(self) -> int:
        return self._connection.fileno()

    def receive(self) -> list[Request]:
        """Read once, waiting if there is nothing, and return the requests that are complete now.

        Raises:
            Gone: the peer has closed the connection, or talks nonsense.
        """
        room = socket.CMSG_SPACE(_FDS_AT_ONCE * array.array("i").itemsize)
        try:
            data, ancillary, flags, _ = self._connection.recvmsg(_READ_BYTES, room, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError as error:
            raise Gone(str(error)) from error
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
                self._fds.extend(fds)
        if not data:
            raise Gone("the connection was closed")
        if flags & socket.MSG_CTRUNC:
            raise Gone("descriptors were lost on the way, so none can be told from another any more")
        try:
            self._unpacker.feed(data)
            return [_request(message) for message in self._unpacker]
        except (ValueError, msgpack.UnpackException) as error:
            raise Gone(f"what the peer says is no request: {error}") from error

    def take_fds(self, count: int) -> list[int]:
        """Return the `count` descriptors that came with the message at hand; the caller closes them.

        Raises:
            Gone: there are fewer, so that those of later messages could not be told apart either.
        """
        if len(self._fds) < count:
            raise Gone(f"a message came with {len(self._fds)} descriptors instead of {count}")
        return [self._fds.popleft() for _ in range(count)]

    def answer(self, request: int, result: Any) -> None:
        self._send([1, request, None, result])

    def refuse(self, request: int, error: dict[str, Any]) -> None:
        self._send([1, request, error, None])

    def notify(self, method: str, params: dict[str, Any]) -> None:
        self._send([2, method, [params]])

    def _send(self, message: list[Any]) -> None:
        try:
            self._connection.sendall(self._packer.pack(message))
        except ConnectionError as error:
            raise Gone(str(error)) from error

    def close(self) -> None:
        self._connection.close()


def _request(message: Any) -> Request:
    match message:
        case [0, int(number), str(method), [dict(params)]]:
            return Request(number, method, params)
    raise ValueError(f"expected a request, found {message!r:.200}")
