"""The digest of a source, found by reading only what a memo does not answer for."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from typing import Final

from pylightnix.errors import InvalidSource
from pylightnix.sources.memo import Fact, Facts, Memo, Records
from pylightnix.sources.patterns import excluding
from pylightnix.sources.walking import open_source_file, shown_path, unreadable, walk_source

__all__ = ["source_digest", "stored_digest"]

_RACY_NS: Final = 2_000_000_000
"""The granularity of the coarsest file times in use, those of FAT; ext3 has a second, others are finer."""
_BLOCK_BYTES: Final = 1 << 20


def source_digest(path: str, exclude: Sequence[str], memo: Memo, *, now_ns: Callable[[], int] = time.time_ns) -> str:
    """Return the source digest of a file or folder, and leave in `memo` what makes that quick the next time.

    Args:
        path: absolute.
        exclude: patterns in the form of a ``.gitignore``.
        memo: asked and renewed. What is wrong with it costs time only.
        now_ns: the clock that file times are compared with.

    Raises:
        InvalidSource: it cannot be read, holds what has no place in a tree, or changes meanwhile.
        Misuse: one of the patterns is none.
    """
    excluded = excluding(exclude)
    with memo.of(path, exclude) as records:
        return walk_source(path, excluded, _Reader(records, now_ns))


def stored_digest(path: str) -> str:
    """Return the source digest of what lies at `path`, by reading all of it.

    Raises:
        InvalidSource: it cannot be read, holds what has no place in a tree, or changes meanwhile.
    """
    return walk_source(path, None, _Hashing())


class _Hashing:
    """Reads every file."""

    def enter_folder(self, path: bytes) -> None:
        pass

    def end_of_files(self) -> None:
        pass

    def leave_folder(self) -> None:
        pass

    def visit_link(self, name: bytes, target: bytes) -> None:
        pass

    def visit_file(self, parent_fd: int, name: bytes, info: os.stat_result, where: bytes) -> bytes:
        return _read(parent_fd, name, where)[4]


class _Reader:
    """Answers for files from a memo, and reads the others.

    A file that was changed a moment before it is read could be changed again within the granularity of its times, and
    would look the same. So what is known of such a file is not noted, and it is read again the next time.
    """

    def __init__(self, records: Records, now_ns: Callable[[], int]) -> None:
        self._records, self._now_ns = records, now_ns
        self._path = b""
        self._known: Facts = {}
        self._found: Facts = {}

    def enter_folder(self, path: bytes) -> None:
        self._path, self._known, self._found = path, self._records.known(path), {}

    def end_of_files(self) -> None:
        self._records.tell(self._path, self._found)

    def leave_folder(self) -> None:
        pass

    def visit_link(self, name: bytes, target: bytes) -> None:
        pass

    def visit_file(self, parent_fd: int, name: bytes, info: os.stat_result, where: bytes) -> bytes:
        if not name:
            self.enter_folder(b"")  # a source that is one file
        fact = self._known.get(name)
        if fact is None or fact[:4] != (info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino):
            began_ns = self._now_ns()
            fact = _read(parent_fd, name, where)
            if max(fact[1], fact[2]) >= began_ns - _RACY_NS:
                return fact[4]
        self._found[name] = fact
        if not name:
            self.end_of_files()
        return fact[4]


def _read(parent_fd: int, name: bytes, where: bytes) -> Fact:
    """Read a file, and return what is known of it then."""
    fd = open_source_file(parent_fd, name, where)
    try:
        info = os.fstat(fd)
        sha256 = hashlib.sha256()
        while block := os.read(fd, _BLOCK_BYTES):
            sha256.update(block)
        after = os.fstat(fd)
    except OSError as error:
        raise unreadable(where, error) from error
    finally:
        os.close(fd)
    if (info.st_size, info.st_mtime_ns, info.st_ctime_ns) != (after.st_size, after.st_mtime_ns, after.st_ctime_ns):
        raise InvalidSource(shown_path(where), "it changed while it was read", "stop what writes there, and try again")
    return info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino, sha256.digest()
