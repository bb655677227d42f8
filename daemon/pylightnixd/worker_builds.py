"""Builds in workers: from a fork to outputs in place, or to what went wrong.

The order within a build: fork, drain its log, wait until all its processes are dead, read its report, take over, put
in place. Nothing that a builder does can raise out of here but as an error of the build. No wait for a worker is without end: one
that does not fork, or does not end what it is told to kill, is given up, and the folder that may still be written into is set
aside. Must not know who waits for it.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Optional, TypeAlias, TypeVar

import trio

from pylightnix.config import canonical_bytes
from pylightnix.errors import InvalidOutput
from pylightnix.protocol.errors import BuildDied, WorkerFailed
from pylightnix.protocol.messages import FailedRow
from pylightnix.protocol.vocabulary import parse_message
from pylightnix.protocol.worker_messages import BuildEnded, BuildReport, Forked
from pylightnix.worker.children import how_it_ended
from pylightnixd.boundary import SharedNursery
from pylightnixd.durations import Durations
from pylightnixd.hold import HeldStore
from pylightnixd.jobs import BuildJob, RunningBuild
from pylightnixd.limits import Limits
from pylightnixd.logs import BuildLog
from pylightnixd.processes import state_of, wait_dead
from pylightnixd.report import REPORT_BYTES_MAX, failed_row, parse_report, pointing_to
from pylightnixd.resources import device_variables
from pylightnixd.table import BuildTable
from pylightnixd.worker import End, Worker, WorkerLost
from pylightnixd.workers import WorkerPool

__all__ = ["Prepared", "WorkerBuilds", "unless_killed"]

_log = logging.getLogger("pylightnixd")

Prepared: TypeAlias = Callable[[], AbstractAsyncContextManager[None]]

LOST_WORKER_TRIES: Final = 3
LOST_WORKER_BACKOFF_SECONDS: Final = 0.2
FORK_SECONDS: Final = 10.0
"""How long a worker may take to fork; twice as long at each further try. Another one does it as well, so nothing is lost."""
END_SECONDS: Final = 4.0
"""How long a build may live after it was told to end."""
DRAIN_SECONDS: Final = 5.0
T = TypeVar("T")


class _Killed(Exception):
    """A build is to end before it has begun."""


class _DoesNotEnd(Exception):
    """A build was told to end and does not; `pid` is what is given up."""

    def __init__(self, pid: int) -> None:
        self.pid = pid


@dataclass(slots=True, eq=False)
class _Folder:
    """A build folder, and who may write into it when the build is over."""

    path: str
    undead: Sequence[int] = ()
    """Processes that cannot be ended."""
    owing: Optional[tuple[Worker, End]] = None
    """The worker that still has to tell that the build has ended."""


@dataclass(slots=True, eq=False)
class WorkerBuilds:
    """Has workers build."""

    hold: HeldStore
    pool: WorkerPool
    table: BuildTable
    durations: Durations
    limits: Limits
    """For builds that begin from now on."""
    changed: Callable[[], None]
    """Called when there may be room for others."""
    placing: Callable[[RunningBuild], None]
    """Called when all processes of a build are dead and its outputs are being put in place. As few are at a time as the
    disk is good for; the next keep what they took of the host till then."""

    async def build(self, running: RunningBuild, prepared: Prepared = nullcontext) -> Optional[FailedRow]:
        """Run a build until it has built or failed for good; lost workers and changed code are tried again.

        `prepared` is entered before a worker is told of the build, and left when all its processes are dead.
        """
        fresh = False
        for attempt in range(1, LOST_WORKER_TRIES + 1):
            try:
                failure, worker = await self._attempt(running, prepared, FORK_SECONDS * 2 ** (attempt - 1))
            except WorkerLost as error:
                if attempt == LOST_WORKER_TRIES or running.cancelled:
                    return failed_row(running.job.key.dref, WorkerFailed(running.job.environment.interpreter, f"was lost ({error})", ""))
                await trio.sleep(LOST_WORKER_BACKOFF_SECONDS * attempt)
                continue
            except _Killed:
                return self._died(running, running.killed_because or _why_killed(running))
            except _DoesNotEnd as error:
                how = f"{running.killed_because} and does not end: process {error.pid} was given up"
                return self._died(running, how)
            if failure is not None and failure.code == "code-changed" and not fresh:
                worker.retire()
                fresh = True
                continue
            return failure
        raise AssertionError("BUG: attempts ran out without an answer")

    def _died(self, running: RunningBuild, how: str) -> FailedRow:
        return failed_row(running.job.key.dref, BuildDied(str(running.job.key.dref), how, running.id))

    async def _worker(self, job: BuildJob) -> Worker:
        if job.in_fresh_worker:
            return await self.pool.fresh_worker(job.environment)
        return await self.pool.worker_for(job.environment)

    async def _attempt(self, running: RunningBuild, prepared: Prepared, fork_seconds: float) -> tuple[Optional[FailedRow], Worker]:
        folder = _Folder(self.hold.make_folder())
        running.realized.clear()
        try:
            async with prepared():
                worker = running.worker = await unless_killed(running, lambda: self._worker(running.job))
                running.token = secrets.token_hex(16)
                ended, report = await self._in_worker(running, worker, folder, fork_seconds)
            if ended.undead:
                return self._left_behind(running, ended, folder.path), worker
            return await self._conclude(running, ended, report, folder.path), worker
        finally:
            if running.worker is not None and running.job.in_fresh_worker:
                running.worker.retire()
            running.worker = running.token = running.pid = None
            await self._clear(running, folder)  # noqa: ASYNC102  # shielded there

    async def _clear(self, running: RunningBuild, folder: _Folder) -> None:
        """Remove a build folder; if somebody may still write into it, as soon as that one is dead."""
        if folder.owing is not None or folder.undead:
            outliving: SharedNursery = self.pool.nursery
            outliving.start_soon(f"removing {folder.path}", partial(self._clear_when_quiet, folder))
        elif os.path.lexists(folder.path):  # noqa: ASYNC240  # a hop to a thread takes longer
            # Shielded, and not bounded: a thread that removes files cannot be abandoned half-way.
            with trio.CancelScope(shield=True):
                await self.hold.remove(folder.path, running.log.note)

    async def _clear_when_quiet(self, folder: _Folder) -> None:
        undead = folder.undead
        if folder.owing is not None:
            worker, end = folder.owing
            await end.arrived.wait()
            if end.told is None:
                await worker.gone.wait()
            undead = worker.undead if end.told is None else end.told.undead
        for pid in undead:
            await wait_dead(pid)
        await self.hold.remove(folder.path)

    def _left_behind(self, running: RunningBuild, ended: BuildEnded, folder: str) -> FailedRow:
        for pid in ended.undead:
            self.pool.processes.give_up(pid, f"left by build {running.id}", folder)
        which = "processes" if len(ended.undead) > 1 else "process"
        how = f"left {which} {', '.join(map(str, ended.undead))} behind, which cannot be killed and could still write into its outputs"
        return self._died(running, f"{running.killed_because}, and {how}" if running.killed_because else how)

    async def _conclude(self, running: RunningBuild, ended: BuildEnded, report: Optional[BuildReport], folder: str) -> Optional[FailedRow]:
        """Put in place what a build has made, or say why there is nothing to put."""
        running.told = report.told if report is not None else []
        try:
            if report is None or report.error is not None or running.log.overflowed:
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
                build=running.id,
                clear=True,
                tell=running.log.note,
                begins=lambda: self.placing(running),
            )
            self.durations.record(running.job.key.dref, report.stopped - report.started)
            return None
        except InvalidOutput as error:
            return failed_row(running.job.key.dref, error)

    # --- its process -----------------------------------------------------------------------------------

    async def _in_worker(
        self, running: RunningBuild, worker: Worker, folder: _Folder, fork_seconds: float
    ) -> tuple[BuildEnded, Optional[BuildReport]]:
        """Have the worker fork a build, and wait until all its processes are dead.

        Raises:
            WorkerLost: the worker did not fork it, or took it with it.
            _Killed: it was told to end before it was forked.
            _DoesNotEnd: it was told to end and does not.
        """
        pipes = _two_pipes()  # first, for without them nothing has begun
        end = worker.expect_end(running.id)
        folder.owing = worker, end
        try:
            said = await self._run_there(running, worker, folder, end, fork_seconds, pipes)
            if end.told is None and worker.lost:
                raise worker.loss()
            if end.told is None:
                pid = running.pid or worker.pid
                self.pool.processes.give_up(pid, f"of build {running.id}", folder.path)
                raise _DoesNotEnd(pid)
            folder.owing, folder.undead = None, end.told.undead
            return end.told, parse_report(said)
        except WorkerLost:
            if worker.lost and folder.owing is not None:
                await worker.gone.wait()  # noqa: ASYNC120  # bounded; only then is nobody writing into the folder
                folder.owing, folder.undead = None, worker.undead
            raise
        finally:
            if folder.owing is None:
                worker.forget(running.id)
            else:
                worker.abandon(running.id)

    async def _run_there(
        self, running: RunningBuild, worker: Worker, folder: _Folder, end: End, fork_seconds: float, pipes: tuple[int, int, int, int]
    ) -> bytes:
        """Have a build forked, and wait until it has ended, or is given up; return its report. Raises as `_in_worker`."""
        log_read, log_write, status_read, status_write = pipes
        said = bytearray()
        async with trio.lowlevel.FdStream(log_read) as log_stream, trio.lowlevel.FdStream(status_read) as status_stream:
            try:
                running.pid = await self._fork(running, worker, folder, fork_seconds, (log_write, status_write))
            finally:
                os.close(log_write)
                os.close(status_write)
            async with trio.open_nursery() as nursery:
                drained, patience = trio.Event(), trio.CancelScope()
                nursery.start_soon(_drain, running.log, log_stream, self._report_reader(running, status_stream, said), drained)
                nursery.start_soon(self._kill_when_due, running, worker, patience)
                with patience:
                    await end.arrived.wait()
                if end.told is not None:
                    # All its processes are dead, so both pipes end; should one have escaped with a pipe in its
                    # hand, it does not hold us.
                    with trio.move_on_after(DRAIN_SECONDS):
                        await drained.wait()
                nursery.cancel_scope.cancel()
        return bytes(said)

    async def _fork(self, running: RunningBuild, worker: Worker, folder: _Folder, seconds: float, fds: Sequence[int]) -> int:
        """Have the worker fork a build; return its process. Raises as `_in_worker`."""
        question = worker.post("build", self._order(running, folder.path), fds)
        try:
            with trio.fail_after(seconds):
                forked = await unless_killed(running, lambda: worker.answer_to(question), END_SECONDS)
            return parse_message(forked, Forked).pid
        except trio.TooSlowError as error:
            who = f"process {worker.pid}{state_of(worker.pid)}"
            _log.warning("the worker %s, %s, did not fork within %g s; another one is asked", worker.interpreter, who, seconds)
            worker.retire()
            raise WorkerLost(f"{who} did not fork within {seconds:g} s") from error
        finally:
            if not question.begun or question.error is not None:
                folder.owing = None  # it never began

    def _order(self, running: RunningBuild, folder: str) -> dict[str, Any]:
        job = running.job
        return {
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
            self.changed()

        return lambda: _read_report(stream, said, take_left)

    async def _kill_when_due(self, running: RunningBuild, worker: Worker, patience: trio.CancelScope) -> None:
        running.killed_because = await self._reason_to_kill(running)
        worker.post("kill", {"build": running.id})  # should it have ended by itself, that does no harm
        patience.deadline = trio.current_time() + END_SECONDS

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
                return _why_killed(running)

    async def _failure(self, running: RunningBuild, ended: BuildEnded, report: Optional[BuildReport], folder: str) -> FailedRow:
        """Say what went wrong in a build, and keep what it left if its error says where that is."""
        dref = running.job.key.dref
        if running.log.overflowed and not running.cancelled:  # even if it had ended before it could be killed
            return failed_row(dref, BuildDied(str(dref), _wrote_too_much(running.log), running.id))
        if report is None or report.error is None:
            how = running.killed_because or how_it_ended(ended.exit_code, ended.signal)
            return failed_row(dref, BuildDied(str(dref), how, running.id))
        left = [str(name) for name in report.error.get("outpaths") or () if isinstance(name, str)]
        kept = await self.hold.keep_failed(dref, folder, left)
        row = failed_row(dref, report.error, **({"outpaths": kept} if kept else {}))
        return pointing_to(row, folder, kept)


def _two_pipes() -> tuple[int, int, int, int]:
    """Return both ends of two pipes. Where there are descriptors left for one only, there is none."""
    first = os.pipe2(os.O_CLOEXEC)
    try:
        return (*first, *os.pipe2(os.O_CLOEXEC))
    except OSError:
        for fd in first:
            os.close(fd)
        raise


def _wrote_too_much(log: BuildLog) -> str:
    return f"wrote more than the daemon's log-size of {log.cap_bytes} bytes"


def _why_killed(running: RunningBuild) -> str:
    return "was cancelled" if running.cancelled else _wrote_too_much(running.log)


async def unless_killed(running: RunningBuild, task: Callable[[], Awaitable[T]], grace_seconds: float = 0.0) -> T:
    """Wait for a task, or cancel it a while after the build is told to end.

    Raises:
        _Killed: it was cancelled.
    """
    answers: list[T] = []
    failure: Optional[Exception] = None

    async def cut(scope: trio.CancelScope) -> None:
        await running.kill.wait()
        scope.deadline = trio.current_time() + grace_seconds

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cut, nursery.cancel_scope)
        try:
            answers.append(await task())
        except Exception as error:  # noqa: BLE001  # else it would come out in a group
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if not answers:
        raise _Killed
    return answers[0]


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
