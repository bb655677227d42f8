"""What builds take of the host while they run, and how much of that there is. Pure values.

A kind of resource is named by the option that asks for it: ``cpus``, ``memory``, ``tags.gpu``. Must not know builds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Optional

from pylightnix.protocol.errors import BeyondBudget

__all__ = ["CPUS", "Budget", "MEMORY", "Needs", "NO_NEEDS", "Spare", "TAG_PREFIX", "described", "device_variables"]

CPUS: Final = "cpus"
MEMORY: Final = "memory"
TAG_PREFIX: Final = "tags."


@dataclass(frozen=True, slots=True)
class Needs:
    """What one sample of a build takes."""

    cpus: int = 1
    """Slots. Zero for what does not run here."""
    memory: int = 0
    """Bytes."""
    tags: tuple[tuple[str, int], ...] = ()
    """Name and number, sorted."""

    def amounts(self) -> dict[str, int]:
        """Return how much it is of each kind that it takes any of."""
        found = {CPUS: self.cpus, MEMORY: self.memory, **{TAG_PREFIX + name: number for name, number in self.tags}}
        return {kind: amount for kind, amount in found.items() if amount}


NO_NEEDS: Final = Needs(cpus=0)


@dataclass(frozen=True, slots=True)
class Budget:
    """What the host has for builds. Whatever has no bound here can be had without end, but there are no tags but these."""

    cpus: int
    memory: Optional[int] = None
    tags: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.cpus < 1:
            raise ValueError(f"expected one CPU slot or more, found {self.cpus}")

    def of(self, kind: str) -> float:
        """Return how much there is of a kind."""
        if kind == CPUS:
            return self.cpus
        if kind == MEMORY:
            return float("inf") if self.memory is None else self.memory
        return self.tags.get(kind.removeprefix(TAG_PREFIX), 0)

    def check(self, dref: str, needs: Needs) -> None:
        """Refuse what could never start.

        Raises:
            BeyondBudget: it takes more of something than there is at all.
        """
        for kind, wanted in needs.amounts().items():
            if wanted > self.of(kind):
                raise BeyondBudget(dref, kind, wanted, int(self.of(kind)))

    def could_hold(self, needs: Needs) -> bool:
        """Tell whether there is enough for it when nothing else runs."""
        return all(wanted <= self.of(kind) for kind, wanted in needs.amounts().items())


class Spare:
    """What is free of a budget, while it is found out who may have it."""

    def __init__(self, budget: Budget, taken: Mapping[str, int]) -> None:
        self._budget, self._taken = budget, taken
        self._kept: dict[str, float] = {}
        self.closed: set[str] = set()
        """Kinds that somebody waits for who goes first."""

    def of(self, kind: str) -> float:
        """Return how much of a kind is free, and kept for nobody."""
        return max(0, self._budget.of(kind) - self._taken.get(kind, 0) - self._kept.get(kind, 0))

    def lacks(self, needs: Needs) -> set[str]:
        """Return the kinds of which there is not enough."""
        return {kind for kind, amount in needs.amounts().items() if amount > self.of(kind)}

    def keep(self, needs: Needs, lacking: set[str]) -> None:
        """Keep what is there for somebody who lacks the rest."""
        self.closed |= lacking
        for kind, amount in needs.amounts().items():
            self._kept[kind] = self._kept.get(kind, 0) + min(amount, self.of(kind))

    def is_closed_to(self, needs: Needs) -> bool:
        """Tell whether it takes of what somebody waits for who goes first."""
        return not self.closed.isdisjoint(needs.amounts())

    def times(self, needs: Needs, limit: int) -> int:
        """Return how often there is enough for `needs`, up to `limit`."""
        return min([limit, *(int(left // n) for kind, n in needs.amounts().items() if (left := self.of(kind)) != float("inf"))])


def described(kind: str) -> str:
    """Return what it is called that there is not enough of, in a sentence."""
    return {CPUS: "a CPU slot", MEMORY: "memory"}.get(kind, kind.removeprefix(TAG_PREFIX))


def device_variables(devices: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Return the environment variables that tell a build which of the tagged things are its own."""
    found = {}
    for tag, numbers in devices.items():
        text = ",".join(map(str, numbers))
        found[f"PYLIGHTNIX_TAG_{tag.upper()}"] = text
        if tag == "gpu":
            found["CUDA_VISIBLE_DEVICES"] = text
    return found
