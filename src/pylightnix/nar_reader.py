"""Unpacking the NAR serialization of a folder: streamed, strict, and never outside of the folder that it makes.

The counterpart of `nar`. It takes bytes from anyone. Must not know where they come from, nor what becomes of the tree.

Rules:

- There is one serialization for each tree, and only that is taken: names ascend strictly, padding is zero,
  nothing is repeated. So a digest over the bytes read is the tree's.
- Everything is made by directory file descriptors, in folders that were made here, and must be new. A link is
  made, never followed.
- What is declared is checked against what is still to come before anything is done about it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final, Protocol

from pylightnix.nar import MAX_LEVELS
from pylightnix.tree_writer import NAME_BYTES, TARGET_BYTES, make_folder, make_link, new_file, problem_with_name, write_all
from pylightnix.walking import OpenFolders

__all__ = ["MalformedNar", "Source", "unpack_folder"]

_BLOCK_BYTES: Final = 1 << 20
_TOKEN_BYTES: Final = 16
"""No word of the format is longer."""


class MalformedNar(Exception):
    """The bytes are not the serialization of a folder. The text says why; who knows where they came from says the rest."""


class Source(Protocol):
    """Where a serialization comes from."""

    def take(self, count: int) -> bytes:
        """Return exactly so many bytes, or raise."""

    def left(self) -> int:
        """Return how many bytes there are to come at most."""


def _uncounted() -> None:
    """Let any number of entries be."""


def unpack_folder(
    source: Source, parent_fd: int, name: str, *, refuse_top: frozenset[str] = frozenset(), count_entry: Callable[[], None] = _uncounted
) -> None:
    """Make the folder `name` in the folder open at `parent_fd`, of a serialization.

    Files are 0644 or 0755 and folders 0755, less the umask. Exactly the serialization is taken from `source`.

    Args:
        source: The serialization.
        parent_fd: A folder that nobody else writes to.
        name: A single path component; nothing of that name may be there.
        refuse_top: Names that must not stand directly in the folder.
        count_entry: Is called before each entry is made, and may raise.

    Raises:
        MalformedNar: It is none, or that of a file or a link, or of what a tree cannot hold.
        OSError: The system does not take it.
            What `source` and `count_entry` raise is raised, too. After any of these there is a part of the tree.
    """
    reader = _Reader(source)
    reader.expect(b"nar", b"nix-archive-1")
    reader.expect(b"a folder", b"(", b"type", b"directory")
    _unpack(reader, parent_fd, os.fsencode(name), {os.fsencode(refused) for refused in refuse_top}, count_entry)


def _unpack(reader: _Reader, parent_fd: int, top: bytes, refuse_top: set[bytes], count_entry: Callable[[], None]) -> None:
    """Go through the entries of the folder `top`, and of those in it; a loop, for depth is a stranger's choice."""
    way, stack = OpenFolders(parent_fd), [_Folder()]
    try:
        way.enter(make_folder(parent_fd, top))
        while stack:
            folder = stack[-1]
            word = reader.word()
            if word == b")":
                stack.pop()
                way.leave()
                if stack:
                    reader.expect(b"the end of an entry", b")")
                continue
            if word != b"entry":
                raise MalformedNar(f"expected an entry or the end of a folder, found {word!r}")
            reader.expect(b"an entry", b"(", b"name")
            name = folder.next_name(reader.text(NAME_BYTES, "a name"))
            if len(stack) == 1 and name in refuse_top:
                raise MalformedNar(f"the name {_shown(name)} at the top is kept for metadata")
            count_entry()
            reader.expect(b"an entry", b"node", b"(", b"type")
            kind = reader.word()
            if kind == b"directory":
                if len(stack) >= MAX_LEVELS:
                    raise MalformedNar(f"folders are nested deeper than {MAX_LEVELS} levels")
                way.enter(make_folder(way.fd, name))
                stack.append(_Folder())
            else:
                _make(reader, kind, way.fd, name)
                reader.expect(b"the end of an entry", b")", b")")
    finally:
        way.close()


class _Folder:
    """A folder that is being filled."""

    def __init__(self) -> None:
        self._last = b""

    def next_name(self, name: bytes) -> bytes:
        if (problem := problem_with_name(name)) is not None:
            raise MalformedNar(f"{_shown(name)} {problem}")
        if name <= self._last:
            raise MalformedNar(f"the entry {_shown(name)} comes after {_shown(self._last)}; names ascend, and each stands once")
        self._last = name
        return name


def _make(reader: _Reader, kind: bytes, folder_fd: int, name: bytes) -> None:
    if kind == b"symlink":
        reader.expect(b"a link", b"target")
        target = reader.text(TARGET_BYTES, "the target of a link")
        if not target or b"\0" in target:
            raise MalformedNar(f"the link {_shown(name)} has no target that a link can have")
        make_link(folder_fd, name, target)
        return
    if kind != b"regular":
        raise MalformedNar(f"expected a file, a folder or a link, found {kind!r}")
    word = reader.word()
    executable = word == b"executable"
    if executable:
        reader.expect(b"an executable file", b"")
        word = reader.word()
    if word != b"contents":
        raise MalformedNar(f"expected the contents of {_shown(name)}, found {word!r}")
    with new_file(folder_fd, name, executable=executable) as fd:
        reader.copy(fd, name)


class _Reader:
    """The words and texts of a serialization."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def _size(self, limit: int, what: str) -> int:
        size = int.from_bytes(self._take(8), "little")
        if size > limit:
            raise MalformedNar(f"{what} is declared to have {size} bytes, more than {limit}")
        return size

    def _take(self, count: int) -> bytes:
        left = self._source.left()
        if count > left:
            raise MalformedNar(f"it ends early: {count} more bytes are needed, {left} are left")
        return self._source.take(count)

    def _pad(self, size: int) -> None:
        padding = self._take(-size % 8)
        if padding.strip(b"\0"):
            raise MalformedNar(f"expected zeros as padding, found {padding!r}")

    def text(self, limit: int, what: str) -> bytes:
        size = self._size(limit, what)
        text = self._take(size)
        self._pad(size)
        return text

    def word(self) -> bytes:
        return self.text(_TOKEN_BYTES, "a word of the format")

    def expect(self, what: bytes, *words: bytes) -> None:
        for word in words:
            found = self.word()
            if found != word:
                raise MalformedNar(f"expected {what.decode()}: {word!r}, found {found!r}")

    def copy(self, fd: int, name: bytes) -> None:
        """Write contents to `fd`, in blocks."""
        size = self._size(self._source.left(), f"the file {_shown(name)}")
        left = size
        while left:
            block = self._take(min(left, _BLOCK_BYTES))
            left -= len(block)
            write_all(fd, block)
        self._pad(size)


def _shown(name: bytes) -> str:
    return f"'{name.decode('utf-8', 'backslashreplace')}'"
