"""What can still be read of an index that is damaged, or was kept: rows of realizations, and what digests cover.

Reads only, through a connection that does not write to it. Nothing that comes from here is trusted: it adds to
trees that have been hashed what only the index knew. Must not know where it is entered.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Final, Optional
from urllib.parse import quote

from pylightnix.refs import isrref
from pylightnix.types import RRef

__all__ = ["Salvaged", "SalvagedRow", "salvage"]

_COLUMNS: Final = ("rref", "started", "stopped", "builder", "host", "realizer_digest", "build")
_KINDS: Final[dict[str, tuple[type, ...]]] = {
    "rref": (str,),
    "started": (float, int),
    "stopped": (float, int),
    "builder": (str,),
    "host": (str,),
    "realizer_digest": (str, type(None)),
    "build": (str, type(None)),
}


@dataclass(frozen=True, slots=True)
class SalvagedRow:
    """What an index says of how a realization was made."""

    started: float
    stopped: float
    builder: str
    host: str
    realizer_digest: Optional[str]
    build: Optional[str]


@dataclass(slots=True)
class Salvaged:
    """What could be read."""

    rows: dict[RRef, SalvagedRow] = field(default_factory=dict)
    codes: dict[str, str] = field(default_factory=dict)
    """Digest of a realizer -> what it covers."""


def salvage(path: str) -> Salvaged:
    """Read what can be read of the index at `path`, which may be absent or any file. Raises nothing."""
    found = Salvaged()
    try:
        if not os.path.getsize(path):
            return found  # SQLite would remove the log beside it
        with closing(sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True)) as db:
            db.execute("PRAGMA writable_schema = ON")  # lets it open a file that lacks its last pages
            for row in _readable(db, f"SELECT {', '.join(_known_columns(db))} FROM realization WHERE state <> 2"):
                _take(found, dict(zip(_known_columns(db), row, strict=True)))
            for digest, manifest in _readable(db, "SELECT digest, manifest FROM code"):
                if isinstance(digest, str) and isinstance(manifest, str):
                    found.codes[digest] = manifest
    except (OSError, sqlite3.Error):
        pass
    return found


def _known_columns(db: sqlite3.Connection) -> list[str]:
    """Return which of the columns this index has: an older one lacks some."""
    there = {row[1] for row in db.execute("PRAGMA table_info(realization)")}
    return [name for name in _COLUMNS if name in there]


def _readable(db: sqlite3.Connection, query: str) -> Iterator[Any]:
    """Yield rows from both ends of a table up to where it is damaged; those of a sound one come twice."""
    for order in ("", " ORDER BY rowid DESC" if "realization" in query else " ORDER BY digest DESC"):
        try:
            yield from db.execute(query + order)
        except (sqlite3.Error, UnicodeDecodeError, OverflowError):
            continue
        else:
            return


def _take(found: Salvaged, row: dict[str, Any]) -> None:
    values: dict[str, Any] = {name: row.get(name) for name in _COLUMNS}
    if all(isinstance(values[name], kinds) for name, kinds in _KINDS.items()) and isrref(values["rref"]):
        rref = RRef(values.pop("rref"))
        values.update(started=float(values["started"]), stopped=float(values["stopped"]))
        found.rows[rref] = SalvagedRow(**values)
