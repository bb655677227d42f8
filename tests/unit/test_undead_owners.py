"""An owner whose processes could not be ended is not dead as long as one of them lives, whoever holds its lock."""

from __future__ import annotations

import time
from pathlib import Path

from tests.peers import Peer
from tests.stores import new_store

from pylightnix.storage import store_layout
from pylightnix.store.access import make_folders
from pylightnix.store.layout import StoreLayout
from pylightnix.store.locks import close_lock_file
from pylightnix.store.owner import Owner, dead_owners, is_dead, leave_heirs, process_owner, remember_undead, wait_for_heirs


def layout_of(tmp_path: Path) -> StoreLayout:
    layout = store_layout(new_store(tmp_path / "store"))
    make_folders(layout)
    return layout


def leave(layout: StoreLayout, undead: list[int]) -> Owner:
    """Be an owner that leaves heirs and undead processes, and dies."""
    owner = process_owner(layout)
    leave_heirs(owner)
    remember_undead(owner, undead)
    return owner


def test_an_owner_is_not_dead_before_its_undead_are(tmp_path: Path) -> None:
    layout = layout_of(tmp_path)
    with Peer(lambda line: line.hear()) as undead:
        with Peer(lambda line: line.say(leave(layout, [1 << 22, undead.pid]).id)) as peer:
            name = peer.line.hear()
            peer.end()
        assert not is_dead(layout, name)
        assert dead_owners(layout) == []
        begun = time.monotonic()
        wait_for_heirs(layout, 60)
        assert time.monotonic() - begun < 30, "it is no use to wait for them"
        undead.line.say("end")
        undead.end()
    assert is_dead(layout, name)
    [(found, fd)] = dead_owners(layout)
    assert found == name
    close_lock_file(fd)


def test_processes_that_are_gone_or_were_forgotten_hold_nothing(tmp_path: Path) -> None:
    layout = layout_of(tmp_path)
    with Peer(lambda line: line.hear()) as alive:

        def forget(line: object) -> None:
            owner = leave(layout, [alive.pid])
            remember_undead(owner, [])
            line.say(owner.id)  # type: ignore[attr-defined]

        with Peer(forget) as peer:
            name = peer.line.hear()
            peer.end()
        assert is_dead(layout, name)
        alive.line.say("end")
        alive.end()


def test_another_process_of_the_same_number_holds_nothing(tmp_path: Path) -> None:
    layout = layout_of(tmp_path)
    with Peer(lambda line: line.hear()) as alive:
        with Peer(lambda line: line.say(leave(layout, [alive.pid]).id)) as peer:
            name = peer.line.hear()
            peer.end()
        lock = Path(layout.owners, name)
        said = lock.read_text()
        pid, started, boot = said.splitlines()[1].split()
        assert int(pid) == alive.pid
        for other in (f"{pid} {int(started) - 1} {boot}", f"{pid} {started} {'0' * 36}", f"{pid} {started}", "nonsense", "\0\xff"):
            lock.write_text(said.splitlines()[0] + f"\n{other}\n")
            assert is_dead(layout, name)
        lock.write_text(said)
        assert not is_dead(layout, name)
        alive.line.say("end")
        alive.end()
