"""Where realizations that were made elsewhere are put: a store of this process's own. A daemon's is in `pylightnix_client.arrival`.

Checks nothing but that the tree has the reference that it is said to have: the rest is `arrival`'s business.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Optional, Protocol

from pylightnix.attempt import take_outputs
from pylightnix.context import realization_hash
from pylightnix.errors import StoreFull
from pylightnix.refs import mkrref, rref2dref, undref
from pylightnix.store.access import translated_errors, user_name
from pylightnix.store.commit import Attempt, TakenOutput, place
from pylightnix.store.derivations import write_derivation
from pylightnix.store.faults import reach
from pylightnix.store.index import VALID
from pylightnix.store.layout import START_FILE, STOP_FILE, StoreLayout
from pylightnix.store.set_aside import discard
from pylightnix.store.store import Store
from pylightnix.types import DRef, RRef

__all__ = ["Arriving", "Destination", "Here", "NewDerivation", "Refused", "check_room", "unpack_output"]

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


class NewDerivation(NamedTuple):
    """A derivation that arrives."""

    dref: DRef
    canonical: bytes
    config: Any


class Destination(Protocol):
    """A store, open for what arrives. Every method translates errors of the system into ours."""

    def derivation(self, dref: DRef, canonical: bytes, config: Any) -> None:
        """Put a derivation into the store. It is there when something that is made of it arrives."""

    def has(self, rref: RRef) -> bool:
        """Tell whether a realization is there whole, durable or on its way."""

    def note_start(self, rref: RRef, started: float) -> bool:
        """Enter when a build of a realization that is there began, if none is known to have begun later.

        False if that can be done only by bringing it again.
        """

    def realization(self, arriving: Arriving, unpack: Callable[[int, str], None], derivations: Sequence[NewDerivation]) -> None:
        """Put a realization in place, or note that it was built again. See `Arrivals.realization`.

        `derivations` are those that it needs and that the store may not have, its own last. They are written when the
        tree is known to be right: what is refused leaves nothing.
        """

    def check_room(self, rref: RRef, size: int) -> None:
        """Raise `StoreFull` if there is no room for so many bytes: it is said before they are written."""

    def flush(self) -> None:
        """Make durable what was put in place.

        Raises:
            StoreError: that failed, and what was not durable is gone.
        """


class Here:
    """A store that this process has open."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._bytes = 0
        self._placed: list[RRef] = []

    def derivation(self, dref: DRef, canonical: bytes, config: Any) -> None:
        write_derivation(self._store.layout, dref, canonical, config, self._store.owner)

    def has(self, rref: RRef) -> bool:
        with translated_errors(self._store.layout, f"looking for {rref}"):
            known = rref in self._store.batch.pending or self._store.index.state_of(rref) == VALID
            return known and os.path.isdir(self._store.layout.realization(rref))

    def note_start(self, rref: RRef, started: float) -> bool:
        index = self._store.index
        with translated_errors(self._store.layout, f"noting when {rref} was built"):
            if started > index.starts([rref])[rref]:
                with index.transaction(durable=True):
                    index.note_start(rref, started)
        return True

    def realization(self, arriving: Arriving, unpack: Callable[[int, str], None], derivations: Sequence[NewDerivation]) -> None:
        layout = self._store.layout
        dref = rref2dref(arriving.rref)
        with translated_errors(layout, f"unpacking {arriving.rref}"):
            folder = self._store.owner.make_folder()
            try:
                reach("folder_made")
                unpack_output(folder, "out", arriving, unpack)
                (output,) = take_outputs(layout, dref, folder, [f"{folder}/out"], derivations[-1].config if derivations else None)
                _check_reference(arriving, output)
                for new in derivations:
                    self.derivation(*new)
                self._place(dref, arriving, output)
            finally:
                discard(layout, folder)
        self._bytes += output.nar_bytes
        if len(self._store.batch.pending) >= _FLUSH_COUNT or self._bytes >= _FLUSH_BYTES:
            self.flush()

    def check_room(self, rref: RRef, size: int) -> None:
        check_room(self._store.layout, rref, size)

    def flush(self) -> None:
        self._bytes = 0
        self._store.flush()
        if lost := self._store.lost_among(self._placed[-_FLUSH_COUNT:]):
            raise self._store.batch.lost or AssertionError(f"BUG: {min(lost)} is not valid after a flush")

    def _place(self, dref: DRef, arriving: Arriving, output: TakenOutput) -> None:
        attempt = Attempt(
            dref=dref,
            context={dep: sorted(rrefs) for dep, rrefs in arriving.deps.items()},
            outputs=(output,),
            started=arriving.started,
            stopped=arriving.stopped,
            builder=user_name(os.geteuid()),
            host=arriving.host,
            realizer_digest=None,
            dynamic={dep: sorted(rrefs) for dep, rrefs in arriving.dynamic.items()},
        )
        store = self._store
        with store.build_lock(dref, arriving.deps, lambda: _log.warning("waiting for another process that builds %s", dref)):
            place(store.layout, store.index, store.owner, store.batch, attempt)
        self._placed.append(arriving.rref)


def _check_reference(arriving: Arriving, output: TakenOutput) -> None:
    dhash, name = undref(rref2dref(arriving.rref))
    found = mkrref(realization_hash(output.tree_hash, arriving.deps, arriving.dynamic), dhash, name)
    if found != arriving.rref:
        raise Refused(f"the tree and the context of {arriving.rref} have the reference {found}")


def check_room(layout: StoreLayout, rref: RRef, size: int) -> None:
    """Raise `StoreFull` if there is no room for a tree of so many bytes."""
    with translated_errors(layout, f"looking for room for {rref}"):
        info = os.statvfs(layout.tmp)
    free = info.f_bavail * info.f_frsize
    if size > free:
        raise StoreFull(layout.tmp, f"unpacking {rref}", f"{size} bytes are needed and {free} are free")


def unpack_output(folder: str, name: str, arriving: Arriving, unpack: Callable[[int, str], None]) -> None:
    """Make the tree of what arrives, with its stamps, as the folder `name` in `folder`."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        unpack(fd, name)
    finally:
        os.close(fd)
    for stamp_name, stamp in ((START_FILE, arriving.start_stamp), (STOP_FILE, arriving.stop_stamp)):
        if stamp is not None:
            with open(f"{folder}/{name}/{stamp_name}", "xb") as file:
                file.write(stamp)
