"""Making a realization of a folder that a caller filled, without a realizer. Must not know who filled it, or why."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from pylightnix.attempt import take_outputs
from pylightnix.config import cfgdeps
from pylightnix.context import context_deref
from pylightnix.errors import InvalidOutput, Misuse
from pylightnix.registry import written_config
from pylightnix.store.access import translated_errors
from pylightnix.store.layout import START_FILE, StoreLayout
from pylightnix.store.removal import make_movable
from pylightnix.store.set_aside import discard
from pylightnix.store.store import Store, open_store
from pylightnix.timestamps import parsetime
from pylightnix.types import Context, DRef, RRef, StorageSettings
from pylightnix.workfolder import absolute

__all__ = ["insert_here", "insert_output", "moved_output"]


def insert_output(dref: DRef, context: Context, folder: str, S: StorageSettings | None) -> RRef:
    """Make `folder` a realization of `dref` and return its reference; see `pylightnix.mkrealization`."""
    from pylightnix.remote import insert

    deps = {dep: sorted(context_deref(context, dep)) for dep in cfgdeps(written_config(dref, S))}
    path = absolute(folder)
    if os.path.islink(path) or not os.path.isdir(path):
        raise Misuse(f"mkrealization expects the folder that is to become a realization of {dref}, found none at {path}")
    return insert(dref, deps, path, _start_of(path), S)


def insert_here(layout: StoreLayout, dref: DRef, deps: Mapping[DRef, Sequence[RRef]], path: str, started: float) -> RRef:
    """Make the folder at `path` a realization in this process; return its reference, durable.

    Args:
        layout: the store.
        dref: what it is a realization of.
        deps: which realizations stand for its direct dependencies.
        path: the folder. Where this fails, it is back in its place.
        started: when its making began, UTC seconds since the epoch.
    """
    with open_store(layout) as store:
        with translated_errors(layout, f"making a build folder for {dref}"):
            own = store.owner.make_folder()
        try:
            moved = os.path.join(own, os.path.basename(path))
            with moved_output(dref, path, moved, layout.storage):
                rref = _place(store, dref, {dep: list(rrefs) for dep, rrefs in deps.items()}, own, moved, started)
        finally:
            discard(layout, own)
        store.flush()
        if store.lost_among([rref]):
            raise store.batch.lost or AssertionError(f"BUG: {rref} is not valid after a flush")  # another thread's flush took it along
        return rref


def _place(store: Store, dref: DRef, deps: dict[DRef, list[RRef]], own: str, moved: str, started: float) -> RRef:
    outputs = take_outputs(store.layout, dref, own, [moved])
    with store.build_lock(dref, deps, lambda: None):
        (rref,) = store.place(dref, deps, outputs, started=started, stopped=time.time())
    return rref


@contextmanager
def moved_output(dref: DRef, path: str, target: str, storage: str) -> Iterator[None]:
    """Move a folder to `target` for the block, and back if the block fails while it is still there.

    Raises:
        InvalidOutput: it cannot be moved there.
    """
    _move(storage, dref, path, target)
    try:
        yield
    except BaseException:
        if os.path.isdir(target):
            make_movable(target)
            os.rename(target, path)  # the caller may mend it and try again
        raise


def _move(storage: str, dref: DRef, path: str, target: str) -> None:
    try:
        if os.lstat(path).st_uid == os.geteuid():
            make_movable(path)
        os.rename(path, target)
    except OSError as error:
        if error.errno == errno.EXDEV:
            advice = "make it under fstmpdir(S), for example with tempfile.mkdtemp"
            raise InvalidOutput(dref, path, f"is not on the file system of {storage}", advice) from error
        raise InvalidOutput(dref, path, f"cannot be moved ({error.strerror})", "give a folder of your own") from error


def _start_of(folder: str) -> float:
    """Return when the build of an output began: what its start file says, else now."""
    try:
        with open(os.path.join(folder, START_FILE), encoding="utf-8") as file:
            return parsetime(file.read()) or time.time()
    except (OSError, ValueError):
        return time.time()
