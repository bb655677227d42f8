"""Finished logs in compressed form, readable in pieces.

The format is that of gzip, so that `zcat` reads it, in members that are compressed each for itself. All but
the last hold `MEMBER_BYTES` of the log, and each says in the extra field of its header how long it is. So a piece
anywhere is found by hopping over headers and costs the decompression of the members that it touches, not
of all before it. Must not know which logs there are, nor when they are compressed.
"""

from __future__ import annotations

import os
import struct
import threading
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Final, TypeAlias

__all__ = ["pack", "packed_size", "read_packed"]

MEMBER_BYTES: Final = 1 << 18
RECENT_MAX: Final = 64
"""How many logs' members are remembered: who reads one piece most often reads the next one soon."""

# Of RFC 1952: magic, deflate, "has an extra field", no time, no hints, Unix; length of the extra field; one subfield.
_HEADER: Final = struct.Struct("<4s4s2sH2sHI")
_MAGIC: Final = b"\x1f\x8b\x08\x04"
_SUBFIELD: Final = b"PX"
_TRAILER: Final = struct.Struct("<II")

_Members: TypeAlias = tuple[tuple[int, int], ...]
_mutex = threading.Lock()
_recent: dict[tuple[int, int, int, int], _Members] = {}
"""Identity of a file -> its members, those used last at the end."""


def pack(source: BinaryIO, target: BinaryIO) -> None:
    """Write all of `source` to `target` in compressed form."""
    while chunk := source.read(MEMBER_BYTES):
        packer = zlib.compressobj(level=6, wbits=-15)
        body = packer.compress(chunk) + packer.flush()
        length = _HEADER.size + len(body) + _TRAILER.size
        target.write(_HEADER.pack(_MAGIC, bytes(4), b"\0\xff", 8, _SUBFIELD, 4, length))
        target.write(body)
        target.write(_TRAILER.pack(zlib.crc32(chunk), len(chunk)))


def packed_size(path: str) -> int:
    """Return how many bytes of log the compressed one at `path` holds. Raises as `read_packed`."""
    with open(path, "rb") as file:
        members = _members(file)
        if not members:
            return 0
        file.seek(sum(members[-1]) - _TRAILER.size)
        return (len(members) - 1) * MEMBER_BYTES + int(_TRAILER.unpack(file.read(_TRAILER.size))[1])


def read_packed(path: str, offset: int, limit: int) -> bytes:
    """Return up to `limit` bytes from `offset` on of the log that is compressed at `path`.

    Raises:
        FileNotFoundError: it is gone.
        ValueError: the file is not of this form, or damaged.
    """
    first, skipped = divmod(offset, MEMBER_BYTES)
    found = bytearray()
    with open(path, "rb") as file:
        for start, length in _members(file)[first:]:
            if len(found) >= skipped + limit:
                break
            file.seek(start)
            try:
                found += zlib.decompress(file.read(length), wbits=31)
            except zlib.error as error:
                raise ValueError(f"{path}: the member at {start} is damaged ({error})") from error
    return bytes(found[skipped : skipped + limit])


def _members(file: BinaryIO) -> _Members:
    """Return offset and length of each member, in order."""
    info = os.fstat(file.fileno())
    identity = (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns)
    with _mutex:  # read in several threads
        found = _recent.pop(identity, None)
    if found is None:
        found = tuple(_hop(file, info.st_size))
    with _mutex:
        _recent[identity] = found
        if len(_recent) > RECENT_MAX:
            del _recent[next(iter(_recent))]
    return found


def _hop(file: BinaryIO, end: int) -> Iterator[tuple[int, int]]:
    start = 0
    while start < end:
        file.seek(start)
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size:
            raise ValueError(f"{file.name}: it ends in the header at {start}")
        magic, _, _, _, subfield, _, length = _HEADER.unpack(header)
        if (magic, subfield) != (_MAGIC, _SUBFIELD) or not _HEADER.size + _TRAILER.size <= length <= end - start:
            raise ValueError(f"{file.name}: no member begins at {start}")
        yield start, length
        start += length
