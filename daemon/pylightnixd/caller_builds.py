"""Builds in the programs that want them, because their realizers cannot leave these: what becomes of a claim.

Must not know the table of builds, nor who else waits for one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Optional, Union

import trio

from pylightnix.errors import InvalidOutput, StoreError
from pylightnix.protocol.errors import TooMany
from pylightnix.protocol.messages import FailedRow
from pylightnix.types import RRef
from pylightnixd.boundary import SharedNursery
from pylightnixd.claims import Abandoned, Caller, Claim, Delivery, claim_row, left_names
from pylightnixd.durations import Durations
from pylightnixd.hold import HeldStore
from pylightnixd.jobs import RunningBuild
from pylightnixd.report import failed_row, pointing_to

__all__ = ["CallerBuilds"]

_log = logging.getLogger("pylightnixd")


@dataclass(slots=True, eq=False)
class CallerBuilds:
    """Has callers build. `nursery` holds what waits for those who were told to stop, and must outlive every build."""

    hold: HeldStore
    durations: Durations
    changed: Callable[[], None]
    """Called when a caller may be free again."""
    placing: Callable[[RunningBuild], None]
    """Called when what a caller made is being put in place."""
    nursery: SharedNursery

    async def build(self, running: RunningBuild, claim: Claim) -> Optional[FailedRow]:
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
            if folder is not None and offered and not claim.over.is_set():
                self.nursery.start_soon(f"removing {folder}", partial(self._clear_when_over, caller, claim, folder))
            else:
                await self._clear(caller, claim, folder)  # noqa: ASYNC102  # shielded there

    async def _take(self, running: RunningBuild, claim: Claim, answer: Union[Delivery, FailedRow], folder: str) -> Optional[FailedRow]:
        job, dref = running.job, running.job.key.dref
        if isinstance(answer, FailedRow):
            kept = await self.hold.keep_failed(dref, folder, left_names(answer, folder))
            return pointing_to(claim_row(answer, dref, kept), folder, kept)
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
                build=running.id,
                begins=lambda: self.placing(running),
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
        self.changed()


async def _first(*events: trio.Event) -> None:
    """Wait until one of these is set."""
    async with trio.open_nursery() as nursery:

        async def watch(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        for event in events:
            nursery.start_soon(watch, event)
