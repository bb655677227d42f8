"""The walk over a source: what is in it, in the order of the tree hash, and what it adds up to.

The *source digest* is the tree hash of the tree in which each file holds the SHA-256 of its contents (64 hexadecimal
digits) in place of them. So it says of a source what its tree hash would say, and is found without reading files whose
SHA-256 is known.

Rules of the walk:

- It goes by directory file descriptors. The top may be named through links; below it no link is followed.
- What has no place in a tree is refused unopened. Opening never blocks.
- An excluded folder is not looked into, so nothing below it can be taken in again; as in Git.
- The files of a folder are visited before the folders in it, so that what is known of them is needed once, in the order
  of the walk.
- It is a loop, and holds one descriptor and one list of entries for each level it is in.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Optional, Protocol

from pylightnix.errors import InvalidSource
from pylightnix.nar import MAX_LEVELS, OPEN_FLAGS, NarHash, sort_of
from pylightnix.sources.patterns import Excluded
from pylightnix.walking import OpenFolders

__all__ = ["Visitor", "open_source_file", "shown_path", "unreadable", "walk_source", "way_below"]

_MAX_LEVELS: Final = MAX_LEVELS - 1
"""The source lies in an output folder, which is one level more."""
_TOP_FLAGS: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC


class Visitor(Protocol):
    """What is done with the entries of a source, folder by folder; paths are below the top, that of the top itself is empty."""

    def enter_folder(self, path: bytes) -> None:
        """See a folder. All files and links directly in it come next, then the folders in it."""

    def end_of_files(self) -> None:
        """See the last file or link of the folder that was entered last."""

    def leave_folder(self) -> None:
        """See the last of the folder that was entered last and not left."""

    def visit_file(self, parent_fd: int, name: bytes, info: os.stat_result, where: bytes) -> bytes:
        """Return the SHA-256 of a file's contents. `info` is of a moment ago.

        If the source is one file, `parent_fd` is that file itself, and `name` is empty.
        """

    def visit_link(self, name: bytes, target: bytes) -> None:
        """See a symbolic link."""


def walk_source(path: str, excluded: Optional[Excluded], visitor: Visitor) -> str:
    """Show the file or folder at `path` to `visitor`, and return its source digest.

    Raises:
        InvalidSource: it cannot be read, holds what has no place in a tree, or changes meanwhile. The error says where.
    """
    top = os.fsencode(path)
    nar = NarHash()
    try:
        fd = os.open(top, _TOP_FLAGS)
    except OSError as error:
        raise unreadable(top, error) from error
    try:
        info = os.fstat(fd)
        if stat.S_ISDIR(info.st_mode):
            _walk(nar, fd, top, excluded, visitor)
        elif stat.S_ISREG(info.st_mode):
            nar.file(visitor.visit_file(fd, b"", info, top).hex().encode(), executable=bool(info.st_mode & stat.S_IXUSR))
        else:
            raise _special(top, info.st_mode)
    finally:
        os.close(fd)
    return nar.sha256()


def way_below(path: str, excluded: Optional[Excluded], folder: str) -> Optional[str]:
    """Return by which path below its top the walk over `path` would come upon `folder`, empty for the top; None if it would not."""
    top, below = os.fsencode(os.path.realpath(path)), os.fsencode(os.path.realpath(folder))
    if below == top:
        return ""
    if not below.startswith(top.rstrip(b"/") + b"/"):
        return None
    way = os.path.relpath(below, top)
    parts = way.split(b"/")
    if excluded is not None and any(excluded(b"/".join(parts[: count + 1]), True) for count in range(len(parts))):
        return None
    return os.fsdecode(way)


def open_source_file(parent_fd: int, name: bytes, where: bytes) -> int:
    """Open a file that the walk has come upon. The descriptor is the caller's to close.

    Raises:
        InvalidSource: that is refused, or it is no file any more.
    """
    try:
        fd = os.open(name, OPEN_FLAGS, dir_fd=parent_fd) if name else os.dup(parent_fd)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise InvalidSource(shown_path(where), "changed while it was read: it is no file any more", _AGAIN)
        return fd
    except OSError as error:
        raise unreadable(where, error) from error


_AGAIN: Final = "stop what writes there, and try again"


def shown_path(where: bytes) -> str:
    """Return how errors show a path."""
    return where.decode("utf-8", "backslashreplace")


def unreadable(where: bytes, error: OSError) -> InvalidSource:
    """Return the error to raise where the system does not let a source be read."""
    advice = "exclude it, or give the user who runs this the right to read it" if isinstance(error, PermissionError) else "check the path"
    return InvalidSource(shown_path(where), f"it cannot be read: {error.strerror or error}", advice)


def _special(where: bytes, mode: int) -> InvalidSource:
    problem = f"it is a {sort_of(mode)}; expected regular files, folders and symbolic links"
    return InvalidSource(shown_path(where), problem, "move it elsewhere, or exclude it")


# --- the walk -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Leaf:
    """A file or a link that was visited."""

    content: bytes
    """What the file holds in the source digest; the link's target."""
    is_link: bool
    executable: bool


@dataclass(slots=True)
class _Folder:
    """A folder that the walk is in."""

    path: bytes
    entries: Iterator[tuple[bytes, Optional[_Leaf]]] = field(default_factory=lambda: iter(()))
    """What is still to be told of it; None is a folder."""


def _walk(nar: NarHash, top_fd: int, top: bytes, excluded: Optional[Excluded], visitor: Visitor) -> None:
    way, stack = OpenFolders(top_fd), [_Folder(b"")]
    try:
        _begin(nar, stack[-1], way.fd, top, excluded, visitor)
        while stack:
            folder = stack[-1]
            for name, leaf in folder.entries:
                nar.entry(name)
                if leaf is None:
                    path = _joined(folder.path, name)
                    way.enter(_open_folder(way.fd, name, top + b"/" + path))
                    stack.append(_Folder(path))
                    if len(stack) > _MAX_LEVELS:
                        raise InvalidSource(shown_path(top + b"/" + path), f"it is nested deeper than {_MAX_LEVELS} levels", "exclude it")
                    _begin(nar, stack[-1], way.fd, top, excluded, visitor)
                    break
                _tell(nar, leaf)
                nar.close()
            else:
                visitor.leave_folder()
                nar.close()
                if len(stack) > 1:
                    _leave(way, top + b"/" + folder.path)
                    nar.close()  # of the entry that the folder was
                stack.pop()
    finally:
        way.close()


def _leave(way: OpenFolders, where: bytes) -> None:
    try:
        way.leave()
    except OSError as error:
        raise unreadable(where, error) from error


def _tell(nar: NarHash, leaf: _Leaf) -> None:
    if leaf.is_link:
        nar.symlink(leaf.content)
    else:
        nar.file(leaf.content, executable=leaf.executable)


def _joined(path: bytes, name: bytes) -> bytes:
    return path + b"/" + name if path else name


def _open_folder(parent_fd: int, name: bytes, where: bytes) -> int:
    try:
        return os.open(name, OPEN_FLAGS | os.O_DIRECTORY, dir_fd=parent_fd)
    except OSError as error:
        raise unreadable(where, error) from error


def _begin(nar: NarHash, folder: _Folder, fd: int, top: bytes, excluded: Optional[Excluded], visitor: Visitor) -> None:
    """List a folder and visit its files and links. The folders in it are left to the walk."""
    where = _joined(top, folder.path) if folder.path else top
    try:
        with os.scandir(fd) as listed:
            found = [(os.fsencode(entry.name), entry) for entry in listed]
    except OSError as error:
        raise unreadable(where, error) from error
    if excluded is not None:
        found = [(name, entry) for name, entry in found if not excluded(_joined(folder.path, name), entry.is_dir(follow_symlinks=False))]
    found.sort(key=_name_of)
    nar.open_folder()
    visitor.enter_folder(folder.path)
    folder.entries = iter([(name, _visited(fd, name, entry, where + b"/" + name, visitor)) for name, entry in found])
    visitor.end_of_files()


def _name_of(entry: tuple[bytes, object]) -> bytes:
    return entry[0]


def _visited(parent_fd: int, name: bytes, entry: os.DirEntry[str], where: bytes, visitor: Visitor) -> Optional[_Leaf]:
    try:
        if entry.is_dir(follow_symlinks=False):
            return None
        target = os.readlink(name, dir_fd=parent_fd) if entry.is_symlink() else None
        info = entry.stat(follow_symlinks=False)
    except OSError as error:
        raise unreadable(where, error) from error
    if target is not None:
        visitor.visit_link(name, target)
        return _Leaf(target, True, False)
    if not stat.S_ISREG(info.st_mode):
        raise _special(where, info.st_mode)
    return _Leaf(visitor.visit_file(parent_fd, name, info, where).hex().encode(), False, bool(info.st_mode & stat.S_IXUSR))
