"""Builds in workers: from a fork to outputs in place, or to what went wrong.

The order within a build: fork, drain its log, wait until all its processes are dead, read its report, take over, put
in place. Nothing that a builder does can raise out of here but as an error of the build. Must not know who waits for it.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import Final, Optional, TypeAlias

import trio

from pylightnix.config import canonical_bytes
from pylightnix.errors import InvalidOutput
from pylightnix.protocol.errors import BuildDied, ProtocolError, WorkerFailed
from pylightnix.protocol.messages import FailedRow
from pylightnix.protocol.worker_messages import BuildEnded, BuildReport
from pylightnix.worker.children import how_it_ended
from pylightnixd.durations import Durations
from pylightnixd.hold import HeldStore
from pylightnixd.jobs import BuildJob, RunningBuild
from pylightnixd.limits import Limits
from pylightnixd.logs import BuildLog
from pylightnixd.report import REPORT_BYTES_MAX, failed_row, parse_report, pointing_to
from pylightnixd.resources import device_variables
from pylightnixd.table import BuildTable
from pylightnixd.workers import Worker, WorkerLost, WorkerPool

__all__ = ["Prepared", "WorkerBuilds"]

Prepared: TypeAlias = Callable[[], AbstractAsyncContextManager[None]]

LOST_WORKER_TRIES: Final = 3
LOST_WORKER_BACKOFF_SECONDS: Final = 0.2
DRAIN_SECONDS: Final = 5.0


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
                failure, worker = await self._attempt(running, prepared)
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

    async def _attempt(self, running: RunningBuild, prepared: Prepared) -> tuple[Optional[FailedRow], Worker]:
        folder = self.hold.make_folder()
        running.realized.clear()
        try:
            async with prepared():
                worker = await self._worker(running.job)
                running.worker, running.token = worker, secrets.token_hex(16)
                ended, report = await self._in_worker(running, worker, folder)
            return await self._conclude(running, ended, report, folder), worker
        finally:
            if running.worker is not None and running.job.in_fresh_worker:
                self.pool.retire(running.worker)
            running.worker = None
            if os.path.lexists(folder):  # noqa: ASYNC240  # a hop to a thread takes longer
                # Shielded, and not bounded: a thread that removes files cannot be abandoned half-way.
                with trio.CancelScope(shield=True):
                    await self.hold.remove(folder, running.log.note)  # noqa: ASYNC102

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
            self.changed()

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
                return "was cancelled" if running.cancelled else _wrote_too_much(running.log)

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


def _wrote_too_much(log: BuildLog) -> str:
    return f"wrote more than the daemon's log-size of {log.cap_bytes} bytes"


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
