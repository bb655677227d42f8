"""What the system refuses is named as such, with the file and what to do, by whatever way it comes: it is never a bug."""

from __future__ import annotations

import errno
import os
import resource
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.stores import in_child, new_store, stage

from pylightnix import StoreError, StoreFull, StoreReadOnly, instantiate, realize1
from pylightnix.errors import StoreIOError
from pylightnix.protocol.errors_on_wire import error_from_wire, error_to_wire
from pylightnix.storage import store_layout
from pylightnix.store.access import in_words, store_error
from pylightnix.store.layout import StoreLayout
from pylightnix.store.locks import exclusive_lock
from pylightnix.store.store import open_store
from pylightnix.system_errors import is_refusal, refusal

LAYOUT = StoreLayout(storage="/s/store-v1", tmp="/s/tmp", state="/s")
WORDS: dict[int, tuple[type[StoreError], str, str]] = {
    errno.ENOSPC: (StoreFull, "no space left", "free some room"),
    errno.EDQUOT: (StoreFull, "disk quota exceeded", "free some room"),
    errno.EROFS: (StoreReadOnly, "Read-only file system", "dmesg"),
    errno.EMFILE: (StoreIOError, "Too many open files", "ulimit -n"),
    errno.ENFILE: (StoreIOError, "Too many open files in system", "fs.file-max"),
    errno.ESTALE: (StoreIOError, "Stale file handle", "mount that file system again"),
    errno.EIO: (StoreIOError, "Input/output error", "pylightnix store verify"),
}
OURS = (errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EFAULT, errno.ENOENT)
"""What says that we asked for the wrong thing."""


@pytest.mark.parametrize("number", WORDS)
@pytest.mark.parametrize("path", ["/s/logs/x", None])
def test_each_has_its_words_file_and_advice(number: int, path: str | None) -> None:
    cls, reason, advice = WORDS[number]
    error = OSError(number, os.strerror(number), path) if path else OSError(number, os.strerror(number))
    for made in (refusal(error, "writing", "/s"), store_error(LAYOUT, "writing", error), in_words(LAYOUT, "writing", error)):
        text = str(made)
        assert type(made) is cls
        assert all(part in text for part in (reason, path or "/s", "while writing", advice)), text


@pytest.mark.parametrize("number", WORDS)
def test_over_the_wire_it_is_never_a_bug(number: int) -> None:
    cls, reason, advice = WORDS[number]
    plain = OSError(number, os.strerror(number), "/s/logs/x")
    for error in (plain, ExceptionGroup("a nursery", [plain]), ExceptionGroup("two", [ExceptionGroup("one", [plain]), plain])):
        wire = error_to_wire(error, "abc")
        assert wire.code == cls.code
        assert type(error_from_wire(wire)) is cls
        assert all(part in wire.message for part in (reason, "/s/logs/x", advice)), wire.message


@pytest.mark.parametrize("number", OURS)
def test_what_is_a_mistake_of_ours_stays_one(number: int) -> None:
    error = OSError(number, os.strerror(number), "/s/x")
    assert not is_refusal(error)
    assert in_words(LAYOUT, "writing", error) is error
    assert error_to_wire(error, "abc").code == "internal"


def test_a_bug_beside_a_full_disk_is_a_bug() -> None:
    group = ExceptionGroup("both", [OSError(errno.ENOSPC, "no"), KeyError("greeted")])
    assert error_to_wire(group, "abc").code == "internal"


def test_what_the_index_says_is_ours_only_if_we_asked_wrongly() -> None:
    assert isinstance(in_words(LAYOUT, "looking", sqlite3.OperationalError("disk I/O error")), StoreError)
    assert isinstance(in_words(LAYOUT, "looking", sqlite3.DatabaseError("malformed")), StoreError)
    mistake = sqlite3.ProgrammingError("no such column")
    assert in_words(LAYOUT, "looking", mistake) is mistake


def test_a_name_without_its_folder_is_told_beside_the_folder() -> None:
    error = refusal(OSError(errno.EIO, os.strerror(errno.EIO), "file"), "removing it", "/s/tmp/7")
    assert isinstance(error, StoreIOError)
    assert error.where == "/s/tmp/7"
    assert "(at 'file')" in str(error)


def test_of_a_rename_the_target_is_named() -> None:
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/s/tmp/7", None, "/s/store-v1/x")
    assert "at /s/store-v1/x" in str(refusal(error, "renaming", "/s"))


def test_a_lock_is_let_go_where_nothing_can_be_written_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = store_layout(new_store(tmp_path / "store"))

    def refused(fd: int, size: int) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with exclusive_lock(layout, "test"):
        monkeypatch.setattr(os, "ftruncate", refused)
    monkeypatch.undo()
    with exclusive_lock(layout, "test", 0):
        pass


@contextmanager
def descriptors_left(spare: int) -> Iterator[None]:
    """Let this process open so many more descriptors in the block."""
    hard, held = resource.getrlimit(resource.RLIMIT_NOFILE)[1], [os.dup(0)]
    while os.path.exists(f"/proc/self/fd/{held[-1] + 1}") or len(held) < 64:  # below the limit there is to be no gap
        held.append(os.dup(0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(held) + 1 + spare, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        for fd in held:
            os.close(fd)


def test_with_few_descriptors_the_library_says_so_and_what_to_do(tmp_path: Path) -> None:
    """Whatever it gets to, SQLite's files included, which says no more than that it cannot open one."""

    def run() -> list[str]:
        told = []
        for spare in range(12):
            S = new_store(tmp_path / f"store-{spare}")
            closure = instantiate(stage, S=S)
            with descriptors_left(spare):
                try:
                    with open_store(store_layout(S)):  # which makes the index
                        pass
                    realize1(closure)
                except StoreError as error:
                    told.append(str(error))
                except OSError as error:  # of the realizer's own
                    told.append(f"{error}; ulimit -n" if error.errno == errno.EMFILE else repr(error))
        return told

    told = in_child(run)
    assert any("index" in text for text in told)
    assert [text for text in told if "Too many open files" not in text or "ulimit -n" not in text] == []
