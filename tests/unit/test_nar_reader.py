"""Unpacking serializations: what is refused, and that nothing outside of the folder is touched."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pylightnix.nar import MAX_LEVELS, tree_hash
from pylightnix.nar_reader import MalformedNar, unpack_folder


class Bytes:
    """A source of bytes at hand, which counts what is taken."""

    def __init__(self, data: bytes, declared: int | None = None) -> None:
        self._data, self.taken = data, 0
        self._declared = len(data) if declared is None else declared

    def left(self) -> int:
        return self._declared - self.taken

    def take(self, count: int) -> bytes:
        data = self._data[self.taken : self.taken + count]
        assert len(data) == count, "more was taken than there is"
        self.taken += count
        return data


def text(content: bytes) -> bytes:
    return len(content).to_bytes(8, "little") + content + bytes(-len(content) % 8)


def words(*parts: bytes) -> bytes:
    return b"".join(map(text, parts))


def folder(*entries: bytes) -> bytes:
    return words(b"(", b"type", b"directory") + b"".join(entries) + words(b")")


def entry(name: bytes, node: bytes) -> bytes:
    return words(b"entry", b"(", b"name", name, b"node") + node + words(b")")


def file(content: bytes) -> bytes:
    return words(b"(", b"type", b"regular", b"contents", content, b")")


def link(target: bytes) -> bytes:
    return words(b"(", b"type", b"symlink", b"target", target, b")")


def nar(node: bytes) -> bytes:
    return words(b"nix-archive-1") + node


def unpack(data: bytes, where: Path, declared: int | None = None) -> Bytes:
    source = Bytes(data, declared)
    fd = os.open(where, os.O_RDONLY | os.O_DIRECTORY)
    try:
        unpack_folder(source, fd, "out", refuse_top=frozenset({"context.json"}))
    finally:
        os.close(fd)
    return source


PROGRAM = words(b"(", b"type", b"regular", b"executable", b"", b"contents", b"#!", b")")


def test_a_tree_is_made_and_no_byte_more_is_taken(tmp_path: Path) -> None:
    inner = folder(entry(b"context.json", file(b"not at the top")), entry(b"empty", folder()))
    entries = [entry(b"run", PROGRAM), entry(b"sub", inner), entry(b"text", file(b"hello")), entry(b"\xff", link(b"/nowhere"))]
    data = nar(folder(*entries))
    old = os.umask(0o077)
    try:
        assert unpack(data + b"what follows", tmp_path).taken == len(data)
    finally:
        os.umask(old)
    top = tmp_path / "out"
    assert (top / "text").read_bytes() == b"hello"
    assert stat.S_IMODE((top / "run").stat().st_mode) == 0o755
    assert not (top / "text").stat().st_mode & 0o111
    assert os.readlink(os.fsencode(top) + b"/\xff") == b"/nowhere"
    assert tree_hash(top).nar_bytes == len(data)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (words(b"nix-archive-2") + folder(), "nix-archive-1"),
        (nar(file(b"x")), "a folder"),
        (nar(link(b"/etc")), "a folder"),
        (nar(words(b"(", b"type", b"fifo", b")")), "a folder"),
        (nar(folder(entry(b"x", words(b"(", b"type", b"fifo", b")")))), "a file, a folder or a link"),
        *((nar(folder(entry(name, file(b"x")))), "names no entry") for name in (b"", b".", b"..", b"../x", b"/x", b"a/b", b"a\0b")),
        (nar(folder(entry(b"n" * 256, file(b"x")))), "more than 255"),
        (nar(folder(entry(b"b", file(b"")), entry(b"a", file(b"")))), "names ascend"),
        (nar(folder(entry(b"a", file(b"")), entry(b"a", file(b"")))), "names ascend"),
        (nar(folder(entry(b"a", link(b"/tmp")), entry(b"a", folder(entry(b"x", file(b"")))))), "names ascend"),
        (nar(folder(entry(b"context.json", file(b"")))), "kept for metadata"),
        (nar(folder(entry(b"l", link(b"")))), "no target"),
        (nar(folder(entry(b"l", link(b"a\0b")))), "no target"),
        (nar(folder(entry(b"l", link(b"t" * 4096)))), "more than 4095"),
        (nar(words(b"(", b"type", b"directory", b"surprise")), "expected an entry"),
        (nar(folder(entry(b"x", words(b"(", b"type", b"regular", b"executable", b"yes", b"contents", b"", b")")))), "an executable"),
        (nar(folder(entry(b"x", words(b"(", b"type", b"regular", b"size", b"", b")")))), "the contents"),
        (nar(folder(entry(b"x", file(b"a").replace(b"a" + bytes(7), b"a" + bytes(6) + b"!")))), "zeros as padding"),
        ((1 << 62).to_bytes(8, "little"), "a word of the format"),
    ],
)
def test_what_no_tree_serializes_to_is_refused(tmp_path: Path, data: bytes, problem: str) -> None:
    with pytest.raises(MalformedNar, match=problem):
        unpack(data + bytes(64), tmp_path)
    assert os.listdir(tmp_path) in ([], ["out"])


def test_a_declared_size_takes_no_room(tmp_path: Path) -> None:
    head = nar(words(b"(", b"type", b"directory") + words(b"entry", b"(", b"name", b"x", b"node", b"(", b"type", b"regular", b"contents"))
    for size in (1 << 63, 1000):
        with pytest.raises(MalformedNar, match="is declared to have"):
            unpack(head + size.to_bytes(8, "little") + b"1234", tmp_path)
        assert (tmp_path / "out" / "x").stat().st_size == 0
        (tmp_path / "out" / "x").unlink()
        (tmp_path / "out").rmdir()


@pytest.mark.parametrize(("levels", "fits"), [(MAX_LEVELS, True), (MAX_LEVELS + 1, False)])
def test_depth_is_bounded_as_it_is_for_hashing(tmp_path: Path, levels: int, fits: bool) -> None:
    node = folder()
    for _ in range(levels - 1):
        node = folder(entry(b"d", node))
    if fits:
        unpack(nar(node), tmp_path)
        assert tree_hash(tmp_path / "out").files == 0
    else:
        with pytest.raises(MalformedNar, match="nested deeper"):
            unpack(nar(node), tmp_path)


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    data = nar(folder(entry(b"a", file(b"content")), entry(b"l", link(b"a"))))
    for size in range(len(data)):
        where = tmp_path / str(size)
        where.mkdir()
        with pytest.raises(MalformedNar, match=r"ends early|is declared"):
            unpack(data[:size], where)


def test_what_is_there_is_not_touched(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (tmp_path / "out").symlink_to(victim)
    with pytest.raises(FileExistsError):
        unpack(nar(folder(entry(b"a", file(b"x")))), tmp_path)
    assert list(victim.iterdir()) == []
