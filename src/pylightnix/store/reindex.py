"""Making the index of a store anew from its trees, their `context.json` and what `provenance/` says of them.

1. The store's lock is held exclusively from beginning to end.
2. An index that is sound is recovered first, as at any start: what was pending or half-deleted goes.
3. The new index grows in a file of its own beside the old one. What is in it is durable after each batch, so a run that
   was interrupted goes on where it was.
4. Every tree is hashed. One whose hash does not fit its name is not entered, and is named in the report; it stays where it is.
5. What the trees do not know (later builds of the same realization, what digests cover, who built what has no
   provenance) is taken from the old index and from its snapshot, as far as they can be read.
6. The old index is moved aside, the new one into its place. Between the two there is none, which is refused
   beside trees with the advice to come here, and that finishes it.

A new index that says what the old one says is dropped again, so doing it twice changes nothing.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Optional

from pylightnix.context import context_key
from pylightnix.errors import StoreCorrupt
from pylightnix.refs import rref2dref
from pylightnix.store.access import check_access, translated_errors, user_name
from pylightnix.store.durability import sync_path
from pylightnix.store.faults import reach
from pylightnix.store.index import Index, NewRealization
from pylightnix.store.inspection import Inspected, inspect
from pylightnix.store.layout import START_FILE, STOP_FILE, StoreLayout
from pylightnix.store.locks import LOCK_WAIT_SECONDS, StoreOwned, exclusive_lock, holders
from pylightnix.store.owner import wait_for_heirs
from pylightnix.store.ownership import daemon_socket
from pylightnix.store.recovery import recover
from pylightnix.store.salvage import Salvaged, SalvagedRow, salvage
from pylightnix.store.store import PREDECESSOR_SECONDS, forget_index, prepared_index
from pylightnix.store.trees import in_parallel, stored
from pylightnix.timestamps import parsetime
from pylightnix.types import RRef

__all__ = ["Reindexed", "reindex"]

_BATCH: Final = 256
_OWNER: Final = "reindex"
_KEPT_ASIDE: Final = 3
"""How many old indexes are kept."""
_SIDES: Final = ("", "-wal", "-shm")
_ROWS: Final = (
    (
        "SELECT rref, dref, context_key, tree_hash, nar_bytes, started, stopped, builder, host, realizer_digest, build"
        " FROM realization WHERE state = 1 ORDER BY rref"
    ),
    "SELECT rref, referred, dynamic FROM reference JOIN realization ON id = referrer WHERE state = 1 ORDER BY rref, referred",
    "SELECT digest, manifest FROM code ORDER BY digest",
)


@dataclass(slots=True)
class Reindexed:
    """What a run did."""

    entered: list[RRef] = field(default_factory=list)
    """Realizations whose tree fits their name."""
    left_out: dict[RRef, str] = field(default_factory=dict)
    """Realizations whose tree does not -> what is wrong."""
    incomplete: dict[RRef, list[RRef]] = field(default_factory=dict)
    """Realizations that are entered -> what they were made from and is not."""
    unknown: list[RRef] = field(default_factory=list)
    """Realizations that are entered, and of which neither their provenance nor an index says who built them."""
    dropped: list[RRef] = field(default_factory=list)
    """Realizations that the old index had as valid, as far as it could be read, and whose folder is gone."""
    resumed: int = 0
    """How many were hashed by an earlier run."""
    old_index: Optional[str] = None
    """Where the old index lies now; None if there was none, or if it was right."""
    changed: bool = True
    """Whether the index is another one now."""


def reindex(layout: StoreLayout, jobs: int, told: Callable[[int, int], None] = lambda done, total: None) -> Reindexed:
    """Make the index of a store anew.

    Args:
        layout: the store.
        jobs: how many trees to hash at a time.
        told: called with how many realizations are done, and how many there are.

    Raises:
        StoreOwned: a daemon has the store.
        StoreBusy: others work in it.
        StoreTooNew: its index is of a later version.
        StoreFull, StoreIOError: the new index cannot be written. Calling this again goes on.
    """
    check_access(layout)
    socket = daemon_socket(layout)
    if socket is not None:
        raise StoreOwned(layout.state, holders(layout), socket, "making the index anew")
    with exclusive_lock(layout, "reindexing", LOCK_WAIT_SECONDS), translated_errors(layout, "making the index anew"):
        wait_for_heirs(layout, PREDECESSOR_SECONDS)
        return _Run(layout, jobs, told).run()


class _Run:
    def __init__(self, layout: StoreLayout, jobs: int, told: Callable[[int, int], None]) -> None:
        self.layout, self.jobs, self.told = layout, jobs, told
        self.draft = f"{layout.index}.new"
        self.report = Reindexed()

    def run(self) -> Reindexed:
        before = self._recovered()
        forget_index(self.layout)  # or closing it later would write beside what has been moved
        old, snapshot = salvage(self.layout.index), salvage(self.layout.snapshot)
        with self._drafted() as draft:
            self._fill(draft, old, snapshot)
            after = _content(draft)
        self._judge(old)
        if before is not None and before == after:
            self.report.changed = False
            _remove(self.draft)
        else:
            self._swap()
        return self.report

    def _recovered(self) -> Optional[list[list[Any]]]:
        """Return the content of the old index after a recovery, if it is a sound one."""
        try:
            index = prepared_index(self.layout)
            if index.fault() is not None:
                return None
            recover(self.layout, index)
            return _content(index)
        except (StoreCorrupt, sqlite3.DatabaseError):
            return None

    @contextmanager
    def _drafted(self) -> Iterator[Index]:
        """Open the new index, with what an earlier run has put in it."""
        try:
            index = Index(self.draft)
            index.migrate()
            if index.fault() is not None:
                raise sqlite3.DatabaseError("damaged")
        except sqlite3.DatabaseError:
            _remove(self.draft)
            index = Index(self.draft)
            index.migrate()
        os.chmod(self.draft, 0o600)
        try:
            yield index
            index.checkpoint()
        finally:
            index.close()

    def _fill(self, draft: Index, old: Salvaged, snapshot: Salvaged) -> None:
        there = stored(self.layout).rrefs
        known = set(draft.valid_rrefs())
        self.report.resumed = len(known & set(there))
        with draft.transaction(durable=False):
            gone = known - set(there)
            draft.delete(sorted(gone), _OWNER)
            for rref in gone:
                draft.forget_deleted(rref)
            for codes in (snapshot.codes, old.codes):
                for digest, manifest in codes.items():
                    draft.note_code(digest, manifest)
        batch: list[NewRealization] = []
        self.told(self.report.resumed, len(there))
        for done, found in enumerate(
            in_parallel(lambda rref: inspect(self.layout, rref), (r for r in there if r not in known), self.jobs), 1
        ):
            if found.is_whole:
                batch.append(self._row(found, old.rows, snapshot.rows))
            else:
                self.report.left_out[found.rref] = found.problem
            if len(batch) >= _BATCH:
                _enter(draft, batch)
            self.told(self.report.resumed + done, len(there))
        _enter(draft, batch)
        self.report.entered = draft.valid_rrefs()
        self.report.unknown.sort()
        entered = set(self.report.entered)
        for rref, referred in draft.all_references():
            if referred not in entered:
                self.report.incomplete.setdefault(rref, []).append(referred)

    def _row(self, found: Inspected, *sources: dict[RRef, SalvagedRow]) -> NewRealization:
        made = self._made(found, *sources)
        if found.digest is None:
            raise AssertionError("BUG: whole, and not hashed")
        return NewRealization(
            rref=found.rref,
            dref=rref2dref(found.rref),
            context_key=context_key(found.deps),
            tree_hash=found.digest.sha256,
            nar_bytes=found.digest.nar_bytes,
            started=made.started,
            stopped=made.stopped,
            builder=made.builder,
            host=made.host,
            realizer_digest=made.realizer_digest,
            references=tuple(sorted({rref for rrefs in found.deps.values() for rref in rrefs})),
            dynamic_references=tuple(sorted({rref for rrefs in found.dynamic.values() for rref in rrefs})),
            build=made.build,
        )

    def _made(self, found: Inspected, *sources: dict[RRef, SalvagedRow]) -> SalvagedRow:
        """Return who made a realization: what speaks of its latest build counts, an index before the tree."""
        rows = [rows[found.rref] for rows in sources if found.rref in rows]
        said = found.provenance
        if said is not None:
            rows.append(SalvagedRow(said.started, said.stopped, said.builder, said.host, said.realizer_digest, said.build))
        if rows:
            return max(rows, key=lambda row: row.started)  # the first of those that are equal
        self.report.unknown.append(found.rref)
        folder = self.layout.realization(found.rref)
        info = os.stat(folder)
        started = _stamp(folder, START_FILE, info.st_ctime)
        return SalvagedRow(started, max(started, _stamp(folder, STOP_FILE, info.st_ctime)), user_name(info.st_uid), "unknown", None, None)

    def _judge(self, old: Salvaged) -> None:
        there = {*self.report.entered, *self.report.left_out}
        self.report.dropped = sorted(rref for rref in old.rows if rref not in there)

    def _swap(self) -> None:
        """Put the new index in the place of the old one."""
        state, name = os.path.split(self.layout.index)
        if os.path.lexists(self.layout.index):
            aside = f"{self.layout.index}.old-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
            while os.path.lexists(aside):
                aside += "x"
            os.rename(self.layout.index, aside)
            if os.path.lexists(f"{self.layout.index}-wal"):
                os.rename(f"{self.layout.index}-wal", f"{aside}-wal")
            self.report.old_index = aside
        for side in _SIDES[1:]:  # of an index that is gone; they are not this one's
            _unlink(self.layout.index + side)
        sync_path(self.draft)
        reach("index_moved_aside")
        os.rename(self.draft, self.layout.index)
        sync_path(state)
        kept = sorted({entry.removesuffix("-wal").removesuffix("-shm") for entry in os.listdir(state) if entry.startswith(f"{name}.old-")})
        for entry in kept[:-_KEPT_ASIDE]:
            _remove(f"{state}/{entry}")


def _stamp(folder: str, name: str, default: float) -> float:
    try:
        with open(f"{folder}/{name}", encoding="utf-8") as file:
            return parsetime(file.read()) or default
    except (OSError, ValueError):
        return default


def _enter(draft: Index, batch: list[NewRealization]) -> None:
    with draft.transaction(durable=True):
        for new in batch:
            draft.enter_pending(new, _OWNER)
        draft.make_valid([new.rref for new in batch])
    batch.clear()
    reach("reindex_batch")


def _content(index: Index) -> list[list[Any]]:
    """Return all that an index says, but for its numbers."""
    return [index.rows(query) for query in _ROWS]


def _remove(path: str) -> None:
    for side in _SIDES:
        _unlink(path + side)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
