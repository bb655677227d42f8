"""Writes that the kernel has lost: whoever flushes is told, even if somebody else was told before."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.stores import AS_ROOT, in_child, mount, output, stage

from pylightnix import DRef, StorageSettings, StoreIOError, instantiate, realizeMany
from pylightnix.embedded import realize_closure
from pylightnix.query import allrrefs
from pylightnix.storage import store_layout
from pylightnix.store import durability
from pylightnix.store.durability import held_open, sync_file_system
from pylightnix.store.store import open_store, open_store_alone

pytestmark = pytest.mark.embedded_only("it is about how a process flushes what it has built itself")


class LosingKernel:
    """A `syncfs` that tells each open file description once of a write that was lost while it was open.

    As the kernel's does; the position of a description, which folders have no use for, holds what is still to be told.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def lose(self) -> None:
        for fd in map(int, os.listdir("/proc/self/fd")):
            try:
                if os.readlink(f"/proc/self/fd/{fd}") == self._path:
                    os.lseek(fd, 1, os.SEEK_SET)
            except FileNotFoundError:
                pass  # that of the listing

    def syncfs(self, fd: int) -> int:
        if os.lseek(fd, 0, os.SEEK_CUR) == 0:
            return 0
        os.lseek(fd, 0, os.SEEK_SET)
        ctypes.set_errno(errno.EIO)
        return -1


@pytest.fixture
def kernel(S: StorageSettings) -> Iterator[LosingKernel]:
    before = list(durability._libc)
    fake = LosingKernel(store_layout(S).storage)
    durability._libc[:] = [fake]
    yield fake
    durability._libc[:] = before


def test_d7_a_write_that_is_lost_while_a_realizer_runs_is_a_failed_commit(S: StorageSettings, kernel: LosingKernel) -> None:
    earlier = realizeMany(instantiate(lambda r: stage(r, "earlier"), S=S))

    def realizer(S: StorageSettings, dref: DRef, context: object, rarg: object) -> list[object]:
        out = output(S)
        kernel.lose()
        return [out]

    closure = instantiate(lambda r: stage(r, realizer=realizer), S=S)[1]  # type: ignore[arg-type]  # `object` above
    with pytest.raises(StoreIOError, match="Input/output error while making realizations durable"):
        realize_closure(closure)
    assert list(allrrefs(S)) == earlier
    assert not durability._held


def test_d7_an_inner_call_does_not_let_go_of_what_the_outer_one_holds(S: StorageSettings, kernel: LosingKernel) -> None:
    def realizer(S: StorageSettings, dref: DRef, context: object, rarg: object) -> list[object]:
        realizeMany(instantiate(lambda r: stage(r, "inner"), S=S))
        out = output(S)
        kernel.lose()
        return [out]

    with pytest.raises(StoreIOError):
        realize_closure(instantiate(lambda r: stage(r, realizer=realizer), S=S)[1])  # type: ignore[arg-type]


def test_d7_a_forked_child_takes_nothing_from_its_parent(S: StorageSettings, kernel: LosingKernel) -> None:
    layout = store_layout(S)

    def flush() -> None:
        with pytest.raises(AssertionError, match="not held open"):
            sync_file_system(layout.storage)
        with held_open(layout.storage):
            sync_file_system(layout.storage)

    with open_store(layout):
        kernel.lose()
        in_child(flush)
        with pytest.raises(OSError, match="Input/output error"):
            sync_file_system(layout.storage)
        sync_file_system(layout.storage)  # it was told


def test_d7_whoever_has_the_store_alone_is_told_from_its_start_on(S: StorageSettings, kernel: LosingKernel) -> None:
    layout = store_layout(S)
    with open_store_alone(layout, "test"):
        kernel.lose()
        with pytest.raises(OSError, match="Input/output error"):
            sync_file_system(layout.storage)
    with open_store_alone(layout, "test"):
        sync_file_system(layout.storage)


@pytest.mark.skipif(not AS_ROOT, reason="only root mounts disks")
def test_d7_a_real_kernel_tells_who_was_there(tmp_path: Path) -> None:
    """A disk that has less room than it says loses what is written to it."""

    def body() -> None:
        small, bad = tmp_path / "small", tmp_path / "bad"
        for folder in (small, bad):
            folder.mkdir()
        mount("-t", "tmpfs", "-o", "size=8m", "tmpfs", str(small))
        with open(small / "image", "wb") as image:
            image.truncate(64 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", "-E", "nodiscard,lazy_itable_init=1", str(small / "image")], check=True)
        mount("-o", "loop,errors=continue", str(small / "image"), str(bad))
        with held_open(str(bad)):
            (bad / "file").write_bytes(b"D" * (24 << 20))
            other = subprocess.run(["sync", "-f", str(bad)], capture_output=True, check=False)
            assert other.returncode != 0, "the disk was to fail"
            with pytest.raises(OSError, match=r"error|space"):
                sync_file_system(str(bad))

    try:
        in_child(body, own_mounts=True)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no disk to lose writes on: {error}")
