"""Walks over values and graphs: laws, under any value and any graph."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylightnix import (
    Misuse,
    concat,
    dagroots,
    encode,
    kahntsort,
    scanref_dict,
    scanref_list,
    traverse_dict,
    traverse_list,
    traverse_tuple,
)

DREF, OTHER = f"dref:{'0' * 32}-x", f"dref:{'1' * 32}-y"
RREF = f"rref:{'2' * 32}-{'0' * 32}-x"

leaves = st.one_of(st.integers(), st.sampled_from([DREF, OTHER, RREF, "text", f"{DREF}\n"]))
values = st.recursive(
    leaves,
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.sampled_from(["a", DREF, "b"]), inner), st.lists(inner).map(tuple)),
    max_leaves=20,
)
dicts = st.dictionaries(st.text(max_size=2), values)


def leaves_of(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in leaves_of(item)]
    return [leaf for item in value for leaf in leaves_of(item)] if isinstance(value, (list, tuple)) else [value]


@given(dicts)
def test_references_are_found_in_order(value: dict[str, Any]) -> None:
    found = leaves_of(value)
    expected = [leaf for leaf in found if leaf in (DREF, OTHER)], [leaf for leaf in found if leaf == RREF]
    assert scanref_dict(value) == expected
    assert scanref_list([value, []]) == expected


@given(dicts)
def test_what_changes_nothing_changes_nothing(value: dict[str, Any]) -> None:
    before, seen = copy.deepcopy(value), []

    def mutate(key: Any, item: Any) -> Any:
        if not isinstance(item, (dict, list, tuple)):
            seen.append(item)
        return item

    traverse_dict(value, mutate)
    assert value == before
    assert seen == leaves_of(before), "depth first, in order"


def test_replacements_are_descended_into() -> None:
    value: dict[str, Any] = {"a": 1, "b": {"c": [2, (3,)]}}

    def mutate(key: Any, item: Any) -> Any:
        return {1: [10], 2: {"d": 20}, 20: 21}.get(item, item) if isinstance(item, int) else item

    traverse_dict(value, mutate)
    assert value == {"a": [10], "b": {"c": [{"d": 21}, (3,)]}}
    items: list[Any] = [1, [1]]
    traverse_list(items, lambda key, item: 5 if item == 1 else item)
    assert items == [5, [5]]


def test_items_of_tuples_must_stay() -> None:
    inside = ([1], {"a": 1})
    traverse_tuple(inside, lambda key, item: 2 if item == 1 else item)
    assert inside == ([2], {"a": 2})
    with pytest.raises(Misuse, match="item 0 of a tuple"):
        traverse_dict({"t": (1,)}, lambda key, item: 2 if item == 1 else item)


graphs = st.dictionaries(st.text("abcdefgh", min_size=1, max_size=2), st.sets(st.text("abcdefgh", min_size=1, max_size=2), max_size=3))


@given(graphs, st.randoms())
def test_a_sorted_graph_does_not_depend_on_the_order_it_is_given_in(graph: dict[str, set[str]], chance: random.Random) -> None:
    nodes = list(graph)
    found = kahntsort(nodes, graph.__getitem__)
    chance.shuffle(nodes)
    assert kahntsort(nodes, graph.__getitem__) == found
    if found is None:
        assert _has_circle(graph)
        return
    assert sorted(found) == sorted(graph)
    place = {node: i for i, node in enumerate(found)}
    assert all(place[dep] < place[node] for node in graph for dep in graph[node] if dep in graph)
    for i in range(len(found)):
        # The least of those that could come next.
        ready = [node for node in found[i:] if all(dep in found[:i] for dep in graph[node] if dep in graph)]
        assert found[i] == min(ready)
    assert dagroots(found, graph.__getitem__) == {node for node in graph if not any(node in deps for deps in graph.values())}


def _has_circle(graph: dict[str, set[str]]) -> bool:
    left = dict(graph)
    while free := [node for node, deps in left.items() if not deps & left.keys()]:
        for node in free:
            del left[node]
    return bool(left)


def test_d44_a_circle_is_none_and_what_is_not_among_the_nodes_blocks_nothing() -> None:
    assert kahntsort(["a", "b"], {"a": {"b"}, "b": {"a"}}.__getitem__) is None
    assert kahntsort(["a"], lambda node: {node}) is None
    assert kahntsort(["b", "a"], lambda node: {"elsewhere"}) == ["a", "b"]
    assert kahntsort([], lambda node: set()) == []


def test_small_ones() -> None:
    assert encode("ž") == b"\xc5\xbe"
    assert encode("ž", "latin2") == b"\xbe"
    assert concat([[1], [], [2, 3]]) == [1, 2, 3]
