"""Redefining stages that register any graph and return any part of it: laws about what is left."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.stores import new_store, writes

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


@contextmanager
def stores() -> Iterator[StorageSettings]:
    with tempfile.TemporaryDirectory(prefix="pyl-", ignore_cleanup_errors=True) as folder:
        yield new_store(f"{folder}/s")


def shape(closure: Closure) -> dict[str, Any]:
    """Return the configs of a closure with names in place of references."""
    names = {derivation.dref: derivation.dref.partition("-")[2] for derivation in closure.derivations}
    found = {}
    for dref, name in names.items():
        config = cfgdict(drefcfg_(dref, closure.S))
        config["deps"]["list"] = [[names[dep] for dep in deps] for deps in config["deps"]["list"]]
        found[name] = config
    return found


@settings(deadline=None, max_examples=20)
@given(graphs())
def test_redefining_without_a_change_changes_nothing(drawn: tuple[Graph, list[int]]) -> None:
    def main(r: Registry) -> dict[str, DRef]:
        return stage_of(*drawn, r)

    with stores() as S:
        plain, same = instantiate(main, S=S), instantiate(redefine(main), S=S)
        assert same[0] == plain[0]
        assert [d.dref for d in same[1].derivations] == [d.dref for d in plain[1].derivations]


@settings(deadline=None, max_examples=20)
@given(graphs())
def test_what_is_returned_is_changed_and_the_rest_refers_to_that(drawn: tuple[Graph, list[int]]) -> None:
    graph, returned = drawn

    def main(r: Registry) -> dict[str, DRef]:
        return stage_of(graph, returned, r)

    def mark(config: dict[str, Any]) -> None:
        config["marked"] = True

    with stores() as plain_store, stores() as S:
        expected = shape(instantiate(main, S=plain_store)[1])
        for i in returned:
            expected[f"n{i}"]["marked"] = True
        result, closure = instantiate(redefine(main, mark), S=S)
        assert shape(closure) == expected
        assert [d.dref.partition("-")[2] for d in closure.derivations] == [f"n{i}" for i in range(len(graph))]
        assert set(alldrefs(S)) == {d.dref for d in closure.derivations}, "no folder of what was replaced"
        assert {key: dref.partition("-")[2] for key, dref in result.items()} == {str(i): f"n{i}" for i in returned}
        assert set(result.values()) <= set(realize(closure)[2])
