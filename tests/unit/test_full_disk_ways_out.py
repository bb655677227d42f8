"""Out of a full disk: with no byte or no inode free, what makes room works, and everything that anybody needs stays."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path as FsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.stores import in_child, mount, needs_mounts, new_store, stage, writes

from pylightnix import RRef, StorageSettings, StoreFull, allrrefs, instantiate, realize1, rref2dref
from pylightnix.fetch.locks import KeyLocks
from pylightnix.fetch.parts import make_fetch_folder
from pylightnix.garb import collect, gc
from pylightnix.storage import store_layout
from pylightnix.store import room
from pylightnix.store.kept import KeepFailed, drop_failed, failed_to_drop
from pylightnix.store.layout import StoreLayout
from pylightnix.store.room import make_reserve, make_room, release_reserve, with_room

pytestmark = pytest.mark.embedded_only("it fills a disk in a mount table of its own")

MEBIBYTE = 1 << 20


def reserve_bytes(layout: StoreLayout) -> int:
    """Return what the reserve takes of the disk."""
    try:
        with os.scandir(layout.reserve) as entries:
            return sum(entry.stat().st_blocks * 512 for entry in entries)
    except FileNotFoundError:
        return 0


def fill(folder: str, what: str) -> None:
    """Leave not one byte, or not one inode."""
    if what == "inodes":
        os.makedirs(f"{folder}/filler", exist_ok=True)
        for number in range(os.statvfs(folder).f_ffree):
            try:
                with open(f"{folder}/filler/{number}", "xb"):
                    pass
            except OSError:
                break
        return
    with open(f"{folder}/filler-bytes", "ab", buffering=0) as file:
        for size in (MEBIBYTE, 4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                pass


def build(S: StorageSettings, name: str) -> RRef:
    return realize1(instantiate(lambda r: stage(r, name, realizer=writes({f"out{number}": name * 50_000 for number in range(16)})), S=S))


def on_a_disk(tmp_path: FsPath, kind: str, run: Callable[[StorageSettings], object]) -> None:
    root = str(tmp_path / "small")
    os.mkdir(root)
    image = str(tmp_path / "image")

    def child() -> None:
        if kind == "tmpfs":
            mount("-t", "tmpfs", "-o", "size=32m,nr_inodes=1000", "none", root)
        else:
            with open(image, "xb") as file:
                file.truncate(32 * MEBIBYTE)
            subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-N", "1000", image], check=True)
            mount("-o", "loop", image, root)
        run(new_store(f"{root}/store"))

    in_child(child, own_mounts=True)


def in_another(work: Callable[[], object]) -> object:
    """Do it in a process that has nothing of the store open, as a command has."""
    return in_child(work)


@needs_mounts
@pytest.mark.parametrize("what", ["bytes", "inodes"])
@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_what_makes_room_works_with_none(tmp_path: FsPath, kind: str, what: str) -> None:
    def run(S: StorageSettings) -> None:
        layout = store_layout(S)
        rrefs = in_another(lambda: [build(S, name) for name in ("one", "two", "three", "four")])
        assert isinstance(rrefs, list)
        assert reserve_bytes(layout) >= 512 * 1024
        fill(os.path.dirname(layout.state), what)
        # A process that begins now has no lock, no folder and no files of the index; each of these is one.
        with pytest.raises(StoreFull):
            in_another(lambda: build(S, "five"))
        fill(os.path.dirname(layout.state), what)
        assert in_another(lambda: sorted(allrrefs(S))) == sorted(rrefs)
        assert in_another(lambda: collect([], rrefs[:1], S)) == ([], rrefs[:1])
        fill(os.path.dirname(layout.state), what)  # what that freed goes to others at once
        in_another(lambda: gc([], interactive=False, verbose=False, S=S))
        assert in_another(lambda: list(allrrefs(S))) == []
        subprocess.run(["rm", "-rf", *(f"{os.path.dirname(layout.state)}/{name}" for name in ("filler", "filler-bytes"))], check=True)
        assert in_another(lambda: build(S, "one")) == rrefs[0]
        assert reserve_bytes(layout) >= 512 * 1024

    on_a_disk(tmp_path, kind, run)


@needs_mounts
def test_the_reserve_is_made_only_where_there_is_room_for_it_twice(tmp_path: FsPath) -> None:
    def run(S: StorageSettings) -> None:
        layout = store_layout(S)
        assert release_reserve(layout)
        assert not release_reserve(layout)
        info = os.statvfs(layout.state)
        with open(f"{layout.state}/filler", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, info.f_bavail * info.f_bsize - MEBIBYTE - 65536)
        assert not make_reserve(layout)
        assert reserve_bytes(layout) == 0
        os.unlink(f"{layout.state}/filler")
        for size in (256 * 1024, 0, 512 * 1024):
            assert make_reserve(layout, size)
            assert size <= reserve_bytes(layout) <= size + 65536
            assert make_reserve(layout), "whatever is there is enough for who has no wish"
            assert size <= reserve_bytes(layout) <= size + 65536

    on_a_disk(tmp_path, "tmpfs", run)


# --- what goes ------------------------------------------------------------------------------------------


def file_in(folder: str, name: str, size: int = 1000) -> str:
    os.makedirs(folder, exist_ok=True)
    with open(f"{folder}/{name}", "wb") as file:
        file.write(b"x" * size)
    return f"{folder}/{name}"


def test_nothing_goes_that_somebody_needs(tmp_path: FsPath) -> None:
    S = new_store(tmp_path / "store")
    layout = store_layout(S)
    rref = build(S, "kept")
    fetched, loose, whole = ("0" * 32, "1" * 32, "2" * 32)
    make_fetch_folder(layout.fetch)
    locks = KeyLocks(layout.fetch, fetched)
    assert locks.try_fetching()
    stay = [
        file_in(layout.fetch, f"{fetched}.part"),
        file_in(layout.fetch, f"{whole}.file"),
        file_in(f"{layout.fetch}/kept", "sha256-ab"),
    ]
    looked_at = os.path.dirname(file_in(f"{layout.failed}/20200101T000000Z-0-looked/out", "file"))
    go = [
        file_in(layout.fetch, f"{loose}.part"),
        file_in(layout.fetch, f"{loose}.json"),
        file_in(f"{layout.fetch}/wrong", "sha256-cd"),
        file_in(f"{layout.trash}/deep/er", "file"),
        file_in(f"{layout.failed}/20200102T000000Z-0-other/out", "file"),
    ]
    watcher = subprocess.Popen(["sleep", "60"], cwd=looked_at)
    try:
        assert make_room(layout) == 4000
        assert [path for path in stay if not os.path.exists(path)] == []
        assert [path for path in go if os.path.exists(path)] == []
        assert os.listdir(looked_at) == ["file"]
        assert list(allrrefs(S)) == [rref]
    finally:
        watcher.kill()
        watcher.wait()
    locks.close()
    assert make_room(layout) == 2000
    assert not os.path.exists(looked_at)
    assert not os.path.exists(stay[0])


@given(st.lists(st.integers(0, 50), max_size=12), st.sets(st.integers(0, 11)), st.integers(0, 12), st.integers(0, 200))
def test_what_goes_of_failed_builds_is_the_oldest_beyond_the_bounds(sizes: list[int], held: set[int], count: int, size: int) -> None:
    paths = [f"/failed/{number:02}" for number in range(len(sizes))]
    found = dict(zip(paths, sizes, strict=True))
    kept_by = [f"/failed/{number:02}/out" for number in held]
    dropped = failed_to_drop(found, kept_by, KeepFailed(count, size))
    left = [path for path in paths if path not in dropped]
    free = [path for path in left if not any(each.startswith(path) for each in kept_by)]
    assert dropped == sorted(dropped)
    assert not {os.path.dirname(each) for each in kept_by} & set(dropped)
    within = len(left) <= count and sum(found[path] for path in left) <= size
    assert within or free == ([] if count == 0 else [path for path in paths[-1:] if path in free])
    if dropped:  # the last one that went had to
        again = [*left, dropped[-1]]
        assert len(again) > count or sum(found[path] for path in again) > size


def test_failed_builds_are_bounded_in_bytes(tmp_path: FsPath) -> None:
    layout = store_layout(new_store(tmp_path / "store"))
    for number in range(5):
        file_in(f"{layout.failed}/2020010{number}T000000Z-0-x/out", "file", 1000)
    assert drop_failed(layout, KeepFailed(10, 2500)) == 3000
    assert sorted(os.listdir(layout.failed)) == ["20200103T000000Z-0-x", "20200104T000000Z-0-x"]
    assert drop_failed(layout, KeepFailed(10, 10)) == 1000
    assert os.listdir(layout.failed) == ["20200104T000000Z-0-x"], "the latest is what somebody wants to see"


# --- with injected errors ---------------------------------------------------------------------------------


def test_each_means_is_tried_once(tmp_path: FsPath) -> None:
    layout = store_layout(new_store(tmp_path / "store"))
    file_in(f"{layout.failed}/20200101T000000Z-0-x/out", "file")
    seen: list[tuple[bool, bool]] = []

    def work() -> str:
        seen.append((os.path.exists(layout.reserve), bool(os.listdir(layout.failed))))
        if len(seen) <= failures:
            raise StoreFull(layout.state, "trying")
        return "done"

    failures = 0
    assert with_room(layout, work) == "done"
    assert seen == [(True, True)]
    seen.clear()
    failures = 2
    assert with_room(layout, work) == "done"
    assert seen == [(True, True), (False, True), (False, False)]
    failures = 9
    seen.clear()
    with pytest.raises(StoreFull):
        with_room(layout, work)
    assert len(seen) == 3, "it never loops"


def test_a_batch_that_is_too_large_is_halved(tmp_path: FsPath, monkeypatch: pytest.MonkeyPatch) -> None:
    from pylightnix import remote

    S = new_store(tmp_path / "store")
    rrefs = [build(S, name) for name in ("one", "two", "three", "four", "five")]
    sizes: list[int] = []
    whole = remote.remove

    def narrow(drefs: list[object], rrefs: list[object], *args: object, **options: object) -> object:
        sizes.append(len(drefs) + len(rrefs))
        if sizes[-1] > 2:
            raise StoreFull("/disk", "removing")
        return whole(drefs, rrefs, *args, **options)  # type: ignore[arg-type]  # as they come

    monkeypatch.setattr(remote, "remove", narrow)
    assert collect([rref2dref(rref) for rref in rrefs], rrefs, S) == (sorted(map(rref2dref, rrefs)), sorted(rrefs))
    assert max(sizes) == 5
    assert list(allrrefs(S)) == []


def test_the_reserve_is_no_reason_to_fail(tmp_path: FsPath) -> None:
    """A file in its place, or a folder that cannot be written: the store works without."""
    S = new_store(tmp_path / "store")
    layout = store_layout(S)
    release_reserve(layout)
    file_in(layout.state, "reserve")
    assert not make_reserve(layout)
    begun = time.monotonic()
    assert build(S, "one")
    assert time.monotonic() - begun < 60
    assert room.is_nearly_full(layout) in (True, False)
