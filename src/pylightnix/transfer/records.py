r"""The export format: derivations and realizations as one stream of bytes.

    stream       = "pylightnix export 1\n", record…, end record; nothing after it
    record       = length of the body (4 bytes, big-endian), SHA-256 of the body (32 bytes), body; a realization's
                   is followed by the NAR serialization of its tree, `nar_bytes` long
    body         = a MessagePack map; `kind` says which
    derivation   : dref, config (canonical JSON, bytes)
    realization  : rref, context (canonical JSON {"deps", "dynamic"}, bytes), nar_bytes, started, stopped (UTC seconds),
                   host, start_stamp, stop_stamp (bytes of the files of that meaning, or nil)
    end          : roots (what was asked for), derivations, realizations (how many of each)

A derivation comes after those that its config names, a realization after its derivation and those that it
was made from. The digest of a body tells damage before anybody acts on it; that a record is what it says is for
whoever takes it to find out. Must not know files or stores.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Final, Optional, Protocol, TypeAlias, Union

import msgpack  # type: ignore[import-untyped]  # it ships no type information
import msgspec

from pylightnix.errors import InvalidArchive
from pylightnix.refs import isdref, isrref
from pylightnix.transfer.limits import Allowance
from pylightnix.types import DRef, RRef

__all__ = ["MAGIC", "STAMP_BYTES", "DerivationRecord", "EndRecord", "RealizationRecord", "Record", "RecordReader", "encode_record"]

MAGIC: Final = b"pylightnix export 1\n"
STAMP_BYTES: Final = 1 << 12
"""Longest content of a start or stop file."""
_BODY_BYTES: Final = 1 << 26
_DIGEST_BYTES: Final = 32
_BODY: Final = msgspec.msgpack.Decoder(Annotated[dict[str, msgspec.Raw], msgspec.Meta(max_length=64)])
_NEWER: Final = "it may be of a newer Pylightnix; otherwise make it again with pylightnix export, or fetch it again"


@dataclass(frozen=True, slots=True)
class DerivationRecord:
    """A derivation."""

    dref: DRef
    config: bytes
    """Its canonical config."""


@dataclass(frozen=True, slots=True)
class RealizationRecord:
    """A realization, but for its tree."""

    rref: RRef
    context: bytes
    """Canonical JSON ``{"deps": …, "dynamic": …}``."""
    nar_bytes: int
    started: float
    stopped: float
    host: str
    start_stamp: Optional[bytes]
    stop_stamp: Optional[bytes]


@dataclass(frozen=True, slots=True)
class EndRecord:
    """The end of a stream that is whole."""

    roots: tuple[RRef, ...]
    derivations: int
    realizations: int


Record: TypeAlias = Union[DerivationRecord, RealizationRecord, EndRecord]
_KINDS: Final[Mapping[str, type[Record]]] = {
    "derivation": DerivationRecord,
    "realization": RealizationRecord,
    "end": EndRecord,
}


def encode_record(record: Record) -> bytes:
    """Return a record as bytes, without the tree of a realization."""
    kind = next(kind for kind, known in _KINDS.items() if type(record) is known)
    body: bytes = msgpack.packb({"kind": kind, **asdict(record)})
    return len(body).to_bytes(4, "big") + hashlib.sha256(body).digest() + body


# --- reading ------------------------------------------------------------------------------------------


class ByteSource(Protocol):
    """A stream of bytes with a name to show in errors."""

    where: str
    allowance: Allowance

    def take(self, count: int) -> bytes:
        """Return exactly so many bytes; InvalidArchive if it ends before."""

    def at_end(self) -> bool:
        """Tell whether nothing is left."""


class RecordReader:
    """Reads a stream record by record. It is also the source of the tree that follows a realization's record."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._tree_bytes = 0
        self._digest = hashlib.sha256()

    def records(self) -> Iterator[Record]:
        """Yield every record; the last one is the end, and by then the stream is known to be whole.

        After a realization, its tree must be taken or dropped before the next is asked for.

        Raises:
            InvalidArchive: the stream is damaged, or none.
        """
        if self._source.take(len(MAGIC)) != MAGIC:
            raise InvalidArchive(self._source.where, "it does not begin as an archive of Pylightnix does", _NEWER)
        counts = {DerivationRecord: 0, RealizationRecord: 0}
        while True:
            record = self._record()
            if isinstance(record, EndRecord):
                break
            counts[type(record)] += 1
            self._source.allowance.count_entry()
            if isinstance(record, RealizationRecord):
                self._source.allowance.expect_tree(record.nar_bytes)
                self._tree_bytes = record.nar_bytes
                self._digest = hashlib.sha256()
            yield record
            if self._tree_bytes:
                raise InvalidArchive(
                    self._source.where, f"{self._tree_bytes} bytes follow the tree of a realization that do not belong to it"
                )
        if (record.derivations, record.realizations) != (counts[DerivationRecord], counts[RealizationRecord]):
            raise InvalidArchive(self._source.where, "it holds fewer or more records than its end says")
        if not self._source.at_end():
            raise InvalidArchive(self._source.where, "something follows its end")
        yield record

    def _record(self) -> Record:
        size = int.from_bytes(self._source.take(4), "big")
        if size > _BODY_BYTES:
            raise InvalidArchive(self._source.where, f"a record is declared to have {size} bytes, more than {_BODY_BYTES}")
        digest, body = self._source.take(_DIGEST_BYTES), self._source.take(size)
        if hashlib.sha256(body).digest() != digest:
            raise InvalidArchive(self._source.where, "a record is not what its digest says")
        try:
            return _parse(body)
        except (ValueError, TypeError, RecursionError, msgspec.MsgspecError) as error:
            raise InvalidArchive(self._source.where, f"a record cannot be read ({error})", _NEWER) from error

    # --- the tree of the last realization -----------------------------------------------------------------

    def count_entry(self) -> None:
        """Count an entry of the tree."""
        self._source.allowance.count_entry()

    def left(self) -> int:
        return self._tree_bytes

    def take(self, count: int) -> bytes:
        if count > self._tree_bytes:
            raise AssertionError("BUG: more of a tree was taken than there is")
        data = self._source.take(count)
        self._tree_bytes -= count
        self._digest.update(data)
        return data

    def drop(self) -> str:
        """Take what is left of the tree, and return the SHA-256 of all of it, 64 hexadecimal digits."""
        while self._tree_bytes:
            self.take(min(self._tree_bytes, 1 << 20))
        return self._digest.hexdigest()


def _parse(body: bytes) -> Record:
    # Field by field and by its type: a few bytes must not become many objects.
    parts = _BODY.decode(body)
    value = {name: msgspec.msgpack.decode(part, type=_TYPES.get(name, None)) for name, part in parts.items()}
    if value.get("kind") not in _KINDS:
        raise ValueError("it is of no known kind")
    kind = _KINDS[value.pop("kind")]
    fields = {name: _field(value, name, check) for name, check in _CHECKS[kind].items()}
    if value.keys() - fields.keys():
        raise ValueError(f"it has the unknown fields {sorted(value.keys() - fields.keys())}")
    if kind is EndRecord:
        fields["roots"] = tuple(fields["roots"])
    return kind(**fields)


def _field(value: dict[str, Any], name: str, check: Callable[[Any], bool]) -> Any:
    if not check(value.get(name)):
        raise ValueError(f"its field {name!r} is {value.get(name)!r:.100}")
    return value.get(name)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_time(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _is_stamp(value: Any) -> bool:
    return value is None or (isinstance(value, bytes) and len(value) <= STAMP_BYTES)


_TYPES: Final[Mapping[str, Any]] = {
    **dict.fromkeys(("kind", "dref", "rref", "host"), str),
    **dict.fromkeys(("config", "context"), bytes),
    **dict.fromkeys(("start_stamp", "stop_stamp"), Optional[bytes]),
    **dict.fromkeys(("nar_bytes", "derivations", "realizations"), int),
    **dict.fromkeys(("started", "stopped"), float),
    "roots": Annotated[list[str], msgspec.Meta(max_length=1 << 20)],
}
_CHECKS: Final[Mapping[type[Record], Mapping[str, Callable[[Any], bool]]]] = {
    DerivationRecord: {"dref": isdref, "config": lambda value: isinstance(value, bytes)},
    RealizationRecord: {
        "rref": isrref,
        "context": lambda value: isinstance(value, bytes),
        "nar_bytes": _is_count,
        "started": _is_time,
        "stopped": _is_time,
        "host": lambda value: isinstance(value, str) and len(value) <= 255,
        "start_stamp": _is_stamp,
        "stop_stamp": _is_stamp,
    },
    EndRecord: {
        "roots": lambda value: isinstance(value, list) and all(map(isrref, value)),
        "derivations": _is_count,
        "realizations": _is_count,
    },
}
