"""One store, open for one public call: the index, the trees, and what happens between the two."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final, Optional

from pylightnix.context import context_key
from pylightnix.errors import StoreBusy, StoreTooNew
from pylightnix.planner.messages import Candidate
from pylightnix.store.access import check_access, translated_errors, user_name
from pylightnix.store.commit import Attempt, Batch, TakenOutput, place, seal_realization
from pylightnix.store.durability import held_open, sync_files, sync_trees
from pylightnix.store.index import FORMAT, VALID, Index, looked_at
from pylightnix.store.index_file import corrupt_index, has_trees, is_new_index, refuse_lost_index
from pylightnix.store.layout import StoreLayout
from pylightnix.store.locks import LOCK_WAIT_SECONDS, build_key, build_lock, exclusive_lock, shared_lock
from pylightnix.store.owner import Owner, is_dead, leave_heirs, process_owner, wait_for_heirs
from pylightnix.store.presence import is_folder
from pylightnix.store.recovery import recover
from pylightnix.store.room import make_reserve
from pylightnix.store.set_aside import retry_set_aside
from pylightnix.store.trash import empty_trash, has_trash
from pylightnix.types import DRef, RRef

__all__ = ["Store", "another_view", "forget_index", "open_store", "open_store_alone", "prepared_index"]

_MIGRATION_POLL_SECONDS: Final = 0.1
TIDY_SECONDS: Final = 0.05
"""How long a call may go on after its end to empty the trash. What is left is the next call's."""
PREDECESSOR_SECONDS: Final = 10.0
"""How long whoever wants a store alone waits for the workers of one that died there."""


@dataclass(slots=True)
class Store:
    """What one thread of this process may do with a store while it holds the store's lock.

    Made by `open_store` only. Every method translates errors of the system into ours.
    """

    layout: StoreLayout
    index: Index
    owner: Owner
    batch: Batch

    def candidates(self, dref: DRef, context: Mapping[DRef, Sequence[RRef]]) -> list[Candidate]:
        """Return the realizations of `dref` whose direct dependencies are `context`, sorted by reference.

        Those that this process has put in place and not made durable yet are among them, but only while
        they are in its batch: what an interrupt or a failed flush left pending is not offered. A row
        whose folder is gone (removed by hand) is not offered either, so that it is built again, nor one that
        has lost a dynamic dependency.
        """
        return self.candidates_of_many([(dref, context)])[0]

    def candidates_of_many(self, wanted: Sequence[tuple[DRef, Mapping[DRef, Sequence[RRef]]]]) -> list[list[Candidate]]:
        """Return what `candidates` does, of each (derivation, context): for some hundreds at once it is quicker than for each."""
        drefs = wanted[0][0] if len(wanted) == 1 else f"{len(wanted)} derivations"
        with translated_errors(self.layout, f"looking up realizations of {drefs}"):
            keys = [(dref, context_key(context)) for dref, context in wanted]
            found = self.index.candidates_of_many(keys, self.batch.pending)
            return [[candidate for candidate, dynamic in each.items() if self._is_whole(candidate.rref, dynamic)] for each in found]

    def _is_whole(self, rref: RRef, dynamic: Iterable[RRef]) -> bool:
        return is_folder(self.layout.realization(rref)) and all(self._is_there(below) for below in dynamic)

    def _is_there(self, rref: RRef) -> bool:
        known = rref in self.batch.pending or self.index.state_of(rref) == VALID
        return known and is_folder(self.layout.realization(rref))

    @contextmanager
    def build_lock(self, dref: DRef, context: Mapping[DRef, Sequence[RRef]], on_wait: Callable[[], None]) -> Iterator[bool]:
        """Be the only process that builds (dref, context); yields whether another had to be waited for.

        What another put in place and did not make durable yet is made durable here, so that it need not
        be built again, nor waited for while that process builds something long on top of it.
        """
        key = context_key(context)
        with build_lock(self.layout, build_key(dref, key), on_wait) as waited:
            with translated_errors(self.layout, f"adopting realizations of {dref}"):
                self._adopt(dref, key)
            yield waited

    def _adopt(self, dref: DRef, key: str) -> None:
        others = self.index.pending_of_others(dref, key, self.owner.id)
        if not others:
            return
        if any(is_dead(self.layout, owner) for _, owner in others):
            recover(self.layout, self.index)
            others = self.index.pending_of_others(dref, key, self.owner.id)
        rrefs = self.index.pending_below([rref for rref, _ in others])
        # Whoever has the build lock finds everything in place that was entered under it, and below it.
        if rrefs and all(is_folder(self.layout.realization(rref)) for rref in rrefs):
            for rref in rrefs:
                seal_realization(self.layout.realization(rref))  # its builder may have been killed just before it did
            # By file, for this process was not there to be told what was lost when they were written.
            sync_trees([self.layout.realization(rref) for rref in rrefs], self.layout.storage)
            sync_files(list(map(self.layout.provenance, rrefs)))
            with self.index.transaction(durable=True):
                self.index.make_valid(rrefs)

    def place(
        self,
        dref: DRef,
        context: Mapping[DRef, Sequence[RRef]],
        outputs: Sequence[TakenOutput],
        *,
        started: float,
        stopped: float,
        dynamic: Optional[Mapping[DRef, Sequence[RRef]]] = None,
        realizer_digest: Optional[str] = None,
        manifest: Optional[str] = None,
        host: Optional[str] = None,
        build: Optional[str] = None,
    ) -> list[RRef]:
        """Put the outputs of one attempt in place. The caller holds the build lock.

        They are not durable before `flush`, and nobody may be told of them before that. `dynamic` is what the
        realizer has realized while it ran; `manifest` says what the digest covers, as JSON; `host` is where they were
        made, None for here; `build` is the name of the daemon's build.
        """
        attempt = Attempt(
            dref=dref,
            context={d: sorted(rrefs) for d, rrefs in context.items()},
            outputs=tuple(outputs),
            started=started,
            stopped=stopped,
            builder=_builder(os.geteuid()),
            host=os.uname().nodename if host is None else host,
            dynamic={d: sorted(rrefs) for d, rrefs in (dynamic or {}).items()},
            realizer_digest=realizer_digest,
            manifest=manifest,
            build=build,
            uid=os.geteuid(),
        )
        with translated_errors(self.layout, f"putting the outputs of {dref} in place"):
            return place(self.layout, self.index, self.owner, self.batch, attempt)

    def flush_if_due(self) -> None:
        """Make durable what is in place, if much is at stake."""
        if self.batch.is_due():
            self.flush()

    def flush(self) -> None:
        """Make durable what this process has put in place; then, and only then, it may be told of.

        Raises:
            StoreError: that failed, and what was not durable is gone.
        """
        self.batch.flush(self.index, self.owner)

    def lost_among(self, rrefs: Iterable[RRef]) -> set[RRef]:
        """Return which of `rrefs` are not valid realizations, after a flush failed."""
        with translated_errors(self.layout, "looking for what a failed commit lost"):
            return {rref for rref in rrefs if self.index.state_of(rref) != VALID}


@functools.cache
def _builder(uid: int) -> str:
    return user_name(uid)


# --- opening ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Cached:
    index: Index
    inode: tuple[int, int]


class _PerThread(threading.local):
    def __init__(self) -> None:
        self.indexes: dict[str, _Cached] = {}


_thread = _PerThread()
_retried: set[str] = set()
"""State folders of the stores in which this process has tried again to remove what was set aside."""
_batches: dict[str, Batch] = {}


def _forget_after_fork() -> None:
    global _thread  # noqa: PLW0603  # state of the process, which is a new one
    _thread = _PerThread()
    _retried.clear()
    _batches.clear()


os.register_at_fork(after_in_child=_forget_after_fork)


def _open_index(layout: StoreLayout) -> Index:
    """Return this thread's connection to the index; an empty file is made if the store is new.

    Raises:
        StoreCorrupt: the index is lost or damaged.
    """
    cached = _thread.indexes.get(layout.index)
    if cached is not None:
        try:
            info = os.stat(layout.index)
        except FileNotFoundError:
            info = None
        if info is not None and cached.inode == (info.st_dev, info.st_ino) and info.st_size:
            return cached.index
    with looked_at(layout.index) as may_open:
        is_new = is_new_index(layout, may_open)
    if cached is not None:  # only now, for closing it removes what log there is
        cached.index.close()
        del _thread.indexes[layout.index]
    with looked_at(layout.index) as may_open:
        if may_open:
            flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if is_new else 0)
            os.close(os.open(layout.index, flags, 0o600))
    info = os.stat(layout.index)
    index = Index(layout.index)
    _thread.indexes[layout.index] = _Cached(index, (info.st_dev, info.st_ino))
    return index


def _ready_index(layout: StoreLayout) -> Optional[Index]:
    index = _open_index(layout)
    return index if _format(layout, index) == FORMAT else None


def _format(layout: StoreLayout, index: Index) -> int:
    """Return the format of an index that is one, FORMAT at most.

    Raises:
        StoreTooNew: it is of a later version.
        StoreCorrupt: it is another database, or one without content beside trees.
    """
    found = index.format()
    if found == FORMAT and index.is_known:
        return found
    if not index.is_ours():
        raise corrupt_index(layout, "it is a database of another program")
    if found > FORMAT:
        raise StoreTooNew(layout.state, found, FORMAT)
    if found == 0 and has_trees(layout) and index.format() == 0:
        raise refuse_lost_index(layout, "a database without content")
    index.is_known = found == FORMAT
    return found


def prepared_index(layout: StoreLayout) -> Index:
    """Return this thread's connection to the index, in its newest format. The caller is alone in the store.

    Raises:
        StoreTooNew, StoreCorrupt: it cannot be used.
    """
    index = _open_index(layout)
    _format(layout, index)
    index.migrate()
    return index


def forget_index(layout: StoreLayout) -> None:
    """Close this thread's connection to the index, because another file takes its place."""
    cached = _thread.indexes.pop(layout.index, None)
    if cached is not None:
        cached.index.close()


def _migrate(layout: StoreLayout, deadline: float) -> None:
    try:
        with exclusive_lock(layout, "migration", _MIGRATION_POLL_SECONDS):
            prepared_index(layout)
    except StoreBusy:
        # Another process may have migrated it meanwhile, and be at work already.
        if time.monotonic() >= deadline:
            raise


@contextmanager
def open_store(layout: StoreLayout) -> Iterator[Store]:
    """Open a store for one public call: lock it shared, and clean up after the dead.

    Raises:
        InvalidStorage: there is none.
        StoreForeign, StoreReadOnly, StoreBusy, StoreTooNew, StoreCorrupt, StoreFull, StoreIOError.
    """
    check_access(layout)
    deadline = time.monotonic() + LOCK_WAIT_SECONDS
    while True:
        with shared_lock(layout) as outermost:
            with translated_errors(layout, "opening the store"):
                index = _ready_index(layout)
            if index is not None:
                with _disk(layout):
                    yield _opened(layout, index, outermost)
        if index is not None:
            if outermost:
                _tidy(layout)
            return
        with translated_errors(layout, "bringing the index to its newest format"):
            _migrate(layout, deadline)


def _tidy(layout: StoreLayout) -> None:
    """Unlink some of what is in the trash, after a call and without its lock; once a process, try what could not be removed before."""
    if has_trash(layout):
        empty_trash(layout, TIDY_SECONDS)
    if layout.state not in _retried:
        _retried.add(layout.state)
        retry_set_aside(layout, time.monotonic() + TIDY_SECONDS)
        make_reserve(layout)


@contextmanager
def open_store_alone(
    layout: StoreLayout, role: str, socket: Optional[str] = None, wait_seconds: float = LOCK_WAIT_SECONDS
) -> Iterator[Store]:
    """Open a store for as long as the block runs, and keep every other process out of it.

    Args:
        layout: the store.
        role: who is asking, for those who find it locked.
        socket: where they may connect instead, if this process serves the store.
        wait_seconds: how long to wait for others that work in it.

    Raises:
        What `open_store` raises.
    """
    check_access(layout)
    with exclusive_lock(layout, role, wait_seconds, socket):
        with translated_errors(layout, "opening the store"):
            index = prepared_index(layout)
            wait_for_heirs(layout, PREDECESSOR_SECONDS)
        with _disk(layout):
            store = _opened(layout, index, outermost=True)
            if socket is not None:
                leave_heirs(store.owner)  # who serves it has workers
            yield store


@contextmanager
def _disk(layout: StoreLayout) -> Iterator[None]:
    """Have errors of the store's disk told to this process from now on."""
    with ExitStack() as stack:
        with translated_errors(layout, "opening the store"):
            stack.enter_context(held_open(layout.storage))
        yield


def another_view(store: Store) -> Store:
    """Return the same store over a connection of its own, for work beside that of `store`.

    A connection serves one transaction at a time; what is put in place through either is one batch.
    """
    with translated_errors(store.layout, "opening its index"):
        return Store(store.layout, Index(store.layout.index), store.owner, store.batch)


def _opened(layout: StoreLayout, index: Index, outermost: bool) -> Store:
    with translated_errors(layout, "opening the store"):
        owner = process_owner(layout)
        batch = _batches.setdefault(layout.state, Batch(layout))
        if outermost:
            recover(layout, index)
    return Store(layout, index, owner, batch)
