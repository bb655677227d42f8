"""Damage of every kind is found, named with what needs it, and mended or moved aside; nothing else is touched."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import sqlite3
import tarfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path as FsPath

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.soundness import check_sound
from tests.stores import AS_ROOT, check_tmp, new_store, picture, refuses, stage, writes

from pylightnix import (
    DRef,
    Registry,
    RRef,
    StorageSettings,
    allrrefs,
    dirrm,
    dref2path,
    fetchlocal,
    fsinit,
    instantiate,
    match_some,
    mknode,
    realize1,
    realizeMany,
    rref2dref,
    rref2path,
    unpack,
)
from pylightnix.leftovers import leftovers
from pylightnix.rebuilding import can_rebuild, rebuild
from pylightnix.refs import unrref
from pylightnix.remote import mend
from pylightnix.storage import store_layout
from pylightnix.store.inspection import Damage, inspect
from pylightnix.store.mending import Outcome
from pylightnix.store.reindex import reindex
from pylightnix.verification import Verified, verify

pytestmark = pytest.mark.language

FILES = {"out.txt": "text", "sub/deep/inner.txt": "more", "empty": ""}


def chain(r: Registry) -> DRef:
    low = stage(r, "low", realizer=writes(FILES))
    middle = stage(r, "middle", below=low)
    return stage(r, "high", of=[middle])


def other(r: Registry) -> DRef:
    return stage(r, "other")


def named(S: StorageSettings, name: str) -> RRef:
    [found] = [rref for rref in allrrefs(S) if rref.endswith(f"-{name}")]
    return found


def run(S: StorageSettings, *refs: str) -> Verified:
    return verify(refs, S, jobs=2)


class Opened:
    """A realization's folder, writable for the block."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __enter__(self) -> str:
        for path, _, _ in list(os.walk(self.folder)):
            os.chmod(path, 0o755)
        return self.folder

    def __exit__(self, *error: object) -> None:
        for path, _, _ in list(os.walk(self.folder, topdown=False)):
            os.chmod(path, 0o555)


def flip(path: str, place: int = 1) -> None:
    mode = os.stat(path).st_mode
    os.chmod(path, 0o644)
    content = bytearray(FsPath(path).read_bytes())
    content[place % len(content)] ^= 1
    FsPath(path).write_bytes(content)
    os.chmod(path, mode & 0o777)


# --- damage: what is done to a folder, what it is called, what becomes of it --------------------------------


def flipped(folder: str) -> None:
    flip(f"{folder}/out.txt")


def emptied(folder: str) -> None:
    os.chmod(f"{folder}/sub/deep/inner.txt", 0o644)
    os.truncate(f"{folder}/sub/deep/inner.txt", 0)
    os.chmod(f"{folder}/sub/deep/inner.txt", 0o444)


def file_gone(folder: str) -> None:
    os.unlink(f"{folder}/empty")


def folder_gone(folder: str) -> None:
    shutil.rmtree(f"{folder}/sub")


def file_more(folder: str) -> None:
    FsPath(f"{folder}/sub/more").write_text("")
    os.chmod(f"{folder}/sub/more", 0o444)


def made_program(folder: str) -> None:
    os.chmod(f"{folder}/out.txt", 0o555)


def made_link(folder: str) -> None:
    os.unlink(f"{folder}/out.txt")
    os.symlink("empty", f"{folder}/out.txt")


def made_fifo(folder: str) -> None:
    os.unlink(f"{folder}/out.txt")
    os.mkfifo(f"{folder}/out.txt")


def renamed(folder: str) -> None:
    os.rename(f"{folder}/out.txt", f"{folder}/Out.txt")


def file_writable(folder: str) -> None:
    os.chmod(f"{folder}/sub/deep/inner.txt", 0o644)


def context_gone(folder: str) -> None:
    os.unlink(f"{folder}/context.json")


def context_flipped(folder: str) -> None:
    flip(f"{folder}/context.json")


def context_other(folder: str) -> None:
    os.chmod(f"{folder}/context.json", 0o644)
    dref, rref = f"dref:{'0' * 32}-x", f"rref:{'1' * 32}-{'0' * 32}-x"
    FsPath(f"{folder}/context.json").write_text(json.dumps({"deps": {dref: [rref]}, "dynamic": {}}))
    os.chmod(f"{folder}/context.json", 0o444)


def context_folder(folder: str) -> None:
    os.unlink(f"{folder}/context.json")
    os.makedirs(f"{folder}/context.json/in")


def provenance_cut(folder: str) -> None:
    path = provenance_of(folder)
    os.chmod(path, 0o644)
    os.truncate(path, 30)
    os.chmod(path, 0o444)


def provenance_of(folder: str) -> str:
    root, _, derivation, rhash = folder.rsplit("/", 3)
    return f"{root}/provenance/{rhash}-{derivation[:32]}.json"


DAMAGES: list[tuple[Callable[[str], None], Damage, Outcome]] = [
    *((each, Damage.tree, Outcome.quarantined) for each in (flipped, emptied, file_gone, folder_gone, file_more, made_program)),
    *((each, Damage.tree, Outcome.quarantined) for each in (made_link, made_fifo, renamed)),
    (file_writable, Damage.mode, Outcome.mended),
    *((each, Damage.context, Outcome.mended) for each in (context_gone, context_flipped, context_folder)),
    (context_other, Damage.tree, Outcome.mended),
    (provenance_cut, Damage.provenance, Outcome.mended),
]


@pytest.mark.parametrize(("hurt", "damage", "outcome"), DAMAGES)
def test_damage_is_found_and_mended(S: StorageSettings, hurt: Callable[[str], None], damage: Damage, outcome: Outcome) -> None:
    top, apart = realize1(instantiate(chain, S=S)), realize1(instantiate(other, S=S))
    low, middle = named(S, "low"), named(S, "middle")
    assert run(S).is_sound
    with Opened(rref2path(low, S)) as folder:
        hurt(folder)
    report = run(S)
    assert {rref: found.damage for rref, found in report.damaged.items()} == {low: damage}
    assert report.damaged[low].needed_by == tuple(sorted([middle, top]))
    assert (report.whole, report.incomplete, report.configs, report.strays, report.unlisted) == (3, {}, {}, [], [])
    assert unrref(low)[0] in report.damaged[low].problem
    assert list(run(S, apart).damaged) == []
    assert list(run(S, top).damaged) == list(run(S, rref2dref(low)).damaged) == [low]
    (mended,) = mend([low], S)
    assert (mended.rref, mended.outcome, mended.damage) == (low, outcome, damage.value)
    if outcome is Outcome.mended:
        assert run(S).is_sound
        assert mend([low], S)[0].outcome is Outcome.whole
        check_sound(S)
        return
    assert mended.moved_to is not None
    assert os.path.isdir(mended.moved_to)
    assert low not in list(allrrefs(S))
    assert run(S).incomplete == {middle: [low]}
    assert realize1(instantiate(chain, S=S)) == top  # the same comes out again, and all is whole
    assert run(S).is_sound
    assert os.path.isdir(mended.moved_to)  # what was moved aside is never deleted


def test_a_folder_that_is_gone(S: StorageSettings) -> None:
    top = realize1(instantiate(chain, S=S))
    low = named(S, "low")
    dirrm(rref2path(low, S))
    report = run(S)
    assert {rref: found.damage for rref, found in report.damaged.items()} == {low: Damage.missing}
    (mended,) = mend([low], S)
    assert (mended.outcome, mended.moved_to) == (Outcome.dropped, None)
    assert low not in list(allrrefs(S))
    assert realize1(instantiate(chain, S=S)) == top
    check_sound(S)


def test_swapped_trees(S: StorageSettings) -> None:
    both = realizeMany(instantiate(lambda r: stage(r, realizer=writes({"a": "1"}, {"a": "2"}), matcher=match_some(2)), S=S))
    paths = [rref2path(rref, S) for rref in both]
    for path in paths:
        os.chmod(path, 0o755)
    os.rename(paths[0], f"{paths[0]}x")
    os.rename(paths[1], paths[0])
    os.rename(f"{paths[0]}x", paths[1])
    for path in paths:
        os.chmod(path, 0o555)
    assert sorted(run(S).damaged) == sorted(both)
    assert {mended.outcome for mended in mend(both, S)} == {Outcome.quarantined}
    assert list(allrrefs(S)) == []
    assert len(run(S).damaged) == 0


def test_what_is_whole_stays_whatever_is_asked(S: StorageSettings) -> None:
    realize1(instantiate(chain, S=S))
    before = picture(S)
    assert {mended.outcome for mended in mend(list(allrrefs(S)), S)} == {Outcome.whole}
    assert picture(S) == before


def test_configs(S: StorageSettings) -> None:
    top = realize1(instantiate(chain, S=S))
    low, middle = named(S, "low"), named(S, "middle")
    os.unlink(f"{dref2path(rref2dref(low), S)}/config.json")
    os.chmod(f"{dref2path(rref2dref(middle), S)}/config.json", 0o644)
    flip(f"{dref2path(rref2dref(middle), S)}/config.json", 20)
    report = run(S)
    assert sorted(report.configs) == sorted([rref2dref(low), rref2dref(middle)])
    assert not report.is_sound
    assert report.damaged == {}
    assert realize1(instantiate(chain, S=S)) == top
    assert run(S).is_sound


def test_what_is_nothing_of_the_stores_is_named_and_no_damage(S: StorageSettings) -> None:
    top = realize1(instantiate(chain, S=S))
    storage = store_layout(S).storage
    FsPath(f"{storage}/notes").write_text("mine")
    os.makedirs(f"{rref2path(top, S)}x")
    os.makedirs(f"{os.path.dirname(rref2path(top, S))}/{'0' * 32}")
    report = run(S)
    assert report.strays == [f"{rref2path(top, S)}x", f"{storage}/notes", f"{os.path.dirname(rref2path(top, S))}/{'0' * 32}"]
    assert report.is_sound


def test_a_checksum_that_the_config_promises(S: StorageSettings) -> None:
    """A tree that fits its name and not its config: it came in before the check, or past it."""
    dref = instantiate(lambda r: mknode(r, {}, {"a": b"right"}), S=S)
    rref = realize1(dref)
    folder = rref2path(rref, S)
    with Opened(folder):
        os.chmod(f"{folder}/a", 0o644)
        FsPath(f"{folder}/a").write_bytes(b"wrong")
        os.chmod(f"{folder}/a", 0o444)
    assert run(S).damaged[rref].damage is Damage.tree
    found = inspect(store_layout(S), rref)
    assert found.digest is not None


@pytest.mark.parametrize("hurt", [flipped, file_gone, made_fifo])
def test_what_is_fetched_is_made_again(S: StorageSettings, tmp_path: FsPath, hurt: Callable[[str], None]) -> None:
    source = tmp_path / "out.txt"
    source.write_text("fetched text")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()

    def main(r: Registry) -> DRef:
        return stage(r, "above", of=fetchlocal(path=str(source), sha256=digest, mode="as-is", name="fetched", r=r))

    top = realize1(instantiate(main, S=S))
    rref = named(S, "fetched")
    if hurt is file_gone:
        FsPath(tmp_path / "empty").write_text("")
        hurt = lambda folder: os.unlink(f"{folder}/out.txt")  # noqa: E731
    with Opened(rref2path(rref, S)) as folder:
        hurt(folder)
    assert can_rebuild(rref, S)
    assert not can_rebuild(top, S)
    (mended,) = mend([rref], S)
    assert mended.outcome is Outcome.quarantined
    assert rebuild(rref, S, mended.moved_to) is None
    assert run(S).is_sound
    assert rref in list(allrrefs(S))
    check_tmp(S)  # a daemon answers first and tidies up then
    check_sound(S)


def test_what_comes_out_otherwise_now_is_not_put_there(S: StorageSettings, tmp_path: FsPath) -> None:
    archive = tmp_path / "data.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        (tmp_path / "a").write_text("a")
        tar.add(tmp_path / "a", "top/a")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()

    def main(r: Registry) -> DRef:
        fetched = fetchlocal(path=str(archive), sha256=digest, mode="as-is", name="fetched", r=r)
        return unpack(refpath=[fetched, "data.tar.gz"], name="unpacked", r=r)

    rref = realize1(instantiate(main, S=S))
    with Opened(rref2path(rref, S)) as folder:
        flip(f"{folder}/top/a", 0)
    (mended,) = mend([rref], S)
    assert rebuild(rref, S, mended.moved_to) is None  # from the fetched archive
    assert run(S).is_sound
    (mended,) = mend([named(S, "fetched")], S)
    assert mended.outcome is Outcome.whole
    with Opened(rref2path(named(S, "fetched"), S)) as folder:
        flip(f"{folder}/data.tar.gz")
    fetched = named(S, "fetched")
    (mended,) = mend([fetched], S)
    archive.write_bytes(gzip.compress(b"another"))
    assert "Checksum" in str(rebuild(fetched, S, mended.moved_to)) or "checksum" in str(rebuild(fetched, S, mended.moved_to))
    assert fetched not in list(allrrefs(S))
    assert run(S).incomplete == {rref: [fetched]}


def test_a_run_that_is_interrupted_is_gone_on_with(S: StorageSettings) -> None:
    count = 12
    realizeMany(instantiate(lambda r: stage(r, realizer=writes(*({"a": str(i)} for i in range(count))), matcher=match_some(count)), S=S))

    class Interrupted(Exception):
        pass

    def interrupt(done: int, total: int) -> None:
        assert total == count
        if done == 5:
            raise Interrupted

    with pytest.raises(Interrupted):
        verify([], S, jobs=1, told=interrupt)
    seen: list[tuple[int, int]] = []
    report = verify([], S, jobs=1, told=lambda done, total: seen.append((done, total)))
    assert (report.resumed, report.whole) == (5, count)
    assert seen[0] == (5, count)
    assert run(S).resumed == 0  # it came to its end
    with pytest.raises(Interrupted):
        verify([], S, jobs=1, told=interrupt)
    assert verify([], S, jobs=1, anew=True).resumed == 0


@pytest.mark.parametrize("head", ['{"verifying": [], "begun": 1.0}', '{"verifying": ["dref:x"], "begun": NOW}', "[]", "{}", "", "null"])
def test_what_an_old_run_or_another_one_found_says_nothing(S: StorageSettings, head: str) -> None:
    rref = realize1(instantiate(other, S=S))
    with Opened(rref2path(rref, S)) as folder:
        os.chmod(f"{folder}/out.txt", 0o644)
        FsPath(f"{folder}/out.txt").write_text("damaged")
        os.chmod(f"{folder}/out.txt", 0o444)
    progress = FsPath(store_layout(S).progress)
    progress.write_text(f"{head.replace('NOW', str(time.time()))}\n{rref}\n")
    assert list(run(S).damaged) == [rref]
    assert not progress.exists()
    progress.write_text(f'{{"verifying": [], "begun": {time.time()}}}\n{rref}\nrref:half')
    assert run(S).resumed == 1  # so it is read at all


@pytest.mark.embedded_only("a store is removed where no daemon has it")
def test_a_store_that_is_removed_leaves_nothing_of_this(S: StorageSettings) -> None:
    rref = realize1(instantiate(other, S=S))
    with Opened(rref2path(rref, S)) as folder:
        FsPath(f"{folder}/more").write_text("")
    mend([rref], S)
    layout = store_layout(S)
    assert leftovers(S)[layout.quarantine_folders[0]] > 0
    os.unlink(layout.index)
    assert realize1(instantiate(other, S=S)) == rref
    os.truncate(layout.index, 0)
    reindex(layout, 2)
    FsPath(layout.progress).write_text("")
    shutil.copy(layout.index, layout.snapshot)
    fsinit(S, remove_existing=True, use_as_default=False)
    assert not [name for name in os.listdir(layout.state) if name.startswith(("index", "verify", "quarantine"))]


def test_damage_is_found_again_by_a_run_that_goes_on(S: StorageSettings) -> None:
    realize1(instantiate(chain, S=S))
    low = named(S, "low")
    with Opened(rref2path(low, S)) as folder:
        flipped(folder)

    def interrupt(done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify([], S, jobs=1, told=interrupt)
    report = run(S)
    assert (list(report.damaged), report.resumed) == ([low], 2)
    dirrm(rref2path(named(S, "high"), S))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_flipped_bit_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    S = _stored(tmp_path_factory)
    rref = named(S, "low")
    folder = rref2path(rref, S)
    name = data.draw(st.sampled_from(["out.txt", "sub/deep/inner.txt", "context.json", "provenance"]))
    path = provenance_of(folder) if name == "provenance" else f"{folder}/{name}"
    before = FsPath(path).read_bytes()
    place, bit = data.draw(st.integers(0, len(before) - 1)), data.draw(st.integers(0, 7))
    changed = before[:place] + bytes([before[place] ^ 1 << bit]) + before[place + 1 :]
    _overwrite(path, changed)
    try:
        found = inspect(store_layout(S), rref)
        if name in ("out.txt", "sub/deep/inner.txt"):
            assert found.damage is Damage.tree
        else:  # what says the same in other bytes is none
            assert found.damage in (None, Damage.context, Damage.provenance, Damage.tree)
            assert found.damage is not None or found.is_whole
    finally:
        _overwrite(path, before)
    assert inspect(store_layout(S), rref).damage is None


_kept: dict[str, StorageSettings] = {}


def _stored(factory: pytest.TempPathFactory) -> StorageSettings:
    if "S" not in _kept:
        _kept["S"] = new_store(factory.mktemp("flipped") / "store")
        realize1(instantiate(chain, S=_kept["S"]))
    return _kept["S"]


def _overwrite(path: str, content: bytes) -> None:
    os.chmod(path, 0o644)
    FsPath(path).write_bytes(content)
    os.chmod(path, 0o444)


@pytest.mark.embedded_only("the index is a daemon's own while it has the store")
@pytest.mark.parametrize(("column", "value"), [("tree_hash", "0" * 64), ("context_key", "1" * 32), ("dref", f"dref:{'2' * 32}-x")])
def test_a_row_that_says_something_else(S: StorageSettings, column: str, value: str) -> None:
    top = realize1(instantiate(chain, S=S))
    with closing(sqlite3.connect(store_layout(S).index, isolation_level=None)) as db:
        db.execute(f"UPDATE realization SET {column} = ? WHERE rref = ?", (value, top))
    report = run(S)
    assert list(report.rows) == [top]
    assert value in report.rows[top]
    assert not report.is_sound
    assert reindex(store_layout(S), 2).changed
    assert run(S).is_sound
    check_sound(S)


@pytest.mark.embedded_only("the index is a daemon's own while it has the store")
def test_a_whole_tree_without_a_row_is_named_and_no_damage(S: StorageSettings) -> None:
    top = realize1(instantiate(chain, S=S))
    with closing(sqlite3.connect(store_layout(S).index, isolation_level=None)) as db:
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("DELETE FROM realization WHERE rref = ?", (top,))
    report = run(S)
    assert (report.unlisted, report.is_sound, report.strays) == ([top], True, [])
    assert mend([top], S)[0].outcome is Outcome.whole
    reindex(store_layout(S), 2)
    assert run(S).unlisted == []


def test_it_reads_only(S: StorageSettings) -> None:
    realize1(instantiate(chain, S=S))
    with Opened(rref2path(named(S, "low"), S)) as folder:
        flipped(folder)
    before = picture(S)
    run(S)
    assert picture(S) == before


def test_modes_of_all_kinds(S: StorageSettings) -> None:
    top = realize1(instantiate(chain, S=S))
    folder = rref2path(named(S, "low"), S)
    for path, mode in (("out.txt", 0o600), ("sub", 0o755), ("sub/deep/inner.txt", 0o000), ("", 0o700)):
        os.chmod(f"{folder}/{path}", mode)
    (found,) = run(S).damaged.values()
    assert found.damage is (Damage.mode if AS_ROOT else Damage.unreadable)
    (mended,) = mend([named(S, "low")], S)
    assert mended.outcome is Outcome.mended
    check_sound(S)
    assert realize1(instantiate(_refusing, S=S)) == top


def _refusing(r: Registry) -> DRef:
    low = stage(r, "low", realizer=refuses)
    return stage(r, "high", realizer=refuses, of=[stage(r, "middle", realizer=refuses, below=low)])


def test_nothing_is_damaged_in_an_empty_store(S: StorageSettings) -> None:
    report = run(S)
    assert (report.whole, report.is_sound) == (0, True)


_NODES = ("low", "middle", "high", "other")


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(_NODES), st.sampled_from([*(hurt for hurt, _, _ in DAMAGES), None]), min_size=1))
def test_any_damage_together(tmp_path_factory: pytest.TempPathFactory, damages: dict[str, Callable[[str], None] | None]) -> None:
    """What is named is what was damaged, all of it; and after mending and building, all is as it was."""
    S = new_store(tmp_path_factory.mktemp("together") / "store")
    realizer = writes(FILES)

    def main(r: Registry) -> DRef:
        low = stage(r, "low", realizer=realizer)
        middle = stage(r, "middle", realizer=realizer, below=low)
        return stage(r, "high", realizer=realizer, of=[middle, stage(r, "other", realizer=realizer)])

    top = realize1(instantiate(main, S=S))
    rrefs = {name: named(S, name) for name in _NODES}
    for name, hurt in damages.items():
        if hurt is None:
            dirrm(rref2path(rrefs[name], S))
            continue
        with Opened(rref2path(rrefs[name], S)) as folder:
            hurt(folder)
    expected = {rrefs[name]: next((d for each, d, _ in DAMAGES if each is hurt), Damage.missing) for name, hurt in damages.items()}
    report = run(S)
    assert {rref: found.damage for rref, found in report.damaged.items()} == expected
    outcomes = {mended.rref: mended.outcome for mended in mend(list(expected), S)}
    kinds = {hurt: outcome for hurt, _, outcome in DAMAGES}
    assert outcomes == {rrefs[name]: Outcome.dropped if hurt is None else kinds[hurt] for name, hurt in damages.items()}
    assert run(S).damaged == {}
    assert realize1(instantiate(main, S=S)) == top
    assert run(S).is_sound
    check_sound(S)
    dirrm(str(S.root))
