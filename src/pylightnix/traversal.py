"""Walks over nested values and over graphs that are given as a function. Must not know stages or stores."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, Optional, TypeVar

from pylightnix.errors import CycleError, Misuse
from pylightnix.planner.graph import dependency_order
from pylightnix.refs import isdref, isrref
from pylightnix.types import DRef, Mutator, RRef

__all__ = [
    "concat",
    "dagroots",
    "encode",
    "kahntsort",
    "scanref_dict",
    "scanref_list",
    "traverse_dict",
    "traverse_list",
    "traverse_tuple",
]

T = TypeVar("T")
N = TypeVar("N", bound=str)


def traverse_dict(d: dict[Any, Any], mut: Mutator) -> None:
    """Replace every value in a dict, at any depth, by ``mut(key or index, value)``, in place.

    What `mut` gives is descended into if it is a dict, a list or a tuple; depth first, in order.

    Raises:
        Misuse: an item of a tuple would change, which cannot be done in place.
    """
    for key, value in list(d.items()):
        d[key] = mut(key, value)
        _descend(d[key], mut)


def traverse_list(l: list[Any], mut: Mutator) -> None:  # noqa: E741  # the name that programs pass
    """Do with a list as `traverse_dict` does with a dict."""
    for i, value in enumerate(l):
        l[i] = mut(i, value)
        _descend(l[i], mut)


def traverse_tuple(t: tuple[Any, ...], mut: Mutator) -> None:
    """Do with a tuple as `traverse_dict` does with a dict, but that its own items must stay."""
    for i, value in enumerate(t):
        found = mut(i, value)
        if found is not value and found != value:
            raise Misuse(f"expected item {i} of a tuple to stay {value!r:.80}, found {found!r:.80}; use a list for what is to change")
        _descend(value, mut)


def _descend(value: Any, mut: Mutator) -> None:
    if isinstance(value, dict):
        traverse_dict(value, mut)
    elif isinstance(value, list):
        traverse_list(value, mut)
    elif isinstance(value, tuple):
        traverse_tuple(value, mut)


def scanref_dict(d: dict[Any, Any]) -> tuple[list[DRef], list[RRef]]:
    """Return all references that stand as values in a dict, at any depth, in traversal order. Keys do not count."""
    return scanref_list([d])


def scanref_list(l: Iterable[Any]) -> tuple[list[DRef], list[RRef]]:  # noqa: E741  # the name that programs pass
    """Return all references in a list, as `scanref_dict` does."""
    drefs: list[DRef] = []
    rrefs: list[RRef] = []
    stack = [*l][::-1]
    while stack:
        item = stack.pop()
        if isdref(item):
            drefs.append(DRef(item))
        elif isrref(item):
            rrefs.append(RRef(item))
        elif isinstance(item, dict):
            stack.extend(reversed(item.values()))
        elif isinstance(item, (list, tuple)):
            stack.extend(reversed(item))
    return drefs, rrefs


def kahntsort(nodes: Collection[N], inbounds: Callable[[N], Iterable[N]]) -> Optional[list[N]]:
    """Return `nodes` with every node after those it needs, None if they need each other in a circle.

    Of those that may come next the least comes first, so the result does not depend on the order of `nodes`.

    Args:
        nodes: what is to be sorted; of equal ones the first counts.
        inbounds: returns what a node needs. What is not among `nodes` is taken for granted.
    """
    among = sorted(set(nodes))
    known = set(among)
    try:
        return dependency_order(among, {node: [dep for dep in inbounds(node) if dep in known] for node in among})
    except CycleError:
        return None


def dagroots(sorted_nodes: Iterable[N], inbounds: Callable[[N], Iterable[N]]) -> set[N]:
    """Return those nodes that no other node needs; see `kahntsort`."""
    nodes = set(sorted_nodes)
    return nodes - {dep for node in nodes for dep in inbounds(node)}


def encode(s: str, encoding: str = "utf-8") -> bytes:
    """Return a text as bytes."""
    return s.encode(encoding)


def concat(l: Iterable[Iterable[T]]) -> list[T]:  # noqa: E741  # the name that programs pass
    """Return the items of all lists in a list, in order."""
    return [item for items in l for item in items]
