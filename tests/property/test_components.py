"""Laws of hashes over graphs with circles."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from pylightnix._components import reach_hashes

Graph = tuple[list[bytes], list[list[tuple[str, int]]]]


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Draw a graph of up to eight nodes, some with equal texts; labels tell the edges of a node apart."""
    count = draw(st.integers(1, 8))
    texts = draw(st.lists(st.sampled_from("abc"), min_size=count, max_size=count))
    targets = draw(st.lists(st.lists(st.integers(0, count - 1), max_size=3), min_size=count, max_size=count))
    own = [hashlib.sha256(text.encode()).digest() for text in texts]
    return own, [[(str(label), target) for label, target in enumerate(each)] for each in targets]


def reached(edges: list[list[tuple[str, int]]], start: int) -> set[int]:
    found, stack = {start}, [start]
    while stack:
        for _, target in edges[stack.pop()]:
            if target not in found:
                found.add(target)
                stack.append(target)
    return found


def bisimilar(graph: Graph) -> list[int]:
    """Return a number for each node, the same for nodes that no walk tells apart."""
    own, edges = graph
    classes = [own.index(text) for text in own]
    for _ in own:
        keys = [(classes[node], tuple((label, classes[target]) for label, target in edges[node])) for node in range(len(own))]
        classes = [keys.index(key) for key in keys]
    return classes


@given(graphs(), st.randoms(use_true_random=False))
def test_order_of_nodes_does_not_matter(graph: Graph, random: object) -> None:
    own, edges = graph
    order = list(range(len(own)))
    random.shuffle(order)  # type: ignore[attr-defined]
    place = {node: position for position, node in enumerate(order)}
    moved = reach_hashes([own[node] for node in order], [[(label, place[to]) for label, to in edges[node]] for node in order])
    assert [moved[place[node]] for node in range(len(own))] == reach_hashes(own, edges)


@given(graphs())
def test_entry_does_not_matter(graph: Graph) -> None:
    own, edges = graph
    whole = reach_hashes(own, edges)
    for start in range(len(own)):
        part = sorted(reached(edges, start))
        place = {node: position for position, node in enumerate(part)}
        alone = reach_hashes([own[node] for node in part], [[(label, place[to]) for label, to in edges[node]] for node in part])
        assert alone == [whole[node] for node in part]


@given(graphs(), st.data())
def test_a_change_is_seen_from_wherever_it_is_reached_and_nowhere_else(graph: Graph, data: st.DataObject) -> None:
    own, edges = graph
    changed = data.draw(st.integers(0, len(own) - 1))
    before = reach_hashes(own, edges)
    after = reach_hashes([b"new" if node == changed else text for node, text in enumerate(own)], edges)
    for node in range(len(own)):
        assert (before[node] != after[node]) == (changed in reached(edges, node))


@given(graphs())
def test_nodes_that_can_be_told_apart_have_other_hashes(graph: Graph) -> None:
    found, classes = reach_hashes(*graph), bisimilar(graph)
    for one in range(len(found)):
        for other in range(one):
            if found[one] == found[other]:
                assert classes[one] == classes[other]
