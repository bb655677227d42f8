"""Stores that cannot be used, are others', too new, busy, or damaged: what is said, and what mends them."""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing, contextmanager
from pathlib import Path as FsPath
from typing import Any

import pytest
from tests.stores import (
    OTHER_UID,
    Numbered,
    check_error,
    check_tmp,
    check_usable,
    in_child,
    mount,
    needs_mounts,
    needs_root,
    new_store,
    picture,
    refuses,
    stage,
    text_of,
    unharmed,
)

from pylightnix import (
    DRef,
    InvalidStorage,
    MissingDerivation,
    MissingRealization,
    PylightnixException,
    Registry,
    RRef,
    StorageSettings,
    StoreBusy,
    StoreCorrupt,
    StoreExists,
    StoreForeign,
    StoreIOError,
    StoreReadOnly,
    StoreTooNew,
    alldrefs,
    allrrefs,
    dref2path,
    drefcfg_,
    drefcfgpath,
    drefrrefs,
    fsinit,
    fsstorage,
    fstmpdir,
    instantiate,
    mkSS,
    realize,
    realize1,
    rootdrefs,
    rootrrefs,
    rref2path,
    rrefctx,
)
from pylightnix.storage import assert_valid_storage, store_layout, tlstorage
from pylightnix.store.locks import shared_lock

pytestmark = pytest.mark.embedded_only("a daemon owns a sound store; how it meets others is told in tests/daemon and tests/faults")

Call = Callable[[StorageSettings], object]


def register(S: StorageSettings) -> object:
    return instantiate(lambda r: stage(r, "fresh"), S=S)


def enumerate_all(S: StorageSettings) -> object:
    return list(allrrefs(S))


def above(r: Registry, **options: Any) -> DRef:
    return stage(r, "above", below=stage(r, "below", **options), **options)


# --- no store -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [register, enumerate_all, rootrrefs, assert_valid_storage])
@pytest.mark.parametrize("there", [[], ["notes.txt"], ["tmp/x"], ["store-v0/x"], ["store-v1/x"]])
def test_not_a_store_at_all(tmp_path: FsPath, there: list[str], call: Call) -> None:
    root = tmp_path / "root"
    for name in there:
        (root / name).parent.mkdir(parents=True)
        (root / name).write_text("theirs")
    before = sorted(map(str, root.rglob("*")))
    with pytest.raises(InvalidStorage) as caught:
        call(mkSS(str(root)))
    check_error(caught.value, InvalidStorage, "invalid-storage", 2, str(root), "expected", "fsinit(…)")
    assert sorted(map(str, root.rglob("*"))) == before


def test_the_default_store_was_never_made() -> None:
    with pytest.raises(InvalidStorage) as caught:
        instantiate(stage)
    check_error(caught.value, InvalidStorage, "invalid-storage", 2, "/nonexistent/default-store/store-v1", "PYLIGHTNIX_ROOT")


def test_a_file_where_the_store_should_be(tmp_path: FsPath) -> None:
    (tmp_path / "file").write_text("theirs")
    S = mkSS(str(tmp_path / "file"))
    calls: list[Call] = [register, enumerate_all, lambda S: fsinit(S, use_as_default=False)]
    for call in calls:
        with pytest.raises(PylightnixException) as caught:
            call(S)
        assert str(tmp_path / "file") in str(caught.value)
    assert (tmp_path / "file").read_text() == "theirs"


def test_making_a_store_where_there_is_one(S: StorageSettings) -> None:
    with unharmed(S):
        with pytest.raises(StoreExists) as caught:
            fsinit(S, check_not_exist=True, use_as_default=False)
        check_error(caught.value, StoreExists, "store-exists", 73, fsstorage(S), "remove_existing=True")
        assert isinstance(caught.value, FileExistsError)
    fsinit(S, use_as_default=False)
    check_usable(S)


def test_making_a_store_anew(S: StorageSettings) -> None:
    check_usable(S)
    fsinit(S, check_not_exist=True, remove_existing=True, use_as_default=False)
    assert (list(alldrefs(S)), list(allrrefs(S))) == ([], [])
    check_usable(S)


# --- devices and modes --------------------------------------------------------------------------------


def other_device() -> str:
    return "/dev/shm"


@pytest.mark.skipif(
    not os.path.isdir("/dev/shm") or os.stat("/dev/shm").st_dev == os.stat("/tmp").st_dev, reason="there is one device only"
)
def test_storage_and_tmpdir_on_different_devices(S: StorageSettings, request: pytest.FixtureRequest) -> None:
    far = f"{other_device()}/test-pylightnix-{os.getpid()}"
    request.addfinalizer(lambda: shutil.rmtree(far, ignore_errors=True))
    apart = mkSS(str(S.root), tmpdir=far)
    calls: list[Call] = [fsinit, register, enumerate_all]
    with unharmed(S):
        for call in calls:
            with pytest.raises(InvalidStorage) as caught:
                call(apart)
            check_error(caught.value, InvalidStorage, "invalid-storage", 2, fsstorage(S), far, "different devices", "put both on one")
        assert tlstorage() is None


@needs_root
@pytest.mark.parametrize("files_too", [False, True])
def test_a_store_that_one_may_not_write(others_folder: FsPath, files_too: bool) -> None:
    """By modes, as its owner; root is kept out by none."""
    root = str(others_folder / "store")
    S = mkSS(root)
    rref = in_child(lambda: realize1(instantiate(above, S=new_store(root))), uid=OTHER_UID)
    modes = {path: path.lstat().st_mode for path in (FsPath(root), *FsPath(root).rglob("*"))}
    for path, mode in modes.items():
        if files_too or path.is_dir():
            path.chmod(stat.S_IMODE(mode) & ~0o222)

    def run() -> None:
        closure = instantiate(above, S=S)
        for call in (register, enumerate_all, lambda S: realize(closure), lambda S: realize(closure, force_rebuild=True)):
            with pytest.raises(StoreReadOnly) as caught:
                call(S)
            check_error(caught.value, StoreReadOnly, "store-read-only", 73, root, "PYLIGHTNIX_ROOT")
        # What needs no lock works: the derivation is there, and a realization that is named can be read.
        assert text_of(rref, S) == "above"
        assert drefcfg_(closure[0], S).val["name"] == "above"
        assert len(rrefctx(rref, S)) == 1

    before = picture(S)
    in_child(run, uid=OTHER_UID)
    assert picture(S) == before
    for path, mode in modes.items():
        if path.exists():  # the last one to look at the index takes its log away
            path.chmod(stat.S_IMODE(mode))

    def run_again() -> None:
        assert realize1(instantiate(above, S=S, realizer=refuses)) == rref
        check_usable(S)

    in_child(run_again, uid=OTHER_UID)


@needs_root
@pytest.mark.parametrize("folder", ["", "store-v1", "tmp"])
def test_one_folder_that_one_may_not_write(others_folder: FsPath, folder: str) -> None:
    root = str(others_folder / "store")

    def run() -> None:
        S = new_store(root)
        os.chmod(os.path.join(root, folder), 0o555)
        with pytest.raises(StoreReadOnly) as caught:
            realize(instantiate(above, S=S))
        check_error(caught.value, StoreReadOnly, "store-read-only", 73, root, "ermission denied" if folder else "")
        os.chmod(os.path.join(root, folder), 0o755)
        check_usable(S)

    in_child(run, uid=OTHER_UID)


@needs_mounts
def test_a_read_only_mount(S: StorageSettings) -> None:
    rref = in_child(lambda: realize1(instantiate(above, S=S)))
    root = str(S.root)

    def stamps() -> dict[str, int]:
        return {str(path): path.lstat().st_mtime_ns for path in FsPath(root).rglob("*")}

    def run() -> None:
        before = stamps()
        mount("--bind", root, root)
        mount("-o", "remount,bind,ro", root)
        closure = instantiate(above, S=S)
        calls: list[Call] = [register, enumerate_all, lambda S: realize(closure), lambda S: fsinit(S, remove_existing=True)]
        for call in calls:
            with pytest.raises(StoreReadOnly) as caught:
                call(S)
            check_error(caught.value, StoreReadOnly, "store-read-only", 73, root, "Read-only file system", "PYLIGHTNIX_ROOT")
        assert text_of(rref, S) == "above"
        assert len(rrefctx(rref, S)) == 1
        assert stamps() == before
        mount("-o", "remount,bind,rw", root)
        assert realize1(instantiate(above, S=S, realizer=refuses)) == rref
        check_usable(S)

    in_child(run, own_mounts=True)


# --- others' stores -----------------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize("mode", [0o755, 0o777, 0o700])
def test_a_store_of_root(open_folder: FsPath, mode: int) -> None:
    S = new_store(open_folder / "store")
    closure = instantiate(above, S=S)
    rref = realize1(closure)
    os.chmod(str(S.root), mode)
    calls: list[Call] = [
        register,
        enumerate_all,
        lambda S: realize(closure),
        fsinit,
        lambda S: fsinit(S, remove_existing=True),
    ]

    def run() -> None:
        for call in calls:
            with pytest.raises(StoreForeign) as caught:
                call(S)
            facts = (str(S.root), "belongs to root", "you are", "a store of your own")
            check_error(caught.value, StoreForeign, "store-foreign", 77, *facts)
        if mode != 0o700:
            assert text_of(rref, S) == "above"
            assert drefcfg_(closure[0], S).val["name"] == "above"

    with unharmed(S):
        in_child(run, uid=OTHER_UID)


@needs_root
def test_a_store_of_another_used_by_root(others_folder: FsPath) -> None:
    root = str(others_folder / "store")
    in_child(lambda: check_usable(new_store(root)), uid=OTHER_UID)
    S = mkSS(root)
    before = picture(S)
    calls: list[Call] = [register, enumerate_all, fsinit, lambda S: fsinit(S, remove_existing=True)]
    for call in calls:
        with pytest.raises(StoreForeign) as caught:
            call(S)
        check_error(caught.value, StoreForeign, "store-foreign", 77, root, "you are root", "run a daemon on it")
    assert picture(S) == before
    # Nothing of root's lies in it that would lock its owner out.
    assert {os.lstat(path).st_uid for path in others_folder.rglob("*")} == {OTHER_UID}
    in_child(lambda: check_usable_by_another(root), uid=OTHER_UID)


def check_usable_by_another(root: str) -> None:
    S = mkSS(root)
    assert realize1(instantiate(above, S=S))


# --- newer, busy --------------------------------------------------------------------------------------


@contextmanager
def at_index(S: StorageSettings) -> Any:
    with closing(sqlite3.connect(store_layout(S).index)) as db:
        yield db


def test_a_store_of_a_newer_version(S: StorageSettings) -> None:
    closure = instantiate(above, S=S)
    rref = realize1(closure)
    with unharmed(S):
        with at_index(S) as db:
            known = db.execute("PRAGMA user_version").fetchone()[0]
            db.execute(f"PRAGMA user_version = {known + 1}")
        calls: list[Call] = [enumerate_all, lambda S: realize(closure), lambda S: realize(closure, force_rebuild=True)]
        for call in calls:
            with pytest.raises(StoreTooNew) as caught:
                call(S)
            check_error(
                caught.value, StoreTooNew, "store-too-new", 78, str(S.root), f"format {known + 1}", f"up to {known}", "upgrade Pylightnix"
            )
        assert text_of(rref, S) == "above"
        with at_index(S) as db:
            db.execute(f"PRAGMA user_version = {known}")
    assert realize1(instantiate(above, S=S, realizer=refuses)) == rref


@contextmanager
def held_exclusively(S: StorageSettings) -> Any:
    """Let a child process be alone in the store; yields its process id."""
    reading, writing = os.pipe()
    ready, held = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writing)
        fd = os.open(store_layout(S).lock, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.write(held, b".")
        os.read(reading, 1)
        os._exit(0)
    os.close(reading)
    os.read(ready, 1)
    try:
        yield pid
    finally:
        os.close(writing)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(held)


def test_a_busy_store(S: StorageSettings) -> None:
    with unharmed(S), held_exclusively(S) as pid:
        with pytest.raises(StoreBusy) as caught, shared_lock(store_layout(S), 0.1):
            raise AssertionError("got the lock")
        check_error(caught.value, StoreBusy, "store-busy", 75, str(S.root), f"process {pid}", "0.1 s", "try again", retryable=True)


@pytest.mark.slow
def test_a_store_that_stays_busy(S: StorageSettings) -> None:
    closure = instantiate(above, S=S)
    with unharmed(S), held_exclusively(S) as pid:
        with pytest.raises(StoreBusy) as caught:
            realize(closure)
        check_error(caught.value, StoreBusy, "store-busy", 75, str(S.root), f"process {pid}", "10 s", "try again", retryable=True)


# --- damage -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "garbage", [b"This is no database.", b"\0" * 8192, b"SQLite format 3\0" + b"\xff" * 4096], ids=["text", "zeros", "head"]
)
def test_an_index_replaced_by_garbage(S: StorageSettings, garbage: bytes) -> None:
    closure = instantiate(above, S=S)
    rref = realize1(closure)
    layout = store_layout(S)
    before = picture(S)
    index = FsPath(layout.index)
    with at_index(S) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    aside = index.with_suffix(".aside")
    index.rename(aside)
    index.write_bytes(garbage)
    calls: list[Call] = [enumerate_all, lambda S: realize(closure), lambda S: realize(closure, force_rebuild=True)]
    for call in calls:
        with pytest.raises(StoreCorrupt) as caught:
            call(S)
        check_error(caught.value, StoreCorrupt, "store-corrupt", 65, layout.index, "nothing was changed", "store reindex")
    assert text_of(rref, S) == "above"
    assert index.read_bytes() == garbage
    aside.rename(index)
    assert picture(S) == before
    assert realize1(instantiate(above, S=S, realizer=refuses)) == rref
    check_usable(S)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "not a config"),
        ("{", "not a config"),
        ("[]", "not a JSON object"),
        ('{"name": "above"}', "its content has the reference dref:"),
        ('{"name": "a/b"}', "not a config"),
        ("[" * 100000, "nested too deeply"),
        ("\x00\xff", "not a config"),
    ],
    ids=["empty", "cut", "list", "other", "name", "deep", "bytes"],
)
def test_a_garbled_config_is_told_of_and_rewritten(S: StorageSettings, text: str, problem: str) -> None:
    result, closure = instantiate(above, S=S)
    rref = realize1(closure)
    before = picture(S)
    path = FsPath(drefcfgpath(result, S))
    sound = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(text.encode("latin-1"))
    for call in (drefcfg_, lambda dref, S: rootdrefs(S)):
        with pytest.raises(StoreCorrupt) as caught:
            call(result, S)
        check_error(caught.value, StoreCorrupt, "store-corrupt", 65, str(path), problem, "instantiate its stage again")
    assert realize1(instantiate(above, S=S, realizer=refuses)) == rref
    assert path.read_bytes() == sound
    assert stat.S_IMODE(path.stat().st_mode) == 0o444
    after = picture(S)
    assert after.rows == before.rows
    assert after.entries.keys() == before.entries.keys()
    check_usable(S)


@pytest.mark.parametrize("instead", ["nothing", "folder", "link"])
def test_a_config_that_is_no_file(S: StorageSettings, instead: str) -> None:
    result, _ = instantiate(above, S=S)
    path = FsPath(drefcfgpath(result, S))
    sound = path.read_bytes()
    path.unlink()
    if instead == "folder":
        path.mkdir()
    elif instead == "link":
        path.symlink_to("config.json")
    with pytest.raises((MissingDerivation, StoreCorrupt, StoreIOError)) as caught:
        drefcfg_(result, S)
    assert str(path) in str(caught.value)
    if instead == "folder":
        assert "remove it and instantiate the stage again" in str(caught.value)
        with pytest.raises(StoreIOError, match="Is a directory"):
            instantiate(above, S=S)
        check_tmp(S)
        path.rmdir()
    assert instantiate(above, S=S)[0] == result
    assert path.read_bytes() == sound
    assert not path.is_symlink()
    check_usable(S)


def test_a_realization_removed_by_hand_is_built_again(S: StorageSettings) -> None:
    builder = Numbered(["same", "same", "same"])

    def main(r: Registry) -> DRef:
        return stage(r, "above", below=stage(r, "below", realizer=builder))

    rref = realize1(instantiate(main, S=S))
    [below] = rrefctx(rref, S).popitem()[1] or []
    folder = rref2path(below, S)
    os.chmod(folder, 0o755)
    shutil.rmtree(folder)
    assert realize1(instantiate(main, S=S)) == rref
    assert len(builder.runs) == 2
    assert text_of(below, S) == "same"
    with unharmed(S):
        pass


def test_a_realization_removed_by_hand_whose_next_build_differs(S: StorageSettings) -> None:
    builder = Numbered()

    def main(r: Registry) -> DRef:
        return stage(r, "above", below=stage(r, "below", realizer=builder))

    first = realize1(instantiate(main, S=S))
    [below] = rrefctx(first, S).popitem()[1] or []
    os.chmod(rref2path(below, S), 0o755)
    shutil.rmtree(rref2path(below, S))
    second = realize1(instantiate(main, S=S))
    assert second != first
    with pytest.raises(MissingRealization) as caught:
        rrefctx(RRef(below), S)
    check_error(caught.value, MissingRealization, "missing-realization", 66, below, rref2path(below, S), "realize its stage first")


def test_a_context_garbled_by_hand(S: StorageSettings) -> None:
    rref = realize1(instantiate(above, S=S))
    path = FsPath(rref2path(rref, S), "context.json")
    for text in ("", "{}", '{"deps": [], "dynamic": {}}', '{"deps": {"x": []}, "dynamic": {}}'):
        path.chmod(0o644)
        path.write_text(text)
        with pytest.raises(StoreCorrupt) as caught:
            rrefctx(rref, S)
        check_error(caught.value, StoreCorrupt, "store-corrupt", 65, str(path), rref, "store verify --repair")


def test_d43_foreign_entries_are_ignored(S: StorageSettings, tmp_path: FsPath) -> None:
    rref = realize1(instantiate(above, S=S))
    drefs, rrefs = list(alldrefs(S)), list(allrrefs(S))
    storage, digits = FsPath(fsstorage(S)), "0" * 32
    (storage / "result").symlink_to(rref2path(rref, S))
    (storage / ".DS_Store").write_text("theirs")
    (storage / "lost+found").mkdir()
    (storage / f"{digits}-file").write_text("a file named like a derivation")
    (storage / f"{digits}-link").symlink_to(dref2path(drefs[0], S))
    (storage / f"{digits}-dangling").symlink_to("nowhere")
    (storage / f"{digits}-unfinished.tmp").mkdir()
    (storage / f"{digits.replace('0', 'A')}-capital").mkdir()
    (storage / f"{drefs[0][5:]}.tmp").mkdir()
    (FsPath(dref2path(drefs[0], S)) / "notes").write_text("theirs")
    (FsPath(dref2path(drefs[0], S)) / digits).mkdir()
    assert list(alldrefs(S)) == drefs
    assert list(allrrefs(S)) == rrefs
    assert {rref for dref in drefs for rref in drefrrefs(dref, S)} == set(rrefs)
    assert len(rootdrefs(S)) == len(rootrrefs(S)) == 1
    with unharmed(S):
        pass


def test_foreign_entries_in_tmp_are_left_alone(S: StorageSettings) -> None:
    FsPath(fstmpdir(S), "notes").write_text("theirs")
    FsPath(fstmpdir(S), "fetchurl").mkdir()
    assert realize1(instantiate(above, S=S))
    assert set(os.listdir(fstmpdir(S))) >= {"notes", "fetchurl"}


def test_d46_debris_where_a_realization_goes(S: StorageSettings) -> None:
    """A folder without a row was never acknowledged: it is replaced, whatever is in it."""
    rref = realize1(instantiate(above, S=S))
    with at_index(S) as db:
        db.execute("DELETE FROM realization WHERE rref = ?", (rref,))
        db.commit()
    folder = FsPath(rref2path(rref, S))
    folder.chmod(0o755)
    (folder / "more").write_text("forged")
    assert realize1(instantiate(above, S=S)) == rref
    assert sorted(os.listdir(folder)) == ["context.json", "out.txt"]
    check_tmp(S)
