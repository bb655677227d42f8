"""Finds where one MessagePack value ends, and refuses it by its headers if it breaks a limit.

Looks at headers only, each once, and keeps its place between calls: the cost is linear however the bytes
arrive, nothing is allocated for what a header merely announces, and nesting takes no stack of Python's.
Must not know what the values mean, other than that the top one is an array (an envelope).

MessagePack's own unpacker was refused for this: it finds out how large a message is by building it.
Format: https://github.com/msgpack/msgpack/blob/master/spec.md
"""

from __future__ import annotations

from typing import Final, Optional

from pylightnix.protocol.errors import MessageTooDeep, MessageTooLarge, RemoteProtocolError
from pylightnix.protocol.limits import Limits

__all__ = ["Scanner"]


# Plain integers, not an enum: the loop below meets one for each value of each message.
_REFUSED, _SCALAR, _TEXT, _BINARY, _ARRAY, _MAP = range(6)
# Whether a kind opens a container is asked as `kind >= _ARRAY`.


def _format_of(first: int) -> tuple[int, int, int]:
    """Return (kind, bytes of the length field, length when there is no such field)."""
    if first <= 0x7F or first >= 0xE0 or first in (0xC0, 0xC2, 0xC3):
        return _SCALAR, 0, 0
    if first <= 0x8F:
        return _MAP, 0, first & 0x0F
    if first <= 0x9F:
        return _ARRAY, 0, first & 0x0F
    if first <= 0xBF:
        return _TEXT, 0, first & 0x1F
    scalars = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
    if first in scalars:
        return _SCALAR, 0, scalars[first]
    measured = {
        0xC4: (_BINARY, 1),
        0xC5: (_BINARY, 2),
        0xC6: (_BINARY, 4),
        0xD9: (_TEXT, 1),
        0xDA: (_TEXT, 2),
        0xDB: (_TEXT, 4),
        0xDC: (_ARRAY, 2),
        0xDD: (_ARRAY, 4),
        0xDE: (_MAP, 2),
        0xDF: (_MAP, 4),
    }
    if first in measured:
        kind, width = measured[first]
        return kind, width, 0
    return _REFUSED, 0, 0  # 0xc1, which is never used, and the extension types


_FORMATS: Final = tuple(_format_of(first) for first in range(256))


class Scanner:
    """Walks over the headers of one value at a time. Not usable any more after it raised."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._maxima = {
            _TEXT: (limits.text_bytes, "a text", "bytes"),
            _BINARY: (limits.binary_bytes, "a byte string", "bytes"),
            _ARRAY: (limits.array_items, "an array", "items"),
            _MAP: (limits.map_items, "a map", "pairs"),
        }
        self._shortest_limit = min(maximum for maximum, _, _ in self._maxima.values())
        self.headers_read = 0
        """How often a header was looked at since the scanner was made: what a test holds linear in the bytes fed."""
        self._restart()

    def _restart(self) -> None:
        self._position = 0  # of the next header
        self._values = 0  # seen or announced
        self._expected = 1  # announced and not yet seen
        # Of each open container but the innermost: values still to come, and whether it is a map.
        self._outer: list[tuple[int, bool]] = []
        self._remaining, self._in_map = 1, False  # the same of the innermost; at first the message itself

    def scan(self, buffer: bytearray) -> Optional[int]:
        """Return the length of the value that `buffer` begins with; None if more bytes are needed.

        The caller appends to the same buffer between calls, and removes the value once its length is known.

        Raises:
            RemoteProtocolError: this is not MessagePack as the protocol uses it, or a limit is broken.
        """
        # One long loop over local names: this is the only Python that runs for each value of each message.
        size, formats, shortest, longest = len(buffer), _FORMATS, self._shortest_limit, self._limits.message_bytes
        position, expected, remaining, in_map, headers = self._position, self._expected, self._remaining, self._in_map, 0
        while expected and position < size:
            headers += 1
            kind, width, length = formats[buffer[position]]
            body = position + 1 + width
            if width:
                if body > size:
                    break
                length = int.from_bytes(buffer[position + 1 : body], "big")
            if length > shortest:
                self._check_length(kind, length)
            if not position or (kind != _TEXT and (kind == _REFUSED or (in_map and not remaining & 1))):
                self._check_kind(kind, position, buffer)
            expected -= 1
            remaining -= 1
            if kind < _ARRAY:
                position = body + length
            else:
                position = body
                self._outer.append((remaining, in_map))
                in_map = kind == _MAP
                remaining = self._announced(2 * length if in_map else length)
                expected += remaining
            while not remaining and expected:
                remaining, in_map = self._outer.pop()
            if position + expected > longest:
                raise MessageTooLarge(f"a message is longer than {longest} bytes")
        self.headers_read += headers
        if expected or position > size:
            self._position, self._expected, self._remaining, self._in_map = position, expected, remaining, in_map
            return None
        self._restart()
        return position

    def _check_kind(self, kind: int, position: int, buffer: bytearray) -> None:
        """Raise for a value that is not text, where that is refused, or that is none."""
        if kind == _REFUSED:
            raise RemoteProtocolError(f"byte 0x{buffer[position]:02x} begins no value (extension types are not used)")
        if position:
            raise RemoteProtocolError("a key of a map is not text")
        if kind != _ARRAY:
            raise RemoteProtocolError("a message is an array")

    def _check_length(self, kind: int, length: int) -> None:
        maximum, what, unit = self._maxima.get(kind, (length, "", ""))  # a number's length is its format's
        if length > maximum:
            raise MessageTooLarge(f"{what} has {length} {unit}, {maximum} is the limit")

    def _announced(self, count: int) -> int:
        """Note that a container of `count` values was opened."""
        if len(self._outer) > self._limits.depth:
            raise MessageTooDeep(f"arrays and maps are nested deeper than {self._limits.depth}")
        self._values += count
        if self._values > self._limits.values:
            raise MessageTooLarge(f"a message holds more than {self._limits.values} values")
        return count
