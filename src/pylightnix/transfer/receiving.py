"""Taking a stream of records into a store. Must trust none of it: see `arrival`."""

from __future__ import annotations

import json
from dataclasses import dataclass

from pylightnix.config import canonical_bytes
from pylightnix.context import parse_context, realization_hash
from pylightnix.errors import InvalidArchive, Misuse
from pylightnix.nar_reader import MalformedNar, unpack_folder
from pylightnix.refs import mkrref, unrref
from pylightnix.store.layout import METADATA_NAMES, StoreLayout
from pylightnix.transfer.arrival import Arrivals, Arriving, Refused, arrivals
from pylightnix.transfer.records import ByteSource, DerivationRecord, RealizationRecord, Record, RecordReader
from pylightnix.types import DRef, RRef

__all__ = ["Received", "arriving_of", "receive"]


@dataclass(frozen=True, slots=True)
class Received:
    """What a stream brought."""

    roots: tuple[RRef, ...]
    """What was asked for when it was made."""
    derivations: int
    """How many there are in it."""
    placed: tuple[RRef, ...]
    """Realizations that the store did not have."""
    present: int
    """How many it had."""


def receive(source: ByteSource, layout: StoreLayout) -> Received:
    """Take a stream into a store. All that is returned of is durable.

    Args:
        source: the stream.
        layout: the store.

    Raises:
        InvalidArchive: the stream is damaged, not what it says it is, or brings more than it may. What came before, and was
            sound, is in the store; nothing else is.
        StoreError, InvalidStorage: the store cannot be used.
        NoDaemon, DaemonGone: the daemon that owns it ended in the middle.
    """
    reader = RecordReader(source)
    derivations = 0
    with arrivals(layout) as arrived:
        for record in reader.records():
            try:
                if isinstance(record, DerivationRecord):
                    derivations += 1
                    arrived.derivation(DRef(record.dref), record.config)
                elif isinstance(record, RealizationRecord):
                    _realization(arrived, record, reader)
            except InvalidArchive:
                raise
            except (MalformedNar, Refused, Misuse, ValueError, RecursionError) as error:
                raise InvalidArchive(source.where, f"{_named(record)} is not what it says: {error}") from error
    if isinstance(record, (DerivationRecord, RealizationRecord)):
        raise AssertionError("BUG: a stream that is whole ends with its end")
    return Received(tuple(map(RRef, record.roots)), derivations, tuple(arrived.placed), arrived.present)


def _named(record: Record) -> str:
    if isinstance(record, DerivationRecord):
        return record.dref
    return record.rref if isinstance(record, RealizationRecord) else "its end"


def arriving_of(record: RealizationRecord) -> Arriving:
    """Return what a record says of a realization.

    Raises:
        ValueError, Misuse: its context is none.
    """
    deps, dynamic = parse_context(json.loads(record.context))
    parts = {"deps": deps, "dynamic": dynamic}
    plain = {name: {dep: sorted(set(rrefs)) for dep, rrefs in part.items()} for name, part in parts.items()}
    if canonical_bytes(plain) != record.context:
        raise ValueError("its context is not in its canonical form")
    return Arriving(
        rref=RRef(record.rref),
        deps=deps,
        dynamic=dynamic,
        started=record.started,
        stopped=max(record.started, record.stopped),
        host=record.host,
        start_stamp=record.start_stamp,
        stop_stamp=record.stop_stamp,
    )


def _realization(arrived: Arrivals, record: RealizationRecord, reader: RecordReader) -> None:
    arriving = arriving_of(record)
    if arrived.has(arriving):
        _check_tree(arriving, reader.drop())
    else:
        arrived.realization(arriving, lambda fd, name: _unpack(arriving, reader, fd, name), record.nar_bytes)


def _unpack(arriving: Arriving, reader: RecordReader, fd: int, name: str) -> None:
    unpack_folder(reader, fd, name, refuse_top=METADATA_NAMES, count_entry=reader.count_entry)
    if not reader.left():  # else the reader of the stream tells
        _check_tree(arriving, reader.drop())


def _check_tree(arriving: Arriving, tree_hash: str) -> None:
    """Compare a tree that is not needed with its reference: damage is told even where it does no harm."""
    _, dhash, name = unrref(arriving.rref)
    found = mkrref(realization_hash(tree_hash, arriving.deps, arriving.dynamic), dhash, name)
    if found != arriving.rref:
        raise ValueError(f"its tree and its context have the reference {found}")
