"""A real daemon for each test that asks for one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Optional

import pytest
from tests.daemon.wire_client import WireClient
from tests.soundness import check_sound
from tests.stores import new_store
from tests.zygote import Forked, zygote

from pylightnix import RRef

START_SECONDS = 30.0
STOP_SECONDS = 60.0


class Daemon:
    """A running `pylightnixd --foreground`; gone, with all that it said checked, after the ``with`` block."""

    def __init__(
        self,
        root: Path,
        *options: str,
        env: Optional[Mapping[str, str]] = None,
        wrapper: tuple[str, ...] = (),
        pass_fds: tuple[int, ...] = (),
        prepared: bool = True,
    ) -> None:
        """Start it; `prepared`, with its first workers forked already, unless the test is about that."""
        self.S = new_store(root)
        self.plans = new_store(root.parent / f"{root.name}-plans")
        """A store that nobody owns, in which a test makes the closures that it submits."""
        self.root = str(root)
        self.socket_path = os.path.join(self.root, "daemon.sock")
        self.lines: list[str] = []
        self.good_ends: tuple[int, ...] = (0, -signal.SIGKILL)
        """The exit statuses with which it may end."""
        self._heard = threading.Condition()
        self._silent = False
        reading, writing = os.pipe()
        try:
            self.process = self._start(("--store", self.root, "--foreground", *options), env, wrapper, pass_fds, writing, prepared)
        finally:
            os.close(writing)
        self._reader = threading.Thread(target=self._read, args=(os.fdopen(reading, encoding="utf-8"),))
        self._reader.start()

    @staticmethod
    def _start(
        arguments: tuple[str, ...],
        env: Optional[Mapping[str, str]],
        wrapper: tuple[str, ...],
        pass_fds: tuple[int, ...],
        stderr: int,
        prepared: bool,
    ) -> Forked | subprocess.Popen[bytes]:
        if wrapper or env is not None or not prepared:  # what only an interpreter of its own can show
            return subprocess.Popen([*wrapper, sys.executable, "-m", "pylightnixd", *arguments], stderr=stderr, env=env, pass_fds=pass_fds)
        with open(os.devnull, "r+b") as null:
            streams = (null.fileno(), null.fileno(), stderr)
            return zygote().start("pylightnixd", *arguments, environment=os.environ, folder=os.getcwd(), streams=streams, pass_fds=pass_fds)

    def _read(self, stderr: IO[str]) -> None:
        with stderr:
            for line in stderr:
                with self._heard:
                    self.lines.append(line)
                    self._heard.notify_all()
        with self._heard:
            self._silent = True
            self._heard.notify_all()

    @property
    def said(self) -> str:
        return "".join(self.lines)

    def wait_said(self, text: str) -> None:
        """Wait for a line with `text` in it."""
        with self._heard:
            self._heard.wait_for(lambda: text in self.said or self._silent, START_SECONDS)
            assert text in self.said, f"the daemon did not say {text!r}, but: {self.said}"

    def wait_ready(self) -> Daemon:
        self.wait_said(" serving ")
        return self

    def client(self) -> WireClient:
        return WireClient(self.socket_path)

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def hang_up(self) -> None:
        """Have it read its settings again."""
        self.signal(signal.SIGHUP)

    def wait(self) -> int:
        """Wait for its end and for its last words."""
        status = self.process.wait(STOP_SECONDS)
        self._reader.join(STOP_SECONDS)
        assert not self._reader.is_alive(), "somebody else holds the daemon's standard error"
        return status

    def stop(self) -> None:
        """End it in the ordinary way."""
        self.signal()
        assert self.wait() == 0, self.said

    def stop_soundly(self, acknowledged: set[RRef]) -> None:
        """End it, and check the store that it leaves."""
        self.stop()
        check_sound(self.S, acknowledged)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        if self.process.poll() is None:
            self.signal(signal.SIGTERM if error is None else signal.SIGKILL)
        try:
            status = self.wait()
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.wait()
            status = None
        if error is not None:
            error.add_note(f"the daemon ended with {status} and had said:\n{self.said}")
        else:
            assert status in self.good_ends, f"status {status}: {self.said}"
            assert "BUG" not in self.said, self.said
            assert "Traceback" not in self.said, self.said


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


StartDaemon = Callable[..., Daemon]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon of two slots on a fresh store."""
    with Daemon(tmp_path / "store", "--jobs", "2") as running:
        yield running.wait_ready()


@pytest.fixture
def client(daemon: Daemon) -> Iterator[WireClient]:
    with daemon.client() as connected:
        yield connected
