"""Many clients of one daemon: what several want is built once, and lives as long as anybody wants it."""

from __future__ import annotations

import os
import re
import select
import signal
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.daemon import realizers, stages
from tests.daemon.conftest import Daemon
from tests.daemon.wire_client import WireClient, acknowledged, environment

from pylightnix import Closure, DRef, RRef
from pylightnix.protocol import messages as m
from pylightnix.protocol.errors import NoSuchOperation
from pylightnix.worker.linux import children_of


def wait_dead(pid: int) -> None:
    """Wait until a process, of whomever, is gone."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([fd], [], [], 30)[0], f"process {pid} lives"
    finally:
        os.close(fd)


def test_eight_clients_build_everything_once(daemon: Daemon, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    closure = stages.layers(daemon.plans, 200, 10, stages.journals, journal=str(journal))
    env = environment()

    def build(number: int) -> tuple[m.WaitResult, dict[DRef, list[RRef]], list[m.FailedRow]]:
        with daemon.client() as client:
            operation, result = client.build(closure, env)
            return result, client.matched(operation), client.failed(operation)

    with ThreadPoolExecutor(8) as clients:
        found = list(clients.map(build, range(8)))
    for result, matched, failed in found:
        assert result.ok, failed
        assert result.built + result.joined + result.reused == 200
        assert matched == found[0][1]
    runs = [line.split()[0] for line in journal.read_text().splitlines()]
    assert sorted(runs) == sorted(map(str, closure.targets))
    assert sum(result.built for result, _, _ in found) == 200
    daemon.stop_soundly(acknowledged(found[0][1].values()))


@pytest.fixture
def gate(tmp_path: Path) -> stages.Gate:
    return stages.Gate(tmp_path)


@pytest.fixture
def gated(daemon: Daemon, gate: stages.Gate) -> Closure:
    return stages.one(daemon.plans, stages.waits, gate=gate.path)


def wait_ps(client: WireClient, wanted: Callable[[m.Processes], bool]) -> m.Processes:
    """Ask until the answer is the wanted one. Each round trip lets the daemon get on."""
    for _ in range(5000):
        found = client.ps()
        if wanted(found):
            return found
    raise AssertionError(f"still {found}")


def wait_clients(client: WireClient, count: int, operations: int = 1) -> None:
    wait_ps(client, lambda ps: len(ps.operations) == operations and sum(line.clients for line in ps.operations) == count)


def wait_joined(client: WireClient, pid: int, count: int = 2) -> None:
    """Wait until so many operations want the build of that process."""
    wait_ps(client, lambda ps: [(line.pid, line.state, len(line.operations)) for line in ps.builds] == [(pid, "running", count)])


def test_a_build_outlives_the_client_that_caused_it(daemon: Daemon, client: WireClient, gate: stages.Gate, gated: Closure) -> None:
    first = daemon.client()
    first.submit(gated)
    pid = gate.wait_hello()
    joiner = client.submit(gated)
    wait_joined(client, pid)
    first.close()
    wait_clients(client, 1)
    gate.go()
    result = client.wait(joiner)
    assert (result.ok, result.built, result.joined) == (True, 0, 1)


def test_a_build_that_nobody_wants_is_cancelled(daemon: Daemon, client: WireClient, gate: stages.Gate, gated: Closure) -> None:
    with daemon.client() as first, daemon.client() as second:
        first.submit(gated)
        pid = gate.wait_hello()
        second.submit(gated)
        wait_joined(client, pid)
    wait_dead(pid)
    result = client.build(stages.many(daemon.plans, 4))[1]
    assert (result.ok, result.built) == (True, 4)
    assert client.status().busy == 0
    found = client.ps()
    assert (found.operations, found.builds) == ([], [])
    daemon.stop_soundly(set())


def test_a_client_that_comes_back_in_time_saves_the_build(daemon: Daemon, client: WireClient, gate: stages.Gate, gated: Closure) -> None:
    with daemon.client() as first:
        first.submit(gated)
        pid = gate.wait_hello()
    back = client.submit(gated)
    wait_joined(client, pid, 1)
    gate.go()
    assert client.wait(back).ok


def test_attach(daemon: Daemon, client: WireClient, gate: stages.Gate, gated: Closure) -> None:
    first = daemon.client()
    operation = first.submit(gated)
    gate.wait_hello()
    attached = client.call("attach", m.Attach(operation=operation), m.Attached)
    assert (attached.state, attached.targets, attached.total, attached.done) == ("running", list(map(str, gated.targets)), 1, 0)
    wait_clients(client, 2)
    first.close()
    wait_clients(client, 1)
    gate.go()
    assert client.wait(operation).built == 1


def wait_hanging(client: WireClient, operation: str) -> list[int]:
    """Wait until a `hangs_with_daemon` hangs; return its processes, which its log tells."""
    client.call("subscribe", m.Subscribe(operation=operation, credit=1000, log=True), m.Done)
    said = b""
    while not re.search(rb"ready \d+\n", said):
        params = client.next_notification().params
        said += params.data if isinstance(params, m.LogPiece) else b""
    return [int(word) for word in said.split() if word.isdigit()]


def test_cancel_ends_processes_that_have_cut_all_ties(daemon: Daemon, client: WireClient) -> None:
    closure = stages.one(daemon.plans, realizers.hangs_with_daemon)
    operation = client.submit(closure)
    pids = wait_hanging(client, operation)
    assert len(pids) == 2
    client.call("cancel", m.Cancel(operation=operation), m.Done)
    result = client.wait(operation)
    assert (result.ok, result.state) == (False, "cancelled")
    for pid in pids:
        wait_dead(pid)
    (row,) = client.failed(operation)
    assert row.code == "cancelled"


def test_the_end_is_told_though_others_go_on_and_nobody_has_credit(
    daemon: Daemon, client: WireClient, gate: stages.Gate, gated: Closure
) -> None:
    with daemon.client() as other:
        going_on = other.submit(gated)
        pid = gate.wait_hello()
        operation = client.submit(gated)
        wait_joined(client, pid)
        client.call("subscribe", m.Subscribe(operation=operation, credit=1, log=True), m.Done)
        client.call("cancel", m.Cancel(operation=operation), m.Done)
        while client.next_notification().method != "ended":
            pass
        gate.go()
        assert other.wait(going_on).built == 1


def test_every_event_is_told_of_or_counted(daemon: Daemon, client: WireClient) -> None:
    operation = client.open(stages.many(daemon.plans, 60))
    with daemon.client() as other:
        for watcher, credit in ((client, 10_000), (other, 1)):
            watcher.call("subscribe", m.Subscribe(operation=operation, credit=credit), m.Done)
        client.commit(operation)
        (told, dropped), (few, left_out) = events_of(client), events_of(other)
    assert dropped == 0
    kinds = Counter((event.kind, event.phase) for event in told if event.kind != "wait")
    once = {(kind, phase): 1 for kind in ("plan", "commit") for phase in ("start", "stop")}
    assert kinds == {**once, **{(kind, phase): 60 for kind in ("build", "copy") for phase in ("start", "stop")}}
    spans = {event.id for event in told if (event.kind, event.phase) == ("build", "start")}
    assert {event.parent for event in told if event.kind == "copy"} == spans
    assert few == told[: len(few)]
    assert len(few) + left_out == len(told)
    assert left_out > 0


def events_of(client: WireClient) -> tuple[list[m.Event], int]:
    """Read until the end; return the events that were told, and how many were left out."""
    told: list[m.Event] = []
    dropped = 0
    while True:
        notice = client.next_notification().params
        if isinstance(notice, (m.Events, m.Ended)):
            dropped += notice.dropped
        if isinstance(notice, m.Events):
            told += notice.events
        if isinstance(notice, m.Ended):
            return told, dropped


def test_an_operation_that_was_never_committed_can_be_cancelled(daemon: Daemon, client: WireClient) -> None:
    with daemon.client() as passing:
        operation = passing.open(stages.one(daemon.plans, stages.plain))
        waiting = client.send("wait", m.Wait(operation=operation))
        client.ps()  # so that the question before this one has arrived
        passing.call("cancel", m.Cancel(operation=operation), m.Done)
        assert client.answer(waiting, m.WaitResult).state == "cancelled"
        with pytest.raises(NoSuchOperation):
            passing.commit(operation)
    wait_clients(client, 0, operations=0)
    assert client.status().operations == 0


def test_a_lost_worker_takes_its_builds_and_nobody_elses(daemon: Daemon, client: WireClient, gate: stages.Gate, gated: Closure) -> None:
    other_env = environment(variables={**environment().variables, "OTHER": "1"})
    with daemon.client() as other:
        waiting = other.submit(gated, other_env)
        pid = gate.wait_hello()
        mine = client.submit(stages.one(daemon.plans, realizers.hangs_with_daemon))
        pids = wait_hanging(client, mine)
        (line,) = [line for line in client.ps().builds if line.pid != pid]
        assert line.pid is not None
        worker = int(Path(f"/proc/{line.pid}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(worker, signal.SIGKILL)
        for dead in [worker, *pids]:
            wait_dead(dead)
        gate.go()
        assert other.wait(waiting).ok
        client.call("cancel", m.Cancel(operation=mine), m.Done)
        assert client.wait(mine).state == "cancelled"


def test_a_retired_worker_ends_with_its_last_build(tmp_path: Path, gate: stages.Gate, gated: Closure) -> None:
    env = environment()
    with (
        Daemon(tmp_path / "apart", "--jobs", "2", prepared=False) as daemon,
        daemon.wait_ready().client() as client,
        daemon.client() as other,
    ):
        waiting = other.submit(gated, env)
        gate.wait_hello()
        (retired,) = children_of(daemon.process.pid)
        # Code that is not that of the caller retires the worker, whose other build goes on.
        operation, result = client.build(stages.one(daemon.plans, stages.plain, name="other"), env, digest="0" * 64)
        assert not result.ok
        (row,) = client.failed(operation)
        assert row.code == "code-changed"
        assert retired in children_of(daemon.process.pid)
        gate.go()
        assert other.wait(waiting).built == 1
        wait_dead(retired)
        assert client.build(stages.many(daemon.plans, 2), env)[1].ok
        daemon.stop_soundly(set())
