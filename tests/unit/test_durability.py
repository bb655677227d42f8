"""Durability: how a batch is flushed, and what is left of one that could not be."""

from __future__ import annotations

import errno
import os
import resource
import threading

import pytest
from tests.peers import Line, Peer
from tests.soundness import check_sound, rows
from tests.stores import in_child, stage, writes

from pylightnix import DRef, Registry, RRef, StorageSettings, StoreError, StoreFull, StoreIOError, instantiate, realize1, realizeMany
from pylightnix.embedded import realize_closure
from pylightnix.query import allrrefs
from pylightnix.storage import store_layout
from pylightnix.store import faults
from pylightnix.store.commit import BATCH_COUNT, Batch
from pylightnix.store.durability import AVOID_SECONDS, FEW_FILES, SLOW_SYNC_SECONDS, Durability, held_open, sync_file_system, sync_trees

pytestmark = pytest.mark.embedded_only("it is about how a process flushes what it has built itself")

# --- the decider --------------------------------------------------------------------------------------


def test_d48_the_whole_file_system_is_flushed_by_default() -> None:
    assert not Durability().by_file(1, 0.0)


def test_after_a_slow_flush_files_are_flushed_one_by_one_for_a_while() -> None:
    durability = Durability()
    durability.observe(by_file=False, seconds=SLOW_SYNC_SECONDS * 2, now=100.0)
    assert durability.by_file(FEW_FILES, 100.0)
    assert durability.by_file(FEW_FILES, 100.0 + AVOID_SECONDS - 1)
    assert not durability.by_file(FEW_FILES, 100.0 + AVOID_SECONDS)


def test_many_files_are_never_flushed_one_by_one() -> None:
    durability = Durability()
    durability.observe(by_file=False, seconds=SLOW_SYNC_SECONDS * 2, now=100.0)
    assert not durability.by_file(FEW_FILES + 1, 100.0)


@pytest.mark.parametrize(("by_file", "seconds"), [(False, SLOW_SYNC_SECONDS), (True, SLOW_SYNC_SECONDS * 10)])
def test_what_teaches_nothing(by_file: bool, seconds: float) -> None:
    durability = Durability()
    durability.observe(by_file=by_file, seconds=seconds, now=100.0)
    assert not durability.by_file(1, 100.0)


# --- flushing for real --------------------------------------------------------------------------------


def tree(S: StorageSettings) -> RRef:
    """A realization with everything that a flush may come across."""
    files = {"file": "text", "folder/deep/file": "deep", "locked/file": "read-only"}

    def realizer(S: StorageSettings, dref: DRef, context: object, rarg: object) -> list[object]:
        (out,) = writes(files)(S, dref, {}, {})
        os.symlink("folder", f"{out}/link-to-folder")
        os.symlink("nowhere", f"{out}/folder/dangling")
        os.mkdir(f"{out}/empty")
        return [out]

    return realizeMany(instantiate(lambda r: stage(r, realizer=realizer), S=S))[0]  # type: ignore[arg-type]  # `object` above


def test_a_tree_is_flushed_file_by_file(S: StorageSettings) -> None:
    rref = in_child(lambda: tree(S))
    layout = store_layout(S)
    sync_trees([layout.realization(rref)], layout.storage)
    sync_trees([], layout.storage)
    check_sound(S, [rref])


def test_a_file_system_is_flushed(S: StorageSettings) -> None:
    storage = store_layout(S).storage
    with held_open(storage):
        sync_file_system(storage)
    with pytest.raises(AssertionError, match="not held open"):
        sync_file_system(storage)
    with pytest.raises(FileNotFoundError), held_open(f"{storage}/nowhere"):
        pass


@pytest.mark.parametrize("missing", ["tree", "config"])
def test_what_cannot_be_flushed_is_an_error(S: StorageSettings, missing: str) -> None:
    rref = in_child(lambda: tree(S))
    layout = store_layout(S)
    path = layout.realization(rref) if missing == "tree" else layout.config(f"dref:{rref[38:]}")
    os.rename(path, f"{layout.state}/aside")
    with pytest.raises(FileNotFoundError):
        sync_trees([layout.realization(rref)], layout.storage)


def test_a_batch_is_flushed_both_ways(S: StorageSettings) -> None:
    """The store's own choice, from the first flush on a file system that is said to be slow."""

    def by_file() -> list[RRef]:
        from pylightnix.store.store import open_store

        with open_store(store_layout(S)) as store:
            store.batch.durability.avoid_until = float("inf")
            return [tree(S)]

    check_sound(S, in_child(by_file))


def test_a_batch_is_due_by_what_is_at_stake(S: StorageSettings) -> None:
    batch = Batch(store_layout(S))
    assert not batch.is_due()
    batch.at_stake_seconds = 10.0
    assert batch.is_due()
    batch.at_stake_seconds = 0.0
    batch.pending = {RRef(str(i)): 1 for i in range(BATCH_COUNT)}
    assert batch.is_due()


# --- a commit that fails ------------------------------------------------------------------------------


def graph(r: Registry) -> DRef:
    """Two of them, the upper one with two outputs."""
    return stage(r, "above", realizer=writes({"n": "1"}, {"n": "2"}), dep=stage(r, "below"))


def failing_at(point: str, error: int) -> None:
    def fail(reached: str) -> None:
        if reached == point:
            raise OSError(error, os.strerror(error))

    faults.set_hook(fail)


@pytest.mark.parametrize("point", ["before_sync", "after_sync", "before_valid"])
def test_a_batch_that_cannot_be_flushed_is_gone(S: StorageSettings, point: str) -> None:
    def body(line: Line) -> None:
        earlier = realizeMany(instantiate(lambda r: stage(r, "earlier"), S=S))
        failing_at(point, errno.EIO)
        with pytest.raises(StoreIOError, match="Input/output error while making realizations durable"):
            realize_closure(instantiate(graph, S=S)[1])
        assert list(allrrefs(S)) == earlier
        line.say(earlier[0])
        line.hear()
        faults.set_hook(None)
        line.say(" ".join(realizeMany(instantiate(graph, S=S))))
        line.hear()

    with Peer(body) as peer:
        earlier = RRef(peer.line.hear())
        in_child(lambda: list(allrrefs(S)))
        assert list(rows(S)) == [earlier]
        check_sound(S, [earlier])
        peer.say("again")
        later = [RRef(text) for text in peer.line.hear().split()]
        assert len(later) == 1
        peer.kill()
    check_sound(S, [earlier, *later])


def test_a_full_disk_is_named(S: StorageSettings) -> None:
    def body(line: Line) -> None:
        failing_at("after_sync", errno.ENOSPC)
        with pytest.raises(StoreFull) as caught:
            realize_closure(instantiate(graph, S=S)[1])
        line.say(caught.value.code)

    with Peer(body) as peer:
        peer.expect("store-full")
        peer.end()


def test_when_nothing_can_be_written_any_more_nothing_is_believed_later(S: StorageSettings) -> None:
    """The index refuses the commit, and then the clean-up too: what is in place stays pending.

    The same process must not take it for its own work in progress when the disk is well again.
    """

    def body(line: Line) -> None:
        earlier = realizeMany(instantiate(lambda r: stage(r, "earlier"), S=S))
        unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)

        def limit(reached: str) -> None:
            if reached == "before_valid":
                resource.setrlimit(resource.RLIMIT_FSIZE, (os.stat(f"{store_layout(S).index}-wal").st_size, unlimited[1]))

        faults.set_hook(limit)
        with pytest.raises(StoreError):
            realize_closure(instantiate(graph, S=S)[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        faults.set_hook(None)
        line.say(earlier[0])
        line.hear()
        line.say(" ".join(sorted(r for rrefs in realize_closure(instantiate(graph, S=S)[1]).context.values() for r in rrefs or ())))
        line.hear()

    with Peer(body) as peer:
        earlier = RRef(peer.line.hear())
        assert {row.state for rref, row in rows(S).items() if rref != earlier} == {0}, "the clean-up was to fail"
        assert in_child(lambda: list(allrrefs(S))) == [earlier]
        peer.say("again")
        later = [RRef(text) for text in peer.line.hear().split()]
        assert len(later) == 2
        peer.kill()
    assert set(in_child(lambda: list(allrrefs(S)))) >= {earlier, *later}
    check_sound(S, [earlier, *later])


def test_another_threads_first_look_at_the_index_takes_nothing_from_this_ones(S: StorageSettings) -> None:
    """Closing a descriptor of a file takes all locks on it from the process: others then take its log for left over."""

    def body(line: Line) -> None:
        earlier = realizeMany(instantiate(lambda r: stage(r, "earlier"), S=S))
        seen: list[RRef] = []
        thread = threading.Thread(target=lambda: seen.extend(allrrefs(S)))
        thread.start()
        thread.join()
        assert seen == earlier
        line.say(earlier[0])
        line.hear()
        line.say(realize1(instantiate(lambda r: stage(r, "later"), S=S)))
        line.hear()

    with Peer(body) as peer:
        earlier = RRef(peer.line.hear())
        assert list(rows(S)) == [earlier]  # with a connection that is closed: the last one to go removes the log
        peer.say("again")
        later = RRef(peer.line.hear())
        peer.kill()
    assert sorted(in_child(lambda: list(allrrefs(S)))) == sorted([earlier, later])
    check_sound(S, [earlier, later])


def test_what_was_built_on_something_lost_is_refused(S: StorageSettings) -> None:
    """While it was built, another thread's flush lost what it was built on; its own flush would succeed."""

    def body(line: Line) -> None:
        def loses(S: StorageSettings, dref: DRef, context: object, rarg: object) -> list[object]:
            from pylightnix.store.store import open_store

            failing_at("before_sync", errno.EIO)
            with open_store(store_layout(S)) as store, pytest.raises(StoreIOError):
                store.flush()  # as the other thread's would
            faults.set_hook(None)
            return list(writes({"n": "1"})(S, dref, {}, {}))

        def main(r: Registry) -> DRef:
            return stage(r, "above", realizer=loses, dep=stage(r, "below"))  # type: ignore[arg-type]  # `object` above

        with pytest.raises(StoreIOError):
            realize_closure(instantiate(main, S=S)[1])
        line.say(f"{len(list(allrrefs(S)))} realizations")

    with Peer(body) as peer:
        peer.expect("0 realizations")
        peer.end()
    in_child(lambda: list(allrrefs(S)))
    check_sound(S, [])
