"""Verifies a store by itself: its own hash of trees, its own reading of the index. Trusts none of the product's code."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

VALID: Final = 1
METADATA: Final = {b"context.json", b"__buildstart__.txt", b"__buildstop__.txt"}


def _text(data: bytes) -> bytes:
    return len(data).to_bytes(8, "little") + data + bytes(-len(data) % 8)


def _words(*words: bytes) -> bytes:
    return b"".join(map(_text, words))


def _archive(path: bytes, is_top: bool = False) -> Iterator[bytes]:
    """The NAR form of a tree, as Nix defines it."""
    mode = os.lstat(path).st_mode
    if stat.S_ISLNK(mode):
        yield _words(b"(", b"type", b"symlink", b"target", os.readlink(path), b")")
    elif stat.S_ISREG(mode):
        with open(path, "rb") as file:
            data = file.read()
        yield _words(b"(", b"type", b"regular", *((b"executable", b"") if mode & 0o100 else ()), b"contents", data, b")")
    elif stat.S_ISDIR(mode):
        yield _words(b"(", b"type", b"directory")
        for name in sorted(os.listdir(path)):
            if not (is_top and name in METADATA):
                yield _words(b"entry", b"(", b"name", name, b"node")
                yield from _archive(os.path.join(path, name))
                yield _words(b")")
        yield _words(b")")
    else:
        raise ValueError(f"neither file, folder nor link: {path!r}")


def tree_hash(path: str) -> str:
    digest = hashlib.sha256(_text(b"nix-archive-1"))
    for part in _archive(os.fsencode(path), is_top=True):
        digest.update(part)
    return digest.hexdigest()


def _canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


@dataclass(frozen=True, slots=True)
class Row:
    state: int
    tree_hash: str
    references: frozenset[str]


def read_index(root: str) -> dict[str, Row]:
    """Read a copy, for whoever closes an index last changes it."""
    with tempfile.TemporaryDirectory(prefix="test-pylightnix-index-") as folder, contextlib.ExitStack() as stack:
        for name in ("index.sqlite", "index.sqlite-wal"):
            if os.path.exists(f"{root}/{name}"):
                shutil.copyfile(f"{root}/{name}", f"{folder}/{name}")
        db = stack.enter_context(contextlib.closing(sqlite3.connect(f"{folder}/index.sqlite")))
        problem = db.execute("PRAGMA integrity_check").fetchone()[0]
        if problem != "ok":
            raise ValueError(f"the index is damaged: {problem}")
        if db.execute("SELECT 1 FROM sqlite_master").fetchone() is None:
            return {}  # a daemon has just begun to make it
        references: dict[str, set[str]] = {}
        for rref, referred in db.execute("SELECT rref, referred FROM realization JOIN reference ON referrer = id"):
            references.setdefault(rref, set()).add(referred)
        rows = db.execute("SELECT rref, state, tree_hash FROM realization").fetchall()
    return {rref: Row(state, digest, frozenset(references.get(rref, ()))) for rref, state, digest in rows}


def problems(root: str, told: Iterable[str], right: Iterable[str] = (), settled: bool = True, hashed: bool = True) -> list[str]:
    """Return what is wrong with a store.

    Args:
        root: where it is.
        told: what clients were told of, and did not have removed.
        right: all realizations that there may be; none for any.
        settled: demand that nothing is in flight or left over, as after a recovery.
        hashed: read all trees, too.
    """
    try:
        rows = read_index(root)
    except (sqlite3.Error, ValueError) as error:
        return [f"the index cannot be read: {error}"]
    found = [f"lost: {rref}" for rref in told if rref not in rows or rows[rref].state != VALID]
    known, allowed = set(), set(right)
    for rref, row in rows.items():
        name = f"{rref[38:]}/{rref[5:37]}"
        known.add(name)
        if row.state == VALID:
            if allowed and rref not in allowed:
                found.append(f"wrong: nobody made {rref}")
            found += [f"dangling: {rref} needs {below}" for below in row.references if below not in rows or rows[below].state != VALID]
            if hashed or not os.path.isdir(f"{root}/store-v1/{name}"):
                found += _realization_problems(rref, row, f"{root}/store-v1/{name}")
        elif settled:
            found.append(f"in flight: {rref}")
    return found + (_leftovers(root, known) if settled else [])


def _realization_problems(rref: str, row: Row, path: str) -> list[str]:
    if not os.path.isdir(path):
        return [f"lost: {rref} has no tree"]
    try:
        digest = tree_hash(path)
        with open(f"{path}/context.json", encoding="utf-8") as file:
            context = json.load(file)
    except (OSError, ValueError) as error:
        return [f"wrong: {rref}: {error}"]
    if digest != row.tree_hash:
        return [f"wrong: the tree of {rref} has the hash {digest}"]
    own = hashlib.sha256(f"pylightnix-rref-1\0{digest}\0".encode() + _canonical(context)).hexdigest()[:32]
    if own != rref[5:37]:
        return [f"wrong: {rref} has the context of {own}"]
    modes = {at: stat.S_IMODE(os.lstat(at).st_mode) for at in _all_below(path) if not os.path.islink(at)}
    return [f"wrong: {at} has the mode {mode:o}" for at, mode in modes.items() if mode & 0o222]


def _all_below(path: str) -> Iterator[str]:
    for folder, _, files in os.walk(path):
        yield folder
        yield from (os.path.join(folder, name) for name in files)


def _leftovers(root: str, known: set[str]) -> list[str]:
    found = []
    for derivation in os.listdir(f"{root}/store-v1"):
        names = {f"{derivation}/{name}" for name in os.listdir(f"{root}/store-v1/{derivation}") if name != "config.json"}
        found += [f"left over: store-v1/{name}" for name in sorted(names - known)]
    for owner in os.listdir(f"{root}/tmp"):
        found += [f"left over: tmp/{owner}/{name}" for name in os.listdir(f"{root}/tmp/{owner}")]
    return found
