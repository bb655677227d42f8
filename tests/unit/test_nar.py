"""The tree hash, against digests that nix-hash once gave, and its refusals."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pylightnix.errors import InvalidTree
from pylightnix.nar import OPEN_FLAGS, EntryKind, TreeDigest, hash_folder, tree_hash

NIX_HASH = shutil.which("nix-hash")


def put(path: bytes, content: bytes = b"", mode: int = 0o644) -> None:
    with open(path, "wb") as file:
        file.write(content)
    os.chmod(path, mode)


def make_order(top: bytes) -> None:
    os.mkdir(top)
    for name in (b"Z", b"a", b"a-b", b"a.b", "é".encode(), b"\xff", b"_"):
        put(top + b"/" + name, name)
    os.mkdir(top + b"/a+")
    put(top + b"/a+/a", b"12345678")


def make_mixed(top: bytes) -> None:
    os.makedirs(top + b"/sub/void")
    put(top + b"/sub/tool", b"x", 0o700)
    os.symlink(b"sub/tool", top + b"/link")
    os.symlink(b"\xfe", top + b"/sub/raw")
    put(top + b"/__init__.py")


GOLDEN: dict[str, tuple[Callable[[bytes], None], TreeDigest]] = {
    "empty folder": (
        os.mkdir,
        TreeDigest("a50a5ab6d992f5598edd92105059fae9acfc192981e08bd88534c2167e92526a", 96, 0, 0),
    ),
    "empty file": (
        put,
        TreeDigest("77ac62e2629d8e45f624589c0c8bf99e24b3a722349bf1e79bc186008534e246", 112, 1, 0),
    ),
    "file": (
        lambda top: put(top, b"hello\n"),
        TreeDigest("1c37d01af40be2e80691de3cc3df44377a699afbb17c68f080964b2fd071fc13", 120, 1, 6),
    ),
    "program": (
        lambda top: put(top, b"#!/bin/sh\n", 0o755),
        TreeDigest("6283c1668260f903d1a895c0cd6b822fa4b68762bb0b17cedef2d39d97e26554", 160, 1, 10),
    ),
    "dangling link": (
        lambda top: os.symlink(b"no/such/target", top),
        TreeDigest("780e5336a288da38f27caab66acafafeecf5e27a9211657d17bb569a98298ce1", 128, 0, 0),
    ),
    "order of names": (
        make_order,
        TreeDigest("424305c1edf0a60433de25ed4bbdb3306e6656cdee15ba0b3e9011808cf8eaf8", 1800, 8, 20),
    ),
    "mixed": (
        make_mixed,
        TreeDigest("0a556bffdee55ef373e3586e165a8deef58359be56b3d881a42aeeb71dd56d2d", 1232, 2, 1),
    ),
}


@pytest.mark.parametrize("case", sorted(GOLDEN))
def test_golden_digests(tmp_path: Path, case: str) -> None:
    make, expected = GOLDEN[case]
    make(os.fsencode(tmp_path) + b"/top")
    assert tree_hash(tmp_path / "top") == expected
    assert tree_hash(str(tmp_path / "top")) == expected


def test_only_names_contents_and_the_owners_executable_bit_count(tmp_path: Path) -> None:
    top = tmp_path / "top"
    make_mixed(os.fsencode(top))
    before = tree_hash(top)
    (top / "sub/tool").chmod(0o555)
    (top / "__init__.py").chmod(0o675)  # no bit of the owner's
    (top / "sub/void").chmod(0o1700)
    os.utime(top / "__init__.py", (1, 1))
    assert tree_hash(top) == before
    (top / "sub/tool").chmod(0o655)
    assert tree_hash(top) != before


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_text("1")
    (tmp_path / "top").mkdir()
    (tmp_path / "top/link").symlink_to(tmp_path / "outside")
    (tmp_path / "link").symlink_to(tmp_path / "outside")
    before = tree_hash(tmp_path / "top"), tree_hash(tmp_path / "link")
    (tmp_path / "outside/file").write_text("2")
    assert (tree_hash(tmp_path / "top"), tree_hash(tmp_path / "link")) == before


def test_excluded_names_are_left_out_at_the_top_only(tmp_path: Path) -> None:
    plain, extra = tmp_path / "plain", tmp_path / "extra"
    for top in (plain, extra):
        make_mixed(os.fsencode(top))
        (top / "sub/context.json").write_text("{}")
    (extra / "context.json").write_text("{}")
    os.mkfifo(extra / "start")
    excluded = frozenset({"context.json", "start"})
    assert tree_hash(extra, exclude_top=excluded) == tree_hash(plain) == tree_hash(plain, exclude_top=excluded)
    (extra / "sub/context.json").unlink()
    assert tree_hash(extra, exclude_top=excluded) != tree_hash(plain)


def test_special_files_are_refused_by_name_and_never_waited_for(tmp_path: Path) -> None:
    (tmp_path / "top/sub").mkdir(parents=True)
    fifo = tmp_path / "top/sub/fifo"
    os.mkfifo(fifo)
    for top in (tmp_path / "top", fifo):
        with pytest.raises(InvalidTree, match=r"top/sub/fifo: is a FIFO; a tree holds") as caught:
            tree_hash(top)
        assert caught.value.where == str(fifo)


def test_sockets_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "top").mkdir()
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("top/sock")
        with pytest.raises(InvalidTree, match=r"top/sock: is a socket"):
            tree_hash("top")


def test_devices_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidTree, match=r"^/dev/null: is a character device"):
        tree_hash("/dev/null")
    if os.geteuid() != 0:
        pytest.skip("only root makes devices")
    (tmp_path / "top").mkdir()
    os.mknod(tmp_path / "top/null", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    with pytest.raises(InvalidTree, match=r"top/null: is a character device"):
        tree_hash(tmp_path / "top")


def test_nesting_is_bounded(tmp_path: Path) -> None:
    inner = tmp_path / "d" / "/".join("d" * 255)
    inner.mkdir(parents=True)
    assert tree_hash(tmp_path / "d").files == 0
    (inner / "d").mkdir()
    before = os.listdir("/proc/self/fd")
    with pytest.raises(InvalidTree, match=r"/d/d: is nested deeper than 256 levels"):
        tree_hash(tmp_path / "d")
    assert os.listdir("/proc/self/fd") == before


def test_names_that_are_not_utf8_are_shown_escaped(tmp_path: Path) -> None:
    os.mkfifo(os.fsencode(tmp_path) + b"/\xff")
    with pytest.raises(InvalidTree) as caught:
        tree_hash(tmp_path)
    assert caught.value.where == f"{tmp_path}/\\xff"


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing"):
        tree_hash(tmp_path / "nothing")


class Resizing:
    """Access whose files change their size once they are open, as a build that still writes would do."""

    def __init__(self, to_bytes: int) -> None:
        self.to_bytes = to_bytes

    def open_entry(self, parent_fd: int, name: bytes, where: bytes) -> tuple[int, os.stat_result]:
        fd = os.open(name, OPEN_FLAGS, dir_fd=parent_fd)
        info = os.fstat(fd)
        os.truncate(where, self.to_bytes)
        return fd, info

    def skip_entry(self, parent_fd: int, name: bytes, kind: EntryKind, where: bytes) -> None:
        raise AssertionError(where)

    def leave_file(self, fd: int) -> None:
        pass

    def leave_link(self, parent_fd: int, name: bytes) -> None:
        raise AssertionError(name)

    def leave_folder(self, fd: int, where: bytes) -> None:
        raise AssertionError(where)


SIZES = [0, 10, 1 << 16, (1 << 16) + 1, 1 << 21]


@pytest.mark.parametrize("before", SIZES)
@pytest.mark.parametrize("after", [0, 9, 11, 1 << 16, (1 << 21) - 1, 1 << 21, (1 << 21) + 1])
def test_files_that_change_their_size_are_refused(tmp_path: Path, before: int, after: int) -> None:
    (tmp_path / "file").write_bytes(bytes(before))
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        access = Resizing(after)
        if before == after:
            assert hash_folder(fd, where=str(tmp_path), access=access) == tree_hash(tmp_path)
        else:
            with pytest.raises(InvalidTree, match=rf"/file: changed its size .* began with {before} bytes"):
                hash_folder(fd, where=str(tmp_path), access=access)
    finally:
        os.close(fd)


@pytest.mark.skipif(NIX_HASH is None, reason="nix-hash is not installed")
@pytest.mark.parametrize("size", [0, 7, 8, 65535, 65536, 65537, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, (1 << 22) + 5])
def test_sizes_about_the_blocks_agree_with_nix(tmp_path: Path, size: int) -> None:
    assert NIX_HASH is not None
    (tmp_path / "file").write_bytes(bytes(range(256)) * (size // 256) + b"x" * (size % 256))
    assert tree_hash(tmp_path).sha256 == nix_hash(NIX_HASH, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(NIX_HASH is None, reason="nix-hash is not installed")
def test_five_gibibytes_of_holes_agree_with_nix(tmp_path: Path) -> None:
    assert NIX_HASH is not None
    with open(tmp_path / "file", "wb") as file:
        file.truncate(5 << 30)
        file.seek(3 << 30)
        file.write(b"in the middle")
    found = tree_hash(tmp_path)
    assert found.sha256 == nix_hash(NIX_HASH, tmp_path)
    assert found.file_bytes == 5 << 30


def nix_hash(program: str, path: Path) -> str:
    run = subprocess.run([program, "--type", "sha256", path], check=True, capture_output=True, text=True)
    return run.stdout.strip()
