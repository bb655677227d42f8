"""The store as one uses it in a shell: list, read, remove, look around, make links."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path as FsPath
from typing import Any

import pytest
from tests.stores import Notes, Numbered, check_error, check_trash, output, picture, stage, text_of, unharmed, writes

from pylightnix import (
    AmbiguousMatch,
    Build,
    Context,
    DRef,
    InUse,
    InvalidReference,
    MissingDerivation,
    MissingRealization,
    Misuse,
    NotRealized,
    Path,
    Registry,
    RRef,
    StorageSettings,
    StoreBusy,
    alldrefs,
    allrrefs,
    build_outpath,
    build_wrapper,
    catref,
    catrref_,
    current_storage,
    dref2path,
    fsstorage,
    instantiate,
    linkdref,
    linkrref,
    linkrrefs,
    lsdref_,
    lsref,
    lsrref,
    lsrref_,
    mkSS,
    parsetime,
    path2dref,
    path2rref,
    realize,
    realize1,
    rmref,
    rref2path,
    rrefbstart,
    shell,
    shellref,
    unrref,
)

pytestmark = pytest.mark.language

DIGITS = "0" * 32
NO_DREF, NO_RREF = DRef(f"dref:{DIGITS}-no"), RRef(f"rref:{DIGITS}-{DIGITS}-no")


@dataclass(frozen=True)
class Chain:
    """below <- above; both of one realization."""

    S: StorageSettings
    below: DRef
    above: DRef
    low: RRef
    high: RRef


def writes_odd_bytes(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Path]:
    folder = output(S, {"out.txt": "1\n2\n3", "sub/deep.txt": "deep\n"})
    with open(os.path.join(folder, "odd"), "wb") as file:
        file.write(b"\xff")
    return [folder]


@pytest.fixture
def chain(S: StorageSettings) -> Chain:
    def main(r: Registry) -> DRef:
        below = stage(r, "below", realizer=writes_odd_bytes)
        return stage(r, "above", dep=below)

    above, _, context = realize(instantiate(main, S=S))
    [below] = [dref for dref in context if dref != above]
    return Chain(S, below, above, (context[below] or [])[0], (context[above] or [])[0])


# --- listing and reading ------------------------------------------------------------------------------


def test_what_is_in_a_folder(chain: Chain) -> None:
    S = chain.S
    assert lsref(chain.low, S) == lsrref(chain.low, S=S) == ["context.json", "odd", "out.txt", "sub"]
    assert lsref(chain.below, S) == list(lsdref_(chain.below, S)) == sorted([unrref(chain.low)[0], "config.json"])
    assert lsrref(chain.low, ["sub"], S) == list(lsrref_(chain.low, ["sub"], S)) == ["deep.txt"]
    assert lsref(str(chain.low), S) == lsref(chain.low, S)  # type: ignore[arg-type]  # programs pass plain text


def test_d37_a_relative_root_is_listed_too(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chain.S.root is not None
    monkeypatch.chdir(os.path.dirname(chain.S.root))
    relative = mkSS(os.path.basename(chain.S.root))
    assert lsref(chain.low, relative) == lsref(chain.low, chain.S)
    assert lsref(chain.below, relative) == lsref(chain.below, chain.S)
    assert catref(chain.low, ["out.txt"], relative) == ["1\n", "2\n", "3"]


def test_stamps_are_listed(S: StorageSettings) -> None:
    rref = realize1(instantiate(lambda r: stage(r, realizer=build_wrapper(build_outpath)), S=S))
    assert lsref(rref, S) == ["__buildstart__.txt", "__buildstop__.txt", "context.json"]


def test_lines_of_a_file(chain: Chain) -> None:
    S, lines = chain.S, ["1\n", "2\n", "3"]
    assert catref(chain.low, ["out.txt"], S) == list(catrref_(chain.low, ["out.txt"], S)) == lines
    assert catref(str(chain.low), ["out.txt"], S) == lines  # type: ignore[arg-type]  # programs pass plain text
    assert catref([chain.below, "out.txt"], S=S) == catref([chain.below], ["out.txt"], S) == lines
    assert catref([chain.below, "sub", "deep.txt"], S=S) == ["deep\n"]
    assert catref(rref2path(chain.low, S), ["sub", "deep.txt"]) == ["deep\n"]
    assert catref(chain.low, ["odd"], S) == ["\udcff"]


def test_what_cannot_be_read(chain: Chain) -> None:
    S = chain.S
    calls: list[Callable[[], object]] = [
        lambda: catref(chain.low, ["absent"], S),
        lambda: catref(chain.low, ["sub"], S),
        lambda: catref(rref2path(chain.low, S), [], S),
        lambda: catref(rref2path(chain.low, S), ["absent"], S),
        lambda: lsrref(chain.low, ["absent"], S),
        lambda: lsrref(chain.low, ["out.txt"], S),
        lambda: catref(["x"], [], S),
        lambda: catref(7, [], S),  # type: ignore[arg-type]  # what a program may pass
    ]
    for call in calls:
        with pytest.raises(AssertionError) as caught:
            call()
        assert isinstance(caught.value, Misuse)


def test_d39_a_refpath_means_the_only_realization(S: StorageSettings) -> None:
    build = Numbered()
    dref, closure = instantiate(lambda r: stage(r, realizer=build), S=S)
    with pytest.raises(NotRealized):
        catref([dref, "out.txt"], S=S)
    realize(closure)
    assert catref([dref, "out.txt"], S=S) == ["1"]
    realize(closure, force_rebuild=True)
    with pytest.raises(AmbiguousMatch):
        catref([dref, "out.txt"], S=S)


@pytest.mark.parametrize("text", ["", "text", "dref:x", f"dref:{DIGITS}", f"rref:{DIGITS}-x", "/"])
def test_what_is_no_reference(S: StorageSettings, text: str) -> None:
    for call in (lsref, rmref):
        with pytest.raises(InvalidReference) as caught:
            call(text, S)  # type: ignore[arg-type]  # what a program may pass
        check_error(caught.value, InvalidReference, "invalid-reference", 2, repr(text))


def test_what_is_not_in_the_store(S: StorageSettings) -> None:
    for call in (lsref, rmref, shell):
        with pytest.raises(MissingDerivation):
            call(NO_DREF, S)
        with pytest.raises(MissingRealization):
            call(NO_RREF, S)
    with pytest.raises(MissingDerivation):
        linkdref(NO_DREF, S=S)
    with pytest.raises(MissingRealization):
        linkrref(NO_RREF, S=S)


# --- removing -----------------------------------------------------------------------------------------


def test_a_realization_is_removed_with_its_tree_and_its_row(chain: Chain) -> None:
    rmref(chain.high, chain.S)
    assert list(allrrefs(chain.S)) == [chain.low]
    assert lsref(chain.above, chain.S) == ["config.json"]
    check_trash(chain.S)
    with pytest.raises(MissingRealization):
        rmref(chain.high, chain.S)


def test_a_derivation_is_removed_with_all_its_realizations(S: StorageSettings) -> None:
    build = Numbered()
    closure = instantiate(lambda r: stage(r, realizer=build), S=S)
    for _ in range(3):
        realize(closure, force_rebuild=True)
    rmref(closure[0], S)
    assert (list(alldrefs(S)), list(allrrefs(S))) == ([], [])
    assert os.listdir(fsstorage(S)) == []
    assert text_of(realize1(closure), S) == "4", "a closure that was made before is realized all the same"


def test_d45_what_others_need_is_not_removed(chain: Chain) -> None:
    with unharmed(chain.S):
        with pytest.raises(InUse) as caught:
            rmref(chain.low, chain.S)
        check_error(caught.value, InUse, "in-use", 1, chain.low, chain.high)
        assert caught.value.users == {chain.low: [chain.high]}
        with pytest.raises(InUse) as caught:
            rmref(chain.below, chain.S)
        assert caught.value.users == {chain.low: [chain.high], chain.below: [chain.above]}
    rmref(chain.high, chain.S)
    with pytest.raises(InUse) as caught:
        rmref(chain.below, chain.S)
    assert caught.value.users == {chain.below: [chain.above]}
    rmref(chain.low, chain.S)
    rmref(chain.above, chain.S)
    rmref(chain.below, chain.S)
    assert not {chain.above, chain.below} & set(alldrefs(chain.S))


@pytest.mark.embedded_only("a daemon removes while others build")
def test_nothing_is_removed_by_a_realizer_that_runs(chain: Chain) -> None:
    seen = Notes()

    def removes(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Any]:
        with pytest.raises(StoreBusy) as caught:
            rmref(chain.high, chain.S)
        seen.append(caught.value)
        return writes()(S, dref, context, rarg)

    realize(instantiate(lambda r: stage(r, "removes", realizer=removes), S=chain.S))
    assert "this process" in str(seen[0])
    assert chain.high in list(allrrefs(chain.S))


def test_a_tree_that_the_index_does_not_know_can_be_removed(chain: Chain) -> None:
    stray = RRef(f"rref:{DIGITS}-{chain.above[5:]}")
    os.makedirs(f"{rref2path(stray, chain.S)}/debris")
    os.chmod(rref2path(stray, chain.S), 0o555)
    rmref(stray, chain.S)
    assert not os.path.lexists(rref2path(stray, chain.S))


def test_a_row_whose_tree_is_gone_can_be_removed(chain: Chain) -> None:
    os.chmod(rref2path(chain.high, chain.S), 0o755)
    os.rename(rref2path(chain.high, chain.S), f"{chain.S.root}/moved")
    rmref(chain.high, chain.S)
    assert list(allrrefs(chain.S)) == [chain.low]


# --- looking around -----------------------------------------------------------------------------------


@pytest.fixture
def where(tmp_path: FsPath, monkeypatch: pytest.MonkeyPatch) -> FsPath:
    """A shell that writes its folder into a file, which is returned."""
    path, said = tmp_path / "my-shell", tmp_path / "where"
    path.write_text(f"#!/bin/sh\npwd -P >{said}\nexit 3\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("SHELL", str(path))
    return said


def test_a_shell_in_each_place(chain: Chain, where: FsPath, tmp_path: FsPath) -> None:
    S = chain.S
    file = tmp_path / "file"
    file.write_text("")
    places: list[tuple[Any, str]] = [
        (None, fsstorage(S)),
        (chain.low, rref2path(chain.low, S)),
        (chain.below, dref2path(chain.below, S)),
        (str(tmp_path), str(tmp_path)),
        (str(file), str(tmp_path)),
    ]
    for place, folder in places:
        for call in (shell, shellref):
            call(place, S)
            assert where.read_text() == f"{folder}\n"
            where.unlink()
    with pytest.raises(Misuse, match="shell expects"):
        shell("nowhere", S)


def test_a_shell_in_a_build(S: StorageSettings, where: FsPath) -> None:
    folders = Notes()

    def looks(b: Build) -> None:
        shell(b)
        folders.append(build_outpath(b))

    realize(instantiate(lambda r: stage(r, realizer=build_wrapper(looks)), S=S))
    assert where.read_text() == f"{folders[0]}\n"


def test_the_shell_of_everybody(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHELL", raising=False)
    reading, writing = os.pipe()
    os.write(writing, b"exit 0\n")
    os.close(writing)
    saved = os.dup(0)
    try:
        os.dup2(reading, 0)
        shell(chain.low, chain.S)
    finally:
        os.dup2(saved, 0)
        os.close(saved)
        os.close(reading)


# --- links --------------------------------------------------------------------------------------------


def test_links_are_relative_and_lead_there(chain: Chain, tmp_path: FsPath) -> None:
    S = chain.S
    folder, other = tmp_path / "links", tmp_path / "other"
    folder.mkdir()
    other.symlink_to("links")
    before = picture(S)
    link = linkrref(chain.high, str(folder), S=S)
    assert link == f"{folder}/_rref__above"
    assert not os.readlink(link).startswith("/")
    assert path2rref(link) == chain.high
    assert os.path.samefile(link, rref2path(chain.high, S))
    assert os.path.samefile(linkrref(chain.low, str(other), "%(N)s-here", S), rref2path(chain.low, S))
    assert path2dref(linkdref(chain.above, str(folder), S=S)) == chain.above
    assert sorted(os.listdir(folder)) == ["_rref__above", "_rref_above", "below-here"]
    assert picture(S) == before


def test_a_link_in_the_working_folder_takes_the_place_of_an_old_one(
    chain: Chain, tmp_path: FsPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with current_storage(chain.S):
        for rref in (chain.low, chain.high, chain.high):
            assert path2rref(linkrref(rref, format="result")) == rref
        assert linkrrefs([chain.low, chain.high]) == ["./_rref__below", "./_rref__above"]
    (tmp_path / "file").write_text("kept")
    with pytest.raises(FileExistsError):
        linkrref(chain.low, format="file", S=chain.S)
    assert (tmp_path / "file").read_text() == "kept"


def test_the_time_in_the_name_of_a_link(S: StorageSettings, tmp_path: FsPath) -> None:
    rref = realize1(instantiate(lambda r: stage(r, "timed", realizer=build_wrapper(build_outpath)), S=S))
    name = os.path.basename(linkrref(rref, str(tmp_path), S=S))
    assert name == f"_rref_{rrefbstart(rref, S)}_timed"
    assert parsetime(name.removeprefix("_rref_").removesuffix("_timed")) is not None
