"""Redefining stages that register any graph and return any part of it: laws about what is left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.stores import empty, is_served, new_store, writes

from pylightnix import (
    Closure,
    DRef,
    Registry,
    StorageSettings,
    alldrefs,
    cfgdict,
    drefcfg_,
    instantiate,
    match_latest,
    mkconfig,
    mkdrv,
    realize,
    redefine,
)

pytestmark = pytest.mark.language

Graph = list[list[int]]
"""The dependencies of each node, all of them before it."""


@st.composite
def graphs(draw: st.DrawFn) -> tuple[Graph, list[int]]:
    """Draw a graph and which of its nodes a stage returns."""
    size = draw(st.integers(1, 7))
    graph = [draw(st.lists(st.integers(0, i - 1), max_size=3)) if i else [] for i in range(size)]
    return graph, draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=4))


def stage_of(graph: Graph, returned: list[int], r: Registry) -> dict[str, DRef]:
    drefs: list[DRef] = []
    for i, deps in enumerate(graph):
        config = mkconfig({"name": f"n{i}", "deps": {"list": [[drefs[dep]] for dep in deps]}})
        drefs.append(mkdrv(config, match_latest(), writes({"out.txt": str(i)}), r))
    return {str(i): drefs[i] for i in returned}


def shape(closure: Closure) -> dict[str, Any]:
    """Return the configs of a closure with names in place of references."""
    names = {derivation.dref: derivation.dref.partition("-")[2] for derivation in closure.derivations}
    found = {}
    for dref, name in names.items():
        config = cfgdict(drefcfg_(dref, closure.S))
        config["deps"]["list"] = [[names[dep] for dep in deps] for deps in config["deps"]["list"]]
        found[name] = config
    return found


def few_examples(S: StorageSettings) -> settings:
    return settings(deadline=None, max_examples=4 if is_served(S) else 20)


def test_redefining_without_a_change_changes_nothing(S: StorageSettings) -> None:
    @few_examples(S)
    @given(graphs())
    def check(drawn: tuple[Graph, list[int]]) -> None:
        plain, same = instantiate(stage_of, *drawn, S=S), instantiate(redefine(stage_of), *drawn, S=S)
        assert same[0] == plain[0]
        assert [d.dref for d in same[1].derivations] == [d.dref for d in plain[1].derivations]

    check()


def mark(config: dict[str, Any]) -> None:
    config["marked"] = True


def test_what_is_returned_is_changed_and_the_rest_refers_to_that(S: StorageSettings, tmp_path: Path) -> None:
    plain_store = new_store(tmp_path / "plain")

    @few_examples(S)
    @given(graphs())
    def check(drawn: tuple[Graph, list[int]]) -> None:
        graph, returned = drawn
        empty(S)
        expected = shape(instantiate(stage_of, graph, returned, S=plain_store)[1])
        for i in returned:
            expected[f"n{i}"]["marked"] = True
        result, closure = instantiate(redefine(stage_of, mark), graph, returned, S=S)
        assert shape(closure) == expected
        assert [d.dref.partition("-")[2] for d in closure.derivations] == [f"n{i}" for i in range(len(graph))]
        assert set(alldrefs(S)) == {d.dref for d in closure.derivations}, "no folder of what was replaced"
        assert {key: dref.partition("-")[2] for key, dref in result.items()} == {str(i): f"n{i}" for i in returned}
        assert set(result.values()) <= set(realize(closure)[2])

    check()
