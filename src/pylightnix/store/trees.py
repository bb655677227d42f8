"""What lies in a store's storage, whatever its index says."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from pylightnix.refs import isdref, isrref
from pylightnix.store.layout import CONFIG_FILE, StoreLayout
from pylightnix.types import DRef, RRef

__all__ = ["Stored", "in_parallel", "stored"]

T = TypeVar("T")
R = TypeVar("R")


@dataclass(slots=True)
class Stored:
    """The entries of a storage."""

    drefs: list[DRef] = field(default_factory=list)
    """Derivations, sorted."""
    rrefs: list[RRef] = field(default_factory=list)
    """Folders with the names of realizations, sorted."""
    strays: list[str] = field(default_factory=list)
    """Paths of all else."""


def stored(layout: StoreLayout) -> Stored:
    """List a storage. Looks at names only.

    Raises:
        OSError: the storage cannot be listed.
    """
    found = Stored()
    for name in sorted(os.listdir(layout.storage)):
        folder = f"{layout.storage}/{name}"
        if not isdref(f"dref:{name}") or os.path.islink(folder) or not os.path.isdir(folder):
            found.strays.append(folder)
            continue
        found.drefs.append(DRef(f"dref:{name}"))
        try:
            inner = sorted(os.listdir(folder))
        except FileNotFoundError:
            found.drefs.pop()  # it was removed just now
            continue
        for entry in inner:
            if isrref(f"rref:{entry}-{name}"):
                found.rrefs.append(RRef(f"rref:{entry}-{name}"))
            elif entry != CONFIG_FILE:
                found.strays.append(f"{folder}/{entry}")
    return found


def in_parallel(work: Callable[[T], R], items: Iterable[T], jobs: int) -> Iterator[R]:
    """Yield ``work(item)`` of each item, in threads, in the order of the items; few are held at a time.

    Hashing lets other threads run meanwhile. When the caller stops, what has begun is waited for and the rest is not begun.
    """
    waiting: list[Future[R]] = []
    with ThreadPoolExecutor(jobs, thread_name_prefix="pylightnix-hash") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 4 * jobs:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()
