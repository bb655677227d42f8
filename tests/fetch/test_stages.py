"""The stages over the network, in a store of this process's own and in one that a daemon owns; and `pylightnix prefetch`."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any, Optional

import pytest
from tests.fetch.servers import Nginx, Request, scripted
from tests.stores import OTHER_UID, needs_root, text_of

from pylightnix import (
    BuildError,
    FetchFailed,
    FetchSetupError,
    FetchUnavailable,
    RRef,
    StorageSettings,
    WrongChecksum,
    fetchurl,
    fetchurl2,
    instantiate,
    realize1,
    rref2path,
)

pytestmark = pytest.mark.language

CONTENT = b"content\n" * 10_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let nothing of the user's own environment take part."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in ("NETRC", "SSL_CERT_FILE", "SSL_CERT_DIR"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


def make(S: StorageSettings, stage: Any, *args: Any, **kwargs: Any) -> RRef:
    return realize1(instantiate(lambda r: stage(*args, **kwargs, r=r), S=S))


def failure(S: StorageSettings, stage: Any, *args: Any, **kwargs: Any) -> BaseException:
    with pytest.raises(BuildError) as raised:
        make(S, stage, *args, **kwargs)
    return raised.value.exception


def test_file(S: StorageSettings, nginx: Nginx) -> None:
    (nginx.www / "stage.txt").write_bytes(CONTENT)
    for stage in (fetchurl, fetchurl2):
        more = {"mode": ""} if stage is fetchurl else {}
        assert text_of(make(S, stage, f"{nginx.url}/stage.txt", SHA256, **more), S, "stage.txt") == CONTENT.decode()


def test_archive(S: StorageSettings, nginx: Nginx) -> None:
    with tarfile.open(nginx.www / "stage-1.0.tar.gz", "w:gz") as tar:
        info = tarfile.TarInfo("stage-1.0/file")
        info.size = len(CONTENT)
        tar.addfile(info, io.BytesIO(CONTENT))
    sha256 = hashlib.sha256((nginx.www / "stage-1.0.tar.gz").read_bytes()).hexdigest()
    rref = make(S, fetchurl, f"{nginx.url}/moved/stage-1.0.tar.gz", sha256)
    assert text_of(rref, S, "stage-1.0/file") == CONTENT.decode()
    assert not os.path.exists(os.path.join(rref2path(rref, S), "stage-1.0.tar.gz"))


def test_what_is_no_archive_is_named_by_its_url(S: StorageSettings) -> None:
    with scripted(lambda request: request.serve(CONTENT)) as server:
        error = failure(S, fetchurl, f"{server.url}/f.txt?key=s3cret", SHA256)
        assert str(error).startswith(f"f.txt (from {server.url}/f.txt?key=…): it begins with")
        assert text_of(make(S, fetchurl2, f"{server.url}/f.txt", SHA256, mode="unpack"), S, "f.txt") == CONTENT.decode()


def test_d59_wrong_file_is_not_resumed(S: StorageSettings) -> None:
    with scripted(lambda request: request.serve(b"wrong" if request.number == 1 else CONTENT)) as server:
        error = failure(S, fetchurl, f"{server.url}/f", SHA256, mode="")
        assert isinstance(error, WrongChecksum)
        assert error.kept is not None
        assert Path(error.kept).read_bytes() == b"wrong"
        assert text_of(make(S, fetchurl, f"{server.url}/f", SHA256, mode=""), S, "f") == CONTENT.decode()


def test_d60_error_pages_are_no_files(S: StorageSettings) -> None:
    page = b"<html>not here</html>"
    with scripted(lambda request: request.answer(404, page)) as server:
        error = failure(S, fetchurl2, f"{server.url}/f", hashlib.sha256(page).hexdigest())
    assert isinstance(error, FetchFailed)
    assert isinstance(error, AssertionError)


def test_d60_redirects_are_followed(S: StorageSettings, nginx: Nginx) -> None:
    (nginx.www / "redirected").write_bytes(CONTENT)
    assert text_of(make(S, fetchurl2, f"{nginx.url}/moved/redirected", SHA256), S, "redirected") == CONTENT.decode()


def test_mirrors_and_headers(S: StorageSettings) -> None:
    def handler(request: Request) -> None:
        if request.target == "/good" and request.headers.get("x-key") == "s3cret":
            request.serve(CONTENT)
        else:
            request.answer(404)

    with scripted(handler) as server:
        urls = {"mirrors": [f"{server.url}/bad", f"{server.url}/good"], "headers": {"X-Key": "s3cret"}}
        assert make(S, fetchurl, f"{server.url}/f", SHA256, mode="", **urls)
    assert len(server.requests) == 3


def test_local_files_among_mirrors(S: StorageSettings, tmp_path: Path) -> None:
    (tmp_path / "here").write_bytes(CONTENT)
    (tmp_path / "other").write_bytes(b"another file")
    here, other, none = ((tmp_path / name).as_uri() for name in ("here", "other", "none"))
    with scripted(lambda request: request.serve(CONTENT)) as server:
        url = f"{server.url}/f"
        assert make(S, fetchurl, none, SHA256, mode="", mirrors=[url])
        assert make(S, fetchurl2, str(tmp_path / "none"), SHA256, mirrors=[other, url])
        assert len(server.requests) == 2
        assert make(S, fetchurl, other, SHA256, mode="", mirrors=[here, url])
        assert len(server.requests) == 2
        # In order: a local file comes only after what stands before it.
        assert make(S, fetchurl, url, SHA256, mode="", mirrors=[none])
        assert len(server.requests) == 3
        server.handler = lambda request: request.answer(404)
        assert make(S, fetchurl, f"{server.url}/g", SHA256, mode="", mirrors=[here])
        error = failure(S, fetchurl, f"{server.url}/h", SHA256, mode="", mirrors=[none])
    assert isinstance(error, FetchFailed)
    assert "answers 404" in str(error)
    assert "No such file" in str(error)
    assert isinstance(
        failure(S, fetchurl, none, SHA256, mode="", salt=1, mirrors=["http://127.0.0.1:1/f"], total_seconds=0.1), FetchUnavailable
    )
    assert isinstance(failure(S, fetchurl, none, SHA256, mode="", salt=2, mirrors=[other]), WrongChecksum)


def test_download_is_forced(S: StorageSettings) -> None:
    with scripted(lambda request: request.serve(CONTENT)) as server:
        url = f"{server.url}/f"
        prefetch(S.root, url)
        assert make(S, fetchurl, url, SHA256, mode="")
        assert len(server.requests) == 1
        assert make(S, fetchurl, url, SHA256, mode="", force_download=True, salt=1)
    assert len(server.requests) == 2


def test_settings_that_are_not_used_do_no_harm(S: StorageSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "socks5h://127.0.0.1:1")
    monkeypatch.setenv("SSL_CERT_FILE", "/nonexistent")
    with scripted(lambda request: request.serve(CONTENT)) as server:
        assert make(S, fetchurl, f"{server.url}/f", SHA256, mode="")
    error = failure(S, fetchurl, "https://127.0.0.1:1/f", SHA256, mode="")
    assert isinstance(error, FetchSetupError)
    assert "https_proxy" in str(error)


def test_limits(S: StorageSettings) -> None:
    with scripted(lambda request: request.serve(CONTENT)) as server:
        assert "allowed" in str(failure(S, fetchurl, f"{server.url}/f", SHA256, mode="", max_bytes=10))
        server.handler = lambda request: server.hold()
        assert isinstance(failure(S, fetchurl, f"{server.url}/f", SHA256, mode="", total_seconds=0.3), FetchUnavailable)


def test_settings_of_the_environment(S: StorageSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted(lambda request: request.serve(CONTENT)) as server:
        monkeypatch.setenv("PYLIGHTNIX_HASHED_MIRRORS", f"{server.url}/base")
        assert make(S, fetchurl, "http://127.0.0.1:1/f", SHA256, mode="")
        monkeypatch.setenv("http_proxy", server.url)
        assert make(S, fetchurl, "http://nowhere.invalid/f", SHA256, mode="", salt=1)
    assert server.requests[0].target == f"/base/sha256/{SHA256}"


# --- pylightnix prefetch ------------------------------------------------------------------------------------


PREFETCH = [sys.executable, "-c", "import sys; from pylightnix_client.cli import main; sys.exit(main())"]


def prefetch(root: object, *arguments: str, status: int = 0) -> str:
    child = subprocess.run([*PREFETCH, "--store", str(root), "prefetch", *arguments], capture_output=True, text=True)
    assert child.returncode == status, child.stderr
    return child.stdout if status == 0 or "--json" in arguments else child.stderr


def test_prefetched_file_is_built_without_a_network(S: StorageSettings) -> None:
    with scripted(lambda request: request.serve(CONTENT)) as server:
        url = f"{server.url}/f"
        assert prefetch(S.root, url) == f"{SHA256}\n"
    assert text_of(make(S, fetchurl, url, SHA256, mode=""), S, "f") == CONTENT.decode()


@pytest.mark.embedded_only("no daemon takes part")
@pytest.mark.parametrize("algorithm", [None, "sha256", "sha512", "sha1"])
def test_prefetch_json(S: StorageSettings, algorithm: Optional[str]) -> None:
    name = algorithm or "sha256"
    with scripted(lambda request: request.serve(CONTENT)) as server:
        said = json.loads(prefetch(S.root, f"{server.url}/f?k=s3cret", "--json", *(["--algo", algorithm] if algorithm else [])))
    assert said.pop("kept").startswith(f"{S.root}/fetch/kept/{name}-")
    assert said.pop("sri").startswith(f"{name}-")
    assert said.pop("nix32")
    assert said == {
        "kind": "prefetched",
        "url": f"{server.url}/f?k=…",
        "algorithm": name,
        name: hashlib.new(name, CONTENT).hexdigest(),
        "bytes": len(CONTENT),
    }


@pytest.mark.embedded_only("no daemon takes part")
def test_prefetch_of_what_is_not_there(S: StorageSettings, tmp_path: Path) -> None:
    with scripted(lambda request: request.answer(404)) as server:
        assert "answers 404" in prefetch(S.root, f"{server.url}/f", status=1)
        assert json.loads(prefetch(S.root, f"{server.url}/f", "--json", status=1))["code"] == "fetch-failed"
    assert "begins with neither" in prefetch(S.root, "ftp://h/f", status=2)
    assert "No such file" in prefetch(S.root, str(tmp_path / "none"), status=1)


@pytest.mark.embedded_only("no daemon takes part")
def test_prefetch_with_headers(S: StorageSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "Bearer s3cret")
    with scripted(lambda request: request.serve(CONTENT)) as server:
        said = prefetch(S.root, f"{server.url}/f", "--header", "Authorization=@KEY", "--header", "X-Other=@KEY")
        assert said == f"{SHA256}\n"
        [request] = server.requests
        assert (request.headers["authorization"], request.headers["x-other"]) == ("Bearer s3cret", "Bearer s3cret")
        for header, why in (
            ("Authorization=s3cret", "expects NAME=@VARIABLE"),
            ("s3cret", "expects NAME=@VARIABLE"),
            ("A=@", "expects NAME=@VARIABLE"),
            ("Authorization=@NOT_SET", "environment variable NOT_SET, which is not set"),
            ("Host=@KEY", "is set by the transfer itself"),
        ):
            said = prefetch(S.root, f"{server.url}/f", "--header", header, status=2)
            assert why in said
            assert header == "s3cret" or "s3cret" not in said


@needs_root
@pytest.mark.embedded_only("no daemon takes part")
def test_prefetch_where_the_store_is_of_another_user(S: StorageSettings) -> None:
    fetch = Path(str(S.root), "fetch")
    fetch.mkdir(0o700)
    os.chown(fetch, OTHER_UID, OTHER_UID)
    command = [*PREFETCH, "--store", str(S.root), "prefetch", "--json"]
    bounded = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all", *command]
    with scripted(lambda request: request.serve(CONTENT)) as server:
        child = subprocess.run([*bounded, f"{server.url}/f"], capture_output=True, text=True)
    os.chown(fetch, 0, 0)
    assert child.returncode == 0, child.stderr
    said = json.loads(child.stdout)
    assert (said["sha256"], said["kept"]) == (SHA256, None)
    assert "the file was not kept: " in child.stderr
    assert str(fetch) in child.stderr
    assert list(fetch.iterdir()) == []


@pytest.mark.embedded_only("no daemon takes part")
def test_the_command_that_an_error_offers(S: StorageSettings, tmp_path: Path) -> None:
    with scripted(lambda request: request.serve(CONTENT)) as server:
        url = f"{server.url}/it's%20(1)&f"
        offered = re.findall(r"pylightnix prefetch (.*?) prints it", str(failure(S, fetchurl2, url, "0" * 64)))
        [argument] = shlex.split(offered[0])
        assert prefetch(S.root, argument) == f"{SHA256}\n"
        said = str(failure(S, fetchurl2, f"{server.url}/f?k=s3cret", "0" * 64))
        assert "pylightnix prefetch with the stage's URL, in quotes, prints it" in said
    local = tmp_path / "a file"
    local.write_bytes(CONTENT)
    said = str(failure(S, fetchurl2, str(local), "0" * 64))
    assert f"pylightnix prefetch '{local}' prints it. If it is not, correct the path" in said


@pytest.mark.embedded_only("no daemon takes part")
def test_prefetch_of_a_local_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(CONTENT)
    assert prefetch(tmp_path / "no-store", str(tmp_path / "f")) == f"{SHA256}\n"
    assert not (tmp_path / "no-store").exists()
