"""`fetchurl`, `fetchurl2` and `fetchlocal`, as programs meet them. Files come by file:// here; tests/fetch has the network."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.stores import check_tmp, new_store, peak_bytes, text_of

from pylightnix import (
    BuildError,
    DRef,
    FetchFailed,
    InvalidChecksum,
    InvalidURL,
    Misuse,
    PromiseException,
    Registry,
    RRef,
    StorageSettings,
    UnpackLimits,
    WrongChecksum,
    drefcfg_,
    fetchlocal,
    fetchurl,
    fetchurl2,
    filehash,
    instantiate,
    mkregistry,
    realize1,
    rref2dref,
    rref2path,
    selfref,
    unpack,
)
from pylightnix.attempt import realizer_manifest
from pylightnix.errors import UnpackFailed
from pylightnix.fetch import parse_checksum
from pylightnix.stages.fetch import FetchRealizer
from pylightnix.travel.packing import pack_realizer

pytestmark = pytest.mark.language

CONTENT = b"content\n"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
SHA1 = hashlib.sha1(CONTENT).hexdigest()
SHA512 = hashlib.sha512(CONTENT).hexdigest()
OTHER = hashlib.sha256(b"").hexdigest()


def make(S: StorageSettings, stage: Any, *args: Any, **kwargs: Any) -> RRef:
    return realize1(instantiate(lambda r: stage(*args, **kwargs, r=r), S=S))


def config(S: StorageSettings, stage: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
    found: dict[str, Any] = drefcfg_(stage(*args, **kwargs, r=mkregistry(S)), S).val
    return found


def failure(S: StorageSettings, stage: Any, *args: Any, **kwargs: Any) -> BaseException:
    with pytest.raises(BuildError) as raised:
        make(S, stage, *args, **kwargs)
    return raised.value.exception


def files_of(rref: RRef, S: StorageSettings) -> list[str]:
    top = rref2path(rref, S)
    found = [os.path.relpath(os.path.join(where, name), top) for where, _, names in os.walk(top) for name in names]
    return sorted(name for name in found if not name.startswith("__build") and name != "context.json")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file.txt"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def archive(tmp_path: Path) -> tuple[Path, str]:
    path = tmp_path / "pack-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name in ("pack-1.0/a", "pack-1.0/b"):
            info = tarfile.TarInfo(name)
            info.size = len(CONTENT)
            tar.addfile(info, io.BytesIO(CONTENT))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


# --- configs ----------------------------------------------------------------------------------------------


@pytest.mark.embedded_only("looks at what is not built")
def test_config_of_fetchurl(S: StorageSettings) -> None:
    url = "https://h.example/a/f.tar.gz?x=y"
    assert config(S, fetchurl, url, SHA256) == {"name": "fetchurl", "url": url, "sha256": SHA256, "mode": "unpack,remove"}
    assert config(S, fetchurl, url=url, sha1=SHA1, mode="as-is", name="n", filename="g", extra=3) == {
        "name": "n",
        "url": url,
        "sha1": SHA1,
        "mode": "as-is",
        "out_path": [selfref, "g"],
        "extra": 3,
    }
    assert config(S, fetchurl, url, mode="", sha256=SHA256)["out_path"] == [selfref, "f.tar.gz"]


@pytest.mark.embedded_only("looks at what is not built")
def test_what_is_new_changes_no_config(S: StorageSettings) -> None:
    url = "https://h.example/f"
    more = {"mirrors": ["https://m.example/f"], "headers": {"X": "y"}, "max_bytes": 9, "insecure_redirects": True, "total_seconds": 3.0}
    assert config(S, fetchurl, url, SHA256, **more) == config(S, fetchurl, url, SHA256)
    assert config(S, fetchurl2, url, SHA256, **more) == config(S, fetchurl2, url, SHA256)
    assert config(S, fetchurl, url, SHA256, force_download=True, check_promises=False) == config(S, fetchurl, url, SHA256)
    assert config(S, fetchurl, url, sha512=SHA512) == {"name": "fetchurl", "url": url, "sha512": SHA512, "mode": "unpack,remove"}


def test_every_spelling_of_a_checksum_is_one_derivation(S: StorageSettings) -> None:
    r = mkregistry(S)
    sums = parse_checksum(SHA256, "sha256")
    drefs = {fetchurl("https://h.example/f", text, r=r) for text in (sums.hex, sums.hex.upper(), sums.nix32, sums.sri)}
    assert len(drefs) == 1


@pytest.mark.embedded_only("looks at what is not built")
def test_config_of_fetchurl2(S: StorageSettings) -> None:
    found = config(S, fetchurl2, "https://h.example/f", SHA256, SHA1)
    assert found == {"name": "fetchurl2", "sha256": SHA256, "sha1": SHA1, "out": [selfref, "f"]}
    assert config(S, fetchurl2, "https://h.example/f", SHA256, name="n", out=3, filename="g") == {"name": "n", "sha256": SHA256, "out": 3}


@pytest.mark.embedded_only("looks at what is not built")
def test_config_of_fetchlocal(S: StorageSettings, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE", str(file))
    expected = {"name": "fetchlocal", "sha256": SHA256, "mode": "unpack,remove"}
    assert config(S, fetchlocal, SHA256, str(file)) == {**expected, "path": str(file)}
    assert config(S, fetchlocal, SHA256, envname="WHERE") == {**expected, "envname": "WHERE"}
    assert config(S, fetchlocal, SHA256, envname="WHERE", mode="")["out_path"] == [selfref, "file.txt"]


def test_a_variable_that_is_not_set_is_not_taken_for_an_empty_one(S: StorageSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WHERE", raising=False)
    with pytest.raises(Misuse, match="in the variable WHERE, which is not set; set it, or say path="):
        config(S, fetchlocal, SHA256, envname="WHERE")
    monkeypatch.setenv("WHERE", "")
    with pytest.raises(Misuse, match="in the variable WHERE, found ''"):
        config(S, fetchlocal, SHA256, envname="WHERE")


# --- calls that cannot work -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "arguments", "kind"),
    [
        (fetchurl, {"url": "https://h/f"}, Misuse),
        (fetchurl, {"url": "https://h/f", "sha256": SHA256, "sha1": SHA1}, Misuse),
        (fetchurl, {"url": "https://h/f", "sha256": SHA256, "sha512": SHA512}, Misuse),
        (fetchurl, {"url": "https://h/f", "sha256": SHA1}, InvalidChecksum),
        (fetchurl, {"url": "https://h/", "sha256": SHA256}, Misuse),
        (fetchurl, {"url": "https://h/f", "sha256": SHA256, "filename": "a/b"}, Misuse),
        (fetchurl, {"url": "https://h/context.json", "sha256": SHA256}, Misuse),
        (fetchurl, {"url": "h/f", "sha256": SHA256}, InvalidURL),
        (fetchurl, {"url": "https://h/f", "sha256": SHA256, "mirrors": "https://m/f"}, Misuse),
        (fetchurl, {"url": "https://h/f", "sha256": SHA256, "mirrors": ["x"]}, InvalidURL),
        (fetchurl, {"url": "https://h/f", "sha256": SHA256, "headers": {"Range": "x"}}, Misuse),
        (fetchurl, {"url": "https://h/f", "sha256": SHA256, "max_bytes": -1}, Misuse),
        (fetchurl, {"url": "https://h/f", "sha256": SHA256, "mode": None}, Misuse),
        (fetchurl, {"url": "https://h/f", "sha256": SHA256, "max_bytes": 1 << 54}, Misuse),
        *(
            (stage, {"url": "https://h/f", "sha256": SHA256, name: value}, Misuse)
            for stage in (fetchurl, fetchurl2)
            for name, value in (
                *(("total_seconds", value) for value in ("x", -1, 0, True, float("nan"), float("inf"))),
                *(("headers", value) for value in (["a"], "a", None)),
                *(("mirrors", value) for value in (None, 3)),
                *((name, value) for name in ("insecure_redirects", "force_download") for value in ("no", None, 2)),
            )
        ),
        (fetchurl, {"url": "https://h/f", "sha256": SHA256, "check_promises": "no"}, Misuse),
        (fetchlocal, {"sha256": SHA256, "path": "/x", "check_promises": "no"}, Misuse),
        (fetchurl2, {"url": "https://h/f"}, Misuse),
        (fetchurl2, {"url": "/no/such/file"}, Misuse),
        (fetchurl2, {"url": "https://h/", "sha256": SHA256}, Misuse),
        (fetchlocal, {"sha256": SHA256}, Misuse),
        (fetchlocal, {"sha256": SHA256, "path": "/x", "envname": "X"}, Misuse),
        (fetchlocal, {"sha256": SHA256, "envname": "SURELY_NOT_SET"}, Misuse),
        (fetchlocal, {"sha256": None, "path": "/x"}, Misuse),
        (fetchlocal, {"sha256": SHA256, "path": "/"}, Misuse),
    ],
)
@pytest.mark.embedded_only("nothing is built, so that no daemon is asked")
def test_calls_that_cannot_work(S: StorageSettings, stage: Any, arguments: dict[str, Any], kind: type[Misuse]) -> None:
    with pytest.raises(kind) as raised:
        stage(**arguments, r=mkregistry(S))
    assert isinstance(raised.value, AssertionError)


@pytest.mark.embedded_only("nothing is built, so that no daemon is asked")
def test_headers_that_are_none_are_not_shown(S: StorageSettings) -> None:
    with pytest.raises(Misuse) as raised:
        fetchurl("https://h/f", SHA256, headers=["s3cret"], r=mkregistry(S))  # type: ignore[arg-type]  # what is refused
    assert "s3cret" not in str(raised.value)
    assert "expects for headers a dict, found a list" in str(raised.value)


# --- local files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sums", [{"sha256": SHA256}, {"sha1": SHA1}, {"sha512": SHA512}])
def test_file_url(S: StorageSettings, file: Path, sums: dict[str, str]) -> None:
    rref = make(S, fetchurl, file.as_uri(), mode="", **sums)
    assert text_of(rref, S, "file.txt") == "content\n"
    assert files_of(rref, S) == ["file.txt"]
    assert file.read_bytes() == CONTENT


@pytest.mark.embedded_only("looks at this process's folder")
def test_nothing_is_left_in_the_build_folder(S: StorageSettings, file: Path) -> None:
    make(S, fetchurl, file.as_uri(), SHA256, mode="")
    failure(S, fetchurl, file.as_uri(), OTHER, mode="")
    check_tmp(S)


@pytest.mark.parametrize(
    ("mode", "files"),
    [
        ("unpack,remove", ["pack-1.0/a", "pack-1.0/b"]),
        ("unpack", ["pack-1.0.tar.gz", "pack-1.0/a", "pack-1.0/b"]),
        ("as-is", ["pack-1.0.tar.gz"]),
    ],
)
def test_modes(S: StorageSettings, archive: tuple[Path, str], mode: str, files: list[str]) -> None:
    path, sha256 = archive
    assert files_of(make(S, fetchurl, path.as_uri(), sha256, mode=mode), S) == files
    assert files_of(make(S, fetchlocal, sha256, str(path), mode=mode), S) == files
    assert path.exists()


def test_fetchlocal_by_variable(S: StorageSettings, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE", str(file))

    def main(r: Any) -> DRef:
        dref = fetchlocal(SHA256, envname="WHERE", mode="", r=r)
        monkeypatch.delenv("WHERE")
        return dref

    assert text_of(realize1(instantiate(main, S=S)), S, "file.txt") == "content\n"


def test_fetchurl2_hashes_a_local_file(S: StorageSettings, file: Path) -> None:
    r = mkregistry(S)
    assert fetchurl2(str(file), r=r) == fetchurl2(file.as_uri(), r=r) == fetchurl2("https://h.example/file.txt", SHA256, r=r)
    assert text_of(make(S, fetchurl2, str(file)), S, "file.txt") == "content\n"


def test_archive_that_is_none(S: StorageSettings, file: Path) -> None:
    error = failure(S, fetchurl, file.as_uri(), SHA256)
    assert isinstance(error, UnpackFailed)


def test_fetchurl2_does_not_unpack(S: StorageSettings, archive: tuple[Path, str]) -> None:
    path, sha256 = archive
    rref = make(S, fetchurl2, path.as_uri(), sha256, mode="unpack,remove")
    assert files_of(rref, S) == [path.name]
    assert drefcfg_(rref2dref(rref), S).val["mode"] == "unpack,remove"


def test_what_cannot_be_unpacked_is_named_as_its_user_knows_it(S: StorageSettings, file: Path) -> None:
    for stage, arguments, where in (
        (fetchurl, {"url": file.as_uri() + "?key=s3cret", "sha256": SHA256}, f"file.txt (from {file}): it begins with"),
        (fetchlocal, {"sha256": SHA256, "path": str(file)}, f"file.txt (from {file}): it begins with"),
    ):
        error = failure(S, stage, **arguments)
        assert isinstance(error, UnpackFailed)
        assert str(error).startswith(where)
        assert "known are tar" in str(error)
        assert str(error).endswith("mode='as-is' takes it without unpacking")


@pytest.mark.parametrize("name", ["pack-1.0", "data"])
def test_archive_beside_what_it_unpacks_to(S: StorageSettings, archive: tuple[Path, str], name: str) -> None:
    path = archive[0].rename(archive[0].with_name(name))
    if name == "data":
        path.write_bytes(gzip.compress(CONTENT))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    error = failure(S, fetchurl, path.as_uri(), sha256, mode="unpack")
    assert isinstance(error, UnpackFailed)
    assert f"{name} (from {path}): it unpacks to {name!r}" in str(error)
    assert "give filename=…" in str(error)
    unpacked = ["data"] if name == "data" else ["pack-1.0/a", "pack-1.0/b"]
    assert files_of(make(S, fetchurl, path.as_uri(), sha256, mode="unpack,remove"), S) == unpacked
    assert files_of(make(S, fetchurl, path.as_uri(), sha256, mode="unpack", filename=f"{name}.gz"), S) == sorted([*unpacked, f"{name}.gz"])


def test_file_that_is_missing(S: StorageSettings, tmp_path: Path) -> None:
    error = failure(S, fetchlocal, SHA256, str(tmp_path / "none"))
    assert isinstance(error, FetchFailed)
    assert isinstance(error, AssertionError)
    assert "No such file" in str(error)


def test_promises(S: StorageSettings, file: Path) -> None:
    assert make(S, fetchurl, file.as_uri(), SHA256, mode="", promised=[selfref, "file.txt"])


# --- defects of the first Pylightnix ----------------------------------------------------------------------


def test_d62_checksums_count_without_assertions(tmp_path: Path, file: Path) -> None:
    script = (
        "import sys; from pylightnix import *\n"
        "S = mkSS(sys.argv[1]); fsinit(S, use_as_default=False)\n"
        "try:\n realize1(instantiate(lambda r: fetchurl(sys.argv[2], sys.argv[3], mode='', r=r), S=S))\n"
        "except BuildError as error: print(type(error.exception).__name__)"
    )
    command = [sys.executable, "-O", "-c", script, str(tmp_path / "s"), file.as_uri(), OTHER]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert said.stdout == "WrongChecksum\n"


def test_d62_wrong_checksum(S: StorageSettings, file: Path) -> None:
    for stage, arguments in (
        (fetchurl, {"url": file.as_uri(), "sha256": OTHER, "mode": ""}),
        (fetchurl2, {"url": file.as_uri(), "sha256": SHA256, "sha1": SHA1[::-1]}),
        (fetchlocal, {"sha256": OTHER, "path": str(file)}),
    ):
        error = failure(S, stage, **arguments)
        assert isinstance(error, WrongChecksum)
        assert isinstance(error, AssertionError)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "large.tar"
    with tarfile.open(path, "w") as archive, open("/dev/zero", "rb") as zeros:
        info = tarfile.TarInfo("zeros")
        info.size = 64 << 20
        archive.addfile(info, zeros)
    return path


@pytest.mark.parametrize(
    ("stage", "where", "options"),
    [
        *((fetchurl, "url", {"mode": mode}) for mode in ("", "unpack,remove")),
        *((fetchlocal, "path", {"mode": mode}) for mode in ("", "unpack,remove")),
        (fetchurl2, "url", {"sha1": True}),
        (unpack, "path", {"sha1": True}),
    ],
)
def test_d7_neither_fetching_nor_unpacking_takes_a_whole_file_into_memory(
    tmp_path: Path, large: Path, stage: Any, where: str, options: dict[str, Any]
) -> None:
    own, given = new_store(tmp_path / "store"), {where: large.as_uri() if where == "url" else str(large), "sha256": filehash(str(large))}
    if "sha1" in options:
        with large.open("rb") as file:
            options = {"sha1": hashlib.file_digest(file, "sha1").hexdigest()}
    rrefs: list[RRef] = []
    assert peak_bytes(lambda: rrefs.append(make(own, stage, **given, **options))) < 16 << 20
    sizes = [os.path.getsize(os.path.join(rref2path(rrefs[0], own), name)) for name in files_of(rrefs[0], own)]
    assert sum(sizes) >= 64 << 20


def test_d63_relative_local_file(S: StorageSettings, file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(file.parent)

    def main(r: Any) -> DRef:
        dref = fetchurl2("file.txt", r=r)
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        return dref

    assert text_of(realize1(instantiate(main, S=S)), S, "file.txt") == "content\n"


def test_d64_promises_are_checked_unless_told_otherwise(S: StorageSettings, file: Path) -> None:
    arguments = {"url": file.as_uri(), "sha256": SHA256, "mode": "", "promised": [selfref, "none"]}
    with pytest.raises(PromiseException):
        make(S, fetchurl, **arguments)
    rref = make(S, fetchurl, **arguments, check_promises=False)
    assert files_of(rref, S) == ["file.txt"]


# --- realizers --------------------------------------------------------------------------------------------


@pytest.mark.embedded_only("nothing is built, so that no daemon is asked")
def test_realizer_travels_and_shows_no_secret(S: StorageSettings) -> None:
    secret = "s3cr3t-s3cr3t"
    r = mkregistry(S)
    dref = fetchurl2(f"https://u:{secret}@h.example/f?k={secret}", SHA256, headers={"X-Key": secret}, r=r)
    realizer = r.builders[dref].realizer
    assert isinstance(realizer, FetchRealizer)
    assert secret not in repr(realizer)
    assert pickle.loads(pickle.dumps(realizer)) == realizer
    assert pack_realizer(realizer).kind == "fetch"
    manifest = realizer_manifest(realizer)
    assert manifest is not None
    assert secret not in str(manifest.to_json())
    other = realizer_manifest(FetchRealizer())
    assert other is not None
    assert manifest.digest == other.digest


# --- steering ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mode", ["asis", "as is", "AS-IS", "unpack,delete", "remove", "unpack;remove", "as-is,remove", None, 3, ["unpack"]]
)
def test_modes_that_are_none(S: StorageSettings, mode: Any) -> None:
    with pytest.raises(Misuse, match=r"fetchurl .*'unpack,remove', 'unpack' or 'as-is'"):
        fetchurl("https://h/f.tar.gz", SHA256, mode=mode, r=mkregistry(S))
    with pytest.raises(Misuse, match=r"fetchlocal .*'unpack,remove', 'unpack' or 'as-is'"):
        fetchlocal(SHA256, "/tmp/f", mode=mode, r=mkregistry(S))


@pytest.mark.parametrize("mode", ["unpack,remove", "remove,unpack", "unpack, remove", "unpack", "as-is", ""])
def test_modes_that_are(S: StorageSettings, mode: str) -> None:
    found = config(S, fetchurl, "https://h/f.tar.gz", SHA256, mode=mode)
    assert (found["mode"], "out_path" in found) == (mode, "unpack" not in mode)


def test_limits_are_raised_by_a_stage_and_no_part_of_its_config(S: StorageSettings, tmp_path: Path) -> None:
    path = tmp_path / "data.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in ("a", "b", "c"):
            archive.addfile(tarfile.TarInfo(f"data/{name}"))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()

    def declared(limits: Any) -> list[Callable[[Registry], DRef]]:
        return [
            lambda r: fetchurl(path.as_uri(), sha256, limits=limits, r=r),
            lambda r: fetchlocal(sha256, str(path), limits=limits, r=r),
            lambda r: unpack(str(path), limits=limits, r=r),
            lambda r: unpack(refpath=[fetchurl2(path.as_uri(), sha256, r=r), path.name], limits=limits, r=r),
        ]

    for few, many in zip(declared(UnpackLimits(entries=2)), declared({"entries": 4}), strict=True):
        with pytest.raises(BuildError) as raised:
            realize1(instantiate(few, S=S))
        assert "limits=UnpackLimits(entries=" in str(raised.value.exception)
        assert few(mkregistry(S)) == many(mkregistry(S))
        assert realize1(instantiate(many, S=S))


def test_limits_that_no_stage_has(S: StorageSettings) -> None:
    r = mkregistry(S)
    found: list[tuple[Any, str]] = [
        ({"ration": 3}, "no limit 'ration'; expected some of entries"),
        (7, "UnpackLimits"),
        ({"ratio": -1}, "ratio"),
    ]
    for limits, why in found:
        with pytest.raises(Misuse, match=f"fetchurl .*{why}"):
            fetchurl("https://h/f.tar.gz", SHA256, limits=limits, r=r)
        with pytest.raises(Misuse, match=f"fetchlocal .*{why}"):
            fetchlocal(SHA256, "/tmp/f", limits=limits, r=r)
        with pytest.raises(Misuse, match=f"unpack .*{why}"):
            unpack("/tmp/f", limits=limits, r=r)
    with pytest.raises(Misuse, match="fetchurl2 unpacks nothing"):
        fetchurl2("https://h/f.tar.gz", SHA256, limits=UnpackLimits(), r=r)
