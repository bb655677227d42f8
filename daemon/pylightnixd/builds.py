"""Running builds: from the table's word to outputs in place, and the news to every operation that waits.

One task per running build. Whatever happens in it ends as a fact for the operations: nothing that a
builder does can raise out of here. The order within a build: fork, drain its log, wait until all its
processes are dead, read its report, take over, put in place, tell.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Optional, Protocol

import trio

from pylightnix.config import canonical_bytes
from pylightnix.errors import InvalidOutput, StoreError
from pylightnix.planner.messages import Built, Candidate, CandidatesFound, Fact, Failed
from pylightnix.protocol.errors import BuildDied, ProtocolError, WorkerFailed
from pylightnix.protocol.messages import FailedRow, RealizerSpec
from pylightnix.protocol.worker_messages import BuildEnded
from pylightnix.refs import isrref, rref2dref
from pylightnix.store.kept import keep_failed
from pylightnix.travel import Environment
from pylightnixd.hold import HeldStore
from pylightnixd.logs import BuildLog, compress_log
from pylightnixd.report import REPORT_BYTES_MAX, BuildReport, FailedBuild, failed_row, parse_report
from pylightnixd.table import BuildKey, BuildTable, CancelBuild, Release
from pylightnixd.workers import Worker, WorkerLost, WorkerPool

__all__ = ["BuildJob", "Builds", "Limits", "Waiter"]

_log = logging.getLogger("pylightnixd")

SCAN_SECONDS: Final = 5.0
"""How often the table is looked at although nothing woke us; finding work then counts as a bug."""
LOST_WORKER_TRIES: Final = 3
LOST_WORKER_BACKOFF_SECONDS: Final = 0.2
COMPRESS_BYTES: Final = 1 << 16
DRAIN_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on every build. Zero is none."""

    timeout_seconds: float = 0.0
    silent_timeout_seconds: float = 0.0
    log_bytes: int = 256 << 20


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


class Waiter(Protocol):
    """An operation, as far as builds are concerned."""

    id: str

    def post(self, fact: Fact) -> None:
        """Take a fact in; must not await."""

    def build_started(self, running: RunningBuild) -> None:
        """Learn that a build that it waits for has begun."""


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


@dataclass(frozen=True, slots=True)
class LogPlace:
    """Where the log of a build is."""

    build: str
    path: str
    finished: bool


@dataclass(slots=True)
class _Interest:
    waiter: Waiter
    known: Optional[Sequence[Candidate]]
    """What its matcher saw when it asked for a build; None when it forces one."""
    caused: bool


@dataclass(slots=True, eq=False)
class Builds:
    """All builds of one daemon, queued and running."""

    hold: HeldStore
    pool: WorkerPool
    table: BuildTable
    log_folder: str
    limits: Limits
    instance: str
    """Tells the builds of this daemon's life from those of others, in names of logs."""
    running: dict[str, RunningBuild] = field(default_factory=dict)
    lost_wakeups: int = 0
    stopping: bool = False
    _interests: dict[str, dict[str, _Interest]] = field(default_factory=dict)
    _jobs: dict[str, BuildJob] = field(default_factory=dict)
    _changed: trio.Event = field(default_factory=trio.Event)
    _ended: trio.Event = field(default_factory=trio.Event)
    _logs: dict[str, LogPlace] = field(default_factory=dict)
    """Build, or derivation -> its latest log, of builds that have ended."""

    # --- what operations call -----------------------------------------------------------------------

    def want(self, waiter: Waiter, job: BuildJob, known: Optional[Sequence[Candidate]], path_seconds: float = 0.0) -> str:
        """Have `job` built for `waiter`, or let it share the build that there is; return the build's name."""
        forced = known is None
        joined = self.table.want(trio.current_time(), waiter.id, job.key, forced=forced, path_seconds=path_seconds)
        self._interests.setdefault(joined.build, {})[waiter.id] = _Interest(waiter, known, joined.new)
        if joined.new:
            self._jobs[joined.build] = job
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
        self._wake()

    def _wake(self) -> None:
        self._changed.set()

    def _forget(self, build: str) -> None:
        self._interests.pop(build, None)
        self._jobs.pop(build, None)

    def log_of(self, ref: str) -> Optional[LogPlace]:
        """Return where the latest log is of a build, or of what builds a derivation; None if there is none."""
        dref = str(rref2dref(ref)) if isrref(ref) else ref
        for running in reversed(self.running.values()):
            if ref == running.id or dref == running.job.key.dref:
                return LogPlace(running.id, running.log.path, running.log.finished)
        return self._logs.get(dref)

    # --- the loop -------------------------------------------------------------------------------------

    async def run(self, nursery: trio.Nursery) -> None:
        """Start and cancel builds as the table says, for as long as the daemon lives and is not stopping."""
        while not self.stopping:
            for action in self.table.actions(trio.current_time()):
                if isinstance(action, Release):
                    self._release(action.build, nursery)
                elif isinstance(action, CancelBuild):
                    self.cancel(action.build)
            deadline = self.table.deadline()
            until = min(trio.current_time() + SCAN_SECONDS, deadline if deadline is not None else float("inf"))
            with trio.move_on_at(until) as scope:
                await self._changed.wait()
            self._changed = trio.Event()
            if scope.cancelled_caught and deadline is None and self.table.could_start():
                self.lost_wakeups += 1
                _log.error("BUG: a build could start and nobody had been woken for it")

    def _release(self, build: str, nursery: trio.Nursery) -> None:
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
                return
        log = BuildLog(os.path.join(self.log_folder, f"{self.instance}-{build}.log"), self.limits.log_bytes or 1 << 62)
        running = self.running[build] = RunningBuild(build, job, log, time.time())
        log.on_overflow = running.kill.set
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
        except (StoreError, WorkerFailed, ProtocolError, OSError) as error:
            failure = failed_row(dref, error)
        except Exception as error:  # noqa: BLE001  # one build's trouble must not end the daemon
            _log.exception("BUG: building %s", dref)
            failure = failed_row(dref, error)
        finally:
            running.log.finish()
            with trio.CancelScope(shield=True):
                self._end(running, failure)
                if running.log.size == 0:
                    _unlink(running.log.path)  # reading it gives nothing either way
                elif running.log.size > COMPRESS_BYTES:
                    try:
                        await self.hold.in_thread(lambda: compress_log(running.log.path))  # noqa: ASYNC102  # it ends by itself
                    except OSError as error:
                        _log.warning("cannot compress the log %s: %s", running.log.path, error)

    def _end(self, running: RunningBuild, failure: Optional[FailedRow]) -> None:
        del self.running[running.id]
        place = LogPlace(running.id, running.log.path, finished=True)
        self._logs[running.id] = self._logs[str(running.job.key.dref)] = place
        self.table.ended(running.id)
        self._ended.set()
        self._ended = trio.Event()
        dref = running.job.key.dref
        interests = self._interests.get(running.id, {})
        self._forget(running.id)
        self._wake()
        for interest in interests.values():
            if failure is not None:
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
        fresh = False
        for attempt in range(1, LOST_WORKER_TRIES + 1):
            worker = await self.pool.worker_for(running.job.environment)
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

    async def _attempt(self, running: RunningBuild, worker: Worker) -> Optional[FailedRow]:
        folder = self.hold.make_folder()
        running.worker = worker
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
            )
            return None
        except InvalidOutput as error:
            return failed_row(running.job.key.dref, error)
        finally:
            running.worker = None
            # Shielded, and not bounded: a thread that removes files cannot be abandoned half-way.
            with trio.CancelScope(shield=True):
                await self.hold.remove(folder)  # noqa: ASYNC102

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
                nursery.start_soon(_drain, running.log, log_stream, status_stream, said, drained)
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

    async def _kill_when_due(self, running: RunningBuild, worker: Worker) -> None:
        running.killed_because = await self._reason_to_kill(running)
        try:
            await worker.call("kill", {"build": running.id})
        except (WorkerLost, WorkerFailed):
            pass  # then the build is dead, or has ended by itself

    async def _reason_to_kill(self, running: RunningBuild) -> str:
        begun = time.monotonic()
        while True:
            silent_since, now = running.log.last_output, time.monotonic()
            deadlines = [
                (begun + self.limits.timeout_seconds, f"took longer than {self.limits.timeout_seconds:g} s", self.limits.timeout_seconds),
                (
                    silent_since + self.limits.silent_timeout_seconds,
                    f"said nothing for {self.limits.silent_timeout_seconds:g} s",
                    self.limits.silent_timeout_seconds,
                ),
            ]
            due = [(at, why) for at, why, limit in deadlines if limit > 0]
            for at, why in due:
                if now >= at:
                    return why
            with trio.move_on_after(min((at - now for at, _ in due), default=float("inf"))):
                await running.kill.wait()
                return "was cancelled" if running.cancelled else f"wrote more than {running.log.cap_bytes} bytes of log"

    async def _failure(self, running: RunningBuild, ended: BuildEnded, report: Optional[BuildReport], folder: str) -> FailedRow:
        """Say what went wrong in a build, and keep what it left if its error says where that is."""
        dref = running.job.key.dref
        if report is None or report.error is None:
            return failed_row(dref, BuildDied(str(dref), running.killed_because or _how_it_ended(ended), running.id))
        left = [str(name) for name in report.error.get("outpaths") or () if isinstance(name, str)]
        if not left:
            return failed_row(dref, report.error)
        kept = await self.hold.in_thread(lambda: keep_failed(self.hold.reader.layout, dref, folder))
        return failed_row(dref, report.error, outpaths=[os.path.join(kept, name) for name in left])


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass  # it was never made


def _how_it_ended(ended: BuildEnded) -> str:
    if ended.signal is not None:
        try:
            name = signal.Signals(ended.signal).name
        except ValueError:
            name = "unknown"
        return f"was killed by signal {ended.signal} ({name})"
    return f"exited with status {ended.exit_code} without a report"


async def _ended(worker: Worker, build: str) -> Optional[BuildEnded]:
    """Wait for the end of a build; None if the worker took it with it."""
    try:
        return await worker.wait_ended(build)
    except (WorkerLost, ProtocolError):
        return None


async def _drain(
    log: BuildLog, log_stream: trio.abc.ReceiveStream, status_stream: trio.abc.ReceiveStream, said: bytearray, drained: trio.Event
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.drain, log_stream)
        nursery.start_soon(_read_report, status_stream, said)
    drained.set()


async def _read_report(stream: trio.abc.ReceiveStream, said: bytearray) -> None:
    while data := await stream.receive_some(1 << 16):
        if len(said) + len(data) > REPORT_BYTES_MAX:
            said.clear()
            return
        said += data
