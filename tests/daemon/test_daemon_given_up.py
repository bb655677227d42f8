"""Workers that are stopped, deaf or do not read, and what builds leave that cannot be killed: nobody waits for them for ever."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.daemon import stages
from tests.daemon.conftest import Daemon, is_alive
from tests.daemon.frozen import frozen
from tests.daemon.wire_client import WireClient
from tests.soundness import check_sound
from tests.waiting import wait_until

from pylightnix.protocol import messages as m

DRAIN_SECONDS = 0.2
END_SECONDS = 10.0
"""How long after the drain a daemon may be there."""


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon of one slot, so that one that is lost is missed."""
    with Daemon(tmp_path / "store", "--jobs", "1", "--drain", str(DRAIN_SECONDS)) as running:
        yield running.wait_ready()


class Held:
    """A build that runs until it is let go, and its worker."""

    def __init__(self, daemon: Daemon, client: WireClient, folder: Path) -> None:
        self.gate = stages.Gate(folder)
        self.closure = stages.one(daemon.plans, stages.waits, name="held", gate=self.gate.path)
        self.operation = client.submit(self.closure)
        self.pid = self.gate.wait_hello()
        self.worker = int(Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[1])

    def finish(self, client: WireClient) -> None:
        self.gate.go()
        assert client.wait(self.operation).ok


def build_folders(daemon: Daemon) -> list[Path]:
    return [folder for folder in Path(daemon.root, "tmp").glob("*/*") if folder.is_dir()]


def end_in_time(daemon: Daemon) -> None:
    """Tell a daemon to end, and see that it does, in the ordinary way."""
    begun = time.monotonic()
    daemon.signal()
    assert daemon.wait() == 0
    assert time.monotonic() - begun < DRAIN_SECONDS + END_SECONDS


# --- stopped ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_worker_that_owes_an_answer_too_long_is_replaced(tmp_path: Path) -> None:
    with Daemon(tmp_path / "store", "--jobs", "1", "--worker-timeout", "3").wait_ready() as daemon, daemon.client() as client:
        held = Held(daemon, client, tmp_path)
        held.finish(client)
        os.kill(held.worker, signal.SIGSTOP)
        closure = stages.one(daemon.plans, stages.plain)
        operation = client.submit(closure)
        assert client.wait(operation).built == 1
        assert not is_alive(held.worker)
        daemon.wait_said(f"worker {held.worker} did not answer for 3 s")
        wait_until(lambda: build_folders(daemon) == [])


def test_a_build_whose_worker_is_stopped_can_be_cancelled(daemon: Daemon, client: WireClient, tmp_path: Path) -> None:
    """Before it has forked it, and after; either way its slot comes back."""
    held = Held(daemon, client, tmp_path)
    os.kill(held.worker, signal.SIGSTOP)
    client.call("cancel", m.Cancel(operation=held.operation), m.Done)
    other = stages.one(daemon.plans, stages.plain)
    assert client.build(other)[1].built == 1, "by another worker"
    [line] = client.ps().given_up
    assert (line.pid, line.what.startswith("of build b-")) == (held.pid, True)
    assert client.status().given_up == 1
    [folder] = build_folders(daemon)
    assert line.folder == str(folder)
    assert f"given up: process {held.pid} (of build" in daemon.said
    # The worker had nothing else to do, so it was made to end, and took the build with it.
    wait_until(lambda: client.ps().given_up == [])
    assert not is_alive(held.worker)
    assert not is_alive(held.pid)
    wait_until(lambda: build_folders(daemon) == [])


def test_a_build_that_was_given_up_is_not_believed_later(tmp_path: Path) -> None:
    with Daemon(tmp_path / "store", "--jobs", "2", "--timeout", "1").wait_ready() as daemon, daemon.client() as client:
        (tmp_path / "other").mkdir()
        held = Held(daemon, client, tmp_path)
        with frozen(held.worker):
            assert client.wait(held.operation).failed == 1
            [row] = client.failed(held.operation)
            assert re.search(
                rf"took longer than the daemon's timeout of 1 s and does not end: process {held.pid} was given up", row.message
            )
            held.gate.go()
            wait_until(lambda: not is_alive(held.pid))  # it has told its result to whoever may listen
            assert client.build(stages.one(daemon.plans, stages.plain))[1].built == 1
            wait_until(lambda: f"given up: process {held.worker} (worker " in daemon.said)
            assert held.worker in [line.pid for line in client.ps().given_up]
            assert build_folders(daemon), "as long as it may be written into, it is left alone"
        wait_until(lambda: not is_alive(held.worker))
        wait_until(lambda: client.ps().given_up == [])
        wait_until(lambda: build_folders(daemon) == [])
        assert client.call("query", m.Query(what="drefrrefs", dref=held.closure.targets[0]), m.Rows).rows == []
        daemon.stop_soundly(set())


def test_a_daemon_whose_worker_is_stopped_ends_in_time(daemon: Daemon, client: WireClient, tmp_path: Path) -> None:
    held = Held(daemon, client, tmp_path)
    os.kill(held.worker, signal.SIGSTOP)
    end_in_time(daemon)
    assert not is_alive(held.worker)
    assert not is_alive(held.pid)
    check_sound(daemon.S, set())


def test_a_daemon_whose_worker_does_not_read_ends_in_time(daemon: Daemon, client: WireClient, tmp_path: Path) -> None:
    held = Held(daemon, client, tmp_path)
    held.finish(client)
    os.kill(held.worker, signal.SIGSTOP)
    big = stages.one(daemon.plans, stages.Heavy(900_000))
    client.submit(big)
    wait_until(lambda: bool(client.ps().builds))
    end_in_time(daemon)
    assert not is_alive(held.worker)


# --- deaf to SIGKILL ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_daemon_whose_worker_is_deaf_ends_in_time_and_the_next_leaves_its_folder_alone(
    daemon: Daemon, client: WireClient, tmp_path: Path
) -> None:
    held = Held(daemon, client, tmp_path)
    with frozen(held.worker, held.pid):
        end_in_time(daemon)
        assert is_alive(held.worker)
        assert is_alive(held.pid)
        [folder] = build_folders(daemon)
        with Daemon(tmp_path / "store").wait_ready() as second, second.client() as other:
            assert other.build(stages.one(second.plans, stages.plain))[1].built == 1
            assert folder.is_dir()
    for pid in (held.worker, held.pid):
        wait_until(lambda pid=pid: not is_alive(pid))  # type: ignore[misc]
    with Daemon(tmp_path / "store").wait_ready():
        assert not folder.exists()
    check_sound(daemon.S, set())


def test_what_a_lost_worker_left_and_is_deaf_holds_nobody(daemon: Daemon, client: WireClient, tmp_path: Path) -> None:
    held = Held(daemon, client, tmp_path)
    with frozen(held.pid):
        client.call("cancel", m.Cancel(operation=held.operation), m.Done)
        os.kill(held.worker, signal.SIGKILL)
        wait_until(lambda: f"given up: process {held.pid} (a process that worker" in daemon.said)
        [line] = client.ps().given_up
        assert line.pid == held.pid
        assert client.build(stages.one(daemon.plans, stages.plain))[1].built == 1
        [folder] = [folder for folder in build_folders(daemon) if os.readlink(f"/proc/{held.pid}/cwd").startswith(str(folder))]
    wait_until(lambda: not is_alive(held.pid))
    wait_until(lambda: not folder.exists())


@pytest.mark.slow
def test_a_build_that_leaves_what_cannot_be_killed_fails_and_others_do_not(tmp_path: Path) -> None:
    with Daemon(tmp_path / "store", "--jobs", "2").wait_ready() as daemon, daemon.client() as client:
        gate = stages.Gate(tmp_path)
        closure = stages.one(daemon.plans, stages.leaves_process, gate=gate.path)
        operation = client.submit(closure)
        left = gate.wait_hello()
        with frozen(left):
            gate.go()
            begun = time.monotonic()
            for n in range(5):
                assert client.build(stages.one(daemon.plans, stages.plain, name=f"other{n}"))[1].built == 1
            assert time.monotonic() - begun < 5, "they do not wait for what is not theirs"
            assert client.wait(operation).failed == 1
            [row] = client.failed(operation)
            assert f"left process {left} behind, which cannot be killed" in row.message
            [line] = client.ps().given_up
            assert line.pid == left
            assert Path(str(line.folder)).is_dir()
        wait_until(lambda: not is_alive(left))
        wait_until(lambda: build_folders(daemon) == [])
        assert client.ps().given_up == []
