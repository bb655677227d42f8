"""What a program's classes leave in a store: nothing that needs them, and no pickle that says what anything is."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Optional

import pytest
from tests.client import daemons
from tests.stores import new_store

from pylightnix import StorageSettings
from pylightnix.storage import store_layout

MODULE = """
from pylightnix import *


class Scale:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, number):
        return number * self.factor


class OwnBuild(Build):
    pass


class Fills:
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, b):
        assert type(b) is OwnBuild
        with open(f"{build_outpath(b)}/number", "w") as file:
            file.write(str(self.scale(21)))


class Picks:
    def __call__(self, S, rrefs):
        return sorted(rrefs)[:1] or None


class OwnError(Exception):
    pass


def low(r):
    return mkdrv(mkconfig({"name": "low", "out": [selfref, "number"]}), Picks(), build_wrapper_(Fills(Scale(2)), OwnBuild), r)


@autostage(name="high", low=low, text="one", out=[selfref, "text"], sourcedeps=[OwnError])
def high(low, text, out):
    with open(low.out) as number, open(out, "w") as file:
        file.write(text * Scale(1)(int(number.read())))


def fails(b):
    raise OwnError("no such luck")


def broken(r):
    return mkdrv(mkconfig({"name": "broken"}), Picks(), build_wrapper(fails), r)
"""

REALIZE = """
import json
from pylightnix import *
import vanishing

found = {}
for text in ("one", "two"):
    dref, closure = instantiate(lambda r: vanishing.high(r=r, text=text))
    found[text] = {"dref": dref, "rref": realize1(closure), "context": rrefctx(realize1(closure))}
try:
    realize(instantiate(vanishing.broken))
except BuildError as error:
    assert type(error.exception) is vanishing.OwnError
print(json.dumps(found))
"""

LOOK = """
import json, sys
from pylightnix import *
from pylightnix.arch import copyclosure, spack, sunpack
from pylightnix.either import either_isRight, either_loadR
from pylightnix.query import realization_info

found, folder = json.load(sys.stdin), sys.argv[1]
try:
    import vanishing
except ImportError:
    pass
else:
    raise AssertionError("it is still there")
for text, made in found.items():
    dref, rref = DRef(made["dref"]), RRef(made["rref"])
    [low] = made["context"].keys() - {dref}
    assert drefcfg(dref).val["text"] == drefattrs(dref).text == text
    assert cfgname(drefcfg_(dref)) == "high"
    assert rrefctx(rref) == made["context"]
    assert drefdeps([dref]) == {low}
    assert rrefdeps([rref]) == set(made["context"][low])
    assert lsref(rref) and "config.json" in lsref(dref)
    assert catref(rref, ["text"]) == [text * 42] == [mklens(rref).out.contents]
    assert mklens(rref).low.out.contents == "42"
    assert rref in find("high") and rref in drefrrefs(dref) and rref in rootrrefs()
    assert du()[dref][1][rref] > 0
    assert realization_info(rref).rref == rref
    assert rrefbstart(rref) <= rrefbstop(rref)
    assert either_isRight(either_loadR([rref], None))
    diff(dref, low)
    linkrref(rref, folder)
    # Another program, for which the class is another one or none, finds what is there.
    def again(r, made=made, dref=dref):
        for known in (*made["context"], dref):
            mkdrv(drefcfg_(known), match_latest(), lambda *args: 1 / 0, r)
        return dref
    assert realize1(instantiate(again)) == rref
    spack([rref], f"{folder}/packed")
    for fill in (lambda: sunpack(f"{folder}/packed", other), lambda: copyclosure([rref], None, other)):
        fsinit(other := mkSS(f"{folder}/other"), remove_existing=True, use_as_default=False)
        fill()
        assert rref in allrrefs(other)
assert store_gc([], [RRef(found["one"]["rref"])])[1] == {found["two"]["rref"]}
"""

BEFORE = {
    "plain": "",
    # None in sys.modules is what cannot be imported, whoever tries.
    "without pickle": "import sys; sys.modules.update(pickle=None, _pickle=None, cloudpickle=None)",
}


def python(S: StorageSettings, program: str, folder: Path, *arguments: str, sent: str = "") -> str:
    environment = {**daemons.environment(), "PYLIGHTNIX_ROOT": str(S.root)}
    ran = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        input=sent,
        capture_output=True,
        text=True,
        env=environment,
        cwd=folder,
        timeout=daemons.SECONDS,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def command(S: StorageSettings, *arguments: str) -> str:
    whole = [sys.executable, "-W", "error", "-m", "pylightnix_client", "--store", str(S.root), *arguments]
    ran = subprocess.run(whole, capture_output=True, text=True, env=daemons.environment(), timeout=daemons.SECONDS)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "vanishing.py").write_text(MODULE)
    return folder


def pickles_in(S: StorageSettings) -> list[str]:
    """Return what in the index, and in what describes derivations and realizations, looks like a pickle."""
    layout = store_layout(S)
    with closing(sqlite3.connect(layout.index)) as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        values = {f"{table} {row}": row for table in tables for row in db.execute(f"SELECT * FROM {table}")}
    found = [name for name, row in values.items() if any(isinstance(value, bytes) and _is_pickle(value) for value in row)]
    for folder, _, names in os.walk(layout.storage):
        found += [f"{folder}/{name}" for name in names if _is_pickle(Path(folder, name).read_bytes())]
    return found


def _is_pickle(data: bytes) -> bool:
    return data[:1] == b"\x80" or b"vanishing" in data


@pytest.fixture(params=["embedded", "daemon"])
def daemon(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "daemon")


@pytest.fixture
def store(daemon: bool) -> Iterator[StorageSettings]:
    with daemons.short_store() as S:
        yield S


class Served:
    """A store with its daemon, if it has one."""

    def __init__(self, S: StorageSettings, daemon: bool) -> None:
        self.S, self._daemon = S, daemon
        self._running: Optional[daemons.StartedDaemon] = None

    def __enter__(self) -> StorageSettings:
        if self._daemon:
            self._running = daemons.start_daemon(str(self.S.root), "--drain", "1")
        return self.S

    def __exit__(self, *caught: Any) -> None:
        if self._running is not None:
            daemons.end_daemon(self._running)


def test_a_store_can_be_read_when_the_programs_classes_are_gone(
    store: StorageSettings, daemon: bool, project: Path, tmp_path: Path
) -> None:
    with Served(store, daemon):
        found = json.loads(python(store, REALIZE, project))
    (project / "vanishing.py").unlink()
    for cached in project.rglob("*.pyc"):
        cached.unlink()
    with Served(store, daemon) as S:
        assert "low" in python(S, LOOK, tmp_path, str(tmp_path), sent=json.dumps(found))
        one, two = found["one"]["rref"], found["two"]["rref"]
        assert "the config value text is 'two', and was 'one'" in command(S, "why-rebuild", two)
        for arguments in (["show", one], ["ls", one], ["du"], ["find"]):
            command(S, *arguments)
        assert len(command(S, "find").splitlines()) == 3
        (tmp_path / "keep").mkdir()
        (tmp_path / "keep" / "one").symlink_to(command(S, "path", one).rstrip("\n"))
        command(S, "gc", "--keep", str(tmp_path / "keep"), "--yes")
        assert len(command(S, "find").splitlines()) == 2
        assert two not in command(S, "find")
        assert command(S, "cat", one, "text") == "one" * 42
        command(S, "rm", one)


def test_no_pickle_takes_part_in_an_identity(project: Path, tmp_path: Path) -> None:
    """References are the same where nothing can be pickled at all, and through a daemon, for which all is pickled."""
    found = {}
    for name, before in BEFORE.items():
        S = new_store(tmp_path / name)
        found[name] = json.loads(python(S, f"{before}\n{REALIZE}", project))
        assert pickles_in(S) == []
    with daemons.short_store() as S:
        with Served(S, daemon=True):
            found["daemon"] = json.loads(python(S, REALIZE, project))
        assert pickles_in(S) == []
    assert found["plain"] == found["without pickle"] == found["daemon"]
