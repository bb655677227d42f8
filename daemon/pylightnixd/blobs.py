"""Blobs that clients have sent: pickled realizers, matchers and arguments of fetches.

There is one copy of each in the daemon, for as long as an operation refers to it. Operations, and builds that wait, share it by
reference. Must not know what is in a blob.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from pylightnix.protocol.errors import MessageInvalid

__all__ = ["Blob", "Blobs", "checked"]


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Blob:
    """A blob that is whole, and is what its hash says."""

    data: bytes


@dataclass(slots=True, eq=False)
class Blobs:
    """All that are in use, by their SHA-256."""

    _known: WeakValueDictionary[str, Blob] = field(default_factory=WeakValueDictionary)

    @property
    def total_bytes(self) -> int:
        """How long they are together."""
        return sum(len(blob.data) for blob in self._known.values())

    def share(self, sha256: str, data: bytes) -> Blob:
        """Return the blob of this hash, whose bytes were checked: the one that is known, else a new one."""
        blob = self._known.get(sha256)
        if blob is None:
            blob = self._known[sha256] = Blob(data)
        return blob


def checked(sha256: str, pieces: bytearray) -> bytes:
    """Return the bytes of a blob that has arrived in full. Takes a while for a large one.

    Raises:
        MessageInvalid: they are those of another hash.
    """
    found = hashlib.sha256(pieces).hexdigest()
    if found != sha256:
        raise MessageInvalid(f"the blob has the hash {found}", "$.sha256")
    return bytes(pieces)
