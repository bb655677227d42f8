"""Which ends of builds a worker may tell of while processes live on that they may have left."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from hypothesis import given
from hypothesis import strategies as st

from pylightnix.worker.children import Ended, Leftovers

DEAF = 10.0


def ended(key: str) -> Ended:
    return Ended(key, 1, 0, None)


def test_an_end_without_strangers_is_told_at_once() -> None:
    leftovers = Leftovers(DEAF)
    leftovers.note_end(ended("a"))
    assert leftovers.settle([], 0.0) == [ended("a")]
    assert leftovers.next_at == float("inf")


def test_an_end_waits_for_what_it_left_and_others_do_not() -> None:
    leftovers = Leftovers(DEAF)
    leftovers.note_end(ended("a"))
    assert leftovers.settle([7], 0.0) == []
    assert leftovers.settle([7], 1.0) == []
    leftovers.note_end(ended("b"))
    assert leftovers.settle([7], 2.0) == [ended("b")], "7 was there before b could leave anything"
    assert leftovers.settle([], 3.0) == [ended("a")]


def test_what_a_stranger_leaves_counts_as_the_builds() -> None:
    leftovers = Leftovers(DEAF)
    leftovers.note_end(ended("a"))
    assert leftovers.settle([7], 0.0) == []
    assert leftovers.settle([8], 1.0) == []
    [told] = leftovers.settle([8], 1.0 + DEAF)
    assert told.left == (8,)


def test_who_does_not_die_is_named_and_not_waited_for_again() -> None:
    leftovers = Leftovers(DEAF)
    leftovers.note_end(ended("a"))
    assert leftovers.settle([7, 8], 0.0) == []
    assert leftovers.next_at == DEAF
    assert leftovers.settle([7], DEAF / 2) == []
    [told] = leftovers.settle([7], DEAF)
    assert (told.key, told.left) == ("a", (7,))
    leftovers.note_end(ended("b"))
    assert leftovers.settle([7], DEAF + 1) == [ended("b")]
    assert leftovers.next_at == float("inf")


# --- any order of events ----------------------------------------------------------------------------------


@dataclass
class Build:
    """A build in a world of which the worker sees only what the kernel shows."""

    key: str
    orphans: set[int] = field(default_factory=set)
    dead: bool = False
    reaped: bool = False
    told: Optional[Ended] = None


steps = st.lists(
    st.tuples(st.sampled_from(["start", "die", "die between", "bury", "wait", "beget"]), st.integers(0, 9), st.integers(0, 3)), max_size=50
)


@given(steps)
def test_no_end_is_told_while_anything_of_it_lives_unnamed(events: list[tuple[str, int, int]]) -> None:
    leftovers, now = Leftovers(DEAF), 0.0
    builds: list[Build] = []
    pids = iter(range(100, 10_000))

    def settle(between: Optional[Build] = None) -> None:
        for build in builds:
            if build.dead and not build.reaped:
                build.reaped = True
                leftovers.note_end(ended(build.key))
        strangers = [pid for build in builds if build.dead for pid in build.orphans]
        if between is not None:
            between.dead = True
        for end in leftovers.settle(strangers, now):
            [build] = [build for build in builds if build.key == end.key]
            assert build.reaped
            assert build.told is None, "an end is told once"
            build.told = end
            assert build.orphans <= set(end.left), f"{build} ended with {end}"
        assert leftovers.next_at > now

    for what, which, number in events:
        living = [build for build in builds if not build.dead]
        if what == "start":
            builds.append(Build(str(len(builds)), {next(pids) for _ in range(number)}))
        elif what in ("die", "die between") and living:
            build = living[which % len(living)]
            if what == "die":
                build.dead = True
                settle()
            else:
                settle(between=build)
                settle()  # its death is a signal, too
        elif what == "bury":  # a stranger dies
            mourned = [build for build in builds if build.dead and build.orphans]
            if mourned:
                mourned[which % len(mourned)].orphans.pop()
                settle()
        elif what == "beget":  # a stranger dies and leaves one of its own
            mourned = [build for build in builds if build.dead and build.orphans and build.told is None]
            if mourned:
                build = mourned[which % len(mourned)]
                build.orphans.pop()
                build.orphans.add(next(pids))
                settle()
        elif what == "wait":
            now += number * DEAF / 3
            settle()
    now += 2 * DEAF
    settle()
    now += 2 * DEAF
    settle()
    assert all(build.told for build in builds if build.dead), "whatever does not die, every end is told in the end"
