"""Mistakes in the scheduler and in commits: who waited fails, the next builds are built, and nothing waits for ever."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Optional

import pytest
import trio
from tests.stores import new_store

from pylightnix import DRef, RRef
from pylightnix.planner.messages import Fact, Failed
from pylightnix.protocol.messages import EventPhase, Fetching, RealizerSpec
from pylightnix.storage import store_layout
from pylightnix.store.build_logs import logs_folder
from pylightnix.store.faults import set_hook
from pylightnix.store.store import open_store_alone
from pylightnix.travel import capture_environment
from pylightnixd.boundary import SharedNursery
from pylightnixd.builds import Builds
from pylightnixd.durations import Durations
from pylightnixd.hold import HeldStore
from pylightnixd.jobs import BuildJob, RunningBuild
from pylightnixd.limits import Limits
from pylightnixd.logfolder import LogFolder
from pylightnixd.resources import Budget
from pylightnixd.table import BuildKey, BuildTable, TableAction
from pylightnixd.workers import WorkerPool

pytestmark = pytest.mark.embedded_only("it holds a store itself")


class Waiter:
    """An operation that remembers what it hears."""

    parent: Optional[RunningBuild] = None

    def __init__(self, name: str) -> None:
        self.id = name
        self.heard: list[Fact] = []
        self.told = trio.Event()

    def post(self, fact: Fact) -> None:
        self.heard.append(fact)
        self.told.set()

    def build_started(self, running: RunningBuild) -> None:
        raise KeyError("a mistake of the operation")

    def build_fetching(self, running: RunningBuild, fetch: Fetching, phase: EventPhase) -> None: ...

    def build_placing(self, running: RunningBuild) -> None: ...

    def build_abandoned(self, dref: DRef) -> None: ...


class BrokenTable(BuildTable):
    """One that fails as often as it is told, at the beginning or after it has marked builds as running."""

    failures = 0
    late = False

    def actions(self, now: float) -> list[TableAction]:
        found = super().actions(now) if self.late else []
        if self.failures and self.queued + len(found):
            self.failures -= 1
            raise KeyError("a mistake of the table")
        return found or super().actions(now)


def job(number: int) -> BuildJob:
    dref = DRef(f"dref:{number:032x}-x")
    return BuildJob(
        key=BuildKey(dref, "c", "d", "e", "a"),
        context={},
        realizer=RealizerSpec(kind="command"),
        blob=None,
        digest=None,
        arguments=None,
        environment=capture_environment(),
        operation="op",
        uid=os.getuid(),
    )


def with_builds(tmp_path: Path, table: BuildTable, run: Callable[[Builds, HeldStore], Awaitable[None]]) -> None:
    layout = store_layout(new_store(tmp_path / "store"))

    async def main() -> None:
        with open_store_alone(layout, "daemon", None) as store, trio.fail_after(20):
            hold = HeldStore.of(store)
            async with trio.open_nursery() as nursery:
                shared = SharedNursery(nursery)
                logs = LogFolder.of(logs_folder(layout.state))
                pool: Any = WorkerPool(shared, store.owner, logs.path)
                fetchers: Any = None
                builds = Builds(hold, table, pool, Limits(), logs, Durations.of(store.index), shared, fetchers)
                shared.keep("starting builds", builds.run)
                shared.keep("committing", hold.run_committer)
                await run(builds, hold)
                nursery.cancel_scope.cancel()

    trio.run(main)


@pytest.mark.parametrize("late", [False, True], ids=["before", "half-way"])
def test_a_table_that_fails_fails_what_waits_and_no_more(tmp_path: Path, late: bool) -> None:
    table = BrokenTable(Budget(1, None, {}), 1.0)
    table.failures, table.late = 1, late

    async def run(builds: Builds, hold: HeldStore) -> None:
        first, second = Waiter("first"), Waiter("second")
        builds.want(first, job(1), None)
        builds.want(second, job(2), None)
        for waiter in (first, second):
            await waiter.told.wait()
            (fact,) = waiter.heard
            assert isinstance(fact, Failed)
            assert "bug" in str(fact.error)
        assert table.entries() == []
        assert table.busy == 0
        table.check_invariants()
        os.rmdir(builds.logs.path)  # so the next fails as any build may, and not for want of a turn
        third = Waiter("third")
        builds.want(third, job(3), None)
        await third.told.wait()
        (fact,) = third.heard
        assert isinstance(fact, Failed)
        assert not builds.running

    with_builds(tmp_path, table, run)


@pytest.mark.parametrize("error", [KeyError("a mistake"), OSError(errno.EIO, "Input/output error"), MemoryError()])
def test_a_commit_that_fails_in_any_way_leaves_nobody_waiting(tmp_path: Path, error: Exception) -> None:
    async def run(builds: Builds, hold: HeldStore) -> None:
        def hook(point: str) -> None:
            if point == "before_sync":
                raise error

        hold.committer.batch.pending = {RRef(f"rref:{1:032x}-{7:032x}-x"): 1}  # put in place, so to speak
        set_hook(hook)
        try:
            hold._placed += 1
            hold._work.set()
            await hold.wait_durable(hold.placed)
        finally:
            set_hook(None)
        assert hold.losses == 1
        found, _ = hold.lost_among([])
        assert "durable" in str(found)
        assert not hold.committer.batch.pending
        hold._placed += 1
        hold._work.set()
        await hold.wait_durable(hold.placed)  # it goes on

    with_builds(tmp_path, BuildTable(Budget(1, None, {}), 1.0), run)
