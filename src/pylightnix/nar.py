"""The tree hash: SHA-256 over the NAR serialization of a file tree, and the walk that computes it.

Must not know what a store is, nor change anything in the tree; take-over gives the walk other eyes (`Access`).

The serialization is the archive format of Nix ("The Purely Functional Software Deployment Model",
E. Dolstra 2006, figure 5.2): names in byte order, file contents, the owner's executable bit, symlink
targets; nothing else. The digest is that of ``nix-hash --type sha256``.

Rules of the walk:

- It goes by directory file descriptors; only a symlink's own text is read, none is ever followed.
- What a directory lists as a device, socket or FIFO is refused unopened. Opening never blocks.
- It is a loop, not a recursion, and holds few descriptors, however deep it is (`OpenFolders`).
- Names are bytes all the way, so names that are not UTF-8 survive.
"""

from __future__ import annotations

import enum
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Optional, Protocol, TypeAlias, Union

from pylightnix.errors import InvalidTree
from pylightnix.walking import OpenFolders

__all__ = ["MAX_LEVELS", "OPEN_FLAGS", "Access", "EntryKind", "NarHash", "Sink", "TreeDigest", "hash_folder", "sort_of", "tree_hash"]

OPEN_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""How the walk opens files and folders. O_NONBLOCK: should a FIFO take a file's place, nobody waits for a writer."""

MAX_LEVELS: Final = 256
"""How many folders deep a tree may be, its top included."""
_BLOCK_BYTES: Final = 1 << 20
_SMALL_BYTES: Final = 1 << 16
_NO_NAMES: Final[frozenset[str]] = frozenset()
_SORTS: Final = {
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
    stat.S_IFBLK: "block device",
    stat.S_IFCHR: "character device",
}


@dataclass(frozen=True, slots=True)
class TreeDigest:
    """What a tree is, and how large."""

    sha256: str
    """64 hexadecimal digits."""
    nar_bytes: int
    """Size of the serialization."""
    files: int
    """How many regular files there are."""
    file_bytes: int
    """What these hold in all, holes included."""


class EntryKind(enum.Enum):
    """What a directory says an entry is. Only an open descriptor can confirm it."""

    FILE = "regular file"
    FOLDER = "folder"
    SYMLINK = "symbolic link"
    SPECIAL = "special file"


class Access(Protocol):
    """How the walk gets at what it meets; `where` is the path to show in errors."""

    def open_entry(self, parent_fd: int, name: bytes, where: bytes) -> tuple[int, os.stat_result]:
        """Open a file or folder and say what was opened. Mode and content are as they will be hashed."""

    def skip_entry(self, parent_fd: int, name: bytes, kind: EntryKind, where: bytes) -> None:
        """See an entry at the top that is not part of the tree. All of these come before any other entry."""

    def leave_file(self, fd: int) -> None:
        """See the last of a file: it is hashed."""

    def leave_link(self, parent_fd: int, name: bytes) -> None:
        """See the last of a symbolic link."""

    def leave_folder(self, fd: int, where: bytes) -> None:
        """See the last of a folder: everything in it is hashed. Not called for the top."""


class _Reading:
    """Access that changes nothing."""

    def open_entry(self, parent_fd: int, name: bytes, where: bytes) -> tuple[int, os.stat_result]:
        fd = os.open(name, OPEN_FLAGS, dir_fd=parent_fd)
        return fd, os.fstat(fd)

    def skip_entry(self, parent_fd: int, name: bytes, kind: EntryKind, where: bytes) -> None:
        pass

    def leave_file(self, fd: int) -> None:
        pass

    def leave_link(self, parent_fd: int, name: bytes) -> None:
        pass

    def leave_folder(self, fd: int, where: bytes) -> None:
        pass


_READING = _Reading()

Sink: TypeAlias = Callable[[Union[bytes, memoryview]], object]
"""Takes a serialization piece by piece. A piece that is a memoryview changes after the call."""


def tree_hash(path: str | os.PathLike[str], *, exclude_top: frozenset[str] = _NO_NAMES, sink: Optional[Sink] = None) -> TreeDigest:
    """Hash the folder, file or symbolic link at `path`.

    Args:
        path: The top of the tree. A symbolic link is hashed itself, not what it points to.
        exclude_top: Names directly in a top folder that are not part of the tree.
        sink: Is given the serialization too, as it goes past.

    Raises:
        InvalidTree: A special file, more than 256 levels, or a file whose size changed while it was read.
        OSError: The tree cannot be read; `filename` says where. Not translated: only the caller knows what the tree is.
    """
    top = os.fsencode(path)
    nar = _Nar(sink)
    mode = os.lstat(top).st_mode
    if stat.S_ISLNK(mode):
        nar.symlink(os.readlink(top))
        return nar.digest()
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InvalidTree(_shown(top), f"is a {sort_of(mode)}")
    fd = os.open(top, OPEN_FLAGS)
    try:
        info = os.fstat(fd)
        if stat.S_ISDIR(info.st_mode):
            _walk(nar, fd, top, exclude_top, _READING)
        else:
            nar.file(fd, info, top)
    finally:
        os.close(fd)
    return nar.digest()


def hash_folder(fd: int, *, where: str, exclude_top: frozenset[str] = _NO_NAMES, access: Access) -> TreeDigest:
    """Hash the tree below the folder open at `fd`, through `access`.

    The descriptor stays open, and is the caller's. `where` names the folder in errors.

    Raises:
        InvalidTree, OSError: As for `tree_hash`, and what `access` raises.
    """
    nar = _Nar()
    _walk(nar, fd, os.fsencode(where), exclude_top, access)
    return nar.digest()


# --- the walk -------------------------------------------------------------------------------------


_Entry: TypeAlias = tuple[bytes, EntryKind]


@dataclass(slots=True)
class _Folder:
    """A folder that the walk is in."""

    where: bytes
    entries: Iterator[_Entry]


def _walk(nar: _Nar, top_fd: int, top: bytes, exclude_top: frozenset[str], access: Access) -> None:
    nar.add(_FOLDER)
    stack, way = [_Folder(top, _top_entries(top_fd, top, exclude_top, access))], OpenFolders(top_fd)
    where = top
    try:
        while stack:
            folder = stack[-1]
            where = folder.where
            for name, kind in folder.entries:
                where = folder.where + b"/" + name
                nar.entry(name)
                if (inner_fd := _add(nar, way.fd, name, kind, where, access)) is not None:
                    way.enter(inner_fd)
                    stack.append(_Folder(where, _entries(inner_fd)))
                    break
                nar.add(_CLOSE)
            else:
                nar.add(_CLOSE)
                if len(stack) > 1:
                    access.leave_folder(way.fd, where)
                    way.leave()
                    nar.add(_CLOSE)  # of the entry that the folder was
                stack.pop()
            if len(stack) > MAX_LEVELS:
                raise InvalidTree(_shown(where), f"is nested deeper than {MAX_LEVELS} levels")
    except OSError as error:
        # What the system reports is a name below some descriptor, or nothing at all.
        raise OSError(error.errno, error.strerror, _shown(where)) from error
    finally:
        way.close()


def _top_entries(fd: int, where: bytes, exclude_top: frozenset[str], access: Access) -> Iterator[_Entry]:
    found = list(_entries(fd))
    if not exclude_top:
        yield from found
        return
    excluded = {os.fsencode(name) for name in exclude_top}
    for name, kind in found:
        if name in excluded:
            access.skip_entry(fd, name, kind, where + b"/" + name)
    for name, kind in found:
        if name not in excluded:
            yield name, kind


def _entries(fd: int) -> Iterator[_Entry]:
    # A generator: the folder is listed when the walk first looks, by when its descriptor is on the stack.
    with os.scandir(fd) as listed:
        found = [(os.fsencode(entry.name), _kind(entry)) for entry in listed]
    found.sort(key=_name_of)
    yield from found


def _name_of(entry: _Entry) -> bytes:
    return entry[0]


def _kind(entry: os.DirEntry[str]) -> EntryKind:
    if entry.is_file(follow_symlinks=False):
        return EntryKind.FILE
    if entry.is_dir(follow_symlinks=False):
        return EntryKind.FOLDER
    return EntryKind.SYMLINK if entry.is_symlink() else EntryKind.SPECIAL


def _add(nar: _Nar, parent_fd: int, name: bytes, kind: EntryKind, where: bytes, access: Access) -> int | None:
    """Add an entry; a folder is only begun, and its descriptor returned for the walk to go into."""
    if kind is EntryKind.SYMLINK:
        nar.symlink(os.readlink(name, dir_fd=parent_fd))
        access.leave_link(parent_fd, name)
        return None
    if kind is EntryKind.SPECIAL:
        mode = os.stat(name, dir_fd=parent_fd, follow_symlinks=False).st_mode
        raise InvalidTree(_shown(where), f"is a {sort_of(mode)}")
    fd, info = access.open_entry(parent_fd, name, where)
    if stat.S_ISDIR(info.st_mode):
        nar.add(_FOLDER)
        return fd
    try:
        nar.file(fd, info, where)
        access.leave_file(fd)
    finally:
        os.close(fd)
    return None


def sort_of(mode: int) -> str:
    """Return what a file that has no place in a tree is, for errors."""
    return _SORTS.get(stat.S_IFMT(mode), "special file")


def _shown(where: bytes) -> str:
    # Never with lone surrogates: errors end up in UTF-8 logs and messages.
    return where.decode("utf-8", "backslashreplace")


# --- the serialization ----------------------------------------------------------------------------


def _string(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text + bytes(-len(text) % 8)


def _strings(texts: Iterable[bytes]) -> bytes:
    return b"".join(map(_string, texts))


_MAGIC: Final = _string(b"nix-archive-1")
_FOLDER: Final = _strings((b"(", b"type", b"directory"))
_ENTRY: Final = _strings((b"entry", b"(", b"name"))
_NODE: Final = _string(b"node")
_FILE: Final = _strings((b"(", b"type", b"regular", b"contents"))
_PROGRAM: Final = _strings((b"(", b"type", b"regular", b"executable", b"", b"contents"))
_SYMLINK: Final = _strings((b"(", b"type", b"symlink", b"target"))
_CLOSE: Final = _string(b")")


class NarHash:
    """The tree hash of a tree that is told entry by entry: no file system is looked at, contents are given as bytes.

    A tree is a file, a symlink, or a folder: `open_folder`, then for each entry, in byte order of the names, `entry`, a
    tree and `close`, then `close`.
    """

    def __init__(self) -> None:
        self._nar = _Nar()

    def open_folder(self) -> None:
        self._nar.add(_FOLDER)

    def entry(self, name: bytes) -> None:
        self._nar.entry(name)

    def close(self) -> None:
        self._nar.add(_CLOSE)

    def file(self, content: bytes, *, executable: bool) -> None:
        self._nar.add((_PROGRAM if executable else _FILE) + _string(content) + _CLOSE)

    def symlink(self, target: bytes) -> None:
        self._nar.symlink(target)

    def sha256(self) -> str:
        """Return the hash of what was told, in hexadecimal digits."""
        return self._nar.digest().sha256


class _Nar:
    """A serialization on its way through SHA-256. Small pieces are gathered, large files go past in blocks."""

    __slots__ = ("_block", "_gathered", "_hashed_bytes", "_sha256", "_sink", "file_bytes", "files")

    def __init__(self, sink: Optional[Sink] = None) -> None:
        self._sink = sink
        self._sha256 = hashlib.sha256()
        self._hashed_bytes = 0
        self._gathered = bytearray(_MAGIC)
        # Made for the first large file: clearing 1 MiB costs more than hashing a small tree.
        self._block: memoryview | None = None
        self.files = 0
        self.file_bytes = 0

    def digest(self) -> TreeDigest:
        self._flush()
        return TreeDigest(self._sha256.hexdigest(), self._hashed_bytes, self.files, self.file_bytes)

    def add(self, piece: bytes) -> None:
        self._gathered += piece
        if len(self._gathered) >= _BLOCK_BYTES:
            self._flush()

    def entry(self, name: bytes) -> None:
        self.add(_ENTRY + _string(name) + _NODE)

    def symlink(self, target: bytes) -> None:
        self.add(_SYMLINK + _string(target) + _CLOSE)

    def file(self, fd: int, info: os.stat_result, where: bytes) -> None:
        if not stat.S_ISREG(info.st_mode):  # it took the place of a file after that was listed
            raise InvalidTree(_shown(where), f"is a {sort_of(info.st_mode)}")
        size = info.st_size
        self.files += 1
        self.file_bytes += size
        self.add((_PROGRAM if info.st_mode & stat.S_IXUSR else _FILE) + size.to_bytes(8, "little"))
        read_bytes = self._small(fd, size) if size <= _SMALL_BYTES else self._large(fd, size)
        if read_bytes != size:
            raise InvalidTree(_shown(where), f"changed its size while it was read (it began with {size} bytes)")
        self.add(bytes(-size % 8) + _CLOSE)

    def _small(self, fd: int, size: int) -> int:
        # One byte more is asked for than there should be, which tells whether the file grew.
        content = os.read(fd, size + 1)
        while len(content) < size and (more := os.read(fd, size + 1 - len(content))):
            content += more
        self.add(content)
        return len(content)

    def _large(self, fd: int, size: int) -> int:
        self._flush()
        if self._block is None:
            self._block = memoryview(bytearray(_BLOCK_BYTES))
        left = size
        while left and (count := os.readv(fd, [self._block[:left]])):
            self._sha256.update(self._block[:count])
            if self._sink is not None:
                self._sink(self._block[:count])
            left -= count
        self._hashed_bytes += size - left
        return size - left + len(os.read(fd, 1))

    def _flush(self) -> None:
        self._sha256.update(self._gathered)
        if self._sink is not None:
            self._sink(bytes(self._gathered))
        self._hashed_bytes += len(self._gathered)
        self._gathered.clear()
