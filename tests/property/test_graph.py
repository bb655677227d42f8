"""Orders over any graph: dependencies first, the given order wherever that allows it, circles named."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pylightnix.errors import CycleError
from pylightnix.planner.graph import dependency_order, find_cycle

Graph = dict[str, list[str]]


@st.composite
def graphs(draw: st.DrawFn, *, acyclic: bool = False, least: int = 0) -> Graph:
    """Draw a graph with its keys in any order; `acyclic` ones have them in any order too."""
    names = draw(st.permutations([f"n{i}" for i in range(draw(st.integers(1, 10)))]))
    allowed = [names[:i] if acyclic else names for i in range(len(names))]
    deps = {
        name: draw(st.lists(st.sampled_from(some), min_size=least, max_size=3)) if some else []
        for name, some in zip(names, allowed, strict=True)
    }
    return {name: deps[name] for name in draw(st.permutations(names))}


def reachable(targets: list[str], graph: Graph) -> set[str]:
    """Grow the set until it grows no more."""
    found = set(targets)
    while True:
        larger = found | {dep for node in found for dep in graph[node]}
        if larger == found:
            return found
        found = larger


def has_circle(nodes: set[str], graph: Graph) -> bool:
    return any(node in reachable(graph[node], graph) for node in nodes)


def targets_of(graph: Graph) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(list(graph)), max_size=4)


def greedy(targets: list[str], graph: Graph) -> list[str]:
    """Take, again and again, the first key all of whose dependencies are taken."""
    needed = reachable(targets, graph)
    order: list[str] = []
    while len(order) < len(needed):
        order.append(next(n for n in graph if n in needed and n not in order and set(graph[n]) <= set(order)))
    return order


@settings(deadline=None, max_examples=50)
@given(graph=graphs(acyclic=True), data=st.data())
def test_the_order_is_that_of_the_greedy_choice(graph: Graph, data: st.DataObject) -> None:
    targets = data.draw(targets_of(graph))
    order = dependency_order(targets, graph)
    assert order == greedy(targets, graph)
    assert set(order) == reachable(targets, graph)
    for i, node in enumerate(order):
        assert set(graph[node]) <= set(order[:i])


@settings(deadline=None, max_examples=50)
@given(graph=graphs(acyclic=True), data=st.data())
def test_an_order_that_serves_is_kept(graph: Graph, data: st.DataObject) -> None:
    order = dependency_order(list(graph), graph)
    sorted_graph = {node: graph[node] for node in order}
    targets = data.draw(targets_of(graph))
    needed = reachable(targets, graph)
    assert dependency_order(targets, sorted_graph) == [node for node in order if node in needed]


@settings(deadline=None, max_examples=50)
@given(graph=graphs(), data=st.data())
def test_the_order_of_targets_and_of_dependencies_does_not_matter(graph: Graph, data: st.DataObject) -> None:
    targets = data.draw(targets_of(graph))
    shuffled = {node: data.draw(st.permutations(deps + deps[:1])) for node, deps in graph.items()}
    other_targets = data.draw(st.permutations(targets + targets[:1]))
    assert outcome(targets, graph) == outcome(other_targets, shuffled)


@settings(deadline=None, max_examples=50)
@given(graph=graphs(), data=st.data())
def test_the_order_of_keys_changes_neither_content_nor_circle(graph: Graph, data: st.DataObject) -> None:
    targets = data.draw(targets_of(graph))
    shuffled = {node: graph[node] for node in data.draw(st.permutations(list(graph)))}
    one, other = outcome(targets, graph), outcome(targets, shuffled)
    assert one[0] == other[0]
    assert (sorted(one[1]) == sorted(other[1])) if one[0] == "order" else (one[1] == other[1])


def outcome(targets: list[str], graph: Graph) -> tuple[str, list[str]]:
    try:
        return "order", dependency_order(targets, graph)
    except CycleError as error:
        return "circle", error.path


@settings(deadline=None, max_examples=50)
@given(graph=graphs(), data=st.data())
def test_a_circle_is_found_exactly_when_there_is_one(graph: Graph, data: st.DataObject) -> None:
    targets = data.draw(targets_of(graph))
    needed = reachable(targets, graph)
    kind, path = outcome(targets, graph)
    assert (kind == "circle") == has_circle(needed, graph)
    if kind == "circle":
        assert set(path) <= needed
        check_circle(path, graph)


def check_circle(path: list[str], graph: Graph) -> None:
    assert path[0] == path[-1] == min(path)
    assert len(path) - 1 == len(set(path)) >= 1, "no node twice"
    for node, following in pairwise(path):
        assert following in graph[node]


@settings(deadline=None, max_examples=50)
@given(graph=graphs(least=1))
def test_find_cycle_among_nodes_that_all_have_a_dependency_there(graph: Graph) -> None:
    check_circle(find_cycle(list(graph), graph), graph)
    assert find_cycle(list(graph), graph) == find_cycle(list(graph)[::-1], graph)


@settings(deadline=None, max_examples=50)
@given(graph=graphs(acyclic=True), data=st.data())
def test_a_needed_node_without_an_entry_is_a_key_error(graph: Graph, data: st.DataObject) -> None:
    missing = data.draw(st.sampled_from(list(graph)))
    targets = data.draw(st.lists(st.sampled_from(list(graph)), min_size=1, max_size=4))
    assume(missing in reachable(targets, graph))
    rest = {node: deps for node, deps in graph.items() if node != missing}
    with pytest.raises(KeyError, match=missing):
        dependency_order(targets, rest)
