"""Builds that fetch: first the file, in the fetcher, once for all who want it; then a worker puts it where it belongs, or unpacks it.

A fetch takes no CPU slot, for it waits for others most of the time; how many there may be at a time says the fetcher. What unpacks
is a worker of the daemon's own interpreter, a few at a time. Must not know the table of builds, nor who waits for one.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Final, Optional

import trio

from pylightnix.errors import BuildError, Misuse, PylightnixException
from pylightnix.fetch import FetchedFile, FetchProgress
from pylightnix.protocol.errors import BuildDied
from pylightnix.protocol.messages import EventPhase, FailedRow, Fetching
from pylightnix.travel import Environment, dump_exception
from pylightnix.travel.fetching import pack_fetched
from pylightnix.types import Path, StorageSettings
from pylightnixd.fetchers import Fetchers
from pylightnixd.hold import HeldStore
from pylightnixd.jobs import FetchJob, RunningBuild
from pylightnixd.report import failed_row
from pylightnixd.worker_builds import WorkerBuilds, unless_killed

__all__ = ["FetchBuilds"]

TELL_SECONDS: Final = 0.25
"""How often it is told how far a fetch is."""


@dataclass(slots=True, eq=False)
class FetchBuilds:
    """Fetches, and has workers do the rest."""

    hold: HeldStore
    in_workers: WorkerBuilds
    fetchers: Fetchers
    environment: Environment
    """The daemon's own, in which its own code runs."""
    tell: Callable[[RunningBuild, Fetching, EventPhase], None]
    """Called with how far a build's fetch is."""
    unpacking: trio.CapacityLimiter
    """How many workers unpack at a time."""

    async def build(self, running: RunningBuild) -> Optional[FailedRow]:
        """Run a build until it has built or failed for good."""
        fetch = running.job.fetch
        if fetch is None:
            raise AssertionError("BUG: nothing to fetch")
        try:
            return await self.in_workers.build(running, lambda: self._lent(running, fetch))
        except _Killed as error:
            return failed_row(running.job.key.dref, BuildDied(str(running.job.key.dref), str(error), running.id))
        except Misuse as error:  # what fetches raise
            # As where it runs without a daemon: what a realizer raises is the cause of a failed build.
            layout = self.hold.reader.layout
            S = StorageSettings(Path(layout.state), Path(layout.storage), None)
            dumped = dump_exception(BuildError(S, running.job.key.dref, None, error))
            return failed_row(running.job.key.dref, {**dumped, "traceback": ""})  # it would be of our code, not of the user's

    @asynccontextmanager
    async def _lent(self, running: RunningBuild, fetch: FetchJob) -> AsyncIterator[None]:
        """Have the file there, and a worker told of it, as long as the block runs."""
        teller = _Teller(running, self.tell)
        async with AsyncExitStack() as stack:
            try:
                file = await self._fetched(stack, running, fetch, teller)
            finally:
                teller.end()
            await unless_killed(running, lambda: stack.enter_async_context(self.unpacking))  # others may unpack for hours
            running.job = replace(running.job, blob=pack_fetched(fetch.realizer, file), environment=self.environment)
            yield

    async def _fetched(self, stack: AsyncExitStack, running: RunningBuild, fetch: FetchJob, teller: _Teller) -> FetchedFile:
        """Have the file lent until `stack` is left.

        Raises:
            _Killed: the build was cancelled, or took too long.
        """
        total = self.in_workers.limits.timeout(running.job.own_limits)
        file: Optional[FetchedFile] = None
        failure: Optional[PylightnixException] = None
        with trio.move_on_after(total.seconds or float("inf")) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_at, running.kill, nursery.cancel_scope)
                try:
                    lent = self.fetchers.fetched(fetch.spec, fetch.environment, owner=fetch.user, progress=teller)
                    file = await stack.enter_async_context(lent)
                except PylightnixException as error:  # else it would come out in a group
                    failure = error
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        if file is None:
            why = f"took longer than {total.whose} of {total.seconds:g} s" if scope.cancelled_caught else "was cancelled"
            raise _Killed(why)
        return file


class _Killed(Exception):
    """A fetch was ended before its time; the text says why."""


@dataclass(slots=True, eq=False)
class _Teller:
    """Tells how far a fetch is, in the log when something changes, and to those who watch a few times a second."""

    running: RunningBuild
    tell: Callable[[RunningBuild, Fetching, EventPhase], None]
    _told: float = 0.0
    _logged: str = field(default="")

    def __call__(self, progress: FetchProgress) -> None:
        said = progress.waiting or (f"fetching {progress.mirror}" if progress.mirror else "")
        if said and said != self._logged:
            self._logged = said
            self.running.log.write(f"{said}\n".encode("utf-8", "replace"))
        self.running.fetching = Fetching(
            bytes=progress.bytes,
            total=progress.total,
            bytes_per_second=progress.bytes_per_second,
            mirror=progress.mirror,
            attempt=max(1, progress.attempt),
            waiting=progress.waiting,
        )
        now = time.monotonic()
        if now >= self._told + TELL_SECONDS:
            self._told = now
            self.tell(self.running, self.running.fetching, "progress")

    def end(self) -> None:
        if self.running.fetching is not None:
            self.tell(self.running, self.running.fetching, "stop")
            self.running.fetching = None


async def _cancel_at(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
