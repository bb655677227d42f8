"""What GNU tar, bsdtar and unzip accept is accepted, as they read it."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import struct
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from tests.unit.test_unpack_archives import Room, entry, tar_bytes

from pylightnix import Misuse
from pylightnix.archives import UnpackLimits
from pylightnix.nar import tree_hash
from pylightnix.unpack_limits import checked_limits

LARGE_WINDOW = 1 << 28


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def unpacked(room: Room, data: bytes, name: str = "archive.tar", limits: UnpackLimits = UnpackLimits()) -> dict[str, bytes]:  # noqa: B008  # frozen
    """Return the files that come out, less the one folder at the top, and clear the room."""
    made = room.unpack(data, name, limits)
    found = {str(path.relative_to(made)): path.read_bytes() for path in made.rglob("*") if path.is_file()} if made.is_dir() else {}
    shutil.rmtree(made)
    return found


TWO = tar_bytes((entry("top/a"), b"x" * 700), (entry("top/b"), b"y"))
FILES = {"a": b"x" * 700, "b": b"y"}
END = 512 + 1024 + 512 + 512


# --- tar --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress, zstandard.compress])
def test_ends_of_tar(room: Room, compress: Callable[[bytes], bytes]) -> None:
    entries = TWO[:END]
    for end in (b"", bytes(100), bytes(512), bytes(1024), bytes(512) + b"garbage", bytes(1024) + b"garbage" * 1000, TWO[END:]):
        assert unpacked(room, compress(entries + end)) == FILES, end[:10]
    for cut in (END - 1, END - 511, END - 600, END - 1100):
        assert "cut short" in str(room.refusal(compress(entries[:cut])))


def test_empty_archives(room: Room) -> None:
    empty_zip = io.BytesIO()
    zipfile.ZipFile(empty_zip, "w").close()
    for data, name in (
        (tar_bytes(), "a.tar"),
        (bytes(512), "b.tar"),
        (bytes(1024), "unnamed"),
        (gzip.compress(bytes(10240)), "a.tgz"),
        (gzip.compress(b""), "c.tar.gz"),
        (empty_zip.getvalue(), "d.zip"),
        (empty_zip.getvalue(), "e.tar"),
    ):
        assert unpacked(room, data, name) == {}, name
    assert "no bytes at all" in str(room.refusal(b"", "f.tar"))


@pytest.mark.parametrize("name", ["a.zip", "a.7z", "a.tar.gz", "a.whl", "download", "a.exe", "a.tar.zst"])
def test_bytes_tell_and_not_the_name(room: Room, name: str) -> None:
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        for each, content in FILES.items():
            archive.writestr(f"top/{each}", content)
    packed = [TWO, *(compress(TWO) for compress in (gzip.compress, bz2.compress, lzma.compress, zstandard.compress)), zipped.getvalue()]
    for data in packed:
        assert unpacked(room, data, name) == FILES


def test_absolute_names_lose_their_slash(room: Room) -> None:
    hard = entry("/top/h", tarfile.LNKTYPE, target="/top/a")
    assert unpacked(room, tar_bytes((entry("/top/a"), b"1"), (entry("//top/b"), b"2"), hard)) == {"a": b"1", "b": b"2", "h": b"1"}
    assert unpacked(room, tar_bytes(entry("/", tarfile.DIRTYPE), (entry("/top/a"), b"1"), form=tarfile.GNU_FORMAT)) == {"a": b"1"}
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        info = zipfile.ZipInfo("x")
        info.filename = "/top/a"
        archive.writestr(info, b"1")
    assert unpacked(room, zipped.getvalue(), "a.zip") == {"a": b"1"}


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_last_of_the_same_name_counts(room: Room) -> None:
    link, other = entry("top/l", tarfile.SYMTYPE, target="a"), entry("top/l", tarfile.SYMTYPE, target="b")
    made = room.unpack(
        tar_bytes((entry("top/a"), b"first"), link, (entry("./top//a"), b"2"), (entry("top/l"), b"file"), (entry("top/b"), b"b"))
    )
    assert {path.name: path.read_bytes() for path in made.iterdir()} == {"a": b"2", "l": b"file", "b": b"b"}
    shutil.rmtree(made)
    made = room.unpack(
        tar_bytes((entry("top/l"), b"file"), link, other, (entry("top/a"), b"a"), entry("top/a", tarfile.LNKTYPE, target="top/a"))
    )
    assert (os.readlink(made / "l"), (made / "a").read_bytes()) == ("b", b"a")
    shutil.rmtree(made)
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        for content in (b"first", b"last"):
            archive.writestr("top/a", content)
    assert unpacked(room, zipped.getvalue(), "a.zip") == {"a": b"last"}


def test_last_counts_whatever_it_is_but_full_folders_stay(room: Room) -> None:
    a, folder, link = (entry("top/a"), b"a"), entry("top/a", tarfile.DIRTYPE), entry("top/a", tarfile.SYMTYPE, target="b")
    b = (entry("top/b"), b"b")
    cases: list[tuple[list[tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]], dict[str, bytes]]] = [
        ([b, a, folder], {"b": b"b"}),
        ([b, link, folder], {"b": b"b"}),
        ([b, folder, a], {"b": b"b", "a": b"a"}),
        ([b, folder, link], {"b": b"b", "a": b"b"}),
        ([b, a, folder, (entry("top/a/c"), b"c")], {"b": b"b", "a/c": b"c"}),
    ]
    for entries, found in cases:
        assert unpacked(room, tar_bytes(*entries)) == found
    assert "as a folder as well" in str(room.refusal(tar_bytes(folder, (entry("top/a/c"), b"c"), a)))


def test_set_id_bits_are_passed_over(room: Room) -> None:
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        info = zipfile.ZipInfo("top/a")
        info.create_system, info.external_attr = 3, 0o106755 << 16
        archive.writestr(info, b"a")
    for data in (tar_bytes((entry("top/a", mode=0o6755), b"a"), entry("top/d", tarfile.DIRTYPE, mode=0o2755)), zipped.getvalue()):
        made = room.unpack(data)
        assert (made / "a").stat().st_mode & 0o7777 == 0o755
        shutil.rmtree(made)


def test_link_that_was_replaced_is_not_followed(room: Room) -> None:
    """A file takes the place of a link, and is not written through it; a link that leads out is refused though it would be replaced."""
    escape = entry("top/l", tarfile.SYMTYPE, target="../../beside")
    assert "leads out" in str(room.refusal(tar_bytes(escape, (entry("top/l"), b"x"))))
    inside = entry("top/l", tarfile.SYMTYPE, target="a")
    assert unpacked(room, tar_bytes((entry("top/a"), b"a"), inside, (entry("top/l"), b"l"))) == {"a": b"a", "l": b"l"}
    assert "not a folder" in str(room.refusal(tar_bytes(entry("top/l", tarfile.SYMTYPE, target="."), entry("top/l/b"))))


def test_unknown_kinds_are_files_and_odd_headers_are_read(room: Room) -> None:
    unknown = bytearray(tar_bytes((entry("top/a"), b"abc"), form=tarfile.USTAR_FORMAT))
    unknown[156:157] = b"Z"
    unknown[148:156] = b"%06o\0 " % (sum(unknown[:148]) + sum(unknown[156:512]) + 8 * 32)
    assert unpacked(room, bytes(unknown)) == {"a": b"abc"}
    padded = b"18 path=top/padde\n" + bytes(14)
    header = entry("x", tarfile.XHDTYPE, size=len(padded))
    assert unpacked(room, header.tobuf(tarfile.USTAR_FORMAT) + padded.ljust(512, b"\0") + TWO[:1536]) == {"padde": b"x" * 700}


def test_volumes_are_told(room: Room) -> None:
    assert "another volume" in str(room.refusal(tar_bytes(entry("top/a", b"M"))))
    spanned = io.BytesIO()
    with zipfile.ZipFile(spanned, "w") as archive:
        archive.writestr("top/a", b"x")
    data = bytearray(spanned.getvalue())
    data[data.rindex(b"PK\5\6") + 4] = 1
    locator = struct.pack("<4sLQL", b"PK\6\7", 1, 0, 2)
    at = data.rindex(b"PK\5\6")
    assert "volume" in str(room.refusal(bytes(data[:at]) + locator + bytes(data[at:]), "a.zip"))


@pytest.mark.parametrize("program", ["tar", "bsdtar"])
def test_it_is_what_the_programs_make_of_it(room: Room, program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"it takes the program {program}")
    copies = (entry("top/a"), b"1"), (entry("top/a"), b"22"), entry("top/h", tarfile.LNKTYPE, target="top/a"), (entry("/top/b"), b"b")
    for number, data in enumerate(
        (TWO[:END], TWO[:END] + bytes(512), tar_bytes(*copies), bz2.compress(TWO) + b"garbage", gzip.compress(TWO[:END]))
    ):
        path = room.folder / f"{number}"
        path.write_bytes(data)
        (room.folder / f"{number}.out").mkdir()
        argv = [program, "-xf", str(path), "-C", str(room.folder / f"{number}.out")]
        assert subprocess.run(argv, capture_output=True).returncode == 0
        made = room.unpack(data)
        assert tree_hash(made) == tree_hash(room.folder / f"{number}.out" / "top")
        shutil.rmtree(made)


# --- zip --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["setup.exe", "install.sh", "a.zip"])
def test_zip_behind_a_program(room: Room, name: str) -> None:
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("top/a", b"x" * 700)
    for program in (b"#!/bin/sh\nexit\n", b"MZ" + bytes(3000), b"PK00" if name == "a.zip" else b"\x7fELF"):
        assert unpacked(room, program + zipped.getvalue(), name) == {"a": b"x" * 700}
        assert unpacked(room, program + zipped.getvalue() + b"behind", name) == {"a": b"x" * 700}


def test_zip64_with_data_descriptors(room: Room) -> None:
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in FILES.items():
            with archive.open(f"top/{name}", "w", force_zip64=True) as file:
                file.write(content)
    assert unpacked(room, zipped.getvalue(), "a.zip") == FILES


def deflate64_zip(content: bytes) -> bytes:
    """Return a zip archive of one file as Windows packs large ones."""
    inflate64 = pytest.importorskip("inflate64")
    deflater = inflate64.Deflater()
    packed = deflater.deflate(content) + deflater.flush()
    facts = struct.pack("<HHHHHIIIHH", 21, 0, 9, 0, 33, zlib.crc32(content), len(packed), len(content), 5, 0)
    local = b"PK\3\4" + facts + b"top/a" + packed
    directory = b"PK\1\2" + struct.pack("<BB", 21, 0) + facts + struct.pack("<HHHII", 0, 0, 0, 0, 0) + b"top/a"
    return b"".join((local, directory, b"PK\5\6", struct.pack("<HHHHIIH", 0, 0, 1, 1, len(directory), len(local), 0)))


def test_deflate64(room: Room) -> None:
    content = bytes(range(256)) * 3000
    data = deflate64_zip(content)
    assert unpacked(room, data, "a.zip") == {"a": content}
    if shutil.which("unzip") is not None:
        (room.folder / "b.zip").write_bytes(data)
        assert subprocess.run(["unzip", "-qt", str(room.folder / "b.zip")], capture_output=True).returncode == 0
    damaged = bytearray(data)
    damaged[len(data) // 3] ^= 0xFF
    assert "damaged" in str(room.refusal(bytes(damaged), "a.zip"))
    small = UnpackLimits(ratio=50, ratio_from_bytes=1 << 20)
    assert "limits=UnpackLimits(ratio=" in str(room.refusal(deflate64_zip(bytes(5 << 20)), "a.zip", small))


# --- zstd windows and limits ------------------------------------------------------------------------------


def with_window(bits: int) -> bytes:
    """Return a frame of zstd that declares a window, of raw blocks."""
    header = b"\x28\xb5\x2f\xfd" + bytes((0, (bits - 10) << 3))
    blocks = [TWO[at : at + 1000] for at in range(0, len(TWO), 1000)]
    lasts = [*[0] * (len(blocks) - 1), 1]
    return header + b"".join((len(block) << 3 | last).to_bytes(3, "little") + block for block, last in zip(blocks, lasts, strict=True))


def test_windows_of_zstd(room: Room) -> None:
    assert unpacked(room, with_window(27), "a.tar.zst") == FILES
    for bits in (28, 31):
        for data in (with_window(bits), zstandard.compress(b"") + with_window(bits)):
            error = str(room.refusal(data, "a.tar.zst"))
            assert f"looks back {1 << bits} bytes, more than the {1 << 27}" in error
            assert f"limits=UnpackLimits(zstd_window_bytes={1 << bits})" in error
            assert "damaged" not in error
        assert unpacked(room, with_window(bits), "a.tar.zst", UnpackLimits(zstd_window_bytes=1 << bits)) == FILES


def test_dictionaries_of_xz(room: Room) -> None:
    data = lzma.compress(TWO, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 26}])
    assert unpacked(room, data, "a.tar.xz") == FILES
    error = str(room.refusal(data, "a.tar.xz", UnpackLimits(memory_bytes=1 << 20)))
    assert "limits=UnpackLimits(memory_bytes=" in error
    assert "damaged" not in error


def test_limits_are_named_and_raised(room: Room) -> None:
    small = UnpackLimits(ratio=50, ratio_from_bytes=1 << 20)
    data = gzip.compress(tar_bytes((entry("top/zeros"), bytes(5 << 20))))
    assert "limits=UnpackLimits(ratio=200)" in str(room.refusal(data, limits=small))
    assert unpacked(room, data, limits=UnpackLimits(ratio=10_000, ratio_from_bytes=1 << 20)) == {"zeros": bytes(5 << 20)}
    assert "limits=UnpackLimits(entries=…)" in str(room.refusal(TWO, limits=UnpackLimits(entries=1)))
    assert "limits=UnpackLimits(total_bytes=…)" in str(room.refusal(TWO, limits=UnpackLimits(total_bytes=5)))


def test_limits_that_are_none() -> None:
    assert checked_limits(None, "x") is None
    assert checked_limits({"ratio": 7}, "x") == UnpackLimits(ratio=7)
    for limits, why in (
        (3, "UnpackLimits"),
        ({"ration": 7}, "entries, total_bytes, ratio"),
        ({"ratio": -1}, "ratio"),
        ({"ratio": 1.5}, "ratio"),
        ({"ratio": True}, "ratio"),
        ({3: 4}, "no limit 3"),
        (UnpackLimits(ratio="7"), "ratio"),  # type: ignore[arg-type]  # what a user may write
    ):
        with pytest.raises(Misuse, match=why):
            checked_limits(limits, "x")
