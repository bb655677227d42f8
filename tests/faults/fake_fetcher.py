"""A fetcher that is a thread: the program of the real one, with a loop of its own, on the socket that the daemon gave to a process."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from typing import Any

import trio

from pylightnixd import fetch_process
from pylightnixd.fetch_program import serve

_PLACE = 1 + len(fetch_process.PROGRAM)
"""Where in a command the number of the socket is."""


_spare: list[Callable[[bool], None]] = []


class _Popen(subprocess.Popen[bytes]):
    """Starts programs as always, but for a fetcher: that is a real process of next to no size, and a thread which does the work."""

    def __init__(self, command: Sequence[str], **options: Any) -> None:
        if tuple(command[1:_PLACE]) != fetch_process.PROGRAM:
            super().__init__(command, **options)
            return
        super().__init__(["sleep", "600"], **{**options, "pass_fds": ()})
        end = socket.socket(fileno=os.dup(int(command[_PLACE])))
        _spare[0](True)
        threading.Thread(target=self._run, args=(end,), daemon=True).start()
        _spare[0](False)

    def _run(self, end: socket.socket) -> None:
        with end:
            trio.run(serve, end)
        self.kill()


def install(spare: Callable[[bool], None]) -> None:
    """Have this process's daemon get such a fetcher; `spare` says that what the calling thread does next is not the daemon's."""
    _spare.append(spare)
    subprocess.Popen = _Popen  # type: ignore[assignment, misc]  # a class in place of another
