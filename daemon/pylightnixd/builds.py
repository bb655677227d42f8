"""Running builds: from the table's word to outputs in place, and the news to every operation that waits.

A build runs in a worker, or in the caller's own process where its realizer cannot leave that; see `claims`.
One task per running build. Whatever happens in it ends as a fact for the operations: nothing that a
builder does can raise out of here. The order within a build: fork, drain its log, wait until all its
processes are dead, read its report, take over, put in place, tell.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Optional, Protocol, Union

import trio

from pylightnix.config import canonical_bytes
from pylightnix.errors import InvalidOutput, StoreError
from pylightnix.planner.messages import Built, Candidate, CandidatesFound, Fact, Failed
from pylightnix.protocol.errors import BeyondBudget, BuildDied, ProtocolError, TooMany, WorkerFailed
from pylightnix.protocol.messages import FailedRow, RealizerSpec, Resources
from pylightnix.protocol.worker_messages import BuildEnded
from pylightnix.refs import isrref, rref2dref
from pylightnix.store.kept import keep_failed
from pylightnix.travel import Environment
from pylightnix.types import DRef, RRef
from pylightnix.worker.children import how_it_ended
from pylightnixd.claims import Abandoned, Caller, Claim, Delivery, claim_row, left_names
from pylightnixd.durations import Durations
from pylightnixd.hold import HeldStore
from pylightnixd.limits import Limits, OwnLimits
from pylightnixd.logfolder import COMPRESS_BYTES, LogFolder, LogPlace
from pylightnixd.logs import BuildLog
from pylightnixd.report import REPORT_BYTES_MAX, BuildReport, FailedBuild, failed_row, parse_report
from pylightnixd.resources import NO_NEEDS, Budget, Needs, described, device_variables
from pylightnixd.table import BuildKey, BuildState, BuildTable, CancelBuild, Release, Resume
from pylightnixd.workers import Worker, WorkerLost, WorkerPool

__all__ = ["BuildJob", "Builds", "RunningBuild", "Waiter"]

_log = logging.getLogger("pylightnixd")

SCAN_SECONDS: Final = 5.0
"""How often the table is looked at although nothing woke us; finding work then counts as a bug."""
LOST_WORKER_TRIES: Final = 3
LOST_WORKER_BACKOFF_SECONDS: Final = 0.2
DRAIN_SECONDS: Final = 5.0


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
    path_seconds: float = 0.0
    """How long it and what must follow it will probably take, along the longest way."""

    @property
    def claims(self) -> Needs:
        """What the build takes of the host: what a caller builds is on its own account."""
        return self.needs if self.caller is None else NO_NEEDS


class Waiter(Protocol):
    """An operation, as far as builds are concerned."""

    id: str
    parent: Optional[RunningBuild]
    """The build whose realizer wants it; None for a client's own."""

    def post(self, fact: Fact) -> None:
        """Take a fact in; must not await."""

    def build_started(self, running: RunningBuild) -> None:
        """Learn that a build that it waits for has begun."""

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
    resumes: deque[trio.Event] = field(default_factory=deque)
    """Those whose waits are over and who go on when there are slots for them."""


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
    pool: WorkerPool
    table: BuildTable
    logs: LogFolder
    limits: Limits
    durations: Durations
    instance: str
    """Tells the builds of this daemon's life from those of others, in names of logs."""
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
    _nursery: Optional[trio.Nursery] = None
    """Holds the builds; open while `run` runs."""

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
        if job.caller is not None:
            job.caller.queue[joined.build] = None
            self._callers[job.caller] = None
        self._lend(waiter)
        self._wake()
        running = self.running.get(joined.build)
        if running is not None:
            waiter.build_started(running)
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

    def waits_for(self, needs: Needs) -> str:
        """Say what a build that takes `needs` waits for now."""
        if not needs.cpus:
            return "the program that asked for it, which is building something else"
        lacking = self.table.lacking(needs)
        return " and ".join(map(described, lacking)) or "its turn"

    def resources_of(self, build: str) -> Optional[Resources]:
        """Return what a build takes of the host, None if it takes nothing or has ended."""
        entry = self.table.entry(build)
        if entry is None or not entry.cpus:
            return None
        return Resources(
            cpus=entry.cpus, memory=entry.needs.memory, tags=dict(entry.needs.tags), devices={t: list(n) for t, n in entry.devices.items()}
        )

    def log_of(self, ref: str) -> Optional[LogPlace]:
        """Return where the latest log is of a build, or of what builds a derivation; None if there is none."""
        dref = str(rref2dref(ref)) if isrref(ref) else ref
        for running in reversed(self.running.values()):
            if ref == running.id or dref == running.job.key.dref:
                return LogPlace(running.id, running.log.path, running.log.finished)
        return self.logs.latest(dref)

    # --- the loop -------------------------------------------------------------------------------------

    async def run(self, nursery: trio.Nursery) -> None:
        """Start and cancel builds as the table says, for as long as the daemon lives and is not stopping."""
        self._nursery = nursery
        while not self.stopping:
            for action in self.table.actions(trio.current_time()):
                if isinstance(action, Release):
                    self._release(action.build, nursery)
                elif isinstance(action, CancelBuild):
                    self.cancel(action.build)
                elif isinstance(action, Resume):
                    self.running[action.build].resumes.popleft().set()
            for caller in list(self._callers):
                self._give_claim(caller, nursery)
            deadline = self.table.deadline()
            until = min(trio.current_time() + SCAN_SECONDS, deadline if deadline is not None else float("inf"))
            with trio.move_on_at(until) as scope:
                await self._changed.wait()
            self._changed = trio.Event()
            if scope.cancelled_caught and deadline is None and self.table.could_start():
                self.lost_wakeups += 1
                _log.error("BUG: a build could start and nobody had been woken for it")

    def _release(self, build: str, nursery: trio.Nursery) -> None:
        if self._is_wanted_still(build):
            self._begin(build, self._jobs[build], nursery)

    def _give_claim(self, caller: Caller, nursery: trio.Nursery) -> None:
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
            self._begin(build, mine[0], nursery)
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

    def _begin(self, build: str, job: BuildJob, nursery: trio.Nursery) -> None:
        log = BuildLog(self.logs.path_of(build, job.key.dref), self.limits.log_bytes or 1 << 62)
        running = self.running[build] = RunningBuild(build, job, log, time.time())
        log.on_overflow = running.kill.set
        if job.caller is not None:
            running.claim = job.caller.take(f"{self.instance}-{build}", job.key.dref)
            running.token = running.claim.id
        nursery.start_soon(self._run, running)

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

    def take_settings(self, budget: Budget, limits: Limits) -> None:
        """Change what there is for builds, and what is allowed to those that begin from now on.

        Those that wait, and for which there is not enough any more, fail.
        """
        self.table.resize(budget)
        self.limits = limits
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
        dref = running.job.key.dref
        failure: Optional[FailedRow] = None
        try:
            failure = await self._attempts(running)
        except Abandoned:
            running.abandoned = True
        except (StoreError, WorkerFailed, ProtocolError, OSError) as error:
            failure = failed_row(dref, error)
        except Exception as error:  # noqa: BLE001  # one build's trouble must not end the daemon
            _log.exception("BUG: building %s", dref)
            failure = failed_row(dref, error)
        finally:
            running.log.finish()
            with trio.CancelScope(shield=True):
                self._end(running, failure)
                if running.log.size > COMPRESS_BYTES:
                    size = await self.hold.in_thread(lambda: self.logs.compress(running.log.path))  # noqa: ASYNC102  # it ends by itself
                    if size is not None:
                        self.logs.compressed(running.log.path, size)

    def _end(self, running: RunningBuild, failure: Optional[FailedRow]) -> None:
        del self.running[running.id]
        for event in running.resumes:
            event.set()
        self.logs.ended(running.log.path)
        self.table.ended(running.id)
        self._ended.set()
        self._ended = trio.Event()
        dref = running.job.key.dref
        interests = self._interests.get(running.id, {})
        self._forget(running.id)
        self._wake()
        for interest in interests.values():
            if running.abandoned:
                interest.waiter.build_abandoned(dref)
            elif failure is not None:
                interest.waiter.post(Failed(dref, FailedBuild(failure)))
            elif interest.caused or interest.known is None:
                interest.waiter.post(Built(dref, joined=not interest.caused))
            else:
                interest.waiter.post(self._look(running.job))

    # --- one build ------------------------------------------------------------------------------------

    async def _attempts(self, running: RunningBuild) -> Optional[FailedRow]:
        """Run a build until it has built or failed for good; lost workers and changed code are tried again."""
        running.log.open()
        for interest in self._interests.get(running.id, {}).values():
            interest.waiter.build_started(running)
        if running.claim is not None:
            return await self._in_caller(running, running.claim)
        fresh = False
        for attempt in range(1, LOST_WORKER_TRIES + 1):
            worker = await self._worker(running.job)
            try:
                failure = await self._attempt(running, worker)
            except WorkerLost as error:
                if attempt == LOST_WORKER_TRIES or running.cancelled:
                    return failed_row(running.job.key.dref, WorkerFailed(running.job.environment.interpreter, f"was lost ({error})", ""))
                await trio.sleep(LOST_WORKER_BACKOFF_SECONDS * attempt)
                continue
            if failure is not None and failure.code == "code-changed" and not fresh:
                self.pool.retire(worker)
                fresh = True
                continue
            return failure
        raise AssertionError("BUG: attempts ran out without an answer")

    async def _worker(self, job: BuildJob) -> Worker:
        if job.in_fresh_worker:
            return await self.pool.fresh_worker(job.environment)
        return await self.pool.worker_for(job.environment)

    async def _attempt(self, running: RunningBuild, worker: Worker) -> Optional[FailedRow]:
        folder = self.hold.make_folder()
        running.worker, running.token = worker, secrets.token_hex(16)
        running.realized.clear()
        try:
            ended, report = await self._in_worker(running, worker, folder)
            if report is None or report.error is not None:
                return await self._failure(running, ended, report, folder)
            await self.hold.place(
                running.job.key.dref,
                running.job.context,
                folder,
                report.outputs,
                started=report.started,
                stopped=report.stopped,
                realizer_digest=running.job.digest,
                manifest=report.manifest,
                dynamic=running.realized,
            )
            self.durations.record(running.job.key.dref, report.stopped - report.started)
            return None
        except InvalidOutput as error:
            return failed_row(running.job.key.dref, error)
        finally:
            running.worker = None
            if running.job.in_fresh_worker:
                self.pool.retire(worker)
            # Shielded, and not bounded: a thread that removes files cannot be abandoned half-way.
            with trio.CancelScope(shield=True):
                await self.hold.remove(folder)  # noqa: ASYNC102

    # --- one build in a caller ------------------------------------------------------------------------

    async def _in_caller(self, running: RunningBuild, claim: Claim) -> Optional[FailedRow]:
        """Have a caller build, and put in place what it made.

        Raises:
            Abandoned: it went away, or its operation did.
        """
        job, caller = running.job, running.job.caller
        if caller is None:
            raise AssertionError("BUG: a claim, and nobody to have it")
        folder: Optional[str] = None
        offered = False
        try:
            await self.hold.wait_nameable(RRef(rref) for rrefs in job.context.values() for rref in rrefs)
            folder = self.hold.make_folder()
            if not running.kill.is_set():
                caller.offer(claim, job.operation, job.context, folder)
                offered = True
                await _first(running.kill, claim.over)
            if claim.answer is None:
                raise Abandoned
            return await self._take(running, claim, claim.answer, folder)
        except TooMany as error:
            return failed_row(job.key.dref, error)
        finally:
            claim.dropped = True
            if folder is not None and offered and not claim.over.is_set() and self._nursery is not None:
                self._nursery.start_soon(self._clear_when_over, caller, claim, folder)
            else:
                await self._clear(caller, claim, folder)  # noqa: ASYNC102  # shielded there

    async def _take(self, running: RunningBuild, claim: Claim, answer: Union[Delivery, FailedRow], folder: str) -> Optional[FailedRow]:
        job, dref = running.job, running.job.key.dref
        if isinstance(answer, FailedRow):
            return await self._failed_in(folder, dref, left_names(answer, folder), lambda kept: claim_row(answer, dref, kept))
        try:
            started, stopped = answer.started, answer.stopped
            await self.hold.place(
                dref,
                job.context,
                folder,
                answer.outputs,
                started=started,
                stopped=stopped,
                realizer_digest=job.digest,
                dynamic=running.realized,
            )
        except InvalidOutput as error:
            return failed_row(dref, error)
        self.durations.record(dref, stopped - started)
        return None

    async def _clear_when_over(self, caller: Caller, claim: Claim, folder: str) -> None:
        """Wait until nobody writes into the folder of a claim any more, and remove it."""
        try:
            await claim.over.wait()
        finally:
            await self._clear(caller, claim, folder)  # noqa: ASYNC102  # shielded there

    async def _clear(self, caller: Caller, claim: Claim, folder: Optional[str]) -> None:
        with trio.CancelScope(shield=True):
            try:
                if folder is not None:
                    await self.hold.remove(folder)
            except StoreError as error:  # the program may still write there; the next start removes it
                _log.warning("cannot remove the folder of a claim that has ended: %s", error)
        caller.end_claim(claim)
        self._wake()

    # --- one build in a worker ------------------------------------------------------------------------

    async def _in_worker(self, running: RunningBuild, worker: Worker, folder: str) -> tuple[BuildEnded, Optional[BuildReport]]:
        """Have the worker fork a build, and wait until all its processes are dead."""
        job = running.job
        log_read, log_write = os.pipe2(os.O_CLOEXEC)
        status_read, status_write = os.pipe2(os.O_CLOEXEC)
        said = bytearray()
        async with trio.lowlevel.FdStream(log_read) as log_stream, trio.lowlevel.FdStream(status_read) as status_stream:
            try:
                worker.expect_end(running.id)
                params = {
                    "build": running.id,
                    "folder": folder,
                    "root": self.hold.reader.layout.state,
                    "storage": self.hold.reader.layout.storage,
                    "dref": job.key.dref,
                    "context": canonical_bytes({str(d): sorted(map(str, rrefs)) for d, rrefs in job.context.items()}),
                    "realizer": job.blob,
                    "kind": job.realizer.kind,
                    "args": job.arguments,
                    "digest": job.digest,
                    "at_once": self._samples_at_once(running),
                    "token": running.token,
                    "variables": self._variables(running),
                }
                forked = await worker.call("build", params, (log_write, status_write))
                running.pid = int(forked["pid"])
            except BaseException:
                worker.forget(running.id)
                raise
            finally:
                os.close(log_write)
                os.close(status_write)
            async with trio.open_nursery() as nursery:
                drained = trio.Event()
                nursery.start_soon(_drain, running.log, log_stream, self._report_reader(running, status_stream, said), drained)
                nursery.start_soon(self._kill_when_due, running, worker)
                ended = await _ended(worker, running.id)
                # All its processes are dead, so both pipes end; should one have escaped with a pipe in its
                # hand, it does not hold us.
                with trio.move_on_after(DRAIN_SECONDS):
                    await drained.wait()
                nursery.cancel_scope.cancel()
        if ended is None:
            await worker.gone.wait()  # only then is nobody writing into the folder
            raise WorkerLost(f"worker {worker.process.pid} is gone")
        return ended, parse_report(bytes(said))

    def _variables(self, running: RunningBuild) -> dict[str, str]:
        """Return the environment variables that tell a build what it was given of the host."""
        entry = self.table.entry(running.id)
        return device_variables(entry.devices) if entry is not None else {}

    def _samples_at_once(self, running: RunningBuild) -> int:
        entry = self.table.entry(running.id)
        return entry.samples if entry is not None else 1

    def _report_reader(self, running: RunningBuild, stream: trio.abc.ReceiveStream, said: bytearray) -> Callable[[], Awaitable[None]]:
        def take_left(left: int) -> None:
            self.table.samples_left(running.id, left)
            self._wake()

        return lambda: _read_report(stream, said, take_left)

    async def _kill_when_due(self, running: RunningBuild, worker: Worker) -> None:
        running.killed_because = await self._reason_to_kill(running)
        try:
            await worker.call("kill", {"build": running.id})
        except (WorkerLost, WorkerFailed):
            pass  # then the build is dead, or has ended by itself

    async def _reason_to_kill(self, running: RunningBuild) -> str:
        begun, own = time.monotonic(), running.job.own_limits
        total, silent = self.limits.timeout(own), self.limits.silent_timeout(own)
        while True:
            now = time.monotonic()
            entry = self.table.entry(running.id)
            last_output = now if entry is not None and entry.waits else running.log.last_output
            due = [
                (at + bound.seconds, f"{why} {bound.whose} of {bound.seconds:g} s")
                for at, bound, why in ((begun, total, "took longer than"), (last_output, silent, "said nothing for"))
                if bound.seconds > 0
            ]
            for at, why in due:
                if now >= at:
                    return why
            with trio.move_on_after(min((at - now for at, _ in due), default=float("inf"))):
                await running.kill.wait()
                return "was cancelled" if running.cancelled else f"wrote more than the daemon's log-size of {running.log.cap_bytes} bytes"

    async def _failure(self, running: RunningBuild, ended: BuildEnded, report: Optional[BuildReport], folder: str) -> FailedRow:
        """Say what went wrong in a build, and keep what it left if its error says where that is."""
        dref = running.job.key.dref
        if report is None or report.error is None:
            how = running.killed_because or how_it_ended(ended.exit_code, ended.signal)
            return failed_row(dref, BuildDied(str(dref), how, running.id))
        left = [str(name) for name in report.error.get("outpaths") or () if isinstance(name, str)]
        told = report.error
        return await self._failed_in(folder, dref, left, lambda kept: failed_row(dref, told, **({"outpaths": kept} if kept else {})))

    async def _failed_in(self, folder: str, dref: DRef, left: Sequence[str], row: Callable[[list[str]], FailedRow]) -> FailedRow:
        """Keep the build folder of a failure if something was left in it; return the row that tells where that is."""
        if not left:
            return row([])
        kept = await self.hold.in_thread(lambda: keep_failed(self.hold.reader.layout, dref, folder))
        return row([os.path.join(kept, name) for name in left])


async def _first(*events: trio.Event) -> None:
    """Wait until one of these is set."""
    async with trio.open_nursery() as nursery:

        async def watch(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        for event in events:
            nursery.start_soon(watch, event)


async def _ended(worker: Worker, build: str) -> Optional[BuildEnded]:
    """Wait for the end of a build; None if the worker took it with it."""
    try:
        return await worker.wait_ended(build)
    except (WorkerLost, ProtocolError):
        return None


async def _drain(
    log: BuildLog, log_stream: trio.abc.ReceiveStream, read_report: Callable[[], Awaitable[None]], drained: trio.Event
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.drain, log_stream)
        nursery.start_soon(read_report)
    drained.set()


async def _read_report(stream: trio.abc.ReceiveStream, said: bytearray, take_left: Callable[[int], None]) -> None:
    """Read the report into `said`; what comes before it are numbers of samples that are left, one byte each."""
    while data := await stream.receive_some(1 << 16):
        while not said and data and data[0] < 0x80:  # no map begins like this
            take_left(data[0])
            data = data[1:]
        if len(said) + len(data) > REPORT_BYTES_MAX:
            said.clear()
            return
        said += data
