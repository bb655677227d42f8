"""Build logs: to a file first, and from there to whoever watches.

Draining a builder never waits for a watcher: what the builder says goes to the file at once, and watchers
are told that there is more. Each reads the file at its own pace, so nothing is queued for anyone and a
watcher that never reads costs nothing.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import trio

from pylightnix.store.build_logs import COMPRESSED, DRAFT
from pylightnix.store.log_packing import pack

__all__ = ["BuildLog", "compress_log"]

_log = logging.getLogger("pylightnixd")

_CHUNK_BYTES: Final = 1 << 16


@dataclass(slots=True, eq=False)
class BuildLog:
    """The log of one running build."""

    path: str
    cap_bytes: int
    fd: int = -1
    size: int = 0
    last_output: float = field(default_factory=time.monotonic)
    """When the build last said something, monotonic seconds."""
    on_overflow: Callable[[], None] = lambda: None
    """Called when the build says more than `cap_bytes`."""
    overflowed: bool = False
    finished: bool = False
    _gap: bool = False
    _more: trio.Event = field(default_factory=trio.Event)

    def open(self) -> None:
        """Make the file, 0600."""
        self.fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def write(self, data: bytes) -> None:
        """Append what the build said, up to the cap; beyond that only remember that there was more."""
        self.last_output = time.monotonic()
        room = self.cap_bytes - self.size
        if len(data) > room:
            self.overflowed = True
            self.on_overflow()
            data = data[: max(0, room)]
        view = memoryview(data)
        try:
            while view:
                written = os.write(self.fd, view)
                self.size += written
                view = view[written:]
        except OSError as error:  # a full disk, say: the build goes on, and its log lacks something
            if not self._gap:
                _log.warning("the log %s has a gap: %s", self.path, error)
            self._gap = True
        self._wake()

    def note(self, text: str) -> None:
        """Append a line of the daemon's own."""
        self.write(f"pylightnixd: {text}\n".encode("utf-8", "backslashreplace"))

    def finish(self) -> None:
        """Close the file; watchers see the end."""
        if not self.finished:
            self.finished = True
            if self.fd >= 0:  # the file may never have been made
                os.close(self.fd)
            self._wake()

    def _wake(self) -> None:
        self._more.set()
        self._more = trio.Event()

    async def wait_beyond(self, offset: int) -> None:
        """Wait until the log is longer than `offset`, or finished."""
        while self.size <= offset and not self.finished:
            await self._more.wait()

    async def drain(self, stream: trio.abc.ReceiveStream) -> None:
        """Write what comes through the builder's pipe until that is closed."""
        while data := await stream.receive_some(_CHUNK_BYTES):
            self.write(bytes(data))


def compress_log(path: str) -> None:
    """Replace a finished log by its compressed form, durably enough for a log: a crash leaves one of the two, or both."""
    draft = path + COMPRESSED + DRAFT
    with open(path, "rb") as source, open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as target:
        pack(source, target)
        target.flush()
        ended = os.fstat(source.fileno()).st_mtime_ns
        os.utime(target.fileno(), ns=(ended, ended))  # when the build ended: by that a realization's log is found
    os.rename(draft, path + COMPRESSED)
    os.unlink(path)
