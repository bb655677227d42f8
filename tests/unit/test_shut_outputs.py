"""Outputs that a realizer made read-only, or shut altogether, taken over for a user who is not above modes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path as FsPath
from typing import Any

import pytest
from tests.client.daemons import environment
from tests.stores import AS_ROOT, OTHER_UID, check_tmp, in_child, new_store, stage, text_of

from pylightnix import (
    Build,
    BuildError,
    Context,
    DRef,
    Misuse,
    Path,
    PromiseException,
    Registry,
    RRef,
    StorageSettings,
    build_cattrs,
    build_outpath,
    build_outpaths,
    build_path,
    build_wrapper,
    either_paths,
    instantiate,
    match_latest,
    match_only,
    mkconfig,
    mkdrv,
    mkdrvE,
    realize1,
    realizeE,
    realizeMany,
    repl_build,
    repl_continueBuild,
    repl_realize,
    rref2path,
    rrefbstart,
    rrefbstop,
    selfref,
)
from pylightnix.storage import store_layout

EMBEDDED = pytest.mark.embedded_only("another user's process has no daemon of ours")


def fill(folder: str) -> None:
    """Leave files and folders, and shut all of them."""
    os.makedirs(f"{folder}/sub/inner")
    for name in ("out.txt", "sub/inner/file"):
        with open(f"{folder}/{name}", "w") as file:
            file.write("text")
        os.chmod(f"{folder}/{name}", 0)
    os.chmod(f"{folder}/sub/inner", 0)
    os.chmod(f"{folder}/sub", 0)
    os.chmod(folder, 0)


def check(rref: RRef, S: StorageSettings) -> None:
    assert text_of(rref, S) == "text"
    assert text_of(rref, S, "sub/inner/file") == "text"
    assert None not in (rrefbstart(rref, S), rrefbstop(rref, S))
    check_tmp(S)


def built(f: Any, r: Registry, name: str, nouts: int = 1, **config: Any) -> DRef:
    return mkdrv(mkconfig({"name": name, **config}), match_latest(nouts), build_wrapper(f, nouts), r)


def shuts(b: Build) -> None:
    for number, folder in enumerate(build_outpaths(b)):
        with open(f"{folder}/number", "w") as file:
            file.write(str(number))
        fill(folder)


def shuts_and_fails(b: Build) -> None:
    shuts(b)
    raise ValueError("on purpose")


def as_user(folder: FsPath, run: Any) -> None:
    """Run a function with a store as an ordinary user."""

    def child() -> None:
        S = new_store(folder / "store")
        run(S)
        check_tmp(S)

    in_child(child, uid=OTHER_UID if AS_ROOT else None)


def test_shut_outputs_are_taken_over(others_folder: FsPath) -> None:
    def run(S: StorageSettings) -> None:
        promises = {"out": [selfref, "out.txt"], "deep": [selfref, "sub", "inner", "file"]}
        for rref in realizeMany(instantiate(lambda r: built(shuts, r, "shut", 3, **promises), S=S)):
            check(rref, S)

    as_user(others_folder, run)


def test_what_is_missing_in_a_shut_output_is_told(others_folder: FsPath) -> None:
    def run(S: StorageSettings) -> None:
        with pytest.raises(PromiseException) as caught:
            realize1(instantiate(lambda r: built(shuts, r, "less", out=[selfref, "sub", "inner", "other"]), S=S))
        kept = caught.value.failed[0][0]
        assert os.path.isdir(kept)
        with pytest.raises(BuildError) as failed:
            realize1(instantiate(lambda r: built(shuts_and_fails, r, "fails"), S=S))
        assert type(failed.value.exception) is ValueError
        assert os.listdir(failed.value.outpaths[0])
        for number in range(12):  # older ones are removed
            with pytest.raises(BuildError):
                realize1(instantiate(lambda r, number=number: built(shuts_and_fails, r, "fails", number=number), S=S))
        assert len(os.listdir(store_layout(S).failed)) == 10

    as_user(others_folder, run)


def test_shut_outputs_of_eithers_and_by_hand(others_folder: FsPath) -> None:
    def run(S: StorageSettings) -> None:
        def failing(r: Registry) -> DRef:
            return mkdrvE(mkconfig({"name": "either"}), match_only(), build_wrapper(shuts_and_fails), r)

        left = either_paths(realizeE(instantiate(failing, S=S)))[0]
        assert text_of(left, S, "sub/inner/file") == "text"
        rh = repl_realize(instantiate(lambda r: built(shuts, r, "hand"), S=S))
        b = repl_build(rh)
        fill(build_outpath(b))
        rref = repl_continueBuild(b, rh)
        assert rref is not None
        check(rref, S)

    as_user(others_folder, run)


def test_outputs_deep_in_shut_folders(others_folder: FsPath) -> None:
    def deep(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Path]:
        folder = f"{S.tmpdir}/around/out"
        os.makedirs(folder)
        with open(f"{folder}/out.txt", "w") as file:
            file.write("text")
        os.chmod(folder, 0o500)
        os.chmod(f"{S.tmpdir}/around", 0)
        os.makedirs("left/here")
        os.chmod("left", 0)
        return [Path(folder)]

    as_user(others_folder, lambda S: text_of(realize1(instantiate(lambda r: stage(r, realizer=deep), S=S)), S))


# --- copies of what is in the store ---------------------------------------------------------------------


def copies(b: Build) -> None:
    """Copy all of a dependency into the output, modes and stamps and context too."""
    shutil.copytree(build_path(b, [build_cattrs(b).src]), build_outpath(b), dirs_exist_ok=True)


def writes(b: Build) -> None:
    with open(f"{build_outpath(b)}/out.txt", "w") as file:
        file.write("text")


def copied(r: Registry) -> DRef:
    return built(copies, r, "copied", src=built(writes, r, "src"))


@pytest.mark.language
def test_a_copy_of_a_whole_realization_may_be_an_output(S: StorageSettings) -> None:
    rref = realize1(instantiate(copied, S=S))
    assert text_of(rref, S) == "text"
    src = realize1(instantiate(lambda r: built(writes, r, "src"), S=S))
    assert text_of(rref, S, "context.json") != text_of(src, S, "context.json")
    assert rrefbstart(rref, S) != rrefbstart(src, S)
    check_tmp(S)


def test_a_copy_by_an_ordinary_user(others_folder: FsPath) -> None:
    as_user(others_folder, lambda S: text_of(realize1(instantiate(copied, S=S)), S))


@pytest.mark.language
def test_a_context_that_is_none_is_refused_as_before(S: StorageSettings) -> None:
    for text in ("{}", "[]", '{"deps": {"x": []}, "dynamic": {}}', "\0", "[" * 5000):

        def realizer(b: Build, text: str = text) -> None:
            with open(f"{build_outpath(b)}/context.json", "w") as file:
                file.write(text)

        with pytest.raises(Misuse, match="reserved name"):
            realize1(instantiate(lambda r, f=realizer, text=text: built(f, r, "named", text=text), S=S))


# --- with a daemon ---------------------------------------------------------------------------------------

PROGRAM = """
import os, shutil
from pylightnix import Build, autostage, build_outpath, selfref

@autostage(name="data", out=[selfref, "data"])
def data(out):
    os.mkdir(out)
    with open(f"{out}/a.csv", "w") as file: file.write("1")

@autostage(name="copy", src=data)
def copy(src, build: Build):
    shutil.copytree(src.out, build_outpath(build), dirs_exist_ok=True)

@autostage(name="shut", src=copy, out=[selfref, "sub", "file"], nouts=2)
def shut(src, out, rindex):
    os.mkdir(os.path.dirname(out))
    with open(out, "w") as file: file.write(str(rindex))
    os.chmod(out, 0)
    os.chmod(os.path.dirname(out), 0)
    os.chmod(os.path.dirname(os.path.dirname(out)), 0)
    os.mkdir("left")
    os.chmod("left", 0)

@autostage(name="bad", src=copy, out=[selfref, "missing"])
def bad(src, out):
    os.chmod(os.path.dirname(out), 0o500)
"""


@pytest.mark.parametrize("options", [(), ("--no-daemon",)])
def test_a_program_without_privileges(tmp_path: FsPath, options: tuple[str, ...]) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    without = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if AS_ROOT else []

    def build(target: str) -> subprocess.CompletedProcess[str]:
        argv = [*without, sys.executable, "-m", "pylightnix_client", "--store", str(tmp_path / "s"), "build", *options]
        return subprocess.run([*argv, f"{tmp_path}/program.py:{target}"], env=environment(), capture_output=True, text=True)

    ran = build("shut")
    assert ran.returncode == 0, ran.stderr
    ran = build("bad")
    assert ran.returncode == 1
    assert "promises files" in ran.stderr


@EMBEDDED
def test_modes_are_those_of_the_store_afterwards(S: StorageSettings) -> None:
    folder = rref2path(realize1(instantiate(lambda r: built(shuts, r, "shut"), S=S)), S)
    modes = {os.stat(os.path.join(top, name)).st_mode & 0o777 for top, folders, files in os.walk(folder) for name in [*folders, *files]}
    assert modes == {0o444, 0o555}
