"""The daemon's own log, which never holds its loop: standard error may be a pipe that nobody reads, or a disk that hangs.

Lines wait in a bounded queue for a thread that writes them. When it is full, lines are dropped, and the next that is written says how
many. Must not know who logs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from contextlib import suppress
from typing import Final, Optional, Protocol

__all__ = ["QueuedLog"]

LINES_MAX: Final = 10_000
FLUSH_SECONDS: Final = 1.0
"""How long the end of the process may take for the last lines."""


class BinaryFile(Protocol):
    """What the log is written to, such as `io.FileIO`."""

    def write(self, data: memoryview, /) -> Optional[int]: ...


class QueuedLog(logging.Handler):
    """Writes what is logged to a file, from a thread of its own, which begins with the first line: forks must not lose it.

    The file has no buffer: the end of the interpreter would wait for the lock of one.
    """

    def __init__(self, file: BinaryFile, lines_max: int = LINES_MAX) -> None:
        super().__init__()
        self._file, self._lines_max = file, lines_max
        self._lines: deque[str] = deque()
        self._dropped = 0
        self._writing = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Put a line in the queue. Does not wait."""
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001  # as every handler
            self.handleError(record)
            return
        with self._changed:
            if len(self._lines) >= self._lines_max:
                self._dropped += 1
                return
            self._lines.append(line)
            self._changed.notify_all()
            if self._thread is None:
                self._start()

    def _start(self) -> None:
        thread = threading.Thread(target=self._write, name="pylightnixd-log", daemon=True)
        with suppress(RuntimeError):  # the system allows no more threads now; the next line tries again
            thread.start()
            self._thread = thread

    def flush(self) -> None:
        """Wait until all is written, but not for long."""
        deadline = time.monotonic() + FLUSH_SECONDS
        with self._changed:
            while (self._lines or self._writing) and (left := deadline - time.monotonic()) > 0:
                self._changed.wait(left)

    def _write(self) -> None:
        while True:
            with self._changed:
                self._writing = False
                self._changed.notify_all()
                while not self._lines:
                    self._changed.wait()
                lines = [*self._lines, f"({self._dropped} lines were not written)"] if self._dropped else [*self._lines]
                self._lines.clear()
                self._dropped = 0
                self._writing = True
            try:
                rest = memoryview("".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace"))
                while rest:
                    rest = rest[self._file.write(rest) or 0 :]
            except (OSError, ValueError):
                pass  # nobody reads it any more, or the disk is full; the daemon is none the worse
