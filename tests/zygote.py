"""Processes at a small price: what `tests/prepared.py` forks, with the face of `subprocess.Popen`."""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import weakref
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Final, Optional

from tests.waiting import is_readable, wait_until

REPOSITORY: Final = Path(__file__).resolve().parents[1]
START_SECONDS: Final = 30.0
ANSWER_BYTES: Final = 64


def said(log: str) -> str:
    """Return what a daemon has said so far."""
    try:
        with open(log, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""


class Forked:
    """A process that the zygote forked."""

    def __init__(self, zygote: Zygote, pid: int) -> None:
        self.pid = pid
        self.returncode: Optional[int] = None
        self._zygote = zygote
        self._pidfd = os.pidfd_open(pid)
        weakref.finalize(self, os.close, self._pidfd)

    def poll(self) -> Optional[int]:
        """Return the exit status, or None while it runs."""
        if self.returncode is None and is_readable(self._pidfd, 0):
            self.returncode = self._zygote.reap(self.pid)
        return self.returncode

    def wait(self, timeout: Optional[float] = None) -> int:
        """Wait for its end and return the exit status.

        Raises:
            subprocess.TimeoutExpired: it runs still.
        """
        if self.returncode is None and not is_readable(self._pidfd, timeout):
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        status = self.poll()
        assert status is not None
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            signal.pidfd_send_signal(self._pidfd, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Zygote:
    """The process that forks. It ends with this one."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        path = os.pathsep.join(str(REPOSITORY / part) for part in ("src", "client", "daemon"))
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYLIGHTNIX", "PYTHON"))}
        environment |= {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        self._process = subprocess.Popen(
            [sys.executable, str(REPOSITORY / "tests" / "prepared.py")], stdin=theirs.fileno(), env=environment, start_new_session=True
        )
        theirs.close()

    def end(self) -> None:
        self._socket.close()
        self._process.wait(START_SECONDS)

    def _ask(self, order: Mapping[str, object], fds: Sequence[int] = ()) -> int:
        socket.send_fds(self._socket, [json.dumps(order).encode()], fds)
        answer = self._socket.recv(ANSWER_BYTES)
        assert answer, "the zygote has ended"
        return int(answer)

    def start(
        self,
        program: str,
        *arguments: str,
        environment: Mapping[str, str],
        folder: str,
        streams: tuple[int, int, int],
        pass_fds: Sequence[int] = (),
        warnings: Sequence[str] = (),
        spare_workers: bool = True,
    ) -> Forked:
        """Fork `pylightnix` or `pylightnixd`; `streams` are its standard input, output and error."""
        order = {
            "do": "start",
            "program": program,
            "arguments": arguments,
            "environment": dict(environment),
            "folder": folder,
            "keep": list(pass_fds),
            "warnings": list(warnings),
            "new_session": program == "pylightnixd",
            "spare_workers": spare_workers,
        }
        return Forked(self, self._ask(order, [*streams, *pass_fds]))

    def reap(self, pid: int) -> int:
        """Return the exit status of a process that has ended."""
        return self._ask({"do": "wait", "pid": pid})

    def serve(self, root: str, log: str, environment: Mapping[str, str]) -> Forked:
        """Start a daemon on a store, wait until it serves, and return its process. It writes to the file `log`."""
        with open(os.devnull, "r+b") as null, open(log, "ab") as file:
            process = self.start(
                "pylightnixd",
                *("--store", root, "--foreground", "--drain", "0.2", "--jobs", "2"),
                environment=environment,
                folder=os.getcwd(),
                streams=(null.fileno(), null.fileno(), file.fileno()),
            )
        wait_until(lambda: ": serving " in said(log) or process.poll() is not None, lambda: said(log))
        assert process.returncode is None, said(log)
        return process


@cache
def zygote() -> Zygote:
    """Return this process's zygote."""
    started = Zygote()
    atexit.register(started.end)
    return started
