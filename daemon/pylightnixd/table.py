"""The table of builds: who wants what, what runs, what starts next. Pure: no clock, no files, no trio.

An operation is one client's interest in a closure; a build is one attempt at a `BuildKey`. Operations
share builds. The rules:

- An operation that wants a key joins the build of that key if there is one that it may join, else a new
  build is queued. A forced request joins only a build that has not started; anyone may join a forced one.
- A build starts when its CPU slots are free; longest path first, then first come. No build is passed
  over for a smaller one that came later, or a large one would starve.
- A build that no operation wants any more is dropped at once while it is queued, and cancelled after
  `grace_seconds` while it runs: the client may be about to come back. Whoever joins within the grace
  saves it.
- A slot is free again only when the build has ended, which means that all its processes are dead.

Builds are `queued`, then `running`, then `cancelling` perhaps, and then gone from the table.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from enum import Enum
from itertools import count
from typing import Optional, TypeAlias, Union

from pylightnix.types import DRef

__all__ = ["BuildKey", "BuildState", "BuildTable", "CancelBuild", "JoinedBuild", "Release", "TableAction", "TableEntry"]


@dataclass(frozen=True, slots=True)
class BuildKey:
    """What makes two requests the same build."""

    dref: DRef
    context_key: str
    """Stands for the direct dependencies."""
    realizer_digest: str
    environment_key: str
    """Stands for the interpreter, the import path, the umask and the declared variables."""
    arguments_key: str
    """Stands for what `realize_args` holds for this derivation."""


class BuildState(Enum):
    """Where a build is on its way."""

    queued = "queued"
    running = "running"
    cancelling = "cancelling"


@dataclass(slots=True)
class TableEntry:
    """One build. Only the table changes it."""

    id: str
    key: BuildKey
    forced: bool
    cpus: int
    path_seconds: float
    """How long what starts with this build is expected to take, up to its operation's targets."""
    queued_at: float
    order: int
    operations: dict[str, None] = field(default_factory=dict)
    """Who wants it, in the order in which they came."""
    state: BuildState = BuildState.queued
    started_at: Optional[float] = None
    unwanted_since: Optional[float] = None


@dataclass(frozen=True, slots=True)
class JoinedBuild:
    """The answer to a request."""

    build: str
    new: bool
    """Whether this request caused it."""


@dataclass(frozen=True, slots=True)
class Release:
    """Start this build: its slots are taken for it."""

    build: str


@dataclass(frozen=True, slots=True)
class CancelBuild:
    """Kill this build: nobody wants it. Its slots are free when it has ended."""

    build: str


TableAction: TypeAlias = Union[Release, CancelBuild]


class BuildTable:
    """All builds of one daemon that are queued or running.

    Args:
        slots: CPU slots of the host.
        grace_seconds: how long a running build outlives the last operation that wanted it.
    """

    def __init__(self, slots: int, grace_seconds: float) -> None:
        if slots < 1:
            raise ValueError(f"expected one CPU slot or more, found {slots}")
        self.slots, self.grace_seconds = slots, grace_seconds
        self._entries: dict[str, TableEntry] = {}
        self._by_key: dict[BuildKey, list[str]] = {}
        self._queue: list[tuple[float, int, str]] = []
        self._unwanted: dict[str, None] = {}
        self._numbers = count(1)
        self.busy = 0

    # --- questions ----------------------------------------------------------------------------------

    def entry(self, build: str) -> Optional[TableEntry]:
        """Return a build that is queued or running, None for any other."""
        return self._entries.get(build)

    def entries(self) -> list[TableEntry]:
        """Return all builds, in the order in which they were asked for."""
        return list(self._entries.values())

    @property
    def queued(self) -> int:
        """How many builds wait for slots."""
        return sum(entry.state is BuildState.queued for entry in self._entries.values())

    def could_start(self) -> bool:
        """Tell whether a build waits although there is room for it."""
        waiting = [entry for entry in self._entries.values() if entry.state is BuildState.queued]
        first = min(waiting, key=lambda entry: (-entry.path_seconds, entry.order), default=None)
        return first is not None and self.busy + first.cpus <= self.slots

    def deadline(self) -> Optional[float]:
        """Return when `actions` has something to do even if nothing happens, None for never."""
        times = [self._entries[build].unwanted_since for build in self._unwanted]
        found = [since + self.grace_seconds for since in times if since is not None]
        return min(found, default=None)

    # --- what happens -------------------------------------------------------------------------------

    def want(
        self, now: float, operation: str, key: BuildKey, *, forced: bool = False, cpus: int = 1, path_seconds: float = 0.0
    ) -> JoinedBuild:
        """Enter that `operation` wants `key` built.

        A build that wants more slots than there are gets all of them, alone, rather than never starting.
        """
        for build in self._by_key.get(key, ()):
            entry = self._entries[build]
            if entry.state is BuildState.queued or (entry.state is BuildState.running and not forced):
                entry.operations[operation] = None
                entry.unwanted_since = None
                entry.forced = entry.forced or forced
                self._unwanted.pop(build, None)
                return JoinedBuild(build, new=False)
        number = next(self._numbers)
        entry = TableEntry(f"b{number}", key, forced, min(cpus, self.slots), path_seconds, now, number, {operation: None})
        self._entries[entry.id] = entry
        self._by_key.setdefault(key, []).append(entry.id)
        heapq.heappush(self._queue, (-path_seconds, number, entry.id))
        return JoinedBuild(entry.id, new=True)

    def leave(self, now: float, operation: str, build: Optional[str] = None) -> None:
        """Enter that `operation` no longer wants `build`, or anything."""
        for entry in list(self._entries.values()):
            if build not in (None, entry.id):
                continue
            if operation in entry.operations:
                del entry.operations[operation]
                if not entry.operations:
                    self._abandon(now, entry)

    def _abandon(self, now: float, entry: TableEntry) -> None:
        if entry.state is BuildState.queued:
            self._remove(entry)
        elif entry.state is BuildState.running:
            entry.unwanted_since = now
            self._unwanted[entry.id] = None

    def drop(self, build: str) -> None:
        """Take a build that is queued, or was just released, out: others delivered what it was for."""
        self.ended(build)

    def ended(self, build: str) -> None:
        """Enter that every process of a build is dead, whatever became of it."""
        entry = self._entries.get(build)
        if entry is not None:
            self._remove(entry)

    def _remove(self, entry: TableEntry) -> None:
        if entry.state is not BuildState.queued:
            self.busy -= entry.cpus
        del self._entries[entry.id]
        self._unwanted.pop(entry.id, None)
        same = self._by_key[entry.key]
        same.remove(entry.id)
        if not same:
            del self._by_key[entry.key]

    def actions(self, now: float) -> list[TableAction]:
        """Return what is to be done now, and take it as done."""
        actions: list[TableAction] = []
        for build in list(self._unwanted):
            entry = self._entries[build]
            if entry.unwanted_since is not None and now >= entry.unwanted_since + self.grace_seconds:
                entry.state = BuildState.cancelling
                del self._unwanted[build]
                actions.append(CancelBuild(build))
        while self._queue:
            found = self._entries.get(self._queue[0][2])
            if found is None:
                heapq.heappop(self._queue)  # it was dropped while it waited
            elif self.busy + found.cpus <= self.slots:
                heapq.heappop(self._queue)
                self.busy += found.cpus
                found.state, found.started_at = BuildState.running, now
                actions.append(Release(found.id))
            else:
                break
        return actions

    def check_invariants(self) -> None:
        """Raise `AssertionError` if the table contradicts itself. For tests, after every step."""
        entries = self._entries.values()
        running = [entry for entry in entries if entry.state is not BuildState.queued]
        waiting = {build for _, _, build in self._queue}
        problems = [
            (self.busy != sum(entry.cpus for entry in running), "slots taken"),
            (self.busy > self.slots, "more slots taken than there are"),
            (sorted(b for bs in self._by_key.values() for b in bs) != sorted(self._entries), "builds by key"),
            (any(e.state is BuildState.queued and e.id not in waiting for e in entries), "queued but not in the queue"),
            (any(e.state is BuildState.queued and not e.operations for e in entries), "queued for nobody"),
            (any(e.state is BuildState.running and not e.operations and e.id not in self._unwanted for e in entries), "runs for nobody"),
            (any(self._entries[b].operations for b in self._unwanted), "wanted, but marked unwanted"),
            (any(e.started_at is None for e in running), "running without a start"),
        ]
        for wrong, what in problems:
            if wrong:
                raise AssertionError(f"BUG: {what}: {list(entries)}")
