"""Writing a selection of a store as a stream, each tree checked against the index on its way. Reads trees only."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Optional

from pylightnix.config import canonical_bytes
from pylightnix.errors import InvalidTree, MissingRealization, StoreCorrupt
from pylightnix.nar import Sink, tree_hash
from pylightnix.query import direct_context
from pylightnix.store.derivations import read_canonical
from pylightnix.store.index_file import store_command
from pylightnix.store.layout import METADATA_NAMES, START_FILE, STOP_FILE, StoreLayout
from pylightnix.system_errors import refusal
from pylightnix.transfer.records import MAGIC, STAMP_BYTES, DerivationRecord, EndRecord, RealizationRecord, encode_record
from pylightnix.transfer.selection import Selection

if TYPE_CHECKING:
    from pylightnix.store.index import RealizationInfo

__all__ = ["record_of", "send"]


def send(selection: Selection, write: Callable[[bytes | memoryview], object]) -> None:
    """Write a selection to `write`.

    Raises:
        MissingRealization: one was removed meanwhile.
        StoreCorrupt: a tree, a config or a context is not what the store says.
        StoreIOError: a tree cannot be read.
    """
    write(MAGIC)
    for dref in selection.derivations:
        write(encode_record(DerivationRecord(dref, read_canonical(selection.layout, dref))))
    for info in selection.realizations:
        _send_realization(selection.layout, info, write)
    write(encode_record(EndRecord(selection.roots, len(selection.derivations), len(selection.realizations))))


def record_of(layout: StoreLayout, info: RealizationInfo) -> RealizationRecord:
    """Return the record of a realization.

    Raises:
        MissingRealization, StoreCorrupt: it was removed meanwhile, or is not whole.
    """
    folder = layout.realization(info.rref)
    deps, dynamic = direct_context(layout, info.rref)
    return RealizationRecord(
        rref=info.rref,
        context=canonical_bytes({"deps": deps, "dynamic": dynamic}),
        nar_bytes=info.nar_bytes,
        started=info.started,
        stopped=info.stopped,
        host=info.host,
        start_stamp=_stamp(folder, START_FILE),
        stop_stamp=_stamp(folder, STOP_FILE),
    )


def _send_realization(layout: StoreLayout, info: RealizationInfo, write: Sink) -> None:
    folder = layout.realization(info.rref)
    write(encode_record(record_of(layout, info)))
    writing = _Writing(write)
    try:
        digest = tree_hash(folder, exclude_top=METADATA_NAMES, sink=writing)
    except InvalidTree as error:
        raise _changed(layout, f"{error.where} {error.problem}", info) from error
    except FileNotFoundError as error:
        raise MissingRealization(info.rref, folder) from error
    except OSError as error:
        if writing.failed:
            raise  # it is of whoever takes the bytes
        raise refusal(error, "reading a realization", str(folder)) from error
    if (digest.sha256, digest.nar_bytes) != (info.tree_hash, info.nar_bytes):
        raise _changed(layout, f"its tree hash is {digest.sha256}, the index has {info.tree_hash}", info)


class _Writing:
    """Passes pieces on, and notes that it was there that something failed."""

    def __init__(self, write: Sink) -> None:
        self._write = write
        self.failed = False

    def __call__(self, piece: bytes | memoryview) -> None:
        try:
            self._write(piece)
        except OSError:
            self.failed = True
            raise


def _changed(layout: StoreLayout, problem: str, info: RealizationInfo) -> StoreCorrupt:
    return StoreCorrupt(layout.realization(info.rref), problem, f"mend it: {store_command(layout, 'verify', '--repair', info.rref)}")


def _stamp(folder: str, name: str) -> Optional[bytes]:
    try:
        with open(os.path.join(folder, name), "rb") as file:
            stamp = file.read(STAMP_BYTES + 1)
    except FileNotFoundError:
        return None
    return stamp if len(stamp) <= STAMP_BYTES else None  # whatever that is, it is no time
