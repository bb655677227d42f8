"""Archives and copies: what goes along, and that whatever arrives is checked."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import os
import random
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.stores import Numbered, check_tmp, check_usable, picture, refuses, stage, text_of, unharmed, writes

from pylightnix import (
    ArchiveIOError,
    DRef,
    InvalidArchive,
    InvalidStorage,
    MissingRealization,
    Misuse,
    Registry,
    RRef,
    StorageSettings,
    StoreCorrupt,
    alldrefs,
    allrrefs,
    current_registry,
    drefrrefs,
    instantiate,
    mkregistry,
    mkSS,
    realize1,
    realizeMany,
    rref2dref,
    rref2path,
    rrefbstart,
    rrefctx,
)
from pylightnix.arch import copyclosure, deref_, spack, sunpack
from pylightnix.build import build_outpath, build_wrapper
from pylightnix.context import realization_hash
from pylightnix.nar import tree_hash
from pylightnix.query import realization_info
from pylightnix.refs import mkrref, unrref
from pylightnix.storage import store_layout
from pylightnix.store.layout import METADATA_NAMES
from pylightnix.transfer.copying import copy_folder
from pylightnix.transfer.receiving import receive
from pylightnix.transfer.records import MAGIC, DerivationRecord, EndRecord, RealizationRecord, encode_record
from pylightnix.transfer.streams import StreamSource

pytestmark = pytest.mark.language


@pytest.fixture
def D(own_or_served: Callable[[str], StorageSettings]) -> StorageSettings:
    """Where things go."""
    return own_or_served("to")


def _fills(b: Any) -> None:
    folder = build_outpath(b)
    os.makedirs(f"{folder}/sub/empty")
    for name, mode in (("sub/run", 0o755), ("__init__.py", 0o644)):
        with open(f"{folder}/{name}", "w") as file:
            file.write(name)
        os.chmod(f"{folder}/{name}", mode)
    os.symlink("sub/run", f"{folder}/link")
    os.symlink("/no/where", f"{folder}/dangling")
    os.symlink("sub", os.fsencode(folder) + b"/\xff")


def chain(r: Registry) -> DRef:
    low = stage(r, "low", realizer=build_wrapper(_fills))
    middle = stage(r, "middle", low=low)
    return stage(r, "high", of=[middle, low])


def contents(S: StorageSettings) -> dict[str, Any]:
    """What identifies everything in a store, and how it lies there."""
    found: dict[str, Any] = {"drefs": list(alldrefs(S))}
    for rref in allrrefs(S):
        info = realization_info(rref, S)
        assert info is not None
        found[rref] = (info.tree_hash, info.nar_bytes, info.started, info.stopped, info.host, rrefctx(rref, S), rrefbstart(rref, S))
        assert tree_hash(rref2path(rref, S), exclude_top=METADATA_NAMES).sha256 == info.tree_hash
    entries = picture(S).entries
    found["entries"] = {path: (fact[:2], fact[-1]) for path, fact in entries.items()}
    return found


@pytest.mark.parametrize("name", ["out.zip", "archive", "out.gz", "out.tar.xz"])
def test_d55_what_is_unpacked_is_what_was_packed(S: StorageSettings, D: StorageSettings, tmp_path: Path, name: str) -> None:
    rref = realize1(instantiate(chain, S=S))
    spack([rref], str(tmp_path / name), S)
    sunpack(str(tmp_path / name), D)
    assert contents(D) == contents(S)
    (low,) = (found for found in allrrefs(D) if found.endswith("-low"))
    assert os.readlink(f"{rref2path(low, D)}/link") == "sub/run"
    assert os.readlink(f"{rref2path(low, D)}/dangling") == "/no/where"
    assert sorted(os.listdir(f"{rref2path(low, D)}/sub")) == ["empty", "run"]
    before = picture(D)
    sunpack(str(tmp_path / name), D)
    assert picture(D) == before
    check_tmp(D)
    check_usable(D)
    assert sorted(os.listdir(tmp_path)) == sorted([name, "store", "to"])


def test_what_was_imported_is_used(S: StorageSettings, D: StorageSettings, tmp_path: Path) -> None:
    rref = realize1(instantiate(chain, S=S))
    spack([rref], str(tmp_path / "a"), S)
    sunpack(str(tmp_path / "a"), D)

    def again(r: Registry) -> DRef:
        low = stage(r, "low", realizer=refuses)
        middle = stage(r, "middle", realizer=refuses, low=low)
        return stage(r, "high", realizer=refuses, of=[middle, low])

    assert realize1(instantiate(again, S=D)) == rref


def test_equal_exports_are_equal_bytes(S: StorageSettings, tmp_path: Path) -> None:
    rref = realize1(instantiate(chain, S=S))
    for name in ("a", "b", "a.gz", "b.gz"):
        spack([rref], str(tmp_path / name), S)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz", "a.xz"])
def test_d54_archives_of_any_name_are_written_at_once_and_without_tools(
    S: StorageSettings, D: StorageSettings, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rref = realize1(instantiate(chain, S=S))
    monkeypatch.setenv("PATH", "")
    spack([rref], str(tmp_path / name), S)
    once = os.stat(tmp_path / name)
    sunpack(str(tmp_path / name), D)
    assert contents(D) == contents(S)
    spack([rref], str(tmp_path / name), S)
    assert os.stat(tmp_path / name).st_size == once.st_size, "it is replaced, not appended to"


def test_d54_siblings_go_along_in_archives_and_not_in_copies(S: StorageSettings, D: StorageSettings, tmp_path: Path) -> None:
    numbered = Numbered()

    def main(r: Registry) -> DRef:
        return stage(r, "up", low=stage(r, "low", realizer=numbered))

    first = realize1(instantiate(main, S=S))
    second = realize1(instantiate(main, S=S), force_rebuild=list(alldrefs(S)))
    assert first != second
    copyclosure([first], S, D)
    assert list(allrrefs(D)) == sorted([first, *(rref for rrefs in rrefctx(first, S).values() for rref in rrefs or [])])
    spack([first], str(tmp_path / "a"), S)
    sunpack(str(tmp_path / "a"), D)
    assert contents(D) == contents(S)


def test_copies(S: StorageSettings, D: StorageSettings) -> None:
    rref = realize1(instantiate(chain, S=S))
    copyclosure([rref], S, D)
    assert contents(D) == contents(S)
    before = picture(D)
    copyclosure([rref], S, D)
    assert picture(D) == before
    check_usable(D)


def test_a_later_start_is_noted(S: StorageSettings, D: StorageSettings) -> None:
    rref = realize1(instantiate(chain, S=S))
    copyclosure([rref], S, D)
    realize1(instantiate(chain, S=S), force_rebuild=[rref2dref(rref)])
    copyclosure([rref], S, D)
    there, here = realization_info(rref, S), realization_info(rref, D)
    assert there is not None
    assert here is not None
    assert here.started == there.started


def test_no_build_started_in_the_future(S: StorageSettings, D: StorageSettings, simple: RRef) -> None:
    import time

    parts = Parts(pack(simple, S))
    later = [(replace(r, started=1e12, stopped=2e12) if isinstance(r, RealizationRecord) else r, tree) for r, tree in parts.records]
    for records in (later, parts.records):
        take(parts.put(*records), D)
        info = realization_info(simple, D)
        assert info is not None
        assert info.started <= info.stopped <= time.time()


def test_d57_a_copy_goes_to_the_current_store(S: StorageSettings, D: StorageSettings) -> None:
    rref = realize1(instantiate(chain, S=S))
    registry = mkregistry(D)
    with current_registry(registry):
        copyclosure([rref], S)
        assert list(registry.builders) == [], "an import is nothing to a registry"
    assert contents(D) == contents(S)


def test_deref(S: StorageSettings) -> None:
    rref = realize1(instantiate(chain, S=S))
    low = next(dref for dref in alldrefs(S) if dref.endswith("-low"))
    assert deref_(rref, low, S) == sorted(drefrrefs(low, S))
    assert deref_(rref, rref2dref(rref), S) == [rref]
    with pytest.raises(Misuse):
        deref_(rref, DRef("dref:" + "0" * 32 + "-x"), S)


def test_many_realizations_arrive(S: StorageSettings, D: StorageSettings, tmp_path: Path) -> None:
    rrefs = realizeMany(instantiate(lambda r: stage(r, realizer=writes(*({"n": str(i)} for i in range(150))), matcher=_all), S=S))
    spack(rrefs[:1], str(tmp_path / "a"), S)
    sunpack(str(tmp_path / "a"), D)
    assert list(allrrefs(D)) == rrefs


def _all(S: StorageSettings, rrefs: list[RRef]) -> list[RRef] | None:
    return sorted(rrefs) or None


# --- what cannot be exported -------------------------------------------------------------------------


def test_what_is_not_there_is_not_exported(S: StorageSettings, tmp_path: Path) -> None:
    with pytest.raises(MissingRealization):
        spack([mkrref("0" * 32, "1" * 32, "x")], str(tmp_path / "a"), S)
    with pytest.raises(Misuse):
        spack([RRef("junk")], str(tmp_path / "a"), S)
    assert not (tmp_path / "a").exists()


def test_what_is_damaged_is_not_exported(S: StorageSettings, D: StorageSettings, tmp_path: Path) -> None:
    rref = realize1(instantiate(chain, S=S))
    (tmp_path / "a").write_text("before")
    victim = f"{rref2path(rref, S)}/out.txt"
    os.chmod(victim, 0o644)
    Path(victim).write_text("HIGH")
    with pytest.raises(StoreCorrupt, match="its tree hash is"):
        spack([rref], str(tmp_path / "a"), S)
    assert (tmp_path / "a").read_text() == "before"
    assert sorted(os.listdir(tmp_path)) == ["a", "store", "to"]
    with pytest.raises(InvalidArchive, match="have the reference"):
        copyclosure([rref], S, D)
    os.mkfifo(tmp_path / "pipe")
    os.chmod(rref2path(rref, S), 0o755)
    os.rename(tmp_path / "pipe", f"{rref2path(rref, S)}/pipe")
    with pytest.raises(StoreCorrupt, match="FIFO"):
        spack([rref], str(tmp_path / "a"), S)
    with pytest.raises(InvalidArchive, match="FIFO"):
        copyclosure([rref], S, D)
    assert rref not in list(allrrefs(D))
    check_usable(D)


def test_an_archive_that_cannot_be_written_is_reported(S: StorageSettings, tmp_path: Path) -> None:
    rref = realize1(instantiate(chain, S=S))
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "no" / "such", tmp_path / "folder"):
        with pytest.raises(ArchiveIOError, match="while writing an archive"):
            spack([rref], str(path), S)
    with pytest.raises(ArchiveIOError, match="No space left"), open("/dev/full", "wb", buffering=0) as full:
        _send_to(full, rref, S)
    assert sorted(os.listdir(tmp_path)) == ["folder", "store"]


def test_what_is_no_file_is_written_as_it_stands(S: StorageSettings, D: StorageSettings, tmp_path: Path) -> None:
    import threading

    rref = realize1(instantiate(chain, S=S))
    os.mkfifo(tmp_path / "pipe")
    found: list[bytes] = []
    reading = threading.Thread(target=lambda: found.append((tmp_path / "pipe").read_bytes()))
    reading.start()
    spack([rref], str(tmp_path / "pipe"), S)
    reading.join()
    assert (tmp_path / "pipe").is_fifo()
    take(found[0], D)
    assert contents(D) == contents(S)
    (tmp_path / "file").write_text("before")
    (tmp_path / "link").symlink_to("file")
    spack([rref], str(tmp_path / "link"), S)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == found[0]


def _send_to(file: Any, rref: RRef, S: StorageSettings) -> None:
    from pylightnix.transfer.departure import send
    from pylightnix.transfer.selection import select

    try:
        send(select([rref], S, siblings=True), file.write)
    except OSError as error:
        raise ArchiveIOError("/dev/full", "writing an archive", str(error)) from error


# --- what does not arrive ----------------------------------------------------------------------------


def pack(rref: RRef, S: StorageSettings) -> bytes:
    buffer = io.BytesIO()
    _send_to(buffer, rref, S)
    return buffer.getvalue()


def take(data: bytes, D: StorageSettings) -> None:
    receive(StreamSource(io.BufferedReader(io.BytesIO(data)), "the test"), store_layout(D))


@pytest.fixture
def simple(S: StorageSettings) -> RRef:
    return realize1(instantiate(lambda r: stage(r, "up", low=stage(r, "low")), S=S))


def check_sound(D: StorageSettings) -> None:
    """Everything valid in the store is what its reference says."""
    for rref in allrrefs(D):
        rhash, dhash, name = unrref(rref)
        with open(f"{rref2path(rref, D)}/context.json") as file:
            deps = json.load(file)["deps"]
        digest = tree_hash(rref2path(rref, D), exclude_top=METADATA_NAMES)
        assert realization_hash(digest.sha256, deps, {}) == rhash
        assert all(below in list(allrrefs(D)) for below in rrefctx(rref, D).get(DRef(f"dref:{dhash}-{name}"), []) or [])
    check_tmp(D)


def test_every_truncation_is_noticed(S: StorageSettings, D: StorageSettings, simple: RRef) -> None:
    data = pack(simple, S)
    for size in sorted({*range(0, len(data), 41), len(data) - 1}):
        with pytest.raises(InvalidArchive, match=r"ends after|not what it says"):
            take(data[:size], D)
        check_sound(D)
    check_usable(D)


def is_harmless(broken: bytes, data: bytes) -> bool:
    """Tell whether what was broken counts for nothing: gzip has bits that do, at the end of what is compressed."""
    try:
        return data.startswith(b"\x1f\x8b") and gzip.decompress(broken) == gzip.decompress(data)
    except (OSError, EOFError, zlib.error):
        return False


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress])
def test_damage_to_compressed_archives_is_noticed(
    S: StorageSettings, D: StorageSettings, simple: RRef, compress: Callable[[bytes], bytes]
) -> None:
    data = compress(pack(simple, S))
    generator = random.Random(1)
    for _ in range(30):
        where = generator.randrange(12, len(data))
        broken = bytearray(data)
        broken[where] ^= 1 << generator.randrange(8)
        with nullcontext() if is_harmless(bytes(broken), data) else pytest.raises(InvalidArchive):
            take(bytes(broken), D)
        with pytest.raises(InvalidArchive):
            take(data[:where], D)
        check_sound(D)


def test_compressed_archives_cannot_demand_memory_at_will(S: StorageSettings, D: StorageSettings, simple: RRef) -> None:
    for size, fits in ((1 << 26, True), (1 << 30, False)):
        packed = lzma.compress(pack(simple, S), filters=[{"id": lzma.FILTER_LZMA2, "dict_size": size}])
        if fits:
            take(packed, D)
            assert contents(D) == contents(S)
        else:
            with pytest.raises(InvalidArchive, match=r"compressed data are damaged .*[Mm]emory"):
                take(packed, D)


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress])
def test_something_after_a_compressed_archive_is_noticed(
    S: StorageSettings, D: StorageSettings, simple: RRef, compress: Callable[[bytes], bytes]
) -> None:
    for more in (b"x", compress(b"x")):
        with pytest.raises(InvalidArchive):
            take(compress(pack(simple, S)) + more, D)


@pytest.mark.parametrize("data", [b"", b"PK\3\4 a zip file", b"\x1f\x8b", b"\xfd7zXZ\0", MAGIC, b"pylightnix export 2\n", bytes(4096)])
def test_other_files_are_refused(D: StorageSettings, data: bytes) -> None:
    with unharmed(D), pytest.raises(InvalidArchive):
        take(data, D)


def test_files_that_cannot_be_read_are_reported(D: StorageSettings, tmp_path: Path) -> None:
    with unharmed(D):
        for path in (tmp_path / "missing", tmp_path):
            with pytest.raises(ArchiveIOError):
                sunpack(str(path), D)


def test_there_must_be_a_store(S: StorageSettings, simple: RRef, tmp_path: Path) -> None:
    spack([simple], str(tmp_path / "a"), S)
    with pytest.raises(InvalidStorage):
        sunpack(str(tmp_path / "a"), mkSS(str(tmp_path / "none")))


class Parts:
    """An archive taken apart, to be put together wrongly."""

    def __init__(self, data: bytes) -> None:
        from pylightnix.transfer.records import RecordReader

        reader = RecordReader(StreamSource(io.BufferedReader(io.BytesIO(data)), "the test"))
        self.records: list[tuple[Any, bytes]] = []
        for record in reader.records():
            tree = reader.take(record.nar_bytes) if isinstance(record, RealizationRecord) else b""
            self.records.append((record, tree))

    def put(self, *records: tuple[Any, bytes]) -> bytes:
        return MAGIC + b"".join(encode_record(record) + tree for record, tree in records)

    def of(self, kind: type, name: str = "") -> tuple[Any, bytes]:
        def named(record: Any) -> str:
            return str(getattr(record, "dref", None) or getattr(record, "rref", ""))

        return next(part for part in self.records if isinstance(part[0], kind) and named(part[0]).endswith(name))


def test_taking_apart_and_putting_together_is_the_identity(S: StorageSettings, simple: RRef) -> None:
    data = pack(simple, S)
    parts = Parts(data)
    assert parts.put(*parts.records) == data


def _text(content: bytes) -> bytes:
    return len(content).to_bytes(8, "little") + content + bytes(-len(content) % 8)


def _words(*parts: bytes) -> bytes:
    return b"".join(map(_text, parts))


def _tree(name: bytes, *node: bytes) -> bytes:
    head = _words(b"nix-archive-1", b"(", b"type", b"directory", b"entry", b"(", b"name", name, b"node", b"(", b"type")
    return head + _words(*node, b")", b")", b")")


def _lies(parts: Parts) -> dict[str, tuple[str, list[tuple[Any, bytes]]]]:
    low, up = parts.of(DerivationRecord, "-low"), parts.of(DerivationRecord, "-up")
    r_low, r_up, end = parts.of(RealizationRecord, "-low"), parts.of(RealizationRecord, "-up"), parts.of(EndRecord)
    other = mkrref("0" * 32, *unrref(r_low[0].rref)[1:])
    unhinged = replace(r_up[0], context=b'{"deps":{},"dynamic":{}}')
    escape = _tree(b"../../escaped", b"regular", b"contents", b"x")
    absolute = _tree(b"/tmp/escaped", b"regular", b"contents", b"x")
    metadata = _tree(b"__buildstart__.txt", b"regular", b"contents", b"x")

    def with_tree(tree: bytes) -> tuple[Any, bytes]:
        """A realization whose reference is that of its tree, as far as that can be told."""
        _, dhash, name = unrref(r_low[0].rref)
        rref = mkrref(realization_hash(hashlib.sha256(tree).hexdigest(), {}, {}), dhash, name)
        return replace(r_low[0], rref=rref, nar_bytes=len(tree)), tree

    return {
        "another tree": ("have the reference", [low, (r_low[0], r_low[1].replace(b"low", b"LOW"))]),
        "another reference": ("have the reference", [low, (replace(r_low[0], rref=other), r_low[1])]),
        "another config": ("has the reference", [(replace(low[0], config=low[0].config.replace(b"low", b"wol")), b"")]),
        "another name": ("has the reference", [(replace(low[0], dref=low[0].dref + "er"), b"")]),
        "spaced config": ("canonical form", [(replace(low[0], config=low[0].config.replace(b":", b": ")), b"")]),
        "no config": ("is none", [(replace(low[0], config=b"[]"), b"")]),
        "deep config": ("is none", [(replace(low[0], config=b'{"a":' + b"[" * 100_000), b"")]),
        "binary config": ("is none", [(replace(low[0], config=b"\xff"), b"")]),
        "derivation before its dependency": ("did not come before it", [up, low]),
        "realization before its derivation": ("before its derivation", [r_low, low]),
        "realization before its dependency": ("neither came before it", [low, up, r_up]),
        "context without dependencies": ("other derivations", [low, up, r_low, (unhinged, r_up[1])]),
        "context unsorted": ("canonical", [low, up, r_low, (replace(r_up[0], context=r_up[0].context.replace(b":{", b": {")), r_up[1])]),
        "context of text": ("not what it says", [low, up, r_low, (replace(r_up[0], context=b'"x"'), r_up[1])]),
        "escaping name": ("names no entry", [low, with_tree(escape)]),
        "absolute name": ("names no entry", [low, with_tree(absolute)]),
        "metadata in the tree": ("kept for metadata", [low, with_tree(metadata)]),
        "too long a tree": ("do not belong to it", [low, (replace(r_low[0], nar_bytes=r_low[0].nar_bytes + 8), r_low[1] + bytes(8))]),
        "too short a tree": ("ends early", [low, (replace(r_low[0], nar_bytes=r_low[0].nar_bytes - 8), r_low[1])]),
        "huge tree": ("trees are larger than", [low, (replace(r_low[0], nar_bytes=1 << 62), b"")]),
        "infinite start": ("cannot be read", [low, (replace(r_low[0], started=float("inf")), r_low[1])]),
        "start of text": ("cannot be read", [low, (replace(r_low[0], started="now"), r_low[1])]),
        "long stamp": ("cannot be read", [low, (replace(r_low[0], start_stamp=bytes(5000)), r_low[1])]),
        "no reference": ("cannot be read", [low, (replace(r_low[0], rref="rref:../../x"), r_low[1])]),
        "no end": ("ends after", [low, up, r_low, r_up]),
        "two ends": ("follows its end", [low, up, r_low, r_up, end, end]),
        "wrong counts": ("fewer or more", [low, r_low, end]),
    }


LIES = sorted(
    _lies(
        Parts(
            MAGIC
            + encode_record(DerivationRecord(DRef("dref:" + "0" * 32 + "-low"), b"{}"))
            + encode_record(DerivationRecord(DRef("dref:" + "0" * 32 + "-up"), b"{}"))
            + encode_record(RealizationRecord(mkrref("0" * 32, "0" * 32, "low"), b"{}", 0, 0.0, 0.0, "", None, None))
            + encode_record(RealizationRecord(mkrref("0" * 32, "0" * 32, "up"), b"{}", 0, 0.0, 0.0, "", None, None))
            + encode_record(EndRecord((), 2, 2))
        )
    )
)


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_found(S: StorageSettings, D: StorageSettings, simple: RRef, tmp_path: Path, lie: str) -> None:
    parts = Parts(pack(simple, S))
    problem, records = _lies(parts)[lie]
    before = set(os.listdir(tmp_path))
    with pytest.raises(InvalidArchive, match=problem):
        take(parts.put(*records), D)
    check_sound(D)
    known = {part[0].rref for part in parts.records if isinstance(part[0], RealizationRecord)}
    assert set(allrrefs(D)) <= known, "nothing is in the store but what the honest archive has"
    assert set(os.listdir(tmp_path)) == before
    take(parts.put(*parts.records), D)
    assert set(allrrefs(D)) == known
    check_usable(D)


def test_what_comes_twice_is_taken_once(S: StorageSettings, D: StorageSettings, simple: RRef) -> None:
    parts = Parts(pack(simple, S))
    *rest, (end, _) = parts.records
    doubled = [part for part in rest for _ in range(2)]
    take(parts.put(*doubled, (replace(end, derivations=4, realizations=4), b"")), D)
    assert contents(D) == contents(S)


def test_damage_is_told_even_where_it_does_no_harm(S: StorageSettings, D: StorageSettings, simple: RRef) -> None:
    parts = Parts(pack(simple, S))
    take(parts.put(*parts.records), D)
    _, records = _lies(parts)["another tree"]
    with unharmed(D), pytest.raises(InvalidArchive, match="have the reference"):
        take(parts.put(*records), D)


def test_what_came_before_the_damage_stays(S: StorageSettings, D: StorageSettings, simple: RRef) -> None:
    parts = Parts(pack(simple, S))
    low, up, r_low, r_up = (parts.of(kind, name) for kind in (DerivationRecord, RealizationRecord) for name in ("-low", "-up"))
    with pytest.raises(InvalidArchive):
        take(parts.put(low, up, r_low, (r_up[0], r_up[1].replace(b"up", b"UP"))), D)
    assert list(allrrefs(D)) == [r_low[0].rref]
    assert text_of(r_low[0].rref, D) == "low"


def test_a_realization_whose_folder_is_gone_is_brought_back(S: StorageSettings, D: StorageSettings, simple: RRef) -> None:
    from pylightnix.store.removal import remove_tree

    data = pack(simple, S)
    take(data, D)
    remove_tree(rref2path(simple, D))
    take(data, D)
    assert text_of(simple, D) == "up"
    assert contents(D) == contents(S)


# --- copying a tree -----------------------------------------------------------------------------------


def test_a_copy_of_what_has_no_serialization_ends_with_its_error(tmp_path: Path) -> None:
    from pylightnix import InvalidTree

    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "large").write_bytes(bytes(1 << 20))
    os.mkfifo(tmp_path / "tree" / "pipe")
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(InvalidTree, match="FIFO"):
            copy_folder(str(tmp_path / "tree"), fd, "copy")
        with pytest.raises(FileNotFoundError):
            copy_folder(str(tmp_path / "missing"), fd, "copy2")
        os.unlink(tmp_path / "tree" / "pipe")
        (tmp_path / "taken").mkdir()
        with pytest.raises(FileExistsError):
            copy_folder(str(tmp_path / "tree"), fd, "taken")
        copy_folder(str(tmp_path / "tree"), fd, "whole")
    finally:
        os.close(fd)
    assert tree_hash(tmp_path / "whole") == tree_hash(tmp_path / "tree")
