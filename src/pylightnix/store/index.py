"""The index: which realizations are valid, what refers to what, and who built it. SQLite, WAL.

Rows of realizations have a life cycle, so that a crash at any point leaves something collectable:

    pending ──(synced)──> valid ──(collected)──> deleted ──> no row
       └──────────(lost: owner died, sync failed)──^

`owner` names the process whose pending (or half-deleted) row it is. One `Index` is one connection and
belongs to one thread. Must not know files: it never looks at a tree.

SQLite keeps in the memory of a process which files it has open and locked. A forked child inherits
that and would believe to hold locks that only its parent holds; when the parent is gone, another
process finds nobody on the index, removes its write-ahead log, and what the child commits from then on
is lost. So connections are closed before every fork, and opened again when they are needed.

A commit that fails while it is flushed stays in the write-ahead log, whole: this process goes on without it, but the next
one would find it and take it for committed, a removal that was refused among it. So nothing is read, and no client told of
anything, until a later commit has been flushed over it.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Optional

from pylightnix.planner.messages import Candidate
from pylightnix.refs import rref2dref
from pylightnix.store.durability import sync_path
from pylightnix.types import DRef, RRef

__all__ = ["APPLICATION_ID", "FORMAT", "MIGRATIONS", "Index", "IndexRow", "NewRealization", "RealizationInfo", "looked_at"]

APPLICATION_ID: Final = 0x504C4E58  # "PLNX"
_BUSY_SECONDS: Final = 30.0

_in_doubt: Final[set[str]] = set()
"""Paths of indexes whose last commit by this process may or may not be found by the next one."""

_opening: Final = threading.RLock()
"""Held while a connection is opened. Taken after the lock of an `Index`, never before."""

PENDING: Final = 0
VALID: Final = 1
DELETED: Final = 2

MIGRATIONS: Final = (
    # 1: the first format. Each later entry brings the one before up to its own number.
    """
    CREATE TABLE realization (
        id INTEGER PRIMARY KEY,
        rref TEXT NOT NULL UNIQUE,
        dref TEXT NOT NULL,
        context_key TEXT NOT NULL,
        state INTEGER NOT NULL CHECK (state IN (0, 1, 2)),
        owner TEXT NOT NULL,
        tree_hash TEXT NOT NULL,
        nar_bytes INTEGER NOT NULL,
        started REAL NOT NULL,
        stopped REAL NOT NULL,
        builder TEXT NOT NULL,
        host TEXT NOT NULL,
        realizer_digest TEXT
    );
    CREATE INDEX realization_match ON realization (dref, context_key);
    CREATE INDEX realization_in_flight ON realization (owner) WHERE state <> 1;
    CREATE TABLE reference (
        referrer INTEGER NOT NULL REFERENCES realization (id) ON DELETE CASCADE,
        referred TEXT NOT NULL,
        dynamic INTEGER NOT NULL,
        PRIMARY KEY (referrer, referred)
    ) WITHOUT ROWID;
    CREATE INDEX reference_by ON reference (referred);
    """,
    # 2: what the digests of realizers cover.
    """
    CREATE TABLE code (
        digest TEXT PRIMARY KEY,
        manifest TEXT NOT NULL
    ) WITHOUT ROWID;
    """,
    # 3: which build made a realization last, for its log.
    """
    ALTER TABLE realization ADD COLUMN build TEXT;
    """,
)
FORMAT: Final = len(MIGRATIONS)


@dataclass(frozen=True, slots=True)
class NewRealization:
    """What is known of a realization when it is entered."""

    rref: RRef
    dref: DRef
    context_key: str
    tree_hash: str
    nar_bytes: int
    started: float
    """UTC seconds since the epoch."""
    stopped: float
    builder: str
    """The user who built it."""
    host: str
    realizer_digest: Optional[str]
    references: tuple[RRef, ...]
    dynamic_references: tuple[RRef, ...] = ()
    build: Optional[str] = None
    """The name of the daemon's build that made it; None if no daemon did."""


class IndexRow(NamedTuple):
    """What the index says a valid realization is, to be compared with its tree."""

    dref: DRef
    context_key: str
    tree_hash: str


@dataclass(frozen=True, slots=True)
class RealizationInfo:
    """A valid realization's row."""

    rref: RRef
    dref: DRef
    tree_hash: str
    """SHA-256 of the tree's NAR, 64 hex digits."""
    nar_bytes: int
    started: float
    """When its latest build started, UTC seconds since the epoch."""
    stopped: float
    builder: str
    host: str
    realizer_digest: Optional[str]
    build: Optional[str] = None
    """The name of the latest build by a daemon; None if there was none, or if it was not recorded."""


@contextmanager
def looked_at(path: str) -> Iterator[bool]:
    """Keep this process from opening an index while the block runs, and tell whether the block may open the file itself.

    It may not where a connection is open. Closing any descriptor of a file takes from a process all locks on it, SQLite's too:
    another process would find nobody on the index and remove its write-ahead log, and what is committed from then on is lost.
    """
    with _opening:
        inode = _inode(path)
        indexes = [index for ref in list(_indexes.values()) if (index := ref()) is not None]
        yield inode is None or not any(index.has_open(inode) for index in indexes)


def _inode(path: str) -> Optional[tuple[int, int]]:
    try:
        info = os.stat(path)
    except OSError:
        return None
    return info.st_dev, info.st_ino


def _kind(error: sqlite3.Error) -> int:
    """Return the primary result code of an error of SQLite; 0 if it has none."""
    return int(getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF


class Index:
    """One connection to the index of one store."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = threading.RLock()  # held while the connection is in use, for a fork in another thread to wait
        self._open_db: Optional[sqlite3.Connection] = None
        self._durable = True
        self._is_inside = False
        """Whether a transaction is under way."""
        self.inode: Optional[tuple[int, int]] = None
        """Device and number of the file that is open."""
        self.is_known = False
        """Whether it was found to be an index of the newest format."""
        _indexes[id(self)] = weakref.ref(self)
        weakref.finalize(self, _indexes.pop, id(self), None)
        with self._lock:
            self._db()

    def _db(self) -> sqlite3.Connection:
        if self._open_db is None:
            with _opening:
                db = self._open_db = sqlite3.connect(self.path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
                self.inode = _inode(self.path)
            db.execute("PRAGMA foreign_keys = ON")
            self._durable = True  # SQLite's own default, synchronous = FULL
        return self._open_db

    def _rows(self, query: str, args: Sequence[Any] = ()) -> list[Any]:
        with self._lock:
            return self._ready_db().execute(query, args).fetchall()

    def _row(self, query: str, args: Sequence[Any] = ()) -> Any:
        return next(iter(self._rows(query, args)), None)

    def has_open(self, inode: tuple[int, int]) -> bool:
        """Tell whether this is a connection to that file, and open."""
        return self._open_db is not None and self.inode == inode

    def close(self) -> None:
        """Close the connection; a transaction that is open is rolled back. The next use opens it again."""
        with self._lock:
            if self._open_db is not None:
                self._open_db.close()
                self._open_db = None

    def __del__(self) -> None:
        # Each thread has its own, which goes with it. In a forked child there is none left that is a parent's.
        db = getattr(self, "_open_db", None)
        if db is not None:
            db.close()

    def hold_for_fork(self) -> None:
        """Close the connection, once no other thread uses it, and keep it so until `release_after_fork`."""
        self._lock.acquire()
        if self._open_db is not None and not self._open_db.in_transaction:
            self.close()

    def release_after_fork(self, in_child: bool) -> None:
        """Allow it to be opened again, by this process."""
        if in_child and self._open_db is not None:
            _graveyard.append(self._open_db)
            self._open_db = None
        self._lock.release()

    # --- format -------------------------------------------------------------------------------------

    def format(self) -> int:
        """Return the number of the index's format, 0 for an empty file."""
        return int(self._row("PRAGMA user_version")[0])

    def is_ours(self) -> bool:
        """Tell whether this is an index of a store, or an empty database that can become one."""
        [application] = self._row("PRAGMA application_id")
        if application == APPLICATION_ID and self.format() > 0:
            return True
        return application == 0 and self.format() == 0 and self._row("SELECT 1 FROM sqlite_master") is None

    def migrate(self) -> None:
        """Bring the index to the newest format, durably. The caller is alone in the store."""
        with self._lock:
            db = self._db()
            db.execute("PRAGMA journal_mode = WAL")
            before = self.format()
            for number in range(self.format(), FORMAT):
                # executescript commits first; a transaction inside the script keeps each step whole.
                db.executescript(
                    f"BEGIN IMMEDIATE; {MIGRATIONS[number]} PRAGMA user_version = {number + 1};"
                    f" PRAGMA application_id = {APPLICATION_ID}; COMMIT;"
                )
            if before < FORMAT:
                # Out of the log and into the file: an index without content beside trees has been lost.
                self.checkpoint()

    def fault(self) -> Optional[str]:
        """Return in what the index is no sound database, None if it is one. Reads all of it."""
        found = [str(row[0]) for row in self._rows("PRAGMA quick_check(1)")]
        return None if found == ["ok"] else "; ".join(found)

    def snapshot(self, path: str) -> None:
        """Write a copy of the index, whole and durable, to `path`, in place of what is there. Others may write meanwhile."""
        draft = f"{path}.new"
        with suppress(FileNotFoundError):
            os.unlink(draft)
        try:
            with self._lock:
                self._db().execute("VACUUM INTO ?", (draft,))
            os.chmod(draft, 0o600)
            sync_path(draft)
            os.rename(draft, path)
            sync_path(os.path.dirname(path))
        except BaseException:
            with suppress(OSError):
                os.unlink(draft)
            raise

    def checkpoint(self) -> None:
        """Bring everything out of the log and into the file, durably."""
        with self._lock:
            self._db().execute("PRAGMA synchronous = FULL")
            self._db().execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._durable = True

    def rows(self, query: str) -> list[Any]:
        """Return what a query gives, for whoever compares or copies whole indexes."""
        return self._rows(query)

    # --- transactions -------------------------------------------------------------------------------

    @contextmanager
    def transaction(self, *, durable: bool) -> Iterator[None]:
        """Run the block as one write transaction; when `durable`, it has reached the disk on return."""
        with self._lock, self._transaction(self._ready_db(), durable):
            yield

    @contextmanager
    def _transaction(self, db: sqlite3.Connection, durable: bool) -> Iterator[None]:
        try:
            if durable is not self._durable:
                db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                self._durable = durable
            db.execute("BEGIN IMMEDIATE")
            self._is_inside = True
            yield
            self._commit(db)
        except BaseException as error:
            if db.in_transaction:
                with suppress(sqlite3.Error):  # why it failed is told, not that the disk is no better now
                    db.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error) and _kind(error) == sqlite3.SQLITE_READONLY:
                self.close()  # a log that could not be opened for writing once would stay so for ever
            raise
        finally:
            self._is_inside = False

    def _commit(self, db: sqlite3.Connection) -> None:
        try:
            db.execute("COMMIT")
        except sqlite3.Error as error:
            if _kind(error) == sqlite3.SQLITE_IOERR:
                _in_doubt.add(self.path)
            raise

    def _ready_db(self) -> sqlite3.Connection:
        """Return the connection, without any of what a transaction left that failed. Raises as that did if it cannot be done yet."""
        db = self._db()
        if not self._is_inside:
            if db.in_transaction:  # what could not be rolled back before
                db.execute("ROLLBACK")
            if self.path in _in_doubt:
                with self._transaction(db, durable=True):
                    [number] = db.execute("PRAGMA user_version").fetchone()
                    db.execute(f"PRAGMA user_version = {number}")  # writes a page, whatever is in it
                _in_doubt.discard(self.path)
        return db

    # --- life cycle (inside a transaction) ------------------------------------------------------------

    def state_of(self, rref: RRef) -> Optional[int]:
        """Return the state of a row, None if there is none."""
        row = self._row("SELECT state FROM realization WHERE rref = ?", (rref,))
        return None if row is None else int(row[0])

    def enter_pending(self, new: NewRealization, owner: str) -> None:
        """Enter a realization as pending, in place of a row that is not valid if there is one.

        The caller holds the build lock. A pending row that it finds nevertheless was left by a process
        that died, or by an attempt of its own that was interrupted, and nobody relies on it.
        """
        self._db().execute("DELETE FROM realization WHERE rref = ? AND state <> 1", (new.rref,))
        cursor = self._db().execute(
            "INSERT INTO realization (rref, dref, context_key, state, owner, tree_hash, nar_bytes, started, stopped,"
            " builder, host, realizer_digest, build) VALUES (?, ?, ?, 0, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                new.rref,
                new.dref,
                new.context_key,
                owner,
                new.tree_hash,
                new.nar_bytes,
                new.started,
                new.stopped,
                new.builder,
                new.host,
                new.realizer_digest,
                new.build,
            ),
        )
        row_id = cursor.lastrowid
        self._db().executemany(
            "INSERT OR IGNORE INTO reference (referrer, referred, dynamic) VALUES (?, ?, ?)",
            [(row_id, rref, 0) for rref in new.references] + [(row_id, rref, 1) for rref in new.dynamic_references],
        )

    def note_code(self, digest: str, manifest: str) -> None:
        """Record what a realizer's digest covers, unless that is known."""
        self._db().execute("INSERT OR IGNORE INTO code (digest, manifest) VALUES (?, ?)", (digest, manifest))

    def note_start(self, rref: RRef, started: float, build: Optional[str] = None) -> None:
        """Record that a realization was built again, with the same result, by a build that started then.

        `build` is its name, if a daemon ran it.
        """
        change = "UPDATE realization SET started = ?, build = coalesce(?, build) WHERE rref = ? AND started <= ?"
        self._db().execute(change, (started, build, rref, started))

    def make_valid(self, rrefs: Iterable[RRef]) -> int:
        """Make pending rows valid; return how many of `rrefs` are valid now."""
        listed = [(rref,) for rref in rrefs]
        self._db().executemany("UPDATE realization SET state = 1 WHERE rref = ? AND state = 0", listed)
        return sum(self.state_of(RRef(rref)) == VALID for (rref,) in listed)

    def mark_lost(self, owner: str) -> list[tuple[RRef, str]]:
        """Mark all pending rows of `owner` deleted; return its deleted ones as (rref, context key)."""
        self._db().execute("UPDATE realization SET state = 2 WHERE owner = ? AND state = 0", (owner,))
        rows = self._rows("SELECT rref, context_key FROM realization WHERE owner = ? AND state = 2", (owner,))
        return [(RRef(rref), key) for rref, key in rows]

    def demote(self, rref: RRef, owner: str) -> None:
        """Mark a row deleted whatever its state, as `owner`'s to finish."""
        self._db().execute("UPDATE realization SET state = 2, owner = ? WHERE rref = ?", (owner, rref))

    def delete(self, rrefs: Iterable[RRef], owner: str) -> list[tuple[RRef, str]]:
        """Mark rows deleted, as `owner`'s to finish; return those there are as (rref, context key)."""
        rows = []
        for rref in rrefs:
            row = self._row("SELECT context_key FROM realization WHERE rref = ?", (rref,))
            if row is not None:
                self.demote(rref, owner)
                rows.append((rref, str(row[0])))
        return rows

    def is_deleted(self, rref: RRef) -> bool:
        """Tell whether the row is marked deleted (and still there)."""
        return self.state_of(rref) == DELETED

    def forget_deleted(self, rref: RRef) -> None:
        """Drop the row of a realization whose deletion is finished."""
        self._db().execute("DELETE FROM realization WHERE rref = ? AND state = 2", (rref,))

    # --- queries ------------------------------------------------------------------------------------

    def candidates(self, dref: DRef, context_key: str, in_place: Container[RRef]) -> list[Candidate]:
        """Return the realizations that a matcher may see, sorted: valid ones, and pending ones that are `in_place`."""
        return list(self.candidates_with_dynamic(dref, context_key, in_place))

    def candidates_with_dynamic(self, dref: DRef, context_key: str, in_place: Container[RRef]) -> dict[Candidate, list[RRef]]:
        """Return what `candidates` does, each with its dynamic dependencies."""
        return self.candidates_of_many([(dref, context_key)], in_place)[0]

    def candidates_of_many(self, wanted: Sequence[tuple[DRef, str]], in_place: Container[RRef]) -> list[dict[Candidate, list[RRef]]]:
        """Return what `candidates_with_dynamic` does, of each (derivation, context key): some hundreds at most."""
        found: list[dict[Candidate, list[RRef]]] = [{} for _ in wanted]
        if not wanted:
            return found
        # One query: this is all that confirming what is realized asks of the index. A cross join is not reordered.
        rows = self._rows(
            f"WITH wanted (number, its_dref, its_key) AS (VALUES {','.join(['(?, ?, ?)'] * len(wanted))})"
            " SELECT number, rref, started, state, (SELECT group_concat(referred) FROM reference WHERE referrer = id AND dynamic = 1)"
            " FROM wanted CROSS JOIN realization ON dref = its_dref AND context_key = its_key WHERE state <> 2 ORDER BY number, rref",
            [value for number, (dref, key) in enumerate(wanted) for value in (number, dref, key)],
        )
        for number, rref, started, state, dynamic in rows:
            # What was pending when it was read may have become valid, and left `in_place`, while we look there.
            if state == VALID or rref in in_place or self.state_of(RRef(rref)) == VALID:
                found[number][Candidate(RRef(rref), started)] = [RRef(below) for below in dynamic.split(",")] if dynamic else []
        return found

    def pending_of_others(self, dref: DRef, context_key: str, owner: str) -> list[tuple[RRef, str]]:
        """Return the pending realizations of a (derivation, context) that others entered, with their owners."""
        rows = self._rows(
            "SELECT rref, owner FROM realization WHERE dref = ? AND context_key = ? AND state = 0 AND owner <> ?",
            (dref, context_key, owner),
        )
        return [(RRef(rref), other) for rref, other in rows]

    def pending_below(self, rrefs: Sequence[RRef]) -> list[RRef]:
        """Return `rrefs` and every pending realization that they depend on at any distance.

        Other pending realizations of the same derivation, context and owner are among them: outputs of one
        attempt become valid together.
        """
        found = dict.fromkeys(rrefs)
        stack = list(rrefs)
        while stack:
            rows = self._rows(
                "SELECT other.rref FROM realization AS above JOIN reference ON referrer = above.id"
                " JOIN realization AS below ON below.rref = referred"
                " JOIN realization AS other ON other.dref = below.dref AND other.context_key = below.context_key"
                " AND other.owner = below.owner WHERE above.rref = ? AND below.state = 0 AND other.state = 0",
                (stack.pop(),),
            )
            for (rref,) in rows:
                if rref not in found:
                    found[RRef(rref)] = None
                    stack.append(RRef(rref))
        return list(found)

    def owners_in_flight(self) -> list[str]:
        """Return the owners that have pending or half-deleted rows."""
        return [owner for (owner,) in self._rows("SELECT DISTINCT owner FROM realization WHERE state <> 1")]

    def valid_rrefs(self, dref: Optional[DRef] = None, context_key: Optional[str] = None) -> list[RRef]:
        """Return valid realizations, sorted: all, of one derivation, or of one derivation and context."""
        query, args = "SELECT rref FROM realization WHERE state = 1", []
        if dref is not None:
            query, args = f"{query} AND dref = ?", [str(dref)]
        if context_key is not None:
            query, args = f"{query} AND context_key = ?", [*args, context_key]
        return [RRef(rref) for (rref,) in self._rows(f"{query} ORDER BY rref", args)]

    def valid_rows(self) -> list[tuple[RRef, IndexRow]]:
        """Return all valid realizations with what their rows say, sorted."""
        rows = self._rows("SELECT rref, dref, context_key, tree_hash FROM realization WHERE state = 1 ORDER BY rref")
        return [(RRef(rref), IndexRow(DRef(dref), key, digest)) for rref, dref, key, digest in rows]

    def states(self, dref: DRef) -> dict[RRef, int]:
        """Return the realizations of a derivation that are valid or pending, each with its state, sorted."""
        rows = self._rows("SELECT rref, state FROM realization WHERE dref = ? AND state <> 2 ORDER BY rref", (dref,))
        return {RRef(rref): int(state) for rref, state in rows}

    def referrers(self, rref: RRef) -> list[RRef]:
        """Return the valid and pending realizations that directly depend on `rref`, sorted."""
        rows = self._rows(
            "SELECT rref FROM reference JOIN realization ON id = referrer WHERE referred = ? AND state <> 2 ORDER BY rref", (rref,)
        )
        return [RRef(referrer) for (referrer,) in rows]

    def context_of(self, rref: RRef) -> tuple[dict[DRef, list[RRef]], dict[DRef, list[RRef]]]:
        """Return what a realization was made from: (what its config names, what was found while running)."""
        parts: tuple[dict[DRef, list[RRef]], dict[DRef, list[RRef]]] = ({}, {})
        query = "SELECT referred, dynamic FROM reference JOIN realization ON id = referrer WHERE rref = ? ORDER BY referred"
        for referred, dynamic in self._rows(query, (rref,)):
            parts[bool(dynamic)].setdefault(rref2dref(referred), []).append(RRef(referred))
        return parts

    def starts(self, rrefs: Iterable[RRef]) -> dict[RRef, float]:
        """Return when the latest build of each of these realizations started."""
        found = {}
        for rref in rrefs:
            row = self._row("SELECT started FROM realization WHERE rref = ?", (rref,))
            if row is not None:
                found[rref] = float(row[0])
        return found

    def latest_durations(self, limit: int) -> list[tuple[DRef, float]]:
        """Return what was entered last, oldest first, and for how many seconds each was built."""
        rows = self._rows("SELECT dref, stopped - started FROM realization WHERE state = 1 ORDER BY id DESC LIMIT ?", (limit,))
        return [(DRef(dref), float(seconds)) for dref, seconds in reversed(rows)]

    def info(self, rref: RRef) -> Optional[RealizationInfo]:
        """Return the row of a valid realization, None if there is none."""
        row = self._row(
            "SELECT rref, dref, tree_hash, nar_bytes, started, stopped, builder, host, realizer_digest, build"
            " FROM realization WHERE rref = ? AND state = 1",
            (rref,),
        )
        return None if row is None else RealizationInfo(RRef(row[0]), DRef(row[1]), *row[2:])

    def code(self, digest: str) -> Optional[str]:
        """Return what a realizer's digest covers, as it was recorded; None if it was not."""
        row = self._row("SELECT manifest FROM code WHERE digest = ?", (digest,))
        return None if row is None else str(row[0])

    def all_references(self) -> list[tuple[RRef, RRef]]:
        """Return (realization, what it was made from) of all valid ones, sorted."""
        query = "SELECT rref, referred FROM reference JOIN realization ON id = referrer WHERE state = 1 ORDER BY rref, referred"
        return [(RRef(rref), RRef(referred)) for rref, referred in self._rows(query)]

    def is_empty(self) -> bool:
        """Tell whether there is no row of a realization."""
        return self._row("SELECT 1 FROM realization LIMIT 1") is None

    def referred(self) -> set[RRef]:
        """Return every realization that a valid one depends on."""
        rows = self._rows("SELECT DISTINCT referred FROM reference JOIN realization ON id = referrer WHERE state = 1")
        return {RRef(rref) for (rref,) in rows}


# --- forks ------------------------------------------------------------------------------------------

_indexes: dict[int, weakref.ref[Index]] = {}
"""Every index of this process, whichever thread's."""
_forking: Final = threading.RLock()
_held: list[Index] = []
_graveyard: list[sqlite3.Connection] = []
"""What a parent had in a transaction when it forked. SQLite forbids the child to use it, or to close it."""


def _before_fork() -> None:
    _forking.acquire()
    while missing := [index for ref in list(_indexes.values()) if (index := ref()) is not None and index not in _held]:
        for index in missing:
            index.hold_for_fork()
            _held.append(index)
    _opening.acquire()


def _after_fork(in_child: bool) -> None:
    _opening.release()
    while _held:
        _held.pop().release_after_fork(in_child)
    _forking.release()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=lambda: _after_fork(in_child=False),
    after_in_child=lambda: _after_fork(in_child=True),
)
