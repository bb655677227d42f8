"""Forked processes that a test talks to over a socket, so that everyone knows who has got how far without sleeping."""

from __future__ import annotations

import os
import signal
import socket
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Optional

WAIT_SECONDS = 60.0


class Line:
    """One end of a conversation of lines."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(WAIT_SECONDS)
        self._connection = connection
        self._reader = connection.makefile("r", encoding="utf-8")

    def say(self, text: str) -> None:
        self._connection.sendall(f"{text}\n".encode())

    def hear(self) -> str:
        """Wait for a line; empty if the other is gone."""
        return self._reader.readline().rstrip("\n")

    def is_quiet(self) -> bool:
        """Tell whether nothing was said that was not heard yet."""
        self._connection.setblocking(False)
        try:
            return not self._connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        finally:
            self._connection.settimeout(WAIT_SECONDS)

    def close(self) -> None:
        self._reader.close()
        self._connection.close()


class Peer:
    """A forked process that runs `body(line)`; killed at the end of the ``with`` block if it is still there."""

    def __init__(self, body: Callable[[Line], object]) -> None:
        mine, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            _live(body, mine, theirs)
        theirs.close()
        self.line = Line(mine)
        self._ended = False

    def say(self, text: str) -> None:
        self.line.say(text)

    def expect(self, text: str) -> None:
        heard = self.line.hear()
        assert heard == text, f"expected {text!r}, heard {heard!r}"

    def end(self) -> None:
        """Wait for its end, which must be a good one."""
        status = self.wait()
        assert status == 0, f"process {self.pid} ended with status {status}"

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL

    def wait(self) -> int:
        """Wait for its end and return its exit status; a signal is negative."""
        self._ended = True
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        if not self._ended:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()
        self.line.close()


def _live(body: Callable[[Line], object], mine: socket.socket, theirs: socket.socket) -> None:
    status = 1
    try:
        mine.close()
        body(Line(theirs))
        status = 0
    finally:
        if status:
            traceback.print_exc()
        os._exit(status)  # whatever happened: a forked child must not go on in its parent's code
