"""The index is made anew from trees, and says what the lost one said."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path as FsPath
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.soundness import check_sound
from tests.stores import check_usable, index_rows, new_store, refuses, stage, writes

from pylightnix import (
    DRef,
    Registry,
    RRef,
    StorageSettings,
    allrrefs,
    dirrm,
    instantiate,
    match_some,
    mknode,
    realize,
    realize1,
    realizeMany,
    rootrrefs,
    rref2path,
)
from pylightnix.context import realization_hash
from pylightnix.nar import tree_hash
from pylightnix.query import realization_info, realization_starts
from pylightnix.storage import store_layout
from pylightnix.store import reindex as module
from pylightnix.store.faults import set_hook
from pylightnix.store.index_file import has_trees
from pylightnix.store.layout import METADATA_NAMES
from pylightnix.store.reindex import Reindexed, reindex
from pylightnix.store.store import open_store_alone

pytestmark = pytest.mark.embedded_only("the index is made anew where no daemon has it")

EVERY: list[Callable[[str], None]] = []
"""What may become of an index."""


def loss(damage: Callable[[str], None]) -> Callable[[str], None]:
    EVERY.append(damage)
    return damage


@loss
def absent(path: str) -> None:
    os.unlink(path)


@loss
def empty(path: str) -> None:
    os.truncate(path, 0)


@loss
def half(path: str) -> None:
    os.truncate(path, os.path.getsize(path) // 2)


@loss
def garbage(path: str) -> None:
    FsPath(path).write_bytes(b"\xff" * 5000)


@loss
def holed(path: str) -> None:
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096 * 3)


@loss
def intact(path: str) -> None:
    pass


def chain(r: Registry) -> DRef:
    low = stage(r, "low", realizer=writes({"out.txt": "1"}, {"out.txt": "2"}), matcher=match_some(2))
    middle = stage(r, "middle", below=low)
    return stage(r, "high", of=[middle, low])


def enumerations(S: StorageSettings) -> Any:
    rrefs = list(allrrefs(S))
    return (rrefs, rootrrefs(S), realization_starts(rrefs, S), [realization_info(rref, S) for rref in rrefs])


def hurt(S: StorageSettings, damage: Callable[[str], None]) -> None:
    """Damage the index while nobody has it open, as another file for this process."""
    path = store_layout(S).index
    with open_store_alone(store_layout(S), "test") as store:
        store.index.checkpoint()
        store.index.close()
    shutil.copy(path, f"{path}.copy")
    os.rename(f"{path}.copy", path)
    damage(path)


def again(S: StorageSettings) -> Reindexed:
    return reindex(store_layout(S), 2)


@pytest.fixture
def S(tmp_path: FsPath) -> Iterator[StorageSettings]:
    S = new_store(tmp_path / "store")
    yield S
    dirrm(str(S.root))


@pytest.mark.parametrize("damage", EVERY)
def test_it_says_what_it_said(S: StorageSettings, damage: Callable[[str], None]) -> None:
    closure = instantiate(chain, S=S)
    rref = realize1(closure)
    before = enumerations(S)
    hurt(S, damage)
    report = again(S)
    assert enumerations(S) == before
    assert (report.left_out, report.incomplete, report.dropped, report.unknown) == ({}, {}, [], [])
    assert report.changed == (damage is not intact)
    assert (report.old_index is None) == (damage in (absent, intact))
    again_report = again(S)
    assert (again_report.changed, again_report.old_index) == (False, None)
    assert realize1(closure) == rref
    check_sound(S)
    check_usable(S)


@settings(max_examples=15)
@given(
    st.lists(st.tuples(st.integers(1, 3), st.lists(st.integers(0, 5), max_size=3), st.booleans()), min_size=1, max_size=5),
    st.sampled_from(EVERY),
)
def test_any_graph(
    tmp_path_factory: pytest.TempPathFactory, graph: list[tuple[int, list[int], bool]], damage: Callable[[str], None]
) -> None:
    S = new_store(tmp_path_factory.mktemp("any") / "store")

    def main(r: Registry) -> list[DRef]:
        drefs: list[DRef] = []
        for number, (nouts, below, same) in enumerate(graph):
            outputs = [{"out.txt": f"{number if not same else ''} {i}"} for i in range(nouts)]
            deps = sorted({drefs[i % number] for i in below}) if number else []
            drefs.append(stage(r, f"s{number}", realizer=writes(*outputs), matcher=match_some(1), deps=deps))
        return drefs

    realize(instantiate(main, S=S))
    before, rows = enumerations(S), {row[1] for row in index_rows(S) if row[0] == "code"}
    hurt(S, damage)
    again(S)
    assert enumerations(S) == before
    assert damage is absent or {row[1] for row in index_rows(S) if row[0] == "code"} <= rows
    check_sound(S)
    dirrm(str(S.root))


def test_later_builds_are_known_from_what_is_left_of_the_index(S: StorageSettings) -> None:
    closure = instantiate(chain, S=S)
    realize1(closure)
    realize1(closure, force_rebuild=True)
    before = enumerations(S)
    hurt(S, half)
    again(S)
    found = enumerations(S)
    assert found[:2] == before[:2]
    assert all(found[2][rref] <= started for rref, started in before[2].items())


def test_the_snapshot_is_asked_too(S: StorageSettings) -> None:
    closure = instantiate(chain, S=S)
    realize1(closure)
    realize1(closure, force_rebuild=True)
    before = enumerations(S)
    hurt(S, intact)
    path = store_layout(S).index
    shutil.copy(path, f"{path}.snapshot")
    os.unlink(path)
    again(S)
    assert enumerations(S) == before


def test_trees_of_before_have_no_provenance(S: StorageSettings) -> None:
    rref = realize1(instantiate(chain, S=S))
    for each in allrrefs(S):
        os.unlink(store_layout(S).provenance(each))
    before = enumerations(S)
    hurt(S, absent)
    report = again(S)
    assert report.unknown == report.entered == before[0]
    assert enumerations(S)[:2] == before[:2]
    assert rref in report.entered


def damaged(S: StorageSettings, rref: RRef) -> None:
    path = f"{rref2path(rref, S)}/out.txt"
    os.chmod(path, 0o644)
    FsPath(path).write_text("not that")
    os.chmod(path, 0o444)


@pytest.mark.parametrize("damage", EVERY)
def test_a_tree_that_does_not_fit_is_not_entered(S: StorageSettings, damage: Callable[[str], None]) -> None:
    top = realize1(instantiate(chain, S=S))
    (middle,) = (rref for rref in allrrefs(S) if rref.endswith("-middle"))
    damaged(S, middle)
    hurt(S, damage)
    report = again(S)
    assert list(report.left_out) == [middle]
    assert "its tree hash is" in report.left_out[middle]
    assert report.incomplete == {top: [middle]}
    assert middle not in list(allrrefs(S))
    assert os.path.isdir(rref2path(middle, S))
    assert again(S).left_out.keys() == {middle}
    assert realize1(instantiate(chain, S=S)) == top  # the stage is deterministic, so all is whole again
    assert again(S).left_out == {}
    check_sound(S)


def test_swapped_trees_fit_neither_name(S: StorageSettings) -> None:
    first, second = realizeMany(instantiate(lambda r: stage(r, realizer=writes({"a": "1"}, {"a": "2"}), matcher=match_some(2)), S=S))
    paths = [rref2path(rref, S) for rref in (first, second)]
    for path in paths:
        os.chmod(path, 0o755)
    os.rename(paths[0], f"{paths[0]}x")
    os.rename(paths[1], paths[0])
    os.rename(f"{paths[0]}x", paths[1])
    hurt(S, absent)
    assert again(S).left_out.keys() == {first, second}


def test_a_realization_whose_folder_is_gone_is_dropped(S: StorageSettings) -> None:
    top = realize1(instantiate(chain, S=S))
    dirrm(rref2path(top, S))
    report = again(S)
    assert (report.dropped, report.changed) == ([top], True)
    assert top not in list(allrrefs(S))
    check_sound(S)


def test_one_without_its_config_is_entered(S: StorageSettings) -> None:
    """Its stage, instantiated again, writes the config again; so nothing is lost."""
    top = realize1(instantiate(chain, S=S))
    os.unlink(f"{os.path.dirname(rref2path(top, S))}/config.json")
    hurt(S, absent)
    again(S)
    closure = instantiate(lambda r: stage(r, "high", realizer=refuses, of=_below(r)), S=S)
    assert realize1(closure) == top


def _below(r: Registry) -> list[DRef]:
    low = stage(r, "low", realizer=refuses, matcher=match_some(2))
    return [stage(r, "middle", realizer=refuses, below=low), low]


@pytest.mark.parametrize("point", ["reindex_batch", "index_moved_aside"])
def test_a_run_that_is_killed_is_finished_by_the_next(S: StorageSettings, point: str) -> None:
    realize1(instantiate(chain, S=S))
    before = enumerations(S)
    hurt(S, half)

    pid = os.fork()
    if pid == 0:
        module._BATCH = 1  # type: ignore[misc]  # of this child alone
        set_hook(lambda reached: os._exit(9) if reached == point else None)
        try:
            again(S)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert has_trees(store_layout(S))
    report = again(S)
    assert report.resumed == (1 if point == "reindex_batch" else len(before[0]))
    assert enumerations(S) == before
    check_sound(S)


def test_what_an_earlier_run_left_half_written_is_begun_anew(S: StorageSettings) -> None:
    realize1(instantiate(chain, S=S))
    before = enumerations(S)
    hurt(S, absent)
    FsPath(f"{store_layout(S).index}.new").write_bytes(b"SQLite format 3\0" + b"\xff" * 9000)
    assert again(S).resumed == 0
    assert enumerations(S) == before


def test_old_indexes_do_not_pile_up(S: StorageSettings) -> None:
    realize1(instantiate(chain, S=S))
    for _ in range(6):
        hurt(S, half)
        again(S)
    names = [name for name in os.listdir(os.path.dirname(store_layout(S).index)) if ".old-" in name and not name.endswith("-wal")]
    assert len(names) == 3
    assert sqlite3.connect(store_layout(S).index).execute("PRAGMA quick_check").fetchone() == ("ok",)


def test_an_index_from_an_older_backup_gets_what_came_since(S: StorageSettings) -> None:
    first = realize1(instantiate(lambda r: stage(r, "first"), S=S))
    hurt(S, intact)
    path = store_layout(S).index
    shutil.copy(path, f"{path}.backup")
    top = realize1(instantiate(chain, S=S))
    before = enumerations(S)
    hurt(S, lambda path: os.rename(f"{path}.backup", path))
    assert list(allrrefs(S)) == [first]
    assert again(S).changed
    assert enumerations(S) == before
    assert realize1(instantiate(chain, S=S)) == top
    check_sound(S)


def test_bytes_that_a_config_has_another_checksum_of_are_left_out(S: StorageSettings) -> None:
    right = realize1(instantiate(lambda r: mknode(r, {}, {"a": b"right"}), S=S))
    folder = rref2path(right, S)
    poisoned = f"{os.path.dirname(folder)}/draft"
    shutil.copytree(folder, poisoned)
    os.chmod(poisoned, 0o755)
    os.chmod(f"{poisoned}/a", 0o644)
    FsPath(poisoned, "a").write_bytes(b"wrong")
    os.chmod(f"{poisoned}/a", 0o444)
    rhash = realization_hash(tree_hash(poisoned, exclude_top=METADATA_NAMES).sha256, {}, {})
    os.rename(poisoned, f"{os.path.dirname(folder)}/{rhash}")  # so that its name is that of its bytes
    os.chmod(f"{os.path.dirname(folder)}/{rhash}", 0o555)
    hurt(S, absent)
    report = again(S)
    assert report.entered == [right]
    assert ["its config has" in problem for problem in report.left_out.values()] == [True], report.left_out
