"""Whatever an archive holds: it is unpacked as a plain model says, or refused, and nothing outside its folder is touched."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import os
import random
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Optional

import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pylightnix.archives import UnpackLimits, unpack_archive
from pylightnix.errors import UnpackFailed
from pylightnix.nar import tree_hash

LIMITS: Final = UnpackLimits(entries=1000, total_bytes=1 << 24, ratio=100, ratio_from_bytes=1 << 20)


@dataclass(frozen=True)
class Entry:
    kind: bytes
    name: str
    content: bytes
    target: str
    mode: int


KINDS: Final = {
    "file": tarfile.REGTYPE,
    "folder": tarfile.DIRTYPE,
    "link": tarfile.SYMTYPE,
    "hard link": tarfile.LNKTYPE,
    "device": tarfile.CHRTYPE,
    "FIFO": tarfile.FIFOTYPE,
}

# Few names, so that they meet; those of links are like those of entries, so that ways lead over links.
components = st.sampled_from(["a", "b", "l", "..", ".", "", "é", "\udcff", "x" * 256])
plain_components = st.sampled_from(["a", "b", "c", "é", "\udcff"])
paths = st.lists(components, min_size=1, max_size=4).map("/".join) | st.sampled_from(["/etc/x", "../x", "a/../../x", "..", "/", ""])
plain_paths = st.lists(plain_components, min_size=1, max_size=3).map("/".join)
entries = st.builds(
    Entry,
    st.sampled_from(list(KINDS.values())[:4]) | st.sampled_from(list(KINDS.values())),
    plain_paths | paths,
    st.binary(max_size=20),
    plain_paths | paths,
    st.sampled_from([0o644, 0o755, 0o644, 0o755, 0o4755, 0o2755, 0o1777, 0]),
)
archives = st.lists(entries, max_size=8)


def tar(made: list[Entry], form: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for each in made:
            info = tarfile.TarInfo(each.name)
            info.type, info.mode, info.linkname = each.kind, each.mode, each.target
            info.size = len(each.content) if each.kind == tarfile.REGTYPE else 0
            archive.addfile(info, io.BytesIO(each.content))
    return file.getvalue()


def zipped(made: list[Entry]) -> bytes:
    sorts = {
        tarfile.REGTYPE: stat.S_IFREG,
        tarfile.DIRTYPE: stat.S_IFDIR,
        tarfile.SYMTYPE: stat.S_IFLNK,
        tarfile.CHRTYPE: stat.S_IFCHR,
        tarfile.FIFOTYPE: stat.S_IFIFO,
    }
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for each in made:
            info = zipfile.ZipInfo("name")
            info.filename = each.name + "/" * (each.kind == tarfile.DIRTYPE)  # past what zipfile makes of names
            info.external_attr = (sorts[each.kind] | each.mode) << 16
            archive.writestr(info, os.fsencode(each.target) if each.kind == tarfile.SYMTYPE else each.content)
    return file.getvalue()


@contextmanager
def room() -> Iterator[tuple[str, str]]:
    """Yield a folder for the archive, and an empty one below it to unpack into; check all that is beside that."""
    with tempfile.TemporaryDirectory() as top:
        out = f"{top}/deep/in/out"
        os.makedirs(out)
        for number, folder in enumerate((top, f"{top}/deep", f"{top}/deep/in")):
            for name in ("a", "x"):
                with open(f"{folder}/{name}", "w") as file:
                    file.write(str(number))
        yield top, out
        for number, (folder, inner) in enumerate(((top, "deep"), (f"{top}/deep", "in"), (f"{top}/deep/in", "out"))):
            assert sorted(set(os.listdir(folder)) - {"archive"}) == sorted(["a", "x", inner])
            for name in ("a", "x"):
                with open(f"{folder}/{name}") as file:
                    assert file.read() == str(number)


def unpacked(data: bytes, name: str) -> Optional[str]:
    """Unpack in a room of its own; return the tree hash of what was made, None if it was refused."""
    with room() as (top, out):
        with open(f"{top}/archive", "wb") as file:
            file.write(data)
        try:
            made = unpack_archive(f"{top}/archive", out, limits=LIMITS, name=name)
        except UnpackFailed:
            assert os.listdir(out) == []
            return None
        assert os.listdir(out) == [made.top]
        check_inside(os.fsencode(out), os.fsencode(out))
        return tree_hash(f"{out}/{made.top}").sha256


def check_inside(folder: bytes, top: bytes) -> None:
    """Check what no tree may have: special files, set-id bits, links that lead out."""
    for name in os.listdir(folder):
        path = folder + b"/" + name
        info = os.lstat(path)
        assert not info.st_mode & (stat.S_ISUID | stat.S_ISGID)
        if stat.S_ISLNK(info.st_mode):
            assert goes_in_circles(path) or os.path.realpath(path).startswith(top), (path, os.readlink(path))
        elif stat.S_ISDIR(info.st_mode):
            check_inside(path, top)
        else:
            assert stat.S_ISREG(info.st_mode)


def goes_in_circles(path: bytes) -> bool:
    """Tell whether the system follows a link nowhere. `realpath` makes up an answer for some of these."""
    try:
        os.stat(path)
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


Tree = dict[str, "Tree | tuple[bytes, bool] | str"]


def modelled(made: list[Entry]) -> Optional[Tree]:
    """Return what plain entries make; None if they are not plain, or stand in each other's way."""
    top: Tree = {}
    for each in made:
        parts = each.name.split("/")
        if {"", ".", ".."} & set(parts) or any(len(os.fsencode(part)) > 255 for part in parts):
            return None
        if each.kind not in (tarfile.REGTYPE, tarfile.DIRTYPE) or (each.kind == tarfile.REGTYPE and each.mode & 0o6000):
            return None
        folder = top
        for part in parts if each.kind == tarfile.DIRTYPE else parts[:-1]:
            inner = folder.setdefault(part, {})
            if not isinstance(inner, dict):
                return None
            folder = inner
        if each.kind == tarfile.REGTYPE:
            if parts[-1] in folder:
                return None
            folder[parts[-1]] = (each.content, bool(each.mode & 0o100))
    return top


def written(tree: Tree) -> str:
    """Return the tree hash of a model, as it is placed."""
    with tempfile.TemporaryDirectory() as folder:
        write(tree, os.fsencode(folder))
        return tree_hash(f"{folder}/{next(iter(tree))}" if len(tree) == 1 else folder).sha256


def write(tree: Tree, path: bytes) -> None:
    for name, inner in tree.items():
        at = path + b"/" + os.fsencode(name)
        if isinstance(inner, dict):
            os.mkdir(at)
            write(inner, at)
        else:
            assert isinstance(inner, tuple)
            with open(at, "wb") as file:
                file.write(inner[0])
            os.chmod(at, 0o755 if inner[1] else 0o644)


FORMS: Final = {"pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT}


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(archives, st.sampled_from(sorted(FORMS)))
def test_tar_is_what_its_entries_say_or_is_refused(made: list[Entry], form: str) -> None:
    found = unpacked(tar(made, FORMS[form]), "data.tar")
    model = modelled(made)
    if model is not None:
        assert found == written(model)
    elif all(each.kind in (tarfile.REGTYPE, tarfile.DIRTYPE) for each in made) and any(".." in each.name for each in made):
        assert found is None


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(entries.filter(lambda each: each.kind != tarfile.LNKTYPE and "\udcff" not in each.name + each.target), max_size=8))
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zip_is_what_its_entries_say_or_is_refused(made: list[Entry]) -> None:
    found = unpacked(zipped(made), "data.zip")
    model = modelled(made)
    if model is not None:
        assert found == written(model)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "a/l", "b", "l", "m", "b/l"]),
            st.lists(st.sampled_from(["..", "a", "b", "l", "m"]), min_size=1, max_size=5),
        )
    )
)
@example([("a/l", [".."]), ("m", ["a", "l", "..", ".."])])
@example([("a/l", ["b"]), ("m", ["a", "l", "..", ".."])])
def test_links_stay_inside(links: list[tuple[str, list[str]]]) -> None:
    made = [Entry(tarfile.SYMTYPE, f"top/{name}", b"", "/".join(target), 0o777) for name, target in links]
    unpacked(tar([Entry(tarfile.REGTYPE, "top/file", b"", "", 0o644), *made]), "data.tar")


# --- damage ---------------------------------------------------------------------------------------------

SAMPLE: Final = [
    Entry(tarfile.REGTYPE, "top/a", b"content" * 100, "", 0o755),
    Entry(tarfile.DIRTYPE, "top/empty", b"", "", 0o755),
    Entry(tarfile.SYMTYPE, "top/l", b"", "a", 0o777),
    Entry(tarfile.REGTYPE, "top/sub/é", random.Random(1).randbytes(600), "", 0o644),
]


def seven_zipped() -> bytes:
    import py7zr

    file = io.BytesIO()
    with py7zr.SevenZipFile(file, "w") as archive:
        archive.writestr(SAMPLE[0].content, "top/a")
        archive.writestr(SAMPLE[3].content, "top/sub/é")
    return file.getvalue()


PACKED: Final[dict[str, Callable[[], bytes]]] = {
    "tar": lambda: tar(SAMPLE),
    "tar.gz": lambda: gzip.compress(tar(SAMPLE)),
    "tar.bz2": lambda: bz2.compress(tar(SAMPLE)),
    "tar.xz": lambda: lzma.compress(tar(SAMPLE)),
    "tar.zst": lambda: zstandard.ZstdCompressor(write_checksum=True).compress(tar(SAMPLE)),
    "zip": lambda: zipped(SAMPLE),
    "7z": seven_zipped,
}
_made: dict[str, tuple[bytes, Optional[str]]] = {}


def sample(kind: str) -> tuple[bytes, Optional[str]]:
    """Return an archive and the tree hash of what it holds; made once."""
    if kind not in _made:
        if kind == "7z":
            pytest.importorskip("py7zr")
        data = PACKED[kind]()
        _made[kind] = (data, unpacked(data, f"data.{kind}"))
        assert _made[kind][1] is not None
    return _made[kind]


flips = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), min_size=1, max_size=3)


@pytest.mark.parametrize("kind", sorted(PACKED))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(flips)
@example([(0.998046875, 0)])  # the offset of a file in zip
def test_flipped_bits(kind: str, where: list[tuple[float, int]]) -> None:
    data, expected = sample(kind)
    damaged = bytearray(data)
    for at, bit in where:
        damaged[int(at * len(data))] ^= 1 << bit
    found = unpacked(bytes(damaged), f"data.{kind}")
    # The directory of zip, and contents in plain tar, have no checksums.
    assert found in (None, expected) or kind in ("tar", "zip")


@pytest.mark.parametrize("kind", sorted(PACKED.keys() - {"tar"}))
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.floats(0, 1, exclude_max=True))
def test_cut_short(kind: str, where: float) -> None:
    data, _ = sample(kind)
    assert unpacked(data[: int(where * len(data))], f"data.{kind}") is None


@pytest.mark.parametrize("kind", sorted(PACKED))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.floats(0, 1), st.floats(0, 1), st.binary(max_size=30))
def test_pieces_put_elsewhere(kind: str, source: float, target: float, more: bytes) -> None:
    data, _ = sample(kind)
    begin, at = int(source * len(data)), int(target * len(data))
    unpacked(data[:at] + data[begin : begin + 512] + more + data[at:], f"data.{kind}")


@settings(deadline=None, max_examples=100)
@given(
    st.binary(max_size=600),
    st.sampled_from([b"", b"PK\3\4", b"7z\xbc\xaf\x27\x1c\0\4", b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"]),
)
def test_any_bytes(data: bytes, begin: bytes) -> None:
    unpacked(begin + data, "data")
