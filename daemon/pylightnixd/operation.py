"""An operation: one client's interest in a closure, turned by the planner until it has ended.

It is the planner's second driver. Facts come from the index at once, and from builds and matchers as
they end; everything else is decided in the plan. One task runs it; others only `post` facts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum
from itertools import count
from typing import Any, Final, Optional

import trio

from pylightnix.config import Config, canonical_bytes, cfgdeps, cfgname, mkconfig
from pylightnix.context import context_key
from pylightnix.errors import ForeignDerivation, InvalidConfig, PylightnixException, StoreError
from pylightnix.planner.graph import dependency_order
from pylightnix.planner.messages import (
    Action,
    AskMatcher,
    CandidatesFound,
    Commit,
    CommitFailed,
    Committed,
    Fact,
    Failed,
    FindCandidates,
    Finish,
    MatcherAnswered,
    StartBuild,
)
from pylightnix.planner.plan import Plan, PlanOutcome
from pylightnix.protocol.errors import CannotTravel, OperationCancelled
from pylightnix.protocol.messages import DerivationSpec, Event, EventKind, EventPhase, SubmitOpen
from pylightnix.store.derivations import derivation_ref
from pylightnix.travel import Environment, build_environment_key, builtin_matcher
from pylightnix.types import DRef, RRef
from pylightnixd.builds import BuildJob, Builds, RunningBuild
from pylightnixd.hold import HeldStore
from pylightnixd.matching import MatcherChild
from pylightnixd.report import FailedBuild, failed_row
from pylightnixd.table import BuildKey

__all__ = ["Operation", "OperationState"]

_log = logging.getLogger("pylightnixd")

STEPS_AT_ONCE: Final = 50
"""How many actions an operation takes before it lets others have a turn: some two milliseconds' worth."""


class OperationState(Enum):
    """Where an operation is on its way."""

    open = "open"
    """It is still being sent."""
    running = "running"
    ended = "ended"


@dataclass(slots=True, eq=False)
class Operation:
    """One operation. Satisfies `builds.Waiter`."""

    id: str
    user: str
    request: SubmitOpen
    hold: HeldStore
    builds: Builds
    state: OperationState = OperationState.open
    created: float = field(default_factory=time.time)
    """UTC seconds since the epoch."""
    specs: dict[DRef, tuple[DerivationSpec, Config]] = field(default_factory=dict)
    blobs: dict[str, bytearray] = field(default_factory=dict)
    whole_blobs: set[str] = field(default_factory=set)
    """Which of them are all there, and are what they are called."""
    plan: Optional[Plan] = None
    outcome: Optional[PlanOutcome] = None
    trouble: Optional[BaseException] = None
    """Why there is no outcome: the store failed, or the operation was cancelled."""
    ended: trio.Event = field(default_factory=trio.Event)
    cancel_scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    watchers: dict[int, Callable[[Event], None]] = field(default_factory=dict)
    log_watchers: dict[int, Callable[[RunningBuild], None]] = field(default_factory=dict)
    running: dict[str, RunningBuild] = field(default_factory=dict)
    """Builds that it waits for and that have begun."""
    clients: int = 1
    _facts: deque[Fact] = field(default_factory=deque)
    _arrived: trio.Event = field(default_factory=trio.Event)
    _spans: count[int] = field(default_factory=lambda: count(1))
    _build_spans: dict[DRef, int] = field(default_factory=dict)
    _nursery: Optional[trio.Nursery] = None
    """Holds what waits for matchers; open while the operation runs."""
    _child: Optional[MatcherChild] = None

    # --- what it is made of ---------------------------------------------------------------------------

    def add(self, spec: DerivationSpec) -> None:
        """Add one derivation.

        Raises:
            InvalidConfig: its config is not a config, or not in canonical form.
        """
        config = Config.__new__(Config)
        try:
            config.val = json.loads(spec.config)
        except (ValueError, RecursionError) as error:
            raise InvalidConfig("config", f"not JSON ({error})", "send what canonical_bytes returned") from error
        if not isinstance(config.val, dict) or canonical_bytes(config.val) != spec.config:
            raise InvalidConfig("config", "not a JSON object in canonical form", "send what canonical_bytes returned")
        mkconfig(config.val)
        self.specs[derivation_ref(spec.config, cfgname(config))] = (spec, config)

    def environment(self) -> Environment:
        """Return where its realizers are to run."""
        e = self.request.environment
        return Environment(e.interpreter, tuple(e.import_path), e.umask, dict(e.variables))

    # --- what builds call -----------------------------------------------------------------------------

    def post(self, fact: Fact) -> None:
        """Take a fact in."""
        self._facts.append(fact)
        self._arrived.set()

    def build_started(self, running: RunningBuild) -> None:
        """Learn that a build that it waits for has begun."""
        dref = running.job.key.dref
        if running.id not in self.running:
            self.running[running.id] = running
            span = self._build_spans[dref] = next(self._spans)
            self._tell("build", "start", span, dref=dref, build=running.id)
            for watch in list(self.log_watchers.values()):
                watch(running)

    def _tell(
        self,
        kind: EventKind,
        phase: EventPhase,
        span: int,
        *,
        dref: Optional[DRef] = None,
        build: Optional[str] = None,
        ok: Optional[bool] = None,
        text: Optional[str] = None,
    ) -> None:
        plan = self.plan
        event = Event(
            id=span,
            kind=kind,
            phase=phase,
            time=time.time(),
            dref=dref,
            build=build,
            ok=ok,
            text=text,
            done=plan.done if plan else None,
            total=plan.total if plan else None,
        )
        for watch in list(self.watchers.values()):
            watch(event)

    def abandon(self) -> None:
        """End an operation that was never started."""
        self.trouble = OperationCancelled(self.id)
        self.state = OperationState.ended
        self.ended.set()

    # --- its life ---------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Realize the closure. Whatever happens ends as `outcome` or `trouble`."""
        self.state = OperationState.running
        try:
            with self.cancel_scope:
                async with trio.open_nursery() as self._nursery:
                    await self._realize()
                    self._nursery.cancel_scope.cancel()
            if self.cancel_scope.cancelled_caught:
                self.trouble = OperationCancelled(self.id)
        except* (StoreError, PylightnixException) as group:
            self.trouble = _first(group)
        except* Exception as group:  # noqa: BLE001  # one operation's trouble must not end the daemon
            _log.exception("BUG: operation %s", self.id)
            self.trouble = _first(group)
        finally:
            if self._child is not None:
                self._child.close()
            self.builds.leave(self)
            self.specs.clear()
            self.blobs.clear()
            self.state = OperationState.ended
            self.ended.set()

    async def _realize(self) -> None:
        targets = [DRef(target) for target in self.request.targets]
        configs = [config for _, config in self.specs.values()]
        await self.hold.in_thread(lambda: self.hold.register(configs))
        deps = {dref: tuple(sorted(cfgdeps(config))) for dref, (_, config) in self.specs.items()}
        for dref, below in [(None, targets), *deps.items()]:
            for dep in below:
                if dep not in deps:
                    raise ForeignDerivation(dep, dref)
        plan = self.plan = Plan(
            dependency_order(targets, deps),
            deps,
            forced=[DRef(d) for d in self.request.forced],
            assert_realized=[DRef(d) for d in self.request.assert_realized],
            dry_run=self.request.dry_run,
            keep_going=self.request.keep_going,
        )
        losses = self.hold.losses
        actions: deque[Action] = deque(plan.start())
        steps = 0
        while True:
            while actions:
                action = actions.popleft()
                if isinstance(action, Finish):
                    self.outcome = plan.outcome()
                    return
                if isinstance(action, Commit):
                    actions.extend(plan.handle(await self._commit(plan, losses)))
                    continue
                fact = self._act(action)
                if fact is not None:
                    actions.extend(plan.handle(fact))
                steps += 1
                if steps % STEPS_AT_ONCE == 0:
                    await trio.lowlevel.checkpoint()
            await self._arrived.wait()
            self._arrived = trio.Event()
            while self._facts:
                fact = self._facts.popleft()
                self._tell_ended(fact)
                actions.extend(plan.handle(fact))

    def _tell_ended(self, fact: Fact) -> None:
        dref = getattr(fact, "dref", None)
        span = self._build_spans.pop(dref, None) if dref is not None else None
        if dref is not None and span is not None:
            self.running = {build: running for build, running in self.running.items() if running.job.key.dref != dref}
            failed = isinstance(fact, Failed)
            text = str(fact.error)[:1000] if isinstance(fact, Failed) else None
            self._tell("build", "stop", span, dref=dref, ok=not failed, text=text)

    def _act(self, action: Action) -> Optional[Fact]:
        """Do what can be done at once and return what came of it; None for what is posted later."""
        if isinstance(action, FindCandidates):
            return CandidatesFound(action.dref, self.hold.candidates(action.dref, action.context))
        if isinstance(action, AskMatcher):
            return self._ask(action)
        if isinstance(action, StartBuild):
            return self._want(action)
        raise AssertionError(f"BUG: the planner gave {action!r}")

    def _ask(self, action: AskMatcher) -> Optional[Fact]:
        matcher = self.specs[action.dref][0].matcher
        if matcher.kind == "caller":
            reason = "it cannot be pickled"
            return Failed(action.dref, FailedBuild(failed_row(action.dref, CannotTravel(action.dref, "matcher", reason))))
        if matcher.kind == "python":
            self._start(self._ask_child, action, bytes(self.blobs[matcher.blob]))
            return None
        try:
            picked = builtin_matcher(matcher.kind, matcher.n, [RRef(rref) for rref in matcher.rrefs]).pick(action.candidates)
        except PylightnixException as error:
            return Failed(action.dref, FailedBuild(failed_row(action.dref, error)))
        return MatcherAnswered(action.dref, picked)

    def _start(self, task: Callable[..., Awaitable[None]], *args: Any) -> None:
        if self._nursery is None:
            raise AssertionError("BUG: a task before the operation runs")
        self._nursery.start_soon(task, *args)

    async def _ask_child(self, action: AskMatcher, matcher: bytes) -> None:
        if self._child is None:
            self._child = MatcherChild(self.id, self.builds.pool, self.hold.reader.layout, self.environment())
        try:
            answer = await self._child.ask(action.dref, matcher, action.candidates)
        except FailedBuild as error:
            self.post(Failed(action.dref, error))
        else:
            self.post(MatcherAnswered(action.dref, answer))

    def _want(self, action: StartBuild) -> Optional[Fact]:
        spec = self.specs[action.dref][0]
        if spec.realizer.kind == "caller":
            return Failed(action.dref, FailedBuild(failed_row(action.dref, CannotTravel(action.dref, "realizer", spec.realizer.reason))))
        if action.known is not None:
            # Looking once more and joining the table are one step: nothing awaits between the two.
            now = self.hold.candidates(action.dref, action.context)
            if now != list(action.known):
                return CandidatesFound(action.dref, now)
        self.builds.want(self, self._job(action, spec), action.known)
        return None

    def _job(self, action: StartBuild, spec: DerivationSpec) -> BuildJob:
        environment = self.environment()
        blob = bytes(self.blobs[spec.realizer.blob]) if spec.realizer.blob else None
        return BuildJob(
            key=BuildKey(
                dref=action.dref,
                context_key=context_key(action.context),
                realizer_digest=spec.digest or spec.realizer.blob or spec.realizer.kind,
                environment_key=build_environment_key(environment, spec.declared),
                arguments_key=hashlib.sha256(spec.args or b"").hexdigest(),
            ),
            context=action.context,
            realizer=spec.realizer,
            blob=blob,
            digest=spec.digest,
            arguments=spec.args,
            environment=environment,
        )

    async def _commit(self, plan: Plan, losses: int) -> Fact:
        """Wait until everything that was put in place so far is durable; more than needed, never less."""
        await self.hold.wait_durable(self.hold.placed)
        if self.hold.losses == losses:
            return Committed()
        error, lost = self.hold.lost_among(plan.matched_rrefs())
        return CommitFailed(error, lost)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
