"""What a daemon, its workers and its builds inherit from whoever starts them: nothing that is not meant for them."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.client.daemons import end_started_daemon, environment
from tests.daemon.wire_client import WireClient
from tests.waiting import wait_until

from pylightnix.storage import mkSS, store_layout
from pylightnix.store.ownership import lock_says

PYTHON = sys.executable
STAGES = """
import os, resource, subprocess
from pylightnix import autostage, selfref

def status(text):
    return {line.split(":")[0]: line.split()[1] for line in text.splitlines() if line[:3] in ("Sig", "Uma")}

@autostage(name="inherits", out=[selfref, "out.txt"])
def inherits(out):
    own = sorted(os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}"))
    listing = "for fd in /proc/$$/fd/*; do [ -L $fd ] && printf '%s ' $fd; done; echo; cat /proc/$$/status"
    shell = subprocess.run(["bash", "-c", listing], capture_output=True, text=True, check=True).stdout
    facts = {
        "files": [name for name in own if name.startswith("/") and not name.startswith(("/dev/null", "/proc/"))],
        "fds": [int(word.rpartition("/")[2]) for word in shell.splitlines()[0].split()],
        "status": status(shell.split("\\n", 1)[1]),
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "cwd": os.getcwd(),
    }
    with open(out, "w") as file:
        file.write(repr(facts))
"""
PYTHONS_OWN = {signal.SIGPIPE, signal.SIGXFSZ}


def bash(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    # Not over pipes: what keeps them open would keep this waiting.
    with open(folder / "said", "w+") as said:
        ran = subprocess.run(
            ["bash", "-c", line], stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment(), cwd=folder, timeout=60, check=False
        )
        said.seek(0)
        return subprocess.CompletedProcess(ran.args, ran.returncode, said.read())


@contextmanager
def started(line: str, folder: Path) -> Iterator[int]:
    """Have a shell start a daemon on ``store`` in its own way; yields its process id."""
    root = folder / "store"
    ran = bash(line.format(daemon=f"{PYTHON} -m pylightnixd --store {root}"), folder)
    try:
        assert ran.returncode == 0, ran.stdout
        wait_until(lambda: is_listening(root / "daemon.sock"))
        with WireClient(str(root / "daemon.sock")) as client:
            assert client.status().pid == client.welcome.pid
            yield client.welcome.pid
    finally:
        end_started_daemon(root)


def is_listening(path: Path) -> bool:
    """Tell whether somebody takes connections there: a socket is there a moment before."""
    with socket.socket(socket.AF_UNIX) as trying:
        return trying.connect_ex(str(path)) == 0


def signals(pid: int, what: str) -> set[int]:
    """Return which signals a process ignores (``SigIgn``) or blocks (``SigBlk``)."""
    found = re.search(rf"^{what}:\t(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return of_mask(found[1])


def of_mask(mask: str) -> set[int]:
    """Return the signals of a mask in hexadecimal, less two that the C library keeps to itself: make has them ignored."""
    return {number for number in signal.valid_signals() if int(mask, 16) >> (number - 1) & 1}


def targets(pid: int) -> dict[int, str]:
    folder = Path(f"/proc/{pid}/fd")
    return {int(entry.name): os.readlink(entry) for entry in folder.iterdir()}


CLOSED = ["{daemon} <&-", "{daemon} 2>&-", "{daemon} <&- >&-", "{daemon} <&- >&- 2>&-"]


@pytest.mark.parametrize("line", CLOSED)
def test_a_daemon_without_standard_descriptors_writes_its_log(tmp_path: Path, line: str) -> None:
    with started(line, tmp_path) as pid:
        found = targets(pid)
        log = tmp_path / "store" / "logs" / "pylightnixd.log"
        assert [found[fd] for fd in (0, 1, 2)] == ["/dev/null", str(log), str(log)]
        os.kill(pid, signal.SIGHUP)
        wait_until(lambda: "settings read again" in log.read_text(), log.read_text)


def test_a_daemon_in_the_foreground_without_standard_error_writes_a_log(tmp_path: Path) -> None:
    log = tmp_path / "store" / "logs" / "pylightnixd.log"
    with started("{daemon} --foreground 2>&- &", tmp_path) as pid:
        os.kill(pid, signal.SIGHUP)
        wait_until(lambda: "settings read again" in log.read_text(), log.read_text)


@pytest.mark.parametrize("way", ["", "--foreground &"])
def test_a_daemon_holds_nothing_of_its_starter(tmp_path: Path, way: str) -> None:
    there = tmp_path / "there"
    there.mkdir()
    line = f"exec 9>held 10<>held 200<held; trap '' INT HUP QUIT TERM USR1 CHLD; umask 777; ulimit -Sn 50; cd {there}; {{daemon}} {way}"
    with started(line, tmp_path) as pid:
        assert [name for name in targets(pid).values() if name.endswith("held")] == []
        assert signals(pid, "SigIgn") <= PYTHONS_OWN
        assert signals(pid, "SigBlk") == set()
        assert "\nNoNewPrivs:\t1\n" in Path(f"/proc/{pid}/status").read_text(), "workers run users' code before their own first line"
        there.rmdir()
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        process = os.pidfd_open(pid)
        os.kill(pid, signal.SIGTERM)
        assert select.select([process], [], [], 60)[0]
        os.close(process)


def test_a_daemon_with_signals_blocked_can_be_ended(tmp_path: Path) -> None:
    code = "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals()); os.execv(sys.argv[1], sys.argv[1:])"
    with started(f'{PYTHON} -c "{code}" {{daemon}}', tmp_path) as pid:
        assert signals(pid, "SigBlk") == set()


@pytest.mark.parametrize("where", ["/dev/full", ">(true)"])
def test_a_daemon_starts_whether_or_not_anybody_can_be_told(tmp_path: Path, where: str) -> None:
    with started(f"{{daemon}} > {where}", tmp_path):
        assert (tmp_path / "said").read_text() == ""


def test_too_few_open_files_are_refused_with_a_word(tmp_path: Path) -> None:
    ran = bash(f"ulimit -n 40; {PYTHON} -m pylightnixd --store {tmp_path / 'store'}", tmp_path)
    assert ran.returncode == 78
    assert "at least 64 open files, found 40; raise it with ulimit -n" in ran.stdout
    assert "Traceback" not in ran.stdout


def test_with_few_open_files_few_builds_are_run_at_a_time(tmp_path: Path) -> None:
    with started("ulimit -n 64; {daemon} --jobs 20", tmp_path):
        assert "3 CPU slots rather than 20, for few files may be open" in (tmp_path / "said").read_text()
        with WireClient(str(tmp_path / "store" / "daemon.sock")) as client:
            assert client.status().slots == 3


def test_builds_of_a_daemon_that_a_command_started_inherit_nothing(tmp_path: Path) -> None:
    (tmp_path / "stages.py").write_text(STAGES)
    root = tmp_path / "store"
    command = f"{PYTHON} -m pylightnix_client --store {root} build stages.py:inherits"
    line = f"exec 9>held 10<>held; trap '' INT HUP QUIT USR1 CHLD; ulimit -Sn 300; {command} 3>held >out"
    try:
        ran = bash(line, tmp_path)
        assert ran.returncode == 0, ran.stdout
        facts = eval((Path((tmp_path / "out").read_text().split("\t")[1].strip()) / "out.txt").read_text())
        assert facts["files"] in ([], ["/"])  # the folder that a build goes back to
        assert facts["fds"] == [0, 1, 2]
        assert facts["open_files"] == 300
        assert of_mask(facts["status"]["SigIgn"]) == of_mask(facts["status"]["SigBlk"]) == set()
        pid = lock_says(store_layout(mkSS(str(root))))["pid"]
        assert [name for name in targets(pid).values() if name.endswith("held")] == []
    finally:
        end_started_daemon(root)
