"""What a fetcher brings, and what of it is used: the bytes that were hashed, and no others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
from tests.fetch.conftest import within_test
from tests.fetch.test_fetcher import content_of, sha256

from pylightnix import WrongChecksum
from pylightnix.fetch import FetchSpec
from pylightnixd.fetched_files import FetchedFiles, FileGone

CONTENT = b"content" * 1000
NAME = "0123456789abcdef" * 2 + ".file"
SPEC = FetchSpec(("http://x/",), (sha256(CONTENT),))


@pytest.fixture
def brought(tmp_path: Path) -> Path:
    path = tmp_path / NAME
    path.write_bytes(CONTENT)
    return path


def taken(path: Path) -> list[str]:
    return sorted(os.listdir(path.parent / "taken"))


def inode_taken(brought: Path, *, is_alone: bool = True) -> int:
    async def main() -> int:
        async with FetchedFiles(str(brought.parent)).lent(NAME, SPEC, is_alone=is_alone) as file:
            assert content_of(file) == CONTENT
            assert os.stat(file.path).st_nlink == 1
            return os.stat(file.path).st_ino

    found: int = within_test(main)
    assert taken(brought) == []
    return found


def test_a_file_that_nobody_else_has_is_moved(brought: Path) -> None:
    inode = brought.stat().st_ino
    assert inode_taken(brought) == inode
    assert not brought.exists()


def test_a_file_that_others_use_is_copied_and_left_to_them(brought: Path) -> None:
    inode = brought.stat().st_ino
    assert inode_taken(brought, is_alone=False) != inode
    assert brought.read_bytes() == CONTENT


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY])
def test_a_file_that_is_open_elsewhere_is_copied(brought: Path, flags: int) -> None:
    inode = brought.stat().st_ino
    held = os.open(brought, flags)  # for reading is enough: it can be opened again by way of /proc
    try:
        assert inode_taken(brought) != inode
    finally:
        os.close(held)


def test_a_file_with_another_name_is_copied(brought: Path) -> None:
    inode = brought.stat().st_ino
    os.link(brought, brought.parent / "kept")
    assert inode_taken(brought) != inode
    assert (brought.parent / "kept").read_bytes() == CONTENT


def test_another_file_is_refused_and_gone(brought: Path) -> None:
    brought.write_bytes(b"evil")

    async def main() -> None:
        async with FetchedFiles(str(brought.parent)).lent(NAME, SPEC, is_alone=True):
            pass

    with pytest.raises(WrongChecksum):
        within_test(main)
    assert taken(brought) == []


def test_those_who_come_while_it_is_lent_share_it(brought: Path) -> None:
    async def main() -> None:
        files = FetchedFiles(str(brought.parent))
        found = set()
        first_has_left = trio.Event()

        async def first() -> None:
            async with files.lent(NAME, SPEC, is_alone=True) as file:
                found.add(file.path)
                await trio.testing.wait_all_tasks_blocked()
            first_has_left.set()

        async def other() -> None:
            async with files.lent(NAME, SPEC, is_alone=True) as file:
                found.add(file.path)
                await first_has_left.wait()
                assert content_of(file) == CONTENT

        async with trio.open_nursery() as nursery:
            nursery.start_soon(first)
            nursery.start_soon(other)
        assert len(found) == 1
        with pytest.raises(FileGone):
            async with files.lent(NAME, SPEC, is_alone=True):
                pass

    within_test(main)
    assert taken(brought) == []


def test_what_an_earlier_daemon_had_taken_is_there_for_the_next_fetch(brought: Path) -> None:
    (brought.parent / "taken").mkdir()
    brought.rename(brought.parent / "taken" / f"{NAME}.7")
    (brought.parent / "taken" / "odd").write_text("not ours")

    async def main() -> None:
        files = FetchedFiles(str(brought.parent))
        await files.give_back()
        await files.give_back()

    within_test(main)
    assert brought.read_bytes() == CONTENT
    assert taken(brought) == ["odd"]


def test_cancelling_ends_the_hashing_of_a_large_file(brought: Path) -> None:
    os.truncate(brought, 1 << 40)  # a hole: it would take an hour

    async def main() -> None:
        with trio.move_on_after(0.2) as scope:
            async with FetchedFiles(str(brought.parent)).lent(NAME, SPEC, is_alone=True):
                pass
        assert scope.cancelled_caught

    within_test(main)
    assert taken(brought) == []
