"""Archives: realizations in one file, with everything that they were made from, and copies from store to store.

The format is that of `pylightnix.transfer.records`, whatever the file is called.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Mapping
from typing import Optional, Union

from pylightnix.context import context_deref
from pylightnix.errors import InvalidArchive, InvalidOutput, InvalidTree
from pylightnix.query import rrefctx
from pylightnix.refs import rref2dref
from pylightnix.storage import store_layout
from pylightnix.store.derivations import read_canonical
from pylightnix.store.index_file import store_command
from pylightnix.store.layout import METADATA_NAMES
from pylightnix.types import DRef, RRef, StorageSettings
from pylightnix.unpack_limits import UnpackLimits

__all__ = ["copyclosure", "deref_", "spack", "sunpack"]


def spack(roots: Iterable[RRef], out: str, S: Optional[StorageSettings] = None) -> None:
    """Write an archive of realizations and of all that they were made from.

    Each derivation involved goes in with every realization that it has. The file appears at `out` when it is
    whole and durable, and replaces what was there. If its name ends in ``.gz`` or ``.xz``, it is compressed.

    Raises:
        MissingRealization: the store does not have one of them.
        StoreCorrupt: a tree is not what the store says it is.
        ArchiveIOError: the file cannot be written.
    """
    from pylightnix.transfer.departure import send
    from pylightnix.transfer.selection import select
    from pylightnix.transfer.streams import written_archive

    selection = select(roots, S, siblings=True)
    with written_archive(os.fspath(out)) as write:
        send(selection, write)


def sunpack(archive: str, S: Optional[StorageSettings] = None, *, limits: Union[UnpackLimits, Mapping[str, int], None] = None) -> None:
    """Bring everything in an archive into the store. What is there already stays as it is.

    Each tree and each reference is computed anew; the file is trusted in nothing.

    Args:
        archive: the file.
        S: the store.
        limits: how much it may bring, where the usual limits refuse an honest one: a dict of some of the fields of `UnpackLimits`,
            ``{"ratio": 1000}``. Usual is what those have, but for a ratio of 100.

    Raises:
        InvalidArchive: it is damaged, not what it says it is, or beyond its limits. What came before the damage, and was sound,
            is in the store; nothing else is.
        ArchiveIOError: it cannot be read.
        StoreError, InvalidStorage: the store cannot be used.
        NoDaemon, DaemonGone: the daemon that owns it ended in the middle.
    """
    from pylightnix.transfer.limits import import_limits
    from pylightnix.transfer.receiving import receive
    from pylightnix.transfer.streams import opened_archive

    with opened_archive(os.fspath(archive), import_limits(limits, "sunpack")) as source:
        receive(source, store_layout(S))


def copyclosure(rrefs_S: Iterable[RRef], S: Optional[StorageSettings], D: Optional[StorageSettings] = None) -> None:
    """Copy realizations, and all that they were made from, from the store `S` to the store `D` (by default the current one).

    Unlike `spack`, this leaves out other realizations of the derivations involved. Everything is checked on
    arrival as by `sunpack`.

    Raises:
        MissingRealization: `S` does not have one of them.
        InvalidArchive: a realization in `S` is not what that store says it is. What was copied before stays.
        StoreCorrupt: a config or a context in `S` cannot be read.
        StoreError, InvalidStorage: a store cannot be used.
        NoDaemon, DaemonGone: the daemon that owns `D` ended in the middle.
    """
    from pylightnix.transfer.arrival import Refused, arrivals
    from pylightnix.transfer.copying import copy_folder
    from pylightnix.transfer.departure import record_of
    from pylightnix.transfer.receiving import arriving_of
    from pylightnix.transfer.selection import select

    selection = select(rrefs_S, S, siblings=False)
    with arrivals(store_layout(D)) as arrived:
        for dref in selection.derivations:
            arrived.derivation(dref, read_canonical(selection.layout, dref))
        for info in selection.realizations:
            folder = selection.layout.realization(info.rref)
            try:
                arriving = arriving_of(record_of(selection.layout, info))
                if not arrived.has(arriving):
                    arrived.realization(arriving, functools.partial(copy_folder, folder, exclude_top=METADATA_NAMES))
            except (Refused, InvalidTree, InvalidOutput, ValueError) as error:
                raise InvalidArchive(
                    folder,
                    f"it is not what it is said to be: {error}",
                    f"mend it: {store_command(selection.layout, 'verify', '--repair', info.rref)}",
                ) from error


def deref_(ctxr: RRef, dref: DRef, S: Optional[StorageSettings] = None) -> list[RRef]:
    """Return the realizations that stood for `dref` when `ctxr` was made; `ctxr` itself for its own derivation.

    Raises:
        Misuse: there are none.
        MissingRealization: the store does not have `ctxr`, or something below it.
    """
    return [ctxr] if dref == rref2dref(ctxr) else context_deref(rrefctx(ctxr, S), dref)
