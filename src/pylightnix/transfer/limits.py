"""What an archive may bring, and the count of what it has brought so far. Everything is counted before it is written.

Names, link targets and depth have the limits of every tree (`tree_writer`, `nar`). Must not know files or stores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Final, Optional, Union

from pylightnix.errors import InvalidArchive
from pylightnix.unpack_limits import UnpackLimits, checked_limits

__all__ = ["IMPORT_LIMITS", "Allowance", "import_limits"]

IMPORT_LIMITS: Final = UnpackLimits(ratio=100, memory_bytes=1 << 28)
"""The usual limits. Trees compress less than what one unpacks may: an archive of this program's is one stream over all of them."""


def import_limits(limits: Union[UnpackLimits, Mapping[str, int], None], what: str) -> UnpackLimits:
    """Return the limits that `what` was given; those that a dict leaves out are the usual ones.

    Raises:
        Misuse: they are neither `UnpackLimits` nor a dict of some of its fields, or one is no number of things.
    """
    checked = checked_limits(limits, what)
    if checked is None or isinstance(limits, UnpackLimits):
        return checked or IMPORT_LIMITS
    return replace(IMPORT_LIMITS, **{name: value for name, value in asdict(checked).items() if name in (limits or {})})


class Allowance:
    """What one archive may still bring."""

    def __init__(self, where: str, limits: UnpackLimits, packed_bytes: Optional[int], is_packed: bool) -> None:
        """Begin.

        Args:
            where: the archive's name, for errors.
            limits: what it may bring.
            packed_bytes: its own size, None where that is not known.
            is_packed: whether it is compressed.
        """
        self._where, self._limits, self._packed_bytes, self._is_packed = where, limits, packed_bytes, is_packed
        self._entries = 0
        self._declared_bytes = 0

    def count_entry(self) -> None:
        """Count a derivation, a realization, or a file, folder or link in one. Raises `InvalidArchive` beyond the limit."""
        self._entries += 1
        if self._entries > self._limits.entries:
            raise self._refused(f"it holds more than {self._limits.entries} files, folders and links", "entries")

    def expect_tree(self, nar_bytes: int) -> None:
        """Count a tree that is declared to follow. Raises `InvalidArchive` if that cannot be, or is beyond the limits."""
        self._declared_bytes += nar_bytes
        if self._declared_bytes > self._limits.total_bytes:
            raise self._refused(f"its trees are larger than {self._limits.total_bytes} bytes", "total_bytes")
        if self._packed_bytes is None:
            return
        if not self._is_packed and self._declared_bytes > self._packed_bytes:
            problem = f"it is cut short: its trees have {self._declared_bytes} bytes or more, and it has {self._packed_bytes}"
            raise InvalidArchive(self._where, problem)
        if self._is_packed:
            self.check_ratio(self._declared_bytes, self._packed_bytes)

    def check_ratio(self, unpacked_bytes: int, packed_bytes: int) -> None:
        """Raise `InvalidArchive` if so much must not come out of so little."""
        allowed = max(self._limits.ratio_from_bytes, self._limits.ratio * packed_bytes)
        if unpacked_bytes > allowed:
            problem = f"{packed_bytes} bytes of it unpack to {unpacked_bytes} or more, and {allowed} are allowed"
            raise self._refused(f"{problem} ({self._limits.ratio} times)", "ratio")

    def _refused(self, problem: str, limit: str) -> InvalidArchive:
        advice = f"if you trust it, raise the limit: import --limit {limit}=N, or sunpack(…, limits={{{limit!r}: N}})"
        return InvalidArchive(self._where, f"{problem}; nothing of what is beyond was written", advice)
