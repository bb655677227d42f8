"""Handing an output folder over to a daemon, which makes it a realization."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Final, cast

from pylightnix.config import canonical_bytes
from pylightnix.insertion import moved_output
from pylightnix.protocol import messages as m
from pylightnix.types import DRef, RRef
from pylightnix_client.client import Client
from pylightnix_client.errors import DaemonForeign
from pylightnix_client.exchange import Ask

__all__ = ["insert_through"]

_NAME: Final = "output"


def insert_through(socket: str, dref: DRef, context: Mapping[DRef, Sequence[RRef]], path: str, started: float) -> RRef:
    """Make the folder at `path` a realization through the daemon at `socket`; return its reference, durable.

    Where that fails the folder is back in its place.

    Raises:
        InvalidOutput: it cannot be stored.
        NoDaemon, DaemonGone: it is not there, or not any more.
        DaemonForeign: it is another user's.
    """
    with Client.connect(socket) as client:
        if not client.trusted:
            raise DaemonForeign(socket, f"handing over an output of {dref}")
        opened = cast(m.InsertOpened, client.call(Ask("insert.open", m.InsertOpen())))
        with moved_output(dref, path, os.path.join(opened.folder, _NAME), client.welcome.storage):
            packed = canonical_bytes({str(dep): sorted(map(str, rrefs)) for dep, rrefs in context.items()})
            # However long it takes to hash: the kernel tells if the daemon ends.
            inserted = client.call(Ask("insert", m.Insert(dref=dref, context=packed, output=_NAME, started=started)), None)
    return RRef(cast(m.Inserted, inserted).rref)
