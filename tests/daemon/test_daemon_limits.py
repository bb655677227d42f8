"""Limits of builds, of logs and of what a client may have the daemon hold: each reached, each named, nobody else harmed."""

from __future__ import annotations

import hashlib
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import msgpack  # type: ignore[import-untyped]  # it ships no type information
import pytest
from tests.daemon import stages
from tests.daemon.conftest import Daemon
from tests.daemon.wire_client import WireClient, acknowledged, environment
from tests.waiting import wait_until

from pylightnix import instantiate
from pylightnix.protocol import messages as m
from pylightnix.protocol.errors import MissingLog, TooMany
from pylightnix.protocol.limits import BLOB_PIECE_BYTES_MAX, OPERATION_BYTES_MAX, OPERATIONS_BYTES_MAX, OPERATIONS_PER_USER_MAX
from pylightnix.worker.linux import children_of
from pylightnixd.logfolder import COMPRESS_BYTES

HELLO = msgpack.packb([0, 1, "hello", [{"versions": [1], "features": [], "client": "hostile"}]])
LOG_BYTES = 100 * 1024


def resident_kib(daemon: Daemon) -> int:
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    (found,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    return int(found)


def logs_of(daemon: Daemon) -> list[str]:
    return sorted(name for name in os.listdir(os.path.join(daemon.root, "logs")) if "-b-" in name)


# --- builds -----------------------------------------------------------------------------------------------


def test_every_limit_of_a_build_is_named(tmp_path: Path) -> None:
    options = ["--jobs", "4", "--timeout", "2.5", "--silent-timeout", "1", "--log-size", "100K"]
    gate = stages.Gate(tmp_path)
    with Daemon(tmp_path / "store", *options) as daemon:
        with daemon.wait_ready().client() as client, daemon.client() as other:
            closures = {
                "said nothing for the daemon's silent-timeout of 1 s": stages.one(daemon.plans, stages.waits, gate=gate.path),
                "took longer than the daemon's timeout of 2.5 s": stages.one(daemon.plans, stages.ticks, seconds=None),
                f"wrote more than the daemon's log-size of {LOG_BYTES} bytes": stages.one(daemon.plans, stages.chatters, lines=10_000),
            }
            within = stages.one(daemon.plans, stages.ticks, seconds=1.5)
            operations = {reason: client.submit(closure) for reason, closure in closures.items()}
            fine = other.submit(within)
            gate.wait_hello()
            for reason, operation in operations.items():
                assert client.wait(operation).failed == 1
                (row,) = client.failed(operation)
                assert (row.code, row.exit_status) == ("build-died", 1)
                assert reason in row.message
                assert row.fields["how"] == reason
            assert len(client.log(closures[f"wrote more than the daemon's log-size of {LOG_BYTES} bytes"].targets[0])) == LOG_BYTES
            assert other.wait(fine).ok
            done = acknowledged(other.matched(fine).values())
            assert client.status().busy == 0
        daemon.stop_soundly(done)


@pytest.mark.slow
def test_a_gigabyte_of_output_is_cut_off_and_costs_no_memory(tmp_path: Path) -> None:
    with Daemon(tmp_path / "store", "--jobs", "2") as daemon, daemon.wait_ready().client() as client, daemon.client() as other:
        before = resident_kib(daemon)
        loud = stages.one(daemon.plans, stages.chatters, lines=(1 << 30) // 100)
        operation = client.submit(loud)
        while other.status().busy < 1:
            pass
        assert other.build(stages.one(daemon.plans, stages.plain))[1].ok
        assert client.wait(operation).failed == 1
        (row,) = client.failed(operation)
        assert row.fields["how"] == f"wrote more than the daemon's log-size of {256 << 20} bytes"
        assert resident_kib(daemon) < before + (32 << 10)
        assert other.status().busy == 0


# --- logs -------------------------------------------------------------------------------------------------


def test_a_log_is_found_after_a_restart(tmp_path: Path) -> None:
    with Daemon(tmp_path / "store") as daemon:
        long, short = (stages.one(daemon.plans, stages.chatters, lines=lines) for lines in (20_000, 3))
        silent = stages.one(daemon.plans, stages.plain)
        with daemon.wait_ready().client() as client:
            for closure in (long, short, silent):
                assert client.build(closure)[1].ok
            whole = client.log(long.targets[0])
            assert client.log(silent.targets[0]) == b""
            name = client.call("log", m.Log(ref=long.targets[0]), m.LogResult).build
    with Daemon(tmp_path / "store") as daemon, daemon.wait_ready().client() as client:
        assert len(whole) == 20_000 * 100 > COMPRESS_BYTES
        assert client.log(long.targets[0]) == whole
        assert client.log(short.targets[0]).count(b"\n") == 3
        tail = client.call("log", m.Log(ref=long.targets[0], limit=1000, tail=True), m.LogResult)
        assert (tail.data, tail.next) == (whole[-1000:], len(whole))
        assert client.log(silent.targets[0]) == b""
        for unknown in ("b1", "b-0000000000"):
            with pytest.raises(MissingLog):
                client.log(unknown)
        assert client.build(long, forced=long.targets)[1].built == 1
        again = client.call("log", m.Log(ref=long.targets[0]), m.LogResult).build
        assert again != name
        assert client.log(name) == client.log(again) == whole
        while len([name for name in logs_of(daemon) if name.endswith(".gz")]) < 2:
            client.status()  # logs are compressed after the build was told to have ended


def test_old_logs_go(tmp_path: Path) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text("keep-logs = { days = 1 }\n")
    with Daemon(tmp_path / "store", "--config", str(settings)) as daemon:
        closures = [stages.one(daemon.plans, stages.chatters, lines=lines) for lines in (10, 20, 30)]
        with daemon.wait_ready().client() as client:
            for closure in closures:
                assert client.build(closure)[1].ok
            assert len(logs_of(daemon)) == 3
            assert len(client.log(closures[0].targets[0])) == 1000
            settings.write_text("keep-logs = { size = 4096 }\n")
            daemon.hang_up()
            # The oldest was just read, and stays; without the next one there is room for both others.
            while len(logs_of(daemon)) > 2:
                assert client.status().busy == 0
            assert len(client.log(closures[0].targets[0])) == 1000
            with pytest.raises(MissingLog, match="its log was removed"):
                client.log(closures[1].targets[0])
            settings.write_text("keep-logs = { size = 3500 }\n")
    with Daemon(tmp_path / "store", "--config", str(settings)) as daemon, daemon.wait_ready().client() as client:
        while len(logs_of(daemon)) > 1:
            assert client.status().busy == 0
        assert len(client.log(closures[2].targets[0])) == 3000
        with pytest.raises(MissingLog):
            client.log(closures[0].targets[0])


# --- what a client has the daemon hold --------------------------------------------------------------------


@pytest.fixture
def crowded(tmp_path: Path) -> Iterator[tuple[Daemon, str]]:
    """A daemon with a log of a few megabytes, and whose that is."""
    with Daemon(tmp_path / "store", "--jobs", "2") as daemon:
        closure = stages.one(daemon.plans, stages.chatters, lines=60_000)
        with daemon.wait_ready().client() as client:
            assert client.build(closure)[1].ok
        yield daemon, closure.targets[0]


def test_a_matcher_that_thinks_too_long(tmp_path: Path) -> None:
    with Daemon(tmp_path / "store", "--matcher-timeout", "0.5").wait_ready() as daemon, daemon.client() as client:
        operation, result = client.build(stages.one(daemon.plans, stages.plain, matcher=stages.thinks_for_ever))
        assert result.failed == 1
        (row,) = client.failed(operation)
        assert row.code == "matcher-lost"
        assert "took longer than the daemon's matcher-timeout of 0.5 s" in row.message
        assert client.build(stages.one(daemon.plans, stages.plain, name="next"))[1].built == 1


def test_matchers_that_think_too_long_are_killed_one_after_the_other(tmp_path: Path) -> None:
    with Daemon(tmp_path / "store", "--matcher-timeout", "0.5", prepared=False).wait_ready() as daemon, daemon.client() as client:
        closure = stages.many(daemon.plans, 2, matcher=stages.thinks_for_ever)
        operation, result = client.build(closure, keep_going=True)
        assert result.failed == 2
        assert all("took longer than" in row.message for row in client.failed(operation))
        [worker] = children_of(daemon.process.pid)
        wait_until(lambda: children_of(worker) == [])


def test_a_user_may_have_so_many_operations(daemon: Daemon, client: WireClient) -> None:
    closure = stages.one(daemon.plans, stages.plain)
    for _ in range(OPERATIONS_PER_USER_MAX):
        operation = client.open(closure)
    with daemon.client() as other, pytest.raises(TooMany, match="operations of one user"):
        other.open(closure)
    client.commit(operation)
    assert client.wait(operation).built == 1
    assert client.build(closure)[1].built == 0


def test_who_floods_with_questions_and_never_reads(crowded: tuple[Daemon, str]) -> None:
    daemon, dref = crowded
    before = resident_kib(daemon)
    question = [msgpack.packb([0, 2 + i, "log", [{"ref": dref, "limit": 1 << 20}]]) for i in range(250)]
    lines = [socket.socket(socket.AF_UNIX) for _ in range(4)]
    try:
        for line in lines:
            line.connect(daemon.socket_path)
            line.sendall(HELLO + b"".join(question))  # 250 MiB of answers, if they were all made
        with daemon.client() as client:
            for _ in range(200):
                assert client.status().busy == 0
            assert len(client.log(dref)) == 6_000_000
        assert resident_kib(daemon) - before < 4 * 12 * 1024
    finally:
        for line in lines:
            line.close()


def test_who_floods_with_long_requests(daemon: Daemon) -> None:
    """Each is refused or granted, in order, and none is held that cannot be looked at yet."""
    with daemon.client() as client:
        before = resident_kib(daemon)
        configs = [b'{"data":"%s","name":"x%d"}' % (b"x" * 900_000, i) for i in range(8)]
        requests = [client.send("register", m.Register(configs=configs)) for _ in range(30)]
        for request in requests:
            assert len(client.answer(request, m.Registered).drefs) == 8
        assert resident_kib(daemon) - before < 100_000
        assert client.status().draining is False


def test_all_operations_together_hold_no_more_than_they_may(daemon: Daemon, client: WireClient) -> None:
    closure = instantiate(lambda r: stages.add(r, "one", stages.plain), S=daemon.plans)[1]
    data = b"x" * BLOB_PIECE_BYTES_MAX
    count = OPERATION_BYTES_MAX // BLOB_PIECE_BYTES_MAX

    def fill(owner: WireClient, pieces: int) -> None:
        operation = owner.call(
            "submit.open", m.SubmitOpen(targets=list(map(str, closure.targets)), environment=environment()), m.Submitted
        ).operation
        for i in range(pieces):
            name = hashlib.sha256(bytes([i])).hexdigest()
            params = m.SubmitBlob(operation=operation, sha256=name, size=len(data) + 1, data=data)
            owner.call("submit.blob", params, m.Done)

    with pytest.raises(TooMany, match=f"bytes in one operation: {OPERATION_BYTES_MAX} is the limit"):
        fill(client, count)
    with daemon.client() as other:
        fill(other, count - 2)
        with pytest.raises(TooMany, match=f"bytes in all operations that have not ended: {OPERATIONS_BYTES_MAX}") as refused:
            fill(other, 5)
        assert refused.value.retry_after is not None
        assert client.status().operations == 3
    while client.status().operations > 1:
        pass
    fill(client, 5)  # what was open is gone with its connection
    assert client.build(stages.one(daemon.plans, stages.plain))[1].ok
