"""For how long results of operations are kept: by hand, and under random use beside a model that forgets nothing."""

from __future__ import annotations

import re
from typing import Optional

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pylightnix.planner.plan import PlanOutcome
from pylightnix.protocol import messages as m
from pylightnix.protocol.errors import ResultDropped
from pylightnix.types import DRef
from pylightnixd.kept_results import KeptResults
from pylightnixd.names import new_name
from pylightnixd.report import FailedBuild
from pylightnixd.results import FAILURES_BYTES_MAX, FailureRoom, Result, row_bytes

DREF = DRef(f"dref:{'0' * 32}-stage")
ENDED = 1_700_000_000.0


def result(name: str, pickled_bytes: int = 0, text: str = "") -> Result:
    row = m.FailedRow(dref=DREF, code="build-failed", message=text, pickled=b"x" * pickled_bytes)
    outcome = PlanOutcome({}, [], [], [], [(DREF, FailedBuild(row))], [], [])
    return Result.of(outcome, None, targets=[DREF], id=name, user="ann", created=0.0, ended=ENDED, done=1, total=1, told=[])


def why(kept: KeptResults, name: str) -> str:
    with pytest.raises(ResultDropped) as caught:
        kept.find(name)
    assert caught.value.ended == ENDED
    return str(caught.value)


def test_d3_a_result_is_kept_for_an_hour_however_many_others_end() -> None:
    kept = KeptResults()
    kept.keep(0.0, result("op-first"))
    for i in range(10_000):
        kept.keep(1.0, result(f"op-{i}"))
    kept.expire(3599.9)
    assert kept.find("op-first") is not None
    assert kept.deadline() == 3600.0
    kept.expire(3600.0)
    assert why(kept, "op-first") == (
        "the operation op-first ended at 2023-11-14 22:13:20 UTC, its result was kept for one hour; "
        "ask for the same again: what was built is in the store"
    )
    assert kept.find("op-0") is not None
    assert kept.find("op-never") is None


def test_d3_what_ended_first_makes_room_whatever_began_first() -> None:
    kept = KeptResults(bytes_max=10_000)
    kept.keep(0.0, result("op-b", 4000))
    kept.keep(1.0, result("op-a", 4000))
    assert re.search(r"made room for later ones \(10000 bytes are kept\)", why(kept, "op-b"))
    assert kept.find("op-a") is not None
    kept.keep(2.0, result("op-large", 1_000_000))
    assert kept.find("op-large") is not None, "the latest is kept however large it is"
    assert len(kept) == 1


def test_d3_what_was_fetched_is_let_go_at_once() -> None:
    kept = KeptResults()
    kept.keep(0.0, result("op-a", 4000))
    kept.fetched("op-a")
    kept.fetched("op-a")
    assert (len(kept), kept.total_bytes, kept.deadline()) == (0, 0, None)
    assert "was fetched by its client" in why(kept, "op-a")


def test_d3_so_many_are_remembered() -> None:
    kept = KeptResults(remembered_max=2)
    for name in ("op-a", "op-b", "op-c"):
        kept.keep(0.0, result(name))
        kept.fetched(name)
    assert kept.find("op-a") is None
    why(kept, "op-b")


def test_d6_a_result_holds_no_traceback_of_what_failed() -> None:
    """Frames hold on to all that a failed operation had."""
    try:
        raise ValueError("the store failed")
    except ValueError as error:
        found = Result.of(None, error, targets=[DREF], id="op-a", user="ann", created=0.0, ended=ENDED, done=0, total=1, told=[])
    assert found.numbers() == m.WaitResult(ok=False, state="internal", failed=1)
    (row,) = found.part("failed")
    assert row.dref == DREF
    assert found.part("failed") == [row], "it is told alike each time"


def test_d3_names_cannot_be_guessed() -> None:
    names = {new_name("op") for _ in range(1000)}
    assert len(names) == 1000
    assert all(re.fullmatch(r"op-[0-9a-z]{26}", name) for name in names)  # of an alphabet of 32: 130 bits


class Kept(RuleBasedStateMachine):
    """What is kept, beside a list of all that ever ended."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = KeptResults(seconds=10.0, bytes_max=20_000, remembered_max=1000)
        self.now = 0.0
        self.ended: dict[str, tuple[float, Result]] = {}
        self.fetched: set[str] = set()

    @rule(size=st.integers(0, 12_000))
    def end(self, size: int) -> None:
        name = f"op-{len(self.ended)}"
        self.ended[name] = (self.now, result(name, size))
        self.kept.keep(self.now, self.ended[name][1])

    @rule(seconds=st.floats(0.0, 8.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.kept.expire(self.now)

    @rule(data=st.data())
    def fetch(self, data: st.DataObject) -> None:
        if self.ended:
            name = data.draw(st.sampled_from(sorted(self.ended)))
            self.fetched.add(name)
            self.kept.fetched(name)

    def found(self, name: str) -> Optional[Result]:
        try:
            return self.kept.find(name)
        except ResultDropped:
            return None

    @invariant()
    def nothing_is_dropped_without_need(self) -> None:
        there = [name for name in self.ended if self.found(name) is not None]
        assert self.kept.total_bytes == sum(self.ended[name][1].size() for name in there)
        assert self.kept.total_bytes <= 20_000 or len(there) == 1
        wanted = [name for name, (ended, _) in self.ended.items() if name not in self.fetched and self.now < ended + 10.0]
        assert set(there) <= set(wanted)
        # Of what may be kept, the latest are.
        assert there == wanted[len(wanted) - len(there) :]

    @invariant()
    def every_name_has_its_word(self) -> None:
        for name in self.ended:
            if name not in self.kept:
                why(self.kept, name)

    @invariant()
    def the_latest_are_listed_first(self) -> None:
        assert [found.id for found in self.kept.latest(2)] == [name for name in reversed(self.ended) if name in self.kept][:2]


TestKept = Kept.TestCase
TestKept.settings = settings(max_examples=30)


def test_the_size_of_a_failure_covers_all_that_is_large_in_it() -> None:
    row = m.FailedRow(code="x", message="m" * 1000, traceback="t" * 1000, pickled=b"p" * 1000, fields={"f": "f" * 1000})
    assert row_bytes(row) > 4000


def test_d6_failures_of_one_operation_are_bounded() -> None:
    row = m.FailedRow(code="x", message="m" * 60_000, traceback="t" * 60_000, pickled=b"p" * 900_000)
    room = FailureRoom()
    kept = [room.fit(row) for _ in range(1000)]
    whole = [found for found in kept if found is row]
    assert FAILURES_BYTES_MAX - row_bytes(row) < sum(map(row_bytes, whole)) <= FAILURES_BYTES_MAX
    assert kept[: len(whole)] == whole, "the first failures are told in full"
    for found in kept[len(whole) :]:
        assert found.pickled is None
        assert found.message.startswith("mmm")
        assert found.traceback.endswith("ttt")
        assert row_bytes(found) < 6000
    small = m.FailedRow(code="x", message="m", traceback="t")
    assert room.fit(small) == small
