"""The product with one thing taken out, so that the tests can be seen to find what is missing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, Optional


def _no_sync() -> None:
    """What is acknowledged was never flushed."""
    from pylightnix.store import commit

    vars(commit).update(sync_file_system=lambda *_: None, sync_trees=lambda *_: None)


def _late_sync() -> None:
    """What is acknowledged is flushed after the index says so."""
    from pylightnix.store.commit import Batch

    sync, flush = Batch._sync, Batch.flush
    waiting: list[Callable[[], None]] = []

    def late(self: Batch, *batch: Any) -> None:
        waiting.append(lambda: sync(self, *batch))

    def flushed(self: Batch, *arguments: Any) -> None:
        flush(self, *arguments)
        while waiting:
            waiting.pop()()

    Batch._sync, Batch.flush = late, flushed  # type: ignore[method-assign, assignment]


def _lazy_index() -> None:
    """The index is not flushed when it says that something is valid."""
    from pylightnix.store.index import Index

    transaction = Index.transaction
    Index.transaction = lambda self, durable: transaction(self, durable=False)  # type: ignore[method-assign, misc]


def _no_boundary() -> None:
    """A task in a shared nursery raises what it will."""
    from pylightnixd import boundary

    async def bare(what: str, task: Callable[[], Awaitable[object]]) -> None:
        await task()

    vars(boundary)["guarded"] = bare
    boundary.contained.__exit__ = lambda *_: False  # type: ignore[method-assign]


def _unbounded_wait() -> None:
    """A worker may take as long as it likes to begin a build."""
    from pylightnixd import worker_builds

    vars(worker_builds).update(FORK_SECONDS=float("inf"))


MUTANTS: Final[dict[str, Callable[[], object]]] = {
    "no-sync": _no_sync,
    "late-sync": _late_sync,
    "lazy-index": _lazy_index,
    "no-boundary": _no_boundary,
    "unbounded-wait": _unbounded_wait,
}


def apply(name: Optional[str]) -> None:
    """Make this process a mutant."""
    if name is not None:
        MUTANTS[name]()
