"""Recovery: what the dead left goes, what the living have stays, and formats that are not ours are left alone."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3

import pytest
from tests.peers import Line, Peer
from tests.soundness import check_sound, rows
from tests.stores import Numbered, in_child, new_store, picture, stage, writes

from pylightnix import RRef, StorageSettings, StoreBusy, StoreTooNew, instantiate, match_latest, realize1, rref2dref
from pylightnix.context import context_key
from pylightnix.embedded import realize_closure
from pylightnix.query import allrrefs
from pylightnix.storage import store_layout
from pylightnix.store import faults
from pylightnix.store.index import FORMAT, Index
from pylightnix.store.locks import build_key, close_lock_file, shared_lock, try_build_lock
from pylightnix.store.owner import lock_dead_owner
from pylightnix.store.recovery import finish_deletions
from pylightnix.store.store import open_store

pytestmark = pytest.mark.embedded_only("it is about what a process finds of dead ones; for daemons, tests/faults does that")

NOBODY = "1-0123456789ab"


def build(S: StorageSettings, name: str = "stage") -> RRef:
    return realize1(instantiate(lambda r: stage(r, name), S=S))


def die_at(S: StorageSettings, point: str, name: str = "stage") -> str:
    """Build in a process that is killed at a point; return the name of its folder in `tmp/`."""
    before = set(os.listdir(store_layout(S).tmp))

    def die(reached: str) -> None:
        if reached == point:
            os.kill(os.getpid(), signal.SIGKILL)

    def body(line: Line) -> None:
        faults.set_hook(die)
        build(S, name)

    with Peer(body) as peer:
        assert peer.wait() == -signal.SIGKILL
    (left,) = set(os.listdir(store_layout(S).tmp)) - before
    return left


def recover(S: StorageSettings) -> list[RRef]:
    """Open the store once, in a process of its own."""
    return in_child(lambda: list(allrrefs(S)))


def update(S: StorageSettings, query: str, *args: object) -> None:
    db = sqlite3.connect(store_layout(S).index)
    db.execute(query, args)
    db.commit()
    db.close()


def states(S: StorageSettings) -> list[int]:
    return [row.state for row in rows(S).values()]


@pytest.mark.parametrize("point", ["after_pending", "after_rename", "before_valid"])
def test_what_was_pending_goes_tree_and_row(S: StorageSettings, point: str) -> None:
    die_at(S, point)
    assert states(S) == [0]
    assert recover(S) == []
    assert rows(S) == {}
    check_sound(S)


def test_what_was_valid_stays(S: StorageSettings) -> None:
    kept = in_child(lambda: build(S, "kept"))
    die_at(S, "after_valid", "also-kept")
    die_at(S, "before_valid", "lost")
    left = recover(S)
    assert kept in left
    assert sorted(rref.rsplit("-", 1)[0][-4:] and rref[71:] for rref in left) == ["also-kept", "kept"]
    check_sound(S, left)


def test_a_half_deleted_row_is_finished(S: StorageSettings) -> None:
    in_child(lambda: build(S))
    update(S, "UPDATE realization SET state = 2, owner = ?", NOBODY)
    assert recover(S) == []
    assert rows(S) == {}
    check_sound(S)


def test_a_deleted_row_without_a_tree_is_finished(S: StorageSettings) -> None:
    rref = in_child(lambda: build(S))
    update(S, "UPDATE realization SET state = 2, owner = ?", NOBODY)
    tree = store_layout(S).realization(rref)
    os.chmod(tree, 0o755)
    shutil.rmtree(tree)
    recover(S)
    check_sound(S)


def test_rows_whose_owner_s_folder_was_removed_by_hand_go_too(S: StorageSettings) -> None:
    owner = die_at(S, "before_valid")
    shutil.rmtree(f"{store_layout(S).tmp}/{owner}")
    assert recover(S) == []
    check_sound(S)


def test_read_only_debris_in_tmp_and_trash_goes(S: StorageSettings) -> None:
    layout = store_layout(S)
    for folder in (f"{layout.tmp}/{NOBODY}/0/out", f"{layout.trash}/0123/folder"):
        os.makedirs(folder)
        with open(f"{folder}/file", "w", encoding="utf-8"):
            pass
        os.chmod(folder, 0o555)
    recover(S)
    assert not os.path.exists(f"{layout.tmp}/{NOBODY}")
    check_sound(S)


def test_what_is_not_an_owner_s_folder_is_left_alone(S: StorageSettings) -> None:
    stray = f"{store_layout(S).tmp}/tmpabcdef"
    os.mkdir(stray)
    recover(S)
    assert os.path.isdir(stray)


def test_the_living_are_left_alone(S: StorageSettings) -> None:
    """Between taking its lock and its commit a process may be stopped for any time."""

    def body(line: Line) -> None:
        def wait(point: str) -> None:
            if point == "before_sync":
                line.say("in place")
                line.hear()

        faults.set_hook(wait)
        line.say(build(S))

    with Peer(body) as peer:
        peer.expect("in place")
        assert recover(S) == []
        assert states(S) == [0]
        peer.say("go on")
        rref = RRef(peer.line.hear())
        peer.end()
    assert recover(S) == [rref]
    check_sound(S, [rref])


def test_an_idle_process_keeps_its_folder_until_it_is_dead(S: StorageSettings) -> None:
    layout = store_layout(S)

    def body(line: Line) -> None:
        line.say(build(S, "first"))
        line.hear()
        line.say(build(S, "second"))
        line.hear()

    def theirs() -> list[str]:
        return [name for name in os.listdir(layout.tmp) if name.startswith(f"{peer.pid}-")]

    with Peer(body) as peer:
        first = RRef(peer.line.hear())
        (folder,) = theirs()
        for _ in range(3):
            assert recover(S) == [first]
        assert theirs() == [folder]
        peer.say("go on")
        second = RRef(peer.line.hear())
        assert theirs() == [folder]
        peer.kill()
    assert theirs() == [folder]
    recover(S)
    assert theirs() == []
    check_sound(S, [first, second])


def test_a_row_is_left_while_somebody_builds_the_same(S: StorageSettings) -> None:
    die_at(S, "before_valid")
    layout = store_layout(S)
    (rref,) = rows(S)
    fd = try_build_lock(layout, build_key(rref2dref(rref), context_key({})))
    assert fd is not None
    try:
        recover(S)
        assert states(S) == [2]
        assert os.path.isdir(layout.realization(rref))
    finally:
        close_lock_file(fd)
    assert recover(S) == []
    check_sound(S)


@pytest.mark.parametrize("point", ["after_pending", "before_rename", "after_rename"])
def test_what_another_is_about_to_recover_can_be_built_meanwhile(S: StorageSettings, point: str) -> None:
    """A sweeper locks the folders of the dead first, and may be busy removing one of them for long."""
    dead = die_at(S, point)
    fd = lock_dead_owner(store_layout(S), dead)
    assert fd is not None
    try:
        rref = in_child(lambda: build(S))
        assert states(S) == [1]
    finally:
        close_lock_file(fd)
    assert recover(S) == [rref]
    check_sound(S, [rref])


def test_what_was_built_anew_since_it_was_marked_stays(S: StorageSettings) -> None:
    """Between marking a row and getting its build lock, a builder may have made the very same again."""
    rref = in_child(lambda: build(S))
    layout = store_layout(S)

    def body(line: Line) -> None:
        index = Index(layout.index)
        finish_deletions(layout, index, [(rref, context_key({}))])

    with Peer(body) as peer:
        peer.end()
    recover(S)
    check_sound(S, [rref])


def test_a_builder_that_finds_a_dead_one_s_realization_makes_its_own(S: StorageSettings) -> None:
    """The dead one's cannot be deleted while its lock is held, and must not be used."""
    numbered = Numbered(texts=["mine"])

    def body(line: Line) -> None:
        def wait(point: str) -> None:
            if point == "before_valid":
                line.say("in place")
                line.hear()

        faults.set_hook(wait)
        realize1(instantiate(lambda r: stage(r, realizer=writes({"out.txt": "theirs"})), S=S))

    with Peer(body) as peer:
        peer.expect("in place")
        with open_store(store_layout(S)) as store:  # recovers while the other is alive
            dref = instantiate(stage, S=S)[0]
            peer.kill()
            with store.build_lock(dref, {}, lambda: None) as waited:
                assert not waited
                assert store.candidates(dref, {}) == []
    rref = in_child(lambda: realize1(instantiate(lambda r: stage(r, realizer=numbered), S=S)))
    assert recover(S) == [rref]
    check_sound(S, [rref])


def test_a_folder_removed_by_hand_is_built_again(S: StorageSettings) -> None:
    rref = in_child(lambda: build(S))
    tree = store_layout(S).realization(rref)
    os.chmod(tree, 0o755)
    shutil.rmtree(tree)
    assert in_child(lambda: build(S)) == rref
    recover(S)
    check_sound(S, [rref])


def test_many_recover_at_once(S: StorageSettings) -> None:
    layout = store_layout(S)
    for i in range(5):
        os.makedirs(f"{layout.tmp}/{i + 1}-0123456789ab/0/out/deep")
        os.makedirs(f"{layout.trash}/{i}/folder")
    for point in ("before_valid", "after_rename"):
        die_at(S, point, point.replace("_", "-"))

    def body(line: Line) -> None:
        line.hear()
        assert list(allrrefs(S)) == []

    peers = [Peer(body) for _ in range(4)]
    for peer in peers:
        peer.say("go")
    for peer in peers:
        with peer:
            peer.end()
    recover(S)
    check_sound(S)


# --- formats ------------------------------------------------------------------------------------------


def test_a_store_of_a_newer_format_is_refused_unharmed(S: StorageSettings) -> None:
    in_child(lambda: build(S))
    update(S, f"PRAGMA user_version = {FORMAT + 1}")
    shutil.rmtree(f"{store_layout(S).tmp}", ignore_errors=True)
    os.mkdir(store_layout(S).tmp)
    before = picture(S)
    for call in (lambda: list(allrrefs(S)), lambda: build(S), lambda: build(S, "other")):
        with pytest.raises(StoreTooNew, match=f"format {FORMAT + 1}, this Pylightnix knows up to {FORMAT}"):
            in_child(call)
    after = picture(S)
    assert after.rows == before.rows
    assert {path: entry for path, entry in after.entries.items() if "-other" not in path} == before.entries
    update(S, f"PRAGMA user_version = {FORMAT}")
    assert len(recover(S)) == 1


@pytest.mark.parametrize("content", [None, b""])
def test_a_missing_or_empty_index_is_made(S: StorageSettings, content: bytes | None) -> None:
    if content is not None:
        with open(store_layout(S).index, "wb") as file:
            file.write(content)
    rref = in_child(lambda: build(S))
    assert recover(S) == [rref]
    assert os.stat(store_layout(S).index).st_mode & 0o777 == 0o600 or content is not None
    check_sound(S, [rref])


def test_a_migration_waits_for_its_turn(S: StorageSettings) -> None:
    def body(line: Line) -> None:
        with shared_lock(store_layout(S)):
            line.say("held")
            line.hear()

    def migrant(line: Line) -> None:
        line.say("start")
        line.say(build(S))

    with Peer(body) as holder, Peer(migrant) as peer:
        holder.expect("held")
        peer.expect("start")
        holder.say("let go")
        holder.end()
        rref = RRef(peer.line.hear())
        peer.end()
    check_sound(S, [rref])


def test_many_processes_open_a_fresh_store_at_once(tmp_path: object) -> None:
    for attempt in range(3):
        S = new_store(f"{tmp_path}/{attempt}")

        def body(line: Line, S: StorageSettings = S) -> None:
            line.say("ready")
            line.hear()
            line.say(build(S))

        peers = [Peer(body) for _ in range(4)]
        for peer in peers:
            peer.expect("ready")
        for peer in peers:
            peer.say("go")
        rrefs = {RRef(peer.line.hear()) for peer in peers}
        for peer in peers:
            with peer:
                peer.end()
        assert len(rrefs) == 1
        recover(S)
        check_sound(S, rrefs)


def test_a_store_that_is_busy_is_not_migrated_behind_others_backs(S: StorageSettings) -> None:
    """In one process: a call that is not finished holds the store, so that nobody can be alone in it."""
    from pylightnix.store.locks import exclusive_lock

    with shared_lock(store_layout(S)), pytest.raises(StoreBusy, match="this process"), exclusive_lock(store_layout(S), "migration", 0):
        pass


def test_matchers_see_nothing_of_the_dead(S: StorageSettings) -> None:
    die_at(S, "before_valid")
    numbered = Numbered()
    outcome = in_child(lambda: realize_closure(instantiate(lambda r: stage(r, realizer=numbered, matcher=match_latest()), S=S)[1]).built)
    assert len(outcome) == 1
