"""Putting realizations that were made elsewhere into the store of a daemon, which computes their references anew.

Their trees are made in a folder that the daemon gives this connection, one after another, and handed over there.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Optional, cast

from pylightnix.config import canonical_bytes
from pylightnix.errors import InvalidConfig, StoreError
from pylightnix.protocol import messages as m
from pylightnix.protocol.limits import CONFIG_BYTES_MAX
from pylightnix.refs import rref2dref
from pylightnix.store.access import translated_errors
from pylightnix.store.fixed_outputs import check_output
from pylightnix.store.layout import StoreLayout
from pylightnix.store.removal import remove_tree
from pylightnix.transfer.destination import Arriving, NewDerivation, check_room, unpack_output
from pylightnix.types import DRef, RRef
from pylightnix_client.client import Client
from pylightnix_client.errors import DaemonForeign
from pylightnix_client.exchange import Ask

__all__ = ["Through"]

_WAITING_MAX: Final = 1000
_WAITING_BYTES_MAX: Final = 6 << 20


class Through:
    """The store of the daemon that a client is connected to; see `pylightnix.transfer.destination.Destination`."""

    def __init__(self, client: Client, layout: StoreLayout) -> None:
        self._client, self._layout = client, layout
        self._numbers = itertools.count(1)
        self._folder: Optional[str] = None
        self._waiting: list[bytes] = []
        """Configs that the daemon was not told yet: a round trip for each would take longer than they do."""
        self._waiting_bytes = 0
        self._known: set[RRef] = set()

    def derivation(self, dref: DRef, canonical: bytes, config: Any) -> None:
        if len(canonical) > CONFIG_BYTES_MAX:
            problem = f"is {len(canonical)} bytes long, and a daemon takes at most {CONFIG_BYTES_MAX}"
            raise InvalidConfig(str(dref), problem, "stop the daemon for as long as this takes: without it there is no such limit")
        self._waiting.append(canonical)
        self._waiting_bytes += len(canonical)
        if len(self._waiting) >= _WAITING_MAX or self._waiting_bytes >= _WAITING_BYTES_MAX:
            self.flush()

    def has(self, rref: RRef) -> bool:
        if rref not in self._known and self._client.realization_info(rref) is not None:
            self._known.add(rref)
        return rref in self._known and os.path.isdir(self._layout.realization(rref))

    def note_start(self, rref: RRef, started: float) -> bool:
        return started <= self._client.starts([rref]).get(rref, 0.0)

    def check_room(self, rref: RRef, size: int) -> None:
        check_room(self._layout, rref, size)

    def realization(self, arriving: Arriving, unpack: Callable[[int, str], None], derivations: Sequence[NewDerivation]) -> None:
        if not self._client.trusted:
            raise DaemonForeign(self._client.path, f"unpacking {arriving.rref}")
        folder, name = self._own_folder(), f"output-{next(self._numbers)}"
        try:
            with translated_errors(self._layout, f"unpacking {arriving.rref}"):
                unpack_output(folder, name, arriving, unpack)
                if derivations:  # before the daemon hears of them: what is refused leaves nothing
                    own = derivations[-1]
                    check_output(self._layout, own.dref, os.path.join(folder, name), own.config)
            for new in derivations:
                self.derivation(*new)
            self.flush()
            params = m.Insert(
                dref=rref2dref(arriving.rref),
                context=_packed(arriving.deps),
                dynamic=_packed(arriving.dynamic),
                output=name,
                started=arriving.started,
                stopped=arriving.stopped,
                host=arriving.host[:_LABEL_CHARACTERS],
                rref=str(arriving.rref),
            )
            # However long it takes to hash: the kernel tells if the daemon ends.
            self._known.add(RRef(cast(m.Inserted, self._client.call(Ask("insert", params), None)).rref))
        finally:
            with suppress(StoreError):  # the daemon tries again when this connection ends
                remove_tree(os.path.join(folder, name))  # what was refused; what was taken is there no more

    def flush(self) -> None:
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        self._client.register(waiting)

    def _own_folder(self) -> str:
        if self._folder is None:
            self._folder = cast(m.InsertOpened, self._client.call(Ask("insert.open", m.InsertOpen()))).folder
        return self._folder


_LABEL_CHARACTERS: Final = 256


def _packed(context: Mapping[DRef, Sequence[RRef]]) -> bytes:
    return canonical_bytes({str(dep): sorted(map(str, rrefs)) for dep, rrefs in context.items()})
