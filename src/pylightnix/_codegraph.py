"""The graph of what code reaches, and the hashes of its nodes.

A node is a function, a class, a value, a part of a value, or a leaf. Its content is what is known of it for one
digest: a value has another content where code changes it. Must not know how nodes are found.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Optional, TypeAlias

from pylightnix._components import reach_hashes

if TYPE_CHECKING:
    from pylightnix._placing import Place
    from pylightnix._unseen import Line

__all__ = ["UNORDERED", "Content", "Edge", "Node", "View", "entry_digest", "hashes", "own_hash", "reached"]

UNORDERED: Final = "*"
"""The label of edges to the elements of a set."""


@dataclass(frozen=True, slots=True)
class Edge:
    """One way on from a node."""

    label: str
    node: Node
    runs: bool = True
    """False if it is followed only while the definition is made, not when it runs."""


@dataclass(slots=True, eq=False)
class Content:
    """What a node is for one digest."""

    kind: str
    """``function``, ``class``, ``data``, ``state`` (data that the code itself changes), ``wrapper``, ``external`` or ``part``."""
    text: bytes = b""
    edges: list[Edge] = field(default_factory=list)
    problems: dict[str, Optional[Line]] = field(default_factory=dict)
    """What was reached and could not be seen, a sentence each, and the line that leads there."""
    shown: str = ""
    """A short rendering of data."""
    still: list[Callable[[], bool]] = field(default_factory=list)
    """Whether a new look would find the same."""
    files: set[str] = field(default_factory=set)
    """Names of the files that it was read from."""
    changed: frozenset[object] = frozenset()
    """What this code changes when it runs: keys of places, and of values by identity."""
    changed_attributes: frozenset[tuple[int, str, str]] = frozenset()
    """Attributes that it changes: the class, by identity, 0 of any; ``in`` or ``to``; the name."""
    consulted: dict[tuple[type, str], str] = field(default_factory=dict)
    """Attributes for which it mattered whether code changes them, and what was told."""
    how: str = ""
    """How code changes a value: ``in`` it, or to something else; empty if it does not."""
    is_absent: bool = False
    """Whether it counts for nothing: what code itself adds to a class or function as it runs."""


@dataclass(slots=True, eq=False)
class Node:
    """A function, a class, a value, or a leaf."""

    name: str
    """For people: module and qualified name. Empty for a part of a value."""
    content: Content
    place: Optional[Place] = None
    """Where a value is bound; None for all else."""
    line: Optional[Line] = None
    """Where a value was reached first."""


View: TypeAlias = Mapping[Node, Content]
"""The nodes that a digest covers, in the order in which they were reached, each with its content."""


def reached(roots: Iterable[Node], view: Callable[[Node], Content], *, running: bool = False) -> dict[Node, Content]:
    """Return what can be reached from nodes, all or only what runs."""
    found: dict[Node, Content] = {}
    stack = list(roots)[::-1]
    while stack:
        node = stack.pop()
        if node not in found:
            found[node] = content = view(node)
            stack.extend(edge.node for edge in reversed(content.edges) if edge.runs or not running)
    return found


def own_hash(kind: bytes, text: bytes) -> bytes:
    """Return the hash of a node alone."""
    return hashlib.sha256(kind + b"\0" + text).digest()


def hashes(view: View) -> dict[Node, bytes]:
    """Return the hash of every node over all that it reaches."""
    return _hashes(list(view), view)


def _hashes(nodes: Sequence[Node], view: View) -> dict[Node, bytes]:
    numbers = {node: number for number, node in enumerate(nodes)}
    edges = [[(edge.label, numbers[edge.node]) for edge in view[node].edges if not view[edge.node].is_absent] for node in nodes]
    # A value reached by name counts as itself, whatever that name is.
    own = [own_hash(view[node].kind.encode("ascii"), view[node].text) for node in nodes]
    return dict(zip(nodes, reach_hashes(own, edges), strict=True))


def entry_digest(node: Node, view: View) -> str:
    """Return the hash of one node as a person sees it: a value with its parts, and the names of the code in it."""
    content = view[node]
    if content.kind not in ("data", "state", "wrapper"):
        return own_hash(content.kind.encode("ascii"), content.text).hex()
    parts = {node: content}
    stack: list[Node] = [node]
    named: dict[Node, Content] = {}
    while stack:
        for edge in view[stack.pop()].edges:
            if edge.node.name:
                named.setdefault(edge.node, Content("named", edge.node.name.encode("utf-8", "surrogatepass")))
            elif edge.node not in parts:
                parts[edge.node] = view[edge.node]
                stack.append(edge.node)
    seen = {**named, **parts}  # a value that leads to itself is a part
    return _hashes(list(seen), seen)[node].hex()
