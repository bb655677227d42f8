"""Running builds: from the table's word to the news to every operation that waits.

A build runs in a worker, after a fetch if that is what it is for, or in the caller's own process where its realizer cannot leave
that. One task per running
build; whatever happens in it ends as a fact for the operations. Must not know how a build is run: see `worker_builds`,
`fetch_builds` and `caller_builds`.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import InitVar, dataclass, field
from functools import partial
from typing import Final, Optional

import trio

from pylightnix.errors import StoreError
from pylightnix.planner.messages import Built, Candidate, CandidatesFound, Fact, Failed
from pylightnix.protocol.errors import BeyondBudget, BuildDied
from pylightnix.protocol.messages import EventPhase, FailedRow, Fetching, Resources
from pylightnix.refs import isdref, isrref
from pylightnix.store.build_logs import BEGINNING_MIN, LogPlace, Made
from pylightnix.travel import capture_environment
from pylightnix.types import DRef, RRef
from pylightnixd.boundary import SharedNursery, contained, entered, guarded
from pylightnixd.bulk import Bulk
from pylightnixd.caller_builds import CallerBuilds
from pylightnixd.claims import Abandoned, Caller
from pylightnixd.durations import Durations
from pylightnixd.fetch_builds import FetchBuilds
from pylightnixd.fetchers import Fetchers
from pylightnixd.hold import HeldStore
from pylightnixd.jobs import BuildJob, RunningBuild, Waiter
from pylightnixd.limits import Limits
from pylightnixd.logfolder import COMPRESS_BYTES, LogFolder
from pylightnixd.logs import BuildLog
from pylightnixd.report import FailedBuild, failed_row
from pylightnixd.resources import Budget, Needs, described
from pylightnixd.table import BuildState, BuildTable, CancelBuild, Release, Resume, TableAction
from pylightnixd.worker_builds import WorkerBuilds
from pylightnixd.workers import WorkerPool

__all__ = ["Builds"]

_log = logging.getLogger("pylightnixd")

SCAN_SECONDS: Final = 5.0
"""How often the table is looked at although nothing woke us; finding work then counts as a bug."""


@dataclass(slots=True)
class _Interest:
    waiter: Waiter
    job: BuildJob
    known: Optional[Sequence[Candidate]]
    """What its matcher saw when it asked for a build; None when it forces one."""
    caused: bool


@dataclass(slots=True, eq=False)
class Builds:
    """All builds of one daemon, queued and running."""

    hold: HeldStore
    table: BuildTable
    pool: WorkerPool
    limits: InitVar[Limits]
    logs: LogFolder
    durations: Durations
    nursery: SharedNursery
    """Holds the builds."""
    fetchers: Fetchers
    bulk: Bulk = field(default_factory=Bulk)
    plan_limiter: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(1))
    """For threads that plan: several at a time would be no faster, and keep the loop waiting longer for its turn."""
    running: dict[str, RunningBuild] = field(default_factory=dict)
    lost_wakeups: int = 0
    stopping: bool = False
    _callers: dict[Caller, None] = field(default_factory=dict)
    """Those that builds wait for."""
    _lent_for: dict[str, str] = field(default_factory=dict)
    """Operation -> the build that has lent slots while it waits for that."""
    _interests: dict[str, dict[str, _Interest]] = field(default_factory=dict)
    _jobs: dict[str, BuildJob] = field(default_factory=dict)
    _changed: trio.Event = field(default_factory=trio.Event)
    _ended: trio.Event = field(default_factory=trio.Event)
    _in_workers: WorkerBuilds = field(init=False)
    _in_callers: CallerBuilds = field(init=False)
    _of_fetches: FetchBuilds = field(init=False)

    def __post_init__(self, limits: Limits) -> None:
        self.pool.answer_seconds = limits.worker_seconds
        self._in_workers = WorkerBuilds(self.hold, self.pool, self.table, self.durations, limits, self._wake, self._placing)
        self._in_callers = CallerBuilds(self.hold, self.durations, self._wake, self._placing, self.nursery)
        unpacking = trio.CapacityLimiter(os.cpu_count() or 1)
        self._of_fetches = FetchBuilds(self.hold, self._in_workers, self.fetchers, capture_environment(), self._tell_fetch, unpacking)

    # --- what operations call -----------------------------------------------------------------------

    def want(self, waiter: Waiter, job: BuildJob, known: Optional[Sequence[Candidate]]) -> str:
        """Have `job` built for `waiter`, or let it share the build that there is; return the build's name.

        Raises:
            BeyondBudget: it takes more of something than there is at all.
        """
        self.table.budget.check(job.key.dref, job.claims)
        joined = self.table.want(
            trio.current_time(),
            waiter.id,
            job.key,
            forced=known is None,
            needs=job.claims,
            samples=job.samples,
            path_seconds=job.path_seconds,
            priority=job.priority,
        )
        self._interests.setdefault(joined.build, {})[waiter.id] = _Interest(waiter, job, known, joined.new)
        if joined.new:
            self._jobs[joined.build] = job
            self.bulk.grew(1)
        if joined.new and job.fetch is not None and not self.stopping:
            self.table.start(trio.current_time(), joined.build)
            self._begin(joined.build, job)
        if job.caller is not None:
            job.caller.queue[joined.build] = None
            self._callers[job.caller] = None
        self._lend(waiter)
        self._wake()
        running = self.running.get(joined.build)
        if running is not None:
            waiter.build_started(running)
            if running.fetching is not None:
                waiter.build_fetching(running, running.fetching, "start")
        return joined.build

    def leave(self, waiter: Waiter) -> None:
        """Let an operation go: what only it wanted is dropped, or cancelled after a grace."""
        self.table.leave(trio.current_time(), waiter.id)
        for build in [build for build, interests in self._interests.items() if waiter.id in interests]:
            del self._interests[build][waiter.id]
            if self.table.entry(build) is None:
                self._forget(build)
                continue
            running = self.running.get(build)
            if running is None:
                self._ask_again_if_stranded(build)
        self.drop_claim(waiter.id)
        self._wake()

    def drop_claim(self, operation: str) -> None:
        """Take back what was claimed for an operation that is about to end; others have realizers of their own.

        At once, when it is cancelled: the caller's word that it was interrupted must fail nobody else.
        """
        for running in self.running.values():
            if running.claim is not None and running.job.operation == operation and not running.claim.over.is_set():
                running.claim.dropped = True
                running.kill.set()

    # --- what operations call that builds want ----------------------------------------------------------

    def running_of(self, token: str) -> Optional[RunningBuild]:
        """Return the build that runs and whose realizer was given this token."""
        return next((running for running in self.running.values() if running.token == token), None)

    def path_around(self, inside: RunningBuild, dref: DRef) -> list[DRef]:
        """Return the derivations from `dref` to that of `inside` of which each waits for the next; empty if there is no such way."""
        paths, seen = [[inside]], {inside.id}
        for path in paths:
            if path[0].job.key.dref == dref:
                return [running.job.key.dref for running in path]
            for interest in self._interests.get(path[0].id, {}).values():
                outer = interest.waiter.parent
                if outer is not None and outer.id not in seen:
                    seen.add(outer.id)
                    paths.append([outer, *path])
        return []

    def _lend(self, waiter: Waiter) -> None:
        """Let others have slots of the build that wants this operation, for it waits now."""
        parent = waiter.parent
        if parent is not None and waiter.id not in self._lent_for and parent.id in self.running:
            self._lent_for[waiter.id] = parent.id
            self.table.lend(parent.id)

    async def wait_resumed(self, waiter: Waiter) -> None:
        """Wait until the build that waited for this operation, if one did, has slots to go on."""
        build = self._lent_for.pop(waiter.id, None)
        running = self.running.get(build) if build is not None else None
        if running is not None:
            event = trio.Event()
            running.resumes.append(event)
            self.table.reclaim(running.id)
            self._wake()
            await event.wait()
            running.log.last_output = time.monotonic()

    # --- callers ----------------------------------------------------------------------------------------

    def caller_gone(self, caller: Caller) -> None:
        """Enter that a session is over: nothing runs in it, and nothing will."""
        caller.end()
        self._callers.pop(caller, None)
        for build in list(caller.queue):
            self._ask_again_if_stranded(build)
        self._wake()

    def _ask_again_if_stranded(self, build: str) -> None:
        """Let whoever wants a build that waits for a caller ask again, if there is no such caller any more."""
        entry = self.table.entry(build)
        if entry is None or entry.cpus or entry.state is not BuildState.queued:
            return
        interests = list(self._interests.get(build, {}).values())
        if not any(interest.job.caller is not None and not interest.job.caller.gone for interest in interests):
            self.table.drop(build)
            self._forget(build)
            for interest in interests:
                interest.waiter.build_abandoned(entry.key.dref)

    def _wake(self) -> None:
        self._changed.set()

    def _forget(self, build: str) -> None:
        self._interests.pop(build, None)
        self._jobs.pop(build, None)

    def _placing(self, running: RunningBuild) -> None:
        """Enter that nothing of a build is alive, and its outputs are being put in place: others may have what it took."""
        running.pid = None
        self.table.placing(running.id)
        self._wake()
        self._tell(running, lambda waiter: waiter.build_placing(running))

    def _tell_fetch(self, running: RunningBuild, fetch: Fetching, phase: EventPhase) -> None:
        self._tell(running, lambda waiter: waiter.build_fetching(running, fetch, phase))

    def _tell(self, running: RunningBuild, tell: Callable[[Waiter], None]) -> None:
        """Tell every operation that waits for a build; the trouble of one is neither that of the build nor of the others."""
        for interest in list(self._interests.get(running.id, {}).values()):
            with contained(f"telling operation {interest.waiter.id} of build {running.id}"):
                tell(interest.waiter)

    def waits_for(self, needs: Needs) -> str:
        """Say what a build that takes `needs` waits for now."""
        if not needs.cpus:
            return "the program that asked for it, which is building something else"
        lacking = self.table.lacking(needs)
        return " and ".join(map(described, lacking)) or "its turn"

    def resources_of(self, build: str) -> Optional[Resources]:
        """Return what a build takes of the host, None if that is nothing, or nothing any more."""
        entry = self.table.entry(build)
        if entry is None or not entry.cpus or entry.state is BuildState.placing:
            return None
        return Resources(
            cpus=entry.cpus, memory=entry.needs.memory, tags=dict(entry.needs.tags), devices={t: list(n) for t, n in entry.devices.items()}
        )

    def log_of(self, ref: str) -> Optional[LogPlace]:
        """Return where the log is of a build, of the latest of a derivation, or of that which made a realization."""
        if isrref(ref):
            return self.logs.find(ref, self._made)
        running = [build for build in reversed(self.running.values()) if ref == build.job.key.dref or build.id.startswith(ref)]
        if running and (running[0].id == ref or isdref(ref)):
            return LogPlace(running[0].id, running[0].log.path, running[0].log.finished)
        found = self.logs.find(ref, self._made)
        if found is None and len(running) == 1 and len(ref) >= BEGINNING_MIN:
            return LogPlace(running[0].id, running[0].log.path, running[0].log.finished)
        return found

    def _made(self, rref: RRef) -> Optional[Made]:
        info = self.hold.reader.index.info(rref)
        return None if info is None else Made(info.build, info.started)

    # --- the loop -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Start and cancel builds as the table says, for as long as the daemon lives and is not stopping."""
        while not self.stopping:
            deadline = None
            try:
                self._act_on_table()
                deadline = self.table.deadline()
            except Exception as error:  # noqa: BLE001  # nobody may wait for ever
                self._fail_waiting(error)
            for caller in list(self._callers):
                with contained("giving a claim"):
                    self._give_claim(caller)
            until = min(trio.current_time() + SCAN_SECONDS, deadline if deadline is not None else float("inf"))
            with trio.move_on_at(until) as scope:
                await self._changed.wait()
            self._changed = trio.Event()
            if scope.cancelled_caught and deadline is None and self.table.could_start():
                self.lost_wakeups += 1
                _log.error("BUG: a build could start and nobody had been woken for it")

    def _act_on_table(self) -> None:
        for action in self.table.actions(trio.current_time()):
            try:
                self._act(action)
            except Exception as error:  # noqa: BLE001  # the trouble of one build must not stop the others
                self._fail(action.build, error)

    def _fail_waiting(self, error: Exception) -> None:
        """Have everything fail that has not begun: the table failed, and it is not known what of that can start."""
        for entry in self.table.entries():
            if entry.id not in self.running:
                self._fail(entry.id, error)

    def _act(self, action: TableAction) -> None:
        if isinstance(action, Release):
            self._release(action.build)
        elif isinstance(action, CancelBuild):
            self.cancel(action.build)
        elif isinstance(action, Resume):
            self.running[action.build].resumes.popleft().set()

    def _fail(self, build: str, error: BaseException) -> None:
        """Have a build fail that could not be started."""
        if build in self.running:  # it ends by itself
            entered(f"build {build}", error)
            return
        entry, interests = self.table.entry(build), self._interests.get(build, {})
        with contained(f"dropping build {build}"):
            self.table.drop(build)
        self._forget(build)
        if entry is not None:
            error = self.hold.in_words(f"starting to build {entry.key.dref}", error)
            fact = Failed(entry.key.dref, FailedBuild(failed_row(entry.key.dref, error)))
            for interest in interests.values():
                interest.waiter.post(fact)

    def _release(self, build: str) -> None:
        if self._is_wanted_still(build):
            self._begin(build, self._jobs[build])

    def _give_claim(self, caller: Caller) -> None:
        """Have a caller run the next build that waits for it, unless it is at work."""
        while caller.is_free and caller.queue:
            build = next(iter(caller.queue))
            del caller.queue[build]
            entry = self.table.entry(build)
            if entry is None or entry.cpus or entry.state is not BuildState.queued or not self._is_wanted_still(build):
                continue
            mine = [interest.job for interest in self._interests[build].values() if interest.job.caller is caller]
            if not mine:
                self._ask_again_if_stranded(build)
                continue
            self.table.start(trio.current_time(), build)
            self._begin(build, mine[0])
        if not caller.queue:
            self._callers.pop(caller, None)

    def _is_wanted_still(self, build: str) -> bool:
        """Let those go who have not seen what others delivered since the build was queued; tell whether anybody is left."""
        job, interests = self._jobs[build], self._interests[build]
        entry = self.table.entry(build)
        if entry is not None and not entry.forced:
            # Others may have delivered since it was queued; whoever has not seen that looks again.
            now = self._look(job)
            for name, interest in list(interests.items()):
                if interest.known is not None and now != CandidatesFound(job.key.dref, list(interest.known)):
                    del interests[name]
                    self.table.leave(trio.current_time(), name, build)
                    interest.waiter.post(now)
            if not interests:
                self.table.drop(build)
                self._forget(build)
                self._wake()
                return False
        return True

    def _begin(self, build: str, job: BuildJob) -> None:
        now = time.time()
        log = BuildLog(self.logs.path_of(build, job.key.dref, now), self._in_workers.limits.log_bytes or 1 << 62)
        running = self.running[build] = RunningBuild(build, job, log, now)
        log.on_overflow = running.kill.set
        if job.caller is not None:
            running.claim = job.caller.take(build, job.key.dref)
            running.token = running.claim.id
        self.nursery.start_soon(f"the end of build {running.id}", partial(self._run, running))

    def _look(self, job: BuildJob) -> Fact:
        """Return what there is to match now, or why that cannot be told."""
        try:
            return CandidatesFound(job.key.dref, self.hold.candidates(job.key.dref, job.context))
        except StoreError as error:
            return Failed(job.key.dref, FailedBuild(failed_row(job.key.dref, error)))

    def cancel(self, build: str) -> None:
        """Kill a build. Its operations are told that it failed."""
        running = self.running.get(build)
        if running is not None:
            running.cancelled = True
            running.kill.set()

    @property
    def limits_now(self) -> Limits:
        """What is allowed to what begins now."""
        return self._in_workers.limits

    def take_settings(self, budget: Budget, limits: Limits) -> None:
        """Change what there is for builds, and what is allowed to those that begin from now on.

        Those that wait, and for which there is not enough any more, fail.
        """
        self.table.resize(budget)
        self._in_workers.limits = limits
        self.pool.answer_seconds = limits.worker_seconds
        for entry in self.table.impossible():
            interests = self._interests.get(entry.id, {})
            self.table.drop(entry.id)
            self._forget(entry.id)
            try:
                budget.check(entry.key.dref, entry.needs)
            except BeyondBudget as error:
                for interest in interests.values():
                    interest.waiter.post(Failed(entry.key.dref, FailedBuild(failed_row(entry.key.dref, error))))
        self._wake()

    def interrupt_all(self) -> None:
        """Kill every build, and start no other."""
        self.stopping = True
        self._wake()
        for build in list(self.running):
            self.cancel(build)

    async def wait_quiet(self) -> None:
        """Wait until no build runs."""
        while self.running:
            await self._ended.wait()

    async def _run(self, running: RunningBuild) -> None:
        """Run a build to its end, whatever that is: those who wait for it hear of it."""
        dref = running.job.key.dref
        failure: Optional[FailedRow] = failed_row(dref, BuildDied(str(dref), "was given up", running.id))
        losses = self.hold.losses
        try:
            failure = await self._build(running)
            if failure is not None and self.hold.losses != losses:
                failure = await self._of_commit(running) or failure
        except Abandoned:
            running.abandoned = True
        except Exception as error:  # noqa: BLE001  # one build's trouble must not end the daemon
            failure = failed_row(dref, self.hold.in_words(f"building {dref}", error))
        finally:
            if failure is not None:
                self.hold.room.look()  # what a realizer met need not have a name of ours
            with contained(f"closing the log of build {running.id}"):
                running.log.finish()
            with trio.CancelScope(shield=True):
                self._end(running, failure)
                if running.log.size > COMPRESS_BYTES:
                    await guarded(f"compressing the log of build {running.id}", partial(self._compress, running.log.path))  # noqa: ASYNC102  # it ends by itself

    async def _of_commit(self, running: RunningBuild) -> Optional[FailedRow]:
        """Return the failure of the commit that took from a build what it was made from, if one did: of all that fails then, it is why."""
        await self.hold.wait_durable(self.hold.placed)
        error, lost = self.hold.lost_among(RRef(rref) for rrefs in running.job.context.values() for rref in rrefs)
        return failed_row(running.job.key.dref, error) if lost else None

    async def _compress(self, path: str) -> None:
        size = await self.hold.with_trees(lambda: self.logs.compress(path))
        if size is not None:
            self.logs.compressed(path, size)

    async def _build(self, running: RunningBuild) -> Optional[FailedRow]:
        running.log.open()
        self._tell(running, lambda waiter: waiter.build_started(running))
        if running.claim is not None:
            return await self._in_callers.build(running, running.claim)
        if running.job.fetch is not None:
            return await self._of_fetches.build(running)
        return await self._in_workers.build(running)

    def _end(self, running: RunningBuild, failure: Optional[FailedRow]) -> None:
        del self.running[running.id]
        for event in running.resumes:
            event.set()
        with contained(f"entering the log of build {running.id}"):
            self.logs.ended(running.log.path)
        with contained(f"giving back what build {running.id} took"):
            self.table.ended(running.id)
        self._ended.set()
        self._ended = trio.Event()
        interests = self._interests.get(running.id, {})
        self._forget(running.id)
        self._wake()
        for interest in interests.values():
            with contained(f"telling operation {interest.waiter.id} of the end of build {running.id}"):
                self._tell_end(running, failure, interest)

    def _tell_end(self, running: RunningBuild, failure: Optional[FailedRow], interest: _Interest) -> None:
        dref = running.job.key.dref
        if running.abandoned:
            interest.waiter.build_abandoned(dref)
        elif failure is not None:
            interest.waiter.post(Failed(dref, FailedBuild(failure).of_user(running.job.uid)))
        elif interest.caused or interest.known is None:
            interest.waiter.post(Built(dref, joined=not interest.caused))
        else:
            interest.waiter.post(self._look(running.job))
