"""The table of builds: who wants what, what runs, what starts next. Pure: no clock, no files, no trio.

An operation is one client's interest in a closure; a build is one attempt at a `BuildKey`. Operations
share builds. The rules:

- An operation that wants a key joins the build of that key if there is one that it may join, else a new
  build is queued. A forced request joins only a build that has not started; anyone may join a forced one.
- A build starts when what it takes of the host is free: CPU slots, memory, tagged things. Builds of a higher
  priority go first, then those with the longest path, where each second of waiting counts as one of the path.
- A build that must wait is passed over only by builds that want nothing of what it waits for, and nothing of
  what it keeps meanwhile: all else that it takes, as far as that is free. So a large build does not starve.
- A build of several samples needs what one takes. It gets more, up to all that it can use, from what is free when
  it starts and nobody waits for; and gives back what it has no more samples for. One that takes tagged things gets
  no more than for one: its samples could not tell whose are whose.
- A build that no operation wants any more is dropped at once while it is queued, and cancelled after
  `grace_seconds` while it runs: the client may be about to come back. Whoever joins within the grace
  saves it.
- A build that takes nothing does not queue: it starts when somebody is found to run it, which is not decided here.
- A build that waits for what its realizer wants realized has lent what it took, one sample's for each such wish, and
  goes on when it has that back, the same devices too: before others start, and in the order of asking.
- Else what a build took is free again only when all its processes are dead. Then it is being placed, which takes
  nothing of the host that is shared out here, and has ended when that is done.

Builds are `queued`, then `running`, then `cancelling` or `placing` perhaps, and then gone from the table.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from itertools import count
from typing import Final, Optional, TypeAlias, Union

from pylightnix.types import DRef
from pylightnixd.resources import CPUS, TAG_PREFIX, Budget, Needs, Spare

__all__ = ["BuildKey", "BuildState", "BuildTable", "CancelBuild", "JoinedBuild", "Release", "Resume", "TableAction", "TableEntry"]


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
    placing = "placing"
    """Its processes are dead, and its outputs are on their way into the store."""


_GOES_WELL: Final = frozenset({BuildState.running, BuildState.placing})
"""Where whoever wants what a build makes can count on it."""
_TAKES: Final = frozenset({BuildState.running, BuildState.cancelling})
"""Where a build has what it takes of the host."""
_Rank: TypeAlias = tuple[int, float, int]


@dataclass(slots=True)
class TableEntry:
    """One build. Only the table changes it."""

    id: str
    key: BuildKey
    forced: bool
    needs: Needs
    """What each of its samples takes."""
    samples: int
    """How many samples it has while it is queued; for how many it has what they take when it runs."""
    rank: _Rank
    """The least goes first."""
    queued_at: float
    order: int
    operations: dict[str, None] = field(default_factory=dict)
    """Who wants it, in the order in which they came."""
    state: BuildState = BuildState.queued
    started_at: Optional[float] = None
    unwanted_since: Optional[float] = None
    waits: int = 0
    """For how many things that its realizer wants it waits."""
    lent: int = 0
    """For how many samples others have meanwhile what they take."""
    devices: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Which of the tagged things it was given, by number, when it started."""

    @property
    def cpus(self) -> int:
        """Slots: of one sample while it is queued, of all that are made at once when it has begun."""
        return self.needs.cpus * (1 if self.state is BuildState.queued else self.samples)

    @property
    def held(self) -> dict[str, int]:
        """How much of each kind is taken for it, once it runs."""
        if self.state is BuildState.placing:
            return {}
        return {kind: amount * (self.samples - self.lent) for kind, amount in self.needs.amounts().items()}


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
    samples: int = 1
    """For how many samples at once there are slots."""


@dataclass(frozen=True, slots=True)
class CancelBuild:
    """Kill this build: nobody wants it. Its slots are free when it has ended."""

    build: str


@dataclass(frozen=True, slots=True)
class Resume:
    """Let this build go on where it waits longest: it has the slots back that it had lent for that, if any."""

    build: str


TableAction: TypeAlias = Union[Release, CancelBuild, Resume]


class BuildTable:
    """All builds of one daemon that are queued or running.

    Args:
        budget: what the host has.
        grace_seconds: how long a running build outlives the last operation that wanted it.
        new_name: gives a build its name, from how many there were.
    """

    def __init__(self, budget: Budget, grace_seconds: float, new_name: Callable[[int], str] = "b{}".format) -> None:
        self.budget, self.grace_seconds, self._new_name = budget, grace_seconds, new_name
        self._entries: dict[str, TableEntry] = {}
        self._by_key: dict[BuildKey, list[str]] = {}
        self._alike: Counter[tuple[DRef, str]] = Counter()
        """How many builds there are of a derivation and context: they may differ in all else."""
        self._queues: dict[Needs, list[tuple[_Rank, str]]] = {}
        """For each size one heap; if the first of it cannot start, no other of it can."""
        self._unwanted: dict[str, None] = {}
        self._returning: list[str] = []
        """Builds that want back what they had lent, once for each of their waits that is over."""
        self._numbers = count(1)
        self._taken: dict[str, int] = {}
        self._devices: dict[str, set[int]] = {}
        """Tag -> numbers that are taken."""
        self._overdrawn: dict[str, int] = {}
        """How much was taken when the budget last changed: until some is free again that may be more than there is."""

    # --- questions ----------------------------------------------------------------------------------

    def entry(self, build: str) -> Optional[TableEntry]:
        """Return a build that is queued or running, None for any other."""
        return self._entries.get(build)

    def entries(self) -> list[TableEntry]:
        """Return all builds, in the order in which they were asked for."""
        return list(self._entries.values())

    @property
    def slots(self) -> int:
        """How many CPU slots there are."""
        return self.budget.cpus

    @property
    def busy(self) -> int:
        """How many CPU slots are taken."""
        return self.taken(CPUS)

    def taken(self, kind: str) -> int:
        """Return how much of a kind is taken."""
        return self._taken.get(kind, 0)

    @property
    def queued(self) -> int:
        """How many builds wait for slots."""
        return sum(entry.state is BuildState.queued for entry in self._entries.values())

    def lacking(self, needs: Needs) -> list[str]:
        """Return the kinds of which a build that waits takes more than is free now; none if it waits for those before it."""
        return sorted(Spare(self.budget, self._taken).lacks(needs))

    def impossible(self) -> list[TableEntry]:
        """Return the builds that wait and could never start, for the budget became smaller."""
        return [e for e in self._entries.values() if e.state is BuildState.queued and not self.budget.could_hold(e.needs)]

    def could_start(self) -> bool:
        """Tell whether a build waits although there is room for it."""
        spare = Spare(self.budget, self._taken)
        return next(self._resumable(spare), None) is not None or next(self._startable(spare), None) is not None

    def deadline(self) -> Optional[float]:
        """Return when `actions` has something to do even if nothing happens, None for never."""
        times = [self._entries[build].unwanted_since for build in self._unwanted]
        found = [since + self.grace_seconds for since in times if since is not None]
        return min(found, default=None)

    # --- what happens -------------------------------------------------------------------------------

    def resize(self, budget: Budget) -> None:
        """Change what there is. What runs goes on, even if it takes more than there is now; see `impossible`."""
        self.budget, self._overdrawn = budget, dict(self._taken)

    def want(
        self,
        now: float,
        operation: str,
        key: BuildKey,
        *,
        forced: bool = False,
        needs: Needs = Needs(),  # noqa: B008  # it is frozen
        samples: int = 1,
        path_seconds: float = 0.0,
        priority: int = 0,
    ) -> JoinedBuild:
        """Enter that `operation` wants `key` built, whose samples take `needs` each, as many of them at once as may be.

        One that takes no CPU slot waits for `start`. What no budget can hold must not be asked for.
        """
        for build in self._by_key.get(key, ()):
            entry = self._entries[build]
            if entry.state is BuildState.queued or (entry.state in _GOES_WELL and not forced):
                entry.operations[operation] = None
                entry.unwanted_since = None
                entry.forced = entry.forced or forced
                self._unwanted.pop(build, None)
                self._promote(entry, _rank(priority, path_seconds, entry))
                return JoinedBuild(build, new=False)
        if needs.cpus and not self.budget.could_hold(needs):
            raise AssertionError(f"BUG: {key} takes {needs}, of {self.budget}")
        number = next(self._numbers)
        entry = TableEntry(self._new_name(number), key, forced, needs, samples, (0, 0.0, number), now, number, {operation: None})
        entry.rank = _rank(priority, path_seconds, entry)
        self._entries[entry.id] = entry
        self._by_key.setdefault(key, []).append(entry.id)
        self._alike[key.dref, key.context_key] += 1
        self._enqueue(entry)
        return JoinedBuild(entry.id, new=True)

    def _promote(self, entry: TableEntry, rank: _Rank) -> None:
        """Let a build go as early as any of those wishes that want it."""
        if entry.state is BuildState.queued and rank < entry.rank:
            entry.rank = rank
            self._enqueue(entry)

    def _enqueue(self, entry: TableEntry) -> None:
        if entry.needs.cpus:
            heapq.heappush(self._queues.setdefault(entry.needs, []), (entry.rank, entry.id))

    def _take(self, amounts: Mapping[str, int], devices: Mapping[str, tuple[int, ...]]) -> None:
        for kind, amount in amounts.items():
            self._taken[kind] = self._taken.get(kind, 0) + amount
        for tag, numbers in devices.items():
            self._devices.setdefault(tag, set()).update(numbers)

    def _give_back(self, amounts: Mapping[str, int], devices: Mapping[str, tuple[int, ...]]) -> None:
        for kind, amount in amounts.items():
            self._taken[kind] -= amount
        for tag, numbers in devices.items():
            self._devices[tag].difference_update(numbers)

    def start(self, now: float, build: str) -> None:
        """Enter that a build of no slots, which is queued, has begun."""
        entry = self._entries[build]
        if entry.cpus or entry.state is not BuildState.queued:
            raise AssertionError(f"BUG: {build} takes {entry.cpus} slots and is {entry.state.value}; only the queue starts it")
        entry.state, entry.started_at = BuildState.running, now

    def samples_left(self, build: str, left: int) -> None:
        """Enter that a build that runs has only so many samples left: the slots of the others are free."""
        entry = self._entries.get(build)
        if entry is not None and entry.state in _TAKES and 0 < left < entry.samples:
            left_lent = min(entry.lent, left)
            freed = (entry.samples - entry.lent) - (left - left_lent)
            entry.samples, entry.lent = left, left_lent
            self._give_back({kind: amount * freed for kind, amount in entry.needs.amounts().items()}, {})

    def lend(self, build: str) -> None:
        """Enter that a build that runs waits for something that its realizer wants: others may have what it takes meanwhile."""
        entry = self._entries[build]
        if entry.state is BuildState.queued:
            raise AssertionError(f"BUG: {build} waits and was not started")
        if entry.state is BuildState.placing:
            return  # its realizer, which wanted it, is dead
        entry.waits += 1
        lent = min(max(entry.lent, entry.waits), entry.samples)
        if lent > entry.lent:
            entry.lent = lent  # one more
            self._give_back(entry.needs.amounts(), entry.devices)

    def reclaim(self, build: str) -> None:
        """Enter that one of the things that a build waits for is there: it goes on with `Resume`."""
        entry = self._entries[build]
        if entry.state is BuildState.placing:
            return
        if not entry.waits:
            raise AssertionError(f"BUG: {build} waits for nothing")
        entry.waits -= 1
        self._returning.append(build)

    def _resumable(self, spare: Spare) -> Iterator[TableEntry]:
        """Yield builds that can go on, in the order of asking; what the others wait for is kept for them."""
        for build in list(self._returning):
            entry = self._entries[build]
            if entry.lent <= entry.waits:
                yield entry  # it goes on without
                continue
            if spare.is_closed_to(entry.needs):
                continue
            lacking = spare.lacks(entry.needs)
            lacking |= {TAG_PREFIX + tag for tag, numbers in entry.devices.items() if not self._devices[tag].isdisjoint(numbers)}
            if not lacking or not self.busy:  # there is less than when it began
                yield entry
            else:
                spare.keep(entry.needs, lacking)

    def _startable(self, spare: Spare) -> Iterator[TableEntry]:
        """Yield builds that can start, first those that go first; what the others wait for is kept for them."""
        heads = [head for needs in list(self._queues) if (head := self._head(needs)) is not None]
        heapq.heapify(heads)
        while heads and CPUS not in spare.closed:  # which all of them take
            entry = self._entries[heapq.heappop(heads)[1]]
            if spare.is_closed_to(entry.needs):
                continue
            lacking = spare.lacks(entry.needs)
            if lacking:
                spare.keep(entry.needs, lacking)
                continue
            yield entry
            head = self._head(entry.needs)
            if head is not None:
                heapq.heappush(heads, head)

    def _head(self, needs: Needs) -> Optional[tuple[_Rank, str]]:
        """Return the first of a queue. What was dropped while it waited, or has another rank now, goes."""
        queue = self._queues[needs]
        while queue:
            rank, build = queue[0]
            entry = self._entries.get(build)
            if entry is not None and entry.state is BuildState.queued and entry.rank == rank:
                return queue[0]
            heapq.heappop(queue)
        del self._queues[needs]
        return None

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

    def placing(self, build: str) -> None:
        """Enter that every process of a build is dead and its outputs are being placed: what it took is free.

        Unless there is another build of the same derivation and context, which need not start once these outputs are seen.
        """
        entry = self._entries[build]
        if entry.state is BuildState.queued:
            raise AssertionError(f"BUG: {build} is being placed and was not started")
        if self._alike[entry.key.dref, entry.key.context_key] > 1:
            return
        self._give_up(entry)
        entry.state, entry.lent, entry.waits, entry.devices = BuildState.placing, 0, 0, {}
        self._unwanted.pop(build, None)  # it is late to cancel it

    def _give_up(self, entry: TableEntry) -> None:
        """Give back what a build that was started still has."""
        self._give_back(entry.held, {} if entry.lent else entry.devices)
        self._returning = [build for build in self._returning if build != entry.id]

    def drop(self, build: str) -> None:
        """Take a build that is queued, or was just released, out: others delivered what it was for."""
        self.ended(build)

    def ended(self, build: str) -> None:
        """Enter that a build is over, and that every process of it is dead, whatever became of it."""
        entry = self._entries.get(build)
        if entry is not None:
            self._remove(entry)

    def _remove(self, entry: TableEntry) -> None:
        if entry.state is not BuildState.queued:
            self._give_up(entry)
        del self._entries[entry.id]
        self._unwanted.pop(entry.id, None)
        alike = entry.key.dref, entry.key.context_key
        self._alike[alike] -= 1
        if not self._alike[alike]:
            del self._alike[alike]
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
        spare = Spare(self.budget, self._taken)
        for entry in self._resumable(spare):
            self._returning.remove(entry.id)
            if entry.lent > entry.waits:
                entry.lent -= 1
                self._take(entry.needs.amounts(), entry.devices)
                for kind, taken in self._taken.items():
                    self._overdrawn[kind] = max(self._overdrawn.get(kind, 0), taken)
            actions.append(Resume(entry.id))
        return [*actions, *self._releases(now, spare)]

    def _releases(self, now: float, spare: Spare) -> list[TableAction]:
        released: list[tuple[TableEntry, int]] = []
        for entry in self._startable(spare):
            released.append((entry, entry.samples))
            entry.state, entry.started_at, entry.samples = BuildState.running, now, 1
            entry.devices = {tag: self._free_devices(tag, number) for tag, number in entry.needs.tags}
            self._take(entry.held, entry.devices)
        for entry, samples in released:
            self._share_out(entry, samples, spare)
        return [Release(entry.id, entry.samples) for entry, _ in released]

    def _free_devices(self, tag: str, number: int) -> tuple[int, ...]:
        taken = self._devices.get(tag, set())
        return tuple([device for device in range(self.budget.tags[tag]) if device not in taken][:number])

    def _share_out(self, entry: TableEntry, samples: int, spare: Spare) -> None:
        """Give a build that starts what more of its samples take, unless somebody waits for what is free."""
        more = 0 if entry.needs.tags else spare.times(entry.needs, samples - 1)
        entry.samples = 1 + more
        self._take({kind: amount * more for kind, amount in entry.needs.amounts().items()}, {})

    def check_invariants(self) -> None:
        """Raise `AssertionError` if the table contradicts itself. For tests, after every step."""
        entries = self._entries.values()
        running = [entry for entry in entries if entry.state is not BuildState.queued]
        waiting = {(rank, build) for queue in self._queues.values() for rank, build in queue}
        taken = {kind: sum(entry.held.get(kind, 0) for entry in running) for kind in self._taken}
        devices = [(tag, n) for e in running if not e.lent for tag, numbers in e.devices.items() for n in numbers]
        problems = [
            (self._taken != taken, "what is taken"),
            (sorted(devices) != sorted((tag, n) for tag, numbers in self._devices.items() for n in numbers), "devices that are taken"),
            (any(not 0 <= e.lent <= e.samples or e.waits < 0 for e in entries), "slots lent"),
            (any(e.lent < min(e.waits, e.samples) for e in entries), "waits and has lent nothing"),
            (any(b not in self._entries for b in self._returning), "ended, but wants slots back"),
            (any(n > max(self.budget.of(k), self._overdrawn.get(k, 0)) for k, n in taken.items()), "more taken than there is"),
            (self._alike != Counter((e.key.dref, e.key.context_key) for e in entries), "builds that are alike"),
            (sorted(b for bs in self._by_key.values() for b in bs) != sorted(self._entries), "builds by key"),
            (
                any(e.state is BuildState.queued and e.cpus and (e.rank, e.id) not in waiting for e in entries),
                "queued but not in the queue",
            ),
            (any(e.state is BuildState.queued and not e.operations for e in entries), "queued for nobody"),
            (any(e.state is BuildState.running and not e.operations and e.id not in self._unwanted for e in entries), "runs for nobody"),
            (any(self._entries[b].operations for b in self._unwanted), "wanted, but marked unwanted"),
            (any(e.started_at is None for e in running), "running without a start"),
            (any(e.samples < 1 for e in running), "runs for no sample"),
            (any(e.samples > 1 and e.devices for e in running), "devices of several samples"),
            (
                any(len(e.devices[tag]) != n for e in running for tag, n in e.needs.tags if e.state in _TAKES and e.cpus),
                "devices that are not what was asked for",
            ),
        ]
        for wrong, what in problems:
            if wrong:
                raise AssertionError(f"BUG: {what}: {list(entries)}")


def _rank(priority: int, path_seconds: float, entry: TableEntry) -> _Rank:
    # A difference of waiting times never changes, so nothing need be sorted again as time goes by.
    return (-priority, entry.queued_at - path_seconds, entry.order)
