"""What says who built each realization."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path as FsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.stores import is_served, new_store, stage, writes

from pylightnix import RRef, StorageSettings, allrrefs, instantiate, mkSS, realize1, rmref, rref2path
from pylightnix.arch import spack, sunpack
from pylightnix.query import realization_info, rrefdata
from pylightnix.storage import store_layout
from pylightnix.store.layout import StoreLayout
from pylightnix.store.provenance import Provenance, parse_provenance, provenance_text, read_provenance
from pylightnix.store.set_aside import all_set_aside

pytestmark = pytest.mark.language

texts = st.none() | st.text()
times = st.floats(allow_nan=False, allow_infinity=False)
provenances = st.builds(
    Provenance,
    uid=st.none() | st.integers(min_value=0, max_value=2**32),
    builder=st.text(),
    host=st.text(),
    started=times,
    stopped=times,
    realizer_digest=texts,
    build=texts,
    isolation=texts,
)


@given(provenances)
def test_what_is_written_is_read(provenance: Provenance) -> None:
    assert parse_provenance(provenance_text(provenance)) == provenance


def is_ours(data: bytes) -> bool:
    try:
        parse_provenance(data)
    except ValueError:
        return False
    return True


@given(st.binary() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda value: json.dumps(value).encode()))
def test_anything_else_is_none_of_ours(data: bytes) -> None:
    assert not is_ours(data)


@given(provenances, st.data())
def test_a_part_of_one_is_none(provenance: Provenance, data: st.DataObject) -> None:
    text = provenance_text(provenance).rstrip()
    assert not is_ours(text[: data.draw(st.integers(0, len(text) - 1))])


def test_it_says_what_the_index_says(S: StorageSettings) -> None:
    rref = realize1(instantiate(stage, S=S))
    info, said = realization_info(rref, S), read_provenance(store_layout(S).provenance(rref))
    assert info is not None
    assert said is not None
    assert (said.build is not None) == is_served(S)
    expected = Provenance(os.geteuid(), info.builder, info.host, info.started, info.stopped, info.realizer_digest)
    assert replace(said, build=None) == expected
    assert rrefdata(rref, S) == [f"{rref2path(rref, S)}/out.txt"]


def test_an_artifact_may_have_any_name(S: StorageSettings) -> None:
    rref = realize1(instantiate(lambda r: stage(r, realizer=writes({"provenance.json": '{"uid": 3}'})), S=S))
    assert sorted(os.listdir(rref2path(rref, S))) == ["context.json", "provenance.json"]
    assert rrefdata(rref, S) == [f"{rref2path(rref, S)}/provenance.json"]


def test_it_is_sealed_and_goes_with_the_realization(S: StorageSettings) -> None:
    rref = realize1(instantiate(stage, S=S))
    path = store_layout(S).provenance(rref)
    assert stat.S_IMODE(os.stat(path).st_mode) & 0o222 == 0
    rmref(rref, S)
    assert os.listdir(store_layout(S).provenances) == []
    assert realize1(instantiate(stage, S=S)) == rref
    assert read_provenance(path) is not None


def test_what_was_left_of_another_gives_way(S: StorageSettings) -> None:
    rref = realize1(instantiate(stage, S=S))
    path = store_layout(S).provenance(rref)
    for leave in (lambda: FsPath(path).write_text("cut"), lambda: os.makedirs(f"{path}/deep"), lambda: os.symlink("/etc/hostname", path)):
        rmref(rref, S)
        leave()
        assert realize1(instantiate(stage, S=S)) == rref
        assert read_provenance(path) is not None


@pytest.mark.embedded_only("a daemon does the same by the same function")
def test_one_that_cannot_be_removed_holds_up_nothing(S: StorageSettings) -> None:
    rref = realize1(instantiate(stage, S=S))
    path = store_layout(S).provenance(rref)
    if subprocess.run(["chattr", "+i", path], check=False, capture_output=True).returncode:
        pytest.skip("this file system, or this user, makes nothing immutable")
    try:
        rmref(rref, S)
        assert list(allrrefs(S)) == []
        assert [entry.was for entry in all_set_aside(store_layout(S))] == [path]
        assert realize1(instantiate(stage, S=S)) == rref
        assert list(allrrefs(S)) == [rref]
    finally:
        subprocess.run(["chattr", "-i", path], check=True)
    rmref(rref, S)
    assert os.listdir(store_layout(S).provenances) == []


def test_it_stays_with_the_trees_wherever_the_state_is() -> None:
    usual = StoreLayout(storage="/r/store-v1", tmp="/r/tmp", state="/r")
    rref = RRef(f"rref:{'1' * 32}-{'2' * 32}-name")
    assert usual.provenance(rref) == f"/r/provenance/{'1' * 32}-{'2' * 32}.json"
    assert replace(usual, state="/elsewhere").provenance(rref) == usual.provenance(rref)
    assert replace(usual, storage="/s/trees", state="/s/trees.state").provenances == "/s/trees.state/provenance"


@pytest.mark.parametrize("odd", [lambda path: path.mkdir(), lambda path: path.symlink_to("/etc/hostname"), os.mkfifo])
def test_what_is_no_file_is_none(tmp_path: FsPath, odd: Callable[[FsPath], None]) -> None:
    odd(tmp_path / "said.json")
    assert read_provenance(str(tmp_path / "said.json")) is None


def test_what_comes_from_elsewhere_says_so(S: StorageSettings, tmp_path: FsPath) -> None:
    D = new_store(tmp_path / "to")
    rref = realize1(instantiate(stage, S=S))
    spack([rref], str(tmp_path / "archive"), S)
    sunpack(str(tmp_path / "archive"), D)
    here, there = read_provenance(store_layout(S).provenance(rref)), read_provenance(store_layout(D).provenance(rref))
    assert here is not None
    assert there is not None
    assert (there.uid, there.host, there.started) == (None, here.host, here.started)
    assert mkSS(str(tmp_path / "to")) == D
