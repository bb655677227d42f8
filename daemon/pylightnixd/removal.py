"""Removing realizations and derivations from the daemon's store, and mending damaged ones, beside everything else that it does.

One removal, or mending, runs at a time, in a thread with a view of its own. What keeps it apart from builds:

- Who is at work is told on the trio thread in the same step in which the removal begins; with what a running
  operation or build may touch, nothing is done.
- An operation that begins meanwhile and needs something that is being removed waits for the end of that, which
  is a matter of renames. All others go on.

Must not know operations, nor what is worth keeping.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Final, TypeAlias, TypeVar

import trio

from pylightnix.refs import rref2dref
from pylightnix.store.collection import Removal, remove
from pylightnix.store.inspection import inspect
from pylightnix.store.mending import Mended, Outcome, mend
from pylightnix.store.set_aside import retry_set_aside
from pylightnix.store.store import Store
from pylightnix.store.trash import empty_trash
from pylightnix.types import DRef, RRef
from pylightnixd.threads import run_in_thread

__all__ = ["AtWork", "Removals"]

T = TypeVar("T")

STEP_SECONDS: Final = 0.5
"""How long a thread unlinks at a time."""

AtWork: TypeAlias = Callable[[Set[DRef]], Mapping[DRef, Sequence[str]]]
"""Returns who works with any of these derivations now. Does not await."""


@dataclass(slots=True, eq=False)
class Removals:
    """All removals from one store."""

    store: Store
    """A view that nothing else uses."""
    _limiter: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(1))
    _hash_limiter: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(1))
    _trash_limiter: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(1))
    _emptying: trio.Lock = field(default_factory=trio.Lock)
    _turn: trio.Lock = field(default_factory=trio.Lock)
    _going: frozenset[DRef] = frozenset()
    """The derivations that the removal under way is about."""
    _ended: trio.Event = field(default_factory=trio.Event)

    async def remove(
        self, drefs: Sequence[DRef], rrefs: Sequence[RRef], only_unused: bool, *, settle: Callable[[], Awaitable[None]], at_work: AtWork
    ) -> Removal:
        """Remove as `pylightnix.store.collection.remove` does; the trash is left full.

        Args:
            drefs: derivations, with all their realizations.
            rrefs: realizations.
            only_unused: leave alone what is needed.
            settle: waits until all that is in place is durable.
            at_work: who is at work.
        """
        concerned = frozenset({*drefs, *map(rref2dref, rrefs)})
        return await self._apart(
            concerned, lambda busy: remove(self.store, drefs, rrefs, only_unused=only_unused, at_work=busy), settle, at_work
        )

    async def mend(self, rref: RRef, *, settle: Callable[[], Awaitable[None]], at_work: AtWork) -> Mended:
        """Mend a realization as `pylightnix.store.mending.mend` does. Arguments as of `remove`."""
        # Hashed first with everybody at work: what is whole holds up nobody, however large it is.
        found = await run_in_thread(lambda: inspect(self.store.layout, rref), limiter=self._hash_limiter)
        if found.damage is None:
            return Mended(rref, Outcome.whole)
        [mended] = await self._apart(frozenset({rref2dref(rref)}), lambda busy: mend(self.store, [rref], busy), settle, at_work)
        return mended

    async def _apart(
        self,
        drefs: frozenset[DRef],
        work: Callable[[Mapping[DRef, Sequence[str]]], T],
        settle: Callable[[], Awaitable[None]],
        at_work: AtWork,
    ) -> T:
        """Do `work` in a thread, given who is at work with these derivations, while nobody begins to work with them."""
        async with self._turn:
            await settle()
            self._going = drefs
            busy = at_work(drefs)
            try:
                return await run_in_thread(work, busy, limiter=self._limiter)
            finally:
                self._going = frozenset()
                self._ended.set()
                self._ended = trio.Event()

    async def wait_past(self, drefs: Set[DRef]) -> None:
        """Wait until nothing of these derivations is being removed.

        Whoever calls counts as at work with them already, so that no later removal touches them.
        """
        while not self._going.isdisjoint(drefs):
            await self._ended.wait()

    async def empty_trash(self) -> None:
        """Unlink what is in the trash, and try again what was set aside. Large trees take many steps, between which the daemon may end."""
        layout = self.store.layout
        async with self._emptying:
            while not await run_in_thread(empty_trash, layout, STEP_SECONDS, limiter=self._trash_limiter):
                pass
            await run_in_thread(lambda: retry_set_aside(layout, time.monotonic() + STEP_SECONDS), limiter=self._trash_limiter)
