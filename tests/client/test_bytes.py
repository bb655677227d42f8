"""Bytes that are not UTF-8, wherever a Unix system allows them: the product works in such surroundings, with and without a daemon."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgpack  # type: ignore[import-untyped]  # it ships no type information
import pytest
from tests.client.daemons import end_daemon, end_started_daemon, environment, start_daemon
from tests.daemon.wire_client import WireClient

LATIN = os.fsdecode("café".encode("latin-1"))
STAGES = """
import os, sys
import sibling
from pylightnix import Options, autostage, instantiate, realize1, rref2path, selfref

@autostage(name="writes", out=[selfref, "out.txt"], options=Options(env=("LATIN",)), salt=sibling.SALT)
def writes(out, salt):
    sys.stdout.buffer.write(b"said \\xe9\\n")
    sys.stdout.flush()
    folder = os.path.dirname(out)
    os.symlink(b"to \\xe9", os.path.join(os.fsencode(folder), b"link \\xe9"))
    with open(out, "w") as file:
        file.write(repr((os.environb.get(b"LATIN"), os.environb.get(b"N\\xe9ME"), __file__.isascii())))

@autostage(name="fails", out=[selfref, "out.txt"], salt=sibling.SALT)
def fails(out, salt):
    raise ValueError("no caf\\udce9, no \\ud800")

if __name__ == "__main__":
    print(ascii(rref2path(realize1(instantiate(writes)))))
"""


@pytest.fixture
def surroundings(tmp_path: Path) -> Iterator[Path]:
    """A project and a store whose paths are not UTF-8."""
    project = tmp_path / f"project {LATIN}"
    project.mkdir()
    (project / f"{LATIN}.py").write_text(STAGES)
    (project / "stages.py").write_text(STAGES)
    (project / "sibling.py").write_text(f"SALT = {tmp_path.name!r}\n")
    yield project
    for root in tmp_path.glob(f"s*{LATIN}"):
        end_started_daemon(root)


def run(project: Path, store: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    variables = {**environment(), "PYLIGHTNIX_ROOT": str(store), "HOME": str(project), "LATIN": LATIN, os.fsdecode(b"N\xe9ME"): "here"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, cwd=project, env=variables, timeout=60)


@pytest.mark.parametrize("way", [[], ["--no-daemon"]])
def test_builds_in_surroundings_that_are_not_utf8(surroundings: Path, tmp_path: Path, way: list[str]) -> None:
    store = tmp_path / f"s{LATIN}"
    for target in (f"{LATIN}.py:writes", "stages.py:writes", str(surroundings / "stages.py:writes")):
        ran = run(surroundings, store, "-m", "pylightnix_client", "build", *way, target)
        assert ran.returncode == 0, ran.stderr
    out = ran.stdout.rstrip(b"\n").split(b"\t")[1]
    assert (Path(os.fsdecode(out)) / "out.txt").read_text() == "(b'caf\\xe9', b'here', False)"
    assert os.readlink(out + b"/link \xe9") == b"to \xe9"
    listed = run(surroundings, store, "-m", "pylightnix_client", "ls", os.fsdecode(out))
    assert b"link \xe9" in listed.stdout, listed.stderr
    failed = run(surroundings, store, "-m", "pylightnix_client", "build", *way, "stages.py:fails")
    assert failed.returncode == 1
    assert b"ValueError: no caf\\udce9, no \\ud800" in failed.stderr
    log = store / "logs" / "pylightnixd.log"
    assert not log.exists() or "Traceback" not in log.read_text()


def test_a_script_through_a_daemon_where_nothing_is_utf8(surroundings: Path, tmp_path: Path) -> None:
    store = tmp_path / f"s{LATIN}"
    daemon = start_daemon(str(store), "--drain", "1")
    try:
        ran = run(surroundings, store, f"{LATIN}.py")
        assert ran.returncode == 0, ran.stderr
        with WireClient(str(store / "daemon.sock")) as client:
            assert client.welcome.store == str(store)
            assert client.ps().builds == []
    finally:
        said = end_daemon(daemon)
    assert "Traceback" not in said


def test_a_locale_that_has_no_word_for_a_path_is_told(tmp_path: Path) -> None:
    store = tmp_path / "s\u00e9"
    daemon = start_daemon(str(store), "--drain", "1")
    try:
        (tmp_path / "stages.py").write_text("from pylightnix import mknode\ndef node(r): return mknode(r, {'name': 'n'}, {'a': b'b'})\n")
        narrow = {**environment(), "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        for words in (("status",), ("build", "stages.py")):
            command = [sys.executable, "-m", "pylightnix_client", "--store", str(store), *words]
            ran = subprocess.run(command, capture_output=True, cwd=tmp_path, env=narrow, timeout=60)
            assert ran.returncode == 2
            assert b"expected a UTF-8 locale for the path" in ran.stderr
            assert b"found ascii; set LANG=C.UTF-8 or PYTHONUTF8=1" in ran.stderr
            assert b"UnicodeEncodeError" not in ran.stderr
    finally:
        end_daemon(daemon)


HELLO = {"versions": [1], "features": [], "client": "c"}
GREETINGS = [
    [0, 1, "hello", [{**HELLO, "client": LATIN}]],
    [0, 1, "hello", [{**HELLO, "features": [LATIN]}]],
    [0, 1, "hello", [{**HELLO, LATIN: 1}]],
    [0, 1, LATIN, [HELLO]],
    [0, 1, "hello", [{**HELLO, "versions": [LATIN]}]],
    [2, LATIN, [{LATIN: LATIN}]],
]


def test_a_daemon_outlives_every_greeting(tmp_path: Path) -> None:
    store = tmp_path / f"s{LATIN}"
    daemon = start_daemon(str(store), "--drain", "1")
    try:
        for greeting in GREETINGS:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(60)
                connection.connect(os.fsencode(store / "daemon.sock"))
                connection.sendall(msgpack.packb(greeting, unicode_errors="surrogateescape"))
                while connection.recv(1 << 16):
                    pass
        for _ in range(70):  # more than one user may have at a time: each that ends leaves its place
            with WireClient(str(store / "daemon.sock")) as client:
                pass
        with WireClient(str(store / "daemon.sock")) as client:
            client.socket.sendall(msgpack.packb([0, 9, "ps", [{LATIN: LATIN}]], unicode_errors="surrogateescape"))
            assert msgpack.unpackb(client.socket.recv(1 << 16))[2]["code"] == "invalid-message"
        with WireClient(str(store / "daemon.sock")) as client:
            assert client.status().pid == daemon.pid
        daemon.send_signal(signal.SIGHUP)
    finally:
        said = end_daemon(daemon)
    assert "BUG" not in said
    assert "Traceback" not in said
