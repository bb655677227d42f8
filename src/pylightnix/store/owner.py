"""A process's own folder under `tmp/`, where its build folders are made, and who else has one.

The folder is locked (flock on the folder itself) for the life of the process: a folder whose lock is
free belongs to the dead. A process that is merely idle, a paused REPL for one, keeps its lock and is
left alone.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Final, Optional

from pylightnix.errors import StoreIOError, StoreReadOnly
from pylightnix.store.layout import StoreLayout
from pylightnix.store.locks import _open_fds, close_lock_file, try_flock

__all__ = ["Owner", "dead_owners", "is_owner_name", "process_owner"]

_NAME: Final = re.compile(r"[0-9]+-[0-9a-f]{12}")


@dataclass(slots=True)
class Owner:
    """This process, as far as one store is concerned."""

    id: str
    path: str
    fd: int
    pid: int
    _numbers: Iterator[int] = field(default_factory=count)

    def make_folder(self) -> str:
        """Make and return a fresh folder, 0700, for one build."""
        path = f"{self.path}/{next(self._numbers)}"
        os.mkdir(path, 0o700)
        return path

    def fresh_path(self) -> str:
        """Return a path inside the folder at which nothing is."""
        return f"{self.path}/{next(self._numbers)}"


_owners: dict[str, Owner] = {}
"""State folder of a store -> this process's owner there."""


def is_owner_name(name: str) -> bool:
    """Tell whether an entry of `tmp/` is named like an owner's folder."""
    return _NAME.fullmatch(name) is not None


def process_owner(layout: StoreLayout) -> Owner:
    """Return this process's owner in the store, made at the first call."""
    owner = _owners.get(layout.state)
    if owner is not None and owner.pid == os.getpid() and _is_there(owner):
        return owner
    owner = _owners[layout.state] = _make(layout)
    return owner


def _is_there(owner: Owner) -> bool:
    try:
        found = os.stat(owner.path)
    except OSError:
        return False
    mine = os.fstat(owner.fd)
    return (found.st_dev, found.st_ino) == (mine.st_dev, mine.st_ino)


def _make(layout: StoreLayout) -> Owner:
    while True:
        owner_id = f"{os.getpid()}-{secrets.token_hex(6)}"
        path = f"{layout.tmp}/{owner_id}"
        try:
            os.mkdir(path, 0o700)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise StoreReadOnly(layout.tmp, f"{error.strerror} at {path}") from error
            raise StoreIOError(path, "making a folder for this process", error.strerror or str(error)) from error
        fd = lock_owner_folder(path)
        # Between mkdir and the lock a sweeper may have taken the folder for a dead owner's.
        if fd is not None:
            owner = Owner(owner_id, path, fd, os.getpid())
            if _is_there(owner):
                return owner
            close_lock_file(fd)


def lock_owner_folder(path: str) -> Optional[int]:
    """Lock an owner's folder if its lock is free and it is there; return the descriptor that holds it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    _open_fds.add(fd)
    if try_flock(fd, fcntl.LOCK_EX):
        return fd
    close_lock_file(fd)
    return None


def dead_owners(layout: StoreLayout) -> list[tuple[str, int]]:
    """Return (id, descriptor that holds its lock) of every owner's folder whose lock was free."""
    mine = _owners.get(layout.state)
    found = []
    for name in os.listdir(layout.tmp):
        if is_owner_name(name) and not (mine is not None and mine.id == name and mine.pid == os.getpid()):
            fd = lock_owner_folder(f"{layout.tmp}/{name}")
            if fd is not None:
                found.append((name, fd))
    return found


@atexit.register
def _leave() -> None:
    """Remove this process's folders if nothing is in them; what is not removed now is swept by the next."""
    for owner in _owners.values():
        if owner.pid == os.getpid():
            try:
                os.rmdir(owner.path)
            except OSError:
                pass  # kept outputs of a failed build, or removed with the whole store
