"""Telling systemd how we are: the `sd_notify` protocol, datagrams to the socket in `NOTIFY_SOCKET`.

See sd_notify(3). Does nothing where nobody asked.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Optional

__all__ = ["Notifier", "listening_fds"]

_FIRST_FD = 3


class Notifier:
    """The line to whoever supervises this process."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        watchdog = environ.get("WATCHDOG_USEC", "")
        mine = environ.get("WATCHDOG_PID") in (None, str(os.getpid()))
        self.watchdog_seconds: Optional[float] = int(watchdog) / 1e6 if watchdog.isdigit() and mine else None
        """How often it wants to hear from us, None if it does not."""

    def tell(self, *lines: str) -> None:
        """Send lines such as ``READY=1``. Trouble on the other end is not ours: what it has no room for is dropped."""
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as line:
                line.connect(address)
                line.send("\n".join(lines).encode(), socket.MSG_DONTWAIT)  # who does not read it must not hold up the loop
        except OSError:
            pass


def listening_fds(environ: Mapping[str, str]) -> list[int]:
    """Return the sockets that systemd listens on for us: see sd_listen_fds(3)."""
    if environ.get("LISTEN_PID") != str(os.getpid()) or not environ.get("LISTEN_FDS", "").isdigit():
        return []
    return list(range(_FIRST_FD, _FIRST_FD + int(environ["LISTEN_FDS"])))
