"""Copies of sources, hashed as they are made: the digest is that of the copy, whatever happens to the source meanwhile."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final

from pylightnix.errors import InvalidSource
from pylightnix.sources.patterns import excluding
from pylightnix.sources.walking import open_source_file, shown_path, unreadable, walk_source, way_below
from pylightnix.tree_writer import make_folder, make_link, new_file, write_all
from pylightnix.walking import OpenFolders

__all__ = ["copy_source"]

_BLOCK_BYTES: Final = 1 << 20
_SHARED_BYTES: Final = 1 << 20
"""From this size on the kernel copies, or lets both files share their blocks, and the copy is read to be hashed."""
_RANGE_BYTES: Final = 1 << 30


def copy_source(path: str, exclude: Sequence[str], folder: str, name: str) -> str:
    """Copy a file or folder to `name` in `folder`, where nothing is of that name, and return the source digest of the copy.

    What of a source enters its digest is copied, and nothing else.

    Raises:
        InvalidSource: it cannot be read, holds what has no place in a tree, or holds `folder`: the copy would hold itself.
        Misuse: one of the patterns is none.
        OSError: the copy cannot be written.
    """
    excluded = excluding(exclude)
    if way_below(path, excluded, os.path.join(folder, name)) is not None:
        problem = f"it holds {shown_path(os.fsencode(folder))}, where it is to be copied to"
        raise InvalidSource(shown_path(os.fsencode(path)), problem, "exclude that, or copy to elsewhere")
    with ExitStack() as stack:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, fd)
        copier = _Copier(fd, os.fsencode(name))
        stack.callback(copier.close)
        return walk_source(path, excluded, copier)


class _Copier:
    """Makes what it is shown in the folder that was entered last."""

    def __init__(self, folder_fd: int, name: bytes) -> None:
        self._way = OpenFolders(folder_fd)
        self._name = name

    def close(self) -> None:
        """Close the folders that are open."""
        self._way.close()

    def enter_folder(self, path: bytes) -> None:
        self._way.enter(make_folder(self._way.fd, os.path.basename(path) or self._name))

    def end_of_files(self) -> None:
        pass

    def leave_folder(self) -> None:
        self._way.leave()

    def visit_link(self, name: bytes, target: bytes) -> None:
        make_link(self._way.fd, name, target)

    def visit_file(self, parent_fd: int, name: bytes, info: os.stat_result, where: bytes) -> bytes:
        own = name or self._name
        source_fd = open_source_file(parent_fd, name, where)
        try:
            with new_file(self._way.fd, own, executable=bool(info.st_mode & stat.S_IXUSR)) as fd:
                if info.st_size < _SHARED_BYTES or not _share(source_fd, fd):
                    return _copy(source_fd, fd, where)
        finally:
            os.close(source_fd)
        return _digest(self._way.fd, own)


def _copy(source_fd: int, fd: int, where: bytes) -> bytes:
    sha256 = hashlib.sha256()
    while True:
        try:
            block = os.read(source_fd, _BLOCK_BYTES)
        except OSError as error:
            raise unreadable(where, error) from error
        if not block:
            return sha256.digest()
        sha256.update(block)
        write_all(fd, block)


def _share(source_fd: int, fd: int) -> bool:
    """Have the kernel copy a file. False if it does not take these two; nothing is copied then."""
    copied = 0
    try:
        while count := os.copy_file_range(source_fd, fd, _RANGE_BYTES):
            copied += count
    except OSError:
        pass  # the file systems cannot, or one of the files is broken: then plain reading or writing says which
    if copied == os.fstat(source_fd).st_size:
        return True
    os.lseek(source_fd, 0, os.SEEK_SET)
    os.lseek(fd, 0, os.SEEK_SET)
    os.ftruncate(fd, 0)
    return False


def _digest(folder_fd: int, name: bytes) -> bytes:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder_fd)
    with open(fd, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
