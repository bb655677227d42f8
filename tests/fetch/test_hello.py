"""`docs/examples/hello.py`, run for real: the tarball comes from Debian's source package, by a server on the loopback."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.fetch.servers import running_nginx
from tests.missing import cannot_run

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "hello.py"
TARBALL = "hello_2.10.orig.tar.gz"


def debian_archives() -> list[str]:
    """Return the lines that say where this machine's packages come from, as lines for sources."""
    lines: list[str] = []
    for path in [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]:
        text = path.read_text() if path.is_file() else ""
        lines += re.findall(r"^deb (.*debian\b.*)$", text, re.MULTILINE)
        for stanza in re.split(r"\n\s*\n", text):
            fields = dict(re.findall(r"^([\w-]+): *(.*)$", stanza, re.MULTILINE))
            if "URIs" in fields and re.search(r"/debian/?( |$)", fields["URIs"]):
                signed = f"[signed-by={fields['Signed-By']}] " if "Signed-By" in fields else ""
                lines += [f"{signed}{fields['URIs'].split()[0]} {suite} {fields['Components']}" for suite in fields["Suites"].split()[:1]]
    return [f"deb-src {line}" for line in lines]


def source_tarball(folder: Path) -> Path:
    """Let apt-get fetch Debian's source package, with settings of its own: the machine's stay as they are."""
    archives = debian_archives()
    if shutil.which("apt-get") is None or not archives:
        cannot_run("this machine has no packages of Debian")
    for name in ("lists/partial", "cache/archives/partial", "parts", "sources"):
        (folder / name).mkdir(parents=True)
    (folder / "sources.list").write_text("\n".join(archives) + "\n")
    settings = {
        "Dir::Etc::SourceList": folder / "sources.list",
        "Dir::Etc::SourceParts": folder / "parts",
        "Dir::State::Lists": folder / "lists",
        "Dir::Cache": folder / "cache",
        "APT::Sandbox::User": "root",
    }
    options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
    for arguments in (["update", "-qq"], ["source", "-qq", "--download-only", "hello"]):
        child = subprocess.run(["apt-get", *options, *arguments], cwd=folder / "sources", capture_output=True, text=True)
        if child.returncode != 0:
            cannot_run(f"apt-get {arguments[0]} failed: {child.stderr[-300:]}")
    return folder / "sources" / TARBALL


@pytest.mark.slow
def test_hello_is_fetched_compiled_and_run(tmp_path: Path) -> None:
    if shutil.which("gcc") is None or shutil.which("make") is None:
        cannot_run("it takes gcc and make")
    tarball = source_tarball(tmp_path / "apt")
    sha256 = hashlib.sha256(tarball.read_bytes()).hexdigest()
    assert sha256 == "31e066137a962676e89f69d1b65382de95a7ef7d914b8cb956f41ea72e0f516b"
    with running_nginx(tmp_path / "nginx") as nginx:
        shutil.copyfile(tarball, nginx.www / TARBALL)
        environment = {**os.environ, "PYLIGHTNIX_ROOT": str(tmp_path / "store"), "HELLO_URL": f"{nginx.url}/{TARBALL}"}
        for _ in range(2):
            child = subprocess.run([sys.executable, "-W", "error", EXAMPLE], env=environment, capture_output=True, text=True, timeout=600)
            assert child.returncode == 0, child.stderr
            assert child.stdout == "Hello, world!\n"
        assert [request[:2] for request in nginx.requests()] == [(f"/{TARBALL}", 200)]
