"""The index: life cycle of rows, what matchers may see, transactions, formats, and forks."""

from __future__ import annotations

import socket
import sqlite3
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.peers import Line, Peer

from pylightnix import DRef, RRef
from pylightnix.store.index import APPLICATION_ID, FORMAT, MIGRATIONS, VALID, Index, NewRealization

PENDING, DELETED = 0, 2
D1, D2 = (DRef(f"dref:{digit * 32}-{name}") for digit, name in (("1", "one"), ("2", "two")))


def rref(digit: str, dref: DRef = D1) -> RRef:
    return RRef(f"rref:{digit * 32}-{dref[5:]}")


A, B, C = (rref(digit) for digit in "abc")


def new(reference: RRef, *references: RRef, key: str = "key", started: float = 10.0) -> NewRealization:
    return NewRealization(
        rref=reference,
        dref=DRef(f"dref:{reference[38:]}"),
        context_key=key,
        tree_hash="f" * 64,
        nar_bytes=100,
        started=started,
        stopped=11.0,
        builder="user",
        host="host",
        realizer_digest=None,
        references=references,
    )


def enter(index: Index, *realizations: NewRealization, owner: str = "me", valid: bool = False) -> None:
    with index.transaction(durable=False):
        for realization in realizations:
            index.enter_pending(realization, owner)
        if valid:
            assert index.make_valid(r.rref for r in realizations) == len(realizations)


def states(index: Index, *rrefs: RRef) -> list[int | None]:
    return [index.state_of(reference) for reference in rrefs]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "index.sqlite")


@pytest.fixture
def index(path: str) -> Iterator[Index]:
    index = Index(path)
    index.migrate()
    yield index
    index.close()


# --- the life cycle -----------------------------------------------------------------------------------


def test_a_row_is_pending_then_valid_then_deleted_then_gone(index: Index) -> None:
    enter(index, new(A))
    assert states(index, A) == [PENDING]
    with index.transaction(durable=True):
        assert index.make_valid([A]) == 1
    assert states(index, A) == [VALID]
    with index.transaction(durable=False):
        index.demote(A, "me")
    assert index.is_deleted(A)
    with index.transaction(durable=False):
        index.forget_deleted(A)
    assert states(index, A) == [None]


def test_only_what_is_marked_deleted_can_be_forgotten(index: Index) -> None:
    enter(index, new(A))
    enter(index, new(B), valid=True)
    with index.transaction(durable=False):
        for reference in (A, B, C):
            index.forget_deleted(reference)
    assert states(index, A, B, C) == [PENDING, VALID, None]


def test_what_is_valid_already_counts_as_made_valid(index: Index) -> None:
    enter(index, new(A), valid=True)
    enter(index, new(B))
    with index.transaction(durable=True):
        assert index.make_valid([A, B]) == 2


def test_what_is_gone_or_deleted_cannot_be_made_valid(index: Index) -> None:
    enter(index, new(A))
    with index.transaction(durable=True):
        assert index.mark_lost("me") == [(A, "key")]
        assert index.make_valid([A, B]) == 0
    assert states(index, A, B) == [DELETED, None]


@pytest.mark.parametrize("state", [PENDING, DELETED])
def test_a_row_that_is_not_valid_makes_way_for_a_new_one(index: Index, state: int) -> None:
    enter(index, new(A, rref("d")), owner="dead")
    if state == DELETED:
        with index.transaction(durable=False):
            index.mark_lost("dead")
    enter(index, new(A, rref("e"), started=99.0), owner="me")
    assert states(index, A) == [PENDING]
    assert index.owners_in_flight() == ["me"]
    with index.transaction(durable=False):
        assert index.mark_lost("dead") == []
        index.make_valid([A])
    assert index.referred() == {rref("e")}
    assert index.starts([A]) == {A: 99.0}


def test_a_valid_row_makes_way_for_nothing(index: Index) -> None:
    enter(index, new(A), valid=True)
    with pytest.raises(sqlite3.IntegrityError):
        enter(index, new(A))
    assert states(index, A) == [VALID]


def test_losing_takes_only_the_owner_s_pending_rows(index: Index) -> None:
    enter(index, new(A), new(B), owner="dead")
    enter(index, new(C), owner="alive")
    enter(index, new(rref("d")), owner="dead", valid=True)
    with index.transaction(durable=False):
        assert sorted(index.mark_lost("dead")) == [(A, "key"), (B, "key")]
    assert states(index, A, B, C, rref("d")) == [DELETED, DELETED, PENDING, VALID]
    with index.transaction(durable=False):  # what an earlier recovery marked and did not finish is told again
        assert sorted(index.mark_lost("dead")) == [(A, "key"), (B, "key")]
    assert sorted(index.owners_in_flight()) == ["alive", "dead"]


def test_references_go_with_their_row(index: Index, path: str) -> None:
    enter(index, new(A, B, C), valid=True)
    assert index.referred() == {B, C}
    with index.transaction(durable=False):
        index.demote(A, "me")
        assert index.referred() == set()
        index.forget_deleted(A)
    db = sqlite3.connect(path)
    assert db.execute("SELECT count(*) FROM reference").fetchone() == (0,)
    db.close()


def test_a_later_start_is_noted_an_earlier_one_is_not(index: Index) -> None:
    enter(index, new(A, started=10.0), valid=True)
    for started, build in ((20.0, "b-later"), (15.0, "b-earlier"), (25.0, None)):
        with index.transaction(durable=False):
            index.note_start(A, started, build)
    assert index.starts([A, B]) == {A: 25.0}
    info = index.info(A)
    assert info is not None
    assert info.build == "b-later", "the latest that has a log"


# --- queries ------------------------------------------------------------------------------------------


def test_candidates_are_valid_or_in_place(index: Index) -> None:
    enter(index, new(A), valid=True)
    enter(index, new(B), new(C), owner="me")
    enter(index, new(rref("d")), owner="other")
    enter(index, new(rref("e"), key="another"), valid=True)
    enter(index, new(rref("f", D2)), valid=True)
    assert [c.rref for c in index.candidates(D1, "key", ())] == [A]
    assert [c.rref for c in index.candidates(D1, "key", {B})] == [A, B]
    many = index.candidates_of_many([(D2, "key"), (D2, "none"), (D1, "key"), (D1, "another"), (D2, "key")], {B})
    assert [[c.rref for c in found] for found in many] == [[rref("f", D2)], [], [A, B], [rref("e")], [rref("f", D2)]]
    assert index.candidates_of_many([], ()) == []
    with index.transaction(durable=False):
        index.demote(A, "me")
    assert index.candidates(D1, "key", {A}) == []


def test_pending_rows_of_others(index: Index) -> None:
    enter(index, new(A), owner="me")
    enter(index, new(B), owner="other")
    enter(index, new(C), owner="other", valid=True)
    enter(index, new(rref("d"), key="another"), owner="other")
    assert index.pending_of_others(D1, "key", "me") == [(B, "other")]


def test_pending_below_takes_whole_attempts(index: Index) -> None:
    below, beside, valid = rref("a", D2), rref("b", D2), rref("c", D2)
    enter(index, new(valid), valid=True, owner="other")
    enter(index, new(below), new(beside), owner="other")
    enter(index, new(rref("d", D2)), owner="third")
    enter(index, new(rref("e", D2), key="another"), owner="other")
    enter(index, new(B, below, valid), owner="other")
    enter(index, new(A, B), owner="other")
    assert set(index.pending_below([A])) == {A, B, below, beside}


def test_pending_below_survives_a_circle(index: Index) -> None:
    enter(index, new(A, B), new(B, A))
    assert set(index.pending_below([A])) == {A, B}


def test_valid_rrefs_by_derivation_and_context(index: Index) -> None:
    enter(index, new(B), new(A), new(rref("c", D2)), new(rref("d"), key="another"), valid=True)
    enter(index, new(rref("e")))
    assert index.valid_rrefs() == [A, B, rref("c", D2), rref("d")]
    assert index.valid_rrefs(D1) == [A, B, rref("d")]
    assert index.valid_rrefs(D1, "key") == [A, B]


def test_info_is_of_valid_rows_only(index: Index) -> None:
    enter(index, new(A))
    assert index.info(A) is None
    with index.transaction(durable=False):
        index.make_valid([A])
    found = index.info(A)
    assert found is not None
    assert (found.rref, found.dref, found.builder, found.realizer_digest) == (A, D1, "user", None)


# --- transactions -------------------------------------------------------------------------------------


def test_a_block_that_raises_leaves_nothing(index: Index) -> None:
    def interrupted() -> None:
        with index.transaction(durable=False):
            index.enter_pending(new(A), "me")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert states(index, A) == [None]
    enter(index, new(A))


@pytest.mark.parametrize(("durable", "synchronous"), [(True, 2), (False, 1)])
def test_only_durable_transactions_wait_for_the_disk(index: Index, durable: bool, synchronous: int) -> None:
    for first in (True, False):
        with index.transaction(durable=first):
            pass
        with index.transaction(durable=durable):
            assert index._row("PRAGMA synchronous")[0] == synchronous


def test_a_closed_index_opens_again(index: Index) -> None:
    enter(index, new(A), valid=True)
    index.close()
    index.close()
    assert states(index, A) == [VALID]


# --- formats ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", range(FORMAT + 1))
def test_every_format_is_brought_to_the_newest(path: str, start: int) -> None:
    db = sqlite3.connect(path)
    for script in MIGRATIONS[:start]:
        db.executescript(script)
    db.execute(f"PRAGMA user_version = {start}")
    db.execute(f"PRAGMA application_id = {APPLICATION_ID if start else 0}")
    db.close()
    index = Index(path)
    assert index.format() == start
    index.migrate()
    index.migrate()
    assert index.format() == FORMAT
    enter(index, new(A, B), valid=True)
    assert index._row("PRAGMA journal_mode")[0] == "wal"
    assert index._row("PRAGMA application_id")[0] == APPLICATION_ID
    index.close()


# --- forks --------------------------------------------------------------------------------------------


def test_what_an_orphan_commits_is_not_lost(path: str) -> None:
    """Did it keep SQLite's picture of its parent's locks, it would commit into a log that others have removed."""
    mine, theirs = socket.socketpair()

    def orphan(line: Line) -> None:
        index = Index(path)
        index.state_of(A)
        line.say("open")
        side = Line(theirs)
        side.hear()
        enter(index, new(A), valid=True)
        side.say("committed")
        side.hear()

    def parent(line: Line) -> None:
        index = Index(path)
        index.migrate()
        Peer(orphan).expect("open")

    def look(line: Line) -> None:
        index = Index(path)
        line.say(str(states(index, A)))
        index.close()

    with Peer(parent) as first:
        first.end()
    side = Line(mine)
    with Peer(look) as second:
        second.expect("[None]")
    side.say("commit")
    assert side.hear() == "committed"
    with Peer(look) as third:
        third.expect("[1]")
    side.say("end")
    side.close()
    theirs.close()


def test_a_fork_waits_for_a_transaction_of_another_thread(path: str) -> None:
    index = Index(path)
    index.migrate()
    inside, leave = threading.Event(), threading.Event()

    def work() -> None:
        with index.transaction(durable=False):
            index.enter_pending(new(A), "me")
            inside.set()
            leave.wait()
            index.make_valid([A])

    def body(line: Line) -> None:
        with index.transaction(durable=False):
            index.enter_pending(new(B), "child")
        line.say(str(states(index, A, B)))

    def fork(line: Line) -> None:
        thread = threading.Thread(target=work)
        thread.start()
        inside.wait()
        threading.Thread(target=leave.set).start()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads is what is tested
            peer = Peer(body)
        with peer:
            peer.expect("[1, 0]")
            peer.end()
        thread.join()
        enter(index, new(C), valid=True)
        line.say(str(states(index, A, B, C)))

    index.close()
    with Peer(fork) as peer:  # in a process of its own, for the threads' sake
        peer.expect("[1, 0, 1]")
        peer.end()


def test_a_row_that_becomes_valid_while_candidates_are_looked_up_is_offered(index: Index, path: str) -> None:
    """A flush of another thread makes a row valid and takes it out of the batch, between our two looks."""
    enter(index, new(A))
    other = Index(path)

    class Flushed:
        def __contains__(self, rref: object) -> bool:
            with other.transaction(durable=False):
                other.make_valid([A])
            return False

    assert [candidate.rref for candidate in index.candidates(D1, "key", Flushed())] == [A]
    other.close()


# --- snapshots ----------------------------------------------------------------------------------------


def test_a_snapshot_is_an_index_of_the_same_content(path: str) -> None:
    index = Index(path)
    index.migrate()
    assert index.is_empty()
    enter(index, new(A, B), valid=True)
    assert not index.is_empty()
    copy = f"{path}.snapshot"
    for left in (None, copy, f"{copy}.new"):  # a snapshot before, and what a crash left
        if left is not None:
            with open(left, "wb") as file:
                file.write(b"left")
        index.snapshot(copy)
        other = Index(copy)
        assert (other.format(), other.fault(), states(other, A)) == (FORMAT, None, [VALID])
        assert other.rows("SELECT * FROM reference") == index.rows("SELECT * FROM reference")
        other.close()
    with pytest.raises(sqlite3.OperationalError, match="unable to open"):
        index.snapshot(f"{path}.no/where")
    index.close()
