"""What one end accepts from the other: sizes, depths, counts and times, as numbers in one place.

Must not know how a message is laid out; `framing` enforces the limits of one message before it is
decoded, the connections those of a conversation, the daemon those that need a clock or a user.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = [
    "BLOB_BYTES_MAX",
    "BLOB_PIECE_BYTES_MAX",
    "CONFIG_BYTES_MAX",
    "CONNECTIONS_PER_USER_MAX",
    "DEFAULT_LIMITS",
    "DERIVATIONS_PER_MESSAGE_MAX",
    "HELLO_DEADLINE_SECONDS",
    "Limits",
    "OPERATIONS_BYTES_MAX",
    "OPERATIONS_PER_USER_MAX",
    "OPERATION_BYTES_MAX",
    "PICKLED_BYTES_MAX",
    "ROWS_PER_MESSAGE_MAX",
    "UNGREETED_PER_USER_MAX",
]

_MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """What a connection takes. What is longer, deeper or more is refused when its header is seen."""

    message_bytes: int = 8 * _MIB
    """Longest message, envelope included."""
    depth: int = 64
    """Deepest nesting of arrays and maps; the envelope is the first level."""
    text_bytes: int = 4 * _MIB
    """Longest text, in bytes of UTF-8."""
    binary_bytes: int = 4 * _MIB
    """Longest byte string."""
    array_items: int = 100_000
    """Longest array."""
    map_items: int = 10_000
    """Largest map, in pairs."""
    values: int = 200_000
    """Most values in one message, keys and containers included. An empty array takes one byte on the wire and
    some sixty in memory: without this, a message of 8 MiB could ask for half a gigabyte."""
    method_characters: int = 64
    """Longest name of a method or a notification."""
    unanswered_requests: int = 256
    """Most requests of one connection that wait for their responses."""


DEFAULT_LIMITS: Final = Limits()


HELLO_DEADLINE_SECONDS: Final = 10.0
"""How long a client may take to say hello before the daemon hangs up."""

CONNECTIONS_PER_USER_MAX: Final = 64
"""Most connections of one user at a time that have said hello."""

UNGREETED_PER_USER_MAX: Final = 64
"""Most connections of one user at a time that have not said hello yet. One more, and the oldest of them is hung up on."""

OPERATIONS_PER_USER_MAX: Final = 256
"""Most operations of one user that have not ended."""

CONFIG_BYTES_MAX: Final = _MIB
"""Longest canonical form of a config or a context."""

DERIVATIONS_PER_MESSAGE_MAX: Final = 1000
"""Most derivations in one `submit.add`, and configs in one `register`."""

BLOB_PIECE_BYTES_MAX: Final = 4 * _MIB
"""Longest piece of a blob in one `submit.blob`."""

BLOB_BYTES_MAX: Final = 256 * _MIB
"""Longest blob in all."""

OPERATION_BYTES_MAX: Final = 512 * _MIB
"""Most bytes of blobs and derivations in one operation."""

OPERATIONS_BYTES_MAX: Final = 1024 * _MIB
"""Most bytes of blobs and derivations in all operations of a daemon that have not ended."""

PICKLED_BYTES_MAX: Final = _MIB
"""Longest pickled exception; a longer one is left out by whoever pickles it."""

ROWS_PER_MESSAGE_MAX: Final = 10_000
"""Most rows that one `outcome` or `query` can ask for. The answer may hold fewer, to stay within one message."""
