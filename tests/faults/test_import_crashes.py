"""Killed, or interrupted, at every named point of an import: the store is sound, and the same import completes it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from tests.peers import Line, Peer
from tests.soundness import check_sound
from tests.stores import check_tmp, in_child, new_store, stage, writes

from pylightnix import DRef, Registry, RRef, StorageSettings, instantiate, match_all, realize
from pylightnix.arch import spack, sunpack
from pylightnix.query import allrrefs
from pylightnix.store import faults

POINTS: Final = (
    "folder_made",
    "taken_over",
    "derivation_written",
    "context_written",
    "before_pending",
    "after_pending",
    "before_rename",
    "after_rename",
    "before_sync",
    "after_sync",
    "before_valid",
    "after_valid",
)
"""What an import goes through, in this order of first coming there."""


def graph(r: Registry) -> list[DRef]:
    below = stage(r, "below", realizer=writes(*({"number": str(i), "folder/file": "deep"} for i in range(3))), matcher=match_all)
    return [stage(r, "above", deps=[below, stage(r, "beside", dep=below)]), stage(r, "leaf")]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[RRef]]:
    folder = tmp_path_factory.mktemp("archive")

    def make() -> list[RRef]:
        S = new_store(folder / "store")
        realize(instantiate(graph, S=S))
        found = list(allrrefs(S))
        spack(found, str(folder / "archive"), S)
        return found

    return str(folder / "archive"), in_child(make)


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


def test_an_import_goes_through_these_points(archive: tuple[str, list[RRef]], tmp_path: Path) -> None:
    def run() -> list[str]:
        S = new_store(tmp_path / "store")
        reached: list[str] = []
        faults.set_hook(reached.append)
        sunpack(archive[0], S)
        return reached

    assert tuple(dict.fromkeys(in_child(run))) == POINTS


@pytest.mark.parametrize("occurrence", [1, 3])
@pytest.mark.parametrize("point", POINTS)
def test_killed_there_the_store_is_sound(point: str, occurrence: int, archive: tuple[str, list[RRef]], tmp_path: Path) -> None:
    path, expected = archive
    S = new_store(tmp_path / "store")

    def body(line: Line) -> None:
        faults.set_hook(At(point, occurrence, die))
        sunpack(path, S)
        line.say("whole")

    with Peer(body) as peer:
        heard = peer.line.hear()
        killed = peer.wait() == -signal.SIGKILL
    assert killed or (heard == "whole" and occurrence > 1)
    valid = in_child(lambda: list(allrrefs(S)))
    assert set(valid) <= set(expected)
    assert killed or valid == expected
    check_sound(S, valid)
    complete(S, path, expected)


@pytest.mark.parametrize("point", POINTS)
def test_interrupted_there_the_same_process_goes_on(point: str, archive: tuple[str, list[RRef]], tmp_path: Path) -> None:
    path, expected = archive
    S = new_store(tmp_path / "store")

    def run() -> None:
        faults.set_hook(At(point, 1, interrupt))
        with pytest.raises(KeyboardInterrupt):
            sunpack(path, S)
        faults.set_hook(None)
        check_tmp(S)
        sunpack(path, S)
        assert list(allrrefs(S)) == expected

    in_child(run)
    complete(S, path, expected)


def complete(S: StorageSettings, path: str, expected: list[RRef]) -> None:
    def again() -> list[RRef]:
        sunpack(path, S)
        return list(allrrefs(S))

    assert in_child(again) == expected
    check_sound(S, expected)
