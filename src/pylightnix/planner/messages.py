"""What goes into the planner (facts) and what comes out (actions). Values only."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Optional, TypeAlias, Union

from pylightnix.types import DRef, RRef

__all__ = [
    "Action",
    "AskCaller",
    "AskMatcher",
    "Built",
    "CallerAnswered",
    "Candidate",
    "CandidatesFound",
    "Commit",
    "CommitFailed",
    "Committed",
    "Fact",
    "Failed",
    "FindCandidates",
    "Finish",
    "MatcherAnswered",
    "StartBuild",
    "Withdrawn",
]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A realization that a matcher may choose."""

    rref: RRef
    started: float
    """When its latest build started, UTC seconds since the epoch; what `match_latest` ranks by."""


# --- facts ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CandidatesFound:
    """The realizations of `dref` with the context that was asked about, sorted by reference.

    As an answer to `StartBuild` it says that nothing was built because others delivered meanwhile.
    """

    dref: DRef
    candidates: Sequence[Candidate]


@dataclass(frozen=True, slots=True)
class MatcherAnswered:
    """What the matcher of `dref` returned: anything, for matchers are user code."""

    dref: DRef
    answer: Any


@dataclass(frozen=True, slots=True)
class CallerAnswered:
    """What whoever realizes said about `dref` when asked."""

    dref: DRef
    rrefs: Optional[Sequence[RRef]]
    """Realizations that settle it, without its matcher; None to run its realizer."""


@dataclass(frozen=True, slots=True)
class Built:
    """The outputs of `dref` are in place; candidates now include them."""

    dref: DRef
    joined: bool = False
    """Whether the build was caused by somebody else."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The matcher or the realizer of `dref` failed."""

    dref: DRef
    error: BaseException


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """The build of `dref` was not begun, and will not be: something failed, and the rest is not to go on."""

    dref: DRef


@dataclass(frozen=True, slots=True)
class Committed:
    """Everything that was in place when `Commit` was given is durable."""


@dataclass(frozen=True, slots=True)
class CommitFailed:
    """Realizations that were in place, and not durable yet, are lost."""

    error: BaseException
    lost: Optional[Collection[RRef]] = None
    """Which of the matched ones; None for all that this plan built. What is above them fails with them."""


Fact: TypeAlias = Union[CandidatesFound, MatcherAnswered, CallerAnswered, Built, Failed, Withdrawn, Committed, CommitFailed]


# --- actions ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FindCandidates:
    """Look up the realizations of `dref` whose direct dependencies are `context`."""

    dref: DRef
    context: dict[DRef, list[RRef]]


@dataclass(frozen=True, slots=True)
class AskMatcher:
    """Let the matcher of `dref` choose among `candidates`."""

    dref: DRef
    candidates: Sequence[Candidate]


@dataclass(frozen=True, slots=True)
class AskCaller:
    """Let whoever realizes say what becomes of `dref`. Given only for what a plan was told to ask about."""

    dref: DRef
    context: dict[DRef, list[RRef]]
    error: Optional[BaseException] = None
    """What its matcher or realizer raised just now."""


@dataclass(frozen=True, slots=True)
class StartBuild:
    """Run the realizer of `dref`, unless (not forced and) candidates other than `known` have appeared."""

    dref: DRef
    context: dict[DRef, list[RRef]]
    known: Optional[Sequence[Candidate]]
    """What the matcher saw when it asked for a build. None when the build is forced."""


@dataclass(frozen=True, slots=True)
class Commit:
    """Make everything durable that is in place."""


@dataclass(frozen=True, slots=True)
class Finish:
    """Nothing is left to do; `Plan.outcome` may be told."""


Action: TypeAlias = Union[FindCandidates, AskMatcher, AskCaller, StartBuild, Commit, Finish]
