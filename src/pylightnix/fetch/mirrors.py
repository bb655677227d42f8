"""Which mirrors a file may be had from, and in which order to ask. Decides only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from pylightnix.fetch.checksums import Checksum
from pylightnix.fetch.urls import Origin, origin_of

__all__ = ["FailureMemory", "hashed_urls"]

_REMEMBERED_SECONDS: Final = 300.0
_REMEMBERED_MAX: Final = 1000


def hashed_urls(bases: Iterable[str], checksums: Sequence[Checksum]) -> list[str]:
    """Return where mirrors that keep files by hash would have a file: ``<base>/sha256/<hex>``."""
    return [f"{base.rstrip('/')}/{checksum.algorithm}/{checksum.hex}" for base in bases for checksum in checksums]


@dataclass(slots=True)
class FailureMemory:
    """Which servers failed lately. Those are asked last, not never: they may be all there is."""

    seconds: float = _REMEMBERED_SECONDS
    _until: dict[Origin, float] = field(default_factory=dict)

    def failed(self, url: str, now: float) -> None:
        """Take note that the server of `url` could not be reached, or failed."""
        self._until[origin_of(url)] = now + self.seconds
        while len(self._until) > _REMEMBERED_MAX:
            del self._until[min(self._until, key=self._until.__getitem__)]

    def answered(self, url: str) -> None:
        """Forget failures of the server of `url`."""
        self._until.pop(origin_of(url), None)

    def ordered(self, urls: Sequence[str], now: float) -> list[str]:
        """Return the URLs in the order to ask them: as they are, but servers that failed lately last."""
        for origin in [origin for origin, until in self._until.items() if until <= now]:
            del self._until[origin]
        return sorted(urls, key=lambda url: origin_of(url) in self._until)
