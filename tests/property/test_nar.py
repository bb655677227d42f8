"""The tree hash of any tree is that of a serialization written as plainly as can be, and that of Nix."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylightnix.nar import TreeDigest, tree_hash

NIX_HASH = shutil.which("nix-hash")


@dataclass(frozen=True)
class File:
    piece: bytes
    times: int
    mode: int

    @property
    def content(self) -> bytes:
        return self.piece * self.times


@dataclass(frozen=True)
class Link:
    target: bytes


Tree: TypeAlias = "File | Link | dict[bytes, Tree]"

names = st.one_of(
    st.binary(min_size=1, max_size=12),
    st.text(alphabet="aAb.-_é", min_size=1, max_size=4).map(str.encode),
).filter(lambda name: name not in (b".", b"..") and not {b"/"[0], 0} & set(name))
targets = st.binary(min_size=1, max_size=20).filter(lambda target: 0 not in target)
modes = st.sampled_from([0o644, 0o755, 0o400, 0o411, 0o500])
files = st.builds(File, st.binary(max_size=40), st.sampled_from([1, 1, 30000]), modes)
trees: st.SearchStrategy[Tree] = st.recursive(
    files | st.builds(Link, targets), lambda inner: st.dictionaries(names, inner, max_size=5), max_leaves=12
)


def write(tree: Tree, path: bytes) -> None:
    if isinstance(tree, File):
        with open(path, "wb") as file:
            file.write(tree.content)
        os.chmod(path, tree.mode)
    elif isinstance(tree, Link):
        os.symlink(tree.target, path)
    else:
        os.mkdir(path)
        for name, inner in tree.items():
            write(inner, path + b"/" + name)


def text(content: bytes) -> bytes:
    padded = (len(content) + 7) // 8 * 8
    return len(content).to_bytes(8, "little") + content.ljust(padded, b"\0")


def serialized(tree: Tree) -> bytes:
    if isinstance(tree, File):
        mark = [b"executable", b""] if tree.mode & 0o100 else []
        inner = b"".join(map(text, [b"type", b"regular", *mark, b"contents", tree.content]))
    elif isinstance(tree, Link):
        inner = b"".join(map(text, [b"type", b"symlink", b"target", tree.target]))
    else:
        inner = text(b"type") + text(b"directory")
        for name in sorted(tree):
            inner += text(b"entry") + text(b"(") + text(b"name") + text(name) + text(b"node")
            inner += serialized(tree[name]) + text(b")")
    return text(b"(") + inner + text(b")")


def files_of(tree: Tree) -> list[File]:
    if isinstance(tree, dict):
        return [file for inner in tree.values() for file in files_of(inner)]
    return [tree] if isinstance(tree, File) else []


def expected_digest(tree: Tree) -> TreeDigest:
    nar = text(b"nix-archive-1") + serialized(tree)
    found = files_of(tree)
    return TreeDigest(hashlib.sha256(nar).hexdigest(), len(nar), len(found), sum(len(file.content) for file in found))


@settings(deadline=None)
@given(trees)
def test_any_tree_has_the_hash_of_its_serialization(tree: Tree) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(tree, os.fsencode(folder) + b"/top")
        assert tree_hash(f"{folder}/top") == expected_digest(tree)


@settings(deadline=None)
@given(st.dictionaries(names, trees, max_size=4), st.sets(names.map(os.fsdecode), max_size=2), st.data())
def test_excluded_names_do_not_count(tree: dict[bytes, Tree], others: set[str], data: st.DataObject) -> None:
    chosen = data.draw(st.sets(st.sampled_from(sorted(map(os.fsdecode, tree))))) if tree else set()
    rest: Tree = {name: inner for name, inner in tree.items() if os.fsdecode(name) not in chosen | others}
    with tempfile.TemporaryDirectory() as folder:
        write(tree, os.fsencode(folder) + b"/top")
        assert tree_hash(f"{folder}/top", exclude_top=frozenset(chosen | others)) == expected_digest(rest)


@pytest.mark.skipif(NIX_HASH is None, reason="nix-hash is not installed")
@settings(deadline=None, max_examples=50)
@given(trees)
def test_any_tree_has_the_hash_that_nix_gives_it(tree: Tree) -> None:
    assert NIX_HASH is not None
    with tempfile.TemporaryDirectory() as folder:
        write(tree, os.fsencode(folder) + b"/top")
        argv = [NIX_HASH, "--type", "sha256", f"{folder}/top"]
        run = subprocess.run(argv, check=True, capture_output=True, text=True)
        assert tree_hash(f"{folder}/top").sha256 == run.stdout.strip()
