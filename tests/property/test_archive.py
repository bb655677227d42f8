"""Whatever a store holds arrives in another as it was, and whatever bytes arrive, the store stays sound."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.stores import check_tmp, empty, is_served, new_store, picture

from pylightnix import (
    Context,
    DRef,
    InvalidArchive,
    Path,
    Registry,
    RRef,
    StorageSettings,
    alldrefs,
    allrrefs,
    fstmpdir,
    instantiate,
    match_all,
    mkconfig,
    mkdrv,
    realize,
    rref2path,
    rrefctx,
)
from pylightnix.arch import copyclosure, spack, sunpack
from pylightnix.nar import tree_hash
from pylightnix.nar_reader import MalformedNar, unpack_folder
from pylightnix.query import realization_info
from pylightnix.storage import store_layout
from pylightnix.store.layout import METADATA_NAMES
from pylightnix.transfer.receiving import receive
from pylightnix.transfer.records import MAGIC, EndRecord, RecordReader, encode_record
from pylightnix.transfer.streams import StreamSource

Tree: TypeAlias = "tuple[bytes, bool] | bytes | dict[bytes, Tree]"
"""A file with its executable bit, a link's target, or a folder."""

names = (st.binary(min_size=1, max_size=8) | st.sampled_from([b"a", b"_x", b"sub", b"\xff"])).filter(
    lambda name: name not in (b".", b"..") and not {0, 47} & set(name) and os.fsdecode(name) not in METADATA_NAMES
)
leaves = st.tuples(st.binary(max_size=40), st.booleans()) | st.sampled_from([b"a", b"../..", b"/etc/passwd", b"no/where"])
trees: st.SearchStrategy[Tree] = st.recursive(leaves, lambda inner: st.dictionaries(names, inner, max_size=4), max_leaves=8)
tops = st.dictionaries(names, trees, max_size=4)
# For each derivation: the earlier ones that it depends on, and its outputs.
stores = st.lists(st.tuples(st.sets(st.integers(0, 4)), st.lists(tops, min_size=1, max_size=3)), min_size=1, max_size=4)


def write(tree: Tree, path: bytes) -> None:
    if isinstance(tree, dict):
        os.mkdir(path)
        for name, inner in tree.items():
            write(inner, path + b"/" + name)
    elif isinstance(tree, bytes):
        os.symlink(tree, path)
    else:
        with open(path, "wb") as file:
            file.write(tree[0])
        os.chmod(path, 0o755 if tree[1] else 0o644)


def fill(S: StorageSettings, plan: list[tuple[set[int], list[dict[bytes, Tree]]]]) -> list[RRef]:
    def main(r: Registry) -> list[DRef]:
        drefs: list[DRef] = []
        for number, (below, outputs) in enumerate(plan):
            deps = [drefs[i] for i in sorted(below) if i < number]

            def realizer(S: StorageSettings, dref: DRef, context: Context, rarg: Any, outputs: Any = outputs) -> list[Path]:
                made = [Path(f"{fstmpdir(S)}/{i}") for i in range(len(outputs))]
                for path, tree in zip(made, outputs, strict=True):
                    write(tree, os.fsencode(path))
                return made

            drefs.append(mkdrv(mkconfig({"name": f"n{number}", "deps": deps}), match_all, realizer, r))
        return drefs

    _, _, context = realize(instantiate(main, S=S))
    return sorted(rref for rrefs in context.values() for rref in rrefs or [])


def contents(S: StorageSettings) -> dict[str, Any]:
    found: dict[str, Any] = {"drefs": list(alldrefs(S))}
    for rref in allrrefs(S):
        info = realization_info(rref, S)
        assert info is not None
        found[rref] = (info.tree_hash, info.started, rrefctx(rref, S))
    found["entries"] = {path: (fact[0], fact[-1]) for path, fact in picture(S).entries.items()}
    return found


@contextmanager
def another_store() -> Iterator[tuple[str, StorageSettings]]:
    with tempfile.TemporaryDirectory() as folder:
        yield folder, new_store(f"{folder}/from")


def few_examples(S: StorageSettings) -> settings:
    return settings(deadline=None, max_examples=4 if is_served(S) else 12, suppress_health_check=[HealthCheck.too_slow])


# The store that things arrive in is the one that a daemon may own.


@pytest.mark.language
def test_unpacking_after_packing_is_the_identity(S: StorageSettings) -> None:
    @few_examples(S)
    @given(stores, st.sampled_from(["a.zip", "a.gz"]), st.data())
    def check(plan: Any, name: str, data: st.DataObject) -> None:
        empty(S)
        with another_store() as (folder, origin):
            rrefs = fill(origin, plan)
            some = data.draw(st.lists(st.sampled_from(rrefs), min_size=1, unique=True))
            spack(some, f"{folder}/{name}", origin)
            sunpack(f"{folder}/{name}", S)
            arrived = set(allrrefs(S))
            assert set(some) <= arrived
            spack(rrefs, f"{folder}/{name}", origin)
            sunpack(f"{folder}/{name}", S)
            assert contents(S) == contents(origin)
            before = picture(S)
            sunpack(f"{folder}/{name}", S)
            assert picture(S) == before
            check_tmp(S)

    check()


@pytest.mark.language
def test_copies_are_what_was_copied(S: StorageSettings) -> None:
    @few_examples(S)
    @given(stores, st.data())
    def check(plan: Any, data: st.DataObject) -> None:
        empty(S)
        with another_store() as (_, origin):
            rrefs = fill(origin, plan)
            some = data.draw(st.lists(st.sampled_from(rrefs), min_size=1, unique=True))
            copyclosure(some, origin, S)
            below = {rref for root in some for matched in rrefctx(root, origin).values() for rref in matched or []}
            assert set(allrrefs(S)) == {*some, *below}
            copyclosure(rrefs, origin, S)
            assert contents(S) == contents(origin)
            before = picture(S)
            copyclosure(rrefs, origin, S)
            assert picture(S) == before
            check_tmp(S)

    check()


# --- damage ---------------------------------------------------------------------------------------------

PLAN: Any = [(set(), [{b"a": (b"content", True), b"l": b"a"}, {b"sub": {b"x": (b"y", False)}}]), ({0}, [{b"b": (b"other", False)}])]


class Fuzz:
    """An archive, and a store that takes what is made of it; made once."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        S = new_store(f"{self.folder.name}/from")
        self.rrefs = fill(S, PLAN)
        spack(self.rrefs, f"{self.folder.name}/a", S)
        with open(f"{self.folder.name}/a", "rb") as file:
            self.data = file.read()
        self.contents = contents(S)
        self.number = 0

    def store(self) -> StorageSettings:
        self.number += 1
        return new_store(f"{self.folder.name}/to{self.number}")


_fuzz: list[Fuzz] = []


def fuzz() -> Fuzz:
    if not _fuzz:
        _fuzz.append(Fuzz())
    return _fuzz[0]


def source(data: bytes) -> StreamSource:
    return StreamSource(io.BufferedReader(io.BytesIO(data)), "the test")


edits = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from(["flip", "cut", "insert", "repeat"]), st.binary(min_size=1, max_size=9)),
    min_size=1,
    max_size=3,
)


def edited(data: bytes, changes: list[tuple[float, str, bytes]]) -> bytes:
    for where, kind, piece in changes:
        at = int(where * len(data))
        if kind == "flip" and data:
            data = data[:at] + bytes([data[at] ^ (piece[0] or 1)]) + data[at + 1 :]
        elif kind == "cut":
            data = data[:at] + data[at + len(piece) :]
        elif kind == "insert":
            data = data[:at] + piece + data[at:]
        else:
            data = data[:at] + data[max(0, at - 300) : at] + data[at:]
    return data


@pytest.mark.embedded_only("it calls what receives, which is the same in a daemon")
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(edits)
def test_damaged_archives_bring_nothing_false(changes: list[tuple[float, str, bytes]]) -> None:
    sample = fuzz()
    data = edited(sample.data, changes)
    D = sample.store()
    try:
        receive(source(data), store_layout(D))
    except InvalidArchive:
        assert data != sample.data
    else:
        assert contents(D) == sample.contents
    for rref in allrrefs(D):
        assert rref in sample.rrefs
        assert tree_hash(rref2path(rref, D), exclude_top=METADATA_NAMES).sha256 == sample.contents[rref][0]
    check_tmp(D)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_refused_and_nothing_else_happens(data: bytes) -> None:
    for prefix in (b"", MAGIC):
        try:
            records = list(RecordReader(source(prefix + data)).records())
        except InvalidArchive:
            continue
        assert records == [EndRecord((), 0, 0)]
        assert prefix + data == MAGIC + encode_record(records[0])


class _Source:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def left(self) -> int:
        return len(self.data)

    def take(self, count: int) -> bytes:
        piece, self.data = self.data[:count], self.data[count:]
        return piece


def unpack(data: bytes, folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        unpack_folder(_Source(data), fd, "out")
    finally:
        os.close(fd)


@settings(deadline=None)
@given(tops, edits)
def test_there_is_one_serialization_of_each_tree(tree: dict[bytes, Tree], changes: list[tuple[float, str, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(tree, os.fsencode(f"{folder}/in"))
        pieces: list[bytes] = []
        digest = tree_hash(f"{folder}/in", sink=lambda piece: pieces.append(bytes(piece)))
        nar = b"".join(pieces)
        assert len(nar) == digest.nar_bytes
        unpack(nar, folder)
        assert tree_hash(f"{folder}/out") == digest
        # Whatever else is unpacked without an error serializes to exactly those bytes again.
        other = f"{folder}/other"
        os.mkdir(other)
        broken = edited(nar, changes)
        try:
            unpack(broken, other)
        except (MalformedNar, OSError):
            return
        again: list[bytes] = []
        tree_hash(f"{other}/out", sink=lambda piece: again.append(bytes(piece)))
        assert broken.startswith(b"".join(again))
