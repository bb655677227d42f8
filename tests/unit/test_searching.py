"""Questions about a whole store: what takes the room, what is there, how two configs differ."""

from __future__ import annotations

import os
import time
from pathlib import Path as FsPath

import pytest
from tests.stores import Numbered, picture, stage, writes

from pylightnix import (
    DRef,
    Misuse,
    Registry,
    RRef,
    StorageSettings,
    alldrefs,
    current_registry,
    current_storage,
    diff,
    dref2path,
    drefcfgpath,
    du,
    find,
    fsstorage,
    instantiate,
    match_all,
    mkregistry,
    realize,
    realize1,
    rref2path,
)
from pylightnix.query import realization_starts

pytestmark = pytest.mark.language


def file_sizes(folder: str) -> int:
    return sum(os.lstat(os.path.join(top, name)).st_size for top, _, names in os.walk(folder) for name in names)


def test_room_is_that_of_all_files(S: StorageSettings) -> None:
    def main(r: Registry) -> list[DRef]:
        return [stage(r, "two", realizer=writes({"a/b": "12345"}, {"c": "1"}), matcher=match_all), stage(r, "lone")]

    (two, lone), _, context = realize(instantiate(main, S=S))
    unbuilt = instantiate(lambda r: stage(r, "unbuilt"), S=S)[0]
    usage = du(S)
    assert list(usage) == sorted([two, lone, unbuilt])
    assert usage[two][1] == {rref: file_sizes(rref2path(rref, S)) for rref in context[two] or []}
    assert usage[two][0] == file_sizes(dref2path(two, S))
    assert usage[unbuilt] == (os.path.getsize(drefcfgpath(unbuilt, S)), {})
    with current_storage(S):
        assert du() == usage


def test_an_empty_store_takes_nothing(S: StorageSettings) -> None:
    assert du(S) == {}
    assert find(S=S) == []


@pytest.fixture
def named(S: StorageSettings) -> dict[str, RRef]:
    return {name: realize1(instantiate(lambda r, name=name: stage(r, name), S=S)) for name in ("train", "train-big", "test")}


def test_by_name(S: StorageSettings, named: dict[str, RRef]) -> None:
    assert find(S=S) == sorted(named.values())
    assert find("train", S=S) == [named["train"]]
    assert find("train*", S=S) == sorted([named["train"], named["train-big"]])
    assert find("t[er]*", S=S) == sorted(named.values())
    assert find("TRAIN", S=S) == find("", S=S) == find("rain", S=S) == []


def test_by_stage_which_writes_nothing(S: StorageSettings, named: dict[str, RRef]) -> None:
    before = picture(S)
    r = mkregistry(S)
    with current_registry(r):
        assert find(lambda r: stage(r, "train", dep=stage(r, "new", x=1))) == [named["train"]]
        assert find(lambda r=None: stage(None, "other"), S=S) == []  # type: ignore[arg-type]  # it finds the current registry
        with pytest.raises(Misuse, match="gives 2"):
            find(lambda r: [stage(r, "train"), stage(r, "test")], S=S)
    assert not r.builders
    assert picture(S) == before


def test_d38_by_age(S: StorageSettings, named: dict[str, RRef]) -> None:
    starts = realization_starts(named.values(), S)
    middle = starts[named["train-big"]]
    since = {rref for rref, started in starts.items() if started >= middle}
    assert set(find(newer=middle, S=S)) == since != set(named.values())
    assert find(newer=time.time() + 3600, S=S) == []
    assert find(newer=-3600, S=S) == sorted(named.values())
    assert find("train*", newer=-3600, S=S) == sorted([named["train"], named["train-big"]])


def test_the_age_is_that_of_the_latest_build(S: StorageSettings) -> None:
    build = Numbered(texts=["same", "same"])
    closure = instantiate(lambda r: stage(r, realizer=build), S=S)
    rref = realize1(closure)
    first = realization_starts([rref], S)[rref]
    assert realize1(closure, force_rebuild=True) == rref
    assert find(newer=first + 1e-6, S=S) == [rref]


def test_d41_how_two_configs_differ(
    S: StorageSettings, capsys: pytest.CaptureFixture[str], tmp_path: FsPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    one = instantiate(lambda r: stage(r, "one", x=1, y=[1]), S=S)[0]
    two = realize1(instantiate(lambda r: stage(r, "one", x=2, y=[1]), S=S))
    before = picture(S)
    diff(one, two, S)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"--- {drefcfgpath(one, S)}"
    assert said[1].startswith(f"+++ {fsstorage(S)}/")
    assert [line for line in said[2:] if line[0] in "+-"] == ['-  "x": 1,', '+  "x": 2,']
    diff(one, lambda r: stage(r, "one", x=1, y=[1], new=True), S)
    assert '+  "new": true,' in capsys.readouterr().out
    diff(one, lambda r: stage(r, "one", x=1, y=[1]), S)
    assert capsys.readouterr().out == "", "equal configs"
    assert picture(S) == before
    with pytest.raises(Misuse, match="diff expects"):
        diff("text", one, S)  # type: ignore[arg-type]  # what a program may pass
    with pytest.raises(FileNotFoundError):
        diff(DRef(f"dref:{'0' * 32}-no"), one, S)
    assert len(list(alldrefs(S))) == 2
