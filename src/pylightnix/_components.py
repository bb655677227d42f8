"""Hashes of the nodes of a graph that may have circles, each over all that it reaches.

The hash of a node covers its own text and, label by label, the hashes of what its edges lead to. Nodes that
reach each other are hashed together: each starts from its own text, and takes in its neighbours as many
times as there are nodes in the circle, after which two nodes are equal only if no walk from them tells
them apart. So a hash depends neither on where the walk began nor on the order of nodes. Must not know what
nodes are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

__all__ = ["reach_hashes"]


def reach_hashes(own: Sequence[bytes], edges: Sequence[Sequence[tuple[str, int]]]) -> list[bytes]:
    """Return the hash of every node.

    Args:
        own: each node's own hash.
        edges: each node's edges, as label and number of the node that it leads to, in an order that means something.
    """
    found: dict[int, bytes] = {}
    for component in _components(edges):
        members = set(component)
        loops = len(component) > 1 or any(target in members for _, target in edges[component[0]])
        now = {node: own[node] for node in component}
        for _ in range(len(component) if loops else 1):
            now = {node: _taken_in(own[node], [(label, now.get(to) or found[to]) for label, to in edges[node]]) for node in component}
        found.update(now)
    return [found[node] for node in range(len(own))]


def _taken_in(own: bytes, neighbours: Sequence[tuple[str, bytes]]) -> bytes:
    digest = hashlib.sha256(own)
    for label, neighbour in neighbours:
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
                    cut = path.index(node)
                    components.append(path[cut:])
                    on_path.difference_update(path[cut:])
                    del path[cut:]
    return components
