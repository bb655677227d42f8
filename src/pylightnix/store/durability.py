"""Making what was written reach the disk, cheaply.

Two ways: `syncfs` flushes the whole file system once for a batch, however many files it has (0.8 ms
alone, 0.1 ms a realization in batches, on the ext4 where this was measured); fsync per file costs
about 1.5 ms a realization but flushes nobody else's data. The first is the default, and the second
is taken for a while after a `syncfs` turned out slow, which means that others write a lot.

The kernel tells each open file description once that a write was lost. A descriptor opened after somebody else was told,
by `sync` for example, is told nothing. So one is held open from before the first write of a store until after its last flush.
"""

from __future__ import annotations

import ctypes
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final, Optional, Protocol

from pylightnix.walking import walk

__all__ = ["Durability", "held_open", "sync_file_system", "sync_files", "sync_path", "sync_trees"]

SLOW_SYNC_SECONDS: Final = 0.1
AVOID_SECONDS: Final = 60.0
FEW_FILES: Final = 200
"""Above so many files, one slow flush of everything is still the cheaper way."""


class _Libc(Protocol):
    def syncfs(self, fd: int) -> int: ...


_libc: list[_Libc] = []


_mutex = threading.Lock()
_held: dict[str, tuple[int, list[None]]] = {}
"""Path -> (descriptor, one entry for each that holds it open)."""


def _forget_after_fork() -> None:
    """Close the parent's descriptors in a forked child, which would take away what the kernel has to tell the parent."""
    global _mutex  # noqa: PLW0603  # the parent's may be held by a thread that does not exist here
    _mutex = threading.Lock()
    for fd, _ in _held.values():
        os.close(fd)
    _held.clear()


os.register_at_fork(after_in_child=_forget_after_fork)


@contextmanager
def held_open(path: str) -> Iterator[None]:
    """Hold a folder open, so that `sync_file_system` learns of every write that is lost while the block runs."""
    with _mutex:
        if path not in _held:
            _held[path] = (os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), [])
        _, holders = _held[path]
        holders.append(None)
    try:
        yield
    finally:
        with _mutex:
            holders.pop()
            # A forked child has closed the descriptor already.
            if not holders and path in _held and _held[path][1] is holders:
                os.close(_held.pop(path)[0])


def sync_file_system(path: str) -> None:
    """Flush the file system of a folder that is held open. OSError if anything written there since was lost."""
    if not _libc:
        _libc.append(ctypes.CDLL(None, use_errno=True))
    held = _held.get(path)
    if held is None:
        raise AssertionError(f"BUG: {path} is not held open, so what was lost before would not be told")
    if _libc[0].syncfs(held[0]) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)


def sync_path(path: str, dir_fd: Optional[int] = None) -> None:
    """Flush one file, or the names in one folder."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=dir_fd)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_trees(trees: Sequence[str], storage: str) -> None:
    """Flush these realizations file by file, with the derivations and names that lead to them."""
    derivations = {os.path.dirname(tree) for tree in trees}
    for tree in trees:
        for folder in walk(tree):
            for name in folder.others:
                if stat.S_ISREG(os.stat(name, dir_fd=folder.fd, follow_symlinks=False).st_mode):
                    sync_path(name, folder.fd)
            os.fsync(folder.fd)
    for derivation in derivations:
        sync_path(os.path.join(derivation, "config.json"))
        sync_path(derivation)
    sync_path(storage)


def sync_files(paths: Sequence[str]) -> None:
    """Flush these files, and the names in their folders. One that somebody has removed is no error."""
    for path in [*paths, *{os.path.dirname(path) for path in paths}]:
        with suppress(FileNotFoundError):
            sync_path(path)


@dataclass(slots=True)
class Durability:
    """Decides how to flush a batch. Reads no clock: `now` is monotonic seconds."""

    avoid_until: float = float("-inf")

    def by_file(self, files: int, now: float) -> bool:
        """Tell whether a batch of so many files is to be flushed file by file."""
        return now < self.avoid_until and files <= FEW_FILES

    def observe(self, by_file: bool, seconds: float, now: float) -> None:
        """Learn how long a flush took."""
        if not by_file and seconds > SLOW_SYNC_SECONDS:
            self.avoid_until = now + AVOID_SECONDS
