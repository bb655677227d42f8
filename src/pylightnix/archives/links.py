"""Whether symbolic links of a tree lead out of it. Looks at no file system: the tree is known by its links."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeAlias

__all__ = ["Parts", "TooCrooked", "is_straight", "leads_out", "parts_of", "plain_name"]

Parts: TypeAlias = tuple[bytes, ...]
"""The components of a path below the top of the tree."""

_MAX_HOPS: Final = 40
"""How many links Linux follows for one path."""


class TooCrooked(Exception):
    """It takes more steps to tell than were granted."""


def parts_of(path: bytes) -> Parts:
    """Return the components of a path, less those that stay where they are."""
    return tuple(part for part in path.split(b"/") if part not in (b"", b"."))


def plain_name(path: bytes) -> bytes:
    """Return a path less those components that stay where they are."""
    return b"/".join(parts_of(path))


def is_straight(target: Parts) -> bool:
    """Tell whether a target goes up first, if at all, and down from there.

    Going up from a real folder leads to its parents. Where a name came before, that may be a link, which leads anywhere.
    """
    return b".." not in target[_ups(target) :]


def _ups(target: Parts) -> int:
    return next((number for number, part in enumerate(target) if part != b".."), len(target))


def leads_out(folder: Parts, target: Parts, links: Mapping[Parts, Parts], steps: int) -> tuple[bool, int]:
    """Tell whether a link leaves the tree at some point on its way, and how many of `steps` are left.

    If all links of a tree that are straight stay in it, so does each way that leads over nothing else.

    Args:
        folder: where the link is, a real folder.
        target: its target, a relative path.
        links: all links of the tree.
        steps: how many components may be looked at.

    Raises:
        TooCrooked: these were not enough.
    """
    here = list(folder)
    ahead = list(reversed(target))
    hops = 0
    while ahead:
        if steps <= 0:
            raise TooCrooked
        steps -= 1
        part = ahead.pop()
        if part == b"..":
            if not here:
                return True, steps
            here.pop()
            continue
        here.append(part)
        onward = links.get(tuple(here))
        if onward is not None:
            hops += 1
            if hops > _MAX_HOPS:
                return False, steps  # the system does not follow it any further, either
            here.pop()
            ahead.extend(reversed(onward))
    return False, steps
