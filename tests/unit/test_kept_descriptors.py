"""Files of an output that somebody can still write to when it is taken over: the store gets bytes of its own."""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from tests.stores import output, stage
from tests.unit.test_takeover import run, take, theirs

from pylightnix import DRef, StorageSettings, instantiate, realize1, rref2path
from pylightnix.nar import hash_folder, tree_hash
from pylightnix.store import writers
from pylightnix.store.takeover import _Sealing
from pylightnix.store.writers import has_writers

__all__ = ["theirs"]

DREF = DRef("dref:0123456789abcdef0123456789abcdef-stage")
LATE = b"LATE"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "build/out"
    folder.mkdir(parents=True)
    (folder / "file").write_bytes(b"original")
    return folder


# Each keeps a way to write to a file, and yields what writes.


@contextmanager
def descriptor(path: Path) -> Iterator[Callable[[], object]]:
    with open(path, "r+b", buffering=0) as file:
        yield lambda: file.write(LATE)


@contextmanager
def buffered(path: Path) -> Iterator[Callable[[], object]]:
    """What a realizer has not flushed is written when the garbage collector comes by."""
    with open(path, "r+b") as file:
        file.write(LATE)
        yield file.flush


@contextmanager
def mapping(path: Path) -> Iterator[Callable[[], object]]:
    with open(path, "r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0)
    with mapped:
        yield lambda: mapped.__setitem__(slice(0, len(LATE)), LATE)


@contextmanager
def in_flight(path: Path) -> Iterator[Callable[[], object]]:
    """In the queue of a socket, where no process has it."""
    sending, receiving = socket.socketpair()
    with sending, receiving:
        fd = os.open(path, os.O_WRONLY)
        socket.send_fds(sending, [b"x"], [fd])
        os.close(fd)

        def write() -> None:
            (received,) = socket.recv_fds(receiving, 1, 1)[1]
            os.write(received, LATE)
            os.close(received)

        yield write


KEEPERS = [descriptor, buffered, mapping, in_flight]


@pytest.mark.parametrize("keeper", KEEPERS)
@pytest.mark.parametrize("mode", [0o644, 0o700, 0o200, 0o444])
def test_d7_what_is_written_later_does_not_reach_the_store(out: Path, keeper: Callable[[Path], object], mode: int) -> None:
    expected = (out / "file").read_bytes()
    with keeper(out / "file") as write:  # type: ignore[attr-defined]  # context managers, all of them
        (out / "file").chmod(mode)
        digest = take(out)
        write()
    assert (out / "file").read_bytes() == expected
    assert tree_hash(out) == digest
    assert os.stat(out / "file").st_mode & 0o777 == (0o555 if mode & 0o100 else 0o444)
    assert os.listdir(out) == ["file"]


def test_d7_only_what_can_be_written_to_is_copied(out: Path, caplog: pytest.LogCaptureFixture) -> None:
    (out / "other").write_bytes(b"other")
    (out / "more").write_bytes(b"more")
    inodes = {name: os.stat(out / name).st_ino for name in ("file", "other", "more")}
    with open(out / "other", "rb"), descriptor(out / "file"), descriptor(out / "more"), caplog.at_level(logging.WARNING):
        take(out)
    assert {name for name, inode in inodes.items() if os.stat(out / name).st_ino != inode} == {"file", "more"}
    assert "still open for writing after the build" in caplog.text
    assert len(caplog.records) == 1


def test_d7_a_hard_link_with_a_writer_is_copied_once(out: Path, tmp_path: Path) -> None:
    os.link(out / "file", tmp_path / "elsewhere")
    with descriptor(out / "file") as write:
        digest = take(out)
        write()
    assert (tmp_path / "elsewhere").read_bytes() == b"LATEinal"
    assert tree_hash(out) == digest


def test_d7_an_ordinary_user_is_told_of_writers(theirs: Path) -> None:
    run(
        """
os.mkdir("out")
kept = open("out/file", "w")
kept.write("early"); kept.flush()
take("out")
kept.write("late"); kept.flush()
assert open("out/file").read() == "early"
""",
        theirs,
    )


@pytest.mark.embedded_only("the realizer's files are open in the process that takes them over")
def test_d7_a_realizer_that_keeps_a_file_open_changes_nothing_later(S: StorageSettings) -> None:
    with ExitStack() as kept:

        def realizer(S: StorageSettings, dref: DRef, context: object, rarg: object) -> list[object]:
            folder = output(S, {"file": "original"})
            writes.append(kept.enter_context(buffered(Path(folder, "file"))))
            return [folder]

        writes: list[Callable[[], object]] = []
        rref = realize1(instantiate(lambda r: stage(r, realizer=realizer), S=S))  # type: ignore[arg-type]  # `object` above
        for write in writes:
            write()
    assert Path(rref2path(rref, S), "file").read_text() == "original"


# --- file systems that cannot tell ----------------------------------------------------------------------


def test_a_file_system_that_sees_writers_everywhere_is_asked_no_more(out: Path) -> None:
    """As NFS does where its server gives no delegations."""
    (out / "other").write_bytes(b"other")
    asked = []

    def ask(fd: int, info: os.stat_result) -> bool:
        asked.append(fd)
        return info.st_dev not in writers._mute

    device, inodes = os.stat(out).st_dev, {os.stat(out / name).st_ino for name in ("file", "other")}
    fd = os.open(out, os.O_RDONLY)
    try:
        digest = hash_folder(fd, where="out", access=_Sealing(DREF, ask))
        assert device in writers._mute
    finally:
        writers._mute.discard(device)
        os.close(fd)
    assert len(asked) == 3
    assert len(inodes & {os.stat(out / name).st_ino for name in ("file", "other")}) == 1
    assert tree_hash(out) == digest


def test_a_file_system_without_leases_is_asked_no_more(out: Path) -> None:
    """The kernel says of a folder what it says of a file there."""
    fd = os.open(out, os.O_RDONLY)
    info = os.stat_result((0, 0, -1, *range(7)))
    try:
        assert not has_writers(fd, info)
        assert -1 in writers._mute
    finally:
        writers._mute.discard(-1)
        os.close(fd)


def test_no_lease_is_left(out: Path) -> None:
    fd = os.open(out / "file", os.O_RDONLY)
    try:
        assert not has_writers(fd, os.fstat(fd))
        assert fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_UNLCK
        os.close(os.open(out / "file", os.O_WRONLY | os.O_NONBLOCK))
    finally:
        os.close(fd)
