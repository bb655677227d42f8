"""Locks: shared, exclusive and its gate, build locks; who waits, who is named, and who lets go of what, dead or forked."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from tests.peers import Line, Peer

from pylightnix import DRef, StoreBusy
from pylightnix.store.layout import StoreLayout
from pylightnix.store.locks import (
    build_key,
    build_lock,
    close_lock_file,
    exclusive_lock,
    holders,
    shared_lock,
    try_build_lock,
)
from pylightnix.store.owner import dead_owners, process_owner

DREF = DRef(f"dref:{'1' * 32}-stage")
KEY = build_key(DREF, "key")
SOON = 0.2
"""How long to wait, in seconds, for a lock that will not come free."""

Take = Callable[[], AbstractContextManager[object]]


@pytest.fixture
def layout(tmp_path: Path) -> StoreLayout:
    layout = StoreLayout(storage=str(tmp_path / "store-v1"), tmp=str(tmp_path / "tmp"), state=str(tmp_path))
    os.mkdir(layout.tmp)
    return layout


def holding(take: Take) -> Peer:
    """Start a process that holds a lock until it hears anything."""

    def body(line: Line) -> None:
        with take():
            line.say("held")
            line.hear()

    peer = Peer(body)
    peer.expect("held")
    return peer


def is_free(take: Take) -> bool:
    try:
        with take():
            return True
    except StoreBusy:
        return False


# --- shared and exclusive -----------------------------------------------------------------------------


def test_shared_holders_do_not_mind_each_other(layout: StoreLayout) -> None:
    with holding(lambda: shared_lock(layout)), shared_lock(layout, 0) as outermost:
        assert outermost


def test_one_who_is_alone_keeps_everybody_out(layout: StoreLayout) -> None:
    with holding(lambda: exclusive_lock(layout, "test")) as peer:
        assert not is_free(lambda: shared_lock(layout, SOON))
        assert not is_free(lambda: exclusive_lock(layout, "test", SOON))
        peer.say("let go")
        peer.end()
    assert is_free(lambda: shared_lock(layout, 0))
    assert is_free(lambda: exclusive_lock(layout, "test", 0))


def test_a_shared_holder_keeps_out_who_wants_to_be_alone(layout: StoreLayout) -> None:
    with holding(lambda: shared_lock(layout)) as peer:
        assert not is_free(lambda: exclusive_lock(layout, "test", SOON))
        peer.say("let go")
        peer.end()
    assert is_free(lambda: exclusive_lock(layout, "test", 0))


def test_waiting_in_vain_names_the_holders(layout: StoreLayout) -> None:
    with holding(lambda: shared_lock(layout)) as one, holding(lambda: shared_lock(layout)) as two:
        with pytest.raises(StoreBusy) as caught, exclusive_lock(layout, "test", SOON):
            pass
        assert caught.value.waited_seconds == SOON
        assert caught.value.retryable
        named = str(caught.value)
        assert f"process {one.pid} (" in named
        assert f"process {two.pid} (" in named
        assert f"process {os.getpid()} " not in named


def test_whoever_is_alone_says_in_what_role(layout: StoreLayout) -> None:
    with holding(lambda: exclusive_lock(layout, "migration")) as peer:
        with pytest.raises(StoreBusy, match=f"migration, process {peer.pid} "), shared_lock(layout, SOON):
            pass
        assert len(holders(layout)) == 1
        peer.say("let go")
        peer.end()
    assert not Path(layout.lock).read_bytes().strip()
    assert holders(layout) == []


def test_what_the_dead_said_of_themselves_is_not_believed(layout: StoreLayout) -> None:
    with holding(lambda: exclusive_lock(layout, "migration")) as peer:
        peer.kill()
    assert Path(layout.lock).read_bytes().strip()
    with holding(lambda: shared_lock(layout)) as other:
        assert [f"process {other.pid} " in text and "migration" not in text for text in holders(layout)] == [True]


def test_threads_of_one_process_starve_nobody_either(layout: StoreLayout) -> None:
    """Their calls overlap, so the process as a whole never lets go by itself."""

    def busy(line: Line) -> None:
        block = bytes(1 << 20)
        over = threading.Event()

        def work() -> None:
            while not over.is_set():
                with shared_lock(layout, 60.0):
                    hashlib.sha256(block).digest()

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        line.say("going")
        line.hear()
        over.set()
        for thread in threads:
            thread.join()

    with Peer(busy) as peer:
        peer.expect("going")
        for _ in range(10):
            with exclusive_lock(layout, "test", 30.0):
                pass
        peer.say("stop")
        peer.end()


def test_who_wants_to_be_alone_is_not_starved(layout: StoreLayout) -> None:
    """Several processes keep the lock shared nearly all the time, with each other's overlapping."""

    def busy(line: Line) -> None:
        block = bytes(1 << 20)
        line.say("going")
        while line.is_quiet():
            with shared_lock(layout, 60.0):
                hashlib.sha256(block).digest()

    peers = [Peer(busy) for _ in range(3)]
    try:
        for peer in peers:
            peer.expect("going")
        for _ in range(3):
            with exclusive_lock(layout, "test", 30.0):
                pass
    finally:
        for peer in peers:
            peer.say("stop")
            with peer:
                peer.end()


def waiting_for_exclusive(layout: StoreLayout) -> Peer:
    """Start a process that waits at the gate; return when newcomers are held off."""

    def alone(line: Line) -> None:
        with exclusive_lock(layout, "test", 60.0):
            line.say("alone")
            line.hear()

    peer = Peer(alone)
    # Each attempt of a newcomer passes the gate or does not; there is nothing to wait on but the gate itself.
    for _ in range(1000):
        if not in_newcomer(lambda: is_free(lambda: shared_lock(layout, 0))):
            return peer
        assert peer.line.is_quiet()
    raise AssertionError("newcomers pass one who waits to be alone")


def in_newcomer(question: Callable[[], bool]) -> bool:
    def body(line: Line) -> None:
        line.say(str(question()))

    with Peer(body) as peer:
        answer = peer.line.hear()
        peer.end()
    assert answer in ("True", "False")
    return answer == "True"


def test_nested_calls_do_not_wait_for_who_waits_for_them(layout: StoreLayout) -> None:
    with shared_lock(layout) as outermost:
        assert outermost
        with waiting_for_exclusive(layout) as peer:
            with shared_lock(layout, 0) as inner:
                assert not inner
            assert peer.line.is_quiet()
            peer.kill()


def test_who_waits_gets_in_when_the_last_one_leaves(layout: StoreLayout) -> None:
    with holding(lambda: shared_lock(layout)) as one, holding(lambda: shared_lock(layout)) as two, waiting_for_exclusive(layout) as peer:
        for holder in (one, two):
            assert peer.line.is_quiet()
            holder.say("let go")
            holder.end()
        peer.expect("alone")
        peer.say("let go")
        peer.end()


def test_who_gives_up_waiting_opens_the_gate_again(layout: StoreLayout) -> None:
    with holding(lambda: shared_lock(layout)):
        assert not is_free(lambda: exclusive_lock(layout, "test", SOON))
        assert is_free(lambda: shared_lock(layout, 0))
        with waiting_for_exclusive(layout) as peer:
            peer.kill()
        assert is_free(lambda: shared_lock(layout, 0))


def test_a_process_cannot_be_alone_in_a_call_of_its_own(layout: StoreLayout) -> None:
    with shared_lock(layout), pytest.raises(StoreBusy, match="this process"), exclusive_lock(layout, "test", 60.0):
        pass
    assert is_free(lambda: exclusive_lock(layout, "test", 0))


def test_the_lock_is_held_until_the_outermost_call_is_finished(layout: StoreLayout) -> None:
    with shared_lock(layout):
        with shared_lock(layout):
            pass
        assert not in_newcomer(lambda: is_free(lambda: exclusive_lock(layout, "test", 0)))
    assert in_newcomer(lambda: is_free(lambda: exclusive_lock(layout, "test", 0)))


# --- death and forks ----------------------------------------------------------------------------------


def owner_folder_is_free(layout: StoreLayout) -> bool:
    found = dead_owners(layout)
    for _, fd in found:
        close_lock_file(fd)
    return bool(found)


def build_lock_is_free(layout: StoreLayout) -> bool:
    fd = try_build_lock(layout, KEY)
    if fd is not None:
        close_lock_file(fd)
    return fd is not None


def all_free(layout: StoreLayout, shared: bool) -> set[bool]:
    whole = is_free(lambda: exclusive_lock(layout, "test", 0) if shared else shared_lock(layout, 0))
    return {whole, build_lock_is_free(layout), owner_folder_is_free(layout)}


@pytest.mark.parametrize("shared", [True, False])
def test_locks_are_free_when_their_holder_is_killed(layout: StoreLayout, shared: bool) -> None:
    def body(line: Line) -> None:
        with shared_lock(layout) if shared else exclusive_lock(layout, "test"), build_lock(layout, KEY, lambda: None):
            process_owner(layout)
            line.say("held")
            line.hear()

    with Peer(body) as peer:
        peer.expect("held")
        assert all_free(layout, shared) == {False}
        peer.kill()
    assert all_free(layout, shared) == {True}


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("first", ["parent", "child"])
def test_a_forked_child_neither_keeps_nor_frees_its_parent_s_locks(layout: StoreLayout, shared: bool, first: str) -> None:
    reading, writing = os.pipe()  # its end is heard when the last of the child's family has closed it

    def child(line: Line) -> None:
        line.say("here")
        line.hear()
        os.read(reading, 1)

    def parent(line: Line) -> None:
        os.close(writing)
        with shared_lock(layout) if shared else exclusive_lock(layout, "test"), build_lock(layout, KEY, lambda: None):
            process_owner(layout)
            forked = Peer(child)
            forked.expect("here")
            if first == "child":
                forked.kill()
            line.say("forked")
            line.hear()

    with Peer(parent) as peer:
        peer.expect("forked")
        assert all_free(layout, shared) == {False}
        peer.kill()
    assert all_free(layout, shared) == {True}
    os.close(writing)
    os.close(reading)


def test_a_child_that_leaves_its_parent_s_blocks_changes_nothing(layout: StoreLayout) -> None:
    def body(line: Line) -> None:
        parent = os.getpid()
        with shared_lock(layout), build_lock(layout, KEY, lambda: None):
            pid = os.fork()
            if pid:
                os.waitpid(pid, 0)
                line.say("left")
                line.hear()
        if os.getpid() != parent:
            os._exit(0)

    with Peer(body) as peer:
        peer.expect("left")
        assert not is_free(lambda: exclusive_lock(layout, "test", 0))
        assert not build_lock_is_free(layout)
        peer.say("let go")
        peer.end()


def test_a_child_can_take_locks_of_its_own(layout: StoreLayout) -> None:
    with shared_lock(layout):
        assert process_owner(layout).pid == os.getpid()

        def body(line: Line) -> None:
            with shared_lock(layout) as outermost:
                line.say(f"{outermost} {process_owner(layout).pid == os.getpid()}")

        with Peer(body) as peer:
            peer.expect("True True")
            peer.end()
        assert not in_newcomer(lambda: is_free(lambda: exclusive_lock(layout, "test", 0)))


# --- build locks --------------------------------------------------------------------------------------


def test_one_builds_the_other_waits(layout: StoreLayout) -> None:
    """What each writes between taking and freeing the lock stays together."""
    journal = f"{layout.state}/journal"

    def body(line: Line) -> None:
        line.say("ready")
        line.hear()
        fd = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for _ in range(20):
            with build_lock(layout, KEY, lambda: None):
                os.write(fd, b"(")
                os.write(fd, b")")

    peers = [Peer(body) for _ in range(4)]
    for peer in peers:
        peer.expect("ready")
        peer.say("go")
    for peer in peers:
        with peer:
            peer.end()
    with open(journal, encoding="ascii") as file:
        assert file.read() == "()" * 80


def test_waiting_is_told_once_and_ends_with_the_holder(layout: StoreLayout) -> None:
    def waiter(line: Line) -> None:
        with build_lock(layout, KEY, lambda: line.say("waiting")) as waited:
            line.say(f"got it {waited}")

    for end in ("let go", "kill"):
        with holding(lambda: build_lock(layout, KEY, lambda: None)) as holder, Peer(waiter) as peer:
            peer.expect("waiting")
            assert peer.line.is_quiet()
            if end == "kill":
                holder.kill()
            else:
                holder.say(end)
                holder.end()
            peer.expect("got it True")
            peer.end()


def test_a_free_lock_is_not_waited_for(layout: StoreLayout) -> None:
    def refuse() -> None:
        raise AssertionError("waited")

    other = build_key(DREF, "other")
    assert other != KEY
    with build_lock(layout, KEY, refuse) as waited, build_lock(layout, other, refuse) as waited_too:
        assert not waited
        assert not waited_too
        assert try_build_lock(layout, KEY) is None
        assert try_build_lock(layout, other) is None
    assert build_lock_is_free(layout)


def test_a_wait_that_is_interrupted_leaves_the_lock_to_its_holder(layout: StoreLayout) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with holding(lambda: build_lock(layout, KEY, lambda: None)) as holder:
        with pytest.raises(KeyboardInterrupt), build_lock(layout, KEY, interrupt):
            pass
        assert not build_lock_is_free(layout)
        holder.say("let go")
        holder.end()
    assert build_lock_is_free(layout)


def test_threads_of_one_process_wait_for_each_other(layout: StoreLayout) -> None:
    waiting = threading.Event()
    got: list[bool] = []

    def work() -> None:
        with build_lock(layout, KEY, waiting.set) as waited:
            got.append(waited)

    thread = threading.Thread(target=work)
    with build_lock(layout, KEY, lambda: None):
        thread.start()
        assert waiting.wait(60)
        assert got == []
    thread.join()
    assert got == [True]
