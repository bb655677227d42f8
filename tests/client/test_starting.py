"""A command that starts a daemon where others have the store: it says for whom it waits, and does not give up while they work."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.client import daemons
from tests.client.conftest import Program

from pylightnix.storage import mkSS, store_layout
from pylightnix.store.ownership import lock_says

STAGES = "from pylightnix import mknode\ndef node(r): return mknode(r, {'name': 'n'}, {'a': b'b'})\n"
HOLDS = """
import sys
from pylightnix.storage import mkSS, store_layout
from pylightnix.store.locks import shared_lock
with shared_lock(store_layout(mkSS(sys.argv[1]))):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def alone() -> Iterator[Program]:
    top = Path(tempfile.mkdtemp(prefix="pyl-"))
    (top / "project").mkdir()
    made = Program(top / "project", top / "s", daemon=True)
    made.write("stages.py", STAGES)
    made.write("holds.py", HOLDS)
    assert made("build", "--no-daemon", "stages.py").status == 0
    yield made
    daemons.end_started_daemon(made.store)
    subprocess.run(["chmod", "-R", "u+w", top], check=True)
    shutil.rmtree(top)


@contextmanager
def holder(program: Program) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "holds.py", str(program.store)]
    with subprocess.Popen(
        command, cwd=program.folder, env=program.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        try:
            yield child
        finally:
            child.send_signal(signal.SIGCONT)
            let_go(child)


def let_go(child: subprocess.Popen[str]) -> None:
    if child.poll() is None:
        child.communicate("\n", timeout=60)


def told(build: subprocess.Popen[bytes]) -> str:
    assert build.stderr is not None
    return build.stderr.readline().decode()


def test_a_build_waits_for_a_program_and_says_so(alone: Program) -> None:
    with holder(alone) as program:
        build = alone.start("build", "stages.py")
        assert told(build) == f"waiting for {sys.executable} holds.py {alone.store}, process {program.pid}, which holds the store\n"
        let_go(program)
        out, errors = build.communicate(timeout=60)
    assert (build.returncode, errors.decode()) == (0, "1 reused\n")
    assert out.startswith(b"rref:")


def test_a_build_told_for_programs_says_so_to_programs(alone: Program) -> None:
    with holder(alone) as program:
        build = alone.start("build", "--json", "stages.py")
        assert build.stdout is not None
        first: dict[str, Any] = json.loads(build.stdout.readline())
        assert first["kind"] == "waiting"
        assert f"process {program.pid}" in first["for"]
        let_go(program)
        assert json.loads(build.communicate(timeout=60)[0].splitlines()[-1])["ok"]


def test_ctrl_c_ends_the_wait_at_once(alone: Program) -> None:
    with holder(alone):
        build = alone.start("build", "stages.py")
        assert "which holds the store" in told(build)
        build.send_signal(signal.SIGINT)
        _, errors = build.communicate(timeout=20)
        assert build.returncode in (130, -signal.SIGINT), errors


@pytest.mark.slow  # it waits for a program that does not go on
def test_a_stopped_program_is_named(alone: Program) -> None:
    with holder(alone) as program:
        program.send_signal(signal.SIGSTOP)
        ran = alone("build", "stages.py", "--json")
        assert (ran.status, ran.last["code"]) == (69, "daemon-not-started")
        assert f"process {program.pid}, holds the store and is stopped; waited 1" in ran.last["message"]
        assert f"kill -CONT {program.pid}" in ran.last["message"]


def test_what_dead_daemons_leave_is_in_nobodys_way(alone: Program) -> None:
    layout = store_layout(mkSS(str(alone.store)))
    gone = subprocess.Popen(["true"])
    gone.wait()
    for pid in (gone.pid, os.getpid()):
        with socket.socket(socket.AF_UNIX) as stale:
            path = alone.folder / f"{pid}.sock"
            stale.bind(str(path))
        Path(layout.lock).write_text(json.dumps({"role": "pylightnixd", "pid": pid, "socket": str(path), "version": "0"}))
        (alone.store / "daemon.sock").unlink(missing_ok=True)
        (alone.store / "daemon.sock").symlink_to(path)
        ran = alone("build", "stages.py")
        assert (ran.status, ran.stderr) == (0, "1 reused\n")
        daemons.end_started_daemon(alone.store)


@pytest.mark.slow  # eight programs and their daemons start at once
def test_eight_builds_at_once_start_one_daemon(alone: Program) -> None:
    builds = [alone.start("build", "stages.py", "--json") for _ in range(8)]
    ended = [(*build.communicate(timeout=120), build.returncode) for build in builds]
    assert [status for _, _, status in ended] == [0] * 8, ended
    log = (alone.store / "logs" / "pylightnixd.log").read_text()
    assert log.count("Traceback") == 0
    assert os.getsid(lock_says(store_layout(mkSS(str(alone.store))))["pid"])


def test_programs_go_on_while_daemons_come_and_go(alone: Program) -> None:
    alone.write(
        "program.py",
        "from pylightnix import instantiate, realize1, mkSS\nimport os, stages, sys\n"
        "while not os.path.exists('stop'): realize1(instantiate(stages.node, S=mkSS(sys.argv[1])))\n",
    )
    command = [sys.executable, "program.py", str(alone.store)]
    with subprocess.Popen(command, cwd=alone.folder, env=alone.environment, stderr=subprocess.PIPE) as program:
        for _ in range(2):
            daemon = daemons.start_daemon(str(alone.store), "--drain", "1")
            assert "BUG" not in daemons.end_daemon(daemon)
        (alone.folder / "stop").touch()
        _, errors = program.communicate(timeout=120)
        assert program.returncode == 0, errors


@pytest.mark.slow  # it waits for a daemon that does not go on
def test_a_stopped_daemon_is_named(alone: Program) -> None:
    daemon = daemons.start_daemon(str(alone.store), "--drain", "1")
    try:
        daemon.send_signal(signal.SIGSTOP)
        for command in (("build", "stages.py", "--json"), ("ps", "--json")):
            ran = alone(*command)
            assert (ran.status, ran.last["code"]) == (69, "daemon-stopped")
            assert f"process {daemon.pid}, is stopped; waited 10 s; let it go on with kill -CONT {daemon.pid}" in ran.last["message"]
    finally:
        daemon.send_signal(signal.SIGCONT)
        daemons.end_daemon(daemon)
