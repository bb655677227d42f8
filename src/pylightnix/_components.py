"""Hashes of the nodes of a graph that may have circles, each over all that it reaches.

The hash of a node covers its own text and, label by label, the hashes of what its edges lead to. Nodes that
reach each other are hashed together: each starts from its own text, and takes in its neighbours until that tells no
more of them apart (Weisfeiler and Leman). All the hashes of the last two rounds together are what the circle is, and a
node is its circle and its place in it. So a hash depends neither on where the walk began nor on the order of nodes.
Edges of one label have no order. Must not know what nodes are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

__all__ = ["reach_hashes"]


def reach_hashes(own: Sequence[bytes], edges: Sequence[Sequence[tuple[str, int]]]) -> list[bytes]:
    """Return the hash of every node.

    Args:
        own: each node's own hash.
        edges: each node's edges, as label and number of the node that it leads to.
    """
    found: dict[int, bytes] = {}
    for component in _components(edges):
        members = set(component)
        loops = len(component) > 1 or any(target in members for _, target in edges[component[0]])
        if not loops:
            [node] = component
            found[node] = _taken_in(own[node], [(label, found[to]) for label, to in edges[node]])
            continue
        now, before, classes = {node: own[node] for node in component}, dict[int, bytes](), 0
        while len(set(now.values())) > classes:
            before, classes = now, len(set(now.values()))
            now = {node: _taken_in(own[node], [(label, before.get(to) or found[to]) for label, to in edges[node]]) for node in component}
        circle = b"".join(sorted({before[node] + now[node] for node in component}))
        found.update({node: hashlib.sha256(now[node] + circle).digest() for node in component})
    return [found[node] for node in range(len(own))]


def _taken_in(own: bytes, neighbours: Sequence[tuple[str, bytes]]) -> bytes:
    digest = hashlib.sha256(own)
    for label, neighbour in sorted(neighbours):
        digest.update(label.encode("ascii", "backslashreplace") + b"\0" + neighbour)
    return digest.digest()


def _components(edges: Sequence[Sequence[tuple[str, int]]]) -> list[list[int]]:
    """Return the strongly connected components, those that are led to before those that lead there (Tarjan)."""
    order: dict[int, int] = {}
    low: dict[int, int] = {}
    path: list[int] = []
    on_path: set[int] = set()
    components: list[list[int]] = []
    for start in range(len(edges)):
        stack = [(start, 0)] if start not in order else []
        while stack:
            node, position = stack.pop()
            if position == 0:
                order[node] = low[node] = len(order)
                path.append(node)
                on_path.add(node)
            else:
                low[node] = min(low[node], low[edges[node][position - 1][1]])
            while position < len(edges[node]):
                target = edges[node][position][1]
                position += 1
                if target not in order:
                    stack += [(node, position), (target, 0)]
                    break
                if target in on_path:
                    low[node] = min(low[node], order[target])
            else:
                if low[node] == order[node]:
                    component = [path.pop()]
                    while component[-1] != node:
                        component.append(path.pop())
                    components.append(component)
                    on_path.difference_update(component)
    return components
