"""The count of what was taken of an archive so far, held against its limits."""

from __future__ import annotations

from typing import Optional

from pylightnix.errors import UnpackFailed
from pylightnix.unpack_limits import UnpackLimits

__all__ = ["UnpackLimits", "Unpacking", "raise_limit", "shown_name"]


class Unpacking:
    """One archive on its way into a folder.

    Attributes:
        limits: what it may become.
        where: how errors name the archive.
        entry: the entry that is at work, None before the first.
        entries: how many were made.
        expanded_bytes: how much came out so far.
    """

    def __init__(self, where: str, archive_bytes: int, limits: UnpackLimits, way_out: Optional[str] = None) -> None:
        """Begin. `way_out` is what whoever asks can do instead; all errors say it."""
        self.where, self.limits, self._way_out = where, limits, way_out
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
        if self.entries > self.limits.entries:
            raise self.failed(f"it holds more than {self.limits.entries} entries", raise_limit("entries"))

    def count_bytes(self, count: int) -> None:
        """Count bytes before they are written, or as they are decompressed. Raises `UnpackFailed` beyond the limits."""
        self.expanded_bytes += count
        self.expect_bytes(0)

    def expect_bytes(self, count: int) -> None:
        """Raise `UnpackFailed` if so many bytes more would be beyond the limits."""
        if self.expanded_bytes + count > self.limits.total_bytes:
            raise self.failed(f"its contents are larger than {self.limits.total_bytes} bytes", raise_limit("total_bytes"))
        if self.expanded_bytes + count > self._by_ratio:
            problem = f"its contents are larger than {self._by_ratio} bytes, too much for an archive of its size"
            raise self.failed(f"{problem} ({self.limits.ratio} times)", raise_limit("ratio", 4 * self.limits.ratio))

    def expect_memory(self, count: int, limit: str) -> None:
        """Raise `UnpackFailed` if so much memory is more than the limit of that name."""
        allowed: int = getattr(self.limits, limit)
        if count > allowed:
            problem = f"its compression looks back {count} bytes, more than the {allowed} that are allowed"
            raise self.failed(problem, f"{raise_limit(limit, count)}, or pack it again with less")


def raise_limit(limit: str, value: Optional[int] = None) -> str:
    """Return the advice to raise a limit."""
    return f"if it is to be trusted, raise the limit with limits=UnpackLimits({limit}={'…' if value is None else value})"


def shown_name(name: bytes) -> str:
    """Return how errors show a name."""
    return name.decode("utf-8", "backslashreplace")
