"""Killed, or interrupted, at every named point: the next process finds a sound store and completes the work."""

from __future__ import annotations

import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.peers import Line, Peer
from tests.soundness import UNIT_FILE, check_sound, rows
from tests.stores import in_child, new_store, stage, writes

from pylightnix import DRef, Registry, RRef, StorageSettings, instantiate, match_all, mkSS
from pylightnix.embedded import realize_closure
from pylightnix.query import allrrefs
from pylightnix.storage import store_layout
from pylightnix.store import faults

OCCURRENCES = (1, 2, 4)
LEFTOVERS = (("before_pending", 1), ("after_pending", 2), ("before_valid", 1), ("after_rename", 4))
"""Deaths before the one that is tested; the last leaves rows of some derivations and none of others."""


def three(name: str) -> list[dict[str, str]]:
    """Three outputs of one attempt."""
    return [{"number": str(i), UNIT_FILE: f"{name} 3"} for i in range(3)]


def graph(r: Registry) -> list[DRef]:
    """A diamond with several outputs at each corner, and a leaf beside it."""
    below = stage(r, "below", realizer=writes(*three("below")), matcher=match_all)
    left = stage(r, "left", realizer=writes({"side": "left", "folder/file": "deep"}), dep=below)
    right = stage(r, "right", realizer=writes(*three("right")), matcher=match_all, dep=below)
    above = stage(r, "above", realizer=writes(*three("above")), matcher=match_all, deps=[left, right])
    return [above, stage(r, "leaf")]


def realize_all(S: StorageSettings) -> list[RRef]:
    outcome = realize_closure(instantiate(graph, S=S)[1])
    outcome.check()
    return sorted(rref for rrefs in outcome.context.values() for rref in rrefs or ())


def recover(S: StorageSettings) -> list[RRef]:
    return list(allrrefs(S))


class At:
    """A listener that acts at the `occurrence`-th reach of a point."""

    def __init__(self, point: str, occurrence: int, act: Callable[[], None]) -> None:
        self.point, self.left, self.act = point, occurrence, act

    def __call__(self, point: str) -> None:
        if point == self.point:
            self.left -= 1
            if self.left == 0:
                self.act()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[RRef]:
    """What the graph comes to, in any store."""
    return in_child(lambda: realize_all(new_store(tmp_path_factory.mktemp("expected"))))


def prepare(S: StorageSettings, expected: list[RRef]) -> None:
    """Leave in a store everything that a process may find: what was killed at any stage, and trees without rows."""
    layout = store_layout(S)
    for point, occurrence in LEFTOVERS:
        assert crash(S, At(point, occurrence, die)) == (True, [])
    os.makedirs(f"{layout.trash}/old/folder")
    found = rows(S)
    for rref in expected:
        if rref not in found:
            os.makedirs(f"{layout.realization(rref)}/debris")
            os.chmod(layout.realization(rref), 0o555)
    config = layout.config(next(iter(found.values())).dref)
    os.chmod(config, 0o644)
    with open(config, "r+b") as file:
        file.truncate(3)


def crash(S: StorageSettings, listener: Callable[[str], None]) -> tuple[bool, list[RRef]]:
    """Realize the graph in a process that `listener` may kill; return whether it was, and what was acknowledged."""

    def body(line: Line) -> None:
        faults.set_hook(listener)
        for _ in range(2):
            line.say(" ".join(realize_all(S)))

    with Peer(body) as peer:
        heard = []
        while text := peer.line.hear():
            heard.append(text)
        status = peer.wait()
    return status == -signal.SIGKILL, [RRef(rref) for text in heard for rref in text.split()]


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory, expected: list[RRef]) -> str:
    """A store that `prepare` was done to, to be copied: whoever held locks in it is dead."""
    S = new_store(tmp_path_factory.mktemp("pattern") / "store")
    prepare(S, expected)
    return store_layout(S).state


@pytest.fixture
def P(pattern: str, tmp_path: Path) -> StorageSettings:
    root = str(tmp_path / "store")
    shutil.copytree(pattern, root, symlinks=True)
    return mkSS(root)


def test_every_point_is_reached(P: StorageSettings, expected: list[RRef]) -> None:

    def body(line: Line) -> None:
        reached: list[str] = []
        faults.set_hook(reached.append)
        realize_all(P)
        line.say(" ".join(reached))

    with Peer(body) as peer:
        reached = Counter(peer.line.hear().split())
        peer.end()
    assert set(faults.POINTS) == set(reached)
    assert in_child(lambda: recover(P)) == expected  # empties the trash of this one
    check_sound(P, expected)


def test_the_preparation_leaves_something_of_everything(P: StorageSettings, expected: list[RRef]) -> None:
    layout = store_layout(P)
    assert {row.state for row in rows(P).values()} & {0, 2}
    assert os.listdir(layout.tmp)
    assert os.listdir(layout.trash)


@pytest.mark.parametrize("occurrence", OCCURRENCES)
@pytest.mark.parametrize("point", faults.POINTS)
def test_killed_there_nothing_is_lost_or_left(point: str, occurrence: int, P: StorageSettings, expected: list[RRef]) -> None:
    killed, acknowledged = crash(P, At(point, occurrence, die))
    assert killed or occurrence > 1, f"{point} was not reached"
    assert killed or sorted(set(acknowledged)) == expected
    check_completed(P, acknowledged, expected)


@pytest.mark.slow
@pytest.mark.parametrize("point", faults.POINTS)
def test_killed_again_and_again(point: str, P: StorageSettings, expected: list[RRef]) -> None:
    acknowledged: set[RRef] = set()
    for occurrence in (1, 1, 2, 1):
        acknowledged.update(crash(P, At(point, occurrence, die))[1])
    check_completed(P, acknowledged, expected)


def check_completed(P: StorageSettings, acknowledged: set[RRef] | list[RRef], expected: list[RRef]) -> None:
    """Recover, look, complete the same closure, and look again."""
    valid = in_child(lambda: recover(P))
    assert set(acknowledged) <= set(valid) <= set(expected)
    drop_debris(P, expected)
    in_child(lambda: str(instantiate(graph, S=P)))  # mends what a power cut did to a config.json
    check_sound(P, acknowledged)
    assert in_child(lambda: realize_all(P)) == expected
    check_sound(P, expected)


def drop_debris(P: StorageSettings, expected: list[RRef]) -> None:
    """Remove the trees without a row that `prepare` made and no build has come across yet."""
    layout = store_layout(P)
    for rref in expected:
        folder = layout.realization(rref)
        if os.path.isdir(f"{folder}/debris"):
            os.chmod(folder, 0o755)
            shutil.rmtree(folder)


@pytest.mark.parametrize("occurrence", OCCURRENCES)
@pytest.mark.parametrize("point", faults.POINTS)
def test_interrupted_there_the_same_process_goes_on(point: str, occurrence: int, P: StorageSettings, expected: list[RRef]) -> None:

    def body(line: Line) -> None:
        faults.set_hook(At(point, occurrence, interrupt))
        try:
            realize_all(P)
            line.say("whole")
        except KeyboardInterrupt:
            line.say("interrupted")
        faults.set_hook(None)
        line.say(" ".join(realize_all(P)))
        line.hear()

    with Peer(body) as peer:
        heard = peer.line.hear()
        assert heard == "interrupted" or (heard == "whole" and occurrence > 1)
        assert sorted(peer.line.hear().split()) == expected
        # What it says it has, others find, while it lives and when it is dead.
        assert set(in_child(lambda: recover(P))) == set(expected)
        peer.kill()
    assert in_child(lambda: recover(P)) == expected
    check_sound(P, expected)


def test_a_point_that_is_not_on_the_list_is_a_bug() -> None:
    def body(line: Line) -> None:
        faults.set_hook(lambda point: None)
        with pytest.raises(AssertionError, match="unknown fault point"):
            faults.reach("nowhere")

    with Peer(body) as peer:
        peer.end()
