"""When to lose patience with a process, and what to do about it then. Pure: it is told the time.

*Debts* say when a process has been silent too long while somebody waits for its answer. An *ending* says which step is due
once it is to end: ask it, SIGTERM, SIGKILL, give it up. Every step is taken once, in order, so each wait on a process ends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

__all__ = ["PACE", "Debts", "Ending", "Step"]


class Step(Enum):
    """What is done to a process that is to end."""

    ask = "ask"
    terminate = "SIGTERM"
    kill = "SIGKILL"
    give_up = "give up"


PACE: Final[Mapping[Step, float]] = {Step.ask: 0.0, Step.terminate: 1.0, Step.kill: 2.0, Step.give_up: 4.0}
"""How many seconds after the beginning of its end each step is due. A worker that is killed early loses nothing: its builds die with it."""


@dataclass(slots=True)
class Ending:
    """The end of one process."""

    begun: float
    """When it was decided that it is to end."""
    pace: Mapping[Step, float] = field(default_factory=lambda: PACE)
    _taken: int = 0

    def due(self, now: float) -> list[Step]:
        """Return the steps to take now, in order; none of them is returned again."""
        steps = list(Step)[self._taken :]
        found = [step for step in steps if self.begun + self.pace[step] <= now]
        self._taken += len(found)
        return found

    @property
    def next_at(self) -> float:
        """When the next step is due; infinite after the last."""
        left = list(Step)[self._taken :]
        return self.begun + self.pace[left[0]] if left else math.inf


@dataclass(slots=True)
class Debts:
    """The answers that a process owes."""

    limit_seconds: float
    """How long it may be silent while it owes one."""
    _owed: set[int] = field(default_factory=set)
    _silent_since: float = math.inf

    def owe(self, number: int, now: float) -> bool:
        """Enter that it owes an answer; tell whether it owed none before."""
        first = not self._owed
        self._owed.add(number)
        if first:
            self._silent_since = now
        return first

    def pay(self, number: int, now: float) -> None:
        """Enter that it has answered, or need not any more."""
        self._owed.discard(number)
        self.heard(now)

    def heard(self, now: float) -> None:
        """Enter a sign of life: it has said something, or read some of what it is sent."""
        self._silent_since = now if self._owed else math.inf

    @property
    def overdue_at(self) -> float:
        """When to lose patience, if it stays silent; infinite if it owes nothing."""
        return self._silent_since + self.limit_seconds
