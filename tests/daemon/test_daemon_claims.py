"""What only the caller can do, as the daemon sees it: claims, questions to matchers, and callers that lie or vanish."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytest
from tests.daemon import stages
from tests.daemon.conftest import Daemon
from tests.daemon.wire_client import WireClient
from tests.waiting import wait_until

from pylightnix import Closure, Context, DRef, Registry, RRef, StorageSettings, instantiate
from pylightnix.protocol import messages as m
from pylightnix.protocol.errors import MessageInvalid, NoSuchClaim
from pylightnix.storage import store_layout
from pylightnix.types import Path as StorePath

N = TypeVar("N", bound=m.Message)

SLOTS = 2


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for all; the store is checked at the end."""
    with Daemon(tmp_path_factory.mktemp("claims") / "store", "--jobs", str(SLOTS)) as running:
        yield running.wait_ready()
        with running.client() as client:
            assert client.status().lost_wakeups == 0
        running.stop_soundly(set())


@pytest.fixture(autouse=True)
def _nothing_is_left(daemon: Daemon) -> Iterator[None]:
    """After each test no operation goes on, no build runs, and every build folder is gone."""
    yield
    with daemon.client() as client:
        wait_until(lambda: (client.status().operations, client.ps().builds) == (0, []))
    wait_until(lambda: build_folders(daemon) == [])


def build_folders(daemon: Daemon) -> list[str]:
    tmp = store_layout(daemon.S).tmp
    return [os.path.join(tmp, owner, name) for owner in os.listdir(tmp) for name in os.listdir(os.path.join(tmp, owner))]


class Local:
    """A realizer that no pickle holds."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __call__(self, S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[StorePath]:
        raise AssertionError("the test builds in its place")


def local(daemon: Daemon, name: str, **items: Any) -> Closure:
    return stages.one(daemon.plans, Local(), name=name, **items)


def next_of(client: WireClient, wanted: type[N]) -> N:
    """Return the next notice of a kind; others are passed over."""
    while True:
        notice = client.next_notification().params
        if isinstance(notice, wanted):
            return notice


def fill(claim: m.Claim, name: str = "out", files: Mapping[str, str] = {"made": "by the caller"}) -> str:  # never changed
    os.mkdir(os.path.join(claim.folder, name))
    for file, text in files.items():
        Path(claim.folder, name, file).write_text(text)
    return name


def deliver(client: WireClient, claim: str, outputs: list[str], started: float = 0.0) -> None:
    client.call("deliver", m.Deliver(claim=claim, outputs=outputs, started=started), m.Done)


def abandon(client: WireClient, claim: str, message: str = "no more flour", **fields: Any) -> None:
    row = m.FailedRow(code="build-failed", message=message, type="ValueError", fields=fields)
    client.call("abandon", m.Abandon(claim=claim, error=row), m.Done)


# --- builds ---------------------------------------------------------------------------------------------


def test_a_caller_builds_what_cannot_travel(daemon: Daemon) -> None:
    with daemon.client() as client:
        operation = client.submit(local(daemon, "plain"))
        claim = next_of(client, m.Claim)
        assert (claim.operation, os.listdir(claim.folder)) == (operation, [])
        assert os.stat(claim.folder).st_mode & 0o777 == 0o700
        deliver(client, claim.claim, [fill(claim)], started=1e12)
        assert client.wait(operation).built == 1
        (rrefs,) = client.matched(operation).values()
        info = client.call("info", m.Info(ref=rrefs[0]), m.InfoResult)
        assert info.started <= info.stopped < 1e11, "no start in the future is believed"
        assert client.wait(client.submit(local(daemon, "plain"))).reused == 1


def test_no_slot_is_taken_and_none_waited_for(daemon: Daemon, tmp_path: Path) -> None:
    folders = [tmp_path / str(i) for i in range(SLOTS)]
    for folder in folders:
        folder.mkdir()
    gates = [stages.Gate(folder) for folder in folders]
    with daemon.client() as client:
        closures = [stages.one(daemon.plans, stages.waits, name=f"gated-{i}", gate=gate.path) for i, gate in enumerate(gates)]
        operations = [client.submit(closure) for closure in closures]
        for gate in gates:
            gate.wait_hello()
        waiting = client.submit(stages.one(daemon.plans, stages.plain, name="waiting"))
        operation = client.submit(local(daemon, "slotless"))
        claim = next_of(client, m.Claim)
        wait_until(lambda: (client.status().busy, client.status().queued) == (SLOTS, 1))
        deliver(client, claim.claim, [fill(claim)])
        assert client.wait(operation).ok
        held = client.submit(local(daemon, "held"))
        claim = next_of(client, m.Claim)
        for gate in gates:
            gate.go()
        assert all(client.wait(each).ok for each in [*operations, waiting]), "a claim holds nobody up"
        deliver(client, claim.claim, [fill(claim)])
        assert client.wait(held).ok


def test_one_claim_at_a_time_and_other_sessions_take_what_waits(daemon: Daemon) -> None:
    closure = instantiate(lambda r: [stages.add(r, f"turn-{i}", Local()) for i in range(2)], S=daemon.plans)[1]
    with daemon.client() as first, daemon.client() as second:
        mine = first.submit(closure)
        taken = next_of(first, m.Claim)
        line = next(line for line in first.ps().builds if line.dref != taken.dref)
        assert (line.state, line.waiting_for) == ("queued", "the program that asked for it, which is building something else")
        theirs = second.submit(closure)
        claim = next_of(second, m.Claim)
        assert {taken.dref, claim.dref} == set(closure.targets)
        deliver(second, claim.claim, [fill(claim)])
        deliver(first, taken.claim, [fill(taken)])
        results = first.wait(mine), second.wait(theirs)
        assert sum(result.built for result in results) == sum(result.joined for result in results) == 2
        assert first.matched(mine) == second.matched(theirs)


def test_a_context_is_durable_before_it_is_told(daemon: Daemon) -> None:
    def above(r: Registry) -> DRef:
        return stages.add(r, "above", Local(), dep=stages.add(r, "below", stages.plain))

    with daemon.client() as client, daemon.client() as other:
        operation = client.submit(instantiate(above, S=daemon.plans)[1])
        claim = next_of(client, m.Claim)
        (below,) = json.loads(claim.context).values()
        assert other.call("info", m.Info(ref=below[0]), m.InfoResult).rref == below[0]
        deliver(client, claim.claim, [fill(claim)])
        assert client.wait(operation).ok


# --- failures -------------------------------------------------------------------------------------------


def test_an_abandoned_claim_fails_the_build_and_keeps_what_it_left(daemon: Daemon) -> None:
    with daemon.client() as client:
        operation = client.submit(local(daemon, "abandoned"))
        claim = next_of(client, m.Claim)
        fill(claim, "half")
        abandon(client, claim.claim, f"no flour in {claim.folder}/half", outpaths=["half", "../../..", "/etc", "absent", ".", 7])
        assert not client.wait(operation).ok
        (row,) = client.failed(operation)
        (kept,) = row.fields["outpaths"]
        assert (row.code, row.message, row.dref) == ("build-failed", f"no flour in {kept}", claim.dref)
        assert Path(kept, "made").read_text() == "by the caller"
        assert kept.startswith(store_layout(daemon.S).failed)
        assert not os.path.exists(claim.folder)


def _symlink(folder: str) -> list[str]:
    os.symlink("/etc", os.path.join(folder, "link"))
    return ["link"]


def _file(folder: str) -> list[str]:
    Path(folder, "file").write_text("no folder")
    return ["file"]


def _fifo(folder: str) -> list[str]:
    os.mkdir(os.path.join(folder, "out"))
    os.mkfifo(os.path.join(folder, "out", "pipe"))
    return ["out"]


def _twice(folder: str) -> list[str]:
    os.mkdir(os.path.join(folder, "out"))
    return ["out", "out"]


@pytest.mark.parametrize("make", [_symlink, _file, _fifo, _twice, lambda folder: ["absent"], lambda folder: []])
def test_outputs_that_cannot_be_stored_fail_the_build(daemon: Daemon, make: Callable[[str], list[str]]) -> None:
    with daemon.client() as client:
        operation = client.submit(local(daemon, "bad"))
        claim = next_of(client, m.Claim)
        deliver(client, claim.claim, make(claim.folder))
        assert not client.wait(operation).ok
        assert [row.code for row in client.failed(operation)] == ["invalid-output"]
        with pytest.raises(NoSuchClaim):
            deliver(client, claim.claim, [])


@pytest.mark.parametrize("name", ["..", ".", "../x", "/etc", "a/b", "", "nul\0"])
def test_names_that_leave_the_folder_are_no_message(daemon: Daemon, name: str) -> None:
    with daemon.client() as client:
        operation = client.submit(local(daemon, "leaving"))
        claim = next_of(client, m.Claim)
        with pytest.raises(MessageInvalid):
            deliver(client, claim.claim, [name])
        abandon(client, claim.claim)
        assert not client.wait(operation).ok


def test_only_who_was_asked_may_answer_and_once(daemon: Daemon) -> None:
    with daemon.client() as client, daemon.client() as thief, daemon.client() as stranger:
        operation, other = client.submit(local(daemon, "mine")), thief.submit(local(daemon, "theirs"))
        claim, theirs = next_of(client, m.Claim), next_of(thief, m.Claim)
        for who, name in [(client, theirs.claim), (thief, claim.claim), (stranger, claim.claim), (client, "nothing")]:
            with pytest.raises(NoSuchClaim):
                deliver(who, name, ["out"])
            with pytest.raises(NoSuchClaim):
                abandon(who, name)
        deliver(client, claim.claim, [fill(claim)])
        assert client.wait(operation).ok
        with pytest.raises(NoSuchClaim):
            deliver(client, claim.claim, ["out"])
        abandon(thief, theirs.claim)
        with pytest.raises(NoSuchClaim):
            deliver(thief, theirs.claim, ["out"])
        assert not thief.wait(other).ok


def test_a_failure_of_any_size_reaches_everybody(daemon: Daemon) -> None:
    with daemon.client() as client:
        operation = client.submit(local(daemon, "wordy"))
        claim = next_of(client, m.Claim)
        abandon(client, claim.claim, essay=["x" * 60_000] * 100)
        assert not client.wait(operation).ok
        assert [row.fields for row in client.failed(operation)] == [{}]


# --- ends -----------------------------------------------------------------------------------------------


def test_a_cancelled_operation_drops_its_claim(daemon: Daemon) -> None:
    with daemon.client() as client, daemon.client() as other:
        operation = client.submit(local(daemon, "dropped"))
        claim = next_of(client, m.Claim)
        other.call("cancel", m.Cancel(operation=operation), m.Done)
        assert client.wait(operation).state == "cancelled"
        assert os.path.isdir(claim.folder), "its program may still write there"
        waiting = client.submit(local(daemon, "after"))
        with pytest.raises(NoSuchClaim):
            deliver(client, claim.claim, [fill(claim)])
        wait_until(lambda: not os.path.exists(claim.folder))
        claim = next_of(client, m.Claim)
        deliver(client, claim.claim, [fill(claim)])
        assert client.wait(waiting).ok


def test_a_dropped_claim_can_be_abandoned(daemon: Daemon) -> None:
    with daemon.client() as client:
        operation = client.submit(local(daemon, "given-up"))
        claim = next_of(client, m.Claim)
        client.call("cancel", m.Cancel(operation=operation), m.Done)
        assert client.wait(operation).state == "cancelled"
        abandon(client, claim.claim)


@pytest.mark.parametrize("ending", ["hangs up", "cancels"])
def test_who_joined_a_claim_takes_it_over(daemon: Daemon, ending: str) -> None:
    closure = local(daemon, f"handed-on-{ending[:5]}")
    with daemon.client() as first, daemon.client() as second:
        left = first.submit(closure)
        claim = next_of(first, m.Claim)
        joined = second.submit(closure)
        wait_until(lambda: any(joined in line.operations for line in second.ps().builds))
        if ending == "cancels":
            first.call("cancel", m.Cancel(operation=left), m.Done)
        else:
            first.close()
        taken = next_of(second, m.Claim)
        assert taken.folder != claim.folder
        deliver(second, taken.claim, [fill(taken)])
        result = second.wait(joined)
        assert (result.ok, result.built) == (True, 1)


def test_who_is_interrupted_fails_nobody_else(daemon: Daemon) -> None:
    closure = local(daemon, "interrupted-alone")
    with daemon.client() as first, daemon.client() as second:
        left = first.submit(closure)
        claim = next_of(first, m.Claim)
        joined = second.submit(closure)
        wait_until(lambda: any(joined in line.operations for line in second.ps().builds))
        row = m.FailedRow(code="build-failed", message="interrupted")
        # In one go, so that the operation has not come to its end when the claim is abandoned.
        requests = [first.send("cancel", m.Cancel(operation=left)), first.send("abandon", m.Abandon(claim=claim.claim, error=row))]
        for request in requests:
            first.answer(request, m.Done)
        taken = next_of(second, m.Claim)
        deliver(second, taken.claim, [fill(taken)])
        assert second.wait(joined).ok


def test_a_forced_build_is_handed_on_as_one(daemon: Daemon) -> None:
    closure = local(daemon, "forced")
    with daemon.client() as first, daemon.client() as second:
        mine = first.submit(closure, forced=closure.targets)
        claim = next_of(first, m.Claim)
        theirs = second.submit(closure, forced=closure.targets)
        other = next_of(second, m.Claim)
        assert other.claim != claim.claim, "what is forced shares nothing that has begun"
        first.close()
        deliver(second, other.claim, [fill(other)])
        assert second.wait(theirs).built == 1
        assert mine != theirs


def test_a_build_in_a_worker_replaces_a_caller_that_is_gone(daemon: Daemon) -> None:
    name, digest = "either-way", "d" * 64
    first = daemon.client()
    operation = first.open(local(daemon, name), digest=digest)
    first.commit(operation)
    next_of(first, m.Claim)
    with daemon.client() as second:
        joined = second.open(stages.one(daemon.plans, Travels(), name=name), digest=digest)
        second.commit(joined)
        wait_until(lambda: any(joined in line.operations for line in second.ps().builds))
        first.close()
        result = second.wait(joined)
        assert (result.ok, result.built) == (False, 0)
        assert [row.code for row in second.failed(joined)] == ["code-changed"], "a worker was asked, and it has other code"


class Travels:
    def __call__(self, S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[StorePath]:
        return [stages.out(S, dref)]


def test_without_its_program_an_operation_fails_clearly(daemon: Daemon) -> None:
    def two(r: Registry) -> DRef:
        return stages.add(r, "stranded-above", Local(), dep=stages.add(r, "stranded-below", Local()))

    client = daemon.client()
    operation = client.submit(instantiate(two, S=daemon.plans)[1])
    next_of(client, m.Claim)
    with daemon.client() as other:
        other.call("attach", m.Attach(operation=operation), m.Attached)
        client.close()
        assert not other.wait(operation).ok
        (row,) = other.failed(operation)
        assert row.code == "cannot-travel"
        assert "the program that has it hung up" in row.message


def test_a_daemon_that_ends_takes_its_claims_along(tmp_path: Path) -> None:
    with Daemon(tmp_path / "store", "--drain", "0") as daemon, daemon.wait_ready().client() as client:
        client.submit(local(daemon, "interrupted"))
        claim = next_of(client, m.Claim)
        fill(claim)
        daemon.stop_soundly(set())
        assert not os.path.exists(claim.folder)


# --- matchers -------------------------------------------------------------------------------------------


def matched_here(daemon: Daemon, name: str) -> Closure:
    lock = threading.Lock()

    def matcher(S: StorageSettings, rrefs: list[RRef]) -> Any:
        with lock:
            raise AssertionError("the test matches in its place")

    return stages.one(daemon.plans, stages.plain, name=name, matcher=matcher)


def answer(client: WireClient, match: m.Match, rrefs: Any = None, error: Any = None) -> None:
    params = m.MatchAnswer(operation=match.operation, match=match.match, answer=rrefs, error=error)
    client.call("match.answer", params, m.Done)


def test_a_matcher_of_the_caller_is_asked_there(daemon: Daemon) -> None:
    with daemon.client() as client:
        operation = client.submit(matched_here(daemon, "matched"))
        question = next_of(client, m.Match)
        assert question.candidates == []
        answer(client, question)
        question = next_of(client, m.Match)
        (candidate,) = question.candidates
        assert client.call("info", m.Info(ref=candidate.rref), m.InfoResult).started == candidate.started
        answer(client, question, [candidate.rref])
        assert client.wait(operation).built == 1


def test_answers_that_are_no_candidates_fail(daemon: Daemon) -> None:
    stranger = f"rref:{'0' * 32}-{'1' * 32}-matched"
    with daemon.client() as client:
        for rrefs in ([stranger], []):
            operation = client.submit(matched_here(daemon, "mismatched"))
            answer(client, next_of(client, m.Match), rrefs)
            assert [row.code for row in client.failed(operation)] == ["invalid-match"]


def test_a_question_is_answered_once_and_by_whom_it_was_asked(daemon: Daemon) -> None:
    with daemon.client() as client, daemon.client() as other:
        operation = client.submit(matched_here(daemon, "asked"))
        question = next_of(client, m.Match)
        with pytest.raises(NoSuchClaim):
            answer(other, question)
        answer(client, question, error=m.FailedRow(code="build-failed", message="it cannot choose"))
        with pytest.raises(NoSuchClaim):
            answer(client, question)
        assert [(row.message, row.dref) for row in client.failed(operation)] == [("it cannot choose", question.dref)]


def test_a_matcher_that_is_gone_fails_clearly(daemon: Daemon) -> None:
    client = daemon.client()
    operation = client.submit(matched_here(daemon, "unmatched"))
    next_of(client, m.Match)
    with daemon.client() as other:
        other.call("attach", m.Attach(operation=operation), m.Attached)
        client.close()
        assert [row.code for row in other.failed(operation)] == ["cannot-travel"]


def test_a_cancelled_operation_takes_its_question_back(daemon: Daemon) -> None:
    with daemon.client() as client:
        operation = client.submit(matched_here(daemon, "taken-back"))
        question = next_of(client, m.Match)
        client.call("cancel", m.Cancel(operation=operation), m.Done)
        assert client.wait(operation).state == "cancelled"
        with pytest.raises(NoSuchClaim):
            answer(client, question)
        operation = client.submit(matched_here(daemon, "asked-again"))
        answer(client, next_of(client, m.Match), [])
        assert not client.wait(operation).ok
