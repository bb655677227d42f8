"""A disk that is full, on a small file system of its own: what is said, and that room is all it takes to go on."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path as FsPath
from typing import Any

import pytest
from tests.stores import (
    check_error,
    check_tmp,
    check_usable,
    in_child,
    mount,
    needs_mounts,
    new_store,
    output,
    picture,
    refuses,
    stage,
    text_of,
    unharmed,
    writes,
)

from pylightnix import (
    Context,
    DRef,
    Path,
    Realizer,
    Registry,
    StorageSettings,
    StoreFull,
    allrrefs,
    fstmpdir,
    instantiate,
    realize,
    realize1,
)

pytestmark = pytest.mark.embedded_only("it fills a disk in a mount table of its own")

pytestmark = needs_mounts

FILL = "filler"


def fill(S: StorageSettings, *, but_bytes: int = 0, but_inodes: int | None = None) -> None:
    """Leave only so much room on the file system of the store."""
    folder = f"{S.root}/{FILL}"
    os.makedirs(folder, exist_ok=True)
    if but_inodes is not None:
        for number in range(os.statvfs(folder).f_ffree - but_inodes):
            os.mkdir(f"{folder}/{number}")
        return
    with open(f"{folder}/bytes", "ab", buffering=0) as file:
        info = os.statvfs(folder)
        wanted = info.f_bavail * info.f_bsize - but_bytes
        os.posix_fallocate(file.fileno(), 0, wanted)


def free(S: StorageSettings) -> None:
    folder = f"{S.root}/{FILL}"
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        (os.rmdir if os.path.isdir(path) else os.unlink)(path)
    os.rmdir(folder)


def on_a_small_disk(tmp_path: FsPath, run: Callable[[StorageSettings], object], size: str = "size=4m,nr_inodes=200") -> None:
    root = str(tmp_path / "small")
    os.mkdir(root)

    def child() -> None:
        mount("-t", "tmpfs", "-o", size, "none", root)
        run(new_store(root))

    in_child(child, own_mounts=True)


def check_full(error: object, S: StorageSettings, doing: str) -> None:
    check_error(error, StoreFull, "store-full", 74, "no space left", str(S.root), doing, "free some room", "run the same command again")


@pytest.mark.parametrize("what", ["bytes", "inodes"])
def test_while_a_derivation_is_written(tmp_path: FsPath, what: str) -> None:
    def run(S: StorageSettings) -> None:
        check_usable(S)
        config: dict[str, Any] = {"text": "x" * 20000}
        with unharmed(S):
            fill(S, **({"but_bytes": 8192} if what == "bytes" else {"but_inodes": 1}))
            with pytest.raises(StoreFull) as caught:
                instantiate(lambda r: stage(r, "big", **config), S=S)
            check_full(caught.value, S, "writing the derivation dref:")
            free(S)
        assert realize1(instantiate(lambda r: stage(r, "big", **config), S=S))

    on_a_small_disk(tmp_path, run)


def test_while_a_realizer_writes(tmp_path: FsPath) -> None:
    """Its own error arrives as it is: only the realizer knows what it was doing."""

    def large(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Path]:
        return [output(S, {"out.txt": "x" * 500000})]

    def main(r: Registry) -> DRef:
        return stage(r, "above", realizer=large, below=stage(r, "below"))

    def run(S: StorageSettings) -> None:
        closure = instantiate(main, S=S)
        realize(instantiate(lambda r: stage(r, "below"), S=S))
        with unharmed(S):
            fill(S, but_bytes=300000)
            with pytest.raises(OSError, match="No space left") as caught:
                realize(closure)
            assert (type(caught.value), caught.value.errno) == (OSError, errno.ENOSPC)
            check_tmp(S)
            free(S)
        assert len(text_of(realize1(closure), S)) == 500000

    on_a_small_disk(tmp_path, run)


def fills() -> Realizer:
    """Return a realizer that leaves its output on a disk that is full by then."""

    def realizer(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Path]:
        folder = output(S)
        if rarg.get("fill", True):
            fill(S, but_bytes=rarg.get("but_bytes", 0))
        return [folder]

    return realizer


@pytest.mark.parametrize("but_bytes", [0, 4096])
def test_while_the_index_is_written(tmp_path: FsPath, but_bytes: int) -> None:
    def main(r: Registry, **options: Any) -> DRef:
        # A context of many realizations is larger than a page.
        outputs = [{"out.txt": str(number)} for number in range(100)]
        below = stage(r, "below", realizer=writes(*outputs), matcher=lambda S, rrefs: rrefs or None)
        return stage(r, "above", below=below, **options)

    def run(S: StorageSettings) -> None:
        closure = instantiate(main, S=S, realizer=fills())
        below, above = closure[1].derivations
        realize(closure[1]._replace(result=below.dref, targets=[below.dref]))
        before = picture(S)
        with pytest.raises(StoreFull) as caught:
            realize(closure, realize_args={above.dref: {"but_bytes": but_bytes}})
        check_full(caught.value, S, "in place" if but_bytes == 0 else "")
        assert picture(S) == before
        check_tmp(S)
        free(S)
        rref = realize1(closure, realize_args={above.dref: {"fill": False}})
        assert len(list(allrrefs(S))) == 101
        assert realize1(instantiate(main, S=S, realizer=refuses)) == rref
        check_usable(S)

    on_a_small_disk(tmp_path, run, "size=8m")


def test_while_a_build_folder_is_made(tmp_path: FsPath) -> None:
    def run(S: StorageSettings) -> None:
        check_usable(S)
        closure = instantiate(lambda r: stage(r, realizer=refuses), S=S)
        with unharmed(S):
            fill(S, but_inodes=0)
            with pytest.raises(StoreFull) as caught:
                realize(closure)
            check_full(caught.value, S, f"making the build folder of {closure[0]}")
            free(S)

    on_a_small_disk(tmp_path, run)


@pytest.mark.parametrize("but_inodes", range(10))
def test_at_the_first_steps_in_a_store(tmp_path: FsPath, but_inodes: int) -> None:
    """Whatever there is no room for (a lock, this process's folder, the index), it is said that there is no room."""

    def main(r: Registry) -> DRef:
        return stage(r, "above", below=stage(r, "below"))

    def run(S: StorageSettings) -> None:
        fill(S, but_inodes=but_inodes)
        with pytest.raises(Exception) as caught:  # noqa: PT011  # one of two, looked at below
            realize(instantiate(main, S=S))
        if isinstance(caught.value, StoreFull):
            check_full(caught.value, S, "")
        else:
            assert type(caught.value) is OSError, "the realizer's own"
            assert caught.value.errno == errno.ENOSPC
        free(S)
        assert realize1(instantiate(main, S=S))
        check_usable(S)
        assert os.listdir(fstmpdir(S))

    on_a_small_disk(tmp_path, run)
