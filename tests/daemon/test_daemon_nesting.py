"""A real daemon builds what realizers want while they run, and nobody waits for ever."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.daemon import nested, sampled, stages
from tests.daemon.conftest import Daemon
from tests.daemon.test_daemon_sharing import wait_dead
from tests.daemon.wire_client import WireClient, acknowledged
from tests.stores import text_of

from pylightnix import Closure, Context, DRef, RRef, StorageSettings, instantiate, realize1, rref2dref
from pylightnix import Path as StorePath
from pylightnix.protocol import messages as m
from pylightnix.protocol.errors import MessageInvalid
from pylightnix.query import direct_context
from pylightnix.storage import store_layout


@pytest.fixture
def narrow(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon of one slot."""
    with Daemon(tmp_path / "store", "--jobs", "1") as running:
        yield running.wait_ready()


def dynamic_of(rref: RRef, S: StorageSettings) -> dict[DRef, list[RRef]]:
    return direct_context(store_layout(S), rref)[1]


def built_one(daemon: Daemon, client: WireClient, closure: Closure) -> RRef:
    operation, result = client.build(closure)
    assert result.ok, client.failed(operation)
    ((rref,),) = client.matched(operation).values()
    return rref


def failure(client: WireClient, closure: Closure) -> m.FailedRow:
    operation, result = client.build(closure)
    assert not result.ok
    return client.failed(operation)[0]


def test_one_slot_is_enough_for_any_depth(narrow: Daemon) -> None:
    with narrow.client() as client:
        closure = stages.one(narrow.plans, nested.nests, "depth3", depth=3)
        rref = built_one(narrow, client, closure)
        chain = [rref]
        while (below := text_of(chain[-1], narrow.S)) != "bottom":
            assert dynamic_of(chain[-1], narrow.S) == {rref2dref(below): [below]}
            chain.append(RRef(below))
        assert len(chain) == 4
        assert dynamic_of(chain[-1], narrow.S) == {}
        assert built_one(narrow, client, closure) == rref
        assert client.status().busy == 0
    narrow.stop_soundly(set(chain))


def test_what_two_realizers_want_is_built_once(narrow: Daemon, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    with narrow.client() as client:
        rref = built_one(narrow, client, stages.one(narrow.plans, nested.realizes_both, "top", journal=str(journal)))
        sides = [RRef(side) for side in text_of(rref, narrow.S).split()]
        assert dynamic_of(rref, narrow.S) == {rref2dref(side): [side] for side in sides}
        (shared,) = {text_of(side, narrow.S) for side in sides}
        assert all(dynamic_of(side, narrow.S) == {rref2dref(shared): [shared]} for side in sides)
    assert len(journal.read_text().splitlines()) == 1


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_parents_side_by_side_share_what_they_want(tmp_path: Path, jobs: str) -> None:
    journal = tmp_path / "journal"
    with Daemon(tmp_path / "store", "--jobs", jobs) as daemon:
        with daemon.wait_ready().client() as client:
            operation, result = client.build(nested.together(daemon.plans, nested.realizes_shared, "abcd", journal=str(journal)))
            assert (result.ok, result.built) == (True, 4), client.failed(operation)
            found = acknowledged(client.matched(operation).values())
            assert len({text_of(rref, daemon.S) for rref in found}) == 1
            assert len(journal.read_text().splitlines()) == 1
            assert client.status().busy == 0
        daemon.stop_soundly(found)


def test_a_realizer_that_wants_itself_is_refused(narrow: Daemon) -> None:
    with narrow.client() as client:
        row = failure(client, stages.one(narrow.plans, nested.realizes_itself, "itself"))
        assert (row.code, row.type) == ("misuse", "pylightnix.errors.Misuse")
        assert "asks for its own derivation" in row.message


def test_a_realizer_that_wants_itself_through_others_is_refused(narrow: Daemon) -> None:
    with narrow.client() as client:
        closure = stages.one(narrow.plans, nested.realizes_next, "ring0", number=0)
        row = failure(client, closure)
        assert "asks for its own derivation" in row.message
        assert re.search(r"-ring0 → dref:\w+-ring1 → dref:\w+-ring2 → dref:\w+-ring0", row.message)
        assert client.status().busy == 0


def test_rings_that_meet_are_refused(daemon: Daemon, client: WireClient) -> None:
    closure = instantiate(lambda r: [stages.add(r, f"ring{i}", nested.realizes_next, number=i) for i in range(3)], S=daemon.plans)[1]
    operation, result = client.build(closure, keep_going=True)
    assert (result.ok, result.failed) == (False, 3)
    assert all("asks for its own derivation" in row.message for row in client.failed(operation))


def test_what_fails_inside_fails_what_wanted_it(narrow: Daemon) -> None:
    with narrow.client() as client:
        row = failure(client, stages.one(narrow.plans, nested.fails_inside))
        assert row.type == "ValueError"
        assert "no more flour" in row.message
        assert "in fails" in row.traceback


def test_a_dry_run_inside_is_no_dependency(narrow: Daemon, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    with narrow.client() as client:
        rref = built_one(narrow, client, stages.one(narrow.plans, nested.tries, journal=str(journal)))
        assert text_of(rref, narrow.S) == "None"
        assert dynamic_of(rref, narrow.S) == {}
    assert not journal.exists()


@pytest.mark.parametrize("how", ["killed", "cancelled"])
def test_who_ends_takes_what_it_wanted_along(narrow: Daemon, tmp_path: Path, how: str) -> None:
    gate = stages.Gate(tmp_path)
    with narrow.client() as client:
        closure = stages.one(narrow.plans, nested.realizes_waiting, gate=gate.path)
        operation = client.submit(closure)
        inner = gate.wait_hello()
        (outer,) = [build.pid for build in client.ps().builds if build.dref == closure.targets[0]]
        assert client.status().busy == 1, "who waits holds no slot"
        assert {build.waiting_for for build in client.ps().builds} == {"", "what its realizer has asked for"}
        if how == "killed":
            os.kill(outer or 0, signal.SIGKILL)
        else:
            client.call("cancel", m.Cancel(operation=operation), m.Done)
        assert not client.wait(operation).ok
        wait_dead(inner)
        assert client.build(stages.many(narrow.plans, 2))[1].ok
    narrow.stop()


def test_what_is_under_way_may_go_on_when_the_daemon_is_to_end(narrow: Daemon, tmp_path: Path) -> None:
    gate = stages.Gate(tmp_path)
    with narrow.client() as client:
        operation = client.submit(stages.one(narrow.plans, nested.waits_and_realizes, gate=gate.path))
        gate.wait_hello()
        narrow.signal()
        while client.next_notification().method != "draining":
            pass
        gate.go()
        assert client.wait(operation).ok, client.failed(operation)
    assert narrow.wait() == 0


@pytest.mark.parametrize("jobs", ["1", "3"])
def test_samples_may_realize_others(tmp_path: Path, jobs: str) -> None:
    with Daemon(tmp_path / "store", "--jobs", jobs) as daemon, daemon.wait_ready().client() as client:
        operation, result = client.build(sampled.closure_of(daemon.plans, sampled.realizes_another, nouts=3))
        assert result.ok, client.failed(operation)
        (found,) = client.matched(operation).values()
        inner = {RRef(text_of(rref, daemon.S)) for rref in found}
        assert len(inner) == 2
        # They are one unit, so what one of them needed all of them keep.
        assert all({rref for rrefs in dynamic_of(rref, daemon.S).values() for rref in rrefs} == inner for rref in found)
        assert client.status().busy == 0


def test_threads_of_a_realizer_may_realize_others(narrow: Daemon) -> None:
    with narrow.client() as client:
        rref = built_one(narrow, client, stages.one(narrow.plans, nested.realizes_in_threads))
        inner = [RRef(below) for below in text_of(rref, narrow.S).split()]
        assert dynamic_of(rref, narrow.S) == {rref2dref(below): [below] for below in inner}
        assert client.status().busy == 0


def test_a_token_that_is_none_is_refused(narrow: Daemon) -> None:
    with narrow.client() as client, pytest.raises(MessageInvalid, match="no build of this token"):
        client.open(stages.one(narrow.plans, stages.plain), parent="b1")


def test_a_realizer_that_cannot_travel_may_realize_others(narrow: Daemon, tmp_path: Path) -> None:
    lock = threading.Lock()

    def nests(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, object]) -> list[StorePath]:
        with lock:
            return [stages.out(S, realize1(nested.one("depth1", nested.nests, depth=1)))]

    rref = realize1(instantiate(lambda r: stages.add(r, "stage", nests), S=narrow.S))
    inner = text_of(rref, narrow.S)
    assert dynamic_of(rref, narrow.S) == {rref2dref(inner): [inner]}
    with narrow.client() as client:
        removed = client.call("remove", m.Remove(rrefs=[inner], only_unused=True), m.Removed)
        assert removed.rrefs == [], "it is needed by what was made from it"
