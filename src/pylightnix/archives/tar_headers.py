"""Headers of tar archives: ustar, pax (POSIX.1-2001), GNU and old ones. Pure: bytes in, facts out.

Why not `tarfile`: what it makes of odd archives changes with each release of Python, and tree hashes must not; it reads
headers of any declared size into memory, and several of its releases can be made to loop.

Names stay bytes. A header that its checksum does not fit, or whose numbers are none, is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["BLOCK_BYTES", "MalformedTar", "TarHeader", "looks_like_tar", "parse_header", "parse_number", "parse_pax", "parse_sparse_fields"]

BLOCK_BYTES: Final = 512
_ZERO_BLOCK: Final = bytes(BLOCK_BYTES)


class MalformedTar(Exception):
    """The bytes are no header. The text says why."""


@dataclass(frozen=True, slots=True)
class TarHeader:
    """What one block says."""

    name: bytes
    kind: bytes
    """One byte: the type flag."""
    mode: int
    size: int
    """How many bytes follow that are not headers, if such follow entries of its kind."""
    target: bytes
    """Of links."""
    block: bytes
    """The block itself, for what only some kinds have."""


def parse_number(field: bytes) -> int:
    """Return a number: octal digits between spaces and zero bytes, or binary behind a byte 0x80."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:])
    digits = field.split(b"\0", 1)[0].strip()
    if field[:1] >= b"\x80" or digits.strip(b"01234567"):
        raise MalformedTar(f"expected a number that is not negative in its header, found {field!r}")
    return int(digits or b"0", 8)


def _checksum_fits(block: bytes) -> bool:
    try:
        declared = parse_number(block[148:156])
    except MalformedTar:
        return False
    rest = block[:148] + b" " * 8 + block[156:]
    # Some old programs took bytes for signed.
    return declared in (sum(rest), sum(rest) - 256 * sum(byte > 127 for byte in rest))


def looks_like_tar(begin: bytes) -> bool:
    """Tell whether something that begins so is a tar archive that is not empty."""
    return len(begin) >= BLOCK_BYTES and begin[:BLOCK_BYTES] != _ZERO_BLOCK and _checksum_fits(begin[:BLOCK_BYTES])


def parse_header(block: bytes) -> TarHeader | None:
    """Return what a block of 512 bytes says; None for the mark at the end of an archive, a block of zeros.

    Raises:
        MalformedTar: it is no header.
    """
    if block == _ZERO_BLOCK:
        return None
    if not _checksum_fits(block):
        raise MalformedTar("its header is damaged: the checksum does not fit")
    name = _text(block[0:100])
    prefix = _text(block[345:500]) if block[257:263] == b"ustar\0" else b""
    return TarHeader(
        name=prefix + b"/" + name if prefix else name,
        kind=block[156:157],
        mode=parse_number(block[100:108]),
        size=parse_number(block[124:136]),
        target=_text(block[157:257]),
        block=block,
    )


def _text(field: bytes) -> bytes:
    return field.split(b"\0", 1)[0]


def parse_pax(content: bytes) -> list[tuple[bytes, bytes]]:
    """Return the records of a pax header, ``26 path=…`` and a line feed each, in their order.

    Raises:
        MalformedTar: there is something else in it.
    """
    records = []
    at = 0
    while at < len(content) and content[at]:  # some programs count padding in
        length, space, _ = content[at : at + 12].partition(b" ")
        end = at + int(length) if space and length.isdigit() else at
        record = content[at + len(length) + 1 : end]
        key, equals, value = record.partition(b"=")
        if not at < end <= len(content) or not equals or not value.endswith(b"\n"):
            raise MalformedTar(f"its pax header holds something that is no record, at byte {at}")
        records.append((key, value[:-1]))
        at = end
    return records


def parse_sparse_fields(fields: bytes) -> list[tuple[int, int]]:
    """Return (offset, size) of the pieces that a GNU header lists, in fields of 12 bytes; an empty one ends the list."""
    pieces = []
    for at in range(0, len(fields) - 23, 24):
        if not fields[at : at + 24].strip(b"\0"):
            break
        pieces.append((parse_number(fields[at : at + 12]), parse_number(fields[at + 12 : at + 24])))
    return pieces
