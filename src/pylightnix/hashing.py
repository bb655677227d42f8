"""Hashes of plain contents: of bytes, files, folders and dicts. Utilities for programs; no identity rests on them.

A folder's hash here is that of its files' contents, one after the other: names and modes do not count, and a
folder with one plain file hashes like that file. For a hash that tells trees apart see `pylightnix.nar`.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from pylightnix.errors import Misuse
from pylightnix.types import Hash
from pylightnix.walking import walk

__all__ = ["datahash", "dicthash", "dirhash", "dirhash_iter", "dirshash", "filehash"]

_BLOCK_BYTES: Final = 1 << 20


def datahash(data: Iterable[tuple[str, bytes]], verbose: bool = False) -> Hash:
    """Return the SHA-256 of pieces of data, one after the other with nothing between them.

    Args:
        data: pieces, each with a label that is not hashed.
        verbose: print each label, once for pieces that follow each other.
    """
    digest = hashlib.sha256()
    last = None
    for label, piece in data:
        if verbose and label != last:
            print(label)  # noqa: T201  # `verbose` asks for it
        last = label
        digest.update(piece)
    return Hash(digest.hexdigest())


def filehash(path: str) -> Hash:
    """Return the SHA-256 of a file's content, as `sha256sum` prints it. Raises `Misuse` if there is no file."""
    if not os.path.isfile(path):
        raise Misuse(f"filehash expects a file, found none at {path}")
    return datahash(_blocks(path, path))


def dirhash(path: str, verbose: bool = False) -> Hash:
    """Return the hash of a folder by the rules of `dirhash_iter`. Raises `Misuse` if there is no folder."""
    return dirshash([path], verbose)


def dirshash(paths: Iterable[str], verbose: bool = False) -> Hash:
    """Return the hash of several folders, one after the other."""
    folders = list(paths)
    for path in folders:
        if not os.path.isdir(path):
            raise Misuse(f"dirhash expects a folder, found none at {path}")
    return datahash((piece for path in folders for piece in dirhash_iter(path)), verbose)


def dirhash_iter(path: str) -> Iterator[tuple[str, bytes]]:
    """Iterate over what is hashed of a folder: (path, piece of content), never a whole large file at once.

    Files of one folder come in the order of their names, then its folders in that of theirs. Files whose names
    begin with an underscore are left out; folders so named are not. A link to a file gives its own text and then
    the file's content, one that leads nowhere its text alone, and one to a folder nothing.

    Raises:
        OSError: something cannot be read.
    """
    for folder in walk(path):
        folder.folders.sort()
        for name in sorted(folder.others):
            if not name.startswith("_"):
                yield from _file_pieces(f"{folder.path}/{name}", name, folder.fd)


def _file_pieces(path: str, name: str, folder_fd: int) -> Iterator[tuple[str, bytes]]:
    try:
        mode = os.stat(name, dir_fd=folder_fd, follow_symlinks=False).st_mode
        if stat.S_ISLNK(mode):
            try:
                leads_to_folder = stat.S_ISDIR(os.stat(name, dir_fd=folder_fd).st_mode)
            except OSError:
                yield path, os.fsencode(os.readlink(name, dir_fd=folder_fd))
                return
            if leads_to_folder:
                return
            yield path, os.fsencode(os.readlink(name, dir_fd=folder_fd))
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder_fd)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
    yield from _blocks(path, fd)


def _blocks(path: str, source: str | int) -> Iterator[tuple[str, bytes]]:
    with open(source, "rb", buffering=0) as file:
        while block := file.read(_BLOCK_BYTES):
            yield path, block


def dicthash(d: Mapping[str, object]) -> Hash:
    """Return the hash of a dict's items ``key=value`` in the order of their keys; keys that begin with an underscore do not count."""
    return datahash((key, f"{key}={d[key]}".encode()) for key in sorted(d) if not key.startswith("_"))
