"""The daemon's hold on its store: every touch of index and trees goes through here.

Four views of one store, each used by one task or thread at a time:

- `candidates` and other small reads run on the trio thread itself. A look-up costs microseconds, a hop
  to a thread a hundred; and only so is "look up, then join the table" one step without an await.
- Placing (take-over, hash, pending rows, rename) runs in threads.
- Committing (sync, valid rows) runs in another, so that the next batch gathers while one is on its way.
- Removing runs in a third, see `removal`.

Cancelling never abandons a thread that writes: trio waits for it.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Optional, TypeAlias, TypeVar

import trio

from pylightnix.attempt import take_outputs
from pylightnix.codekey import CodeManifest
from pylightnix.config import Config, canonical_bytes, cfgname
from pylightnix.context import realization_hash
from pylightnix.errors import InvalidOutput, PylightnixException, StoreError
from pylightnix.planner.messages import Candidate
from pylightnix.refs import mkrref, undref
from pylightnix.store.access import in_words
from pylightnix.store.commit import TakenOutput
from pylightnix.store.derivations import derivation_ref, write_derivation
from pylightnix.store.kept import keep_failed
from pylightnix.store.set_aside import discard
from pylightnix.store.store import Store, another_view
from pylightnix.store.trash import put_away
from pylightnix.types import DRef, HashPart, RRef
from pylightnixd.boundary import contained
from pylightnixd.removal import Removals
from pylightnixd.room import Room
from pylightnixd.threads import run_in_thread

__all__ = ["HeldStore"]

T = TypeVar("T")
Tell: TypeAlias = Callable[[str], None]
_log = logging.getLogger("pylightnixd")
GATHER_SECONDS: Final = 1.0
"""How much building may be at stake that nobody waits for yet, and for how long: each flush of a disk holds up builds that write."""
REMOVAL_SECONDS: Final = 2.0
"""How long a thread removes the folder of a build, before what is left goes to the trash."""
MANIFEST_CHARACTERS_MAX: Final = 1 << 20
CODES_KEPT: Final = 10_000
"""How many digests to remember as recorded; recording one again does no harm."""


@dataclass(slots=True, eq=False)
class HeldStore:
    """One store, held alone by this daemon. Made with `HeldStore.of`; `run_committer` must be running."""

    reader: Store
    placer: Store
    committer: Store
    removals: Removals
    room: Room
    placing: threading.Lock = field(default_factory=threading.Lock)
    """Held by the thread that uses `placer`; the others hash meanwhile."""
    commit_limiter: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(1))
    disk_limiter: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(max(2, os.cpu_count() or 1)))
    """For what somebody waits for who may want nothing to do with any build."""
    tree_limiter: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(max(2, os.cpu_count() or 1)))
    _at_once: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(math.inf))
    """For what need not wait any more."""
    _codes: set[str] = field(default_factory=set)
    """Digests of realizers of which it was recorded what they cover."""
    _placed: int = 0
    """How many attempts were put in place."""
    _durable: int = 0
    """How many of these have been through a commit."""
    _work: trio.Event = field(default_factory=trio.Event)
    _awaited: trio.Event = field(default_factory=trio.Event)
    """Set when somebody waits for durability, and gathering more would be at its cost; or when much is at stake."""
    _progress: trio.Event = field(default_factory=trio.Event)

    @classmethod
    def of(cls, store: Store) -> HeldStore:
        """Return the hold on a store that was opened alone."""
        removals = Removals(another_view(store))
        return cls(store, another_view(store), another_view(store), removals, Room(store.layout, removals.empty_trash))

    # --- reading ------------------------------------------------------------------------------------

    def candidates(self, dref: DRef, context: Mapping[DRef, Sequence[RRef]]) -> list[Candidate]:
        """Return what a matcher of `dref` may choose from now. Does not await."""
        return self.reader.candidates(dref, context)

    def in_words(self, doing: str, error: BaseException) -> BaseException:
        """Return our error for what the system or the index said; any other as it is."""
        return in_words(self.reader.layout, doing, error)

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run blocking work on the disk that is soon done, a few at a time."""
        with self.room.minded():
            return await run_in_thread(work, limiter=self.disk_limiter)

    async def with_trees(self, work: Callable[[], T], begins: Callable[[], None] = lambda: None) -> T:
        """Run blocking work on whole trees, which takes as long as they are large, a few at a time.

        `begins` is called when it is its turn.
        """
        async with self.tree_limiter:
            begins()
            return await run_in_thread(work, limiter=self._at_once)

    # --- writing ------------------------------------------------------------------------------------

    def register(self, configs: Sequence[Config]) -> list[DRef]:
        """Write derivations, in the calling thread; return their references in order."""
        drefs = []
        for config in configs:
            canonical = canonical_bytes(config.val)
            dref = derivation_ref(canonical, cfgname(config))
            write_derivation(self.reader.layout, dref, canonical, config.val, owner=self.reader.owner)
            drefs.append(dref)
        return drefs

    def make_folder(self) -> str:
        """Make a build folder, in the calling thread."""
        return self.reader.owner.make_folder()

    async def place(
        self,
        dref: DRef,
        context: Mapping[DRef, Sequence[RRef]],
        folder: str,
        names: Sequence[str],
        *,
        started: float,
        stopped: float,
        realizer_digest: Optional[str],
        manifest: Optional[str] = None,
        dynamic: Mapping[DRef, Collection[RRef]],
        clear: bool = False,
        host: Optional[str] = None,
        build: Optional[str] = None,
        expected: Optional[RRef] = None,
        begins: Callable[[], None] = lambda: None,
        tell: Tell = lambda text: None,
    ) -> list[RRef]:
        """Take over the outputs of one attempt and put them in place; return their references, of which see `wait_nameable`.

        What the digest covers is recorded the first time that it is told. `dynamic` is what was realized for the realizer.
        With `clear` the build folder is removed, too, if it can be. `host` is where they were made, None for here;
        `build` names the attempt; `expected` is what the only one of them must be.
        `begins` is called when nothing else has to be waited for, `tell` with what cannot be removed.

        Raises:
            InvalidOutput: one of them cannot be stored, or is not what was expected. None is in place.
            StoreError: the store failed.
        """
        told: Optional[str] = None
        found = {below: sorted(rrefs) for below, rrefs in dynamic.items() if rrefs}
        if manifest is not None and realizer_digest is not None and realizer_digest not in self._codes:
            told = manifest if _is_sound(manifest, realizer_digest) else None

        def place() -> list[RRef]:
            outputs = take_outputs(self.placer.layout, dref, folder, [os.path.join(folder, name) for name in names])
            if expected is not None:
                (output,) = outputs
                _check_reference(expected, dref, output, realization_hash(output.tree_hash, context, found))
            with self.placing:
                rrefs = self.placer.place(
                    dref,
                    context,
                    outputs,
                    started=started,
                    stopped=stopped,
                    dynamic=found,
                    realizer_digest=realizer_digest,
                    manifest=told,
                    host=host,
                    build=build,
                )
            if clear:
                self._discard(folder, tell)
            return rrefs

        # One hop to a thread for all: a build of a trivial stage costs hardly more than its hops.
        with self.room.minded():
            rrefs = await self.with_trees(place, begins)
        if realizer_digest is not None and told is not None:
            if len(self._codes) >= CODES_KEPT:
                self._codes.clear()
            self._codes.add(realizer_digest)
        self._placed += 1
        self._work.set()
        if self.committer.batch.at_stake_seconds >= GATHER_SECONDS:
            self._awaited.set()
        return rrefs

    async def remove(self, folder: str, tell: Tell = lambda text: None) -> None:
        """Remove a build folder, in a thread. What cannot be removed is set aside, and told of: no build fails by what it left."""
        await self.with_trees(lambda: self._discard(folder, tell))

    def _discard(self, folder: str, tell: Tell) -> None:
        layout = self.reader.layout
        if not discard(layout, folder, time.monotonic() + REMOVAL_SECONDS, lambda text: trio.from_thread.run_sync(tell, text)):
            with suppress(OSError, StoreError):  # it is swept when this daemon has ended
                put_away(layout, folder)  # neither a build nor the end of the daemon waits for the rest

    async def keep_failed(self, dref: DRef, folder: str, names: Sequence[str]) -> list[str]:
        """Keep a build folder, if a failed build has left something in it, `names`; return where these are now."""
        if not names:
            return []
        kept = await self.with_trees(lambda: keep_failed(self.reader.layout, dref, folder, self.room.keep_failed))
        return [os.path.join(kept, name) for name in names]

    # --- durability -----------------------------------------------------------------------------------

    @property
    def placed(self) -> int:
        """The ticket of the latest attempt that was put in place."""
        return self._placed

    async def run_committer(self) -> None:
        """Make durable what is put in place, batch after batch, for as long as the daemon lives.

        A batch goes when somebody waits for it, or after a moment; while it is on its way the next gathers. One that fails,
        for whatever reason, is lost; those who wait for it are told so.
        """
        while True:
            await self._work.wait()
            with trio.move_on_after(GATHER_SECONDS):
                await self._awaited.wait()
            self._work, self._awaited = trio.Event(), trio.Event()
            last = self._placed
            try:
                what = contained("making realizations durable, so what was not durable is lost")
                with trio.CancelScope(shield=True), what, self.room.minded():
                    await run_in_thread(self.committer.flush, limiter=self.commit_limiter)
            finally:
                self._durable = last
                self._progress.set()
                self._progress = trio.Event()

    async def wait_durable(self, ticket: int) -> None:
        """Wait until everything up to `ticket` has been through a commit, good or bad; see `losses`."""
        while self._durable < ticket:
            self._awaited.set()
            await self._progress.wait()

    async def wait_nameable(self, rrefs: Iterable[RRef]) -> None:
        """Wait until a client may be told of these realizations, which are in place.

        Raises:
            StoreError: the commit failed, and some of them are lost.
        """
        await self.wait_durable(self.placed)
        if self.losses:
            error, lost = self.lost_among(rrefs)
            if lost:
                raise error

    @property
    def losses(self) -> int:
        """How many commits have failed so far.

        Whoever finds this changed since it began must ask `lost_among` what it lost. Numbers of attempts
        would not do: a failed commit takes with it what other threads were putting in place just then.
        """
        return self.committer.batch.losses

    def lost_among(self, rrefs: Iterable[RRef]) -> tuple[StoreError, set[RRef]]:
        """Return why the latest commit failed, and which of `rrefs` are not in the store (any more)."""
        error = self.committer.batch.lost
        if error is None:
            raise AssertionError("BUG: asked what was lost when nothing was")
        rrefs = list(rrefs)
        try:
            return error, self.reader.lost_among(rrefs)
        except StoreError:  # the disk has not got better: what cannot be looked up is not there, and why is known
            return error, set(rrefs)


def _check_reference(expected: RRef, dref: DRef, output: TakenOutput, rhash: HashPart) -> None:
    dhash, name = undref(dref)
    found = mkrref(rhash, dhash, name)
    if found != expected:
        problem = f"its tree and its context have the reference {found}, and {expected} was expected"
        raise InvalidOutput(dref, output.path, problem, "look for what has changed it")


def _is_sound(manifest: str, digest: str) -> bool:
    """Tell whether a manifest, which user code told, is one of this digest."""
    try:
        return len(manifest) <= MANIFEST_CHARACTERS_MAX and CodeManifest.from_json(manifest).digest == digest
    except PylightnixException:
        return False
