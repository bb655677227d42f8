"""What may be removed: the largest part that nothing left needs; and garbage is exactly what is not reachable."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.stores import empty, is_served, stage, writes

from pylightnix import (
    DRef,
    Registry,
    RRef,
    StorageSettings,
    alldrefs,
    allrrefs,
    drefcfg_,
    instantiate,
    match_all,
    realize,
    rref2dref,
    rrefctx,
    store_gc,
)
from pylightnix.config import cfgdeps
from pylightnix.garb import collect
from pylightnix.store.collection import needed_still

names = st.sampled_from("abcdef")


@given(st.dictionaries(names, st.sets(st.sampled_from("abcdefXY"), max_size=3), max_size=6))
def test_the_largest_part_that_nothing_left_needs_may_go(users: Mapping[str, set[str]]) -> None:
    kept = needed_still(users)
    going = set(users) - set(kept)
    assert all(users[ref] <= going | {ref} for ref in going)
    subsets = itertools.chain.from_iterable(itertools.combinations(users, n) for n in range(len(users) + 1))
    best = max((set(part) for part in subsets if all(users[ref] <= {*part, ref} for ref in part)), key=len)
    assert going == best
    for ref, by in kept.items():
        assert by
        assert set(by) <= users[ref] - going


@st.composite
def graphs(draw: st.DrawFn) -> list[tuple[list[int], int]]:
    """Return for each node the earlier ones it depends on, and how many realizations it has."""
    count = draw(st.integers(1, 6))
    return [(draw(st.lists(st.integers(0, i - 1), max_size=2, unique=True)) if i else [], draw(st.integers(1, 2))) for i in range(count)]


def stages_of(graph: list[tuple[list[int], int]], r: Registry) -> list[DRef]:
    made: list[DRef] = []
    for i, (deps, count) in enumerate(graph):
        outputs = [{"n": str(n)} for n in range(count)]
        made.append(stage(r, f"s{i}", realizer=writes(*outputs), matcher=match_all, deps=[made[dep] for dep in deps]))
    return made


@pytest.mark.language
def test_gc_keeps_exactly_what_is_reachable(S: StorageSettings) -> None:
    @settings(max_examples=3 if is_served(S) else 15, deadline=None)
    @given(graphs(), st.data())
    def check(graph: list[tuple[list[int], int]], data: st.DataObject) -> None:
        empty(S)
        realize(instantiate(stages_of, graph, S=S))
        drefs, rrefs = set(alldrefs(S)), set(allrrefs(S))
        keep_drefs = set(data.draw(st.lists(st.sampled_from(sorted(drefs)), max_size=2)))
        keep_rrefs = set(data.draw(st.lists(st.sampled_from(sorted(rrefs)), max_size=2)))
        configs = {dref: cfgdeps(drefcfg_(dref, S)) for dref in drefs}
        contexts = {rref: {dep for deps in rrefctx(rref, S).values() for dep in deps or ()} for rref in rrefs}
        needed = _needed(keep_drefs, keep_rrefs, configs, contexts)
        garbage = store_gc(keep_drefs, keep_rrefs, S)
        assert garbage == (drefs - needed[0], rrefs - needed[1])
        assert collect(*garbage, S) == (sorted(garbage[0]), sorted(garbage[1]))
        assert (set(alldrefs(S)), set(allrrefs(S))) == needed
        assert store_gc(keep_drefs, keep_rrefs, S) == (set(), set())

    check()


def _needed(
    keep_drefs: set[DRef], keep_rrefs: set[RRef], configs: Mapping[DRef, set[DRef]], contexts: Mapping[RRef, set[RRef]]
) -> tuple[set[DRef], set[RRef]]:
    """Follow every edge until nothing is added: another way to the same answer."""
    whole, drefs, rrefs = set(keep_drefs), set(keep_drefs), set(keep_rrefs)
    while True:
        before = (len(whole), len(drefs), len(rrefs))
        whole |= {dep for dref in whole for dep in configs[dref]}
        rrefs |= {rref for rref in contexts if rref2dref(rref) in whole}
        rrefs |= {dep for rref in rrefs for dep in contexts[rref]}
        drefs |= whole | {rref2dref(rref) for rref in rrefs}
        drefs |= {dep for dref in drefs for dep in configs[dref]}
        if before == (len(whole), len(drefs), len(rrefs)):
            return drefs, rrefs
