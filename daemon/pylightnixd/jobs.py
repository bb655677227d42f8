"""What a build is made of, and what there is of one that runs: values that the rooms of the scheduler hand to each other.

Must not know how builds are started or run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional, Protocol

import trio

from pylightnix.fetch import FetchEnvironment, FetchSpec
from pylightnix.planner.messages import Fact
from pylightnix.protocol.messages import EventPhase, Fetching, RealizerSpec
from pylightnix.stages.fetch import FetchRealizer
from pylightnix.travel import Environment
from pylightnix.types import DRef, RRef
from pylightnixd.claims import Caller, Claim
from pylightnixd.limits import OwnLimits
from pylightnixd.logs import BuildLog
from pylightnixd.resources import NO_NEEDS, Needs
from pylightnixd.table import BuildKey
from pylightnixd.worker import Worker

__all__ = ["BuildJob", "FetchJob", "RunningBuild", "Waiter"]


@dataclass(frozen=True, slots=True)
class FetchJob:
    """A file to fetch, and for whom."""

    realizer: FetchRealizer
    spec: FetchSpec
    environment: FetchEnvironment
    user: str


@dataclass(frozen=True, slots=True)
class BuildJob:
    """All that is needed to run a build; who joins it runs the first one's job, equal by its key."""

    key: BuildKey
    context: Mapping[Any, Sequence[Any]]
    realizer: RealizerSpec
    blob: Optional[bytes]
    digest: Optional[str]
    arguments: Optional[bytes]
    environment: Environment
    operation: str
    """Whose job it is."""
    uid: int
    """The user who submitted that."""
    caller: Optional[Caller] = None
    """Who alone can run it; None if a worker can."""
    samples: int = 1
    """How many of its samples may be made side by side, if there are slots for them."""
    needs: Needs = Needs()  # noqa: RUF009  # it is frozen
    """What each of these takes of the host."""
    own_limits: OwnLimits = OwnLimits()  # noqa: RUF009  # it is frozen
    in_fresh_worker: bool = False
    """Whether it needs an interpreter that has run nothing before."""
    priority: int = 0
    fetch: Optional[FetchJob] = None
    """What is to be fetched before it is built, if its realizer fetches."""
    path_seconds: float = 0.0
    """How long it and what must follow it will probably take, along the longest way."""

    @property
    def claims(self) -> Needs:
        """What the build takes of the host: what a caller builds is on its own account, and a fetch waits for others."""
        return self.needs if self.caller is None and self.fetch is None else NO_NEEDS


class Waiter(Protocol):
    """An operation, as far as builds are concerned."""

    id: str
    parent: Optional[RunningBuild]
    """The build whose realizer wants it; None for a client's own."""

    def post(self, fact: Fact) -> None:
        """Take a fact in; must not await."""

    def build_started(self, running: RunningBuild) -> None:
        """Learn that a build that it waits for has begun."""

    def build_fetching(self, running: RunningBuild, fetch: Fetching, phase: EventPhase) -> None:
        """Learn how far a build is that fetches."""

    def build_placing(self, running: RunningBuild) -> None:
        """Learn that a build's processes are dead and its outputs are on their way into the store."""

    def build_abandoned(self, dref: DRef) -> None:
        """Learn that nobody runs the build of `dref` any more, though nothing failed; it is to ask for it again."""


@dataclass(slots=True, eq=False)
class RunningBuild:
    """A build that was released."""

    id: str
    job: BuildJob
    log: BuildLog
    started: float
    """UTC seconds since the epoch."""
    pid: Optional[int] = None
    worker: Optional[Worker] = None
    cancelled: bool = False
    kill: trio.Event = field(default_factory=trio.Event)
    """Set when the build is to be killed: it was cancelled, or its log is too long."""
    killed_because: Optional[str] = None
    claim: Optional[Claim] = None
    """What its caller was given, where a caller runs it."""
    abandoned: bool = False
    """Whether its caller went away before it had built."""
    token: Optional[str] = None
    """By which its realizer tells that it is this build that wants something; another one for each attempt."""
    realized: dict[DRef, set[RRef]] = field(default_factory=dict)
    """What was realized for its realizer: its dynamic dependencies."""
    told: list[str] = field(default_factory=list)
    """Warnings for who asked for it."""
    fetching: Optional[Fetching] = None
    """How far its fetch is, while it is on its way."""
    resumes: deque[trio.Event] = field(default_factory=deque)
    """Those whose waits are over and who go on when there are slots for them."""
