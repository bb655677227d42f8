"""Named points at which a test may make the process die, to see what the next one finds.

A point costs one attribute look-up and one call when nobody listens. The list is closed: reaching a
point that is not on it is a bug, so that a test over `POINTS` covers every one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Optional

__all__ = ["POINTS", "REMOVAL_POINTS", "reach", "set_hook"]

POINTS: Final = (
    "derivation_written",
    "folder_made",
    "taken_over",
    "context_written",
    "before_pending",
    "after_pending",
    "debris_trashed",
    "before_rename",
    "after_rename",
    "before_sync",
    "after_sync",
    "before_valid",
    "after_valid",
    "recovery_marked",
    "recovery_trashed",
    "recovery_forgotten",
    "trash_emptied",
    "owner_swept",
)
"""What a build, and the clean-up after a dead one, go through."""

REMOVAL_POINTS: Final = ("removal_decided", "removal_marked", "removal_trashed", "derivation_trashed", "removal_finished")
"""What the removal of realizations and derivations goes through, beside those of its clean-up."""

MENDING_POINTS: Final = ("reindex_batch", "index_moved_aside", "quarantined")
"""What making the index anew, and moving damaged realizations aside, go through."""

_hook: Optional[Callable[[str], None]] = None


def set_hook(hook: Optional[Callable[[str], None]]) -> None:
    """Have `hook` called with the name of every point that is reached; None for nobody."""
    global _hook  # noqa: PLW0603  # one listener per process is the point
    _hook = hook


def reach(point: str) -> None:
    """Say that `point` was reached."""
    if _hook is not None:
        if point not in POINTS and point not in REMOVAL_POINTS and point not in MENDING_POINTS:
            raise AssertionError(f"BUG: unknown fault point {point}")
        _hook(point)
