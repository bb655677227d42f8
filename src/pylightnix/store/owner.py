"""A process's own folder under `tmp/`, where its build folders are made, and who else has one.

Each owner has a lock file under `owners/`, held for the life of the process: an owner whose lock is free
is dead, unless the file names processes that live and could not be ended. A process that is merely idle, a paused
REPL for one, keeps its lock and is left alone. The lock lies with the state and not in `tmp/`, because `tmp/` may be
another one for each process, and may be on a shared file system. It is made before the folder, so a folder without one is nobody's.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Final, Optional

from pylightnix.store.layout import StoreLayout
from pylightnix.store.locks import _open_fds, close_lock_file, open_lock_file, try_flock
from pylightnix.store.presence import is_folder, is_there
from pylightnix.system_errors import refusal

__all__ = [
    "Owner",
    "dead_owners",
    "is_dead",
    "is_owner_name",
    "leave_heirs",
    "nobodys_folders",
    "process_owner",
    "remember_undead",
    "wait_for_heirs",
]

_NAME: Final = re.compile(r"[0-9]+-[0-9a-f]{12}")


@dataclass(slots=True)
class Owner:
    """This process, as far as one store is concerned."""

    id: str
    path: str
    """Its folder under `tmp/`."""
    lock: str
    fd: int
    """Holds the lock."""
    pid: int
    _numbers: Iterator[int] = field(default_factory=count)

    def make_folder(self) -> str:
        """Make and return a fresh folder, 0700, for one build."""
        path = f"{self.path}/{next(self._numbers)}"
        os.mkdir(path, 0o700)
        return path


_owners: dict[str, Owner] = {}
"""State folder of a store -> this process's owner there."""
_making = threading.Lock()


def _forget_lock() -> None:
    global _making  # noqa: PLW0603  # the parent's may be held by a thread that does not exist here
    _making = threading.Lock()


os.register_at_fork(after_in_child=_forget_lock)


def is_owner_name(name: str) -> bool:
    """Tell whether an entry of `tmp/` is named like an owner's folder."""
    return _NAME.fullmatch(name) is not None


def process_owner(layout: StoreLayout) -> Owner:
    """Return this process's owner in the store, made at the first call."""
    owner = _owners.get(layout.state)
    if owner is not None and owner.pid == os.getpid() and _is_there(owner):
        return owner
    with _making:
        owner = _owners.get(layout.state)  # another thread may have made it meanwhile
        if owner is None or owner.pid != os.getpid() or not _is_there(owner):
            owner = _owners[layout.state] = _make(layout)
        return owner


def _is_there(owner: Owner) -> bool:
    return _is_at(owner.fd, owner.lock) and is_folder(owner.path)


def _is_at(fd: int, path: str) -> bool:
    try:
        found = os.stat(path)
    except OSError:
        return False
    mine = os.fstat(fd)
    return (found.st_dev, found.st_ino) == (mine.st_dev, mine.st_ino)


def _make(layout: StoreLayout) -> Owner:
    try:
        os.makedirs(layout.owners, 0o700, exist_ok=True)
        while True:
            owner_id = f"{os.getpid()}-{secrets.token_hex(6)}"
            lock, path = f"{layout.owners}/{owner_id}", f"{layout.tmp}/{owner_id}"
            fd = open_lock_file(lock)
            # Between the two a sweeper may have taken the file for a dead owner's.
            if try_flock(fd, fcntl.LOCK_EX) and _is_at(fd, lock):
                os.mkdir(path, 0o700)
                return Owner(owner_id, path, lock, fd, os.getpid())
            close_lock_file(fd)
    except OSError as error:
        raise refusal(error, "making a folder for this process", layout.tmp, layout.tmp) from error


def lock_dead_owner(layout: StoreLayout, owner: str) -> Optional[int]:
    """Take the lock of an owner that is dead; None if it lives, or nothing is left of it."""
    lock = f"{layout.owners}/{owner}"
    try:
        fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    _open_fds.add(fd)
    if try_flock(fd, fcntl.LOCK_EX) and _is_at(fd, lock) and not _has_undead(fd):
        return fd
    close_lock_file(fd)
    return None


def is_dead(layout: StoreLayout, owner: str) -> bool:
    """Tell whether an owner's process is gone."""
    fd = lock_dead_owner(layout, owner)
    if fd is not None:
        close_lock_file(fd)
        return True
    return not is_there(f"{layout.owners}/{owner}")


_HEIRS: Final = b"heirs"


def leave_heirs(owner: Owner) -> None:
    """Say that other processes are given this owner's lock, and end by themselves when it dies."""
    try:
        os.pwrite(owner.fd, _HEIRS, 0)
    except OSError as error:
        raise refusal(error, "saying that it has workers", owner.lock, os.path.dirname(owner.lock)) from error


def wait_for_heirs(layout: StoreLayout, wait_seconds: float) -> None:
    """Wait until nobody holds the lock of an owner that left heirs. The caller is alone in the store.

    They are the workers of a process that died: they kill their builds and end as soon as they notice.
    What lives longer is left alone, and its folder is swept by a later start.
    """
    deadline = time.monotonic() + wait_seconds
    for name in _names(layout.owners):
        while _has_heirs(f"{layout.owners}/{name}") and time.monotonic() < deadline:
            time.sleep(0.01)


def _has_heirs(lock: str) -> bool:
    """Tell whether an owner that left heirs, or one of these, still holds its lock, and will not for long."""
    try:
        fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return os.pread(fd, len(_HEIRS), 0) == _HEIRS and not _has_undead(fd) and not try_flock(fd, fcntl.LOCK_EX)
    finally:
        os.close(fd)


_UNDEAD_BYTES_MAX: Final = 1 << 16


def remember_undead(owner: Owner, pids: Sequence[int]) -> None:
    """Say in the lock file of an owner that left heirs which processes nobody can end, though they may write into its folder.

    As long as one of them lives, the owner is not dead, whoever holds its lock.
    """
    names = [f"{pid} {started} {_boot_id()}" for pid in pids if (started := _started(pid)) is not None]
    said = b"\n".join([_HEIRS, *map(str.encode, names), b""])
    os.ftruncate(owner.fd, os.pwrite(owner.fd, said, 0))


def _has_undead(fd: int) -> bool:
    """Tell whether one of the processes lives that are named in a lock file."""
    for line in os.pread(fd, _UNDEAD_BYTES_MAX, 0).decode("ascii", "replace").splitlines()[1:]:
        pid, _, born = line.partition(" ")
        if pid.isdecimal() and born == f"{_started(int(pid))} {_boot_id()}":
            return True
    return False


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def _started(pid: int) -> Optional[str]:
    """Return when a process was started, in the kernel's ticks since it booted; None if it does not live."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def dead_owners(layout: StoreLayout) -> list[tuple[str, int]]:
    """Return (id, descriptor that holds its lock) of every owner whose lock was free."""
    mine = _owners.get(layout.state)
    found = []
    for name in _names(layout.owners):
        if not (mine is not None and mine.id == name and mine.pid == os.getpid()):
            fd = lock_dead_owner(layout, name)
            if fd is not None:
                found.append((name, fd))
    return found


def nobodys_folders(layout: StoreLayout) -> list[str]:
    """Return the owners' folders in this `tmp/` whose owner has no lock file any more."""
    names = [name for name in _names(layout.tmp) if is_owner_name(name)]
    return [f"{layout.tmp}/{name}" for name in names if not is_there(f"{layout.owners}/{name}")]


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


@atexit.register
def _leave() -> None:
    """Remove this process's folders if nothing is in them; what is not removed now is swept by the next."""
    for owner in _owners.values():
        if owner.pid == os.getpid():
            try:
                os.rmdir(owner.path)
                os.unlink(owner.lock)
            except OSError:
                pass  # something is in it, or it was removed with the whole store
