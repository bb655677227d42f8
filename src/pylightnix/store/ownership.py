"""Whether a daemon owns a store, and where it listens. Must not know what is said to it."""

from __future__ import annotations

import json
import os
import stat
import struct
import sys
from typing import Any, Final, Optional

from pylightnix.errors import Misuse
from pylightnix.store.exposure import check_folders
from pylightnix.store.layout import StoreLayout

__all__ = ["DAEMON_ROLE", "LINK_NAME", "check_encodable", "daemon_socket", "link_target", "lock_says", "serving_daemon", "use_socket"]

DAEMON_ROLE: Final = "pylightnixd"
"""What the lock file calls the daemon."""
LINK_NAME: Final = "daemon.sock"
"""The socket in a state folder, or a link to where it is."""
_PROBE_SECONDS: Final = 2.0

_chosen: dict[str, str] = {}
"""Storage -> the socket at which the user says its daemon is."""


def lock_says(layout: StoreLayout) -> dict[str, Any]:
    """Return what the lock file says of whoever holds it exclusively, or held it and died; empty if it says nothing."""
    try:
        fd = os.open(layout.lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return {}  # no store yet, or another user's
    try:
        data = os.read(fd, 8192)
        said = json.loads(data) if data.strip() else {}
    except (OSError, ValueError):
        return {}  # it died while it wrote this
    finally:
        os.close(fd)
    return said if isinstance(said, dict) else {}


def serving_daemon(layout: StoreLayout) -> Optional[tuple[int, str]]:
    """Return the process and the socket of the daemon that has the store and keeps it; None if there is none, or it is ending."""
    said = lock_says(layout)
    pid, path = said.get("pid"), said.get("socket")
    if said.get("role") != DAEMON_ROLE or said.get("ending") or not isinstance(pid, int) or not isinstance(path, str):
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None  # it was killed, and said nothing more
    except PermissionError:
        pass
    return (pid, path) if _answers(path) else None


def use_socket(layout: StoreLayout, path: str) -> None:
    """Take the daemon at `path` for the owner of a store from now on, in this process, whatever the lock file says.

    For stores whose state this user does not find or may not read. If nobody answers there, callers meet an error.
    """
    _chosen[layout.storage] = path


def daemon_socket(layout: StoreLayout) -> Optional[str]:
    """Return the path of the socket at which a daemon serves this store now; None if none does.

    A socket in the state folder at which somebody listens counts, too: a supervisor, such as systemd, keeps it while no
    daemon runs, and starts one for whoever connects. Costs the reading of an empty file and a look for that socket
    where there is no daemon, and a connection where there is one.
    """
    if layout.storage in _chosen:
        return _chosen[layout.storage]
    found = _listening(layout)
    if found is not None:
        check_folders(layout.state, layout.storage)
    return found


def _listening(layout: StoreLayout) -> Optional[str]:
    said = lock_says(layout)
    path = said.get("socket") if said.get("role") == DAEMON_ROLE else None
    if isinstance(path, str) and _answers(path, layout):
        return path
    link = f"{layout.state}/{LINK_NAME}"
    try:
        if not stat.S_ISSOCK(os.stat(link).st_mode):
            return None
        target = link_target(link)
    except OSError:
        return None
    return target if target != path and _answers(target, layout) else None


def link_target(link: str) -> str:
    """Return where the socket at `link` is: a link's own path may be longer than a socket's, and leads to one that is not.

    Raises:
        OSError: there is nothing any more.
    """
    return os.path.join(os.path.dirname(link), os.readlink(link)) if os.path.islink(link) else link


def check_encodable(path: str) -> None:
    """Refuse a path that another process has told and that cannot be had here, in a locale that is not UTF-8.

    Raises:
        Misuse: this process has no bytes for it.
    """
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        encoding = sys.getfilesystemencoding()
        shown = path.encode("ascii", "backslashreplace").decode()
        raise Misuse(f"expected a UTF-8 locale for the path {shown}, found {encoding}; set LANG=C.UTF-8 or PYTHONUTF8=1") from None


def _answers(path: str, layout: Optional[StoreLayout] = None) -> bool:
    """Tell whether somebody listens there; for a store only its owner, root and this user count.

    The path of a daemon that died may be anybody's by now.
    """
    import socket  # here, for a program without a daemon needs it nowhere

    check_encodable(path)

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(path)
        except BlockingIOError:
            return True  # so many connect at a time that none more can wait
        except OSError:
            return False  # it was killed, or does not listen yet or any more
        if layout is None:
            return True
        uid: int = struct.unpack("iII", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII")))[1]
    return uid in (0, os.geteuid(), os.stat(layout.state).st_uid)
