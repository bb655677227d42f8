"""Daemons at a small price: a process with everything imported forks one whenever a test wants it.

line in               line out        what it does
start <root> <log>    <pid>           a child becomes `pylightnixd --foreground`, its standard error in the file <log>
wait <pid>            <status>        waits for a child's end
"""

from __future__ import annotations

import os
import subprocess
import sys
from types import TracebackType
from typing import Optional

from tests.client.daemons import environment
from tests.waiting import wait_until

START_SECONDS = 30.0
_RUN = "from tests.zygote import main; main()"


class Zygote:
    """The process that forks daemons; ends with the ``with`` block."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _RUN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), text=True
        )

    def __enter__(self) -> Zygote:
        return self

    def __exit__(self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        self._process.communicate(timeout=START_SECONDS)

    def _ask(self, *words: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(" ".join(words) + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def start(self, root: str, log: str) -> int:
        """Start a daemon on a store, wait until it serves, and return its process."""
        pid = int(self._ask("start", root, log))
        wait_until(lambda: ": serving " in said(log), lambda: said(log))
        return pid

    def wait(self, pid: int) -> int:
        """Wait for the end of a daemon; return its exit status."""
        return int(self._ask("wait", str(pid)))


def said(log: str) -> str:
    """Return what a daemon has said so far."""
    try:
        with open(log, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def main() -> None:
    import pylightnixd.main
    import pylightnixd.server

    assert pylightnixd.server is not None
    for line in sys.stdin:
        what, *words = line.split()
        if what == "start":
            print(_start(*words), flush=True)
        else:
            print(os.waitstatus_to_exitcode(os.waitpid(int(words[0]), 0)[1]), flush=True)


def _start(root: str, log: str) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        from pylightnixd.main import main as serve

        os.setsid()
        null, file = os.open(os.devnull, os.O_RDWR), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for fd, target in ((null, 0), (null, 1), (file, 2)):
            os.dup2(fd, target)
        serve.main(["--store", root, "--foreground", "--drain", "0.2", "--jobs", "2"], standalone_mode=False)
        status = 0
    finally:
        sys.stderr.flush()
        os._exit(status)
