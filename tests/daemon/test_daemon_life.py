"""How a daemon starts, ends, and is killed."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tests.daemon import stages
from tests.daemon.conftest import Daemon, is_alive
from tests.daemon.wire_client import WireClient, acknowledged
from tests.soundness import check_sound
from tests.waiting import is_readable, wait_until

from pylightnix.protocol import messages as m
from pylightnix.protocol.errors import Draining
from pylightnixd.main import OWN_LOG_BYTES

# --- ending -----------------------------------------------------------------------------------------------


def wait_draining(client: WireClient) -> None:
    while client.next_notification().method != "draining":
        pass


def test_sigterm_lets_builds_finish(daemon: Daemon, client: WireClient, tmp_path: Path) -> None:
    gate = stages.Gate(tmp_path)
    closure = stages.one(daemon.plans, stages.waits, gate=gate.path)
    other = stages.one(daemon.plans, stages.plain)
    opened = client.open(other)
    operation = client.submit(closure)
    gate.wait_hello()
    daemon.signal()
    wait_draining(client)
    with pytest.raises(Draining) as refused:
        client.open(other)
    assert refused.value.retry_after > 0
    with pytest.raises(Draining):
        client.commit(opened)
    assert client.status().draining
    assert client.ps().builds[0].dref == closure.targets[0]
    gate.go()
    assert client.wait(operation).ok
    matched = client.matched(operation)
    client.close()
    assert daemon.wait() == 0
    done = acknowledged(matched.values())
    assert len(done) == 1
    check_sound(daemon.S, done)


def test_who_connects_in_the_drain_is_answered(daemon: Daemon, client: WireClient, tmp_path: Path) -> None:
    gate = stages.Gate(tmp_path)
    closure = stages.one(daemon.plans, stages.waits, gate=gate.path)
    operation = client.submit(closure)
    gate.wait_hello()
    daemon.signal()
    wait_draining(client)
    with daemon.client() as late:
        assert late.status().draining
        assert late.ps().operations[0].operation == operation
        assert late.call("log", m.Log(ref=closure.targets[0]), m.LogResult).finished is False
        assert late.call("query", m.Query(what="allrrefs"), m.Rows).rows == []
        for _ in range(2):
            with pytest.raises(Draining) as refused:
                late.open(closure)
            assert refused.value.retry_after > 0
        attached = late.call("attach", m.Attach(operation=operation), m.Attached)
        assert attached.state == "running"
        gate.go()
        assert late.wait(operation).ok
    client.close()
    assert daemon.wait() == 0
    with pytest.raises(OSError):  # noqa: PT011  # refused, or no such file
        daemon.client()


def test_what_the_deadline_interrupts_is_to_be_submitted_again(tmp_path: Path) -> None:
    gate = stages.Gate(tmp_path)
    with Daemon(tmp_path / "store", "--drain", "0.2") as daemon:
        closure = stages.one(daemon.plans, stages.waits, gate=gate.path)
        with daemon.wait_ready().client() as client:
            operation = client.submit(closure)
            pid = gate.wait_hello()
            daemon.signal()
            assert client.wait(operation).state == "draining"
            (row,) = client.failed(operation)
            assert (row.code, row.exit_status) == ("draining", 75)
        assert daemon.wait() == 0
        assert not is_alive(pid)
        check_sound(daemon.S)


def test_a_build_can_be_cancelled_in_the_drain(daemon: Daemon, client: WireClient, tmp_path: Path) -> None:
    gate = stages.Gate(tmp_path)
    operation = client.submit(stages.one(daemon.plans, stages.waits, gate=gate.path))
    gate.wait_hello()
    daemon.signal()
    wait_draining(client)
    client.call("cancel", m.Cancel(operation=operation), m.Done)
    assert client.wait(operation).state == "cancelled"
    client.close()
    assert daemon.wait() == 0


def test_a_second_sigterm_ends_it_at_once(daemon: Daemon, client: WireClient, tmp_path: Path) -> None:
    gate = stages.Gate(tmp_path)
    client.submit(stages.one(daemon.plans, stages.waits, gate=gate.path))
    client.submit(stages.many(daemon.plans, 300))
    pid = gate.wait_hello()
    daemon.signal()
    wait_draining(client)
    daemon.signal()
    assert daemon.wait() == 0
    assert not os.path.exists(f"/proc/{pid}")
    check_sound(daemon.S)


@pytest.mark.slow
def test_a_second_sigterm_does_not_wait_for_outputs_to_be_hashed(daemon: Daemon, client: WireClient) -> None:
    kept = stages.one(daemon.plans, stages.plain, name="kept")
    operation, _ = client.build(kept)
    rrefs = acknowledged(client.matched(operation).values())
    client.submit(stages.one(daemon.plans, stages.leaves_much, bytes=64 << 30))
    wait_until(lambda: [line.state for line in client.ps().builds] == ["placing"])
    daemon.signal()
    daemon.wait_said("told to end")
    daemon.signal()
    daemon.good_ends = (75,)
    assert daemon.wait() == 75
    daemon_again = Daemon(Path(daemon.root)).wait_ready()
    with daemon_again:
        with daemon_again.client() as again:
            assert again.build(kept)[1].built == 0
            assert again.ps().builds == []
        daemon_again.stop_soundly(rrefs)


def test_a_daemon_whose_log_nobody_reads_serves_and_ends(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    store = tmp_path / "store"
    command = [sys.executable, "-m", "pylightnixd", "--store", str(store), "--foreground"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(command, stderr=writing, env=environment)
    try:
        os.close(writing)
        assert is_readable(reading, 60), "it says that it serves"
        with WireClient(str(store / "daemon.sock")) as client:
            for _ in range(300):  # some 12 KB, which the pipe does not hold
                process.send_signal(signal.SIGHUP)
                assert client.status().busy == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(reading)


def test_it_ends_when_idle(tmp_path: Path) -> None:
    with Daemon(tmp_path / "store", "--exit-when-idle", "0.3") as daemon:
        daemon.wait_ready()
        with daemon.client() as client:
            assert client.build(stages.one(daemon.plans, stages.takes_a_moment, seconds=0.7))[1].built == 1
        assert daemon.wait() == 0
    assert not os.path.lexists(daemon.socket_path)


# --- starting ---------------------------------------------------------------------------------------------


def test_a_detached_start(tmp_path: Path) -> None:
    log = tmp_path / "store" / "logs" / "pylightnixd.log"
    log.parent.mkdir(parents=True)
    log.touch()
    os.truncate(log, OWN_LOG_BYTES + 1)
    command = [sys.executable, "-m", "pylightnixd", "--store", str(tmp_path / "store")]
    started = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert started.returncode == 0, started.stderr
    said = dict(line.split(" ", 1) for line in started.stdout.splitlines())
    pid = int(said["pid"])
    process = os.pidfd_open(pid)
    try:
        with WireClient(said["socket"]) as client:
            assert client.status().pid == client.welcome.pid == pid
            assert os.getsid(pid) == pid
        assert said["log"] == str(log)
        assert log.stat().st_size < OWN_LOG_BYTES, "begun anew, for it had become long"
        assert log.with_name("pylightnixd.log.old").stat().st_size > OWN_LOG_BYTES
    finally:
        os.kill(pid, signal.SIGTERM)
        ended = select.select([process], [], [], 60)[0]
        os.close(process)
    assert ended
    assert not os.path.lexists(said["socket"])


def test_a_detached_start_that_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", "pylightnixd", "--store", str(tmp_path / "store"), "--socket", str(tmp_path / "file")]
    started = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert started.returncode == 73
    assert "something that is no socket is there" in started.stderr
    assert started.stdout == ""


def test_a_store_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", "pylightnixd", "--store", str(tmp_path / "file")]
    started = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert started.returncode not in (0, 1)
    assert started.stderr.startswith("pylightnixd: ")
    assert "Traceback" not in started.stderr


# --- supervision ------------------------------------------------------------------------------------------


def test_the_supervisor_is_told(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.settimeout(60)
        supervisor.bind(str(tmp_path / "notify"))
        env = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "150000"}
        with Daemon(tmp_path / "store", env=env) as daemon:
            said = [supervisor.recv(4096).decode()]
            while not any("READY=1" in words for words in said) or not any("WATCHDOG=1" in words for words in said):
                said.append(supervisor.recv(4096).decode())
            with daemon.client() as client:
                assert client.status().busy == 0
            daemon.signal()
            while "STOPPING=1" not in supervisor.recv(4096).decode():
                pass
            assert daemon.wait() == 0


ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_a_socket_of_the_supervisors(tmp_path: Path) -> None:
    path = str(tmp_path / "activation.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        fd = listener.fileno()
        with Daemon(tmp_path / "store", wrapper=(sys.executable, "-c", ACTIVATE, str(fd)), pass_fds=(fd,)) as daemon:
            with WireClient(path) as client:  # it need not have started
                assert client.status().pid == daemon.process.pid
                assert os.readlink(daemon.socket_path) == path
                assert client.build(stages.one(daemon.plans, stages.plain))[1].ok
            daemon.stop()
        assert os.path.exists(path), "the socket is the supervisor's, who listens still"
        assert not os.path.lexists(daemon.socket_path)
