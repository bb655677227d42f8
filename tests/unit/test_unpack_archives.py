"""Archives of every kind are unpacked as they were packed; whatever else is in them is refused by name and leaves nothing."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import zstandard

from pylightnix.archives import UnpackLimits, unpack_archive
from pylightnix.errors import ArchiveIOError, UnpackFailed
from pylightnix.nar import TreeDigest, tree_hash


def entry(name: str, kind: bytes = tarfile.REGTYPE, *, size: int = 0, mode: int = 0o644, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mode, info.linkname = kind, size, mode, target
    return info


def tar_bytes(*entries: tuple[tarfile.TarInfo, bytes] | tarfile.TarInfo, form: int = tarfile.PAX_FORMAT) -> bytes:
    """Return a tar archive; of entries with contents the size is that of these."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for each in entries:
            info, content = each if isinstance(each, tuple) else (each, b"")
            info.size = info.size or len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


USUAL = UnpackLimits()


class Room:
    """A folder to unpack into, beside things that must stay as they are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder / "room" / "out"
        self.out.mkdir(parents=True)
        (folder / "room" / "beside").write_text("beside")
        (folder / "room" / "outside").mkdir()

    def unpack(self, data: bytes, name: str = "archive.tar", limits: UnpackLimits = USUAL) -> Path:
        """Unpack, check that nothing else was touched, and return what was made."""
        (self.folder / name).write_bytes(data)
        before = self._outside()
        try:
            made = unpack_archive(self.folder / name, self.out, limits=limits)
        except (UnpackFailed, ArchiveIOError):
            assert os.listdir(self.out) == []
            raise
        finally:
            assert self._outside() == before
        assert os.listdir(self.out) == [made.top]
        found = tree_hash(self.out / made.top)
        assert found.file_bytes == made.file_bytes
        return self.out / made.top

    def refusal(self, data: bytes, name: str = "archive.tar", limits: UnpackLimits = USUAL) -> UnpackFailed:
        with pytest.raises(UnpackFailed) as raised:
            self.unpack(data, name, limits)
        assert str(self.folder / name) in str(raised.value)
        return raised.value

    def _outside(self) -> list[tuple[str, int, bytes]]:
        room = self.folder / "room"
        paths = [path for path in sorted(room.rglob("*")) if self.out not in path.parents]
        return [(str(path), path.lstat().st_mode, path.read_bytes() if path.is_file() else b"") for path in paths]


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


# --- what people have: archives of the usual programs ---------------------------------------------------


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A folder with all that archives can hold and every program can pack."""
    top = tmp_path / "from" / "top"
    (top / "sub" / "empty").mkdir(parents=True)
    (top / "a").write_bytes(b"hello")
    (top / "none").write_bytes(b"")
    (top / "sp ace").write_bytes(b"\0" * 1000)
    (top / "run").write_bytes(b"#!/bin/sh\n")
    (top / "run").chmod(0o755)
    (top / "link").symlink_to("a")
    (top / "sub" / "up").symlink_to("../run")
    (top / "sub" / "gone").symlink_to("no/where")
    return top


def _add_unportable(top: Path) -> None:
    """Add what only some formats have room for."""
    (top / ("n" * 200)).write_bytes(b"long")
    (top / "longlink").symlink_to("x" * 150)
    os.link(top / "a", top / "zhard")
    os.link(top / ("n" * 200), top / "zlonghard")
    (top / "é日本").write_bytes(b"utf-8")
    Path(os.fsdecode(os.fsencode(top) + b"/lat\xe9n")).write_bytes(b"latin-1")
    deep = top / "/".join(["d" * 80] * 5)
    deep.mkdir(parents=True)
    (deep / "deep").write_bytes(b"deep")
    with open(top / "sparse", "wb") as file:
        for number in range(30):
            file.seek(number * 500_000)
            file.write(b"S" * 5000)
        file.truncate(20_000_000)


def _run(argv: Sequence[str], top: Path) -> None:
    if shutil.which(argv[0]) is None:
        pytest.skip(f"it takes the program {argv[0]}")
    subprocess.run(argv, cwd=top.parent, check=True, stdout=subprocess.DEVNULL)


GNU_TAR = [
    *("--format=gnu", "--format=oldgnu", "--format=pax", "--format=gnu --sparse", "--format=oldgnu --sparse"),
    *(f"--format=pax --sparse --sparse-version={version}" for version in ("0.0", "0.1", "1.0")),
    *("--gzip", "--bzip2", "--xz", "--zstd", "--hard-dereference", "--label=volume", "--listed-incremental=snapshot"),
]


@pytest.mark.parametrize("options", GNU_TAR)
def test_tar_of_gnu(room: Room, packed: Path, options: str) -> None:
    _add_unportable(packed)
    expected = tree_hash(packed)
    if {"--zstd", "--xz"} & {options} and shutil.which(options[2:]) is None:
        pytest.skip(f"it takes the program {options[2:]}")
    _run(["tar", *options.split(), "-cf", str(room.folder / "made"), "top"], packed)
    assert tree_hash(room.unpack((room.folder / "made").read_bytes())) == expected


@pytest.mark.parametrize("form", ["ustar", "v7"])
@pytest.mark.parametrize("name", ["top", "./top"])
def test_tar_of_old_formats(room: Room, packed: Path, form: str, name: str) -> None:
    _run(["tar", f"--format={form}", "-cf", str(room.folder / "made"), name], packed)
    assert tree_hash(room.unpack((room.folder / "made").read_bytes())) == tree_hash(packed)


@pytest.mark.parametrize("form", ["pax", "paxr", "gnutar", "ustar", "v7", "zip", "7zip"])
def test_bsdtar(room: Room, packed: Path, form: str) -> None:
    if form in ("pax", "paxr", "gnutar"):
        _add_unportable(packed)
    expected = tree_hash(packed)
    _run(["bsdtar", "--format", form, "-cf", str(room.folder / "made"), "top"], packed)
    assert tree_hash(room.unpack((room.folder / "made").read_bytes())) == expected


@pytest.mark.parametrize("options", ["-ry", "-ry -Z bzip2", "-ry -0"])
def test_zip_of_info_zip(room: Room, packed: Path, options: str) -> None:
    _add_unportable(packed)
    expected = tree_hash(packed)
    _run(["zip", "-q", *options.split(), str(room.folder / "made.zip"), "top"], packed)
    assert tree_hash(room.unpack((room.folder / "made.zip").read_bytes())) == expected


class _Pipe(io.RawIOBase):
    """Something to write to that cannot be gone back in, so that sizes and checksums follow the contents."""

    def __init__(self) -> None:
        self.written = b""

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]  # it is given bytes only
        self.written += data
        return len(data)


def test_zip_that_was_written_to_a_pipe(room: Room) -> None:
    pipe = _Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("top/a", b"x" * 5000)
        archive.writestr("top/b", b"")
    top = room.unpack(pipe.written, "archive.zip")
    assert ((top / "a").read_bytes(), (top / "b").read_bytes()) == (b"x" * 5000, b"")


@pytest.mark.parametrize(
    "options", ["-m0=lzma", "-m0=lzma2", "-m0=ppmd", "-m0=bzip2", "-m0=copy", "-ms=off", "-tzip", "-tzip -mm=lzma", "-ttar"]
)
def test_7_zip(room: Room, packed: Path, options: str) -> None:
    _add_unportable(packed)
    expected = tree_hash(packed)
    program = next((found for found in ("7zz", "7z") if shutil.which(found)), "7zz")
    suffix = {"-tzip": "zip", "-ttar": "tar"}.get(options.split(maxsplit=1)[0], "7z")
    _run([program, "a", "-snl", *options.split(), str(room.folder / f"made.{suffix}"), "top"], packed)
    assert tree_hash(room.unpack((room.folder / f"made.{suffix}").read_bytes())) == expected


def test_zip_of_python(room: Room, packed: Path) -> None:
    links = [path for path in packed.rglob("*") if path.is_symlink()]
    for path in links:
        path.unlink()
    packed.joinpath("é日本").write_bytes(b"utf-8")
    shutil.make_archive(str(room.folder / "made"), "zip", packed.parent, "top")
    assert tree_hash(room.unpack((room.folder / "made.zip").read_bytes())) == tree_hash(packed)


def test_7z_of_py7zr(room: Room, packed: Path) -> None:
    py7zr = pytest.importorskip("py7zr")
    (packed / "sub" / "gone").unlink()  # py7zr packs no link that leads nowhere
    with py7zr.SevenZipFile(room.folder / "made.7z", "w") as archive:
        archive.writeall(packed, "top")
    assert tree_hash(room.unpack((room.folder / "made.7z").read_bytes())) == tree_hash(packed)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, zstandard.compress])
def test_streams_behind_each_other(room: Room, compress: Callable[[bytes], bytes]) -> None:
    data = tar_bytes((entry("top/a"), b"x" * 5000))
    both = compress(data[:3000]) + compress(b"") + compress(data[3000:]) + b"\0" * 512
    assert (room.unpack(both) / "a").read_bytes() == b"x" * 5000


def test_skippable_frames_of_zstd(room: Room) -> None:
    # As pzstd and the seekable format write them.
    skippable = struct.pack("<II", 0x184D2A53, 5) + b"index"
    data = tar_bytes((entry("top/a"), b"x" * 5000))
    made = skippable + zstandard.compress(data[:3000]) + skippable * 2 + zstandard.compress(data[3000:]) + skippable
    assert (room.unpack(made) / "a").read_bytes() == b"x" * 5000
    shutil.rmtree(room.out / "top")
    assert "end early" in str(room.refusal(made[:-1]))


# --- names ----------------------------------------------------------------------------------------------


def zip_bytes(*entries: tuple[bytes, int, int, bytes], content: bytes = b"text", attributes: int = 0) -> bytes:
    """Return a zip archive of stored files: name, system, flags, extra field."""
    files, directory = b"", b""
    for name, system, flags, extra in entries:
        facts = struct.pack("<HHHHHIIIHH", 20, flags, 0, 0, 33, zlib.crc32(content), len(content), len(content), len(name), len(extra))
        directory += b"PK\1\2" + struct.pack("<BB", 20, system) + facts
        directory += struct.pack("<HHHII", 0, 0, 0, attributes, len(files)) + name + extra
        files += b"PK\3\4" + facts + name + extra + content
    end = struct.pack("<HHHHIIH", 0, 0, len(entries), len(entries), len(directory), len(files), 0)
    return files + directory + b"PK\5\6" + end


@pytest.mark.parametrize(
    ("name", "system", "flags", "expected"),
    [
        (b"top/lat\xe9n", 3, 0, b"lat\xe9n"),  # whatever a Unix had
        ("top/日本".encode(), 3, 0, "日本".encode()),  # as macOS writes it
        ("top/日本".encode(), 3, 0x800, "日本".encode()),
        (b"top/\x81x", 0, 0, "üx".encode()),  # the code page of DOS
        (b"top\\x", 0, 0, b"x"),  # as some programs on Windows write it
        (b"top\\\x81x", 0, 0, "üx".encode()),
        ("top\\日本".encode(), 0, 0x800, "日本".encode()),
        (b"top/a\\b", 0, 0, b"a\\b"),
        (b"top/a\\b", 3, 0, b"a\\b"),
    ],
)
def test_names_in_zip(room: Room, name: bytes, system: int, flags: int, expected: bytes) -> None:
    top = room.unpack(zip_bytes((name, system, flags, b"")), "archive.zip")
    assert (top.name, os.listdir(os.fsencode(top))) == ("top", [expected])


def test_name_in_an_extra_field_of_zip(room: Room) -> None:
    name, better = b"top/?", "top/日本".encode()
    extra = struct.pack("<HHBI", 0x7075, 5 + len(better), 1, zlib.crc32(name)) + better
    assert os.listdir(room.unpack(zip_bytes((name, 0, 0, extra)), "archive.zip")) == ["日本"]


def test_false_utf8_in_zip(room: Room) -> None:
    assert "marked as UTF-8" in str(room.refusal(zip_bytes((b"top/\xff", 3, 0x800, b"")), "archive.zip"))


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_names_in_tar_are_bytes(room: Room, form: int) -> None:
    names = [b"\xff", "日本".encode(), b"a\nb", b"\\", b" ", b"-x", b"*"]
    top = room.unpack(tar_bytes(*(entry("top/" + os.fsdecode(name)) for name in names), form=form))
    assert sorted(os.listdir(os.fsencode(top))) == sorted(names)


# --- where it is placed ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "names", "top"),
    [
        ("data.tar", ["one/a", "one/b"], "one"),
        ("data.tar", ["./one"], "one"),
        ("data.tar", ["a", "b"], "data"),
        ("data.1.tar", ["a", "b"], "data.1"),
        ("data.tgz", ["a", "b"], "data"),
        ("data", ["a", "b"], "data"),
        ("data.tar", [], "data"),
        (".tar", ["a", "b"], ".tar"),
        ("data.tar", ["context.json"], "data"),
        ("context.json.tar", ["a", "b"], "context.json.tar"),
    ],
)
def test_all_of_an_archive_stands_below_one_name(room: Room, name: str, names: list[str], top: str) -> None:
    made = room.unpack(tar_bytes(*(entry(each) for each in names)), name)
    assert made.name == top


@pytest.mark.parametrize(
    ("name", "compress", "expected"),
    [
        ("data.csv.gz", gzip.compress, "data.csv"),
        ("data.csv.BZ2", bz2.compress, "data.csv"),
        ("data.csv.xz", lzma.compress, "data.csv"),
        ("data.csv.zst", zstandard.compress, "data.csv"),
        ("data", gzip.compress, "data"),
        (".gz", gzip.compress, ".gz"),
    ],
)
@pytest.mark.parametrize("content", [b"", b"a,b\n" * 100_000])
def test_compressed_file(room: Room, name: str, compress: Callable[[bytes], bytes], expected: str, content: bytes) -> None:
    made = room.unpack(compress(content), name)
    assert (made.name, made.read_bytes(), made.stat().st_mode & 0o111) == (expected, content, 0)


def test_what_is_there_already_is_left_alone(room: Room) -> None:
    (room.out / "one").write_text("mine")
    (room.folder / "data.tar").write_bytes(tar_bytes(entry("one/a")))
    with pytest.raises(UnpackFailed, match="'one' is to be made, and is in the folder already"):
        unpack_archive(room.folder / "data.tar", room.out)
    assert os.listdir(room.out) == ["one"]


# --- what is refused ------------------------------------------------------------------------------------


def _hostile() -> dict[str, tuple[list[tarfile.TarInfo], str, str]]:
    """Entries, the one that is to blame, and why."""
    a, link = entry("top/a"), entry("top/l", tarfile.SYMTYPE, target=".")
    up = "leads out of its folder by '..'"
    out = "leads out of the archive's folder"
    return {
        "up": ([a, entry("top/../../beside")], "top/../../beside", up),
        "up, though not out": ([entry("top/x/../b")], "top/x/../b", up),
        "up at once": ([entry("../beside")], "../beside", up),
        "no name": ([entry(".")], ".", "no name"),
        "file, then folder": ([a, entry("top/a/b")], "top/a/b", "not a folder"),
        "folder, then file": ([entry("top/a/b"), a], "top/a", "stands twice"),
        "folder, then link": ([entry("top/l/b"), link], "top/l", "stands twice"),
        "through a link": ([link, entry("top/l/b")], "top/l/b", "not a folder"),
        "absolute link": ([entry("top/l", tarfile.SYMTYPE, target="/etc/passwd")], "top/l", out),
        "link out": ([entry("top/l", tarfile.SYMTYPE, target="../../outside")], "top/l", out),
        "link out at the top": ([entry("l", tarfile.SYMTYPE, target="..")], "l", out),
        "link out over a name": ([entry("top/l", tarfile.SYMTYPE, target="x/../../../outside")], "top/l", out),
        "link out over links": (
            [entry("top/d/l", tarfile.SYMTYPE, target=".."), entry("top/m", tarfile.SYMTYPE, target="d/l/../..")],
            "top/m",
            out,
        ),
        "link to nothing": ([entry("top/l", tarfile.SYMTYPE)], "top/l", "no target"),
        "hard link out": ([entry("top/h", tarfile.LNKTYPE, target="../beside")], "top/h", up),
        "absolute hard link": ([entry("top/h", tarfile.LNKTYPE, target="/etc/passwd")], "top/h", "no file that came before"),
        "rest of a file": ([entry("top/d", b"M")], "top/d", "another volume"),
        "hard link over a link": ([a, link, entry("top/h", tarfile.LNKTYPE, target="top/l/a")], "top/h", "no file that came before"),
        "hard link to nothing": ([entry("top/h", tarfile.LNKTYPE, target="top/x")], "top/h", "no file that came before"),
        "hard link to a folder": ([a, entry("top/h", tarfile.LNKTYPE, target="top")], "top/h", "no file that came before"),
        "device": ([entry("top/d", tarfile.CHRTYPE)], "top/d", "character device"),
        "block device": ([entry("top/d", tarfile.BLKTYPE)], "top/d", "block device"),
        "FIFO": ([entry("top/d", tarfile.FIFOTYPE)], "top/d", "FIFO"),
        "long name": ([entry("top/" + "x" * 256)], "top/" + "x" * 256, "255 bytes"),
        "deep": ([entry("d/" * 300 + "x")], "d/" * 300 + "x", "nested deeper"),
    }


@pytest.mark.parametrize("what", sorted(_hostile()))
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_refused_in_tar(room: Room, what: str, form: int) -> None:
    entries, blamed, why = _hostile()[what]
    error = room.refusal(tar_bytes(*entries, form=form))
    assert error.entry == blamed
    assert why in str(error)


KINDS_OF_UNIX = {
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
}


def _in_zip(info: tarfile.TarInfo) -> tuple[zipfile.ZipInfo, str]:
    found = zipfile.ZipInfo(info.name)
    found.filename = info.name + ("/" if info.isdir() else "")  # past what zipfile makes of names
    found.external_attr = (KINDS_OF_UNIX.get(info.type, stat.S_IFDIR if info.isdir() else stat.S_IFREG) | info.mode) << 16
    return found, info.linkname


ONLY_TAR = {
    "hard link out",
    "absolute hard link",
    "hard link over a link",
    "hard link to nothing",
    "hard link to a folder",
    "rest of a file",
}
WHY_IN_ZIP = {"device": "special file", "block device": "special file", "FIFO": "special file"}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("what", sorted(_hostile().keys() - ONLY_TAR))
def test_refused_in_zip(room: Room, what: str) -> None:
    entries, blamed, why = _hostile()[what]
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for info, content in map(_in_zip, entries):
            archive.writestr(info, content)
    error = room.refusal(file.getvalue(), "archive.zip")
    assert error.entry == blamed
    assert WHY_IN_ZIP.get(what, why) in str(error)


def seven_zip_bytes(*entries: tarfile.TarInfo) -> bytes:
    """Return a 7z archive of files and links, under any names."""
    py7zr = pytest.importorskip("py7zr")
    file = io.BytesIO()
    with py7zr.SevenZipFile(file, "w") as archive:
        for number, info in enumerate(entries):
            archive.writestr(info.linkname or "text", f"name{number}")
        for found, info in zip(archive.header.files_info.files, entries, strict=True):
            found["filename"] = info.name
            found["attributes"] = 0x8000 | (KINDS_OF_UNIX.get(info.type, stat.S_IFREG) | info.mode) << 16
    return file.getvalue()


# py7zr writes folders in its own way only. A link needs a target to be written.
NOT_IN_7Z = ONLY_TAR | {"link to nothing"}
WHY_IN_7Z = {"deep": "nested deeper", **WHY_IN_ZIP}


IN_7Z = {
    **{what: found for what, found in _hostile().items() if what not in NOT_IN_7Z},
    "absolute": ([entry("/tmp/x")], "/tmp/x", "is absolute"),
    "twice": ([entry("top/a"), entry("top/a")], "top/a", "stands twice"),
    "link, then file": ([entry("top/l", tarfile.SYMTYPE, target="."), entry("top/l")], "top/l", "stands twice"),
}


@pytest.mark.parametrize("what", sorted(IN_7Z))
def test_refused_in_7z(room: Room, what: str) -> None:
    entries, blamed, why = IN_7Z[what]
    error = room.refusal(seven_zip_bytes(*entries), "archive.7z")
    assert error.entry == blamed
    assert WHY_IN_7Z.get(what, why) in str(error)


@pytest.mark.parametrize("names", [["top/ok", "../beside", "top/ok2"], ["top/ok", "/tmp/x", "top/ok2"], ["top/ok", "C:x", "top/ok2"]])
def test_the_name_that_is_to_blame_in_7z(room: Room, names: list[str]) -> None:
    assert room.refusal(seven_zip_bytes(*map(entry, names)), "archive.7z").entry == names[1]


def test_names_in_7z_that_are_not_plain(room: Room) -> None:
    top = room.unpack(seven_zip_bytes(entry("./top//a"), entry("top/./b"), entry("top/run", mode=0o755)), "archive.7z")
    assert sorted(os.listdir(top)) == ["a", "b", "run"]
    assert os.access(top / "run", os.X_OK)


def test_coders_that_are_not_taken_in_7z(room: Room) -> None:
    py7zr = pytest.importorskip("py7zr")
    for filters, why in (
        ([{"id": py7zr.FILTER_BROTLI, "level": 1}], "the method 04f71102 of 7z"),
        ([{"id": py7zr.FILTER_BZIP2}, {"id": py7zr.FILTER_DEFLATE}], "compressed twice over"),
    ):
        for encoded_header in (False, True):
            file = io.BytesIO()
            with py7zr.SevenZipFile(file, "w", filters=filters) as archive:
                archive.writestr(b"text", "top/a")
                archive.set_encoded_header_mode(encoded_header)
            assert why in str(room.refusal(file.getvalue(), "archive.7z"))


@pytest.mark.parametrize(
    ("method", "coder", "highest"),
    [
        ({"id": "FILTER_LZMA2"}, b"\x21\x21\x01", 3),
        ({"id": "FILTER_LZMA"}, b"\x23\x03\x01\x01\x05", 9),
        ({"id": "FILTER_PPMD", "order": 6, "mem": 24}, b"\x23\x03\x04\x01\x07", 9),
    ],
)
def test_too_much_memory_for_7z(room: Room, method: dict[str, Any], coder: bytes, highest: int) -> None:
    py7zr = pytest.importorskip("py7zr")
    file = io.BytesIO()
    with py7zr.SevenZipFile(file, "w", filters=[{**method, "id": getattr(py7zr, method["id"])}]) as archive:
        archive.writestr(b"text", "top/a")
        archive.set_encoded_header_mode(False)
    room.unpack(file.getvalue(), "archive.7z")
    shutil.rmtree(room.out / "top")
    data = bytearray(file.getvalue())
    data[data.index(coder) + highest] = 40 if highest == 3 else 0x80  # an exponent, or the highest byte of how much it is
    begin = 32 + int.from_bytes(data[12:20], "little")
    data[28:32] = zlib.crc32(data[begin : begin + int.from_bytes(data[20:28], "little")]).to_bytes(4, "little")
    data[8:12] = zlib.crc32(data[12:32]).to_bytes(4, "little")
    assert "looks back" in str(room.refusal(bytes(data), "archive.7z"))


def test_encrypted_archives(room: Room, packed: Path) -> None:
    _run(["zip", "-qr", "-P", "secret", str(room.folder / "made.zip"), "top/a"], packed)
    assert "encrypted" in str(room.refusal((room.folder / "made.zip").read_bytes(), "archive.zip"))
    py7zr = pytest.importorskip("py7zr")
    for encrypted_header in (False, True):
        file = io.BytesIO()
        with py7zr.SevenZipFile(file, "w", password="secret", header_encryption=encrypted_header) as archive:
            archive.writestr(b"text", "top/a")
        assert "encrypted" in str(room.refusal(file.getvalue(), "archive.7z"))


@pytest.mark.parametrize(
    "data", [b"", b"x", b"\0" * 10241, b"\0" * 10240 + b"x" * 512, b"<html>" * 1000, b"\x7fELF" + bytes(5000), b"PK", b"7z", b"\x1f\x8b"]
)
@pytest.mark.parametrize("name", ["archive", "archive.bin"])
def test_what_is_no_archive(room: Room, data: bytes, name: str) -> None:
    assert "known are tar" in str(room.refusal(data, name))


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tgz"])
def test_what_is_not_the_archive_that_its_name_says(room: Room, name: str) -> None:
    assert room.refusal(b"<html>" * 1000, name).entry is None
    assert room.refusal(gzip.compress(b"<html>" * 1000), name).entry is None


def test_archives_that_cannot_be_opened(room: Room) -> None:
    os.mkfifo(room.folder / "fifo")
    for path, why in ((room.folder / "none", "No such file"), (room.folder, "no regular file"), (room.folder / "fifo", "no regular file")):
        with pytest.raises(ArchiveIOError, match=why):
            unpack_archive(path, room.out)


# --- bombs ----------------------------------------------------------------------------------------------

SMALL = UnpackLimits(entries=100, total_bytes=1 << 24, ratio=50, ratio_from_bytes=1 << 20)


def zeros(size: int) -> bytes:
    return tar_bytes((entry("top/zeros"), bytes(size)))


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, zstandard.compress])
def test_too_much_for_an_archive_of_its_size(room: Room, compress: Callable[[bytes], bytes]) -> None:
    for data, name in ((zeros(10 << 20), "a.tar.gz"), (bytes(10 << 20), "zeros.gz")):
        error = room.refusal(compress(data), name, SMALL)
        assert "too much for an archive of its size" in str(error)
        # Of zstd so much comes at once that no entry is begun yet.
        assert error.entry in ("top/zeros", "zeros", None)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_too_much_in_zip(room: Room, method: int) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("top/a", "x")
        archive.writestr("top/zeros", bytes(10 << 20))
    error = room.refusal(file.getvalue(), "a.zip", SMALL)
    assert (error.entry, "too much for an archive of its size" in str(error)) == ("top/zeros", True)


def test_too_much_in_7z(room: Room) -> None:
    py7zr = pytest.importorskip("py7zr")
    file = io.BytesIO()
    with py7zr.SevenZipFile(file, "w") as archive:
        archive.writestr(bytes(10 << 20), "top/zeros")
    error = room.refusal(file.getvalue(), "a.7z", SMALL)
    assert (error.entry, "too much for an archive of its size" in str(error)) == ("top/zeros", True)


def test_too_many_bytes(room: Room) -> None:
    error = room.refusal(zeros(1 << 25), limits=SMALL)
    assert (error.entry, f"larger than {1 << 24} bytes" in str(error)) == ("top/zeros", True)


def test_too_many_entries(room: Room) -> None:
    assert "more than 100 entries" in str(room.refusal(tar_bytes(*(entry(f"top/{number}") for number in range(101))), limits=SMALL))
    assert "more than 100 entries" in str(room.refusal(tar_bytes(*(entry(f"{number}/x") for number in range(51))), limits=SMALL))


def test_links_that_copy_without_end(room: Room) -> None:
    copies = [entry(f"top/{number}", tarfile.LNKTYPE, target="top/a") for number in range(50)]
    assert "too much for an archive" in str(
        room.refusal(gzip.compress(tar_bytes((entry("top/a"), os.urandom(1 << 17)), *copies)), limits=SMALL)
    )


def test_holes_without_end(room: Room) -> None:
    info = entry("top/holes")
    info.pax_headers = {"GNU.sparse.size": str(1 << 60), "GNU.sparse.map": "0,0"}
    assert "larger than" in str(room.refusal(tar_bytes(info), limits=SMALL))


@pytest.mark.parametrize("key", ["comment", "path", "GNU.sparse.map"])
def test_headers_without_end(room: Room, key: str) -> None:
    info = entry("top/a")
    info.pax_headers = {key: "x" * (1 << 21)}
    assert "header" in str(room.refusal(tar_bytes(info)))


def test_links_without_end(room: Room) -> None:
    turns = [entry(f"top/l{number}", tarfile.SYMTYPE, target=f"l{number + 1}/x/../l{number + 1}") for number in range(60)]
    room.unpack(tar_bytes(*turns))  # none of them leads anywhere, as Linux gives up after 40


# --- damage ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress, zstandard.compress])
def test_cut_anywhere(room: Room, compress: Callable[[bytes], bytes]) -> None:
    data = tar_bytes((entry("top/a"), b"x" * 700), entry("top/l", tarfile.SYMTYPE, target="a"))
    whole = compress(data)
    end = 4 * 512 if compress is bytes else len(whole)  # of a plain archive what follows the end is padding
    for size in range(20, end, 61):
        error = room.refusal(whole[:size])
        assert "cut short" in str(error) or "known are tar" in str(error)


def test_something_behind(room: Room) -> None:
    """As with the programs of these compressions."""
    strict: list[Callable[[bytes], bytes]] = [lzma.compress, zstandard.compress]
    for compress in strict:
        assert "data" in str(room.refusal(compress(zeros(10)) + b"more"))
    forgiving: list[Callable[[bytes], bytes]] = [gzip.compress, bz2.compress]
    for number, compress in enumerate(forgiving):
        for more in (b"more", b"\0" * 100, b"\x1f", b"B"):
            made = room.unpack(compress(zeros(10)) + more, f"{number}.tar")
            assert (made / "zeros").read_bytes() == bytes(10)
            shutil.rmtree(made)
    assert "gzip data are damaged" in str(room.refusal(gzip.compress(zeros(10)) + b"\x1f\x8b\x08more"))


@pytest.mark.parametrize(("at", "byte"), [(0, b"x"), (124, b"9"), (148, b"7"), (156, b"5"), (100, b"x")])
def test_damaged_header_of_tar(room: Room, at: int, byte: bytes) -> None:
    data = bytearray(tar_bytes((entry("top/a"), b"x"), (entry("top/b"), b"y")))
    data[1024 + at : 1024 + at + 1] = byte
    assert "header is damaged" in str(room.refusal(bytes(data)))


def test_a_negative_size(room: Room) -> None:
    data = bytearray(tar_bytes((entry("top/a"), b"x")))
    data[124:136] = b"\xff" * 12
    data[148:156] = b"%06o\0 " % (sum(data[:148]) + sum(data[156:512]) + 8 * 32)
    assert "not negative" in str(room.refusal(bytes(data)))


def test_without_py7zr(room: Room) -> None:
    script = f"""
import sys
sys.modules["py7zr"] = None
from pylightnix.archives import unpack_archive
unpack_archive({str(room.folder / "a.7z")!r}, {str(room.out)!r})
"""
    (room.folder / "a.7z").write_bytes(b"7z\xbc\xaf\x27\x1c" + bytes(26))
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "pip install 'pylightnix[archives]'" in child.stderr


def test_digests_have_what_was_packed(room: Room) -> None:
    found: TreeDigest = tree_hash(room.unpack(tar_bytes((entry("top/a", mode=0o755), b"x"), entry("top/e", tarfile.DIRTYPE))))
    (room.folder / "by-hand" / "e").mkdir(parents=True)
    (room.folder / "by-hand" / "a").write_bytes(b"x")
    (room.folder / "by-hand" / "a").chmod(0o755)
    assert found == tree_hash(room.folder / "by-hand")


# --- memory ---------------------------------------------------------------------------------------------

MEBI = 1 << 20

UNPACK_IN_LITTLE_MEMORY = """
import resource, sys
from pylightnix.archives import unpack_archive
from pylightnix.archives import zip, tar  # no part of what is measured
try:
    import py7zr
except ImportError:
    pass
with open("/proc/self/statm") as statm:
    taken = int(statm.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + int(sys.argv[1]),) * 2)
try:
    unpack_archive(sys.argv[2], sys.argv[3])
except Exception as error:
    print(type(error).__name__, error)
"""


def unpack_in_little_memory(room: Room, name: str, headroom: int) -> str:
    """Unpack in a process that may take `headroom` bytes more than it has, and return the error that it tells."""
    command = [sys.executable, "-c", UNPACK_IN_LITTLE_MEMORY, str(headroom), str(room.folder / name), str(room.out)]
    child = subprocess.run(command, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    return child.stdout


def zip_of_zeros(method: int, size: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive, archive.open("top/zeros", "w") as content:
        for _ in range(size // MEBI):
            content.write(bytes(MEBI))
    return file.getvalue()


def seven_zip_of_zeros(filters: list[dict[str, Any]], size: int) -> bytes:
    py7zr = pytest.importorskip("py7zr")
    file = io.BytesIO()
    with py7zr.SevenZipFile(file, "w", filters=filters) as archive:
        archive.writef(io.BytesIO(bytes(size)), "top/zeros")
    return file.getvalue()


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, zstandard.compress])
def test_memory_does_not_grow_with_a_tar(room: Room, compress: Callable[[bytes], bytes]) -> None:
    header = entry("top/zeros", size=200 * MEBI).tobuf()
    (room.folder / "a.tar").write_bytes(compress(header) + compress(bytes(8 * MEBI)) * 25 + compress(bytes(1024)))
    assert unpack_in_little_memory(room, "a.tar", 80 * MEBI) == ""
    assert (room.out / "top" / "zeros").stat().st_size == 200 * MEBI


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_memory_does_not_grow_with_a_zip(room: Room, method: int) -> None:
    (room.folder / "a.zip").write_bytes(zip_of_zeros(method, 80 * MEBI))
    assert unpack_in_little_memory(room, "a.zip", 40 * MEBI) == ""
    assert (room.out / "top" / "zeros").stat().st_size == 80 * MEBI


@pytest.mark.parametrize(
    ("method", "size", "headroom"),
    [
        ({"id": "FILTER_DEFLATE"}, 80, 40),
        ({"id": "FILTER_BZIP2"}, 80, 40),
        ({"id": "FILTER_LZMA2", "preset": 0}, 80, 40),
        ({"id": "FILTER_ZSTD"}, 160, 150),
    ],
)
def test_memory_does_not_grow_with_a_7z(room: Room, method: dict[str, Any], size: int, headroom: int) -> None:
    py7zr = pytest.importorskip("py7zr")
    (room.folder / "a.7z").write_bytes(seven_zip_of_zeros([{**method, "id": getattr(py7zr, method["id"])}], size * MEBI))
    assert unpack_in_little_memory(room, "a.7z", headroom * MEBI) == ""
    assert (room.out / "top" / "zeros").stat().st_size == size * MEBI


def test_memory_does_not_grow_with_small_files_in_7z(room: Room) -> None:
    py7zr = pytest.importorskip("py7zr")
    content = os.urandom(48 * MEBI)
    with py7zr.SevenZipFile(room.folder / "a.7z", "w", filters=[{"id": py7zr.FILTER_LZMA2, "preset": 0}]) as archive:
        for number in range(48 * 8):
            archive.writestr(content[number << 17 : (number + 1) << 17], f"top/{number}")
    assert unpack_in_little_memory(room, "a.7z", 24 * MEBI) == ""
    assert (room.out / "top" / "383").read_bytes() == content[-(1 << 17) :]


def test_too_little_memory_is_told(room: Room) -> None:
    data = bytearray(zip_of_zeros(zipfile.ZIP_LZMA, MEBI))
    at = data.index(b"\x05\0\x5d") + 3  # what the properties say of the dictionary
    data[at : at + 4] = (800 * MEBI).to_bytes(4, "little")
    (room.folder / "a.zip").write_bytes(data)
    said = unpack_in_little_memory(room, "a.zip", 40 * MEBI)
    assert said.startswith(f"UnpackFailed {room.folder / 'a.zip'}: entry 'top/zeros': it takes more memory to unpack than")
    data[at : at + 4] = b"\xff" * 4
    assert "looks back" in str(room.refusal(bytes(data), "a.zip"))


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("at", [14, 22])  # the checksum, the size
def test_wrong_checksums_and_sizes_in_zip(room: Room, method: int, at: int) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr("top/a", b"text" * 1000)
    for change in (1, -1):
        data = bytearray(file.getvalue())
        at_end = data.index(b"PK\1\2") + at + 2
        changed = int.from_bytes(data[at_end : at_end + 4], "little") + change
        data[at_end : at_end + 4] = changed.to_bytes(4, "little")
        assert room.refusal(bytes(data), "a.zip").entry == "top/a"


def test_zstd_in_zip(room: Room) -> None:
    content = zstandard.compress(b"text" * 1000)
    data = bytearray(zip_bytes((b"top/a", 3, 0, b""), content=content))
    for begin, at in ((0, 8), (data.index(b"PK\1\2"), 10)):
        data[begin + at : begin + at + 2] = (93).to_bytes(2, "little")
        data[begin + at + 6 : begin + at + 10] = zlib.crc32(b"text" * 1000).to_bytes(4, "little")
        data[begin + at + 14 : begin + at + 18] = (4000).to_bytes(4, "little")
    assert (room.unpack(bytes(data), "a.zip") / "a").read_bytes() == b"text" * 1000
