"""Killed at every point of a removal: what is left is sound, and the next process finishes the work."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from tests.peers import Line, Peer
from tests.soundness import check_sound
from tests.stores import in_child, new_store, stage, writes

from pylightnix import DRef, InUse, Registry, RRef, StorageSettings, alldrefs, allrrefs, instantiate, match_all, realize, rmref
from pylightnix.storage import store_layout
from pylightnix.store import faults
from pylightnix.store.collection import remove_alone

POINTS = (*faults.REMOVAL_POINTS, "recovery_trashed", "recovery_forgotten", "trash_emptied")
UNDONE = {"removal_decided"}


def graph(r: Registry) -> DRef:
    low = stage(r, "low", realizer=writes({"n": "1"}, {"n": "2", "deep/file": "3"}), matcher=match_all)
    return stage(r, "high", dep=low)


@pytest.fixture
def S(tmp_path: Path) -> StorageSettings:
    return new_store(tmp_path / "store")


def realize_all(S: StorageSettings) -> list[RRef]:
    _, _, context = realize(instantiate(graph, S=S))
    return sorted(rref for rrefs in context.values() for rref in rrefs or ())


@pytest.mark.parametrize("occurrence", [1, 2])
@pytest.mark.parametrize("point", POINTS)
def test_killed_there_the_removal_is_whole_or_undone(point: str, occurrence: int, S: StorageSettings) -> None:
    rrefs = in_child(lambda: realize_all(S))
    drefs = list(alldrefs(S))
    left = [occurrence]

    def listener(reached: str) -> None:
        if reached == point:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)

    def body(line: Line) -> None:
        faults.set_hook(listener)
        remove_alone(store_layout(S), drefs, [])

    with Peer(body) as peer:
        status = peer.wait()
    assert status == -signal.SIGKILL or occurrence > 1, f"{point} was not reached"
    found = in_child(lambda: list(allrrefs(S)))
    assert found == (rrefs if point in UNDONE and status else [])
    check_sound(S, found)
    assert in_child(lambda: realize_all(S)) == rrefs
    check_sound(S, rrefs)


def test_a_removal_that_was_refused_leaves_no_trace(S: StorageSettings) -> None:
    rrefs = in_child(lambda: realize_all(S))
    low = next(dref for dref in alldrefs(S) if dref.endswith("-low"))
    with pytest.raises(InUse, match="is needed by"):
        rmref(low, S)
    check_sound(S, rrefs)


def test_two_processes_remove_at_once(S: StorageSettings) -> None:
    rrefs = in_child(lambda: realize_all(S))
    drefs = list(alldrefs(S))

    def body(line: Line) -> None:
        line.hear()
        line.say(str(len(remove_alone(store_layout(S), drefs, rrefs, only_unused=True).rrefs)))

    with Peer(body) as one, Peer(body) as two:
        for peer in (one, two):
            peer.say("go")
        assert sorted([one.line.hear(), two.line.hear()]) == ["0", "3"]
        one.end()
        two.end()
    assert in_child(lambda: list(allrrefs(S))) == []
    check_sound(S)
