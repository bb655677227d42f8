"""Builds by a real worker: what they get, what they report, what they may do to themselves."""

from __future__ import annotations

import ast
import importlib
import os
import pickle
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.daemon import realizers
from tests.daemon.worker_driver import A_DREF, Refusal, Run, Worker, arguments, context_bytes
from tests.stores import output

from pylightnix import (
    Build,
    BuildError,
    Context,
    DRef,
    PylightnixException,
    Registry,
    StorageSettings,
    build_outpath,
    build_path,
    build_wrapper,
    command,
    instantiate,
    match_only,
    mkconfig,
    mkdrv,
    mknode,
    pyobjhash,
    realize1,
    rref2dref,
    rrefctx,
)
from pylightnix.travel import CodeChanged, RemoteFailure, capture_environment, load_exception, pack_realizer
from pylightnix.types import Realizer


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    with Worker(tmp_path / "worker") as worker:
        yield worker


@pytest.fixture
def module_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of project modules, importable here."""
    folder = tmp_path / "project"
    folder.mkdir()
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for name in set(sys.modules) - before:
        del sys.modules[name]


def value(run: Run) -> Any:
    return ast.literal_eval(run.text())


# --- what a build is given -------------------------------------------------------------------------------


def test_hello_tells_who_answers(worker: Worker) -> None:
    assert worker.hello["version"] == 1
    assert worker.hello["pid"] == worker.process.pid
    assert worker.hello["python"] == sys.version.split()[0]


def test_a_build_reports_its_outputs_and_times(worker: Worker) -> None:
    run = worker.build(realizers.trivial)
    assert run.report["outputs"] == ["out"]
    assert run.report["error"] is None
    assert 0 <= run.report["stopped"] - run.report["started"] < 60
    assert run.ended == {"build": run.build, "pid": run.pid, "exit_code": 0, "signal": None}


def test_an_inner_function_travels_by_value(worker: Worker) -> None:
    word = "enclosed"

    def realizer(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Any]:
        return list(output(S, {"out.txt": word}) for _ in range(2))

    run = worker.build(realizer)
    assert [Path(folder, "out.txt").read_text() for folder in run.outputs] == [word, word]


def test_arguments_settings_and_surroundings_are_those_ordered(tmp_path: Path) -> None:
    environment = replace(capture_environment(), umask=0o027)
    environment.variables["SAMPLE"] = "value"
    text = "[S, dref, dict(context), rarg['given'], os.getcwd(), os.environ['SAMPLE'], os.stat(0).st_rdev, os.getsid(0) == os.getpid()]"
    with Worker(tmp_path / "w", environment=environment) as worker:
        run = worker.build(realizers.evaluated, args=arguments(text=text.replace("S,", "tuple(S),"), given={"a": 1}))
        settings, *rest = value(run)
        assert settings == (str(tmp_path / "w/store"), str(tmp_path / "w/store/store-v1"), run.folder)
        assert rest == [A_DREF, {}, {"a": 1}, "/", "value", os.stat("/dev/null").st_rdev, True]
        assert stat.S_IMODE(os.stat(os.path.join(run.outputs[0], "out.txt")).st_mode) == 0o640


def test_the_context_is_transitive(S: StorageSettings, tmp_path: Path) -> None:
    r = Registry(S)
    bottom = mknode(r, {"which": "bottom"}, {"a": b"content"})
    middle = command(
        ["sh", "-c", 'cp "$1" "$2"', "sh", [bottom, "a"], ["self", "out"]] if False else _copy(bottom, "a"), name="middle", r=r
    )
    rref = realize1(instantiate(middle, S=S) if False else _closure(r, middle))
    direct = {rref2dref(rref): [rref]}
    with Worker(tmp_path / "w", S=S) as worker:
        text = "[list(context.items()), context[list(context)[0]]]"
        items, first = value(worker.build(realizers.evaluated, args=arguments(text=text), context=context_bytes(direct)))
    assert dict(items) == {**direct, **rrefctx(rref, S)}
    assert len(items) == 2
    assert first == dict(items)[items[0][0]]
