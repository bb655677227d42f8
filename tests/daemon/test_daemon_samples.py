"""A real daemon makes samples side by side, and commits them as one."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from tests.daemon import sampled, stages, threaded
from tests.daemon.conftest import Daemon
from tests.daemon.test_daemon_sharing import wait_dead
from tests.daemon.wire_client import WireClient, acknowledged
from tests.stores import new_store, text_of

from pylightnix import Closure, RRef, StorageSettings, realizeMany, rref2path
from pylightnix.autostage import AutoStage
from pylightnix.protocol import messages as m


def texts_of(daemon: Daemon, client: WireClient, closure: Closure) -> list[str]:
    """Build, and return what is in the samples, sorted."""
    operation, result = client.build(closure)
    assert result.ok, client.failed(operation)
    (rrefs,) = client.matched(operation).values()
    return sorted(text_of(rref, daemon.S) for rref in rrefs)


def failed_row(client: WireClient, closure: Closure) -> m.FailedRow:
    operation, result = client.build(closure)
    assert (result.ok, result.failed) == (False, 1)
    (row,) = client.failed(operation)
    return row


def told_processes(client: WireClient, closure: Closure) -> list[int]:
    return [int(pid) for pid in re.findall(rb"process (\d+)", client.log(closure.targets[0]))]


def names_in(rrefs: list[RRef], S: StorageSettings) -> list[list[str]]:
    return [sorted(os.listdir(rref2path(rref, S))) for rref in rrefs]


def test_d21_samples_run_at_the_same_time(daemon: Daemon, client: WireClient, tmp_path: Path) -> None:
    for end in range(2):
        os.mkfifo(tmp_path / f"gate.{end}")
    closure = sampled.closure_of(daemon.plans, sampled.meets, gate=str(tmp_path / "gate"))
    assert texts_of(daemon, client, closure) == ["0", "1"]


def test_no_sample_draws_what_another_draws(daemon: Daemon, client: WireClient) -> None:
    warm = sampled.closure_of(daemon.plans, sampled.draws)
    texts_of(daemon, client, warm)  # after which the worker has numpy before it forks
    drawn = texts_of(daemon, client, sampled.closure_of(daemon.plans, sampled.draws, nouts=6, name="others"))
    for which in range(3):
        assert len({text.split()[which] for text in drawn}) == 6


def test_outputs_are_as_those_made_in_order(daemon: Daemon, client: WireClient, tmp_path: Path) -> None:
    closure = sampled.closure_of(daemon.plans, sampled.plain)
    operation, _ = client.build(closure)
    (found,) = client.matched(operation).values()
    daemon.stop_soundly(acknowledged([found]))
    S = new_store(tmp_path / "embedded")
    embedded = realizeMany(sampled.closure_of(S, sampled.plain))
    assert found == embedded
    assert names_in(found, daemon.S) == names_in(embedded, S)
    assert "__buildstart__.txt" in names_in(found, daemon.S)[0]


def test_each_sample_has_a_process_but_where_the_function_gets_the_build(daemon: Daemon, client: WireClient) -> None:
    apart = texts_of(daemon, client, sampled.closure_of(daemon.plans, sampled.tells_process))
    assert len({text.split()[1] for text in apart}) == 2
    together = texts_of(daemon, client, sampled.closure_of(daemon.plans, sampled.gets_build))
    assert len({text.split()[1] for text in together}) == 1


def test_a_module_with_threads_is_not_forked_from(daemon: Daemon, client: WireClient) -> None:
    found = texts_of(daemon, client, sampled.closure_of(daemon.plans, threaded.tells_process))
    assert [text.split()[0] for text in found] == ["0", "1"]
    assert len({text.split()[1] for text in found}) == 1


def test_one_slot_is_enough(tmp_path: Path) -> None:
    with Daemon(tmp_path / "store", "--jobs", "1") as daemon, daemon.wait_ready().client() as client:
        closure = sampled.closure_of(daemon.plans, sampled.plain, nouts=5)
        assert texts_of(daemon, client, closure) == list("01234")
        assert client.status().busy == 0


def test_a_failing_sample_fails_all_and_ends_the_others(daemon: Daemon, client: WireClient, tmp_path: Path) -> None:
    gate = stages.Gate(tmp_path)
    closure = sampled.closure_of(daemon.plans, sampled.one_fails, gate=gate.path)
    row = failed_row(client, closure)
    assert (row.code, row.type) == ("build-failed", "ValueError")
    assert "no more flour" in row.message
    assert "in one_fails" in row.traceback
    assert row.traceback.count("Traceback") == 1
    pids = told_processes(client, closure)
    assert pids
    assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]
    assert client.build(stages.many(daemon.plans, 2))[1].ok
    daemon.stop()


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (sampled.one_is_killed, "for sample 2 of 2 was killed by signal 9 (SIGKILL)"),
        (sampled.one_exits, "for sample 1 of 2 exited with status 0 without a report"),
    ],
)
def test_a_sample_that_dies_fails_all(daemon: Daemon, client: WireClient, stage: AutoStage, words: str) -> None:
    row = failed_row(client, sampled.closure_of(daemon.plans, stage))
    assert (row.code, row.type) == ("build-failed", "pylightnix.protocol.errors.BuildDied")
    assert words in row.message


def test_promises_are_checked(daemon: Daemon, client: WireClient) -> None:
    row = failed_row(client, sampled.closure_of(daemon.plans, sampled.breaks_promise))
    assert row.code == "broken-promise"


def test_a_forked_process_that_comes_back_reports_nothing(daemon: Daemon, client: WireClient) -> None:
    assert texts_of(daemon, client, sampled.closure_of(daemon.plans, sampled.forks_and_comes_back)) == ["0", "1"]


def test_cancelling_ends_all_samples(daemon: Daemon, client: WireClient) -> None:
    operation = client.submit(sampled.closure_of(daemon.plans, sampled.all_hang))
    client.call("subscribe", m.Subscribe(operation=operation, credit=1000, log=True), m.Done)
    said = b""
    while len(pids := [int(pid) for pid in re.findall(rb"process (\d+)\n", said)]) < 2:
        params = client.next_notification().params
        said += params.data if isinstance(params, m.LogPiece) else b""
    client.call("cancel", m.Cancel(operation=operation), m.Done)
    assert client.wait(operation).state == "cancelled"
    for pid in pids:
        wait_dead(pid)


def test_a_slot_that_no_sample_needs_is_given_to_others(daemon: Daemon, client: WireClient, tmp_path: Path) -> None:
    gate = stages.Gate(tmp_path)
    operation = client.submit(sampled.closure_of(daemon.plans, sampled.one_waits, gate=gate.path))
    gate.wait_hello()
    assert client.build(stages.many(daemon.plans, 3))[1].ok
    gate.go()
    assert client.wait(operation).ok


def test_an_operation_of_one_job_makes_one_sample_at_a_time(daemon: Daemon, client: WireClient, tmp_path: Path) -> None:
    # Sample 1 of `one_fails` would wait for ever for sample 0, which goes first and hangs.
    gate = stages.Gate(tmp_path)
    operation = client.submit(sampled.closure_of(daemon.plans, sampled.one_waits, gate=gate.path), jobs=1)
    gate.wait_hello()
    assert client.status().busy == 1
    gate.go()
    assert client.wait(operation).ok
