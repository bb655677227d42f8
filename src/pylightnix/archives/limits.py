"""How much an archive may hold, and the count of what was taken of it so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Final, Optional

from pylightnix.errors import Misuse, UnpackFailed

__all__ = ["UnpackLimits", "Unpacking", "checked_limits", "raise_limit", "shown_name"]

_MAX: Final = 1 << 53
"""What fits into a message to a daemon."""


@dataclass(frozen=True, slots=True)
class UnpackLimits:
    """What one archive may become. The usual limits stop bombs; raise one for an archive that is to be trusted."""

    entries: int = 2_000_000
    """Files, folders and links, those too that are only named on the way to others."""
    total_bytes: int = 1 << 40
    """Contents of all files, holes included."""
    ratio: int = 250
    """How many times larger than the archive its contents may be…"""
    ratio_from_bytes: int = 1 << 30
    """…once they are larger than this."""
    memory_bytes: int = 1 << 30
    """How far back its compression may look: the dictionary of xz, LZMA and 7z. Four times what programs take at their strongest level."""
    zstd_window_bytes: int = 1 << 27
    """The same of zstd: what `zstd -d` takes without an option."""


def checked_limits(limits: object, what: str) -> Optional[UnpackLimits]:
    """Return limits that `what` was given, None for the usual ones.

    Raises:
        Misuse: they are neither `UnpackLimits` nor a dict of some of its fields, or one is no number of things.
    """
    if limits is None:
        return None
    names = [each.name for each in fields(UnpackLimits)]
    if isinstance(limits, UnpackLimits):
        given: Mapping[str, object] = asdict(limits)
    elif isinstance(limits, Mapping):
        given = limits
    else:
        raise Misuse(f"{what} expects for limits UnpackLimits(…) or a dict, found {limits!r:.100}; write limits=UnpackLimits(ratio=1000)")
    for name, value in given.items():
        if name not in names:
            raise Misuse(f"{what} has no limit {name!r:.100}; expected some of {', '.join(names)}")
        if type(value) is not int or not 0 <= value <= _MAX:
            raise Misuse(f"{what} expects for the limit {name} a number up to {_MAX}, found {value!r:.100}")
    return UnpackLimits(**{str(name): value for name, value in given.items() if type(value) is int})


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
