"""The table of builds: sharing, slots, grace, and its invariants under random use."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pylightnix.types import DRef
from pylightnixd.table import BuildKey, BuildState, BuildTable, CancelBuild, Release


def _key(name: str = "a") -> BuildKey:
    return BuildKey(DRef(f"dref:{'0' * 32}-{name}"), "c", "d", "e", "r")


def test_two_operations_share_one_build() -> None:
    table = BuildTable(4, 1.0)
    first = table.want(0, "o1", _key())
    assert first.new
    assert table.actions(0) == [Release(first.build)]
    second = table.want(1, "o2", _key())
    assert (second.build, second.new) == (first.build, False)
    assert table.actions(1) == []


def test_what_differs_in_any_part_of_its_key_is_another_build() -> None:
    table = BuildTable(4, 1.0)
    table.want(0, "o1", _key("a"))
    assert table.want(0, "o1", _key("b")).new


def test_a_forced_request_does_not_join_what_has_started() -> None:
    table = BuildTable(4, 1.0)
    first = table.want(0, "o1", _key())
    table.actions(0)
    forced = table.want(0, "o2", _key(), forced=True)
    assert forced.new
    assert table.want(0, "o3", _key(), forced=True).build == forced.build, "not yet started"
    table.actions(0)
    assert table.want(0, "o4", _key()).build == first.build


def test_a_forced_request_that_joins_a_queued_build_makes_it_forced() -> None:
    table = BuildTable(1, 1.0)
    joined = table.want(0, "o1", _key())
    table.want(0, "o2", _key(), forced=True)
    entry = table.entry(joined.build)
    assert entry is not None
    assert entry.forced


def test_slots_bound_what_runs_and_the_longest_path_goes_first() -> None:
    table = BuildTable(1, 1.0)
    short = table.want(0, "o", _key("short"), path_seconds=1)
    long = table.want(0, "o", _key("long"), path_seconds=9)
    assert table.actions(0) == [Release(long.build)]
    assert table.actions(5) == []
    table.ended(long.build)
    assert table.actions(6) == [Release(short.build)]


def test_a_large_build_is_not_passed_over() -> None:
    table = BuildTable(2, 1.0)
    small = table.want(0, "o", _key("small"))
    table.actions(0)
    large = table.want(1, "o", _key("large"), cpus=2)
    table.want(2, "o", _key("late"))
    assert table.actions(2) == []
    table.ended(small.build)
    assert table.actions(3) == [Release(large.build)]


def test_more_slots_than_there_are_means_all_of_them() -> None:
    table = BuildTable(2, 1.0)
    assert table.actions(0) == []
    build = table.want(0, "o", _key(), cpus=99).build
    assert table.actions(0) == [Release(build)]
    assert table.busy == 2


def test_an_abandoned_build_is_cancelled_after_the_grace_and_holds_its_slot_until_it_ended() -> None:
    table = BuildTable(1, 2.0)
    build = table.want(0, "o1", _key()).build
    table.actions(0)
    table.leave(10, "o1")
    assert table.deadline() == 12
    assert table.actions(11.9) == []
    assert table.actions(12) == [CancelBuild(build)]
    other = table.want(12, "o2", _key())
    assert other.new, "what is being killed is not joined"
    assert table.actions(12) == []
    table.ended(build)
    assert table.actions(12) == [Release(other.build)]


def test_who_joins_within_the_grace_saves_the_build() -> None:
    table = BuildTable(1, 2.0)
    build = table.want(0, "o1", _key()).build
    table.actions(0)
    table.leave(1, "o1")
    assert table.want(2, "o2", _key()).build == build
    assert table.deadline() is None
    assert table.actions(99) == []


def test_a_queued_build_that_nobody_wants_is_gone_at_once() -> None:
    table = BuildTable(1, 2.0)
    table.want(0, "o1", _key("a"))
    table.actions(0)
    queued = table.want(0, "o2", _key("b")).build
    table.leave(0, "o2")
    assert table.entry(queued) is None


class TableMachine(RuleBasedStateMachine):
    """Random requests, departures, ends and times; a build runs for as long as the machine pleases."""

    def __init__(self) -> None:
        super().__init__()
        self.table = BuildTable(3, 2.0)
        self.now = 0.0
        self.wanted: dict[str, set[str]] = {}
        self.released: set[str] = set()

    @rule(
        operation=st.sampled_from("pqrs"),
        name=st.sampled_from("abcdef"),
        forced=st.booleans(),
        cpus=st.integers(1, 5),
        path_seconds=st.floats(0, 9),
    )
    def want(self, operation: str, name: str, forced: bool, cpus: int, path_seconds: float) -> None:
        joined = self.table.want(self.now, operation, _key(name), forced=forced, cpus=cpus, path_seconds=path_seconds)
        if forced:
            assert joined.build not in self.released
        assert joined.new == (joined.build not in self.wanted)
        self.wanted.setdefault(joined.build, set()).add(operation)

    @rule(operation=st.sampled_from("pqrs"))
    def leave(self, operation: str) -> None:
        self.table.leave(self.now, operation)
        for operations in self.wanted.values():
            operations.discard(operation)

    @rule(which=st.integers(0, 9))
    def end(self, which: int) -> None:
        running = [entry.id for entry in self.table.entries() if entry.state is not BuildState.queued]
        if running:
            self.table.ended(running[which % len(running)])

    @rule(seconds=st.floats(0, 5))
    def act(self, seconds: float) -> None:
        self.now += seconds
        for action in self.table.actions(self.now):
            if isinstance(action, Release):
                assert action.build not in self.released, "started twice"
                assert self.wanted[action.build], "started for nobody"
                self.released.add(action.build)
            else:
                assert not self.wanted[action.build], "cancelled although somebody wants it"
        assert self.table.actions(self.now) == [], "one call gives everything there is to do"

    @invariant()
    def sound(self) -> None:
        self.table.check_invariants()
        for entry in self.table.entries():
            assert set(entry.operations) == self.wanted[entry.id]

    def teardown(self) -> None:
        """Whatever happened: when all that runs ends, all that is wanted gets its turn."""
        for _ in range(1000):
            self.table.actions(self.now)
            running = [entry.id for entry in self.table.entries() if entry.state is not BuildState.queued]
            if not running:
                break
            self.table.ended(running[0])
        assert self.table.entries() == []


TestTable = TableMachine.TestCase
TestTable.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
