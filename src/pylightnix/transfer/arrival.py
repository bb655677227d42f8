"""Putting realizations that were made elsewhere into a store: everything is checked again, then placed as a build's outputs are.

Whoever brings them says what they are; that counts for nothing until the same reference comes out of the tree as it
lies on this disk. Must not know where they come from.

What was built elsewhere is recorded as built on that host, and as this user's: who brings it vouches for it.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Optional

from pylightnix.attempt import take_outputs
from pylightnix.config import Config, assert_rref_deps, canonical_bytes, cfgdeps, cfgname, mkconfig
from pylightnix.context import realization_hash
from pylightnix.errors import Misuse
from pylightnix.refs import mkrref, rref2dref, undref
from pylightnix.remote import here_only
from pylightnix.store.access import translated_errors, user_name
from pylightnix.store.commit import Attempt, TakenOutput, place
from pylightnix.store.derivations import derivation_ref, write_derivation
from pylightnix.store.faults import reach
from pylightnix.store.index import VALID
from pylightnix.store.layout import START_FILE, STOP_FILE, StoreLayout
from pylightnix.store.removal import remove_tree
from pylightnix.store.store import Store, open_store
from pylightnix.types import DRef, RRef

__all__ = ["Arrivals", "Arriving", "Refused", "arrivals"]

_log = logging.getLogger("pylightnix")

_FLUSH_COUNT: Final = 64
_FLUSH_BYTES: Final = 1 << 28


class Refused(Exception):
    """Something that arrives is not what it is said to be. Nothing of it is in the store. Who knows where it came from says the rest."""


@dataclass(frozen=True, slots=True)
class Arriving:
    """What is said of a realization that arrives."""

    rref: RRef
    deps: Mapping[DRef, Sequence[RRef]]
    """Its direct dependencies."""
    started: float
    stopped: float
    host: str
    start_stamp: Optional[bytes]
    stop_stamp: Optional[bytes]
    dynamic: Mapping[DRef, Sequence[RRef]] = field(default_factory=dict)
    """Its dependencies that its realizer found while it ran."""


class Arrivals:
    """Everything that arrives in one store. Made by `arrivals` only.

    Attributes:
        placed: realizations that were new.
        present: how many were there already.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._deps: dict[DRef, set[DRef]] = {}
        self._bytes = 0
        self._now = time.time()  # no build started later, whatever is said: it would be the latest for ever
        self.placed: list[RRef] = []
        self.present = 0

    def derivation(self, dref: DRef, canonical: bytes) -> None:
        """Put a derivation, given by its canonical config, into the store. Those that it depends on came before.

        Raises:
            Refused: it is another derivation, or something that it depends on is missing.
            StoreError: the store does not take it.
        """
        checked = _config(dref, canonical)
        if canonical_bytes(checked.val) != canonical:
            raise Refused(f"the config of {dref} is not in its canonical form")
        found = derivation_ref(canonical, cfgname(checked))
        if found != dref:
            raise Refused(f"the config of {dref} has the reference {found}")
        deps = cfgdeps(checked)
        if missing := deps - self._deps.keys():
            raise Refused(f"{dref} depends on {min(missing)}, which did not come before it")
        write_derivation(self._store.layout, dref, canonical, checked.val, self._store.owner)
        self._deps[dref] = deps

    def has(self, arriving: Arriving) -> bool:
        """Tell whether the store has a realization already. If its build started later than any known, that is noted.

        Raises:
            Refused: it cannot be one of its derivation, which comes first.
        """
        with translated_errors(self._store.layout, f"looking for {arriving.rref}"):
            self._check(arriving)
            if not self._is_there(arriving.rref):
                return False
            started = min(arriving.started, self._now)
            if started > self._store.index.starts([arriving.rref])[arriving.rref]:
                with self._store.index.transaction(durable=True):
                    self._store.index.note_start(arriving.rref, started)
        self.present += 1
        return True

    def realization(self, arriving: Arriving, unpack: Callable[[int, str], None]) -> None:
        """Put a realization in place that the store does not have.

        Args:
            arriving: what is said of it.
            unpack: makes its tree as the folder of this name in the folder that is open at this descriptor.

        Raises:
            Refused: the tree is another one, or something that it was made from is missing.
            InvalidOutput: the tree holds what a store does not take.
            StoreError: the store does not take it.
                What `unpack` raises is raised, too; errors of the system are translated.
        """
        layout = self._store.layout
        with translated_errors(layout, f"unpacking {arriving.rref}"):
            dref = self._check(arriving)
            folder = self._store.owner.make_folder()
            try:
                reach("folder_made")
                _unpack(folder, arriving, unpack)
                (output,) = take_outputs(layout, dref, folder, [f"{folder}/out"])
                self._place(dref, arriving, output)
            finally:
                remove_tree(folder)
        self._bytes += output.nar_bytes
        if len(self._store.batch.pending) >= _FLUSH_COUNT or self._bytes >= _FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Make durable what was placed.

        Raises:
            StoreError: that failed, and what was not durable is gone.
        """
        self._bytes = 0
        self._store.flush()
        if lost := self._store.lost_among(self.placed[-_FLUSH_COUNT:]):
            raise self._store.batch.lost or AssertionError(f"BUG: {min(lost)} is not valid after a flush")

    def _check(self, arriving: Arriving) -> DRef:
        dref = rref2dref(arriving.rref)
        if dref not in self._deps:
            raise Refused(f"{arriving.rref} came before its derivation")
        if set(arriving.deps) != self._deps[dref]:
            raise Refused(f"{arriving.rref} was made from other derivations than its own names")
        for below in (below for part in (arriving.deps, arriving.dynamic) for matched in part.values() for below in matched):
            if not self._is_there(below):
                raise Refused(f"{arriving.rref} was made from {below}, which neither came before it nor is in the store")
        return dref

    def _is_there(self, rref: RRef) -> bool:
        known = rref in self._store.batch.pending or self._store.index.state_of(rref) == VALID
        return known and os.path.isdir(self._store.layout.realization(rref))

    def _place(self, dref: DRef, arriving: Arriving, output: TakenOutput) -> None:
        dhash, name = undref(dref)
        found = mkrref(realization_hash(output.tree_hash, arriving.deps, arriving.dynamic), dhash, name)
        if found != arriving.rref:
            raise Refused(f"the tree and the context of {arriving.rref} have the reference {found}")
        attempt = Attempt(
            dref=dref,
            context={dep: sorted(rrefs) for dep, rrefs in arriving.deps.items()},
            outputs=(output,),
            started=min(arriving.started, self._now),
            stopped=min(arriving.stopped, self._now),
            builder=user_name(os.geteuid()),
            host=arriving.host,
            realizer_digest=None,
            dynamic={dep: sorted(rrefs) for dep, rrefs in arriving.dynamic.items()},
        )
        store = self._store
        with store.build_lock(dref, arriving.deps, lambda: _log.warning("waiting for another process that builds %s", dref)):
            place(store.layout, store.index, store.owner, store.batch, attempt)
        self.placed.append(arriving.rref)


def _config(dref: DRef, canonical: bytes) -> Config:
    try:
        config = mkconfig(json.loads(canonical))
        assert_rref_deps(config)
    except (Misuse, ValueError, RecursionError) as error:
        raise Refused(f"the config of {dref} is none ({error})") from error
    return config


def _unpack(folder: str, arriving: Arriving, unpack: Callable[[int, str], None]) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        unpack(fd, "out")
    finally:
        os.close(fd)
    for name, stamp in ((START_FILE, arriving.start_stamp), (STOP_FILE, arriving.stop_stamp)):
        if stamp is not None:
            with open(f"{folder}/out/{name}", "xb") as file:
                file.write(stamp)


@contextmanager
def arrivals(layout: StoreLayout, doing: str) -> Iterator[Arrivals]:
    """Open a store for arrivals. What was placed is durable at the end of the block, also when it raises.

    Args:
        layout: the store.
        doing: what the caller does, for the error where a daemon owns the store.

    Raises:
        StoreOwned: a daemon owns the store.
        StoreError, InvalidStorage: the store cannot be used, or failed at the end.
    """
    with here_only(doing), open_store(layout) as store:
        found = Arrivals(store)
        try:
            yield found
        except BaseException:
            store.flush()  # what arrived before, and was what it was said to be, stays
            raise
        found.flush()
