"""Mending damaged realizations of one store: what can be put right in place is, the rest is moved to `quarantine/`.

Nobody is believed: each realization is hashed again first, and one that is whole stays. What is moved aside is never
deleted. The order of that loses nothing:

1. the tree is renamed into `quarantine/`, and the names are made durable;
2. its row is dropped, durably.

A crash between the two leaves a valid row without a folder, which no matcher is offered, and which a later run drops.
Whoever mends is alone in the store, or has made sure that nobody builds with the derivations concerned. Must not know
what needs a realization, nor how it is built again.
"""

from __future__ import annotations

import enum
import errno
import os
import secrets
import stat
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final, Optional, TypeVar

from pylightnix.context import context_file_text
from pylightnix.errors import StoreBusy
from pylightnix.refs import rref2dref, unrref
from pylightnix.store.access import translated_errors
from pylightnix.store.durability import sync_files, sync_path
from pylightnix.store.faults import reach
from pylightnix.store.index import PENDING, VALID
from pylightnix.store.inspection import Damage, Inspected, fits, inspect
from pylightnix.store.layout import CONTEXT_FILE, StoreLayout
from pylightnix.store.locks import StoreOwned
from pylightnix.store.ownership import daemon_socket
from pylightnix.store.provenance import Provenance, drop_provenance, write_provenance
from pylightnix.store.removal import make_movable, open_unlocked, reopen_unlocked
from pylightnix.store.room import make_reserve, with_room
from pylightnix.store.store import Store, open_store_alone
from pylightnix.store.takeover import seal_file, seal_folder
from pylightnix.store.trash import to_trash
from pylightnix.types import DRef, RRef
from pylightnix.walking import walk

__all__ = ["Mended", "Outcome", "mend", "mend_alone"]

T = TypeVar("T")

_PROGRAM_MODE: Final = 0o555


class Outcome(enum.Enum):
    """What became of a realization."""

    whole = "whole"
    """There was nothing to mend."""
    mended = "mended"
    """It is whole again, where it was."""
    quarantined = "quarantined"
    """It was moved aside, and is not in the store any more."""
    dropped = "dropped"
    """Its folder was gone, and so is its row now."""
    busy = "busy"
    """Somebody works with it; nothing was done."""


@dataclass(frozen=True, slots=True)
class Mended:
    """What became of one realization, and why."""

    rref: RRef
    outcome: Outcome
    damage: str = ""
    """What was wrong with it, the name of a `Damage`; empty if nothing was."""
    detail: str = ""
    """What was found; of what is busy, who works with it."""
    moved_to: Optional[str] = None
    """Where what was moved aside lies."""


def mend(store: Store, rrefs: Iterable[RRef], at_work: Mapping[DRef, Sequence[str]]) -> list[Mended]:
    """Mend realizations; what is returned is durable.

    Args:
        store: the store.
        rrefs: which.
        at_work: who works with a derivation just now, and hence with any of its realizations.

    Raises:
        StoreError: the store failed. What was done before is done.
    """
    found = []
    for rref in dict.fromkeys(rrefs):
        with translated_errors(store.layout, f"mending {rref}"):
            found.append(_mend(store, rref, at_work.get(rref2dref(rref), ())))
    make_reserve(store.layout)
    return found


def mend_alone(layout: StoreLayout, rrefs: Collection[RRef]) -> list[Mended]:
    """Do as `mend` in a store that nobody else is to work in meanwhile.

    Raises:
        StoreOwned: a daemon has it.
        StoreBusy: somebody works in it.
    """
    try:
        with ExitStack() as stack:
            store = with_room(layout, lambda: stack.enter_context(open_store_alone(layout, "mending")), early=True)
            store.flush()
            return mend(store, rrefs, {})
    except StoreBusy as error:
        socket = daemon_socket(layout)
        if socket is not None:  # one that came while this was waiting
            raise StoreOwned(layout.state, error.holders, socket) from error
        raise


def _mend(store: Store, rref: RRef, at_work: Sequence[str]) -> Mended:
    found = inspect(store.layout, rref)
    state = store.index.state_of(rref)
    if found.damage is None:
        return Mended(rref, Outcome.whole)
    if at_work or state == PENDING:
        return Mended(rref, Outcome.busy, found.damage.value, ", ".join(at_work) or "a build that is not finished")
    damage, problem = found.damage.value, found.problem
    if _with_room(store.layout, rref, lambda: _mended_in_place(store, found)) and inspect(store.layout, rref).damage is None:
        return Mended(rref, Outcome.mended, damage, problem)
    moved_to = None if found.damage is Damage.missing else _with_room(store.layout, rref, lambda: _move_aside(store.layout, rref))
    reach("quarantined")
    if state is not None:
        _with_room(store.layout, rref, lambda: _drop_row(store, rref))
    drop_provenance(store.layout, rref)
    return Mended(rref, Outcome.dropped if moved_to is None else Outcome.quarantined, damage, problem, moved_to)


def _with_room(layout: StoreLayout, rref: RRef, work: Callable[[], T]) -> T:
    """Do `work`, on a full disk with the reserve."""

    def translated() -> T:
        with translated_errors(layout, f"mending {rref}"):
            return work()

    return with_room(layout, translated, early=True)


def _drop_row(store: Store, rref: RRef) -> None:
    with store.index.transaction(durable=True):
        store.index.demote(rref, store.owner.id)
        store.index.forget_deleted(rref)


# --- in place -----------------------------------------------------------------------------------------


def _mended_in_place(store: Store, found: Inspected) -> bool:
    """Put right what can be, and tell whether anything was tried."""
    if found.damage in (Damage.mode, Damage.unreadable):
        return _seal(store.layout.realization(found.rref))
    if found.damage is Damage.provenance:
        _restore_provenance(store, found.rref)
        return True
    if found.damage in (Damage.context, Damage.tree) and found.digest is not None and store.index.state_of(found.rref) == VALID:
        deps, dynamic = store.index.context_of(found.rref)
        if fits(found.rref, found.digest.sha256, deps, dynamic):
            return _replace_context(store.layout, found.rref, context_file_text(deps, dynamic).encode("utf-8"))
    return False


def _restore_provenance(store: Store, rref: RRef) -> None:
    """Write who built a realization anew, as far as the index knows."""
    info = store.index.info(rref)
    if info is None:
        drop_provenance(store.layout, rref)
        return
    known = Provenance(None, info.builder, info.host, info.started, info.stopped, info.realizer_digest, info.build)
    write_provenance(store.layout, rref, known)
    sync_files([store.layout.provenance(rref)])


def _replace_context(layout: StoreLayout, rref: RRef, content: bytes) -> bool:
    """Write the context of a realization anew, durably."""
    folder, name = layout.realization(rref), CONTEXT_FILE
    folder_fd = open_unlocked(folder, None)
    try:
        if os.path.isdir(f"{folder}/{name}") and not os.path.islink(f"{folder}/{name}"):
            to_trash(layout, f"{folder}/{name}")
        draft = f".mended-{secrets.token_hex(8)}"
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=folder_fd)
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(fd, view) :]
            seal_file(fd)
            os.fsync(fd)
            os.rename(draft, name, src_dir_fd=folder_fd, dst_dir_fd=folder_fd)
        except OSError:
            os.unlink(draft, dir_fd=folder_fd)
            raise
        finally:
            os.close(fd)
        os.fsync(folder_fd)
    finally:
        seal_folder(folder_fd)
        os.close(folder_fd)
    return True


def _seal(path: str) -> bool:
    """Take back from a tree's modes what a store does not give. False if it cannot be done."""
    try:
        os.close(open_unlocked(path, None))
        for folder in walk(path, open_unlocked):
            for name in folder.others:
                _seal_file(folder.fd, name)
            seal_folder(folder.fd)
    except OSError:
        return False
    return True


def _seal_file(folder_fd: int, name: str) -> None:
    path_fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder_fd)
    try:
        info = os.fstat(path_fd)
        if not stat.S_ISREG(info.st_mode):
            return
        fd = reopen_unlocked(path_fd, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            seal_file(fd)
            if info.st_mode & stat.S_IXUSR:
                os.fchmod(fd, _PROGRAM_MODE)
        finally:
            os.close(fd)
    finally:
        os.close(path_fd)


# --- aside --------------------------------------------------------------------------------------------


def _move_aside(layout: StoreLayout, rref: RRef) -> str:
    """Move a realization to the quarantine, durably, and return where it is now."""
    source = layout.realization(rref)
    rhash, dhash, name = unrref(rref)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    own = f"{stamp}-{rhash}-{dhash}-{name}"[:240] + f"-{secrets.token_hex(3)}"
    make_movable(source)
    for folder in layout.quarantine_folders:
        os.makedirs(folder, 0o700, exist_ok=True)
        try:
            os.rename(source, f"{folder}/{own}")
        except OSError as error:
            if error.errno != errno.EXDEV or folder == layout.quarantine_folders[-1]:
                raise
            continue
        sync_path(folder)
        sync_path(os.path.dirname(folder))
        sync_path(os.path.dirname(source))
        return f"{folder}/{own}"
    raise AssertionError("BUG: a store without a quarantine")
