"""An index that is lost, cut short or another file is refused beside trees, and never taken for a new store's."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path as FsPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.stores import new_store, picture, refuses, stage

from pylightnix import DRef, Registry, StorageSettings, allrrefs, dirrm, instantiate, mkSS, realize, realize1
from pylightnix.errors import StoreCorrupt, StoreTooNew
from pylightnix.storage import store_layout
from pylightnix.store.index import FORMAT
from pylightnix.store.index_file import file_problem, store_command
from pylightnix.store.layout import StoreLayout
from pylightnix.store.store import open_store_alone

SIDES = ("", "-wal", "-shm")


def above(r: Registry) -> DRef:
    return stage(r, "above", below=stage(r, "below"))


class Kept:
    """A store whose index can be damaged and put back."""

    def __init__(self, folder: FsPath) -> None:
        self.S = new_store(folder / "store")
        self.layout = store_layout(self.S)
        self.rref = realize1(instantiate(above, S=self.S))
        with open_store_alone(self.layout, "test") as store:
            store.index.close()  # the last one that closes it leaves no log
        self.aside = str(folder / "aside")
        shutil.copy(self.layout.index, self.aside)
        self.content = FsPath(self.aside).read_bytes()

    @contextmanager
    def damaged(self) -> Iterator[str]:
        """Put the index back at the end. Both times it is another file, as for a process that has not opened it yet."""
        self.put_back()
        try:
            yield self.layout.index
        finally:
            self.put_back()

    def put_back(self) -> None:
        for side in SIDES:
            FsPath(self.layout.index + side).unlink(missing_ok=True)
        shutil.copy(self.aside, self.layout.index)

    def all_refuse(self, *facts: str) -> None:
        before, raw = picture_of_trees(self.S), read(self.layout.index)
        closure = instantiate(above, S=self.S)
        calls: list[Callable[[], object]] = [
            lambda: list(allrrefs(self.S)),
            lambda: realize(closure),
            lambda: realize(closure, force_rebuild=True),
            lambda: alone(self.layout),
        ]
        for call in calls:
            with pytest.raises(StoreCorrupt) as caught:
                call()
            assert caught.value.exit_status == 65
            for fact in (self.layout.index, f"pylightnix --store {self.S.root} store reindex", *facts):
                assert fact in str(caught.value), str(caught.value)
        assert (picture_of_trees(self.S), read(self.layout.index)) == (before, raw)

    def check_whole(self) -> None:
        assert (
            realize1(instantiate(lambda r: stage(r, "above", below=stage(r, "below", realizer=refuses), realizer=refuses), S=self.S))
            == self.rref
        )


def alone(layout: StoreLayout) -> None:
    with open_store_alone(layout, "test"):
        pass


def read(path: str) -> bytes | None:
    return FsPath(path).read_bytes() if os.path.exists(path) else None


def picture_of_trees(S: StorageSettings) -> object:
    layout = store_layout(S)
    return sorted(os.path.join(folder, name) for folder, _, names in os.walk(layout.storage) for name in names)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    folder = tmp_path_factory.mktemp("kept")
    yield Kept(folder)
    dirrm(str(folder / "store"))


def test_an_absent_index(kept: Kept) -> None:
    with kept.damaged() as path:
        os.unlink(path)
        kept.all_refuse("no such file")
        assert not os.path.exists(path)
    kept.check_whole()


def test_an_empty_index(kept: Kept) -> None:
    with kept.damaged() as path:
        os.truncate(path, 0)
        kept.all_refuse("an empty file")
    kept.check_whole()


def test_the_log_beside_an_empty_index_is_left_alone(kept: Kept) -> None:
    with kept.damaged() as path:
        os.truncate(path, 0)
        FsPath(f"{path}-wal").write_bytes(b"what SQLite would delete")
        kept.all_refuse("an empty file")
        assert read(f"{path}-wal") == b"what SQLite would delete"
    kept.check_whole()


@given(st.data())
@settings(max_examples=30)
def test_an_index_cut_short_at_any_length(kept: Kept, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, len(kept.content) - 1))
    with kept.damaged() as path:
        os.truncate(path, size)
        kept.all_refuse("cut short")


@given(st.binary(min_size=1, max_size=200))
def test_what_is_no_database(kept: Kept, content: bytes) -> None:
    with kept.damaged() as path:
        FsPath(path).write_bytes(content)
        kept.all_refuse()


@pytest.mark.parametrize(
    "script", ["CREATE TABLE other (x)", "PRAGMA application_id = 1", "PRAGMA user_version = 3", "PRAGMA user_version = -1"]
)
def test_a_database_of_another_program(kept: Kept, script: str) -> None:
    with kept.damaged() as path:
        os.unlink(path)
        db = sqlite3.connect(path)
        db.executescript(f"{script}; PRAGMA journal_mode = DELETE")
        db.close()
        kept.all_refuse()


def test_a_database_without_content(kept: Kept) -> None:
    with kept.damaged() as path:
        os.unlink(path)
        db = sqlite3.connect(path)
        db.executescript("PRAGMA journal_mode = WAL; CREATE TABLE t (x); DROP TABLE t")
        db.close()
        kept.all_refuse("a database without content")


@pytest.mark.parametrize("newer", [FORMAT + 1, 1 << 30])
def test_a_newer_format_is_said_to_be_one(kept: Kept, newer: int) -> None:
    with kept.damaged() as path:
        db = sqlite3.connect(path)
        db.execute(f"PRAGMA user_version = {newer}")
        db.close()
        with pytest.raises(StoreTooNew):
            list(allrrefs(kept.S))


def test_a_process_that_knew_it_finds_out(kept: Kept) -> None:
    """A connection that is kept between calls does not hide what has become of the file."""
    with kept.damaged() as path:
        kept.check_whole()
        os.truncate(path, 0)
        with pytest.raises(StoreCorrupt, match="an empty file"):
            list(allrrefs(kept.S))


def test_what_a_power_cut_left_of_a_new_index_is_for_sqlite_to_undo(tmp_path: FsPath) -> None:
    """The journal was synced, and the page that it undoes was not: SQLite's own way to a new file."""
    S = new_store(tmp_path / "store")
    layout = store_layout(S)
    script = (
        "import os, sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "db.execute('PRAGMA cache_size = 1')\n"
        "db.execute('BEGIN IMMEDIATE')\n"
        "db.execute('CREATE TABLE t (x)')\n"
        "for _ in range(50): db.execute('INSERT INTO t VALUES (randomblob(3000))')\n"  # does not fit, so the file is written
        "os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, layout.index]).returncode == 9
    assert os.path.getsize(f"{layout.index}-journal") > 0
    with open(layout.index, "r+b") as file:
        file.write(bytes(os.path.getsize(layout.index)))
    assert list(allrrefs(S)) == []
    assert realize1(instantiate(above, S=S))


def test_a_store_without_trees_is_new(tmp_path: FsPath) -> None:
    S = new_store(tmp_path / "store")
    instantiate(above, S=S)
    assert list(allrrefs(S)) == []
    layout = store_layout(S)
    os.makedirs(f"{layout.storage}/not-one/{'0' * 32}")
    os.makedirs(f"{layout.storage}/{'0' * 32}-name/not-one")
    for side in SIDES:
        FsPath(layout.index + side).unlink(missing_ok=True)
    assert list(allrrefs(S)) == []
    FsPath(layout.index).write_bytes(b"")
    assert realize1(instantiate(above, S=S))


def test_a_live_index_is_sound_at_every_moment(tmp_path: FsPath) -> None:
    """Whatever another process writes, and in the midst of checkpoints: see that the file is fit."""
    path = str(tmp_path / "index.sqlite")
    script = (
        "import sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "db.executescript('PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; CREATE TABLE t (x)')\n"
        "print(flush=True)\n"
        "for n in range(400):\n"
        "    db.execute('INSERT INTO t VALUES (randomblob(60000))')\n"
        "    if n % 3 == 0: db.execute('PRAGMA wal_checkpoint(PASSIVE)')\n"
        "    if n % 50 == 49: db.executescript('DELETE FROM t; VACUUM')\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        looks = 0
        while writer.poll() is None:
            assert file_problem(path) is None
            looks += 1
    assert writer.returncode == 0
    assert looks > 10


def test_the_command_is_ready_to_be_copied(tmp_path: FsPath) -> None:
    assert store_command(store_layout(mkSS("/a b")), "reindex") == "pylightnix --store '/a b' store reindex"
    apart = store_layout(mkSS("/r", "/trees"))
    assert store_command(apart, "reindex") == "PYLIGHTNIX_STORAGE=/trees pylightnix store reindex"
    layout = StoreLayout(storage="/r/store-v1", tmp="/r/tmp", state="/fast disk")
    assert store_command(layout, "verify", "--repair") == "pylightnix --store /r store verify --repair --state '/fast disk'"


def test_trees_are_what_they_were(kept: Kept) -> None:
    kept.check_whole()
    assert picture(kept.S).rows
