"""The program on a store whose daemon a supervisor, such as systemd, starts for whoever connects."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.client import daemons

from pylightnix import StorageSettings, instantiate, realize1
from pylightnix.storage import store_layout
from pylightnix.store.ownership import daemon_socket
from pylightnix_client.client import Client

ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.executable, [sys.executable, "-m", "pylightnixd", "--foreground", *sys.argv[2:]])
"""


class Supervisor:
    """Listens at a store's socket, and runs a daemon from the first connection on until it ends; then again."""

    def __init__(self, S: StorageSettings) -> None:
        self.started: list[subprocess.Popen[bytes]] = []
        self._root = str(S.root)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"{store_layout(S).state}/daemon.sock")
        self._listener.listen()
        self._stop_read, self._stop_write = os.pipe()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            ready, _, _ = select.select([self._listener.fileno(), self._stop_read], [], [])
            if self._stop_read in ready:
                return
            fd = self._listener.fileno()
            command = [sys.executable, "-c", ACTIVATE, str(fd), "--store", self._root, "--drain", "1"]
            self.started.append(subprocess.Popen(command, pass_fds=(fd,), env=daemons.environment(), stderr=subprocess.DEVNULL))
            self.started[-1].wait()

    def end_daemon(self) -> None:
        """End the daemon that runs; the supervisor listens again."""
        self.started[-1].terminate()
        assert self.started[-1].wait(daemons.SECONDS) == 0

    def close(self) -> None:
        os.write(self._stop_write, b"x")
        if self.started and self.started[-1].poll() is None:
            self.end_daemon()
        self._thread.join(daemons.SECONDS)
        self._listener.close()
        os.close(self._stop_read)
        os.close(self._stop_write)


@pytest.fixture
def S() -> Iterator[StorageSettings]:
    with daemons.short_store() as settings:
        yield settings


@pytest.fixture
def supervisor(S: StorageSettings) -> Iterator[Supervisor]:
    running = Supervisor(S)
    yield running
    running.close()


STAGES = """
import os
from pylightnix import build_outpath, build_wrapper, match_latest, mkconfig, mkdrv

def _write(b):
    with open(os.path.join(build_outpath(b), "out.txt"), "w") as file:
        file.write("text")

def main(r, text):
    return mkdrv(mkconfig({"name": "main", "text": text}), match_latest(), build_wrapper(_write), r)
"""


def run(S: StorageSettings, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pylightnix_client", "--store", str(S.root), *arguments]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, cwd=folder, env=daemons.environment(), text=True, timeout=daemons.SECONDS
    )


def test_each_command_has_a_daemon_started_again(S: StorageSettings, supervisor: Supervisor, tmp_path: Path) -> None:
    (tmp_path / "stages.py").write_text(STAGES)
    for i in range(2):
        ran = run(S, tmp_path, "build", "stages.py", "--arg", f"text={i}")
        assert (ran.returncode, ran.stderr.splitlines()[-1:]) == (0, ["1 built"]), ran.stderr
        assert len(supervisor.started) == i + 1
        assert f"process {supervisor.started[-1].pid}" in run(S, tmp_path, "status").stdout
        supervisor.end_daemon()
    ran = run(S, tmp_path, "ps")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "nothing is going on\n")
    assert len(supervisor.started) == 3


def test_programs_have_it_started_too(S: StorageSettings, supervisor: Supervisor) -> None:
    for i in range(2):
        assert realize1(instantiate(daemons.chain, f"activated {i}", 1, S=S))
        with Client.connect(store_layout(S)) as client:
            assert client.welcome.pid == supervisor.started[-1].pid
        supervisor.end_daemon()
    assert len(supervisor.started) == 2


def test_a_socket_that_nobody_listens_at_is_no_daemon(S: StorageSettings) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(f"{store_layout(S).state}/daemon.sock")
    assert daemon_socket(store_layout(S)) is None
    assert realize1(instantiate(daemons.chain, "embedded", 1, S=S))
