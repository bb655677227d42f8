"""Bytes whose checksum is in a config: checked on every way into a store."""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.old_stores import OldStore
from tests.stores import check_tmp, new_store, unharmed

from pylightnix import (
    BuildError,
    Closure,
    Context,
    DRef,
    InvalidArchive,
    InvalidOutput,
    Registry,
    RRef,
    StorageSettings,
    allrrefs,
    current_registry,
    fetchurl,
    fetchurl2,
    fstmpdir,
    instantiate,
    match_only,
    mkconfig,
    mkdrv,
    mknode,
    mkrealization,
    realize,
    selfref,
    source,
)
from pylightnix import Path as StorePath
from pylightnix.arch import copyclosure, spack, sunpack
from pylightnix.storage import store_layout
from pylightnix.store.commit import TakenOutput
from pylightnix.store.fixed_outputs import FolderReader, broken_promise, fixes_output
from pylightnix.store.store import open_store
from pylightnix.store.takeover import take_over
from pylightnix.v0 import import_v0

GOOD, BAD = b"the true file\n", b"POISON\n"
SUMS = {name: hashlib.new(name, GOOD).hexdigest() for name in ("sha1", "sha256", "sha512")}
URL = "http://127.0.0.1:9/data.bin"

Files = Mapping[str, Optional[bytes]]
"""A file's content by its path; None is a folder."""


def fill(folder: str, files: Files) -> str:
    for name, content in files.items():
        path = os.path.join(folder, name)
        os.makedirs(path if content is None else os.path.dirname(path), exist_ok=True)
        if content is not None:
            Path(path).write_bytes(content)
    return folder


def out(name: str) -> list[str]:
    return [selfref, name]


# --- what is fixed ----------------------------------------------------------------------------------------

FETCHED2 = {"name": "f", "sha256": SUMS["sha256"], "out": out("data.bin")}
AS_IS = {"name": "f", "url": URL, "sha1": SUMS["sha1"], "mode": "as-is", "out_path": out("data.bin")}
LOCAL = {"name": "f", "envname": "DATA", "sha256": SUMS["sha256"], "mode": "", "out_path": out("data.bin")}
KEPT = {"name": "f", "url": URL, "sha256": SUMS["sha256"], "mode": "unpack"}
NODE = {"name": "n", "__artifacts__": {"data.bin": SUMS["sha256"]}, "more": [1]}

FIXED: dict[str, Any] = {"fetchurl2": FETCHED2, "fetchurl": AS_IS, "fetchlocal": LOCAL, "mknode": NODE}
FREE: dict[str, Any] = {
    "no checksum": {"name": "x", "out": out("data.bin")},
    "unpacked, and the archive left out": {**KEPT, "mode": "unpack,remove"},
    "unpack": {"name": "unpack", "path": "/a.tar", "sha256": SUMS["sha256"], "out": out("data.bin")},
    "unpack of a refpath": {"name": "unpack", "refpath": ["dref:x", "a"], "sha256": SUMS["sha256"], "out": out("data.bin")},
    "a checksum of something else, with the place of that": {**FETCHED2, "url": URL},
    "an item that is no checksum": {**FETCHED2, "sha256": "yes"},
    "a checksum and no output": {"name": "x", "sha256": SUMS["sha256"]},
    "a deeper output": {**FETCHED2, "out": [selfref, "sub", "data.bin"]},
    "an autostage": {**FETCHED2, "__source__": "0" * 64},
    "a command": {**FETCHED2, "__command__": {}},
    "a text": "config",
}
OTHER: dict[str, Files] = {
    "other bytes": {"data.bin": BAD},
    "no bytes": {"data.bin": b""},
    "nothing": {},
    "a file more": {"data.bin": GOOD, "__init__.py": b""},
    "an empty folder more": {"data.bin": GOOD, "sub": None},
    "another name": {"data.bim": GOOD},
    "a folder of that name": {"data.bin/data.bin": GOOD},
}


@pytest.mark.parametrize("config", FIXED.values(), ids=FIXED.keys())
def test_only_the_bytes_of_the_config_do(config: Any, tmp_path: Path) -> None:
    assert fixes_output(config)
    good = fill(str(tmp_path / "good"), {"data.bin": GOOD, "context.json": b"{}", "__buildstart__.txt": b""})
    assert broken_promise(config, FolderReader(good)) is None
    for number, (what, files) in enumerate(OTHER.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert broken_promise(config, FolderReader(fill(str(folder), files))), what
    os.chmod(f"{good}/data.bin", 0o755)
    assert "plain" in str(broken_promise(config, FolderReader(good))), "an executable"
    os.rename(f"{good}/data.bin", tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", f"{good}/data.bin")
    assert "plain" in str(broken_promise(config, FolderReader(good))), "a link to the right bytes"


@pytest.mark.parametrize("algorithm", SUMS)
def test_every_checksum_that_is_given_counts(algorithm: str, tmp_path: Path) -> None:
    folder = FolderReader(fill(str(tmp_path), {"data.bin": GOOD}))
    config = {"name": "f", "out": out("data.bin"), **SUMS}
    assert broken_promise(config, folder) is None
    wrong = {**config, algorithm: hashlib.new(algorithm, BAD).hexdigest()}
    assert algorithm in str(broken_promise(wrong, folder))


@pytest.mark.parametrize("config", FREE.values(), ids=FREE.keys())
def test_what_is_not_of_our_stages_is_free(config: Any, tmp_path: Path) -> None:
    assert not fixes_output(config)
    assert broken_promise(config, FolderReader(fill(str(tmp_path), {"data.bin": BAD}))) is None


def test_an_archive_that_stays_beside_what_was_in_it_is_checked(tmp_path: Path) -> None:
    assert not fixes_output(KEPT), "what was unpacked cannot be checked without unpacking it again"
    folder = fill(str(tmp_path), {"sub/a": BAD, "b": BAD})
    assert "archive" in str(broken_promise(KEPT, FolderReader(folder)))
    assert broken_promise(KEPT, FolderReader(fill(folder, {"z.tar": GOOD}))) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)
NAMES = ("__artifacts__", "__tree__", "sha1", "sha256", "sha512", "mode", "url", "path", "envname", "refpath", "out", "out_path")
VALUES = JSON | st.sampled_from([SUMS["sha256"], SUMS["sha1"], out("data.bin"), out("../data.bin"), [selfref], "as-is", "unpack", ""])


@given(st.dictionaries(st.sampled_from(NAMES), VALUES | st.dictionaries(st.sampled_from(["data.bin", "../x", "", "a/b"]), VALUES)))
def test_no_config_does_harm(config: Any) -> None:
    class Empty:
        def names(self) -> list[str]:
            return []

        def checksum(self, name: str, algorithm: str) -> Optional[str]:
            raise AssertionError(f"asked for {name}, which is not there")

        def source_digest(self, name: str) -> str:
            raise AssertionError(f"asked for {name}, which is not there")

    assert isinstance(broken_promise(config, Empty()), (str, type(None)))
    if fixes_output(config):
        assert isinstance(broken_promise(config, Empty()), str) or config["__artifacts__"] == {}


def test_a_source_is_checked_as_a_whole(tmp_path: Path) -> None:
    S = new_store(tmp_path / "store")
    tree = fill(str(tmp_path / "tree"), {"a": GOOD, "sub/b": BAD, "empty": None})
    os.symlink("a", f"{tree}/sub/link")
    config = _config(lambda r: source(tree, r=r), S)
    holds = tmp_path / "holds"
    holds.mkdir()
    os.rename(tree, holds / "tree")
    assert fixes_output(config)
    assert broken_promise(config, FolderReader(str(holds))) is None
    os.chmod(holds / "tree" / "a", 0o755)
    assert "source digest" in str(broken_promise(config, FolderReader(str(holds))))
    os.chmod(holds / "tree" / "a", 0o644)
    (holds / "tree" / "sub" / "c").touch()
    assert "source digest" in str(broken_promise(config, FolderReader(str(holds))))


def _config(stage: Callable[[Registry], DRef], S: StorageSettings) -> Any:
    from pylightnix import drefcfg_

    return drefcfg_(instantiate(stage, S=S)[0], S).val


# --- the ways in ------------------------------------------------------------------------------------------


def fetched2(r: Registry) -> DRef:
    return fetchurl2(url=URL, sha256=SUMS["sha256"], r=r)


def fetched(r: Registry) -> DRef:
    return fetchurl(url=URL, sha512=SUMS["sha512"], mode="as-is", r=r)


def node(r: Registry) -> DRef:
    return mknode(r, {"of": "tests"}, {"data.bin": GOOD})


STAGES = {"fetchurl2": fetched2, "fetchurl": fetched, "mknode": node}
each_stage = pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES.keys())


def poisoned(root: Path, stage: Callable[[Registry], DRef]) -> tuple[StorageSettings, RRef]:
    """Return a store of somebody who put other bytes in it, past all checks, and what they are called."""
    S = new_store(root)
    dref = instantiate(stage, S=S)[0]
    with open_store(store_layout(S)) as store:
        folder = store.owner.make_folder()
        fill(folder, {"out/data.bin": BAD})
        parent = os.open(folder, os.O_RDONLY)
        digest = take_over(parent, "out", dref=dref, shown=f"{folder}/out")
        os.close(parent)
        taken = TakenOutput(f"{folder}/out", digest.sha256, digest.nar_bytes, digest.files)
        [rref] = store.place(dref, {}, [taken], started=1.0, stopped=2.0)
        store.flush()
        os.rmdir(folder)
    return S, rref


@pytest.mark.language
@each_stage
def test_an_archive_does_not_bring_other_bytes(S: StorageSettings, stage: Callable[[Registry], DRef], tmp_path: Path) -> None:
    foreign, rref = poisoned(tmp_path / "foreign", stage)
    spack([rref], str(tmp_path / "archive"), foreign)
    with pytest.raises(InvalidArchive, match=r"(?s)data\.bin.*has the sha.*its config has"):
        sunpack(str(tmp_path / "archive"), S)
    assert list(allrrefs(S)) == []
    check_tmp(S)


@pytest.mark.language
def test_a_copy_from_store_to_store_does_not_bring_other_bytes(S: StorageSettings, tmp_path: Path) -> None:
    foreign, rref = poisoned(tmp_path / "foreign", node)
    with pytest.raises(Exception, match=r"(?s)data\.bin.*has the sha.*its config has"):
        copyclosure([rref], foreign, S)
    assert list(allrrefs(S)) == []
    check_tmp(S)


@pytest.mark.language
@each_stage
def test_no_folder_with_other_bytes_is_inserted(S: StorageSettings, stage: Callable[[Registry], DRef]) -> None:
    dref = instantiate(stage, S=S)[0]
    folder = tempfile.mkdtemp(dir=fstmpdir(S))
    fill(folder, {"data.bin": BAD})
    with pytest.raises(InvalidOutput, match="its config has"):
        mkrealization(dref, {}, StorePath(folder), S)
    assert list(allrrefs(S)) == []
    assert Path(folder, "data.bin").read_bytes() == BAD, "it is back in its place, to be mended"
    os.chmod(f"{folder}/data.bin", 0o644)
    fill(folder, {"data.bin": GOOD})
    rref = mkrealization(dref, {}, StorePath(folder), S)
    assert list(allrrefs(S)) == [rref]


def liar(S: StorageSettings, dref: DRef, context: Context, rarg: Any) -> list[StorePath]:
    return [StorePath(fill(tempfile.mkdtemp(dir=fstmpdir(S)), {"data.bin": BAD}))]


class CannotTravel:
    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __call__(self, S: StorageSettings, dref: DRef, context: Context, rarg: Any) -> list[StorePath]:
        return liar(S, dref, context, rarg)


@pytest.mark.language
@pytest.mark.parametrize("realizer", [liar, CannotTravel()], ids=["built", "delivered"])
def test_no_realizer_of_another_kind_makes_other_bytes(S: StorageSettings, realizer: Any, tmp_path: Path) -> None:
    config = _config(node, new_store(tmp_path / "aside"))

    def stage(r: Registry) -> DRef:
        return mkdrv(mkconfig(config), match_only(), realizer, r)

    closure: Closure = instantiate(stage, S=S)[1]
    with pytest.raises((BuildError, InvalidOutput), match="its config has"):
        realize(closure)
    assert list(allrrefs(S)) == []
    check_tmp(S)


@pytest.mark.language
def test_an_old_store_does_not_bring_other_bytes(S: StorageSettings, tmp_path: Path) -> None:
    old = OldStore(str(tmp_path / "old"))
    good = old.realization(old.derivation(**NODE), {"data.bin": GOOD})
    old.realization(old.derivation(**{**NODE, "name": "bad"}), {"data.bin": BAD})
    report = import_v0(old.root, S)
    assert list(report.realizations) == [good]
    [refused] = report.refused()
    assert "its config has" in refused.reason
    check_tmp(S)


def test_what_is_right_still_goes_everywhere(tmp_path: Path) -> None:
    S = new_store(tmp_path / "a")
    tree = fill(str(tmp_path / "tree"), {"a": GOOD, "sub/b": BAD})
    local = str(tmp_path / "local.bin")
    Path(local).write_bytes(GOOD)

    def stage(r: Registry) -> list[DRef]:
        with current_registry(r):
            return [mknode(r, {}, {"x": GOOD}), source(tree, r=r), source(local, r=r), fetchurl2(local, r=r), mknode(r, {"e": 1})]

    closure = instantiate(stage, S=S)[1]
    realize(closure)
    rrefs = list(allrrefs(S))
    assert len(rrefs) == 5
    to = new_store(tmp_path / "b")
    with unharmed(S):
        copyclosure(rrefs, S, to)
    assert list(allrrefs(to)) == rrefs
