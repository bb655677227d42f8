"""Making the connection to a daemon, and telling in our own errors why there is none. Must not know what is said."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable
from typing import Final, Optional, TypeAlias, Union

from pylightnix.errors import PylightnixException
from pylightnix.protocol.errors import TooMany
from pylightnix.storage import store_layout
from pylightnix.store.exposure import check_folders
from pylightnix.store.layout import StoreLayout
from pylightnix.store.locks import is_stopped
from pylightnix.store.ownership import LINK_NAME, daemon_socket, link_target
from pylightnix.types import StorageSettings
from pylightnix_client.errors import DaemonFull, DaemonGone, DaemonStopped, NoDaemon, SocketRefused

__all__ = ["PATIENCE_SECONDS", "Queue", "Where", "connect", "is_trusted", "silence", "socket_of"]

PATIENCE_SECONDS: Final = 60.0
"""How long to ask a daemon again that has as many connections of this user as it takes."""
_RETRY_SECONDS: Final = 1.0
"""When to ask it again if it does not say."""
_JITTER: Final = (0.5, 1.5)
"""By what that is multiplied, lest all who wait come at once again."""
_BACKLOG_SECONDS: Final = 0.02

_PATH_BYTES_MAX: Final = 107
"""Longest path of a Unix socket on Linux."""


Where: TypeAlias = Union[str, os.PathLike[str], StoreLayout, StorageSettings, None]
"""A daemon's socket, by its path, or the store that it owns; None for the current store."""


def _place(where: Where) -> Union[str, StoreLayout]:
    if where is None or isinstance(where, StorageSettings):
        return store_layout(where)
    return where if isinstance(where, StoreLayout) else os.fspath(where)


def socket_of(where: Where) -> str:
    """Return the path of a daemon's socket: the one given, or that of the daemon which owns the store.

    Raises:
        NoDaemon: no daemon owns the store.
        ExposedFolder: it is another user's, and a third one could exchange it.
    """
    where = _place(where)
    if isinstance(where, str):
        check_folders(where)
        return where
    found = daemon_socket(where)
    if found is not None:
        return found
    # Who may neither read the lock file nor connect is to hear of that, rather than that there is no daemon.
    link = f"{where.state}/{LINK_NAME}"
    if os.path.exists(link) and not os.access(where.lock, os.R_OK):
        return link_target(link)
    raise NoDaemon(where.state, "none owns this store")


def connect(path: str, deadline_seconds: float) -> socket.socket:
    """Connect to the socket at `path`.

    Raises:
        NoDaemon: there is no socket, or nobody listens at it any more.
        SocketRefused: this user may not.
    """
    if len(os.fsencode(path)) > _PATH_BYTES_MAX:
        raise NoDaemon(path, f"a Unix socket's path may have {_PATH_BYTES_MAX} bytes, this one is longer")
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    connection.settimeout(deadline_seconds)
    try:
        _connect(connection, path, time.monotonic() + deadline_seconds)
    except FileNotFoundError as error:
        connection.close()
        raise NoDaemon(path, "there is no such socket") from error
    except ConnectionRefusedError as error:
        connection.close()
        raise NoDaemon(path, "nobody listens there any more (it was left by a daemon that was killed)") from error
    except PermissionError as error:
        connection.close()
        raise SocketRefused(path, "it belongs to another user; ask its owner") from error
    except OSError as error:  # a timeout among them
        connection.close()
        raise NoDaemon(path, error.strerror or str(error)) from error
    return connection


def _connect(connection: socket.socket, path: str, deadline: float) -> None:
    while True:
        try:
            connection.connect(path)
        except BlockingIOError:  # more wait to be let in than the kernel keeps for the daemon
            if time.monotonic() >= deadline:
                raise
            time.sleep(_BACKLOG_SECONDS)
        else:
            return


class Queue:
    """Where one stands who was not let in, for want of a free connection.

    Args:
        patience_seconds: how long to stand there.
        waiting: is called once, with what the daemon said, before the first wait.
    """

    def __init__(self, patience_seconds: float, waiting: Optional[Callable[[TooMany], None]] = None) -> None:
        self._deadline = time.monotonic() + patience_seconds
        self._waiting = waiting

    def pause_seconds(self, refusal: TooMany) -> float:
        """Return how long to wait before asking again.

        Raises:
            DaemonFull: it has been long enough.
        """
        import random  # here, for few get here

        if time.monotonic() >= self._deadline:
            raise DaemonFull(refusal) from refusal
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting(refusal)
        return (refusal.retry_after or _RETRY_SECONDS) * random.uniform(*_JITTER)


def silence(connection: socket.socket, path: str, seconds: float) -> PylightnixException:
    """Return the error of a daemon that has not answered for so long."""
    try:
        pid = _peer(connection)[0]
    except OSError:
        pid = 0
    return DaemonStopped(path, pid, seconds) if pid and is_stopped(pid) else DaemonGone(path, f"did not answer within {seconds:g} s")


def _peer(connection: socket.socket) -> tuple[int, int, int]:
    """Return the process, the user and the group at the other end."""
    pid, uid, gid = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII")))
    return pid, uid, gid


def is_trusted(connection: socket.socket) -> bool:
    """Tell whether the daemon may have this program act for it: only if it is this user's or root's.

    Whose the store's folder is does not count: anybody may have one, with a socket in it.
    """
    return _peer(connection)[1] in (0, os.geteuid())
