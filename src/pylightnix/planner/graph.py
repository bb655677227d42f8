"""Orders over a dependency graph. Pure: nodes are any hashable, sortable text."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import TypeVar

from pylightnix.errors import CycleError

__all__ = ["dependency_order", "find_cycle"]

N = TypeVar("N", bound=str)


def _needed(targets: Sequence[N], deps: Mapping[N, Sequence[N]]) -> set[N]:
    seen: set[N] = set(targets)
    stack = list(seen)
    while stack:
        for dep in deps[stack.pop()]:
            if dep not in seen:
                seen.add(dep)
                stack.append(dep)
    return seen


def dependency_order(targets: Sequence[N], deps: Mapping[N, Sequence[N]]) -> list[N]:
    """Return what `targets` need, dependencies first, else in the order of the keys of `deps`.

    Keys that stand after what they depend on, as registries have them, are in order already; else Kahn's
    algorithm with a heap finds one, in O(n log n + edges).

    Raises:
        CycleError: there is none; the error names a circle.
        KeyError: a needed node is not a key of `deps`.
    """
    needed = _needed(targets, deps)
    order = [node for node in deps if node in needed]
    return order if _is_ordered(order, deps) else _kahn_order(needed, deps)


def _is_ordered(nodes: Sequence[N], deps: Mapping[N, Sequence[N]]) -> bool:
    seen: set[N] = set()
    for node in nodes:
        if not seen.issuperset(deps[node]):
            return False
        seen.add(node)
    return True


def _kahn_order(needed: set[N], deps: Mapping[N, Sequence[N]]) -> list[N]:
    rank = {node: i for i, node in enumerate(deps) if node in needed}
    missing = {node: len(set(deps[node])) for node in needed}
    dependents: dict[N, list[N]] = {node: [] for node in needed}
    for node in needed:
        for dep in set(deps[node]):
            dependents[dep].append(node)
    nodes = list(deps)
    ready = [rank[node] for node in needed if missing[node] == 0]
    heapq.heapify(ready)
    order: list[N] = []
    while ready:
        node = nodes[heapq.heappop(ready)]
        order.append(node)
        for dependent in dependents[node]:
            missing[dependent] -= 1
            if missing[dependent] == 0:
                heapq.heappush(ready, rank[dependent])
    if len(order) != len(needed):
        circle = find_cycle([node for node in needed if missing[node] > 0], deps)
        raise CycleError(circle)
    return order


def find_cycle(nodes: Sequence[N], deps: Mapping[N, Sequence[N]]) -> list[N]:
    """Return a circle among `nodes`, its first node again at the end.

    Every node must have a dependency among `nodes`, as those have that Kahn's algorithm leaves over.
    The circle starts at its least node, so that equal graphs give equal messages.
    """
    among = set(nodes)
    walk = [min(nodes)]
    seen = {walk[0]: 0}
    while True:
        step = min(dep for dep in deps[walk[-1]] if dep in among)
        if step in seen:
            circle = walk[seen[step] :]
            start = circle.index(min(circle))
            circle = circle[start:] + circle[:start]
            return [*circle, circle[0]]
        seen[step] = len(walk)
        walk.append(step)
