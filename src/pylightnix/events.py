"""What happened while a closure was realized, as facts for whoever watches.

No event carries an RRef: a reference is told to nobody before it is durable, and events are not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias, Union

from pylightnix.types import DRef

__all__ = [
    "BuildFailed",
    "BuildFinished",
    "BuildJoined",
    "BuildLogged",
    "BuildSkipped",
    "BuildStarted",
    "BuildWaiting",
    "Event",
    "Observer",
    "PlanStep",
    "StepKind",
    "ignore",
]


@dataclass(frozen=True, slots=True)
class BuildWaiting:
    """Another process builds the same; this one waits for it."""

    dref: DRef
    holders: tuple[str, ...]
    """Processes that work in the store now, as people would name them."""


@dataclass(frozen=True, slots=True)
class BuildStarted:
    """A realizer is about to be called."""

    dref: DRef
    done: int
    """Derivations of the plan that are settled."""
    total: int
    """Derivations in the plan."""


@dataclass(frozen=True, slots=True)
class BuildFinished:
    """A realizer returned and its outputs were taken over (they are not durable yet)."""

    dref: DRef
    seconds: float


@dataclass(frozen=True, slots=True)
class BuildJoined:
    """Another process built what this one was about to; its result is used."""

    dref: DRef


@dataclass(frozen=True, slots=True)
class BuildFailed:
    """A realizer or a matcher raised, or left what cannot be a realization."""

    dref: DRef
    error: BaseException


@dataclass(frozen=True, slots=True)
class BuildSkipped:
    """A derivation was not looked at, because the build of something below it failed."""

    dref: DRef
    because: DRef


@dataclass(frozen=True, slots=True)
class BuildLogged:
    """A build in a daemon printed something. What a build in this process prints goes to this process's own streams."""

    dref: DRef
    data: bytes
    """A piece of its log, standard output and standard error together; where a piece ends means nothing."""


Event: TypeAlias = Union[BuildWaiting, BuildStarted, BuildLogged, BuildFinished, BuildJoined, BuildFailed, BuildSkipped]
Observer: TypeAlias = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Watch nothing."""


class StepKind(Enum):
    """What a dry run says of a derivation."""

    reuse = "reuse"
    build = "build"
    unknown = "unknown"
    """Depends on something that would be built, so its candidates are not known yet."""
    failed = "failed"
    """Its matcher fails."""
    refused = "refused"
    """It would be built, and must not be."""
    skipped = "skipped"
    """Depends on something that fails or is refused."""


@dataclass(frozen=True, slots=True)
class PlanStep:
    """One line of a dry run."""

    dref: DRef
    kind: StepKind
    reason: str
