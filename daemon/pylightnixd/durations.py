"""How long builds took, and so will take: of the same derivation, else of the same name, else of all.

Kept in memory, so that asking costs nothing but looking it up: the latest builds that the index knows, and those since.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from pylightnix.refs import undref
from pylightnix.store.index import Index
from pylightnix.types import DRef

__all__ = ["Durations"]

K = TypeVar("K")

KEPT_MAX: Final = 20_000
"""Of how many derivations the duration is remembered, and of how many names."""
UNKNOWN_SECONDS: Final = 1.0
"""What a build is taken for if there never was any: then the way with the most builds counts as the longest."""


@dataclass(slots=True)
class Durations:
    """The durations of the latest builds."""

    _of_dref: dict[DRef, float] = field(default_factory=dict)
    _of_name: dict[str, float] = field(default_factory=dict)
    """Those of the latest build with that name."""

    @classmethod
    def of(cls, index: Index) -> Durations:
        """Return what the index knows of the latest builds."""
        durations = cls()
        for dref, seconds in index.latest_durations(KEPT_MAX):
            durations.record(dref, seconds)
        return durations

    def record(self, dref: DRef, seconds: float) -> None:
        """Enter how long a build took."""
        seconds = max(0.0, seconds)
        _remember(self._of_dref, dref, seconds)
        _remember(self._of_name, undref(dref)[1], seconds)

    def expected(self, drefs: Iterable[DRef]) -> dict[DRef, float]:
        """Return how long each of these is expected to take. What nobody can tell takes as long as the others on average.

        May be called in another thread while `record` is in this one: each is one look-up.
        """
        found = {dref: self._of_dref.get(dref, self._of_name.get(undref(dref)[1])) for dref in drefs}
        known = [seconds for seconds in found.values() if seconds is not None]
        usual = sum(known) / len(known) if known else UNKNOWN_SECONDS
        return {dref: usual if seconds is None else seconds for dref, seconds in found.items()}


def _remember(kept: dict[K, float], key: K, seconds: float) -> None:
    kept.pop(key, None)
    kept[key] = seconds
    if len(kept) > KEPT_MAX:
        del kept[next(iter(kept))]
