"""The daemon's socket: making it, finding it, and knowing who connects."""

from __future__ import annotations

import hashlib
import os
import socket
import stat
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import trio

from pylightnix.errors import StoreError
from pylightnixd.descriptors import WaryStream, refuse_descriptors

__all__ = ["LINK_NAME", "Peer", "SocketTrouble", "check_socket_path", "listen_at", "listener_of", "peer_of", "usual_socket_path"]

LINK_NAME: Final = "daemon.sock"
"""The socket in a state folder, or a link to where it is."""
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


def usual_socket_path(state: str, environ: Mapping[str, str]) -> str:
    """Return where a daemon listens that was told nothing else: in its state folder, or in a private one where that is too deep.

    Raises:
        SocketTrouble: the private folder is not there and cannot be made, or is somebody else's.
    """
    usual = os.path.join(state, LINK_NAME)
    if len(os.fsencode(usual)) <= PATH_BYTES_MAX:
        return usual
    name = hashlib.sha256(os.fsencode(os.path.realpath(state))).hexdigest()[:32] + ".sock"
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    folders = [os.path.join(runtime, "pylightnix")] if os.path.isabs(runtime) and _is_private(runtime) else []
    folders += [os.path.join(top, f"pylightnix-{os.geteuid()}") for top in (tempfile.gettempdir(), "/tmp")]
    folder = next(found for found in folders if len(os.fsencode(os.path.join(found, name))) <= PATH_BYTES_MAX)
    try:
        os.makedirs(folder, 0o700, exist_ok=True)
    except OSError as error:
        raise SocketTrouble(usual, f"its path is too long, and {folder} cannot be made ({error.strerror})") from error
    if not _is_private(folder):  # anybody may have made one in the folder for temporary files
        raise SocketTrouble(usual, f"its path is too long, and {folder} is not a folder of yours alone, with mode 0700")
    return os.path.join(folder, name)


def _is_private(folder: str) -> bool:
    try:
        info = os.lstat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(info.st_mode) and info.st_uid == os.geteuid() and info.st_mode & 0o077 == 0


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
        if stat.S_ISLNK(mode):  # of a daemon that listened elsewhere and was killed
            mode = os.stat(path).st_mode
    except FileNotFoundError:
        if os.path.islink(path):
            os.unlink(path)
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
    """Return trio's listener over a socket that listens. Who connects inherits that it passes no descriptors."""
    refuse_descriptors(listener)
    listener.setblocking(False)
    return trio.SocketListener(trio.socket.from_stdlib_socket(listener))


def peer_of(stream: trio.SocketStream | WaryStream) -> Peer:
    """Return who connected."""
    data = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII"))
    return Peer(*struct.unpack("iII", data))
