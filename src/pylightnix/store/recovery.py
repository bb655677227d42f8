"""Cleaning up after processes that died: the normal start-up, not a special mode.

It looks only at what was in flight, however large the store: owners whose lock is free, and
rows that are pending or half-deleted and whose owner is gone. What such an owner put in place was
never acknowledged: it goes to the trash, and then its row goes. A row is not touched while somebody
builds its (derivation, context); that builder, or the next recovery, deals with it.

Any number of processes may recover at once; whoever has an owner's lock does it. Nothing is unlinked here, for the
caller has the store's lock: whatever goes is renamed to the trash, which is emptied later. What cannot even be renamed is
named once and left.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from pylightnix.refs import rref2dref
from pylightnix.store.faults import reach
from pylightnix.store.index import Index
from pylightnix.store.layout import StoreLayout
from pylightnix.store.locks import build_key, close_lock_file, try_build_lock
from pylightnix.store.owner import dead_owners, is_dead, nobodys_folders, process_owner
from pylightnix.store.provenance import drop_provenance
from pylightnix.store.trash import put_away
from pylightnix.types import RRef

__all__ = ["finish_deletions", "recover"]


def recover(layout: StoreLayout, index: Index) -> None:
    """Throw away what the dead left unacknowledged."""
    for name, fd in dead_owners(layout):
        try:
            _recover_owner(layout, index, name)
            put_away(layout, f"{layout.tmp}/{name}")
            reach("owner_swept")
            os.unlink(f"{layout.owners}/{name}")  # last: whoever finds it after a crash does all of this again
        finally:
            close_lock_file(fd)
    for folder in nobodys_folders(layout):
        put_away(layout, folder)
    mine = process_owner(layout).id
    for owner in index.owners_in_flight():
        # Left over by an earlier recovery, because somebody was building them just then.
        if owner != mine and is_dead(layout, owner):
            _recover_owner(layout, index, owner)


def _recover_owner(layout: StoreLayout, index: Index, owner: str) -> None:
    with index.transaction(durable=False):
        rows = index.mark_lost(owner)
    if rows:
        reach("recovery_marked")
        finish_deletions(layout, index, rows)


def finish_deletions(layout: StoreLayout, index: Index, rows: Sequence[tuple[RRef, str]]) -> None:
    """Move the trees of deleted rows to the trash and drop the rows.

    Dependents first would be nicer to readers; nobody reads what is deleted, so any order will do.
    """
    for rref, key in rows:
        fd = try_build_lock(layout, build_key(rref2dref(rref), key))
        if fd is None:
            continue
        try:
            # Between the mark and the lock a builder may have made this very realization anew.
            if index.is_deleted(rref):
                if not put_away(layout, layout.realization(rref)):
                    continue  # its row says whose business it is, until it can be moved
                drop_provenance(layout, rref)
                reach("recovery_trashed")
                with index.transaction(durable=False):
                    index.forget_deleted(rref)
                reach("recovery_forgotten")
        finally:
            close_lock_file(fd)
