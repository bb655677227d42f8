"""Hashes of contents: what counts and what does not, and that large files are not read at once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.stores import peak_bytes

from pylightnix import Misuse, datahash, dicthash, dirhash, dirhash_iter, dirshash, filehash
from pylightnix.nar import tree_hash


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


def test_pieces_count_and_labels_do_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert datahash([("a", b"1"), ("b", b"23")]) == datahash([("x", b"12"), ("", b"3")]) == digest(b"123")
    assert datahash([]) == digest()
    assert capsys.readouterr().out == ""
    datahash([("a", b"1"), ("a", b"2"), ("b", b"3")], verbose=True)
    assert capsys.readouterr().out == "a\nb\n"


def test_the_hash_of_a_file_is_that_of_sha256sum(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"text")
    assert filehash(str(tmp_path / "file")) == digest(b"text")
    assert dirhash(str(tmp_path)) == filehash(str(tmp_path / "file"))
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(Misuse, match="expects a file"):
            filehash(str(path))


def test_d7_a_large_file_is_read_in_pieces(tmp_path: Path) -> None:
    with open(tmp_path / "large", "wb") as file:
        file.truncate(20 << 20)
    pieces = [len(piece) for _, piece in dirhash_iter(str(tmp_path))]
    assert sum(pieces) == 20 << 20
    assert max(pieces) <= 1 << 20


@pytest.mark.parametrize("what", [filehash, dirhash, tree_hash, lambda path: tree_hash(os.path.dirname(path))])
def test_d7_no_hash_takes_a_whole_file_into_memory(tmp_path: Path, what: Callable[[str], object]) -> None:
    with open(tmp_path / "large", "wb") as file:
        file.truncate(64 << 20)
    path = str(tmp_path if what is dirhash else tmp_path / "large")
    assert peak_bytes(lambda: what(path)) < 8 << 20


def test_files_before_folders_each_in_the_order_of_names(tmp_path: Path) -> None:
    # Made against that order, so that the file system's own would show.
    for name in ("z", "b", "c/2", "c/1", "a/deep", "_hidden/shown"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"<{name}>")
    for name in ("_stamp", "c/_stamp"):
        (tmp_path / name).write_text("no")
    order = [os.path.relpath(path, tmp_path) for path, _ in dirhash_iter(str(tmp_path))]
    assert order == ["b", "z", "_hidden/shown", "a/deep", "c/1", "c/2"]
    assert dirhash(str(tmp_path)) == digest(*(f"<{name}>".encode() for name in order))
    assert dirshash([str(tmp_path), str(tmp_path)]) == digest(*(f"<{name}>".encode() for name in order * 2))


def test_links_in_a_folder(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("content")
    (tree / "a").symlink_to("../elsewhere/file")
    (tree / "b").symlink_to("../elsewhere")
    (tree / "c").symlink_to("nowhere")
    assert dirhash(str(tree)) == digest(b"../elsewhere/file", b"content", b"nowhere")


def test_what_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "absent"):
        with pytest.raises(Misuse, match="expects a folder"):
            dirhash(str(path))


def test_the_order_of_a_dict_does_not_count() -> None:
    assert dicthash({"b": 2, "a": 1}) == dicthash({"a": 1, "b": 2, "_c": 3}) == digest(b"a=1", b"b=2")
    assert dicthash({"a": 2}) != dicthash({"a": 1})
