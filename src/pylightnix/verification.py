"""Verifying a store: is everything in it what its name says, what needs the things that are not, and what can be done.

Trees are hashed by this process, in threads, and read only: a daemon that owns the store is asked what should be there and
goes on with its work, and so does everybody else. What is put into the store or removed from it meanwhile is no damage.
Mending is asked of whoever may write the store: see `pylightnix.store.mending`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Optional

from pylightnix.context import context_key
from pylightnix.errors import PylightnixException
from pylightnix.refs import isrref, rref2dref
from pylightnix.remote import ask_store
from pylightnix.storage import store_layout
from pylightnix.store.derivations import read_config
from pylightnix.store.index import IndexRow
from pylightnix.store.index_file import corrupt_index
from pylightnix.store.inspection import Damage, Inspected, inspect
from pylightnix.store.layout import StoreLayout
from pylightnix.store.trees import in_parallel, stored
from pylightnix.types import DRef, RRef, StorageSettings

if TYPE_CHECKING:
    from pylightnix.store.store import Store
    from pylightnix_client.client import Client

__all__ = ["Finding", "Verified", "verify"]

_PROGRESS_SECONDS: Final = 7 * 86_400.0
"""For how long a run can be gone on with: what was hashed before says little of today."""
_TELL_EVERY: Final = 64
"""After so many realizations what was found is written down."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is damaged."""

    damage: Damage
    problem: str
    needed_by: tuple[RRef, ...] = ()
    """What was made from it, at any distance."""


@dataclass(slots=True)
class Verified:
    """What a run found."""

    layout: StoreLayout
    whole: int = 0
    """How many realizations are what their names say."""
    resumed: int = 0
    """How many of these were hashed by an earlier run that was interrupted."""
    damaged: dict[RRef, Finding] = field(default_factory=dict)
    configs: dict[DRef, str] = field(default_factory=dict)
    """Derivations whose config is missing or is not what their name says -> what is wrong."""
    incomplete: dict[RRef, list[RRef]] = field(default_factory=dict)
    """Realizations that are whole -> what they were made from and is not in the store (any more)."""
    rows: dict[RRef, str] = field(default_factory=dict)
    """Realizations that are whole -> in what the index says something else of them. `reindex` helps."""
    unlisted: list[RRef] = field(default_factory=list)
    """Whole trees that the index does not have."""
    strays: list[str] = field(default_factory=list)
    """What lies in the storage and is nothing of a store's, or a damaged tree that the index does not have."""

    @property
    def is_sound(self) -> bool:
        """Whether everything that should be there is there, and is what it should be."""
        return not (self.damaged or self.configs or self.incomplete or self.rows)


def verify(
    refs: Iterable[str],
    S: Optional[StorageSettings] = None,
    *,
    jobs: int,
    anew: bool = False,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> Verified:
    """Hash realizations and compare them with their names, their configs and the index.

    Args:
        refs: realizations, and derivations with all their realizations; with each, all that it was made from is verified, too.
            None at all stands for everything in the store.
        S: the store.
        jobs: how many trees to hash at a time.
        anew: do not go on where a run for the same `refs` was interrupted.
        told: called with how many realizations are done, and how many there are.

    Raises:
        StoreCorrupt: the index is lost.
        StoreError, InvalidStorage: the store cannot be read.
    """
    return _Run(list(refs), S, jobs, anew, told).run()


def _listed(S: Optional[StorageSettings]) -> tuple[StoreLayout, dict[RRef, Optional[IndexRow]]]:
    """Return where everything lies, which a daemon that keeps its state elsewhere knows alone, and which realizations there are.

    Of each, what the index says; None through a daemon, which trusts its own.
    """

    def question(store: Store) -> tuple[str, dict[RRef, Optional[IndexRow]]]:
        fault = store.index.fault()
        if fault is not None:
            raise corrupt_index(store.layout, f"not a sound index ({fault})")
        return store.layout.state, dict(store.index.valid_rows())

    def request(client: Client) -> tuple[str, dict[RRef, Optional[IndexRow]]]:
        return client.welcome.store, dict.fromkeys(client.rrefs("allrrefs"))

    state, rows = ask_store(S, question, request)
    return replace(store_layout(S), state=state), rows


class _Run:
    def __init__(self, refs: list[str], S: Optional[StorageSettings], jobs: int, anew: bool, told: Callable[[int, int], None]) -> None:
        self.refs, self.S, self.jobs, self.told = refs, S, jobs, told
        self.layout, self.listed = _listed(S)
        self.progress = _Progress(self.layout, sorted(refs), anew)
        self.report = Verified(self.layout)
        self.targets: dict[RRef, set[RRef]] = {}
        """Realization that could be read -> what it was made from."""
        self.bad: dict[RRef, Inspected] = {}

    def run(self) -> Verified:
        there = stored(self.layout)
        wanted = self._wanted(there.rrefs)
        drefs = there.drefs if not self.refs else sorted({rref2dref(rref) for rref in wanted})
        with self.progress:
            self._hash(wanted)
        for dref in drefs:
            self._check_config(dref)
        if not self.refs:
            self.report.strays = there.strays
        self._judge()
        self.progress.finish()
        return self.report

    def _wanted(self, there: list[RRef]) -> list[RRef]:
        everything = {*there, *self.listed}
        if not self.refs:
            return sorted(everything)
        drefs = {ref for ref in self.refs if not isrref(ref)}
        stack = [RRef(ref) for ref in self.refs if isrref(ref)] + [rref for rref in everything if rref2dref(rref) in drefs]
        found = set(stack)
        while stack:
            for target in _targets(self.layout, stack.pop()) - found:
                found.add(target)
                stack.append(target)
        return sorted(found)

    def _hash(self, wanted: list[RRef]) -> None:
        done = self.progress.whole & set(wanted)
        for rref in done:
            if os.path.isdir(self.layout.realization(rref)):
                self.targets[rref] = _targets(self.layout, rref)
        done &= self.targets.keys()
        self.report.resumed = len(done)
        self.report.whole = len(done)
        self.told(len(done), len(wanted))
        rest = [rref for rref in wanted if rref not in done]
        for count, found in enumerate(in_parallel(lambda rref: inspect(self.layout, rref), rest, self.jobs), 1):
            self.targets[found.rref] = found.targets
            if found.damage is None:
                self.report.whole += 1
                self.progress.note(found.rref)
                self._compare(found)
            else:
                self.bad[found.rref] = found
            self.told(len(done) + count, len(wanted))

    def _compare(self, found: Inspected) -> None:
        """Compare the index with what was read."""
        row = self.listed.get(found.rref)
        if row is None or found.digest is None:
            return
        real = IndexRow(rref2dref(found.rref), context_key(found.deps), found.digest.sha256)
        if row != real:
            self.report.rows[found.rref] = f"its row in the index says {row}, and {real} is there"

    def _check_config(self, dref: DRef) -> None:
        try:
            read_config(self.layout, dref)
        except PylightnixException as error:
            if os.path.isdir(self.layout.derivation(dref)):  # else it was removed meanwhile
                self.report.configs[dref] = str(error)

    def _judge(self) -> None:
        """Compare what was found with what the index has now, after it all was read."""
        _, listed = _listed(self.S)
        needed_by = _needed_by(self.targets)
        for rref, found in self.bad.items():
            if rref not in listed:  # it was removed meanwhile, or never was acknowledged
                self.report.strays += [path for path in [self.layout.realization(rref)] if os.path.lexists(path)]
                continue
            if rref not in self.listed:
                found = inspect(self.layout, rref)  # it came since, and may have been read too early
            if found.damage is not None:
                self.report.damaged[rref] = Finding(found.damage, found.problem, tuple(sorted(needed_by(rref))))
        for rref, targets in sorted(self.targets.items()):
            if rref in self.report.damaged or rref not in listed:
                continue
            lost = sorted(target for target in targets if target not in listed and target not in self.report.damaged)
            if lost:
                self.report.incomplete[rref] = lost
        self.report.unlisted = sorted(
            rref for rref in self.targets if rref not in listed and rref not in self.listed and rref not in self.bad
        )


def _targets(layout: StoreLayout, rref: RRef) -> set[RRef]:
    from pylightnix.query import direct_context

    try:
        return {target for part in direct_context(layout, rref) for rrefs in part.values() for target in rrefs}
    except PylightnixException:
        return set()  # told when it is hashed


def _needed_by(targets: Mapping[RRef, set[RRef]]) -> Callable[[RRef], set[RRef]]:
    above: dict[RRef, set[RRef]] = {}
    for rref, below in targets.items():
        for target in below:
            above.setdefault(target, set()).add(rref)

    def all_above(rref: RRef) -> set[RRef]:
        found: set[RRef] = set()
        stack = [rref]
        while stack:
            for other in above.get(stack.pop(), set()) - found:
                found.add(other)
                stack.append(other)
        return found

    return all_above


class _Progress:
    """What a run has found whole, written down as it goes, for the next run to go on if this one is interrupted.

    Where it cannot be written (another user's store, a full disk) the run goes on without.
    """

    def __init__(self, layout: StoreLayout, refs: list[str], anew: bool) -> None:
        self._path = layout.progress
        self._refs = refs
        self._waiting: list[RRef] = []
        self._is_ours = _owns(layout.state)
        self.whole: set[RRef] = set() if anew else self._read()

    def _read(self) -> set[RRef]:
        try:
            with open(self._path, encoding="utf-8") as file:
                head = json.loads(file.readline())
                if head.get("verifying") != self._refs or not 0 <= time.time() - float(head["begun"]) < _PROGRESS_SECONDS:
                    return set()
                return {RRef(line.rstrip("\n")) for line in file if line.endswith("\n") and isrref(line.rstrip("\n"))}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return set()

    def __enter__(self) -> None:
        if not self.whole and self._is_ours:
            with suppress(OSError):
                _write(self._path, os.O_TRUNC, f"{json.dumps({'verifying': self._refs, 'begun': time.time()})}\n")

    def __exit__(self, *error: Any) -> None:
        self._save()

    def note(self, rref: RRef) -> None:
        self._waiting.append(rref)
        if len(self._waiting) >= _TELL_EVERY:
            self._save()

    def _save(self) -> None:
        if self._waiting and self._is_ours:
            with suppress(OSError):
                _write(self._path, os.O_APPEND, "".join(f"{rref}\n" for rref in self._waiting))
        self._waiting.clear()

    def finish(self) -> None:
        """Forget it all: the run has come to its end."""
        if self._is_ours:
            with suppress(FileNotFoundError, PermissionError):
                os.unlink(self._path)


def _owns(folder: str) -> bool:
    try:
        return os.stat(folder).st_uid == os.geteuid()  # not root in another's store: its owner could not go on
    except OSError:
        return False


def _write(path: str, flag: int, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | flag, 0o600)
    try:
        os.write(fd, text.encode("utf-8"))
    finally:
        os.close(fd)
