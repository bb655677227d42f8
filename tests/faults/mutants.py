"""The product with one thing taken out, so that the tests can be seen to find what is missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Optional


def _no_sync() -> None:
    """What is acknowledged was never flushed."""
    from pylightnix.store import commit

    vars(commit).update(sync_file_system=lambda *_: None, sync_trees=lambda *_: None)


MUTANTS: Final[dict[str, Callable[[], Any]]] = {"no-sync": _no_sync}


def apply(name: Optional[str]) -> None:
    """Make this process a mutant."""
    if name is not None:
        MUTANTS[name]()
