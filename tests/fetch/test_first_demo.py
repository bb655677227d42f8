"""The first demo of 0.x runs as it is: times of files in the store make no generated file look outdated."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.daemon.conftest import Daemon
from tests.fetch.test_hello import source_tarball
from tests.missing import cannot_run

from pylightnix import (
    Build,
    DRef,
    Registry,
    StorageSettings,
    build_outpath,
    build_path,
    build_wrapper,
    dircp,
    dirrw,
    fetchlocal,
    fetchurl2,
    instantiate,
    match_only,
    mkconfig,
    mkdrv,
    mklens,
    realize1,
    selfref,
    source,
    unpack,
)
from pylightnix import Path as OurPath

DEMO = Path(__file__).with_name("first_demo.py")

CONFIGURE = "#!/bin/sh\ncp Makefile.in Makefile\n"
MAKEFILE = """
all: hello
aclocal.m4: configure.ac
\t@echo 'automake is missing: aclocal.m4 is older than configure.ac' >&2; exit 1
configure: configure.ac aclocal.m4
\t@echo 'autoconf is missing: configure is older than what it is made of' >&2; exit 1
Makefile.in: Makefile.am aclocal.m4
\t@echo 'automake is missing: Makefile.in is older than what it is made of' >&2; exit 1
Makefile: Makefile.in configure
\t@echo 'this is configured again' >&2; exit 1
hello: hello.in Makefile
\tcp hello.in hello && chmod +x hello
install: hello
\tmkdir -p $(DESTDIR)/usr/bin && cp hello $(DESTDIR)/usr/bin
"""
# Sorted as an archive has them: generated files come before what they are made of.
PACKAGE = {
    "Makefile.am": "",
    "Makefile.in": MAKEFILE,
    "aclocal.m4": "",
    "configure": CONFIGURE,
    "configure.ac": "",
    "hello.in": "#!/bin/sh\necho 'Hello, world!'\n",
}
NEW = 1_700_000_000


def as_tar(order: list[str]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for number, name in enumerate(order):
            info = tarfile.TarInfo(f"made-1.0/{name}")
            # As upstream has them: what is generated is newer.
            info.mtime, info.mode, info.size = NEW - number, 0o755, len(PACKAGE[name])
            archive.addfile(info, io.BytesIO(PACKAGE[name].encode()))
    return file.getvalue()


def as_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in PACKAGE.items():
            info = zipfile.ZipInfo(f"made-1.0/{name}")
            info.create_system, info.external_attr = 3, 0o100755 << 16
            archive.writestr(info, text)
    return file.getvalue()


def run(folder: Path, url: str, sha256: str, name: str) -> str:
    if shutil.which("make") is None:
        cannot_run("it takes make")
    environment = {**os.environ, "PYLIGHTNIX_ROOT": str(folder / "store")}
    argv = [sys.executable, str(DEMO), url, sha256, name]
    child = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=600, cwd=folder)
    assert child.returncode == 0, child.stderr[-3000:]
    return child.stdout


@pytest.mark.parametrize("order", [sorted(PACKAGE), sorted(PACKAGE, reverse=True)])
def test_made_up_package_is_configured_and_made(tmp_path: Path, order: list[str]) -> None:
    data = as_tar(order)
    (tmp_path / "made-1.0.tar.gz").write_bytes(data)
    for _ in range(2):
        said = run(tmp_path, (tmp_path / "made-1.0.tar.gz").as_uri(), hashlib.sha256(data).hexdigest(), "made-1.0")
        assert said == "Hello, world!\n"


def made(b: Build, copy: Callable[[str, str], object]) -> None:
    folder = os.path.join(build_outpath(b), "work")
    copy(build_path(b, mklens(b).src.refpath), folder)
    dirrw(OurPath(folder))
    subprocess.run("./configure && make", shell=True, cwd=folder, check=True)


def copied(source: str, target: str) -> None:
    dircp(OurPath(source), OurPath(target), make_rw=True)


@pytest.mark.language
def test_whatever_the_sources_come_from_and_however_they_are_copied(tmp_path: Path, S: StorageSettings) -> None:
    if shutil.which("make") is None:
        cannot_run("it takes make")
    packed, zipped, folder = tmp_path / "a.tar.gz", tmp_path / "a.zip", tmp_path / "made-1.0"
    packed.write_bytes(as_tar(sorted(PACKAGE)))
    zipped.write_bytes(as_zip())
    folder.mkdir()
    for number, (name, text) in enumerate(PACKAGE.items()):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
        os.utime(folder / name, (NEW + number, NEW + number))
    sha256 = hashlib.sha256(packed.read_bytes()).hexdigest()
    ways: list[Callable[[Registry], DRef]] = [
        lambda r: fetchlocal(sha256, str(packed), out=[selfref, "made-1.0"], r=r),
        lambda r: unpack(str(zipped), out=[selfref, "made-1.0"], r=r),
        lambda r: unpack(refpath=[fetchurl2(packed.as_uri(), sha256, r=r), packed.name], out=[selfref, "made-1.0"], r=r),
        lambda r: source(folder, r=r),
    ]
    for way in ways:
        for copy in (shutil.copytree, copied, lambda old, new: subprocess.run(["cp", "-a", old, new], check=True)):

            def built(r: Registry, way: Callable[[Registry], DRef] = way, copy: Callable[[str, str], object] = copy) -> DRef:
                config = mkconfig({"name": "made", "src": mklens(way(r), r=r).out.refpath, "work": [selfref, "work", "hello"]})
                return mkdrv(config, match_only(), build_wrapper(lambda b: made(b, copy)), r)

            rref = realize1(instantiate(built, S=S), force_rebuild=True)
            said = subprocess.run([mklens(rref, S=S).work.syspath], capture_output=True, text=True, check=True).stdout
            assert said == "Hello, world!\n"


@pytest.mark.slow
def test_gnu_hello_is_configured_and_made(tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        cannot_run("it takes gcc")
    tarball = source_tarball(tmp_path / "apt")
    sha256 = "31e066137a962676e89f69d1b65382de95a7ef7d914b8cb956f41ea72e0f516b"
    assert run(tmp_path, tarball.as_uri(), sha256, "hello-2.10") == "Hello, world!\n"


def test_demo_through_a_daemon(tmp_path: Path) -> None:
    data = as_tar(sorted(PACKAGE))
    (tmp_path / "made-1.0.tar.gz").write_bytes(data)
    with Daemon(tmp_path / "store") as daemon:
        daemon.wait_ready()
        assert run(tmp_path, (tmp_path / "made-1.0.tar.gz").as_uri(), hashlib.sha256(data).hexdigest(), "made-1.0") == "Hello, world!\n"
