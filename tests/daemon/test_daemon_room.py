"""A daemon on a full disk: builds fail by that word, what may go goes by itself, and removals work with no byte free."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from tests.daemon import stages
from tests.daemon.conftest import Daemon
from tests.soundness import check_sound
from tests.stores import needs_mounts, new_store
from tests.waiting import wait_until

from pylightnix import StorageSettings, StoreFull, allrrefs, mkSS, realize1, rmref
from pylightnix.garb import gc
from pylightnix.storage import store_layout
from pylightnix.store.kept import KeepFailed
from pylightnix.store.layout import StoreLayout
from pylightnix.store.room import make_reserve, release_reserve
from pylightnix.store.store import open_store_alone
from pylightnix.store.trash import empty_trash
from pylightnixd import hold as hold_module
from pylightnixd import removal
from pylightnixd import room as module
from pylightnixd.hold import HeldStore
from pylightnixd.room import Room


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m,nr_inodes=2000", "none", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> None:
    with open(folder / "filler", "ab", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                pass


def failed(layout: StoreLayout, name: str) -> str:
    folder = f"{layout.failed}/{name}/out"
    os.makedirs(folder)
    Path(folder, "file").write_bytes(b"x" * 100_000)
    return os.path.dirname(folder)


@needs_mounts
def test_a_daemon_gets_out_of_a_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small") as disk:
        layout = store_layout(new_store(disk / "store"))
        with Daemon(disk / "store", "--jobs", "2") as daemon:
            S: StorageSettings = daemon.wait_ready().S
            wait_until(lambda: os.path.exists(f"{layout.reserve}/bytes"))
            kept = [realize1(stages.one(S, stages.plain, name)) for name in ("one", "two", "three")]
            left = failed(layout, "20200101T000000Z-0-x")
            fill(disk)
            with pytest.raises(StoreFull, match="no space left"):
                realize1(stages.one(S, stages.plain, "four"))
            wait_until(lambda: not os.path.exists(left))
            daemon.stop()
        (disk / "filler").unlink()
        assert make_reserve(layout)
        fill(disk)
        with Daemon(disk / "store", "--jobs", "2") as daemon:
            S = daemon.wait_ready().S
            fill(disk)
            assert sorted(allrrefs(S)) == sorted(kept)
            (disk / "filler").unlink()
            assert make_reserve(layout)
            fill(disk)
            rmref(kept[0], S)
            gc([], interactive=False, verbose=False, S=S)
            assert list(allrrefs(S)) == []
            (disk / "filler").unlink()
            assert realize1(stages.one(S, stages.plain, "one")) == kept[0]
            daemon.stop_soundly({kept[0]})
        check_sound(mkSS(str(disk / "store")), {kept[0]})


# --- with fakes ----------------------------------------------------------------------------------------------


def test_room_is_made_for_those_who_meet_a_full_disk_and_not_too_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = store_layout(new_store(tmp_path / "store"))
    rounds: list[str] = []
    monkeypatch.setattr(module, "make_room", lambda layout, seconds: rounds.append("room"))
    room = Room(layout, trio.lowlevel.checkpoint)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(room.run)
            await trio.testing.wait_all_tasks_blocked()
            begun = trio.current_time()
            for _ in range(200):
                with pytest.raises(StoreFull), room.minded():
                    raise StoreFull(layout.state, "building")
                await trio.sleep(0.1)
            assert 1 <= len(rounds) <= (trio.current_time() - begun) / module.PAUSE_SECONDS + 1
            await trio.sleep(2 * module.PAUSE_SECONDS)
            rounds.clear()
            await trio.sleep(3 * module.TIDY_SECONDS)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(rate=100))
    assert rounds == [], "it is not tried again where nobody meets a full disk"


def test_a_large_trash_is_emptied_in_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = store_layout(new_store(tmp_path / "store"))
    for number in range(500):
        os.makedirs(f"{layout.trash}/{number % 3}/{number}")
    steps: list[float] = []

    def step(layout: StoreLayout, seconds: float) -> bool:
        steps.append(seconds)
        return empty_trash(layout, 0.0)

    monkeypatch.setattr(removal, "empty_trash", step)
    with open_store_alone(layout, "testing") as store:
        trio.run(removal.Removals(store).empty_trash)
    assert os.listdir(layout.trash) == []
    assert 1 < len(steps) < 20
    assert set(steps) == {removal.STEP_SECONDS}


def test_no_build_waits_for_a_large_folder_that_it_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = store_layout(new_store(tmp_path / "store"))
    monkeypatch.setattr(hold_module, "REMOVAL_SECONDS", 0.0)
    with open_store_alone(layout, "testing") as store:
        hold = HeldStore.of(store)
        folder = hold.make_folder()
        for number in range(500):
            os.makedirs(f"{folder}/{number}")
        trio.run(hold.remove, folder)
        assert not os.path.exists(folder)
        (left,) = os.listdir(layout.trash)
        assert 0 < len(os.listdir(f"{layout.trash}/{left}")) < 500


def test_a_failure_on_a_disk_with_room_costs_nobody_anything(tmp_path: Path) -> None:
    layout = store_layout(new_store(tmp_path / "store"))
    left = [failed(layout, f"2020010{number}T000000Z-0-x") for number in (1, 2, 3)]
    release_reserve(layout)
    room = Room(layout, trio.lowlevel.checkpoint, KeepFailed(2, 1 << 30), 1 << 16)

    async def main() -> None:
        with trio.move_on_after(module.PAUSE_SECONDS):
            room.look()
            await room.run()

    trio.run(main, clock=trio.testing.MockClock(rate=10))
    assert [path for path in left if os.path.exists(path)] == left[1:]
    assert os.path.getsize(f"{layout.reserve}/bytes") == 1 << 16
