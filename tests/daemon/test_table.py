"""The table of builds: sharing, slots, grace, and its invariants under random use."""

from __future__ import annotations

import random
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pylightnix.protocol.errors import BeyondBudget
from pylightnix.types import DRef
from pylightnixd.resources import Budget, Needs
from pylightnixd.table import BuildKey, BuildState, BuildTable, CancelBuild, Release, Resume, TableEntry


def _key(name: str = "a") -> BuildKey:
    return BuildKey(DRef(f"dref:{'0' * 32}-{name}"), "c", "d", "e", "r")


def test_two_operations_share_one_build() -> None:
    table = BuildTable(Budget(4), 1.0)
    first = table.want(0, "o1", _key())
    assert first.new
    assert table.actions(0) == [Release(first.build)]
    second = table.want(1, "o2", _key())
    assert (second.build, second.new) == (first.build, False)
    assert table.actions(1) == []


def test_what_differs_in_any_part_of_its_key_is_another_build() -> None:
    table = BuildTable(Budget(4), 1.0)
    table.want(0, "o1", _key("a"))
    assert table.want(0, "o1", _key("b")).new


def test_a_forced_request_does_not_join_what_has_started() -> None:
    table = BuildTable(Budget(4), 1.0)
    first = table.want(0, "o1", _key())
    table.actions(0)
    forced = table.want(0, "o2", _key(), forced=True)
    assert forced.new
    assert table.want(0, "o3", _key(), forced=True).build == forced.build, "not yet started"
    table.actions(0)
    assert table.want(0, "o4", _key()).build == first.build


def test_a_forced_request_that_joins_a_queued_build_makes_it_forced() -> None:
    table = BuildTable(Budget(1), 1.0)
    joined = table.want(0, "o1", _key())
    table.want(0, "o2", _key(), forced=True)
    entry = table.entry(joined.build)
    assert entry is not None
    assert entry.forced


def test_slots_bound_what_runs_and_the_longest_path_goes_first() -> None:
    table = BuildTable(Budget(1), 1.0)
    short = table.want(0, "o", _key("short"), path_seconds=1)
    long = table.want(0, "o", _key("long"), path_seconds=9)
    assert table.actions(0) == [Release(long.build)]
    assert table.actions(5) == []
    table.ended(long.build)
    assert table.actions(6) == [Release(short.build)]


def test_a_large_build_is_not_passed_over() -> None:
    table = BuildTable(Budget(2), 1.0)
    small = table.want(0, "o", _key("small"))
    table.actions(0)
    large = table.want(1, "o", _key("large"), needs=Needs(2))
    table.want(2, "o", _key("late"))
    assert table.actions(2) == []
    table.ended(small.build)
    assert table.actions(3) == [Release(large.build)]


def test_what_no_budget_can_hold_is_refused() -> None:
    budget = Budget(2, 100, {"gpu": 1})
    budget.check("d", Needs(2, 100, (("gpu", 1),)))
    for needs, option, wanted, available in [
        (Needs(3), "cpus", 3, 2),
        (Needs(1, 101), "memory", 101, 100),
        (Needs(1, 0, (("gpu", 2),)), "tags.gpu", 2, 1),
        (Needs(1, 0, (("license", 1),)), "tags.license", 1, 0),
    ]:
        with pytest.raises(BeyondBudget) as found:
            budget.check("d", needs)
        assert (found.value.option, found.value.wanted, found.value.available) == (option, wanted, available)
        with pytest.raises(AssertionError, match="BUG"):
            BuildTable(budget, 1.0).want(0, "o", _key(), needs=needs)


def test_memory_bounds_what_runs() -> None:
    table = BuildTable(Budget(4, 100), 1.0)
    first, second = (table.want(0, "o", _key(name), needs=Needs(1, 60)).build for name in "ab")
    assert table.actions(0) == [Release(first)]
    assert table.lacking(_entry(table, second).needs) == ["memory"]
    table.ended(first)
    assert table.actions(1) == [Release(second)]


def test_memory_without_budget_is_there_for_all() -> None:
    table = BuildTable(Budget(4), 1.0)
    builds = [table.want(0, "o", _key(name), needs=Needs(1, 1 << 60), samples=2).build for name in "ab"]
    assert table.actions(0) == [Release(builds[0], 2), Release(builds[1], 2)]


def test_devices_are_given_by_number_and_not_twice() -> None:
    table = BuildTable(Budget(4, None, {"gpu": 3}), 1.0)
    builds = [table.want(0, "o", _key(name), needs=Needs(tags=(("gpu", n),))).build for name, n in [("a", 1), ("b", 2), ("c", 1)]]
    assert table.actions(0) == [Release(build) for build in builds[:2]]
    assert [_entry(table, build).devices for build in builds[:2]] == [{"gpu": (0,)}, {"gpu": (1, 2)}]
    assert table.lacking(_entry(table, builds[2]).needs) == ["tags.gpu"]
    table.ended(builds[1])
    assert table.actions(1) == [Release(builds[2])]
    assert _entry(table, builds[2]).devices == {"gpu": (1,)}


def test_what_waits_for_a_device_keeps_nobody_else_waiting() -> None:
    table = BuildTable(Budget(4, None, {"gpu": 1}), 1.0)
    gpu = Needs(tags=(("gpu", 1),))
    first = table.want(0, "o", _key("first"), needs=gpu).build
    waits = [table.want(0, "o", _key(f"w{i}"), needs=gpu).build for i in range(5)]
    plain = [table.want(0, "o", _key(f"p{i}")).build for i in range(5)]
    assert table.actions(0) == [Release(first), Release(plain[0]), Release(plain[1])], "one slot is kept for the next on the device"
    table.ended(first)
    assert table.actions(1) == [Release(waits[0])], "and the slot that comes free with the device is kept for the one after"


def test_priority_goes_before_the_longest_path() -> None:
    table = BuildTable(Budget(1), 1.0)
    long = table.want(0, "o", _key("long"), path_seconds=9).build
    urgent = table.want(0, "o", _key("urgent"), priority=1).build
    late = table.want(0, "o", _key("late"), priority=-1, path_seconds=99).build
    order = []
    for _ in range(3):
        for action in table.actions(0):
            order.append(action.build)
            table.ended(action.build)
    assert order == [urgent, long, late]


def test_who_joins_a_queued_build_lends_it_priority_and_path() -> None:
    table = BuildTable(Budget(1), 1.0)
    first = table.want(0, "o1", _key("first"), path_seconds=5).build
    shared = table.want(0, "o1", _key("shared")).build
    table.want(0, "o2", _key("shared"), path_seconds=9)
    assert table.actions(0) == [Release(shared)]
    table.ended(shared)
    assert table.actions(0) == [Release(first)]
    table.check_invariants()


def test_a_second_of_waiting_counts_as_one_of_the_path() -> None:
    table = BuildTable(Budget(1), 1.0)
    running = table.want(0, "o", _key("running")).build
    table.actions(0)
    old = table.want(1, "o", _key("old")).build
    table.want(9, "o", _key("young"), path_seconds=7)
    table.ended(running)
    assert table.actions(10) == [Release(old)]


def test_what_cannot_start_any_more_is_told() -> None:
    table = BuildTable(Budget(4, 100), 1.0)
    table.want(0, "o", _key("running"), needs=Needs(4))
    table.actions(0)
    waits = table.want(0, "o", _key("waits"), needs=Needs(2)).build
    table.resize(Budget(1, 100))
    assert [entry.id for entry in table.impossible()] == [waits]
    table.check_invariants()


def test_who_goes_on_has_its_own_devices_again() -> None:
    table = BuildTable(Budget(4, None, {"gpu": 2}), 1.0)
    gpu = Needs(tags=(("gpu", 1),))
    outer = table.want(0, "o", _key("outer"), needs=gpu).build
    other = table.want(0, "o", _key("other"), needs=gpu).build
    table.actions(0)
    table.lend(outer)
    inner = table.want(1, "nested", _key("inner"), needs=gpu).build
    plain = table.want(1, "o", _key("plain")).build
    assert table.actions(1) == [Release(inner), Release(plain)]
    assert _entry(table, inner).devices == _entry(table, outer).devices == {"gpu": (0,)}
    table.ended(other)
    table.reclaim(outer)
    late = table.want(2, "o", _key("late")).build
    assert table.actions(2) == [Release(late)], "a device is free, but not its own"
    table.ended(inner)
    assert table.actions(3) == [Resume(outer)]
    table.check_invariants()


def test_samples_with_devices_are_made_one_at_a_time() -> None:
    table = BuildTable(Budget(4, None, {"gpu": 4}), 1.0)
    build = table.want(0, "o", _key(), needs=Needs(tags=(("gpu", 1),)), samples=4).build
    assert table.actions(0) == [Release(build, 1)]


def test_memory_bounds_samples_too() -> None:
    table = BuildTable(Budget(8, 100), 1.0)
    build = table.want(0, "o", _key(), needs=Needs(1, 30), samples=8).build
    assert table.actions(0) == [Release(build, 3)]
    table.samples_left(build, 1)
    assert table.taken("memory") == 30


@given(
    kinds=st.lists(st.sampled_from(["cpus", "memory", "gpu"]), min_size=1, unique=True),
    small=st.lists(st.tuples(st.integers(1, 2), st.integers(0, 3), st.integers(0, 1), st.floats(0, 30)), min_size=1, max_size=5),
    order=st.randoms(use_true_random=False),
)
def test_a_large_build_is_not_passed_over_for_ever(
    kinds: list[str], small: list[tuple[int, int, int, float]], order: random.Random
) -> None:
    """As soon as one ends another small one is wanted, some with longer paths; the large one waits no longer than those paths."""
    table = BuildTable(Budget(3, 5, {"gpu": 2}), 1.0)
    numbers = count()

    def want_small(now: float) -> None:
        for cpus, memory, gpus, path in small:
            needs = Needs(cpus, memory, (("gpu", gpus),) if gpus else ())
            table.want(now, "o", _key(f"small-{next(numbers)}"), needs=needs, path_seconds=path)

    want_small(0)
    table.actions(0)
    needs = Needs(3 if "cpus" in kinds else 1, 5 if "memory" in kinds else 0, (("gpu", 2),) if "gpu" in kinds else ())
    large = table.want(0, "o", _key("large"), needs=needs).build
    for now in range(1, 120):
        want_small(now)
        if Release(large) in table.actions(now):
            return
        table.check_invariants()
        running = [entry.id for entry in table.entries() if entry.state is not BuildState.queued]
        table.ended(order.choice(running))
    raise AssertionError("it never started")


def _entry(table: BuildTable, build: str) -> TableEntry:
    entry = table.entry(build)
    assert entry is not None
    return entry


def test_an_abandoned_build_is_cancelled_after_the_grace_and_holds_its_slot_until_it_ended() -> None:
    table = BuildTable(Budget(1), 2.0)
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
    table = BuildTable(Budget(1), 2.0)
    build = table.want(0, "o1", _key()).build
    table.actions(0)
    table.leave(1, "o1")
    assert table.want(2, "o2", _key()).build == build
    assert table.deadline() is None
    assert table.actions(99) == []


def test_a_queued_build_that_nobody_wants_is_gone_at_once() -> None:
    table = BuildTable(Budget(1), 2.0)
    table.want(0, "o1", _key("a"))
    table.actions(0)
    queued = table.want(0, "o2", _key("b")).build
    table.leave(0, "o2")
    assert table.entry(queued) is None


def test_a_build_of_no_slots_waits_for_none_and_holds_none() -> None:
    table = BuildTable(Budget(1), 2.0)
    table.want(0, "o1", _key("busy"))
    table.actions(0)
    table.want(0, "o2", _key("waits"), path_seconds=9)
    free = table.want(0, "o3", _key("free"), needs=Needs(0)).build
    assert table.want(0, "o4", _key("free"), forced=True).build == free, "it has not begun"
    assert table.actions(0) == []
    table.start(1, free)
    assert (table.busy, table.queued) == (1, 1)
    assert table.want(1, "o5", _key("free")).build == free
    table.ended(free)
    assert table.busy == 1


def test_a_build_of_no_slots_does_not_count_as_one_that_could_start() -> None:
    table = BuildTable(Budget(1), 2.0)
    free = table.want(0, "o", _key("free"), needs=Needs(0), path_seconds=9).build
    assert not table.could_start()
    table.leave(0, "o")
    assert table.entry(free) is None


def test_samples_get_what_is_free_and_nobody_waits_for() -> None:
    table = BuildTable(Budget(4), 1.0)
    alone = table.want(0, "o", _key("alone"), samples=10).build
    assert table.actions(0) == [Release(alone, 4)]
    table.ended(alone)
    small = table.want(1, "o", _key("small")).build
    pair = table.want(1, "o", _key("pair"), samples=2).build
    assert table.actions(1) == [Release(small), Release(pair, 2)]
    assert table.busy == 3


def test_samples_share_with_what_starts_beside_them() -> None:
    table = BuildTable(Budget(4), 1.0)
    first = table.want(0, "o", _key("first"), samples=10).build
    others = [table.want(0, "o", _key(name)).build for name in "ab"]
    assert table.actions(0) == [Release(first, 2), *map(Release, others)]


def test_samples_get_no_more_while_somebody_waits() -> None:
    table = BuildTable(Budget(4), 1.0)
    first = table.want(0, "o", _key("first"), samples=10).build
    large = table.want(0, "o", _key("large"), needs=Needs(4)).build
    assert table.actions(0) == [Release(first, 1)]
    table.ended(first)
    assert table.actions(1) == [Release(large)]


def test_every_sample_gets_all_that_it_needs() -> None:
    table = BuildTable(Budget(7), 1.0)
    build = table.want(0, "o", _key(), needs=Needs(3), samples=10).build
    assert table.actions(0) == [Release(build, 2)]
    assert table.busy == 6


def test_slots_come_back_as_samples_end() -> None:
    table = BuildTable(Budget(4), 1.0)
    build = table.want(0, "o", _key("first"), needs=Needs(2), samples=2).build
    table.actions(0)
    other = table.want(1, "o", _key("other"), needs=Needs(2)).build
    assert table.actions(1) == []
    table.samples_left(build, 2)
    assert table.actions(2) == []
    table.samples_left(build, 1)
    assert table.actions(3) == [Release(other)]
    table.samples_left(build, 0)
    assert table.busy == 4, "a build holds a slot until it has ended"


def test_who_waits_lends_its_slots_and_goes_on_before_others_begin() -> None:
    table = BuildTable(Budget(1), 1.0)
    outer = table.want(0, "o", _key("outer")).build
    table.actions(0)
    inner = table.want(1, "nested", _key("inner"), path_seconds=1).build
    other = table.want(1, "o2", _key("other")).build
    assert table.actions(1) == []
    table.lend(outer)
    assert table.actions(1) == [Release(inner)]
    table.reclaim(outer)
    assert table.actions(2) == [], "the slot is still the inner one's"
    table.ended(inner)
    assert table.actions(3) == [Resume(outer)]
    assert table.busy == 1
    table.ended(outer)
    assert table.actions(4) == [Release(other)]


def test_who_ends_while_it_waits_has_nothing_to_give_back() -> None:
    table = BuildTable(Budget(1), 1.0)
    outer = table.want(0, "o", _key("outer")).build
    table.actions(0)
    table.lend(outer)
    inner = table.want(1, "nested", _key("inner")).build
    table.actions(1)
    table.reclaim(outer)
    table.ended(outer)
    assert table.busy == 1
    table.ended(inner)
    assert (table.actions(2), table.busy) == ([], 0)


def test_each_sample_that_waits_lends_its_own_slots() -> None:
    table = BuildTable(Budget(4), 1.0)
    outer = table.want(0, "o", _key("outer"), needs=Needs(2), samples=2).build
    assert table.actions(0) == [Release(outer, 2)]
    table.lend(outer)
    assert table.busy == 2
    table.lend(outer)
    table.lend(outer)  # a thread of its own, perhaps
    assert table.busy == 0
    table.reclaim(outer)
    assert (table.actions(1), table.busy) == ([Resume(outer)], 0), "two still wait"
    table.reclaim(outer)
    table.reclaim(outer)
    assert (table.actions(2), table.busy) == ([Resume(outer), Resume(outer)], 4)


def test_who_wants_more_back_than_there_is_now_gets_it_alone() -> None:
    table = BuildTable(Budget(4), 1.0)
    outer = table.want(0, "o", _key("outer"), needs=Needs(4)).build
    table.actions(0)
    table.lend(outer)
    table.resize(Budget(2))
    inner = table.want(1, "nested", _key("inner")).build
    assert table.actions(1) == [Release(inner)]
    table.reclaim(outer)
    assert table.actions(2) == []
    table.ended(inner)
    assert table.actions(3) == [Resume(outer)]
    table.check_invariants()


def test_what_is_being_placed_leaves_room_for_others_and_may_be_joined() -> None:
    table = BuildTable(Budget(2, None, {"gpu": 1}), 1.0)
    first = table.want(0, "o", _key("first"), needs=Needs(2, 0, (("gpu", 1),))).build
    second = table.want(0, "o", _key("second"), needs=Needs(2, 0, (("gpu", 1),))).build
    assert table.actions(0) == [Release(first)]
    table.placing(first)
    assert (table.busy, table.taken("gpu")) == (0, 0)
    assert table.actions(1) == [Release(second)]
    assert table.want(1, "p", _key("first")).build == first
    table.leave(2, "o")
    table.leave(2, "p", first)
    assert table.actions(9) == [CancelBuild(second)], "it is late to cancel what is being placed"
    table.ended(first)
    table.check_invariants()


def test_what_is_being_placed_gives_no_slot_to_those_who_may_be_content_with_it() -> None:
    table = BuildTable(Budget(1), 1.0)
    first = table.want(0, "o", _key()).build
    table.actions(0)
    forced = table.want(0, "p", _key(), forced=True).build
    table.placing(first)
    assert (table.actions(1), table.busy) == ([], 1)
    table.ended(first)
    assert table.actions(2) == [Release(forced)]


def test_what_is_being_placed_wants_nothing_back() -> None:
    table = BuildTable(Budget(2), 1.0)
    outer = table.want(0, "o", _key("outer")).build
    table.actions(0)
    table.lend(outer)
    table.reclaim(outer)
    table.placing(outer)
    table.lend(outer)
    table.reclaim(outer)
    assert (table.actions(1), table.busy) == ([], 0)
    table.check_invariants()


class TableMachine(RuleBasedStateMachine):
    """Random requests, departures, ends and times; a build runs for as long as the machine pleases."""

    def __init__(self) -> None:
        super().__init__()
        self.table = BuildTable(Budget(3, 10, {"gpu": 2}), 2.0)
        self.now = 0.0
        self.wanted: dict[str, set[str]] = {}
        self.released: set[str] = set()
        self.waits: dict[str, int] = {}
        """Build -> for how many things it waits that have not come."""
        self.resuming: dict[str, int] = {}

    @rule(
        operation=st.sampled_from("pqrs"),
        name=st.sampled_from("abcdef"),
        forced=st.booleans(),
        needs=st.just(Needs(0))
        | st.builds(Needs, st.integers(1, 3), st.integers(0, 10), st.sampled_from([(), (("gpu", 1),), (("gpu", 2),)])),
        samples=st.integers(1, 5),
        path_seconds=st.floats(0, 9),
        priority=st.integers(-1, 1),
    )
    def want(self, operation: str, name: str, forced: bool, needs: Needs, samples: int, path_seconds: float, priority: int) -> None:
        if not self.table.budget.could_hold(needs):
            return
        joined = self.table.want(
            self.now, operation, _key(name), forced=forced, needs=needs, samples=samples, path_seconds=path_seconds, priority=priority
        )
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

    @rule(which=st.integers(0, 9))
    def place(self, which: int) -> None:
        running = [entry.id for entry in self.table.entries() if entry.state is not BuildState.queued]
        if running:
            build = running[which % len(running)]
            entry = self.table.entry(build)
            assert entry is not None
            busy, had = self.table.busy, entry.held.get("cpus", 0)
            self.table.placing(build)
            if entry.state is BuildState.placing:
                assert busy - self.table.busy == had
                self.waits.pop(build, None)
                self.resuming.pop(build, None)
            else:
                assert any(other.key.dref == entry.key.dref for other in self.table.entries() if other is not entry)

    @rule(which=st.integers(0, 9), left=st.integers(0, 9))
    def samples_left(self, which: int, left: int) -> None:
        running = [entry for entry in self.table.entries() if entry.state is not BuildState.queued]
        if running:
            entry, busy = running[which % len(running)], self.table.busy
            had, slots, held = entry.samples, entry.cpus, entry.held.get("cpus", 0)
            self.table.samples_left(entry.id, left)
            is_placed = entry.state is BuildState.placing
            assert entry.samples == (had if is_placed else min(had, left) or had)
            assert busy - self.table.busy == held - entry.held.get("cpus", 0)
            assert (entry.cpus > 0) == (slots > 0)

    @rule(which=st.integers(0, 9))
    def lend(self, which: int) -> None:
        running = [entry.id for entry in self.table.entries() if entry.state is not BuildState.queued]
        if running:
            build = running[which % len(running)]
            self.table.lend(build)
            entry = self.table.entry(build)
            assert entry is not None
            if entry.state is not BuildState.placing:
                self.waits[build] = self.waits.get(build, 0) + 1

    @rule(which=st.integers(0, 9))
    def reclaim(self, which: int) -> None:
        waiting = [entry.id for entry in self.table.entries() if self.waits.get(entry.id)]
        if waiting:
            self.come(waiting[which % len(waiting)])

    def come(self, build: str) -> None:
        """What a build waits for is there."""
        self.table.reclaim(build)
        self.waits[build] -= 1
        self.resuming[build] = self.resuming.get(build, 0) + 1

    @rule(which=st.integers(0, 9))
    def start(self, which: int) -> None:
        free = [entry.id for entry in self.table.entries() if entry.state is BuildState.queued and not entry.cpus]
        if free:
            self.table.start(self.now, free[which % len(free)])
            self.released.add(free[which % len(free)])

    @rule(cpus=st.integers(1, 4), memory=st.none() | st.integers(5, 20), gpus=st.integers(0, 3))
    def resize(self, cpus: int, memory: int | None, gpus: int) -> None:
        self.table.resize(Budget(cpus, memory, {"gpu": gpus}))
        for entry in self.table.impossible():
            self.table.drop(entry.id)

    @rule(seconds=st.floats(0, 5))
    def act(self, seconds: float) -> None:
        self.now += seconds
        for action in self.table.actions(self.now):
            if isinstance(action, Release):
                assert action.build not in self.released, "started twice"
                assert self.wanted[action.build], "started for nobody"
                entry = self.table.entry(action.build)
                assert entry is not None
                assert entry.cpus >= entry.samples == action.samples
                self.released.add(action.build)
            elif isinstance(action, Resume):
                self.resuming[action.build] -= 1
                assert self.resuming[action.build] >= 0
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
            for action in self.table.actions(self.now):
                if isinstance(action, Resume):
                    self.resuming[action.build] -= 1
            for entry in self.table.entries():
                if entry.state is BuildState.queued and not entry.cpus:
                    self.table.start(self.now, entry.id)
            running = [entry.id for entry in self.table.entries() if entry.state is not BuildState.queued]
            if not running:
                break
            waiting = [build for build in running if self.waits.get(build)]
            if waiting:
                self.come(waiting[0])
                continue
            able = [build for build in running if not self.resuming.get(build)]
            if able:
                self.table.ended(able[0])
                continue
            at_work = [entry for entry in self.table.entries() if entry.held.get("cpus")]
            assert at_work, "all wait for slots"
            self.table.samples_left(at_work[0].id, at_work[0].lent)  # those that do not wait have ended
        assert self.table.entries() == []


TestTable = TableMachine.TestCase
TestTable.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
