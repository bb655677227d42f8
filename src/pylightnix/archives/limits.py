"""How much an archive may hold, and the count of what was taken of it so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from pylightnix.errors import UnpackFailed

__all__ = ["UnpackLimits", "Unpacking", "shown_name"]


@dataclass(frozen=True, slots=True)
class UnpackLimits:
    """What one archive may become."""

    entries: int = 2_000_000
    """Files, folders and links, those too that are only named on the way to others."""
    total_bytes: int = 1 << 40
    """Contents of all files, holes included."""
    ratio: int = 250
    """How many times larger than the archive its contents may be…"""
    ratio_from_bytes: int = 1 << 30
    """…once they are larger than this."""


class Unpacking:
    """One archive on its way into a folder.

    Attributes:
        where: how errors name the archive.
        entry: the entry that is at work, None before the first.
        entries: how many were made.
        expanded_bytes: how much came out so far.
    """

    def __init__(self, where: str, archive_bytes: int, limits: UnpackLimits, way_out: Optional[str] = None) -> None:
        """Begin. `way_out` is what whoever asks can do instead; all errors say it."""
        self.where, self._limits, self._way_out = where, limits, way_out
        self.entry: Optional[bytes] = None
        self.entries = 0
        self.expanded_bytes = 0
        self._by_ratio = max(limits.ratio_from_bytes, limits.ratio * archive_bytes)

    def failed(self, problem: str, advice: Optional[str] = None) -> UnpackFailed:
        """Return the error to raise about the entry that is at work."""
        said = "; ".join(each for each in (advice, self._way_out) if each is not None)
        return UnpackFailed(self.where, None if self.entry is None else shown_name(self.entry), problem, said or None)

    def count_entry(self) -> None:
        """Count one entry before it is made. Raises `UnpackFailed` beyond the limit."""
        self.entries += 1
        if self.entries > self._limits.entries:
            raise self.failed(f"it holds more than {self._limits.entries} entries", _TOO_LARGE)

    def count_bytes(self, count: int) -> None:
        """Count bytes before they are written, or as they are decompressed. Raises `UnpackFailed` beyond the limits."""
        self.expanded_bytes += count
        self.expect_bytes(0)

    def expect_bytes(self, count: int) -> None:
        """Raise `UnpackFailed` if so many bytes more would be beyond the limits."""
        if self.expanded_bytes + count > self._limits.total_bytes:
            raise self.failed(f"its contents are larger than {self._limits.total_bytes} bytes", _TOO_LARGE)
        if self.expanded_bytes + count > self._by_ratio:
            raise self.failed(f"its contents are larger than {self._by_ratio} bytes, too much for an archive of its size", _TOO_LARGE)


_TOO_LARGE = "if it is to be trusted, raise this with unpack_archive(…, limits=UnpackLimits(…))"


def shown_name(name: bytes) -> str:
    """Return how errors show a name."""
    return name.decode("utf-8", "backslashreplace")
