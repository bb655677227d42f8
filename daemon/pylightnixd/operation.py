"""An operation: one client's interest in a closure, turned by the planner until it has ended.

It is the planner's second driver. Facts come from the index at once, and from builds and matchers as
they end; everything else is decided in the plan. One task runs it; others only `post` facts.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any, Final, Optional, TypeVar

import trio

from pylightnix.config import Config, canonical_bytes, cfgdeps, cfgname, mkconfig
from pylightnix.context import context_key
from pylightnix.errors import ForeignDerivation, InvalidConfig, PylightnixException, SandboxUnavailable
from pylightnix.nesting import nesting
from pylightnix.planner.graph import dependency_order
from pylightnix.planner.messages import (
    Action,
    AskCaller,
    AskMatcher,
    Built,
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
    Withdrawn,
)
from pylightnix.planner.paths import path_seconds
from pylightnix.planner.plan import Plan, PlanOutcome
from pylightnix.protocol.errors import CannotTravel, OperationCancelled
from pylightnix.protocol.messages import DerivationSpec, EventPhase, Fetching, Steering, SubmitOpen
from pylightnix.store.derivations import derivation_ref
from pylightnix.travel import Environment, build_environment_key, builtin_matcher, unpack_fetch
from pylightnix.types import DRef, RRef
from pylightnixd.blobs import Blob
from pylightnixd.boundary import contained
from pylightnixd.builds import Builds
from pylightnixd.claims import HUNG_UP, Caller
from pylightnixd.hold import HeldStore
from pylightnixd.jobs import BuildJob, FetchJob, RunningBuild
from pylightnixd.limits import OwnLimits
from pylightnixd.matching import MatcherChild
from pylightnixd.pausing import Pauses
from pylightnixd.report import FailedBuild, failed_row
from pylightnixd.resources import Needs
from pylightnixd.results import FailureRoom, Result
from pylightnixd.table import BuildKey
from pylightnixd.telling import Telling
from pylightnixd.threads import run_in_thread

__all__ = ["Operation", "OperationState"]

T = TypeVar("T")

STEPS_AT_ONCE: Final = 50
"""How many actions an operation takes before it lets others have a turn: some two milliseconds' worth."""
AT_ONCE_MAX: Final = 200
"""How many derivations are thought about at once: some five milliseconds' worth. With more, it is done in a thread."""
WAITING_SECONDS: Final = 0.1
"""How long a build waits before that is told, and how often it is looked whether it still does."""
TEXT_CHARACTERS: Final = 1000
"""How much of an error's message an event carries."""


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
    caller: Caller
    """The session that submitted it."""
    state: OperationState = OperationState.open
    created: float = field(default_factory=time.time)
    """UTC seconds since the epoch."""
    specs: dict[DRef, tuple[DerivationSpec, Config]] = field(default_factory=dict)
    arriving: dict[str, bytearray] = field(default_factory=dict)
    """Blobs that are not whole yet, by their hashes."""
    blobs: dict[str, Blob] = field(default_factory=dict)
    held_bytes: int = 0
    """What all this takes in memory, roughly."""
    plan: Optional[Plan] = None
    outcome: Optional[PlanOutcome] = None
    trouble: Optional[BaseException] = None
    """Why there is no outcome: the store failed, or the operation was cancelled."""
    result: list[Result] = field(default_factory=list)
    """What came of it, once it has ended. A list for itself, which outlives the operation where somebody still looks into it."""
    ended: trio.Event = field(default_factory=trio.Event)
    cancel_scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    log_watchers: dict[int, Callable[[RunningBuild], None]] = field(default_factory=dict)
    running: dict[str, RunningBuild] = field(default_factory=dict)
    """Builds that it waits for and that have begun."""
    clients: int = 1
    parent: Optional[RunningBuild] = None
    """The build whose realizer wants it."""
    pauses: Pauses = field(init=False)
    telling: Telling = field(init=False)
    environment: Environment = field(init=False)
    """Where its realizers are to run."""
    _facts: deque[Fact] = field(default_factory=deque)
    _arrived: trio.Event = field(default_factory=trio.Event)
    _fetches: dict[DRef, FetchJob] = field(default_factory=dict)
    _wanted: dict[DRef, StartBuild] = field(default_factory=dict)
    """What it has asked to be built, latest."""
    _held: deque[StartBuild] = field(default_factory=deque)
    """Builds that are held back, for as many as were allowed are at work."""
    _at_work: dict[DRef, None] = field(default_factory=dict)
    """Builds that are wanted and have not ended."""
    _waiting: dict[DRef, Needs] = field(default_factory=dict)
    """Builds that are wanted and have not begun -> what they will take."""
    _waiting_by_needs: Counter[Needs] = field(default_factory=Counter)
    _path_seconds: dict[DRef, float] = field(default_factory=dict)
    """How long it will probably take from the start of each to the end of all, along the longest way."""
    _numbers_at_end: tuple[int, int] = (0, 0)
    """What `done` and `total` were when it ended."""
    _waiting_told: tuple[int, int] = (0, 0)
    _wait_scheduled: bool = False
    _stopping: bool = False
    """Whether something has failed, and nothing more is to begin."""
    _nursery: Optional[trio.Nursery] = None
    """Holds what waits for matchers; open while the operation runs."""
    _child: Optional[MatcherChild] = None
    told: list[tuple[DRef, str, str]] = field(default_factory=list)
    """Warnings that matchers and builds gave: of which derivation, their category and text."""
    _failure_room: FailureRoom = field(default_factory=FailureRoom)
    _interruption: Optional[PylightnixException] = None
    """Why it was ended by somebody else than its clients."""

    def __post_init__(self) -> None:
        e = self.request.environment
        self.environment = Environment(e.interpreter, tuple(e.import_path), e.umask, dict(e.variables))
        self.telling = Telling(lambda: (self.done, self.total))
        self.pauses = Pauses(self.id, self.caller.session, self.hold, self.post)

    @property
    def uid(self) -> int:
        """The user whose code it has."""
        return self.caller.session.uid

    @property
    def is_steered(self) -> bool:
        """Whether it asks its client what is to become of derivations, and so cannot go on without it."""
        return bool(self.request.ask or self.request.ask_on_failure)

    @property
    def total(self) -> int:
        """How many derivations it has."""
        return self.plan.total if self.plan is not None else self._numbers_at_end[1] or len(self.specs)

    @property
    def done(self) -> int:
        """How many of them are in a final state."""
        return self.plan.done if self.plan is not None else self._numbers_at_end[0]

    # --- what it is made of ---------------------------------------------------------------------------

    def add(self, spec: DerivationSpec) -> None:
        """Add one derivation. Its blobs are there.

        Raises:
            InvalidConfig: its config is not a config, or not in canonical form.
            Misuse: what it wants fetched cannot be.
        """
        config = Config.__new__(Config)
        try:
            config.val = json.loads(spec.config)
        except (ValueError, RecursionError) as error:
            raise InvalidConfig("config", f"not JSON ({error})", "send what canonical_bytes returned") from error
        if not isinstance(config.val, dict) or canonical_bytes(config.val) != spec.config:
            raise InvalidConfig("config", "not a JSON object in canonical form", "send what canonical_bytes returned")
        mkconfig(config.val)
        dref = derivation_ref(spec.config, cfgname(config))
        if spec.realizer.kind == "fetch":
            realizer, environment = unpack_fetch(self.blobs[spec.realizer.blob].data)
            self._fetches[dref] = FetchJob(realizer, realizer.spec_for(config.val), environment, str(self.uid))
        self.specs[dref] = (spec, config)

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
            self.telling.build_started(dref, running.id, self.builds.resources_of(running.id))
            self._end_waiting(dref)
            for watch in list(self.log_watchers.values()):
                watch(running)

    def build_fetching(self, running: RunningBuild, fetch: Fetching, phase: EventPhase) -> None:
        """Learn how far a build is that fetches."""
        self.telling.fetching(running.job.key.dref, running.id, fetch, phase)

    def build_placing(self, running: RunningBuild) -> None:
        """Learn that a build's processes are dead and its outputs are on their way into the store."""
        self.telling.copy_started(running.job.key.dref, running.id)

    def build_abandoned(self, dref: DRef) -> None:
        """Ask again for a build that nobody runs any more."""
        self.running = {build: running for build, running in self.running.items() if running.job.key.dref != dref}
        self.telling.build_stopped(dref, ok=False, text=HUNG_UP)
        try:
            fact = self._want(self._wanted[dref])
        except Exception as error:  # noqa: BLE001  # nobody may wait for ever
            fact = self._failed(dref, error)
        if fact is not None:
            self.post(fact)

    def abandon(self) -> None:
        """End an operation that was never started."""
        self.trouble = OperationCancelled(self.id)
        self._end()

    def _end(self) -> None:
        """Say what came of it. Whoever asks later asks the result, for nothing else of an operation is kept."""
        self.state = OperationState.ended
        try:
            result = Result.of(
                self.outcome,
                self.trouble or OperationCancelled(self.id),  # without an outcome, as when the daemon ends at once
                id=self.id,
                user=self.user,
                targets=self.request.targets,
                created=self.created,
                ended=time.time(),
                done=self.done,
                total=self.total,
                told=self.told,
            )
            self.result.append(result)
        finally:
            self.outcome = self.trouble = None
            self.ended.set()

    # --- its life ---------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Realize the closure. Whatever happens ends as `outcome` or `trouble`.

        What a build's realizer wanted has ended when that build has slots to go on.
        """
        self.state = OperationState.running
        try:
            await self._run_plan()
            self._tell_parent()
            await self.builds.wait_resumed(self)
        finally:
            self._end()

    def _tell_parent(self) -> None:
        """Have what was realized for another build's realizer known as a dependency of that."""
        if self.parent is None or self.outcome is None or self.request.dry_run or self.parent.token != self.request.parent:
            return
        for dref in map(DRef, self.request.targets):
            self.parent.realized.setdefault(dref, set()).update(self.outcome.matched.get(dref, ()))

    async def _run_plan(self) -> None:
        try:
            with self.cancel_scope:
                async with trio.open_nursery() as self._nursery:
                    await self._realize()
                    self._nursery.cancel_scope.cancel()
            if self.cancel_scope.cancelled_caught:
                self.trouble = self._interruption or OperationCancelled(self.id)
        except* PylightnixException as group:
            self.trouble = _first(group)
        except* Exception as group:  # noqa: BLE001  # one operation's trouble must not end the daemon
            self.trouble = FailedBuild(failed_row(DRef(""), self.hold.in_words("realizing", _first(group))))
        finally:
            for leave in (self._close_child, partial(self.builds.leave, self), self._forget):
                with contained(f"the end of operation {self.id}"):
                    leave()

    def _close_child(self) -> None:
        if self._child is not None:
            self._child.close()

    def _forget(self) -> None:
        """Let go what only an operation that runs needs: others may hold the operation for a while."""
        self._numbers_at_end = (self.done, self.total)
        self.plan = None
        self.held_bytes = 0
        for kept in (self.specs, self._fetches, self.arriving, self.blobs, self._wanted, self._path_seconds, self._at_work):
            kept.clear()
        self.telling.forget()

    def interrupt(self, reason: PylightnixException) -> None:
        """End it before it is done, for a reason that is not its client's."""
        self._interruption = reason
        self.cancel_scope.cancel()

    async def _realize(self) -> None:
        configs = [config for _, config in self.specs.values()]
        await self.hold.removals.wait_past(self.specs.keys())
        await self.hold.in_thread(lambda: self.hold.register(configs))
        with self.telling.span("plan"):
            plan, first = await self._in_turns(self._make_plan)
        self.builds.bulk.grew(len(self.specs))
        self.plan = plan
        losses = self.hold.losses
        actions: deque[Action] = deque(first)
        steps = 0
        while True:
            while actions:
                action = actions.popleft()
                if isinstance(action, Finish):
                    self.outcome = await self._in_turns(plan.outcome)
                    return
                if isinstance(action, Commit):
                    with self.telling.span("commit"):
                        committed = await self._commit(plan, losses)
                    actions.extend(plan.handle(committed))
                    continue
                fact = self._act(action)
                if fact is not None:
                    actions.extend(plan.handle(fact))
                steps += 1
                if steps % STEPS_AT_ONCE == 0:
                    await trio.lowlevel.checkpoint()
            self._tell_waiting_soon()
            await self._arrived.wait()
            self._arrived = trio.Event()
            while self._facts:
                fact = self._bounded(self._facts.popleft())
                self._tell_ended(fact)
                actions.extend(plan.handle(fact))
                actions.extend(self._let_go(fact))

    async def _in_turns(self, think: Callable[[], T]) -> T:
        """Run what thinks about all derivations, in a thread if they are many, so that others have their turns meanwhile.

        It must touch nothing but what is the operation's own, which does nothing else meanwhile.
        """
        if len(self.specs) <= AT_ONCE_MAX:
            return think()
        async with self.builds.plan_limiter:
            with self.builds.bulk.undisturbed():
                return await run_in_thread(think)

    def _make_plan(self) -> tuple[Plan, list[Action]]:
        """Return the plan and its first actions."""
        request, targets = self.request, [DRef(target) for target in self.request.targets]
        deps = {dref: tuple(sorted(cfgdeps(config))) for dref, (_, config) in self.specs.items()}
        for dref, below in [(None, targets), *deps.items()]:
            for dep in below:
                if dep not in deps:
                    raise ForeignDerivation(dep, dref)
        order = dependency_order(targets, deps)
        plan = Plan(
            order,
            deps,
            forced=[DRef(d) for d in request.forced],
            ask=[DRef(d) for d in request.ask],
            ask_on_failure=request.ask_on_failure,
            assert_realized=[DRef(d) for d in request.assert_realized],
            dry_run=request.dry_run,
            keep_going=request.keep_going,
        )
        if not request.dry_run:
            self._path_seconds = path_seconds(order, deps, self.builds.durations.expected(order))
        return plan, plan.start()

    def _bounded(self, fact: Fact) -> Fact:
        """Return a fact, without what its failure holds beyond what all failures of an operation may."""
        if not isinstance(fact, Failed) or not isinstance(fact.error, FailedBuild):
            return fact
        row = self._failure_room.fit(fact.error.row)
        return Failed(fact.dref, FailedBuild(row))  # not the one that was raised, which holds on to all that it went through

    def _tell_ended(self, fact: Fact) -> None:
        dref = getattr(fact, "dref", None)
        if dref is not None and self.telling.has_build(dref):
            ended = [running for running in self.running.values() if running.job.key.dref == dref]
            self.told += [(dref, UserWarning.__name__, text) for running in ended for text in running.told]
            self.running = {build: running for build, running in self.running.items() if running.job.key.dref != dref}
            failed = isinstance(fact, Failed)
            code, text = _told(fact.error) if isinstance(fact, Failed) else (None, None)
            joined = None if failed else isinstance(fact, CandidatesFound) or (isinstance(fact, Built) and fact.joined)
            self.telling.build_stopped(dref, ok=not failed, text=text, code=code, joined=joined)

    def _tell_waiting_soon(self) -> None:
        if not self._wait_scheduled and (self._held or self._waiting or self._waiting_told != (0, 0)):
            self._wait_scheduled = True
            self._start(self._tell_waiting)

    async def _tell_waiting(self) -> None:
        """Tell how many builds wait, and what for, a few times a second at most, in one span: it might be thousands."""
        while self._held or self._waiting or self._waiting_told != (0, 0):
            await trio.sleep(WAITING_SECONDS)
            self._tell_who_waits()
        self._wait_scheduled = False

    def _tell_who_waits(self) -> None:
        held, now = len(self._held), (len(self._held), len(self._waiting))
        if now == self._waiting_told:
            return
        reasons = Counter({f"one of {self.request.jobs} builds at a time to end": held})
        for needs, number in self._waiting_by_needs.items():
            reasons[self.builds.waits_for(needs)] += number
        text = ", ".join(f"{number} for {what}" for what, number in reasons.items() if number)
        self._waiting_told = now
        self.telling.waiting(text or None, sum(now))

    def _let_go(self, fact: Fact) -> list[Action]:
        """Return the builds that were held back and may be wanted now that one has ended, if it has."""
        dref = getattr(fact, "dref", None)
        if dref is not None:
            self._at_work.pop(dref, None)
            self._end_waiting(dref)
        if isinstance(fact, Failed) and not (self.request.keep_going or self.request.ask_on_failure):
            self._stopping = True
            for action in self._held:
                self.post(Withdrawn(action.dref))
            self._held.clear()
        free = len(self._held) if self.request.jobs is None else self.request.jobs - len(self._at_work)
        return [self._held.popleft() for _ in range(min(free, len(self._held)))]

    def _act(self, action: Action) -> Optional[Fact]:
        """Do what can be done at once and return what came of it; None for what is posted later."""
        if isinstance(action, FindCandidates):
            return CandidatesFound(action.dref, self.hold.candidates(action.dref, action.context))
        if isinstance(action, AskMatcher):
            return self._ask(action)
        if isinstance(action, AskCaller):
            self.pauses.add(action, self._start)
            return None
        if isinstance(action, StartBuild):
            if self._stopping:
                return Withdrawn(action.dref)
            if self.request.jobs is not None and len(self._at_work) >= self.request.jobs:
                self._held.append(action)
                return None
            self._at_work[action.dref] = None
            try:
                fact = self._want(action)
            except Exception as error:  # noqa: BLE001  # what fails is this build; the others go on
                fact = self._failed(action.dref, error)
            if fact is not None:
                self.post(fact)  # as all that ends a build, lest the next one be held back for ever
            return None
        raise AssertionError(f"BUG: the planner gave {action!r}")

    def _ask(self, action: AskMatcher) -> Optional[Fact]:
        matcher = self.specs[action.dref][0].matcher
        if matcher.kind == "caller":
            if self.caller.gone:
                return _stranded(action.dref, "matcher", "it cannot be pickled")
            self._start(self._ask_caller, action)
            return None
        if matcher.kind == "python":
            self._start(self._ask_child, action, self.blobs[matcher.blob].data)
            return None
        try:
            picked = builtin_matcher(matcher.kind, matcher.n, [RRef(rref) for rref in matcher.rrefs]).pick(action.candidates)
        except PylightnixException as error:
            return self._failed(action.dref, error)
        return MatcherAnswered(action.dref, picked)

    def _start(self, task: Callable[..., Awaitable[None]], *args: Any) -> None:
        if self._nursery is None:
            raise AssertionError("BUG: a task before the operation runs")
        self._nursery.start_soon(task, *args)

    async def _ask_child(self, action: AskMatcher, matcher: bytes) -> None:
        if self._child is None:
            self._child = MatcherChild(
                self.id, self.builds.pool, self.hold.reader.layout, self.environment, self.builds.limits_now.matcher_seconds, self.told
            )
        try:
            with self.telling.span("match", action.dref):
                answer = await self._child.ask(action.dref, matcher, action.candidates)
        except Exception as error:  # noqa: BLE001  # one matcher's trouble is not that of the other derivations
            self.post(self._failed(action.dref, error, self.uid))
        else:
            self.post(MatcherAnswered(action.dref, answer))

    async def _ask_caller(self, action: AskMatcher) -> None:
        try:
            await self.hold.wait_nameable(candidate.rref for candidate in action.candidates)
            with self.telling.span("match", action.dref):
                answer = await self.caller.ask(self.id, action.dref, action.candidates)
        except Exception as error:  # noqa: BLE001  # see above
            self.post(self._failed(action.dref, error, self.uid))
        else:
            self.post(MatcherAnswered(action.dref, answer))

    def _failed(self, dref: DRef, error: BaseException, uid: Optional[int] = None) -> Failed:
        failure = FailedBuild(failed_row(dref, self.hold.in_words(f"realizing {dref}", error)))
        return Failed(dref, failure if uid is None else failure.of_user(uid))

    def _want(self, action: StartBuild) -> Optional[Fact]:
        """Have something built; return what came of it at once, if anything. What it raises is why it cannot be built."""
        spec = self.specs[action.dref][0]
        if spec.realizer.kind == "caller" and self.caller.gone:
            return _stranded(action.dref, "realizer", spec.realizer.reason)
        path = self.builds.path_around(self.parent, action.dref) if self.parent is not None else []
        if path:
            return Failed(action.dref, FailedBuild(failed_row(action.dref, nesting([*path, action.dref]))))
        self._wanted[action.dref] = action
        if action.known is not None:
            # Looking once more and joining the table are one step: nothing awaits between the two.
            now = self.hold.candidates(action.dref, action.context)
            if now != list(action.known):
                return CandidatesFound(action.dref, now)
        job = self._job(action, spec)
        self._begin_waiting(action.dref, job.claims)
        if spec.steering is not None and spec.steering.sandbox is not None:
            raise SandboxUnavailable(spec.steering.sandbox, action.dref)
        self.builds.want(self, job, action.known)
        return None

    def _begin_waiting(self, dref: DRef, needs: Needs) -> None:
        self._end_waiting(dref)
        self._waiting[dref] = needs
        self._waiting_by_needs[needs] += 1

    def _end_waiting(self, dref: DRef) -> None:
        needs = self._waiting.pop(dref, None)
        if needs is not None:
            self._waiting_by_needs[needs] -= 1

    def _job(self, action: StartBuild, spec: DerivationSpec) -> BuildJob:
        environment, steering = self.environment, spec.steering or Steering()
        blob = self.blobs[spec.realizer.blob].data if spec.realizer.blob else None
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
            operation=self.id,
            uid=self.uid,
            caller=self.caller if spec.realizer.kind == "caller" else None,
            samples=min(spec.samples, self.request.jobs or spec.samples),
            needs=Needs(steering.cpus, steering.memory, tuple(sorted(steering.tags.items()))),
            own_limits=OwnLimits(steering.timeout_seconds, steering.silent_timeout_seconds),
            in_fresh_worker=steering.worker == "fresh",
            priority=steering.priority,
            fetch=self._fetches.get(action.dref),
            path_seconds=self._path_seconds.get(action.dref, 0.0),
        )

    async def _commit(self, plan: Plan, losses: int) -> Fact:
        """Wait until everything that was put in place so far is durable; more than needed, never less."""
        await self.hold.wait_durable(self.hold.placed)
        if self.hold.losses == losses:
            return Committed()
        error, lost = self.hold.lost_among(plan.matched_rrefs())
        return CommitFailed(error, lost)


def _stranded(dref: DRef, what: str, reason: str) -> Failed:
    """Return the failure of what only a program could do that is not there any more."""
    return Failed(dref, FailedBuild(failed_row(dref, CannotTravel(dref, what, f"{reason}, and {HUNG_UP}"))))


def _told(error: BaseException) -> tuple[str, str]:
    """Return code and text of a failure, as an event has them."""
    row = error.row if isinstance(error, FailedBuild) else failed_row(DRef(""), error)
    return row.code, row.message[:TEXT_CHARACTERS]


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
