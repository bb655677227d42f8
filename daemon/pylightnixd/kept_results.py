"""For how long results are kept. Pure: no clock, no trio, no client.

A result is kept until its client has fetched it, or for an hour, or until newer ones need its room: the one that ended first
goes first. What is gone is remembered by name for a while, so that whoever asks is told why. The latest result is kept
however large it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import Final, Optional

from pylightnix.protocol.errors import ResultDropped
from pylightnixd.results import Result

__all__ = ["KEPT_BYTES_MAX", "KEPT_SECONDS", "KeptResults"]

KEPT_SECONDS: Final = 3600.0
KEPT_BYTES_MAX: Final = 256 << 20
REMEMBERED_MAX: Final = 10_000
"""How many results that are gone are remembered."""


@dataclass(frozen=True, slots=True)
class _Kept:
    result: Result
    size: int
    until: float
    """Monotonic seconds."""


@dataclass(slots=True, eq=False)
class KeptResults:
    """All of a daemon, in the order in which their operations ended."""

    seconds: float = KEPT_SECONDS
    bytes_max: int = KEPT_BYTES_MAX
    remembered_max: int = REMEMBERED_MAX
    total_bytes: int = 0
    dropped_bytes: int = 0
    """How much was let go since somebody has set this to zero."""
    _kept: dict[str, _Kept] = field(default_factory=dict)
    _gone: dict[str, tuple[float, str]] = field(default_factory=dict)
    """Operation -> when it ended, in UTC seconds since the epoch, and what became of its result."""

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, operation: str) -> bool:
        return operation in self._kept

    def latest(self, count: int) -> list[Result]:
        """Return those that ended last, the very last first."""
        return [kept.result for kept in islice(reversed(self._kept.values()), count)]

    def find(self, operation: str) -> Optional[Result]:
        """Return the result of an operation, None if there never was one.

        Raises:
            ResultDropped: it is not kept any more.
        """
        kept = self._kept.get(operation)
        if kept is None and operation in self._gone:
            raise ResultDropped(operation, *self._gone[operation])
        return None if kept is None else kept.result

    def deadline(self) -> Optional[float]:
        """Return when `expire` has something to do, None for never."""
        return next((kept.until for kept in self._kept.values()), None)

    def keep(self, now: float, result: Result) -> None:
        """Keep the result of an operation that has ended now. Others may have to go for it."""
        size = result.size()
        self._kept[result.id] = _Kept(result, size, now + self.seconds)
        self.total_bytes += size
        while self.total_bytes > self.bytes_max and len(self._kept) > 1:
            self._drop(next(iter(self._kept)), f"made room for later ones ({self.bytes_max} bytes are kept)")

    def fetched(self, operation: str) -> None:
        """Let go a result that whoever asked for it has."""
        if operation in self._kept:
            self._drop(operation, "was fetched by its client")

    def expire(self, now: float) -> None:
        """Let go what was kept for long enough."""
        while self._kept and next(iter(self._kept.values())).until <= now:
            self._drop(next(iter(self._kept)), "was kept for one hour")

    def _drop(self, operation: str, why: str) -> None:
        kept = self._kept.pop(operation)
        self.total_bytes -= kept.size
        self.dropped_bytes += kept.size
        self._gone[operation] = kept.result.ended, why
        if len(self._gone) > self.remembered_max:
            del self._gone[next(iter(self._gone))]
