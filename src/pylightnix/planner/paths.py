"""How far it is from each derivation to the targets, in expected seconds. Pure: nodes are any hashable text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

__all__ = ["path_seconds"]

N = TypeVar("N", bound=str)


def path_seconds(order: Sequence[N], deps: Mapping[N, Sequence[N]], durations: Mapping[N, float]) -> dict[N, float]:
    """Return, for each of `order`, its own duration and those of what must follow it, along the longest way.

    Whatever starts with the longest of these first ends earliest, or nearly so, if there is room for more than one at a time.

    Args:
        order: dependencies before dependents.
        deps: what each depends on.
        durations: how long each takes.
    """
    found: dict[N, float] = dict.fromkeys(order, 0.0)  # as long as it has not come up itself, only what follows
    for node in reversed(order):
        found[node] += durations[node]
        for dep in deps[node]:
            if found[dep] < found[node]:
                found[dep] = found[node]
    return found
