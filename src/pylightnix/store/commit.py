"""From outputs in a build folder to acknowledged realizations, in the one order that loses nothing.

1. every process of the build is dead (the caller's business),
2. the trees are taken over: modes, hash, in `tmp/`,
3. *pending* rows are committed,
4. the trees are renamed into place; a target without a valid row is debris and goes to the trash first,
5. dependents may start,
6. one sync covers data and names of the batch,
7. *valid* rows are committed, durably,
8. whoever asked is told.

A crash before 7 leaves rows and trees that the next start throws away; after 7 nothing is lost, not
even by a power cut. Steps 6 and 7 are shared by a batch of builds. All outputs of one attempt are one
unit: they become pending, and valid, in one transaction.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NoReturn, Optional

from pylightnix.context import context_file_text, context_key, realization_hash
from pylightnix.errors import MissingDerivation, StoreError, StoreIOError
from pylightnix.refs import mkrref, undref
from pylightnix.store.durability import Durability, sync_file_system, sync_files, sync_trees
from pylightnix.store.faults import reach
from pylightnix.store.index import VALID, Index, NewRealization
from pylightnix.store.layout import CONTEXT_FILE, StoreLayout
from pylightnix.store.owner import Owner
from pylightnix.store.presence import is_folder, is_there
from pylightnix.store.provenance import Provenance, drop_provenance, write_provenance
from pylightnix.store.removal import make_movable
from pylightnix.store.takeover import seal_file, seal_folder
from pylightnix.store.trash import to_trash
from pylightnix.types import DRef, RRef

__all__ = ["Attempt", "Batch", "TakenOutput", "place", "seal_realization"]

_log = logging.getLogger("pylightnix")

BATCH_SECONDS: Final = 0.05
"""How much building may be at stake in a batch: what took longer is committed at once."""
BATCH_COUNT: Final = 64


@dataclass(frozen=True, slots=True)
class TakenOutput:
    """One output folder after take-over."""

    path: str
    tree_hash: str
    nar_bytes: int
    files: int


@dataclass(frozen=True, slots=True)
class Attempt:
    """One finished run of a realizer."""

    dref: DRef
    context: Mapping[DRef, Sequence[RRef]]
    outputs: tuple[TakenOutput, ...]
    started: float
    """UTC seconds since the epoch."""
    stopped: float
    builder: str
    host: str
    realizer_digest: Optional[str]
    dynamic: Mapping[DRef, Sequence[RRef]] = field(default_factory=dict)
    """What the realizer has realized while it ran."""
    manifest: Optional[str] = None
    """What that digest covers, as JSON; None if that is not known, or recorded already."""
    build: Optional[str] = None
    """The name of the daemon's build."""
    uid: Optional[int] = None
    """The user id of `builder`; None if it came from elsewhere."""


@dataclass(slots=True)
class Batch:
    """What one process has put in place and not made durable yet, in one store. Shared by its threads."""

    layout: StoreLayout
    pending: dict[RRef, int] = field(default_factory=dict)
    """Realization -> number of its files."""
    at_stake_seconds: float = 0.0
    lock: threading.RLock = field(default_factory=threading.RLock)
    """Held while anything here changes."""
    flushing: threading.RLock = field(default_factory=threading.RLock)
    """Held for a whole flush: who waits for it finds what it had put in place durable, or lost."""
    durability: Durability = field(default_factory=Durability)
    lost: Optional[StoreError] = None
    """Why the last flush failed; what was in it is gone."""
    losses: int = 0
    """How many flushes failed, so that a thread can tell that its own realizations are gone."""

    def is_due(self) -> bool:
        """Tell whether too much is at stake to go on without a flush."""
        return self.at_stake_seconds >= BATCH_SECONDS or len(self.pending) >= BATCH_COUNT

    def flush(self, index: Index, owner: Owner) -> None:
        """Make everything durable and valid that was in place when this was called.

        Raises:
            StoreError: it could not be done; nothing that was pending is in the store any more, what was
                put in place meanwhile included, for it may rest on what was lost.
        """
        with self.flushing:
            # What is put in place while this batch is on its way to the disk belongs to the next one.
            with self.lock:
                batch = dict(self.pending)
                self.at_stake_seconds = 0.0
            if not batch:
                return
            try:
                self._sync(batch)
                reach("before_valid")
                with index.transaction(durable=True):
                    valid = index.make_valid(batch)
                if valid != len(batch):
                    raise AssertionError(f"BUG: {len(batch) - valid} pending rows vanished under their owner")
                reach("after_valid")
            except Exception as error:  # noqa: BLE001  # in whatever way it failed, somebody must be told
                with self.lock:
                    self._lose(index, owner, error)
            with self.lock:
                for rref in batch:
                    self.pending.pop(rref, None)

    def _sync(self, batch: Mapping[RRef, int]) -> None:
        trees = [self.layout.realization(rref) for rref in batch]
        started = time.monotonic()
        by_file = self.durability.by_file(sum(batch.values()), started)
        reach("before_sync")
        if by_file:
            sync_trees(trees, self.layout.storage)
            sync_files(list(map(self.layout.provenance, batch)))
        else:
            sync_file_system(self.layout.storage)
        reach("after_sync")
        now = time.monotonic()
        self.durability.observe(by_file, now - started, now)

    def _lose(self, index: Index, owner: Owner, error: Exception) -> NoReturn:
        from pylightnix.store.access import store_error
        from pylightnix.store.recovery import finish_deletions

        doing = "making realizations durable"
        if isinstance(error, (OSError, sqlite3.Error)):
            lost = store_error(self.layout, doing, error)
        elif isinstance(error, StoreError):
            lost = error
        else:
            _log.error("BUG: %s failed", doing, exc_info=error)
            lost = StoreError(f"{doing} in {self.layout.state} failed, which is a bug ({type(error).__name__}: {error}); see the log")
        self.lost, self.losses = lost, self.losses + 1
        self.pending.clear()
        self.at_stake_seconds = 0.0
        try:
            with index.transaction(durable=False):
                rows = index.mark_lost(owner.id)
            finish_deletions(self.layout, index, rows)
        except Exception:  # noqa: BLE001  # the first error is the one that counts
            # The disk is in trouble: the rows stay as they are, invisible to others, for the next start.
            _log.exception("could not clean up after a failed commit; the next start will")
        raise lost from error


def place(layout: StoreLayout, index: Index, owner: Owner, batch: Batch, attempt: Attempt) -> list[RRef]:
    """Put the outputs of one attempt in place (steps 3 and 4) and into the batch.

    The caller holds the build lock of (derivation, context). Returns the references of the outputs,
    distinct, in order; those that the store had already keep the tree that is there.

    Raises:
        StoreIOError, StoreFull, MissingDerivation: nothing of the attempt is in the store.
    """
    key = context_key(attempt.context)
    text = context_file_text(attempt.context, attempt.dynamic).encode("utf-8")
    rrefs = [_reference(attempt, output) for output in attempt.outputs]
    new = dict(zip(rrefs, attempt.outputs, strict=True))
    if len(new) < len(rrefs):
        _log.warning("%s: %d of %d outputs coincide", attempt.dref, len(rrefs) - len(new), len(rrefs))
    for output in new.values():
        _write_metadata(output.path, CONTEXT_FILE, text)
        reach("context_written")
    with batch.lock:
        with index.transaction(durable=False):
            _check_references(layout, index, batch, attempt)
            if attempt.realizer_digest is not None and attempt.manifest is not None:
                index.note_code(attempt.realizer_digest, attempt.manifest)
            for rref in list(new):
                if _is_kept(layout, index, owner, batch, rref):
                    index.note_start(rref, attempt.started, attempt.build)
                    del new[rref]
                else:
                    index.enter_pending(_row(attempt, key, rref, new[rref]), owner.id)
            reach("before_pending")
        reach("after_pending")
        try:
            for rref, output in new.items():
                write_provenance(layout, rref, _provenance(attempt))
                _rename(layout, attempt.dref, output.path, rref)
        except BaseException:
            _abandon(layout, index, owner, new)
            raise
        batch.pending.update({rref: output.files + 4 for rref, output in new.items()})
        batch.at_stake_seconds += attempt.stopped - attempt.started
    return list(dict.fromkeys(rrefs))


def _check_references(layout: StoreLayout, index: Index, batch: Batch, attempt: Attempt) -> None:
    """Refuse what was built on realizations that a failed commit, of another thread perhaps, has lost since."""
    for rrefs in [*attempt.context.values(), *attempt.dynamic.values()]:
        for rref in rrefs:
            if index.state_of(rref) != VALID and rref not in batch.pending:
                raise batch.lost or StoreIOError(
                    layout.realization(rref), f"building {attempt.dref} on it", "it is not in the store any more"
                )


def _abandon(layout: StoreLayout, index: Index, owner: Owner, rrefs: Iterable[RRef]) -> None:
    """Take an attempt back whose outputs could not all be renamed. The caller holds the build lock."""
    with index.transaction(durable=False):
        for rref in rrefs:
            index.demote(rref, owner.id)
    for rref in rrefs:
        to_trash(layout, layout.realization(rref))
        drop_provenance(layout, rref)
    with index.transaction(durable=False):
        for rref in rrefs:
            index.forget_deleted(rref)


def _reference(attempt: Attempt, output: TakenOutput) -> RRef:
    dhash, name = undref(attempt.dref)
    return mkrref(realization_hash(output.tree_hash, attempt.context, attempt.dynamic), dhash, name)


def _is_kept(layout: StoreLayout, index: Index, owner: Owner, batch: Batch, rref: RRef) -> bool:
    """Tell whether the store has this realization, tree and all."""
    state = index.state_of(rref)
    if state is None or (state != VALID and rref not in batch.pending):
        return False
    if is_folder(layout.realization(rref)):
        return True
    _log.warning("%s is in the index but its folder is gone; the new build takes its place", rref)
    index.demote(rref, owner.id)
    return False


def _row(attempt: Attempt, key: str, rref: RRef, output: TakenOutput) -> NewRealization:
    return NewRealization(
        rref=rref,
        dref=attempt.dref,
        context_key=key,
        tree_hash=output.tree_hash,
        nar_bytes=output.nar_bytes,
        started=attempt.started,
        stopped=attempt.stopped,
        builder=attempt.builder,
        host=attempt.host,
        realizer_digest=attempt.realizer_digest,
        references=tuple(rref for rrefs in attempt.context.values() for rref in rrefs),
        dynamic_references=tuple(rref for rrefs in attempt.dynamic.values() for rref in rrefs),
        build=attempt.build,
    )


def _provenance(attempt: Attempt) -> Provenance:
    return Provenance(
        uid=attempt.uid,
        builder=attempt.builder,
        host=attempt.host,
        started=attempt.started,
        stopped=attempt.stopped,
        realizer_digest=attempt.realizer_digest,
        build=attempt.build,
    )


def _write_metadata(folder: str, name: str, text: bytes) -> None:
    fd = os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o444)
    try:
        view = memoryview(text)
        while view:  # a disk that is nearly full takes a part
            view = view[os.write(fd, view) :]
        seal_file(fd)
    finally:
        os.close(fd)


def _rename(layout: StoreLayout, dref: DRef, path: str, rref: RRef) -> None:
    target = layout.realization(rref)
    if is_there(target):
        make_movable(target)
        to_trash(layout, target)
        reach("debris_trashed")
    reach("before_rename")
    try:
        os.rename(path, target)
    except FileNotFoundError as error:
        if not is_folder(os.path.dirname(target)):
            raise MissingDerivation(dref, os.path.dirname(target)) from error
        raise StoreIOError(path, "renaming an output into the store", "it is gone") from error
    # Only now, for a folder that one may not write cannot be renamed to another parent.
    seal_realization(target)
    reach("after_rename")


def seal_realization(path: str) -> None:
    """Make the top folder of a realization read-only, with the time of all files of the store."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        seal_folder(fd)
    finally:
        os.close(fd)
