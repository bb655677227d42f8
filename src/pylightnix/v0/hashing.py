"""How Pylightnix 0.x hashed a realization. Must not know what the hash is compared with.

The rule: SHA-256 over the contents of the files, one after the other. Folders come top-down, the files of one in the
order of their names; those whose name starts with an underscore do not count. Of a link to a file its text counts, then
what it leads to; links to folders do not count. Names, modes and empty folders do not count.

The rule left open in which order folders beside each other come: it was that in which the file system listed them, and a copy
of the store may list them otherwise. So there are several hashes that a tree may have had.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

__all__ = ["has_hash", "is_ambiguous"]

_BLOCK_BYTES: Final = 1 << 20

Order: TypeAlias = Callable[[list[str]], None]


def _as_listed(names: list[str]) -> None:
    pass


def _backwards(names: list[str]) -> None:
    names.reverse()


_ORDERS: Final[tuple[Order, ...]] = (_as_listed, list.sort, _backwards)
"""Orders to try: this file system's; that of a copying program; that of a file system which lists the newest first."""


def has_hash(folder: str, expected: str) -> bool:
    """Tell whether a folder may have had the hash that begins with the digits `expected`.

    Raises:
        OSError: something in it cannot be read, a link that leads nowhere for example.
        ValueError: it holds a special file.
    """
    seen = set()
    for order in _ORDERS:
        files = tuple(_files(folder, order))
        if files not in seen:
            seen.add(files)
            if _hash(files).startswith(expected):
                return True
    return False


def is_ambiguous(folder: str) -> bool:
    """Tell whether there are folders beside each other, so that the hash depends on an order that nobody may know any more."""
    return any(sum(not os.path.islink(os.path.join(top, name)) for name in folders) > 1 for top, folders, _ in _walk(folder, _as_listed))


def _refuse(error: OSError) -> None:
    raise error  # os.walk would pass over what it cannot list


def _walk(folder: str, order: Order) -> Iterator[tuple[str, list[str], list[str]]]:
    for top, folders, files in os.walk(folder, onerror=_refuse):
        order(folders)
        yield top, folders, files


def _files(folder: str, order: Order) -> Iterator[str]:
    for top, _, files in _walk(folder, order):
        for name in sorted(files):
            if not name.startswith("_"):
                yield os.path.join(top, name)


def _hash(files: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for path in files:
        if os.path.islink(path):
            digest.update(os.fsencode(os.readlink(path)))
        # Links are followed, as the rule has it; nothing that waits for somebody is opened for long.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ValueError(f"{path} is a special file")
            while block := os.read(fd, _BLOCK_BYTES):
                digest.update(block)
        finally:
            os.close(fd)
    return digest.hexdigest()
