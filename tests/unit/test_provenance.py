"""What lies beside each tree and says who built it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path as FsPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.stores import is_served, new_store, stage, writes

from pylightnix import DRef, InvalidOutput, Path, StorageSettings, fstmpdir, instantiate, mkSS, realize1, rref2path
from pylightnix.arch import spack, sunpack
from pylightnix.nar import tree_hash
from pylightnix.query import realization_info, rrefdata
from pylightnix.store.layout import METADATA_NAMES
from pylightnix.store.provenance import Provenance, metadata_of, parse_provenance, provenance_text, read_provenance

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
    info, said = realization_info(rref, S), read_provenance(rref2path(rref, S))
    assert info is not None
    assert said is not None
    assert (said.build is not None) == is_served(S)
    expected = Provenance(os.geteuid(), info.builder, info.host, info.started, info.stopped, info.realizer_digest)
    assert replace(said, build=None) == expected
    assert rrefdata(rref, S) == [f"{rref2path(rref, S)}/out.txt"]


def test_it_changes_no_hash_and_does_not_come_along_in_copies(S: StorageSettings) -> None:
    made = realize1(instantiate(lambda r: stage(r, "same"), S=S))

    def copies(S: StorageSettings, dref: DRef, context: Any, rarg: Any) -> list[Path]:
        target = f"{fstmpdir(S)}/copy"
        shutil.copytree(rref2path(made, S), target)
        return [Path(target)]

    again = realize1(instantiate(lambda r: stage(r, "same", realizer=copies), S=S), force_rebuild=True)
    assert again == made


def test_a_file_of_the_users_may_not_have_its_name(S: StorageSettings) -> None:
    with pytest.raises(InvalidOutput, match="reserved name"):
        realize1(instantiate(lambda r: stage(r, realizer=writes({"provenance.json": '{"uid": 3}'})), S=S))


def test_an_artifact_of_this_name_from_before_is_one_still(tmp_path: FsPath) -> None:
    (tmp_path / "provenance.json").write_text('{"where": "from a laboratory"}')
    assert metadata_of(str(tmp_path)) == METADATA_NAMES - {"provenance.json"}
    (tmp_path / "provenance.json").write_bytes(provenance_text(Provenance(1, "me", "here", 1.0, 2.0)))
    assert metadata_of(str(tmp_path)) == METADATA_NAMES
    with_it = tree_hash(tmp_path)
    assert tree_hash(tmp_path, exclude_top=metadata_of(str(tmp_path))) != with_it


@pytest.mark.parametrize("odd", [lambda path: path.mkdir(), lambda path: path.symlink_to("/etc/hostname"), os.mkfifo])
def test_what_is_no_file_is_none(tmp_path: FsPath, odd: Callable[[FsPath], None]) -> None:
    odd(tmp_path / "provenance.json")
    assert read_provenance(str(tmp_path)) is None


def test_what_comes_from_elsewhere_says_so(S: StorageSettings, tmp_path: FsPath) -> None:
    D = new_store(tmp_path / "to")
    rref = realize1(instantiate(stage, S=S))
    spack([rref], str(tmp_path / "archive"), S)
    sunpack(str(tmp_path / "archive"), D)
    here, there = read_provenance(rref2path(rref, S)), read_provenance(rref2path(rref, D))
    assert here is not None
    assert there is not None
    assert (there.uid, there.host, there.started) == (None, here.host, here.started)
    assert mkSS(str(tmp_path / "to")) == D
