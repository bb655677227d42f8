"""Archives that bring more than they may: refused before anything of that is written, and nothing of it is left."""

from __future__ import annotations

import gzip
import io
import lzma
import os
from pathlib import Path
from typing import Any

import pytest
from tests.stores import check_tmp, unharmed

from pylightnix import InvalidArchive, Misuse, StorageSettings, StoreFull, alldrefs, allrrefs
from pylightnix.arch import sunpack
from pylightnix.config import canonical_bytes
from pylightnix.context import realization_hash
from pylightnix.nar import tree_hash
from pylightnix.refs import mkrref, undref
from pylightnix.storage import store_layout
from pylightnix.store import faults
from pylightnix.store.derivations import derivation_ref
from pylightnix.transfer.limits import IMPORT_LIMITS, Allowance, import_limits
from pylightnix.transfer.receiving import receive
from pylightnix.transfer.records import MAGIC, DerivationRecord, EndRecord, RealizationRecord, encode_record
from pylightnix.transfer.streams import StreamSource
from pylightnix.unpack_limits import UnpackLimits

MEBI = 1 << 20


def record(tree: Path, name: str = "bomb", **lies: Any) -> bytes:
    """Return an archive of one realization without its end, as somebody may write it who is out for harm."""
    config = canonical_bytes({"name": name})
    dref = derivation_ref(config, name)
    nar = io.BytesIO()
    digest = tree_hash(tree, sink=nar.write)
    facts: dict[str, Any] = {
        "rref": mkrref(realization_hash(digest.sha256, {}, {}), *undref(dref)),
        "context": canonical_bytes({"deps": {}, "dynamic": {}}),
        "nar_bytes": digest.nar_bytes,
        "started": 1.0,
        "stopped": 2.0,
        "host": "h",
        "start_stamp": None,
        "stop_stamp": None,
        **lies,
    }
    return encode_record(DerivationRecord(dref, config)) + encode_record(RealizationRecord(**facts)) + nar.getvalue()


def end(count: int) -> bytes:
    return encode_record(EndRecord((), count, count))


@pytest.fixture
def zeros(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    tree.mkdir()
    with open(tree / "x", "wb") as file:
        file.truncate(8 * MEBI)
    return tree


class Watched(io.BufferedReader):
    """A pipe, which has no size."""

    def fileno(self) -> int:
        raise io.UnsupportedOperation


def bring(packed: bytes, folder: Path, S: StorageSettings, *, is_file: bool) -> None:
    if is_file:
        sunpack(str(folder / "bomb"), S, limits={"ratio_from_bytes": MEBI})
    else:
        receive(StreamSource(Watched(io.BytesIO(packed)), "a pipe", small()), store_layout(S))


def small(**fields: int) -> UnpackLimits:
    return import_limits({"ratio_from_bytes": MEBI, **fields}, "the test")


@pytest.mark.language
@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress], ids=["gzip", "xz"])
@pytest.mark.parametrize("is_file", [True, False], ids=["file", "pipe"])
def test_a_bomb_is_refused_and_leaves_nothing(S: StorageSettings, zeros: Path, tmp_path: Path, pack: Any, is_file: bool) -> None:
    packed = pack(MAGIC + record(zeros) + end(1))
    assert len(packed) * 100 < 8 * MEBI
    (tmp_path / "bomb").write_bytes(packed)
    with unharmed(S), pytest.raises(InvalidArchive, match=r"unpack to .* or more, and .* are allowed .*--limit ratio=N"):
        bring(packed, tmp_path, S, is_file=is_file)
    sunpack(str(tmp_path / "bomb"), S, limits={"ratio_from_bytes": MEBI, "ratio": 10_000})
    assert "bomb" in {rref.rpartition("-")[2] for rref in allrrefs(S)}, "who trusts it can have it"


@pytest.mark.embedded_only("it looks at what this process writes")
def test_nothing_is_written_before_it_is_counted(S: StorageSettings, zeros: Path, tmp_path: Path) -> None:
    """Of a pipe, whose size nobody knows, at most what the ratio allows is written; of a file nothing at all."""
    packed = gzip.compress(MAGIC + record(zeros) + end(1))
    sizes: list[int] = []

    class Spy(Watched):
        def read(self, size: int | None = -1, /) -> bytes:
            for folder, _, files in os.walk(store_layout(S).tmp):
                sizes.extend(os.path.getsize(os.path.join(folder, name)) for name in files)
            return super().read(256)

    with pytest.raises(InvalidArchive):
        receive(StreamSource(Spy(io.BytesIO(packed)), "a pipe", small()), store_layout(S))
    assert max(sizes, default=0) <= 2 * MEBI

    (tmp_path / "bomb").write_bytes(packed)
    made: list[str] = []
    faults.set_hook(made.append)
    try:
        with pytest.raises(InvalidArchive):
            sunpack(str(tmp_path / "bomb"), S, limits={"ratio_from_bytes": MEBI})
    finally:
        faults.set_hook(None)
    assert made == []


@pytest.mark.language
def test_what_came_before_a_bomb_stays(S: StorageSettings, zeros: Path, tmp_path: Path) -> None:
    good = tmp_path / "good"
    good.mkdir()
    (good / "a").write_text("a")
    (tmp_path / "both").write_bytes(gzip.compress(MAGIC + record(good, "good") + record(zeros) + end(2)))
    with pytest.raises(InvalidArchive):
        sunpack(str(tmp_path / "both"), S, limits={"ratio_from_bytes": MEBI})
    assert len(list(allrrefs(S))) == 1
    assert [dref.rpartition("-")[2] for dref in alldrefs(S)] == ["good"]
    check_tmp(S)


@pytest.mark.language
def test_too_many_entries(S: StorageSettings, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(30):
        (tree / str(number)).symlink_to("x")
    (tmp_path / "many").write_bytes(MAGIC + record(tree) + end(1))
    with unharmed(S), pytest.raises(InvalidArchive, match=r"more than 20 files, folders and links.*--limit entries=N"):
        sunpack(str(tmp_path / "many"), S, limits={"entries": 20})
    sunpack(str(tmp_path / "many"), S, limits={"entries": 40})


@pytest.mark.language
@pytest.mark.parametrize(
    ("lies", "limits", "error", "words"),
    [
        ({"nar_bytes": 1 << 61}, {}, InvalidArchive, "trees are larger than"),
        ({"nar_bytes": 1 << 39}, {}, InvalidArchive, "cut short"),
        ({}, {"total_bytes": 1000}, InvalidArchive, "larger than 1000 bytes.*--limit total_bytes=N"),
    ],
)
def test_sizes_that_are_declared(
    S: StorageSettings, zeros: Path, tmp_path: Path, lies: Any, limits: dict[str, int], error: type[Exception], words: str
) -> None:
    (tmp_path / "lies").write_bytes(MAGIC + record(zeros, **lies) + end(1))
    with unharmed(S), pytest.raises(error, match=words):
        sunpack(str(tmp_path / "lies"), S, limits=limits)


@pytest.mark.language
def test_a_tree_for_which_there_is_no_room_is_not_begun(S: StorageSettings, zeros: Path) -> None:
    data = MAGIC + record(zeros, nar_bytes=1 << 59)
    with unharmed(S), pytest.raises(StoreFull, match="576460752303423488 bytes are needed and"):
        receive(StreamSource(Watched(io.BytesIO(data)), "a pipe", UnpackLimits(total_bytes=1 << 60)), store_layout(S))


@pytest.mark.language
def test_a_tree_that_is_another_one_leaves_nothing(S: StorageSettings, zeros: Path, tmp_path: Path) -> None:
    config = canonical_bytes({"name": "bomb"})
    other = mkrref("0" * 32, *undref(derivation_ref(config, "bomb")))
    (tmp_path / "other").write_bytes(MAGIC + record(zeros, rref=other) + end(1))
    with unharmed(S), pytest.raises(InvalidArchive, match="have the reference"):
        sunpack(str(tmp_path / "other"), S)


def test_limits_that_are_none_are_told() -> None:
    assert import_limits(None, "x") == IMPORT_LIMITS
    assert import_limits({"entries": 5}, "x").ratio == IMPORT_LIMITS.ratio
    assert import_limits(UnpackLimits(entries=5), "x") == UnpackLimits(entries=5)
    for wrong in ({"size": 1}, {"ratio": -1}, {"ratio": "9"}, 7):
        with pytest.raises(Misuse):
            import_limits(wrong, "x")  # type: ignore[arg-type]  # that is the point


def test_honest_archives_are_within_the_ratio() -> None:
    allowance = Allowance("x", IMPORT_LIMITS, 1 << 30, is_packed=True)
    allowance.expect_tree(99 << 30)
    with pytest.raises(InvalidArchive):
        allowance.expect_tree(2 << 30)
