"""The daemon's socket: making it, finding it, and knowing who connects."""

from __future__ import annotations

import os
import socket
import stat
import struct
from dataclasses import dataclass
from typing import Final

import trio

from pylightnix.errors import StoreError

__all__ = ["Peer", "SocketTrouble", "check_socket_path", "listen_at", "listener_of", "peer_of"]

PATH_BYTES_MAX: Final = 107
"""Longest path of a Unix socket on Linux."""
BACKLOG: Final = 128


class SocketTrouble(StoreError):
    """The daemon cannot listen where it was told to."""

    code = "socket-trouble"
    exit_status = 73

    def __init__(self, path: str, problem: str) -> None:
        self.path, self.problem = path, problem
        super().__init__(f"cannot listen at {path}: {problem}; choose another path with --socket")


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end, as the kernel says: at the time of its connect."""

    pid: int
    uid: int
    gid: int


def check_socket_path(path: str) -> None:
    """Raise `SocketTrouble` if no socket can be at `path`."""
    length = len(os.fsencode(path))
    if length > PATH_BYTES_MAX:
        raise SocketTrouble(path, f"the path has {length} bytes, and a Unix socket's may have {PATH_BYTES_MAX}")


def listen_at(path: str) -> socket.socket:
    """Listen at `path`, 0600. Whoever calls holds the store's lock, so a socket that is there is stale.

    Raises:
        SocketTrouble: the path is too long, something else is there, or the folder cannot be written.
    """
    check_socket_path(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        _remove_stale(path)
        # Bound under a umask rather than changed afterwards: there is no instant at which others may connect.
        umask = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(umask)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise SocketTrouble(path, error.strerror or str(error)) from error
    return listener


def _remove_stale(path: str) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise SocketTrouble(path, "something that is no socket is there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except OSError:
            os.unlink(path)
            return
    raise SocketTrouble(path, "another daemon answers there, on another store")


def listener_of(listener: socket.socket) -> trio.SocketListener:
    """Return trio's listener over a socket that listens."""
    listener.setblocking(False)
    return trio.SocketListener(trio.socket.from_stdlib_socket(listener))


def peer_of(stream: trio.SocketStream) -> Peer:
    """Return who connected."""
    data = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return Peer(*struct.unpack("3i", data))
