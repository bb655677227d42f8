"""Leftovers that cannot be removed: the store opens, builds and collects without them, and tells of each once."""

from __future__ import annotations

import codecs
import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path as FsPath

import pytest
from tests.stores import OTHER_UID, check_usable, in_child, mount, needs_mounts, needs_root, new_store, output, stage

from pylightnix import Context, DRef, Path, RealizeArg, StorageSettings, allrrefs, fsinit, instantiate, realize1, rref2path
from pylightnix.garb import collect
from pylightnix.storage import store_layout
from pylightnix.store.access import make_folders
from pylightnix.store.layout import StoreLayout
from pylightnix.store.recovery import recover
from pylightnix.store.removal import remove_tree, try_remove
from pylightnix.store.set_aside import SetAside, all_set_aside, discard, is_passing, note_stuck, retry_set_aside
from pylightnix.store.store import open_store
from pylightnix.store.trash import empty_trash, to_trash

pytestmark = pytest.mark.embedded_only("it makes its own stores; for daemons, see tests/daemon/test_daemon_leftovers.py")

NOBODY = "1-0123456789ab"


def fill(folder: str) -> None:
    os.makedirs(f"{folder}/inner", exist_ok=True)
    for name in ("a", "inner/b"):
        with open(f"{folder}/{name}", "w", encoding="utf-8") as file:
            file.write("x")


@contextmanager
def immutable(*paths: str) -> Iterator[None]:
    if subprocess.run(["chattr", "+i", *paths], check=False, capture_output=True).returncode:
        pytest.skip("this file system has no immutable files")
    try:
        yield
    finally:
        # It may have been moved meanwhile, with what it lies in.
        subprocess.run(
            ["find", paths[0].split("/store/", maxsplit=1)[0], "-exec", "chattr", "-i", "{}", "+"], check=False, capture_output=True
        )


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "to be rid of it" in record.getMessage()]


@contextmanager
def of_root(path: str) -> Iterator[None]:
    """Make a folder what a container leaves: private to root, with something in it."""
    fill(path)
    subprocess.run(["chown", "-R", "0:0", path], check=True)
    os.chmod(path, 0o700)
    yield


# --- removing -------------------------------------------------------------------------------------------


@needs_root
def test_all_goes_that_can(tmp_path: FsPath) -> None:
    top = str(tmp_path / "top")
    for name in ("first", "middle", "zlast"):
        fill(f"{top}/{name}")
    with immutable(f"{top}/middle/inner/b"):
        with pytest.raises(OSError, match="not permitted") as caught:
            try_remove(top)
        assert caught.value.filename == f"{top}/middle/inner/b"
        assert [found[0] for found in os.walk(top)] == [top, f"{top}/middle", f"{top}/middle/inner"]
    remove_tree(top)
    assert not os.path.exists(top)


@needs_mounts
def test_nothing_behind_a_mount_is_touched(tmp_path: FsPath) -> None:
    """Not even one of the same device, which a number of the device does not show."""
    precious, top = str(tmp_path / "precious"), str(tmp_path / "top")
    fill(precious)
    fill(f"{top}/folder")

    def run() -> None:
        os.mkdir(f"{top}/folder/mounted")
        mount("--bind", precious, f"{top}/folder/mounted")
        with pytest.raises(OSError, match="busy") as caught:
            try_remove(top)
        assert caught.value.filename == f"{top}/folder/mounted"

    in_child(run, own_mounts=True)
    assert os.path.exists(f"{precious}/a")
    assert os.path.exists(f"{precious}/inner/b")
    assert not os.path.exists(f"{top}/folder/a")


def test_a_removal_stops_when_time_is_up_and_goes_on_later(tmp_path: FsPath) -> None:
    top = str(tmp_path / "top")
    for number in range(50):
        fill(f"{top}/{number}")
    assert not try_remove(top, time.monotonic())
    rounds = 1
    while not try_remove(top, time.monotonic() + 0.0002):
        rounds += 1
        assert rounds < 10_000
    assert rounds > 1
    assert not os.path.exists(top)


# --- setting aside --------------------------------------------------------------------------------------


def leave_immutable_file(layout: StoreLayout, folder: str) -> str:
    fill(folder)
    return f"{folder}/inner/b"


PLACES: dict[str, Callable[[StoreLayout], str]] = {
    "trash": lambda layout: f"{layout.trash}/zz",
    "dead-owner": lambda layout: f"{layout.tmp}/{NOBODY}/0",
    "failed": lambda layout: f"{layout.failed}/20200101T000000Z-00000000-x",
}


@needs_root
@pytest.mark.parametrize("what", ["file", "folder"])
@pytest.mark.parametrize("place", PLACES)
def test_a_store_works_beside_immutable_leftovers(tmp_path: FsPath, place: str, what: str, caplog: pytest.LogCaptureFixture) -> None:
    S = new_store(tmp_path / "store")
    layout = store_layout(S)
    folder = PLACES[place](layout)
    fill(folder)
    with immutable(f"{folder}/inner/b" if what == "file" else folder):
        check_usable(S)
        rref = realize1(instantiate(lambda r: stage(r, "garbage"), S=S))
        collect([], [rref], S)
        assert rref not in set(allrrefs(S))
        if place == "failed":
            discard(layout, folder)
        (entry,) = all_set_aside(layout)
        assert entry.command.startswith("sudo chattr -R -f -i -a /")
        assert os.path.lexists(entry.path)
        if what == "folder" and place != "dead-owner":  # what is immutable itself cannot be moved
            assert entry.path == folder
        else:
            assert entry.path.startswith(f"{layout.state}/set-aside/")
        for _ in range(3):
            check_usable(S)
        collect([], list(allrrefs(S)), S)
        assert len(told(caplog)) == 1, told(caplog)
        assert entry.command in told(caplog)[0]
    in_child(lambda: list(allrrefs(S)))  # the first call of a process tries again
    assert all_set_aside(layout) == []
    assert not os.path.exists(layout.quarantine)
    empty_trash(layout)
    recover_once(S)
    assert not os.path.exists(folder)


def recover_once(S: StorageSettings) -> None:
    with open_store(store_layout(S)) as store:
        recover(store.layout, store.index)


@needs_root
def test_what_root_left_in_a_build_folder_fails_no_build(others_folder: FsPath) -> None:
    """As containers do; the build's own user cannot remove it, nor look into it."""
    codecs.lookup("ascii")  # the other user may not read the interpreter's own files
    root = others_folder / "store"
    reading, writing = os.pipe()
    answer_reading, answer_writing = os.pipe()

    def beside(S: StorageSettings, dref: DRef, context: Context, rarg: RealizeArg) -> list[Path]:
        found = output(S)
        os.write(writing, os.path.dirname(found).encode())
        assert os.read(answer_reading, 1) == b"."
        return [found]

    def run() -> tuple[list[SetAside], list[str]]:
        S = new_store(root)
        rref = realize1(instantiate(lambda r: stage(r, "beside", realizer=beside), S=S))
        assert os.path.isdir(rref2path(rref, S))
        check_usable(S)
        collect([], list(allrrefs(S)), S)
        return all_set_aside(store_layout(S)), os.listdir(store_layout(S).trash)

    child = os.fork()
    if child == 0:
        signal.alarm(20)  # a build that does not come says nothing
        with of_root(f"{os.read(reading, 4096).decode()}/cache"):
            os.write(answer_writing, b".")
        os._exit(0)
    (entry,), trash = in_child(run, uid=OTHER_UID)
    os.waitpid(child, 0)
    assert trash == []
    assert entry.obstacle.startswith(f"{entry.path}/cache")
    assert entry.command == f"sudo rm -rf {entry.path}"
    assert entry.problem == "it belongs to another user (uid 0)"
    subprocess.run(entry.command.replace("sudo ", "").split(), check=True)
    assert in_child(lambda: retry_set_aside(store_layout(new_store(root))), uid=OTHER_UID) == []


@needs_mounts
def test_a_mount_that_a_build_left(tmp_path: FsPath) -> None:
    precious, root = str(tmp_path / "precious"), str(tmp_path / "store")
    fill(precious)

    def run() -> str:
        S = new_store(root)
        folder = f"{store_layout(S).tmp}/{NOBODY}/0/mounted"
        os.makedirs(folder)
        mount("--bind", precious, folder)
        check_usable(S)
        (entry,) = all_set_aside(store_layout(S))
        assert os.path.exists(f"{entry.obstacle}/inner/b")
        return entry.command

    assert in_child(run, own_mounts=True).startswith(f"sudo umount {root}/")
    assert os.path.exists(f"{precious}/inner/b")


@needs_mounts
def test_a_mount_on_a_build_folder_itself_is_named_where_it_is(tmp_path: FsPath) -> None:
    root = str(tmp_path / "store")

    def run() -> tuple[str, str]:
        S = new_store(root)
        folder = f"{store_layout(S).tmp}/{NOBODY}"
        os.makedirs(folder)
        mount("-t", "tmpfs", "none", folder)
        for name in ("one", "two"):
            realize1(instantiate(lambda r, name=name: stage(r, name), S=S))
        (entry,) = all_set_aside(store_layout(S))
        return entry.path, entry.command

    folder = f"{root}/tmp/{NOBODY}"
    assert in_child(run, own_mounts=True) == (folder, f"sudo umount {folder}")


# --- the record -----------------------------------------------------------------------------------------


def layout_in(tmp_path: FsPath) -> StoreLayout:
    return store_layout(new_store(tmp_path / "store"))


def test_a_record_that_is_lost_or_damaged_hides_nothing(tmp_path: FsPath) -> None:
    layout = layout_in(tmp_path)
    folder = f"{layout.set_aside_folders[0]}/abc"
    os.makedirs(folder)
    for damaged in (None, "", "{", "[]", '{"set_aside": [{}]}', '{"set_aside": 3}'):
        if damaged is not None:
            with open(layout.quarantine, "w", encoding="utf-8") as file:
                file.write(damaged)
        assert [entry.path for entry in all_set_aside(layout)] == [folder]
    assert retry_set_aside(layout) == []
    assert not os.path.exists(folder)


def test_what_took_the_place_of_a_leftover_is_sound(tmp_path: FsPath) -> None:
    """A realization that was built again where an immovable one had been is not removed by its name."""
    S = new_store(tmp_path / "store")
    layout = store_layout(S)
    rref = realize1(instantiate(lambda r: stage(r, "again"), S=S))
    folder = layout.realization(rref)
    note_stuck(layout, folder, PermissionError(1, "Operation not permitted", folder))
    assert [entry.path for entry in all_set_aside(layout)] == [folder]
    assert [entry.path for entry in retry_set_aside(layout)] == [folder]
    assert os.path.isdir(folder)
    collect([], [rref], S)
    assert realize1(instantiate(lambda r: stage(r, "again"), S=S)) == rref
    assert retry_set_aside(layout) == []
    assert os.path.isdir(folder)


def test_what_is_known_is_not_told_again_and_what_took_its_name_is_another(tmp_path: FsPath, caplog: pytest.LogCaptureFixture) -> None:
    layout = layout_in(tmp_path)
    folder = f"{layout.storage}/x"
    os.mkdir(folder)
    for _ in range(2):
        note_stuck(layout, folder, PermissionError(1, "Operation not permitted", folder))
    assert len(told(caplog)) == 1
    assert len(all_set_aside(layout)) == 1
    os.rename(folder, f"{layout.storage}/y")
    os.mkdir(folder)
    assert all_set_aside(layout) == []


def test_odd_names_are_quoted_and_found_again(tmp_path: FsPath) -> None:
    layout = layout_in(tmp_path)
    folder = f"{layout.tmp}/odd '\n\udcff"
    os.mkdir(folder)
    note_stuck(layout, folder, PermissionError(13, "Permission denied", f"{folder}/x"))
    (entry,) = all_set_aside(layout)
    assert entry.path == folder
    assert entry.command == f"sudo rm -rf $'{layout.tmp}/odd \\x27\\x0a\\xff'"
    assert str(entry).isprintable()
    subprocess.run(["bash", "-c", entry.command.replace("sudo rm -rf", "test -d")], check=True)
    retry_set_aside(layout)
    assert not os.path.lexists(folder)
    assert all_set_aside(layout) == []


@needs_mounts
def test_a_disk_that_is_read_only_makes_no_leftovers(tmp_path: FsPath, caplog: pytest.LogCaptureFixture) -> None:
    layout = layout_in(tmp_path)
    folder = f"{layout.trash}/one"
    fill(folder)

    def run() -> list[SetAside]:
        mount("--bind", layout.state, layout.state)
        mount("-o", "remount,bind,ro", layout.state)
        assert not discard(layout, folder)
        return all_set_aside(layout)

    assert in_child(run, own_mounts=True) == []
    assert discard(layout, folder)
    assert told(caplog) == []


@needs_root
def test_an_obstacle_that_takes_long_to_go_round_is_met_once(tmp_path: FsPath) -> None:
    layout = layout_in(tmp_path)
    long = f"{layout.trash}/{'0' * 24}"
    fill(long)
    for number in range(500):
        with open(f"{long}/{number}", "x", encoding="utf-8"):
            pass
    fill(f"{layout.trash}/{'1' * 24}")
    with immutable(*(f"{long}/{name}" for name in os.listdir(long) if name != "inner")), immutable(f"{layout.trash}/{'1' * 24}/a"):
        for _ in range(20):  # with no time at all, each step does something
            empty_trash(layout, 0.0)
            if len(all_set_aside(layout)) == 2:
                break
        assert len(all_set_aside(layout)) == 2
        assert empty_trash(layout, 1.0)
    retry_set_aside(layout)
    assert os.listdir(layout.trash) == os.listdir(layout.set_aside_folders[0]) == []


@needs_root
def test_a_store_is_begun_anew_beside_what_cannot_be_removed(tmp_path: FsPath) -> None:
    S = new_store(tmp_path / "store")
    layout = store_layout(S)
    rref = realize1(instantiate(lambda r: stage(r, "old"), S=S))
    tree = layout.realization(rref)
    with immutable(f"{tree}/{sorted(os.listdir(tree))[0]}"):
        fsinit(S, remove_existing=True, use_as_default=False)
        assert list(allrrefs(S)) == []
        assert os.listdir(layout.storage) == []
        assert realize1(instantiate(lambda r: stage(r, "old"), S=S)) == rref
        (entry,) = all_set_aside(layout)
        assert entry.path.startswith(f"{layout.set_aside_folders[0]}/")
    fsinit(S, remove_existing=True, use_as_default=False)
    assert all_set_aside(layout) == []


@needs_root
def test_a_realization_that_cannot_be_moved_is_gone_for_everybody(tmp_path: FsPath, caplog: pytest.LogCaptureFixture) -> None:
    """Its tree stays where it is; it is not offered, it is told of once, and it goes when it can."""
    S = new_store(tmp_path / "store")
    layout = store_layout(S)
    rref = realize1(instantiate(lambda r: stage(r, "stuck"), S=S))
    tree = layout.realization(rref)
    with immutable(tree):
        assert in_child(lambda: (collect([], [rref], S), len(told(caplog)))) == (([], [rref]), 1)
        for _ in range(2):
            assert in_child(lambda: (list(allrrefs(S)), len(told(caplog)))) == ([], 0)
        assert os.path.isdir(tree)
        (entry,) = all_set_aside(layout)
        assert entry.path == tree
    assert in_child(lambda: list(allrrefs(S))) == []
    assert not os.path.exists(tree)
    assert realize1(instantiate(lambda r: stage(r, "stuck"), S=S)) == rref
    assert all_set_aside(layout) == []


# --- where the state lies on another device -------------------------------------------------------------------


@needs_mounts
def test_trees_of_another_device_than_the_state_s_go_and_are_set_aside_there(tmp_path: FsPath) -> None:
    def run() -> None:
        state, trees = str(tmp_path / "state"), str(tmp_path / "trees")
        for folder in (state, trees):
            os.mkdir(folder)
        mount("-t", "tmpfs", "none", state)
        layout = StoreLayout(storage=f"{trees}/store-v1", tmp=f"{trees}/tmp", state=state)
        make_folders(layout)
        fill(f"{layout.storage}/tree")
        to_trash(layout, f"{layout.storage}/tree")
        assert os.listdir(layout.trash) == []
        assert len(os.listdir(f"{trees}/tmp/trash")) == 1
        assert empty_trash(layout)
        assert os.listdir(f"{trees}/tmp/trash") == []
        left = f"{layout.tmp}/{NOBODY}/0"
        os.makedirs(f"{left}/mounted")
        mount("-t", "tmpfs", "none", f"{left}/mounted")
        assert discard(layout, left)
        (entry,) = all_set_aside(layout)
        assert entry.path.startswith(f"{trees}/tmp/set-aside/")

    in_child(run, own_mounts=True)


def test_a_file_that_is_open_over_nfs(tmp_path: FsPath, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS gives it another name when it is unlinked, and refuses to unlink that for as long as it is open."""
    layout = layout_in(tmp_path)
    folder = f"{layout.trash}/built"
    fill(folder)
    unlink = os.unlink

    def silly(name: str, **options: int) -> None:
        if os.path.basename(name).startswith(".nfs"):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), name)
        if name == "b":
            os.rename(name, ".nfs0000000000000001", src_dir_fd=options["dir_fd"], dst_dir_fd=options["dir_fd"])
        else:
            unlink(name, **options)

    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", silly)
        assert empty_trash(layout)
        (entry,) = all_set_aside(layout)
    assert os.listdir(layout.trash) == []
    assert entry.obstacle == f"{entry.path}/inner/.nfs0000000000000001"
    assert entry.command == f"fuser -v {entry.obstacle}"
    assert retry_set_aside(layout) == []


# --- with injected errors -------------------------------------------------------------------------------------

CALLS = ("open", "rmdir", "unlink", "rename", "makedirs", "replace")
NUMBERS = (errno.EIO, errno.EACCES, errno.EPERM, errno.EBUSY, errno.ENOSPC, errno.EROFS, errno.EMFILE, errno.ESTALE)


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: errno.errorcode[number])
@pytest.mark.parametrize("call", CALLS)
def test_no_error_of_the_system_leaves_a_removal(
    tmp_path: FsPath, call: str, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The n-th call of its kind fails, and all that follow, for every n; then it is gone, or known, or in its place."""
    layout = layout_in(tmp_path)
    whole = getattr(os, call)
    for first in range(12):
        folder = f"{layout.tmp}/{first}-left"
        fill(folder)
        left = [first]

        def failing(*args: object, left: list[int] = left, **options: object) -> object:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(number, os.strerror(number), *args[:1])
            return whole(*args, **options)

        with monkeypatch.context() as patched:
            patched.setattr(os, call, failing)
            is_away = discard(layout, folder)
        assert is_away == (not os.path.lexists(folder))
        asides = [entry.path for entry in all_set_aside(layout)]
        if is_passing(OSError(number, "")) and call != "replace":
            assert is_away or folder not in asides or left[0] >= 0
        retry_set_aside(layout)
        assert discard(layout, folder)
        assert all_set_aside(layout) == []
        assert len(told(caplog)) <= 1
        caplog.clear()
