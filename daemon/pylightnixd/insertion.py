"""Outputs that clients hand over: folders which no realizer filled, made realizations one by one.

A client is given a folder of its own, moves an output there, and says what that is a realization of. Whatever
becomes of it, the folder stays until the connection ends: what was refused can be taken back.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from typing import Optional

from pylightnix.config import cfgdeps
from pylightnix.errors import MissingRealization
from pylightnix.protocol.errors import MessageInvalid
from pylightnix.refs import rref2dref
from pylightnix.store.access import translated_errors
from pylightnix.store.derivations import read_config
from pylightnix.types import DRef, RRef
from pylightnixd.boundary import SharedNursery
from pylightnixd.hold import HeldStore
from pylightnixd.session import Session

__all__ = ["HandedOver", "Insertions"]


@dataclass(frozen=True, slots=True)
class HandedOver:
    """An output, and what a client says of it."""

    dref: DRef
    context: Mapping[DRef, Sequence[RRef]]
    dynamic: Mapping[DRef, Sequence[RRef]]
    output: str
    """Its name in the connection's folder."""
    started: float
    stopped: Optional[float]
    """None for now."""
    host: Optional[str]
    """None for here."""
    expected: Optional[RRef]
    """What it must be."""


@dataclass(slots=True, eq=False)
class Insertions:
    """Those of all connections."""

    hold: HeldStore
    nursery: SharedNursery
    """Holds what removes folders, which outlives connections."""
    _folders: dict[Session, str] = field(default_factory=dict)
    _inserted: dict[Session, set[DRef]] = field(default_factory=dict)
    """Of what realizations were put in place on a connection: what comes next on it may be made from them."""
    _at_work: list[DRef] = field(default_factory=list)
    """What realizations are being put in place of, and what they depend on."""

    def open(self, session: Session) -> str:
        """Return a connection's folder, which is made at the first call."""
        if session not in self._folders:
            layout = self.hold.reader.layout
            with translated_errors(layout, "making a folder for an output that is handed over"):
                folder = self._folders[session] = self.hold.make_folder()

            self._inserted[session] = set()

            def leave() -> None:
                del self._folders[session], self._inserted[session]
                self.nursery.start_soon(f"removing {folder}", partial(self.hold.remove, folder))

            session.on_end.append(leave)
        return self._folders[session]

    def busy_with(self, drefs: Set[DRef]) -> list[DRef]:
        """Return with which of these derivations it is at work now, or may be in a moment."""
        return [dref for part in (self._at_work, *self._inserted.values()) for dref in part if dref in drefs]

    async def insert(self, session: Session, handed: HandedOver) -> RRef:
        """Make a folder in the connection's folder a realization, durable when this returns; kept for as long as the connection.

        Raises:
            MessageInvalid: the connection has no folder, or the context is not one of the derivation.
            MissingDerivation, MissingRealization: it, or what it depends on, is not in the store.
            InvalidOutput: it cannot be stored, or is not what is expected. It is there still.
            StoreError: the store failed.
        """
        folder = self._folders.get(session)
        if folder is None:
            raise MessageInvalid("this connection has no folder; ask for one with insert.open", "$.output")
        work = [handed.dref, *handed.context, *handed.dynamic]
        self._at_work += work
        try:
            await self.hold.removals.wait_past(set(work))
            deps = await self.hold.in_thread(lambda: cfgdeps(read_config(self.hold.reader.layout, handed.dref)))
            self._check(deps, handed)
            now = time.time()
            (rref,) = await self.hold.place(
                handed.dref,
                handed.context,
                folder,
                [handed.output],
                started=min(handed.started, now),
                stopped=now if handed.stopped is None else min(handed.stopped, now),
                realizer_digest=None,
                dynamic=handed.dynamic,
                host=handed.host,
                expected=handed.expected,
            )
            self._inserted[session].add(handed.dref)
            await self.hold.wait_nameable([rref])
            return rref
        finally:
            for each in work:
                self._at_work.remove(each)

    def _check(self, deps: Set[DRef], handed: HandedOver) -> None:
        """Raise if what has these direct dependencies cannot have this context."""
        context = handed.context
        if set(context) != deps or not all(rrefs for rrefs in context.values()):
            raise MessageInvalid(f"expected realizations of {sorted(deps)}, found {sorted(context)}", "$.context")
        for where, part in (("$.context", context), ("$.dynamic", handed.dynamic)):
            for dep, rrefs in part.items():
                for rref in rrefs:
                    if rref2dref(rref) != dep:
                        raise MessageInvalid(f"{rref} is no realization of {dep}", where)
        named = (rref for part in (context, handed.dynamic) for rrefs in part.values() for rref in rrefs)
        for rref in sorted(self.hold.reader.lost_among(named)):
            raise MissingRealization(rref, self.hold.reader.layout.storage)
