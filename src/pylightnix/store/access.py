"""Making stores, and telling in our own errors why one cannot be used."""

from __future__ import annotations

import errno
import os
import pwd
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final, Optional

from pylightnix.errors import (
    InvalidStorage,
    PylightnixException,
    StoreBusy,
    StoreError,
    StoreForeign,
    StoreFull,
    StoreIOError,
    StoreReadOnly,
)
from pylightnix.store.exposure import check_folders
from pylightnix.store.index import looked_at
from pylightnix.store.index_file import corrupt_index
from pylightnix.store.layout import StoreLayout
from pylightnix.store.locks import LOCK_WAIT_SECONDS, exclusive_lock, shared_lock
from pylightnix.store.owner import Owner, process_owner
from pylightnix.store.removal import try_remove
from pylightnix.store.room import make_reserve
from pylightnix.store.set_aside import discard, is_passing, retry_set_aside
from pylightnix.system_errors import is_refusal, refusal

__all__ = ["check_access", "in_words", "make_folders", "store_error", "translated_errors", "user_name", "wipe_store", "write_access"]


_INDEX_FILES: Final = 4
"""How many files SQLite has open for an index at a time: itself, what is before it, what they share, their folder."""


def user_name(uid: int) -> str:
    """Return the login name of a user, or its number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def store_error(layout: StoreLayout, doing: str, error: OSError | sqlite3.Error) -> StoreError:
    """Return our error for one of the operating system's or of SQLite's."""
    if isinstance(error, sqlite3.Error):
        return _index_error(layout, doing, error)
    return refusal(error, doing, layout.state, layout.state)


def in_words(layout: StoreLayout, doing: str, error: BaseException) -> BaseException:
    """Return our error for one that is the system's word on the machine, or SQLite's on the index; any other as it is."""
    if isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        return in_words(layout, doing, error.exceptions[0])
    if (
        isinstance(error, sqlite3.OperationalError)
        or type(error) is sqlite3.DatabaseError
        or (isinstance(error, OSError) and is_refusal(error))
    ):
        return store_error(layout, doing, error)
    return error


def _index_error(layout: StoreLayout, doing: str, error: sqlite3.Error) -> StoreError:
    code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    if code == sqlite3.SQLITE_FULL or (code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR) and _is_full(layout.state)):
        return StoreFull(layout.index, doing)
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY) and (cause := _cause(layout)) is not None:
        return refusal(cause, doing, layout.index, layout.state)
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN):
        return StoreReadOnly(layout.state, f"{error} ({layout.index}) while {doing}")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreBusy(layout.state, ["a long transaction on its index"], LOCK_WAIT_SECONDS)
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return corrupt_index(layout, f"not a sound index ({error})")
    return StoreIOError(layout.index, doing, str(error))


def _cause(layout: StoreLayout) -> Optional[OSError]:
    """Return why SQLite could not open or write a file, which it does not say: what the system says to who does the same."""
    with looked_at(layout.index) as may_open, ExitStack() as stack:
        path, flags = (layout.index, os.O_RDWR | os.O_NOFOLLOW) if may_open else (layout.state, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if os.statvfs(layout.state).f_flag & os.ST_RDONLY:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), layout.index)
            for _ in range(_INDEX_FILES):
                stack.callback(os.close, os.open(path, flags | os.O_CLOEXEC))
        except OSError as error:
            return error if is_refusal(error) else None
    return None


def _is_full(folder: str) -> bool:
    """Tell whether no file can be made or grow there: SQLite does not say why it could not make one of its own."""
    try:
        info = os.statvfs(folder)
    except OSError:
        return False
    return info.f_bavail * info.f_frsize < 1 << 16 or (info.f_files > 0 and info.f_favail == 0)


@contextmanager
def translated_errors(layout: StoreLayout, doing: str) -> Iterator[None]:
    """Turn errors of the system inside the block into ours. No code of users may run inside."""
    try:
        yield
    except PylightnixException:
        raise
    except (OSError, sqlite3.Error) as error:
        raise store_error(layout, doing, error) from error


def check_access(layout: StoreLayout) -> None:
    """Raise unless there is a store and it belongs to the caller.

    Raises:
        InvalidStorage: there is none.
        StoreForeign: it is another user's. Even root is refused: files of root's in it would lock its
            owner out of parts of it.
    """
    try:
        info = os.stat(layout.state)
        _check_owner(layout, info.st_uid)  # first: what others may not enter must not be taken for missing
        infos = [os.stat(folder) for folder in (layout.storage, layout.tmp)]
        devices = {info.st_dev for info in infos}
    except (FileNotFoundError, NotADirectoryError) as error:
        below = os.path.join(layout.state, "_pylightnix")  # where fsinit("/x") makes one
        advice = f"there is one in {below}" if os.path.isdir(below) else "make one with fsinit(…), or check --store and PYLIGHTNIX_ROOT"
        raise InvalidStorage(f"expected a store at {layout.storage}, found nothing at {error.filename}; {advice}") from error
    except PermissionError as error:
        raise StoreReadOnly(layout.state, f"{error.strerror} at {error.filename}") from error
    except OSError as error:
        raise store_error(layout, "looking for the store", error) from error
    for info in infos:  # set apart, they could have been exchanged by themselves
        if info.st_uid != 0:
            _check_owner(layout, info.st_uid)
    check_folders(layout.state, layout.storage, layout.tmp)
    if len(devices) > 1:
        raise InvalidStorage(
            f"{layout.storage} and {layout.tmp} are on different devices; outputs are renamed from one to the other, so put both on one"
        )


def _check_owner(layout: StoreLayout, uid: int) -> None:
    if uid != os.geteuid():
        raise StoreForeign(layout.state, user_name(uid), user_name(os.geteuid()))


def make_folders(layout: StoreLayout) -> None:
    """Make the folders of a store where they are missing. Idempotent."""
    with translated_errors(layout, "making the store's folders"):
        os.makedirs(layout.state, exist_ok=True)
        _check_owner(layout, os.stat(layout.state).st_uid)
        for folder in (layout.storage, layout.tmp):
            os.makedirs(folder, exist_ok=True)
        os.makedirs(layout.trash, 0o700, exist_ok=True)
        make_reserve(layout)


def wipe_store(layout: StoreLayout) -> None:
    """Remove everything in a store. Its lock files stay: others may be waiting on them.

    Raises:
        StoreBusy: somebody works in it.
        StoreForeign, StoreReadOnly: it is not the caller's to remove.
    """
    if not os.path.isdir(layout.state):
        return
    with translated_errors(layout, "removing the store"):
        _check_owner(layout, os.stat(layout.state).st_uid)
        with exclusive_lock(layout, "fsinit"):
            # The index first: what a crash leaves then is debris, never rows without trees.
            for path in (
                layout.index,
                *(f"{layout.state}/{name}" for name in os.listdir(layout.state) if name.startswith(os.path.basename(layout.index))),
                layout.progress,
                layout.storage,
                layout.tmp,
                layout.trash,
                layout.failed,
                layout.provenances,
                layout.owners,
                layout.fetch,
                layout.reserve,
                *layout.quarantine_folders,
            ):
                _wipe(layout, path)
            retry_set_aside(layout)


def _wipe(layout: StoreLayout, path: str) -> None:
    try:
        try_remove(path)
    except OSError as error:
        if is_passing(error):
            raise
        discard(layout, path)  # the new store begins without it


@contextmanager
def write_access(layout: StoreLayout) -> Iterator[Owner]:
    """Hold the store's lock shared for one write that needs no index."""
    check_access(layout)
    with shared_lock(layout):
        yield process_owner(layout)
