"""Trees deeper than any path, walked with few descriptors; and what failed builds left, which is counted and collected."""

from __future__ import annotations

import os
import resource
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path as FsPath

import pytest
from tests.client.daemons import environment
from tests.stores import AS_ROOT, OTHER_UID, check_tmp, check_trash, in_child, new_store, stage

from pylightnix import (
    Build,
    BuildError,
    DRef,
    Registry,
    StorageSettings,
    allrrefs,
    build_outpath,
    build_wrapper,
    dirchmod,
    dirhash,
    dirrm,
    dirsize,
    du,
    gc,
    instantiate,
    match_only,
    mkconfig,
    mkdrv,
    realize1,
    rmref,
    rref2path,
    source,
)
from pylightnix.arch import spack, sunpack
from pylightnix.leftovers import failed_builds, leftovers
from pylightnix.nar import tree_hash
from pylightnix.storage import store_layout
from pylightnix.store.durability import sync_trees
from pylightnix.walking import walk

LEVELS = 250
LONG = "d" * 255


def deepen(folder: str, levels: int, name: str) -> None:
    """Make folders in folders, with a file in the middle and one at the end."""
    fd = os.open(folder, os.O_RDONLY)
    for level in range(levels):
        os.mkdir(name, dir_fd=fd)
        deeper = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = deeper
        if level in (levels // 2, levels - 1):
            file = os.open("file", os.O_WRONLY | os.O_CREAT, 0o666, dir_fd=fd)
            os.write(file, b"12345")
            os.close(file)
    os.close(fd)


@contextmanager
def few_descriptors() -> Iterator[None]:
    """Let this process open some hundred files at most."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 130, hard))
    before = len(os.listdir("/proc/self/fd"))
    try:
        yield
        assert len(os.listdir("/proc/self/fd")) <= before + 12  # a store that was opened stays so
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def deep(b: Build) -> None:
    deepen(build_outpath(b), LEVELS, LONG)


def main(r: Registry) -> DRef:
    return mkdrv(mkconfig({"name": "deep"}), match_only(), build_wrapper(deep), r)


@pytest.mark.language
def test_deep_realizations_are_measured_moved_and_removed(S: StorageSettings, tmp_path: FsPath) -> None:
    rref = realize1(instantiate(main, S=S))
    with few_descriptors():
        sizes = du(S)
        assert next(iter(sizes.values()))[1][rref] >= 10
        spack([rref], str(tmp_path / "packed"), S=S)
        other = new_store(tmp_path / "other")
        sunpack(str(tmp_path / "packed"), S=other)
        assert list(allrrefs(other)) == [rref]
        assert tree_hash(rref2path(rref, other)) == tree_hash(rref2path(rref, S))
        sync_trees([rref2path(rref, other)], store_layout(other).storage)
        rmref(rref, other)
        os.mkdir(tmp_path / "keep")
        gc([str(tmp_path / "keep")], interactive=False, verbose=False, S=S)
    assert list(allrrefs(S)) == []
    check_trash(S)
    check_tmp(S)


@pytest.mark.language
def test_deep_sources_and_folders_of_links(S: StorageSettings, tmp_path: FsPath) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "keep").mkdir()
    deepen(str(tmp_path / "src"), LEVELS, LONG)
    deepen(str(tmp_path / "keep"), LEVELS, LONG)
    with few_descriptors():
        rref = realize1(instantiate(lambda r: source(tmp_path / "src", r=r), S=S))
        fd = os.open(tmp_path / "keep", os.O_RDONLY)
        for _ in range(30):
            deeper = os.open(LONG, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = deeper
        os.symlink(rref2path(rref, S), "link", dir_fd=fd)
        os.close(fd)
        gc([str(tmp_path / "keep")], interactive=False, verbose=False, S=S)
        assert list(allrrefs(S)) == [rref]
    for name in ("src", "keep"):
        dirrm(str(tmp_path / name))


def test_folders_of_any_depth(tmp_path: FsPath) -> None:
    top = str(tmp_path / "top")
    for levels, name in ((1, "x"), (47, LONG), (48, "y"), (49, "y"), (5000, "z")):
        os.mkdir(top)
        deepen(top, levels, name)
        with few_descriptors():
            assert sum(1 for _ in walk(top)) == levels + 1
            assert dirsize(top) == (5 if levels == 1 else 10)
            assert len(dirhash(top)) == 64
            dirchmod(top, "ro")
            dirchmod(top, "rw")
            dirrm(top)
        assert os.listdir(tmp_path) == []


def test_walks_go_up_and_down_as_they_are_told(tmp_path: FsPath) -> None:
    """Side branches below and above what is open at once; folders that are left out; links that are not followed."""
    for branch in range(3):
        os.mkdir(tmp_path / f"b{branch}")
        deepen(str(tmp_path / f"b{branch}"), 70, "x")
        for level in (10, 30, 60):
            deepen(str(tmp_path / f"b{branch}" / "/".join("x" * level)), 55, "y")
    os.symlink(tmp_path, tmp_path / "b0/loop")
    expected = sorted(top for top, _, _ in os.walk(tmp_path))
    with few_descriptors():
        assert sorted(folder.path for folder in walk(str(tmp_path))) == expected
        seen = 0
        for folder in walk(str(tmp_path)):
            seen += 1
            folder.folders[:] = [name for name in folder.folders if name != "y"]
            if "loop" in folder.others:
                assert stat.S_ISLNK(os.stat("loop", dir_fd=folder.fd, follow_symlinks=False).st_mode)
        assert seen == 1 + 3 * 71
        for folder in walk(str(tmp_path)):  # which may be left in the middle
            if folder.path.count("/y") > 50:
                break
        del folder


# --- what failed builds left ------------------------------------------------------------------------------


def failing(b: Build) -> None:
    out = build_outpath(b)
    deepen(out, 5000 if b.dref.endswith("-deep") else 2, "x")
    with open(f"{out}/half", "wb") as file:
        file.write(bytes(100_000))
    os.mkfifo(f"{out}/fifo")
    os.mkdir(f"{out}/shut")
    with open(f"{out}/shut/file", "wb") as file:
        file.write(bytes(1000))
    os.chmod(f"{out}/shut", 0)
    raise ValueError("on purpose")


def fail(S: StorageSettings, name: str) -> str:
    """Have a build fail, and return the folder that it left."""
    with pytest.raises(BuildError) as caught:
        realize1(instantiate(lambda r: mkdrv(mkconfig({"name": name}), match_only(), build_wrapper(failing), r), S=S))
    return os.path.dirname(caught.value.outpaths[0])


@pytest.mark.language
def test_what_failed_builds_left_is_counted_and_collected(S: StorageSettings, tmp_path: FsPath) -> None:
    left = [fail(S, name) for name in ("one", "deep", "linked")]
    sizes = failed_builds(S)
    assert sorted(sizes) == sorted(left)
    assert all(101_010 <= size < 110_000 for size in sizes.values())
    assert leftovers(S) == {}
    (tmp_path / "keep").mkdir()
    (tmp_path / "keep/failure").symlink_to(f"{left[2]}/{os.listdir(left[2])[0]}/half")
    kept = realize1(instantiate(lambda r: stage(r, "kept"), S=S))
    (tmp_path / "keep/result").symlink_to(rref2path(kept, S))
    with few_descriptors():
        gc([str(tmp_path / "keep")], interactive=False, verbose=False, S=S)
    assert list(failed_builds(S)) == [left[2]]
    assert list(allrrefs(S)) == [kept]
    (tmp_path / "keep/failure").unlink()
    gc([str(tmp_path / "keep")], interactive=False, verbose=False, S=S)
    assert failed_builds(S) == {}
    assert os.listdir(os.path.dirname(left[0])) == []


def test_an_ordinary_user_collects_what_was_shut(others_folder: FsPath) -> None:
    def run() -> None:
        S = new_store(others_folder / "store")
        left = fail(S, "shut")
        assert failed_builds(S)[left] >= 101_010
        gc([], interactive=False, verbose=False, S=S)
        assert failed_builds(S) == {}

    in_child(run, uid=OTHER_UID if AS_ROOT else None)


def test_where_there_is_no_store_nothing_is_left(tmp_path: FsPath) -> None:
    from pylightnix import mkSS

    nowhere = mkSS(tmp_path / "nowhere")
    assert failed_builds(nowhere) == leftovers(nowhere) == {}


PROGRAM = """
import os
from pylightnix import autostage, selfref
@autostage(name="fills", out=[selfref, "out"])
def fills(out):
    with open(out, "wb") as file: file.write(bytes(300_000))
    raise OSError(28, "No space left on device")
"""


def test_commands_tell_and_remove_it(tmp_path: FsPath) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "keep").mkdir()

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "pylightnix_client", "--store", str(tmp_path / "s"), *arguments]
        return subprocess.run(argv, env=environment(), capture_output=True, text=True, cwd=tmp_path)

    assert run("build", "--no-daemon", "program.py:fills").returncode == 1
    said = run("du").stdout
    assert " of a failed build\n" in said
    assert said.splitlines()[-1].split()[0] == "293K"
    assert "/failed/" in run("gc", "--keep", "keep", "--dry-run").stdout
    collected = run("gc", "--keep", "keep", "--yes")
    assert collected.returncode == 0, collected.stderr
    assert "2 removed, 293K freed" in collected.stdout
    assert os.listdir(tmp_path / "s/failed") == []
