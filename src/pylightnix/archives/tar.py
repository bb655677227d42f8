"""Unpacking tar archives, entry by entry as they go past.

Extended headers count for the entry behind them. Hard links become copies, sparse files files with holes. Owners,
times and access rights beyond the owner's executable bit have no place in a tree and are passed over.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from pylightnix.archives.draft import TreeDraft
from pylightnix.archives.limits import Unpacking, shown_name
from pylightnix.archives.streams import ByteStream
from pylightnix.archives.tar_headers import BLOCK_BYTES, MalformedTar, TarHeader, parse_header, parse_pax, parse_sparse_fields
from pylightnix.archives.tar_headers import parse_number as _number
from pylightnix.tree_writer import write_all

__all__ = ["unpack_tar"]

_COPY_BYTES: Final = 1 << 20
_HEADER_BYTES: Final = 1 << 20
"""What an extended header may have."""
_MAX_PIECES: Final = 1 << 20
_SPARSE: Final = frozenset(b"GNU.sparse." + key for key in (b"major", b"name", b"realsize", b"size", b"map"))
_MEANT: Final = _SPARSE | {b"path", b"linkpath", b"size"}
"""What of pax headers counts. The rest is not kept, or it could be made to fill the memory."""
_SPECIAL: Final = {
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a FIFO",
    b"M": "the rest of a file whose beginning is in another volume of the archive",
}
_ADVICE: Final = {b"M": "join the volumes first"}

_Pieces = list[tuple[int, int]]


@dataclass(slots=True)
class _Extended:
    """What extended headers say of the next entry."""

    name: bytes | None = None
    target: bytes | None = None
    pax: dict[bytes, bytes] = field(default_factory=dict)
    old_pieces: list[int] = field(default_factory=list)
    """Of the first form of sparse files in pax, whose records repeat: offset, size, offset, …"""


def unpack_tar(stream: ByteStream, draft: TreeDraft, unpacking: Unpacking) -> None:
    """Unpack an archive into a draft.

    Raises:
        UnpackFailed: it is damaged, ends early, or holds what has no place in a tree.
        OSError: it cannot be read, or the tree not written.
    """
    everywhere: dict[bytes, bytes] = {}
    extended = _Extended()
    try:
        while (header := _next_header(stream)) is not None:
            unpacking.entry = extended.name or header.name
            if not _extend(extended, everywhere, header, stream, unpacking):
                _Entry(header, extended, everywhere, stream, unpacking).make(draft)
                extended = _Extended()
        stream.drain()
    except MalformedTar as error:
        raise unpacking.failed(str(error)) from error
    unpacking.entry = None


def _next_header(stream: ByteStream) -> TarHeader | None:
    """Return the next header, None at the end: a block of zeros, or the end of the file, for some programs write no more."""
    begin = stream.peek(BLOCK_BYTES)
    if len(begin) < BLOCK_BYTES and not begin.strip(b"\0"):
        return None
    return parse_header(stream.take(BLOCK_BYTES))


def _extend(extended: _Extended, everywhere: dict[bytes, bytes], header: TarHeader, stream: ByteStream, unpacking: Unpacking) -> bool:
    """Take in a header that says something about others; tell whether it is one."""
    if header.kind not in (b"L", b"K", b"x", b"X", b"g", b"V"):
        return False
    if header.size > _HEADER_BYTES:
        raise unpacking.failed(f"it is a header with {header.size} bytes, more than {_HEADER_BYTES}")
    content = stream.take(header.size)
    stream.take(-header.size % BLOCK_BYTES)
    if header.kind == b"L":
        extended.name = content.rstrip(b"\0")
    elif header.kind == b"K":
        extended.target = content.rstrip(b"\0")
    elif header.kind == b"g":
        everywhere.update((key, value) for key, value in parse_pax(content) if key in _MEANT)
    elif header.kind != b"V":
        for key, value in parse_pax(content):
            if key in _MEANT:
                extended.pax[key] = value
            elif key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
                extended.old_pieces.append(_decimal(value))
                _bound(len(extended.old_pieces))
    return True


def _bound(numbers: int) -> None:
    if numbers > 2 * _MAX_PIECES:
        raise MalformedTar(f"it is a sparse file of more than {_MAX_PIECES} pieces")


def _decimal(text: bytes) -> int:
    if not (text.isdigit() and len(text) <= 20):
        raise MalformedTar(f"expected a decimal number in its header, found {shown_name(text[:40])!r}")
    return int(text)


class _Entry:
    """One entry, all that was said of it together."""

    def __init__(
        self, header: TarHeader, extended: _Extended, everywhere: Mapping[bytes, bytes], stream: ByteStream, unpacking: Unpacking
    ) -> None:
        pax = {**everywhere, **extended.pax}
        self._pax, self._extended = pax, extended
        self._stream, self._unpacking = stream, unpacking
        self.name = pax.get(b"GNU.sparse.name") or pax.get(b"path") or (header.name if extended.name is None else extended.name)
        # As all programs do: an absolute name is one below the folder.
        self.name = self.name.lstrip(b"/") or (b"." if self.name else b"")
        self.target = pax.get(b"linkpath") or (header.target if extended.target is None else extended.target)
        self.header = replace(header, size=_decimal(pax[b"size"])) if pax.get(b"size") else header
        unpacking.entry = self.name

    def make(self, draft: TreeDraft) -> None:
        kind = self.header.kind
        if kind in (b"5", b"D") or (kind in (b"0", b"\0") and self.name.endswith(b"/")):
            draft.folder(self.name)
            # Of a folder the size says how much room it was to have; only GNU's own kind has contents, a list of names.
            self._skip(self.header.size if kind != b"5" else 0)
        elif kind == b"1":
            draft.copy(self.name, self.target.lstrip(b"/"))
        elif kind == b"2":
            draft.link(self.name, self.target)
        elif kind in _SPECIAL:
            problem = f"it is {_SPECIAL[kind]}; expected a file, a folder or a link"
            raise self._unpacking.failed(problem, _ADVICE.get(kind, "leave it out when packing"))
        else:
            # Kinds that are not known are to be taken for files, says POSIX.
            self._make_file(draft)

    def _skip(self, size: int) -> None:
        left = size + -size % BLOCK_BYTES
        while left:
            left -= len(self._stream.take(min(left, _COPY_BYTES)))

    def _make_file(self, draft: TreeDraft) -> None:
        pieces, full_size = self._pieces()
        executable = bool(self.header.mode & 0o100)
        stored = self.header.size - (0 if pieces is None else self._map_bytes)
        size = stored if pieces is None else self._checked(pieces, stored, full_size)
        with draft.file(self.name, executable=executable, size=size) as fd:
            if pieces is None:
                self._copy(fd, stored)
            else:
                self._unpacking.count_bytes(size - stored)
                for offset, count in pieces:
                    os.lseek(fd, offset, os.SEEK_SET)
                    self._copy(fd, count)
                os.ftruncate(fd, size)
        self._stream.take(-self.header.size % BLOCK_BYTES)

    def _copy(self, fd: int, count: int) -> None:
        while count:
            block = self._stream.read(min(count, _COPY_BYTES)) or self._stream.take(1)  # which says that it ends early
            count -= len(block)
            write_all(fd, block)

    # --- sparse files -----------------------------------------------------------------------------

    _map_bytes = 0
    """What of the entry's contents lists its pieces."""

    def _pieces(self) -> tuple[_Pieces | None, int]:
        """Return which pieces of a file there are and how long it is; None for one without holes."""
        pax = self._pax
        if self.header.kind == b"S":
            return self._gnu_pieces()
        if pax.get(b"GNU.sparse.major") == b"1":
            return self._pieces_in_contents(), _decimal(pax.get(b"GNU.sparse.realsize", b""))
        if b"GNU.sparse.size" not in pax:
            return None, 0
        numbers = [_decimal(item) for item in pax[b"GNU.sparse.map"].split(b",")] if pax.get(b"GNU.sparse.map") else []
        return _pairs(numbers or self._extended.old_pieces), _decimal(pax[b"GNU.sparse.size"])

    def _gnu_pieces(self) -> tuple[_Pieces, int]:
        block = self.header.block
        pieces = parse_sparse_fields(block[386:482])
        full_size = _number(block[483:495])
        more = block[482] != 0
        while more:
            block = self._stream.take(BLOCK_BYTES)
            pieces += parse_sparse_fields(block[:504])
            _bound(2 * len(pieces))
            more = block[504] != 0
        return pieces, full_size

    def _pieces_in_contents(self) -> _Pieces:
        lines = self._lines()
        count = _decimal(next(lines))
        _bound(2 * count)
        return _pairs([_decimal(next(lines)) for _ in range(2 * count)])

    def _lines(self) -> Iterator[bytes]:
        """Take the list of pieces, a number in each line, block by block as far as it is asked for."""
        rest = b""
        while len(rest) <= 20:
            *whole, rest = (rest + self._stream.take(BLOCK_BYTES)).split(b"\n")
            self._map_bytes += BLOCK_BYTES
            yield from whole
        raise MalformedTar("the list of the pieces of a sparse file is damaged")

    def _checked(self, pieces: _Pieces, stored: int, full_size: int) -> int:
        end = 0
        for offset, count in pieces:
            if offset < end:
                raise MalformedTar("the pieces of a sparse file lie over each other")
            end = offset + count
        if end > full_size or sum(count for _, count in pieces) != stored:
            raise MalformedTar("the pieces of a sparse file are not those that it has")
        return full_size


def _pairs(numbers: list[int]) -> _Pieces:
    if len(numbers) % 2:
        raise MalformedTar("the list of the pieces of a sparse file is damaged")
    return list(zip(numbers[::2], numbers[1::2], strict=True))
