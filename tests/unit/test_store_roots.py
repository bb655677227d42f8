"""What may name a store, and which store it names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import pylightnix
from pylightnix import (
    InvalidStorage,
    Misuse,
    Registry,
    StorageSettings,
    allrrefs,
    assert_valid_storage,
    current_storage,
    fsinit,
    fsroot,
    fsstorage,
    fstmpdir,
    instantiate,
    mknode,
    mkregistry,
    mkSS,
    realize1,
    rref2path,
    setstorage,
)
from pylightnix.storage import root_in


class Folder(NamedTuple):
    """A path of somebody's own."""

    text: str

    def __fspath__(self) -> str:
        return self.text


def node(r: Registry) -> pylightnix.DRef:
    return mknode(r, {}, {"a": b"a"})


@pytest.mark.parametrize("kind", [Path, Folder], ids=["pathlib", "own"])
def test_a_path_names_the_root_itself(kind: Any, tmp_path: Path, defaults: None) -> None:
    fsinit(kind(str(tmp_path / "store")))
    assert fsroot() == str(tmp_path / "store")
    assert sorted(os.listdir(tmp_path)) == ["store"]
    assert rref2path(realize1(instantiate(node))).startswith(f"{tmp_path}/store/store-v1/")


@pytest.mark.parametrize(("text", "root"), [("x", "x/_pylightnix"), ("my_pylightnix", "my_pylightnix"), ("x/_pylightnix", "x/_pylightnix")])
def test_a_text_keeps_its_meaning(text: str, root: str, tmp_path: Path, defaults: None) -> None:
    fsinit(str(tmp_path / text))
    assert fsroot() == str(tmp_path / root)
    fsinit(pylightnix.Path(str(tmp_path / text)), remove_existing=True)  # which is a text as well
    assert fsroot() == str(tmp_path / root)


def test_settings_take_paths(tmp_path: Path, defaults: None) -> None:
    by_texts = mkSS(str(tmp_path / "r"), str(tmp_path / "s"), str(tmp_path / "t"))
    by_paths = mkSS(tmp_path / "r", tmp_path / "s", tmp_path / "t")
    assert by_paths == by_texts
    assert all(isinstance(part, pylightnix.Path) for part in by_paths)
    by_hand = StorageSettings(tmp_path / "r", tmp_path / "s", tmp_path / "t")  # type: ignore[arg-type]  # as programs do
    fsinit(by_hand)
    assert (fsroot(), fsstorage(), fstmpdir()) == by_texts
    assert_valid_storage(by_hand)
    realize1(instantiate(node, S=by_hand))
    assert len(list(allrrefs(mkSS(fsroot(by_paths), fsstorage(by_paths), fstmpdir(by_paths))))) == 1
    with current_storage(by_hand):
        assert len(list(allrrefs())) == 1
    assert mkregistry(by_hand).S in (by_texts, by_hand)


def test_a_relative_path_means_the_working_folder_of_now(tmp_path: Path, defaults: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fsinit(Path("here"))
    monkeypatch.chdir("/")
    assert fsroot() == str(tmp_path / "here")


@pytest.mark.parametrize("what", ["/x", Path("/x"), 5, ("/x", None, None), {"root": "/x"}])
def test_what_are_no_settings_is_refused_in_words(what: Any, defaults: None) -> None:
    for use in (lambda: instantiate(node, S=what), lambda: list(allrrefs(what)), lambda: setstorage(what), lambda: fsroot(what)):
        with pytest.raises(Misuse, match="S expects the settings of a store, found") as caught:
            use()
        assert ("write S=mkSS('/x')" in str(caught.value)) == isinstance(what, (str, Path))


def test_a_store_is_found_in_the_folder_that_fsinit_was_given(tmp_path: Path) -> None:
    above = tmp_path / "x"
    assert root_in(above) == root_in(str(above)) == str(above), "where there is none"
    fsinit(str(above), use_as_default=False)
    assert root_in(above) == str(above / "_pylightnix")
    assert root_in(above / "_pylightnix") == str(above / "_pylightnix")
    fsinit(above, use_as_default=False)
    assert root_in(above) == str(above), "what is there itself counts"


def test_an_error_names_the_store_that_is_there(tmp_path: Path) -> None:
    fsinit(str(tmp_path / "x"), use_as_default=False)
    with pytest.raises(InvalidStorage, match=f"there is one in {tmp_path}/x/_pylightnix"):
        list(allrrefs(mkSS(tmp_path / "x")))
    with pytest.raises(InvalidStorage, match="make one with fsinit"):
        list(allrrefs(mkSS(tmp_path / "y")))


def run(*command: object) -> subprocess.CompletedProcess[str]:
    tool, *arguments = map(str, command)
    return subprocess.run([Path(sys.executable).parent / tool, *arguments], capture_output=True, text=True, timeout=60)


def test_the_command_line_finds_it_and_says_so(tmp_path: Path, defaults: None) -> None:
    fsinit(str(tmp_path / "x"))
    rref = realize1(instantiate(node))
    told = f"there is no store in {tmp_path}/x; using the one in {tmp_path}/x/_pylightnix"
    child = run("pylightnix", "--store", tmp_path / "x", "find")
    assert child.returncode == 0, child.stderr
    assert rref in child.stdout
    assert told in child.stderr
    direct = run("pylightnix", "--store", tmp_path / "x" / "_pylightnix", "find")
    assert (direct.stdout, direct.stderr) == (child.stdout, "")
    assert os.listdir(tmp_path / "x") == ["_pylightnix"], "no store was made beside it"


def test_the_daemon_finds_it_and_says_so(tmp_path: Path, defaults: None) -> None:
    fsinit(str(tmp_path / "x"))
    child = run("pylightnixd", "--store", tmp_path / "x", "--exit-when-idle", "0")
    assert child.returncode == 0, child.stderr
    assert f"there is no store in {tmp_path}/x; using the one in {tmp_path}/x/_pylightnix" in child.stderr
    assert os.listdir(tmp_path / "x") == ["_pylightnix"]
