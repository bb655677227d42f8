"""Making what was written reach the disk, cheaply.

Two ways: `syncfs` flushes the whole file system once for a batch, however many files it has (0.8 ms
alone, 0.1 ms a realization in batches, on the ext4 where this was measured); fsync per file costs
about 1.5 ms a realization but flushes nobody else's data. The first is the default, and the second
is taken for a while after a `syncfs` turned out slow, which means that others write a lot.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Optional, Protocol

from pylightnix.walking import walk

__all__ = ["Durability", "sync_file_system", "sync_trees"]

SLOW_SYNC_SECONDS: Final = 0.1
AVOID_SECONDS: Final = 60.0
FEW_FILES: Final = 200
"""Above so many files, one slow flush of everything is still the cheaper way."""


class _Libc(Protocol):
    def syncfs(self, fd: int) -> int: ...


_libc: list[_Libc] = []


def sync_file_system(path: str) -> None:
    """Flush the file system that `path` lies on. OSError if anything written there was lost."""
    if not _libc:
        _libc.append(ctypes.CDLL(None, use_errno=True))
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc[0].syncfs(fd) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), path)
    finally:
        os.close(fd)


def _sync_path(path: str, dir_fd: Optional[int] = None) -> None:
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
                    _sync_path(name, folder.fd)
            os.fsync(folder.fd)
    for derivation in derivations:
        _sync_path(os.path.join(derivation, "config.json"))
        _sync_path(derivation)
    _sync_path(storage)


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
