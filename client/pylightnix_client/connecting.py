"""Making the connection to a daemon, and telling in our own errors why there is none. Must not know what is said."""

from __future__ import annotations

import os
import socket
import struct
from typing import Final, Union

from pylightnix.store.layout import StoreLayout
from pylightnix.store.ownership import daemon_socket
from pylightnix_client.errors import NoDaemon, SocketRefused

__all__ = ["connect", "is_trusted", "socket_of"]

_LINK_NAME: Final = "daemon.sock"
_PATH_BYTES_MAX: Final = 107
"""Longest path of a Unix socket on Linux."""


def socket_of(where: Union[str, StoreLayout]) -> str:
    """Return the path of a daemon's socket: the one given, or that of the daemon which owns the store.

    Raises:
        NoDaemon: no daemon owns the store.
    """
    if isinstance(where, str):
        return where
    found = daemon_socket(where)
    if found is not None:
        return found
    # Who may not read the lock file finds the link, which the daemon removes when it ends.
    link = f"{where.state}/{_LINK_NAME}"
    if os.path.exists(link) and not os.access(where.lock, os.R_OK):
        # A link's own path may be longer than a socket's; the daemon makes one to a path that is not.
        return os.path.join(where.state, os.readlink(link)) if os.path.islink(link) else link
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
        connection.connect(path)
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


def is_trusted(connection: socket.socket, where: Union[str, StoreLayout]) -> bool:
    """Tell whether the daemon may have objects unpickled here: whether it is root's, this user's, or the store owner's."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    uid = struct.unpack("3i", data)[1]
    trusted = {0, os.geteuid()}
    if isinstance(where, StoreLayout):
        trusted.add(os.stat(where.state).st_uid)
    return uid in trusted
