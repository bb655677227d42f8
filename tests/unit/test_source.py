"""The stage `source`, on a store of this process's own and through a daemon; what it is to those who use it."""

from __future__ import annotations

import ast
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.stores import AS_ROOT, OTHER_UID, check_error, in_child, needs_root, new_store, text_of

from pylightnix import (
    Build,
    BuildError,
    DRef,
    InvalidSource,
    Misuse,
    Registry,
    RRef,
    SourceChanged,
    StorageSettings,
    allrrefs,
    autostage,
    build_config,
    build_outpath,
    build_path,
    build_wrapper,
    drefcfg_,
    fsinit,
    instantiate,
    match_only,
    mkconfig,
    mkdrv,
    mklens,
    mkregistry,
    mkSS,
    realize1,
    rref2dref,
    rref2path,
    source,
)
from pylightnix.nar import tree_hash
from pylightnix.stages.source import SourceRealizer
from pylightnix.travel import pack_realizer

pytestmark = pytest.mark.language


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one of everything that a source may have."""
    top = tmp_path / "data"
    (top / "sub" / "empty").mkdir(parents=True)
    (top / "a.csv").write_text("a,b\n")
    (top / "run").write_text("#!/bin/sh\n")
    (top / "run").chmod(0o755)
    (top / "sub" / "large").write_bytes(os.urandom(3 << 20))
    (top / "link").symlink_to("a.csv")
    (top / "sub" / "away").symlink_to("/no/where")
    Path(os.fsdecode(os.fsencode(top) + b"/lat\xe9n")).write_text("x")
    return top


def make(S: StorageSettings, *args: Any, **kwargs: Any) -> RRef:
    return realize1(instantiate(source, *args, S=S, **kwargs))


def dref_of(S: StorageSettings, path: Any, exclude: Any = ()) -> DRef:
    return source(path, exclude=exclude, r=mkregistry(S))


def failure(S: StorageSettings, stage: Callable[[Registry], DRef]) -> BaseException:
    with pytest.raises(BuildError) as raised:
        realize1(instantiate(stage, S=S))
    assert raised.value.exception is not None
    return raised.value.exception


def test_a_folder_is_copied_as_it_is(S: StorageSettings, folder: Path) -> None:
    rref = make(S, folder)
    assert tree_hash(rref2path(rref, S) + "/data") == tree_hash(folder)
    assert make(S, str(folder)) == rref
    assert list(allrrefs(S)) == [rref]


def test_a_file_is_copied_as_it_is(S: StorageSettings, folder: Path) -> None:
    for name in ("a.csv", "run"):
        rref = make(S, folder / name)
        assert tree_hash(f"{rref2path(rref, S)}/{name}") == tree_hash(folder / name)


def test_a_link_that_is_named_is_followed(S: StorageSettings, folder: Path) -> None:
    (folder.parent / "named").symlink_to("data")
    rref = make(S, folder.parent / "named")
    assert tree_hash(rref2path(rref, S) + "/named") == tree_hash(folder)


def test_config(S: StorageSettings, folder: Path) -> None:
    rref = make(S, folder)
    config = drefcfg_(rref2dref(rref), S).val
    assert config.pop("__tree__")
    assert config == {"name": "source", "out": ["__self__", "data"]}
    assert make(S, folder, name="data").endswith("-data")
    assert mklens(rref, S=S).out.syspath == f"{rref2path(rref, S)}/data"


def test_equal_contents_are_equal_wherever_they_lie(S: StorageSettings, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "data").mkdir(parents=True)
        (tmp_path / name / "data" / "x").write_text("x")
    assert make(S, tmp_path / "one" / "data") == make(S, tmp_path / "two" / "data")


def test_relative_path(S: StorageSettings, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = make(S, folder)
    monkeypatch.chdir(folder)
    assert make(S, ".") == expected
    assert make(S, "../data/") == expected
    assert make(S, "sub/..") == expected


def test_what_depends_on_it_is_built_again_when_it_changes(S: StorageSettings, folder: Path) -> None:
    def notes_size(b: Build) -> None:
        with open(os.path.join(build_outpath(b), "size"), "w") as file:
            file.write(str(os.path.getsize(build_path(b, build_config(b).val["file"]))))

    def main(r: Registry) -> DRef:
        file = [source(folder, r=r), "data", "a.csv"]
        return mkdrv(mkconfig({"name": "size", "file": file}), match_only(), build_wrapper(notes_size), r)

    first = realize1(instantiate(main, S=S))
    assert realize1(instantiate(main, S=S)) == first
    (folder / "a.csv").write_text("other")
    second = realize1(instantiate(main, S=S))
    assert second != first
    assert Path(rref2path(second, S), "size").read_text() == "5"


@pytest.mark.embedded_only("its function is of the test's own module")
def test_an_autostage_takes_its_path(S: StorageSettings, folder: Path) -> None:
    found = []

    @autostage(name="use", data=lambda r: source(folder, r=r))
    def use(build: Build, data: Any) -> None:
        found.append(data.out)

    rref = realize1(instantiate(use, S=S))
    assert rref
    assert [os.path.basename(path) for path in found] == ["data"]


# --- what is left out -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        (["*.csv"], ["link", "run", "sub"]),
        (["sub"], ["a.csv", "link", "run"]),
        (["sub/"], ["a.csv", "link", "run"]),
        (["/run", "# a comment", "", "link"], ["a.csv", "sub"]),
        (["*", "!run"], ["run"]),
        (["link/"], ["a.csv", "link", "run", "sub"]),  # a link is no folder
    ],
)
def test_excluded(S: StorageSettings, folder: Path, exclude: list[str], left: list[str]) -> None:
    os.unlink(os.fsencode(folder) + b"/lat\xe9n")
    rref = make(S, folder, exclude=exclude)
    assert sorted(os.listdir(rref2path(rref, S) + "/data")) == left


def test_excluded_folders_are_not_looked_into(S: StorageSettings, folder: Path) -> None:
    rref = make(S, folder, exclude=["sub/", "!sub/large"])
    assert not os.path.lexists(rref2path(rref, S) + "/data/sub")
    os.mkfifo(folder / "sub" / "fifo")
    assert make(S, folder, exclude=["sub/"]) == make(S, folder, exclude=["/sub"])


@pytest.mark.embedded_only("nothing is built")
@pytest.mark.parametrize("exclude", ["*.csv", [3], ["\ud800"], 3])
def test_exclude_is_a_list_of_patterns(S: StorageSettings, folder: Path, exclude: Any) -> None:
    with pytest.raises(Misuse, match="gitignore"):
        dref_of(S, folder, exclude=exclude)


# --- what is refused ------------------------------------------------------------------------------------


def test_changed_after_it_was_instantiated(S: StorageSettings, folder: Path) -> None:
    def main(r: Registry) -> DRef:
        dref = source(folder, r=r)
        (folder / "sub" / "large").write_bytes(b"short")
        return dref

    error = failure(S, main)
    check_error(error, SourceChanged, "source-changed", 1, str(folder), "instantiate the stage again")
    assert list(allrrefs(S)) == []


def test_changed_in_a_folder_whose_name_is_not_utf8(S: StorageSettings, tmp_path: Path) -> None:
    top = os.fsencode(tmp_path) + b"/lat\xe9n"
    os.mkdir(top)
    path = Path(os.fsdecode(top), "x")
    path.write_text("x")

    def main(r: Registry) -> DRef:
        dref = source(path, r=r)
        path.write_text("y")
        return dref

    assert "lat\\xe9n/x: it changed" in str(failure(S, main))
    assert text_of(make(S, path), S, "x") == "y"


def test_gone_after_it_was_instantiated(S: StorageSettings, folder: Path) -> None:
    def main(r: Registry) -> DRef:
        dref = source(folder / "a.csv", r=r)
        (folder / "a.csv").unlink()
        return dref

    check_error(failure(S, main), InvalidSource, "invalid-source", 66, str(folder / "a.csv"), "No such file")


@pytest.mark.embedded_only("nothing is built")
def test_special_files(S: StorageSettings, folder: Path, tmp_path: Path) -> None:
    os.mkfifo(folder / "sub" / "fifo")
    with pytest.raises(InvalidSource, match=r"sub/fifo: it is a FIFO"):
        dref_of(S, folder)
    with pytest.raises(InvalidSource, match=r"sub/fifo: it is a FIFO"):
        dref_of(S, folder / "sub" / "fifo")
    (folder / "sub" / "fifo").unlink()
    os.chdir(folder)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
        with pytest.raises(InvalidSource, match=r"data/socket: it is a socket"):
            dref_of(S, folder)


@pytest.mark.embedded_only("nothing is built")
@pytest.mark.parametrize("path", ["no", "a.csv/x", "/", "nul\0", b"\xff", "context.json", "loop"])
def test_paths_that_cannot_be_sources(S: StorageSettings, folder: Path, path: Any) -> None:
    (folder / "context.json").write_text("{}")
    (folder / "loop").symlink_to("loop")
    (Path(os.fsdecode(os.fsencode(folder) + b"/\xff"))).write_text("x")
    with pytest.raises(InvalidSource) as raised:
        dref_of(S, os.path.join(os.fsencode(folder), path) if isinstance(path, bytes) else os.path.join(folder, path))
    raised.value.where.encode()
    with pytest.raises(Misuse, match="path of a file or folder"):
        dref_of(S, 3)


@pytest.mark.parametrize("name", ["store", "st*re", "st[o]re", "st\\ore"])
def test_a_folder_that_holds_the_store(tmp_path: Path, name: str) -> None:
    project = tmp_path / "project"
    (project / "sub").mkdir(parents=True)
    (project / "x").write_text("x")
    S = new_store(project / "sub" / name)
    (tmp_path / "link").symlink_to("project")
    for path in (project, project / "sub", tmp_path / "link"):
        with pytest.raises(InvalidSource, match="it holds the store") as raised:
            dref_of(S, path)
        advised = ast.literal_eval(re.findall(r"exclude=(\[.*?'\])", str(raised.value))[0])
        rref = make(S, path, exclude=advised)
        copied = [name for _, folders, files in os.walk(f"{rref2path(rref, S)}/{path.name}") for name in folders + files]
        assert copied == ([] if path.name == "sub" else ["sub", "x"])
        assert make(S, path, exclude=["*"])
    with pytest.raises(InvalidSource, match="folder of the store itself"):
        dref_of(S, S.root)
    assert make(S, rref2path(make(S, project / "x"), S))  # it lies in the store, but does not hold it


def test_a_storage_apart_that_is_not_excluded(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    S = mkSS(str(tmp_path / "root"))._replace(storage=mkSS(str(tmp_path / "project" / "storage")).root)
    fsinit(S, use_as_default=False)
    for exclude, left in ((["/storage.state/"], "/storage/"), (["/storage/"], "/storage.state/")):
        with pytest.raises(InvalidSource, match=rf"it holds the store.*exclude=\['{left}'\]"):
            dref_of(S, tmp_path / "project", exclude=exclude)


@needs_root
@pytest.mark.embedded_only("nothing is built")
def test_what_may_not_be_read_is_named(S: StorageSettings, others_folder: Path) -> None:
    assert AS_ROOT
    (others_folder / "data").mkdir()
    (others_folder / "data").chmod(0o755)
    for name, make_one in (("file", Path.touch), ("folder", Path.mkdir)):
        secret = others_folder / "data" / name
        make_one(secret)
        secret.chmod(0)

        def asked(path: Path = others_folder / "data") -> str:
            from pylightnix.sources import Memo, source_digest

            with pytest.raises(InvalidSource) as raised:
                source_digest(str(path), (), Memo(str(others_folder / "memo")))
            return str(raised.value)

        assert f"{secret}: it cannot be read: Permission denied" in in_child(asked, uid=OTHER_UID)
        secret.rename(others_folder / name)


@pytest.mark.embedded_only("it is about what travels")
def test_its_realizer_stays_with_the_caller(S: StorageSettings) -> None:
    packed = pack_realizer(SourceRealizer("/x", ()))
    assert (packed.kind, packed.blob) == ("caller", None)
    assert packed.reason
