"""The stage `unpack`, without a daemon and in a daemon's worker."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pytest
from tests.stores import check_error

from pylightnix import (
    BuildError,
    DRef,
    Misuse,
    PromiseException,
    Registry,
    RRef,
    StorageSettings,
    UnpackFailed,
    drefcfg_,
    instantiate,
    mknode,
    mkregistry,
    realize1,
    rref2dref,
    rref2path,
    selfref,
    unpack,
)
from pylightnix.errors import ArchiveIOError, InvalidConfig
from pylightnix.stages.unpack import UnpackRealizer
from pylightnix.travel import pack_realizer

pytestmark = pytest.mark.language

WRONG_SHA256 = "0" * 64


def packed(*names: str, content: bytes = b"text") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name in names or ("top/a", "top/run"):
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o755 if name.endswith("run") else 0o644
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "data.tar.gz"
    path.write_bytes(packed())
    return path


def make(S: StorageSettings, *args: Any, **kwargs: Any) -> RRef:
    return realize1(instantiate(unpack, *args, S=S, **kwargs))


def failure(S: StorageSettings, *args: Any, **kwargs: Any) -> Exception:
    with pytest.raises(BuildError) as raised:
        make(S, *args, **kwargs)
    assert isinstance(raised.value.exception, Exception)
    return raised.value.exception


def test_d61_unpack_of_a_path(S: StorageSettings, archive: Path) -> None:
    folder = Path(rref2path(make(S, path=str(archive)), S))
    assert (folder / "top" / "a").read_bytes() == b"text"
    assert os.access(folder / "top" / "run", os.X_OK)
    assert (folder / "top" / "a").stat().st_mode & 0o111 == 0


def test_d61_checksums_are_compared(S: StorageSettings, archive: Path) -> None:
    data = archive.read_bytes()
    sha256, sha1 = hashlib.sha256(data).hexdigest(), hashlib.sha1(data).hexdigest()
    assert make(S, str(archive), sha256=sha256.upper(), sha1=sha1)
    error = failure(S, str(archive), sha256=WRONG_SHA256)
    check_error(error, UnpackFailed, "unpack-failed", 65, str(archive), f"expected the sha256 {WRONG_SHA256}, found {sha256}")
    assert isinstance(error, AssertionError)
    assert "sha1" in str(failure(S, str(archive), sha256=sha256, sha1="0" * 40))


def test_archive_of_another_realization(S: StorageSettings) -> None:
    def main(r: Registry) -> DRef:
        return unpack(refpath=[mknode(r, {}, {"data.tgz": packed("a", "b")}), "data.tgz"], r=r)

    assert sorted(os.listdir(os.path.join(rref2path(realize1(instantiate(main, S=S)), S), "data"))) == ["a", "b"]


def test_config(S: StorageSettings, archive: Path) -> None:
    rref = make(S, archive, name="data", sha1=hashlib.sha1(archive.read_bytes()).hexdigest(), out=[selfref, "top", "a"], more=3)
    assert drefcfg_(rref2dref(rref), S).val == {
        "name": "data",
        "path": str(archive),
        "sha1": hashlib.sha1(archive.read_bytes()).hexdigest(),
        "out": ["__self__", "top", "a"],
        "more": 3,
    }
    assert rref.endswith("-data")
    assert make(S, archive).endswith("-unpack")


def test_relative_path(S: StorageSettings, archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absolute = make(S, str(archive))
    monkeypatch.chdir(archive.parent)
    assert make(S, archive.name) == absolute


def test_promises(S: StorageSettings, archive: Path) -> None:
    with pytest.raises(PromiseException):
        make(S, str(archive), out=[selfref, "no"])


def test_arguments_of_aunpack_are_ignored(S: StorageSettings, archive: Path) -> None:
    with pytest.warns(UserWarning, match="ignores aunpack_args"):
        rref = make(S, str(archive), aunpack_args=["-q"])
    assert drefcfg_(rref2dref(rref), S).val["aunpack_args"] == ["-q"]


def test_what_is_refused_names_the_entry(S: StorageSettings, archive: Path) -> None:
    archive.write_bytes(packed("top/a", "top/../../x"))
    error = failure(S, str(archive))
    check_error(error, UnpackFailed, "unpack-failed", 65, str(archive), "top/../../x", "'..'")


def test_archive_that_is_not_there(S: StorageSettings, tmp_path: Path) -> None:
    check_error(failure(S, str(tmp_path / "no.tar")), ArchiveIOError, "archive-io", 74, str(tmp_path / "no.tar"), "No such file")


@pytest.mark.embedded_only("nothing is built")
@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({}, "one of path and refpath, found none"),
        ({"path": "x", "refpath": ["dref:" + "0" * 32 + "-x", "y"]}, "found both"),
        ({"path": 3}, "path of an archive, found 3"),
        ({"refpath": "x"}, "file of another derivation"),
        ({"refpath": [selfref, "x"]}, "file of another derivation"),
        ({"path": "x", "sha256": "0" * 63}, "expected a sha256 in hexadecimal"),
        ({"path": "x", "sha256": "sha256-xyz"}, "expected a sha256 in hexadecimal"),
        ({"path": "x", "sha1": "g" * 40}, "expected a sha1 in hexadecimal"),
        ({"path": "x", "sha1": 3}, "expected a sha1 in hexadecimal"),
    ],
)
def test_misuse(S: StorageSettings, arguments: dict[str, Any], why: str) -> None:
    with pytest.raises(Misuse, match=why.replace("[", r"\[")):
        unpack(**arguments, r=mkregistry(S))


@pytest.mark.embedded_only("it is about the bytes that travel")
def test_realizer_travels_by_reference(S: StorageSettings) -> None:
    packed_realizer = pack_realizer(UnpackRealizer())
    assert packed_realizer.kind == "python"
    assert packed_realizer.blob is not None
    assert len(packed_realizer.blob) < 200
    assert pickle.loads(packed_realizer.blob) == UnpackRealizer()


@pytest.mark.embedded_only("it is about the realizer alone")
def test_config_of_something_else(S: StorageSettings) -> None:
    from pylightnix import match_only, mkconfig, mkdrv

    def main(r: Registry) -> DRef:
        return mkdrv(mkconfig({"name": "x"}), match_only(), UnpackRealizer(), r)

    with pytest.raises(BuildError) as raised:
        realize1(instantiate(main, S=S))
    assert isinstance(raised.value.exception, InvalidConfig)
