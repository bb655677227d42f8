"""How long a build may take and how much it may say: what its stage asks, within what the daemon allows. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

__all__ = ["Bound", "Limits", "OwnLimits"]


@dataclass(frozen=True, slots=True)
class OwnLimits:
    """What a stage asks for itself; None for what the daemon says."""

    timeout_seconds: Optional[float] = None
    silent_timeout_seconds: Optional[float] = None


@dataclass(frozen=True, slots=True)
class Bound:
    """A time, and whose word it is."""

    seconds: float
    """Zero is none."""
    whose: str


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on everything that a worker runs. Zero is none."""

    timeout_seconds: float = 0.0
    """How long it may take, if its stage says nothing of that."""
    silent_timeout_seconds: float = 0.0
    """How long it may say nothing, if its stage says nothing of that."""
    log_bytes: int = 256 << 20
    """How much it may say."""
    timeout_max_seconds: float = 0.0
    """How long it may take, whatever its stage says."""
    silent_timeout_max_seconds: float = 0.0
    """How long it may say nothing, whatever its stage says."""
    matcher_seconds: float = 60.0
    """How long a matcher of the user's own may think."""
    worker_seconds: float = 60.0
    """How long the worker itself may owe an answer; never zero. A cold interpreter on a slow network disk may need so long to say hello."""

    def timeout(self, own: OwnLimits) -> Bound:
        """Return how long a build may take."""
        return _bound("timeout", own.timeout_seconds, self.timeout_seconds, self.timeout_max_seconds)

    def silent_timeout(self, own: OwnLimits) -> Bound:
        """Return how long a build may say nothing."""
        return _bound("silent-timeout", own.silent_timeout_seconds, self.silent_timeout_seconds, self.silent_timeout_max_seconds)


def _bound(name: str, own: Optional[float], default: float, maximum: float) -> Bound:
    wanted = Bound(default, f"the daemon's {name}") if own is None else Bound(own, f"its stage's {name.replace('-', '_')}_seconds")
    if maximum > 0 and not 0 < wanted.seconds <= maximum:
        return Bound(maximum, f"the daemon's {name}-max")
    return wanted
