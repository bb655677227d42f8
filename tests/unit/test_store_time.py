"""One time for all files of a store: nothing that is built on a realization can depend on when its files were written."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path as FsPath
from typing import Any

import pytest
from tests.old_stores import Link, OldStore
from tests.stores import new_store, output, stage, text_of, write_files

from pylightnix import (
    Build,
    Context,
    DRef,
    Path,
    Registry,
    RRef,
    StorageSettings,
    allrrefs,
    build_cattrs,
    build_outpath,
    build_outpaths,
    build_path,
    build_wrapper,
    command,
    fetchlocal,
    filehash,
    instantiate,
    match_latest,
    match_only,
    mkconfig,
    mkcontext,
    mkdrv,
    mknode,
    mkrealization,
    realize1,
    realizeMany,
    repl_build,
    repl_continueBuild,
    repl_realize,
    rref2path,
    rrefbstart,
    selfref,
    source,
    unpack,
)
from pylightnix.arch import spack, sunpack
from pylightnix.v0 import import_v0

pytestmark = pytest.mark.language

STORE_TIME_NS = 315_619_200_000_000_000
"""1980-01-02T00:00:00Z."""


def other_times(folder: str) -> dict[str, int]:
    """Return what of a folder, itself included, has another time than all files of a store have."""
    found = [folder]
    for top, folders, files in os.walk(folder):
        found += [os.path.join(top, name) for name in (*folders, *files)]
    times = {path: os.lstat(path).st_mtime_ns for path in found}
    return {path: time for path, time in times.items() if time != STORE_TIME_NS}


def check_times(rref: RRef | None, S: StorageSettings) -> None:
    assert rref is not None
    assert other_times(rref2path(rref, S)) == {}


def fill(folder: str) -> None:
    """Leave one of everything that a realization can hold."""
    os.makedirs(f"{folder}/sub/inner")
    os.mkdir(f"{folder}/empty")
    with open(f"{folder}/sub/inner/file", "w") as file:
        file.write("text")
    with open(f"{folder}/tool", "w") as file:
        file.write("#!")
    os.chmod(f"{folder}/tool", 0o755)
    os.symlink("nowhere", f"{folder}/dangling")
    os.symlink("sub", f"{folder}/link")
    os.link(f"{folder}/sub/inner/file", f"{folder}/hard")
    os.utime(f"{folder}/tool", (1, 1))
    os.utime(f"{folder}/sub/inner", (1, 1))


def fills(b: Build) -> None:
    for folder in build_outpaths(b):
        fill(folder)
        with open(f"{folder}/own", "w") as file:
            file.write(os.path.basename(folder))


def fills_raw(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Path]:
    folder = output(S, {"out.txt": "raw"})
    fill(folder)
    return [folder]


def main(r: Registry, nouts: int = 1) -> DRef:
    return mkdrv(mkconfig({"name": "all"}), match_latest(nouts), build_wrapper(fills, nouts=nouts), r)


def test_everything_in_a_realization_has_the_one_time(S: StorageSettings) -> None:
    rref = realize1(instantiate(main, S=S))
    assert {"context.json", "__buildstart__.txt", "__buildstop__.txt", "empty", "link"} <= set(os.listdir(rref2path(rref, S)))
    check_times(rref, S)
    assert not (rrefbstart(rref, S) or "").startswith("1980")  # when it was made is known all the same
    check_times(realize1(instantiate(lambda r: stage(r, realizer=fills_raw), S=S)), S)


def test_every_output_and_every_rebuild(S: StorageSettings) -> None:
    rrefs = [*realizeMany(instantiate(lambda r: main(r, 3), S=S)), *realizeMany(instantiate(lambda r: main(r, 3), S=S), force_rebuild=True)]
    assert len(set(rrefs)) > 3
    for rref in rrefs:
        check_times(rref, S)


@pytest.fixture
def files(tmp_path: FsPath) -> FsPath:
    """A folder to take files from, with an archive in it whose entries are of another time."""
    folder = tmp_path / "files"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub/a.txt").write_text("a")
    (folder / "sub/link").symlink_to("a.txt")
    with tarfile.open(folder / "packed.tar", "w") as archive:
        for name in ("top/late", "top/sub/early"):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = 4, 1_500_000_000
            archive.addfile(info, io.BytesIO(b"text"))
    return folder


STAGES: dict[str, Callable[[FsPath, Registry], DRef]] = {
    "mknode": lambda folder, r: mknode(r, {}, {"a": b"1", "b": b"2"}),
    "source": lambda folder, r: source(folder / "sub", r=r),
    "source of a file": lambda folder, r: source(folder / "sub/a.txt", r=r),
    "fetchlocal": lambda folder, r: fetchlocal(filehash(str(folder / "sub/a.txt")), str(folder / "sub/a.txt"), mode="as-is", r=r),
    "fetchlocal and unpack": lambda folder, r: fetchlocal(filehash(str(folder / "packed.tar")), str(folder / "packed.tar"), r=r),
    "unpack": lambda folder, r: unpack(folder / "packed.tar", r=r),
    "command": lambda folder, r: command(["cp", "-a", str(folder / "sub"), [selfref, "out"]], env={"PATH": os.defpath}, r=r),
}


def test_every_stage_of_the_library(S: StorageSettings, files: FsPath) -> None:
    for name, make in STAGES.items():
        rref = realize1(instantiate(lambda r, make=make: make(files, r), S=S))
        assert other_times(rref2path(rref, S)) == {}, name


def test_what_is_handed_over(S: StorageSettings, tmp_path: FsPath) -> None:
    dref, closure = instantiate(lambda r: stage(r, "given"), S=S)
    given = output(S, {"sub/out.txt": "given"})
    check_times(mkrealization(dref, mkcontext(), given, S), S)
    rh = repl_realize((dref, closure))
    b = repl_build(rh)
    fill(build_outpath(b))
    check_times(repl_continueBuild(b, rh), S)


def test_what_comes_from_another_store(S: StorageSettings, tmp_path: FsPath) -> None:
    other = new_store(tmp_path / "other")
    made = realize1(instantiate(main, S=other))
    spack([made], str(tmp_path / "packed"), S=other)
    sunpack(str(tmp_path / "packed"), S=S)
    check_times(made, S)
    old = OldStore(str(tmp_path / "old"))
    old.realization(old.derivation(name="old"), {"out.txt": "old", "sub/a": "a", "link": Link("sub/a")})
    import_v0(old.root, S)
    assert len(list(allrrefs(S))) == 2
    for rref in allrrefs(S):
        check_times(rref, S)


def archived(folder: str) -> bytes:
    """Return an archive of a folder as `tar` makes it, but for its metadata, which hold the times of the build."""
    names = ["context.json", "__buildstart__.txt", "__buildstop__.txt"]
    ran = subprocess.run(
        ["tar", "-C", folder, "--sort=name", *(f"--exclude=./{name}" for name in names), "-c", "."], stdout=subprocess.PIPE, check=True
    )
    return ran.stdout


def test_archives_and_copies_are_the_same_wherever_it_was_built(S: StorageSettings, tmp_path: FsPath) -> None:
    def only(r: Registry) -> DRef:
        return stage(r, realizer=fills_raw)

    here = rref2path(realize1(instantiate(only, S=S)), S)
    other = new_store(tmp_path / "other")
    there = rref2path(realize1(instantiate(only, S=other)), other)
    assert archived(here) == archived(there)
    subprocess.run(["cp", "-a", here, tmp_path / "copy"], check=True)
    assert other_times(str(tmp_path / "copy")) == {}


MAKEFILE = """\
configure: configure.ac
\techo automake is missing; exit 1
all: configure
\tcp configure.ac $(OUT)
"""


def test_make_takes_nothing_in_the_store_for_out_of_date(S: StorageSettings) -> None:
    def unpacks(b: Build) -> None:
        folder = build_outpath(b)
        write_files(folder, {"configure": "", "Makefile": MAKEFILE, "configure.ac": "source"})
        os.utime(f"{folder}/configure", (1, 1))  # as if it were unpacked long before its source

    def builds(b: Build) -> None:
        out = build_outpath(b)
        shutil.copytree(build_path(b, [build_cattrs(b).src]), f"{out}/work")
        subprocess.run(["make", "-C", f"{out}/work", "all", f"OUT={out}/result"], check=True)

    def made(r: Registry) -> DRef:
        src = mkdrv(mkconfig({"name": "src"}), match_only(), build_wrapper(unpacks), r)
        return mkdrv(mkconfig({"name": "made", "src": src}), match_only(), build_wrapper(builds), r)

    if shutil.which("make") is None:
        pytest.skip("there is no make")
    assert text_of(realize1(instantiate(made, S=S)), S, "result") == "source"


def test_modules_are_imported_from_a_realization(S: StorageSettings) -> None:
    """Compiled modules hold the time of their sources."""

    def compiles(b: Build) -> None:
        import compileall

        with open(f"{build_outpath(b)}/mod.py", "w") as file:
            file.write("VALUE = 3\n")
        assert compileall.compile_dir(build_outpath(b), quiet=1)

    rref = realize1(instantiate(lambda r: mkdrv(mkconfig({"name": "py"}), match_only(), build_wrapper(compiles), r), S=S))
    ran = subprocess.run(
        [sys.executable, "-c", "import mod; print(mod.VALUE)"],
        env={"PYTHONPATH": rref2path(rref, S)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == "3\n"
