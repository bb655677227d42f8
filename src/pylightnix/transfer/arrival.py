"""Putting realizations that were made elsewhere into a store: everything is checked again, then placed as a build's outputs are.

Whoever brings them says what they are; that counts for nothing until the same reference comes out of the tree as it
lies on this disk. Must not know where they come from, nor whether a daemon owns the store.

What was built elsewhere is recorded as built on that host, and as the store's owner's: who brings it vouches for it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from pylightnix.config import Config, assert_rref_deps, canonical_bytes, cfgdeps, cfgname, mkconfig
from pylightnix.errors import Misuse
from pylightnix.refs import rref2dref
from pylightnix.remote import open_for_arrivals
from pylightnix.store.derivations import derivation_ref
from pylightnix.store.layout import StoreLayout
from pylightnix.transfer.destination import Arriving, Destination, NewDerivation, Refused
from pylightnix.types import DRef, RRef

__all__ = ["Arrivals", "Arriving", "Refused", "arrivals"]


class Arrivals:
    """Everything that arrives in one store. Made by `arrivals` only.

    Attributes:
        placed: realizations that were new.
        present: how many were there already.
    """

    def __init__(self, destination: Destination) -> None:
        self._destination = destination
        self._deps: dict[DRef, set[DRef]] = {}
        self._new: dict[DRef, NewDerivation] = {}
        """Those that are not written yet: they are when something sound is made of them, or when all has arrived."""
        self._now = time.time()  # no build started later, whatever is said: it would be the latest for ever
        self.placed: list[RRef] = []
        self.present = 0

    def derivation(self, dref: DRef, canonical: bytes) -> None:
        """Take a derivation, given by its canonical config. Those that it depends on came before.

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
        self._new[dref] = NewDerivation(dref, canonical, checked.val)
        self._deps[dref] = deps

    def has(self, arriving: Arriving) -> bool:
        """Tell whether nothing of a realization is needed. If its build started later than any known, that is noted.

        Raises:
            Refused: it cannot be one of its derivation, which comes first.
        """
        self._check(arriving)
        rref = arriving.rref
        if not self._destination.has(rref) or not self._destination.note_start(rref, min(arriving.started, self._now)):
            return False
        self.present += 1
        return True

    def realization(self, arriving: Arriving, unpack: Callable[[int, str], None], nar_bytes: int = 0) -> None:
        """Put a realization in place that the store does not have, as `has` tells.

        Args:
            arriving: what is said of it.
            unpack: makes its tree as the folder of this name in the folder that is open at this descriptor.
            nar_bytes: how much room that takes at least.

        Raises:
            Refused: the tree is another one, or something that it was made from is missing.
            InvalidOutput: the tree holds what a store does not take.
            StoreError: the store does not take it.
                What `unpack` raises is raised, too; errors of the system are translated.
        """
        self._check(arriving)
        is_new = not self._destination.has(arriving.rref)
        started, stopped = (min(moment, self._now) for moment in (arriving.started, arriving.stopped))
        self._destination.check_room(arriving.rref, nar_bytes)
        new = self._needed(rref2dref(arriving.rref))
        self._destination.realization(replace(arriving, started=started, stopped=stopped), unpack, new)
        for derivation in new:
            del self._new[derivation.dref]
        if is_new:
            self.placed.append(arriving.rref)
        else:
            self.present += 1

    def finish(self) -> None:
        """Write the derivations of which nothing was made."""
        for new in self._new.values():
            self._destination.derivation(*new)
        self._new.clear()

    def _needed(self, dref: DRef) -> list[NewDerivation]:
        """Return what is to be written for a realization of `dref`: that, and what it depends on, before it."""
        found: dict[DRef, NewDerivation] = {}
        stack = [dref]
        while stack:
            each = stack.pop()
            if each in self._new and each not in found:
                found[each] = self._new[each]
                stack += self._deps[each]
        return list(found.values())[::-1]

    def _check(self, arriving: Arriving) -> None:
        dref = rref2dref(arriving.rref)
        if dref not in self._deps:
            raise Refused(f"{arriving.rref} came before its derivation")
        if set(arriving.deps) != self._deps[dref]:
            raise Refused(f"{arriving.rref} was made from other derivations than its own names")
        for below in (below for part in (arriving.deps, arriving.dynamic) for matched in part.values() for below in matched):
            if not self._destination.has(below):
                raise Refused(f"{arriving.rref} was made from {below}, which neither came before it nor is in the store")


def _config(dref: DRef, canonical: bytes) -> Config:
    try:
        config = mkconfig(json.loads(canonical))
        assert_rref_deps(config)
    except (Misuse, ValueError, RecursionError) as error:
        raise Refused(f"the config of {dref} is none ({error})") from error
    return config


@contextmanager
def arrivals(layout: StoreLayout) -> Iterator[Arrivals]:
    """Open a store for arrivals. What was placed is durable at the end of the block, also when it raises.

    Raises:
        StoreError, InvalidStorage: the store cannot be used, or failed at the end.
        NoDaemon, DaemonGone: the daemon that owns it ended in the middle.
    """
    with open_for_arrivals(layout) as destination:
        found = Arrivals(destination)
        try:
            yield found
        except BaseException:
            destination.flush()  # what arrived before, and was what it was said to be, stays
            raise
        found.finish()
        destination.flush()
