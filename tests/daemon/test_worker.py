"""Builds by a real worker: what they are given, what they report, what they print."""

from __future__ import annotations

import ast
import importlib
import os
import pickle
import stat
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.daemon import realizers
from tests.daemon.worker_driver import A_DREF, Run, Worker, arguments, context_bytes
from tests.stores import stage

from pylightnix import (
    Build,
    BuildError,
    CodeManifest,
    Context,
    DRef,
    Registry,
    StorageSettings,
    build_outpath,
    build_wrapper,
    code_manifest,
    command,
    instantiate,
    mknode,
    pyobjhash,
    realize1,
    rref2dref,
    rrefctx,
    selfref,
)
from pylightnix import Path as StorePath
from pylightnix.travel import CodeChanged, RemoteFailure, RemoteTraceback, capture_environment, load_exception, pack_realizer


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    with Worker(tmp_path / "worker") as worker:
        yield worker


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of modules, importable here and in workers that are started from here on."""
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
    words = ["first", "second"]

    def realizer(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[StorePath]:
        return [folder for word in words for folder in realizers.folder_with(S, word)]

    assert [Path(folder, "out.txt").read_text() for folder in worker.build(realizer).outputs] == words


def test_arguments_settings_and_surroundings_are_those_ordered(tmp_path: Path) -> None:
    environment = replace(capture_environment(), umask=0o027)
    environment.variables["SAMPLE"] = "value"
    facts = "tuple(S), str(dref), dict(context), rarg['given'], os.path.dirname(os.getcwd()), os.environ['SAMPLE'], sys.stdin.read(), "
    facts += "os.getpid() == os.getsid(0) == os.getpgid(0)"
    with Worker(tmp_path / "w", environment=environment) as worker:
        run = worker.build(realizers.evaluated, args=arguments(text=f"[{facts}]", given={"a": 1}))
        settings = (str(tmp_path / "w/store"), str(tmp_path / "w/store/store-v1"), run.folder)
        assert value(run) == [settings, A_DREF, {}, {"a": 1}, run.folder, "value", "", True]
        assert stat.S_IMODE(os.stat(os.path.join(run.outputs[0], "out.txt")).st_mode) == 0o640


def test_the_context_is_transitive(S: StorageSettings, tmp_path: Path) -> None:
    rref = realize1(instantiate(lambda r: stage(r, "top", below=stage(r, "middle", below=stage(r, "bottom"))), S=S))
    (middle,) = [found for dref, found in rrefctx(rref, S).items() if dref.endswith("-middle")]
    assert middle is not None
    order = {"context": context_bytes({rref2dref(middle[0]): middle}), "args": arguments(text="[dict(context), len(context)]")}
    with Worker(tmp_path / "w", S=S) as worker:
        assert value(worker.build(realizers.evaluated, **order)) == [rrefctx(rref, S), 2]


def test_commands_and_nodes_need_no_pickle(S: StorageSettings, tmp_path: Path) -> None:
    r = Registry(S)
    node = mknode(r, {}, {"a": b"content"})
    copy = command(["sh", "-c", 'cat "$0" >"$1"', [node, "a"], [selfref, "copy"]], env={"PATH": os.environ["PATH"]}, outputs=["copy"], r=r)
    realizer = {dref: derivation.realizer for dref, derivation in r.builders.items()}
    rref = realize1(instantiate(lambda r: mknode(r, {}, {"a": b"content"}), S=S))
    with Worker(tmp_path / "w", S=S) as worker:
        run = worker.build(realizer[node], dref=node)
        assert run.text("a") == "content"
        run = worker.build(realizer[copy], dref=copy, context=context_bytes({node: [rref]}))
        assert run.text("copy") == "content"


def test_outputs_deeper_inside_are_moved_up(worker: Worker) -> None:
    nested = "os.makedirs(f'{folder}/a/b') or os.mkdir(f'{folder}/a/b/in') or [f'{folder}/a/b']"
    run = worker.build(realizers.returns, args=arguments(text=nested))
    (output,) = run.outputs
    assert os.path.dirname(output) == run.folder
    assert os.listdir(output) == ["in"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("None", "returned None"),
        ("[]", r"returned \[\]"),
        ("[1]", "returned 1 as an output"),
        ("[folder]", "is not a folder of this build"),
        ("['/etc']", "is not a folder of this build"),
        ("[f'{folder}/../..']", "is not a folder of this build"),
        ("[f'{folder}/none']", "does not exist"),
        ("open(f'{folder}/f', 'w').close() or [f'{folder}/f']", "is not a folder; "),
        ("os.symlink('/etc', f'{folder}/l') or [f'{folder}/l']", "is not a folder; "),
        ("os.makedirs(f'{folder}/d/o') or os.symlink('d', f'{folder}/l') or [f'{folder}/l/o']", "without following a link"),
        ("os.mkdir(f'{folder}/o') or [f'{folder}/o', f'{folder}/./o']", "was returned twice"),
        ("os.makedirs(f'{folder}/o/p') or [f'{folder}/o', f'{folder}/o/p']", "holds another output"),
        (r"os.mkdir(f'{folder}/\udcff') or [f'{folder}/\udcff']", "not UTF-8"),
    ],
)
def test_what_is_no_output_fails_the_build(worker: Worker, text: str, problem: str) -> None:
    error = worker.build(realizers.returns, args=arguments(text=text)).error
    assert error["code"] == "invalid-output"
    with pytest.raises(Exception, match=problem):
        raise load_exception(error, trusted=False)


# --- failures --------------------------------------------------------------------------------------------


def raised(worker: Worker, text: str) -> dict[str, Any]:
    return worker.build(realizers.raises, args=arguments(text=text)).error


def test_an_error_comes_back_as_itself(worker: Worker) -> None:
    error = raised(worker, "OwnError('why', 2)")
    assert (error["code"], error["type"], error["message"]) == ("remote-exception", "tests.daemon.realizers.OwnError", "('why', 2)")
    loaded = load_exception(error, trusted=True)
    assert type(loaded) is realizers.OwnError
    assert loaded.args == ("why", 2)
    assert isinstance(loaded.__cause__, RemoteTraceback)
    assert "raise rarg" in str(loaded.__cause__)
    assert "worker/building.py" not in str(loaded.__cause__)


def test_an_error_comes_back_whatever_its_constructor_takes(worker: Worker) -> None:
    loaded = load_exception(raised(worker, "AwkwardError(1, 2)"), trusted=True)
    assert isinstance(loaded, realizers.AwkwardError)
    assert (loaded.args, loaded.left, loaded.right) == (("1 is not 2",), 1, 2)


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("LockedError('why')", "tests.daemon.realizers.LockedError", "why"),
        ("MuteError()", "tests.daemon.realizers.MuteError", "(its text cannot be had: RuntimeError)"),
        ("SystemExit('why')", "SystemExit", "why"),
    ],
)
def test_an_error_that_cannot_come_back_is_told_of(worker: Worker, text: str, name: str, message: str) -> None:
    error = raised(worker, text)
    assert (error["type"], error["message"], error["pickled"]) == (name, message, None)
    loaded = load_exception(error, trusted=True)
    assert isinstance(loaded, RemoteFailure)
    assert (loaded.type_name, loaded.text) == (name, message)
    assert "raise rarg" in loaded.traceback


def test_an_interrupt_stays_one(worker: Worker) -> None:
    error = raised(worker, "KeyboardInterrupt('why')")
    assert error["pickled"] is None
    loaded = load_exception(error, trusted=False)
    assert type(loaded) is KeyboardInterrupt
    assert loaded.args == ("why",)


def test_a_failed_build_function_keeps_its_outputs(S: StorageSettings, tmp_path: Path) -> None:
    def fill(b: Build) -> None:
        Path(build_outpath(b), "half").write_text("done")
        raise ValueError("not more")

    dref = realize1(instantiate(stage, S=S))
    with Worker(tmp_path / "w", S=S) as worker:
        run = worker.build(build_wrapper(fill), dref=rref2dref(dref))
    error = run.error
    assert (error["code"], error["type"]) == ("build-failed", "ValueError")
    (kept,) = error["outpaths"]
    assert Path(run.folder, kept, "half").read_text() == "done"
    for trusted in (True, False):
        loaded = load_exception(error, trusted)
        assert isinstance(loaded, BuildError)
        assert loaded.__cause__ is loaded.exception
        assert "not more" in str(loaded)
    assert type(load_exception(error, trusted=True).__cause__) is ValueError


def test_sys_exit_is_a_failure(worker: Worker) -> None:
    assert worker.build(realizers.exits).error["type"] == "SystemExit"


def test_a_class_of_the_main_program_comes_back_as_the_same_class(worker: Worker) -> None:
    class Local(Exception):
        pass

    def realizer(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[StorePath]:
        raise Local("why")

    loaded = load_exception(worker.build(realizer).error, trusted=True)
    assert type(loaded) is Local


def test_arguments_that_cannot_be_unpacked_fail_the_build(worker: Worker) -> None:
    assert worker.build(realizers.trivial, args=b"no pickle").error["type"].endswith("UnpicklingError")


# --- code ------------------------------------------------------------------------------------------------

_MODULE = """
from tests.daemon.realizers import folder_with
def realizer(S, dref, context, rarg):
    return folder_with(S, "{word}")
"""


def write_module(folder: Path, name: str, word: str) -> Any:
    (folder / f"{name}.py").write_text(_MODULE.format(word=word))
    importlib.invalidate_caches()
    return importlib.import_module(name)


def test_a_project_file_is_read_by_every_build(project: Path, tmp_path: Path) -> None:
    module = write_module(project, "project_read_anew", "old")
    with Worker(tmp_path / "w") as worker:
        assert worker.build(module.realizer).text() == "old"
        write_module(project, "project_read_anew", "newer")
        assert worker.build(module.realizer).text() == "newer"


def test_a_module_that_appears_later_is_found(project: Path, tmp_path: Path) -> None:
    with Worker(tmp_path / "w") as worker:
        assert worker.build(write_module(project, "project_first", "first").realizer).text() == "first"
        assert worker.build(write_module(project, "project_second", "second").realizer).text() == "second"


def test_changed_code_is_not_run(project: Path, tmp_path: Path) -> None:
    module = write_module(project, "project_changed", "old")
    digest = pyobjhash([module.realizer])
    with Worker(tmp_path / "w") as worker:
        assert worker.build(module.realizer, digest=digest).text() == "old"
        write_module(project, "project_changed", "newer")
        error = worker.build(module.realizer, digest=digest).error
        assert error["code"] == "code-changed"
        assert isinstance(load_exception(error, trusted=False), CodeChanged)
        (project / "project_changed.py").write_text("def realizer(*args): return eval('None')\n")
        assert worker.build(module.realizer, digest=digest).error["code"] == "code-changed"


_REACHING = """
from tests.daemon.realizers import folder_with
from {helper} import word
def realizer(S, dref, context, rarg):
    return folder_with(S, word())
"""


def test_changed_helpers_are_not_run(project: Path, tmp_path: Path) -> None:
    (project / "project_reaching.py").write_text(_REACHING.format(helper="project_reached"))
    (project / "project_reached.py").write_text("def word():\n    return 'old'\n")
    importlib.invalidate_caches()
    module = importlib.import_module("project_reaching")
    code = code_manifest([module.realizer])
    with Worker(tmp_path / "w") as worker:
        for _ in range(2):
            run = worker.build(module.realizer, digest=code.digest)
            assert run.text() == "old"
            assert CodeManifest.from_json(run.report["manifest"]) == code
        (project / "project_reached.py").write_text("def word():\n    return 'newer'\n")
        assert worker.build(module.realizer, digest=code.digest).error["code"] == "code-changed"
        assert worker.build(module.realizer).text() == "newer"
        (project / "project_reached.py").write_text("def word():\n    return 'old'  # again\n")
        assert worker.build(module.realizer, digest=code.digest).text() == "old"


def test_files_are_parsed_ahead(project: Path, tmp_path: Path) -> None:
    module = write_module(project, "project_parsed", "text")
    digest = pyobjhash([module.realizer])
    asked = f"{str(project / 'project_parsed.py')!r} in __import__('pylightnix._definitions')._definitions.parsed_files()"
    with Worker(tmp_path / "w") as worker:
        found = []
        for _ in range(2):
            found.append(value(worker.build(realizers.evaluated, args=arguments(text=asked))))
            worker.build(module.realizer, digest=digest)
        assert found == [False, True]


def test_code_that_travelled_itself_cannot_have_changed(worker: Worker) -> None:
    def realizer(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[StorePath]:
        return realizers.folder_with(S, "text")

    assert worker.build(realizer, digest="0" * 64).text() == "text"
    assert worker.build(build_wrapper(lambda b: None), digest="0" * 64).error["code"] == "missing-derivation"
    assert worker.build(realizers.trivial, digest="0" * 64).error["code"] == "code-changed"


def test_a_module_that_is_missing_in_the_worker_fails_the_build(worker: Worker, project: Path) -> None:
    module = write_module(project, "project_elsewhere", "old")
    error = worker.build(module.realizer).error
    assert error["type"] == "ModuleNotFoundError"
    assert "project_elsewhere" in error["message"]


def test_the_worker_is_not_the_main_program_of_a_build(worker: Worker) -> None:
    text = "sorted(vars(sys.modules['__main__']))"
    assert "serve" not in value(worker.build(realizers.evaluated, args=arguments(text=text)))


def test_random_numbers_differ_from_build_to_build(worker: Worker) -> None:
    runs = [worker.build(realizers.draws) for _ in range(2)]
    running = [worker.start(realizers.draws) for _ in range(4)]
    drawn = [value(run) for run in [*runs, *map(worker.finish, running)]]
    assert drawn[0][2] == "no numpy"
    assert all(isinstance(row[2], float) for row in drawn[1:]), "numpy was not imported ahead"
    for column in zip(*drawn, strict=True):
        assert len(set(column)) == len(drawn)


# --- output ----------------------------------------------------------------------------------------------


def test_everything_printed_arrives_before_the_end(tmp_path: Path) -> None:
    environment = capture_environment()
    environment.variables.pop("PYTHONUNBUFFERED", None)  # which would hide what is not flushed
    with Worker(tmp_path / "w", environment=environment) as worker:
        run = worker.build(realizers.prints_in_parts)
    assert sorted(run.log.decode().replace("of Python, ", "of Python, \n").splitlines()) == [
        "and to standard error",
        "of C",
        "of Python, ",
        "of a program",
    ]
    assert run.text() == "text"
    assert worker.log == ""


def test_closing_output_is_no_failure(worker: Worker) -> None:
    run = worker.build(realizers.closes_output)
    assert run.log == b"last words\n"
    assert run.text() == "text"


def test_a_build_may_print_much(worker: Worker) -> None:
    run = worker.build(realizers.prints_much, args=arguments(bytes=100_000_000), kept_log_bytes=100)
    assert run.log_bytes == 100_000_000
    assert run.text() == "text"


def test_a_large_realizer_arrives(worker: Worker) -> None:
    content = os.urandom(20_000_000)

    def realizer(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[StorePath]:
        return realizers.folder_with(S, str(len(content)))

    assert len(pack_realizer(realizer).blob or b"") > len(content)
    assert worker.build(realizer).text() == "20000000"


def test_a_large_error_is_cut(worker: Worker) -> None:
    error = raised(worker, "ValueError('x' * 5_000_000)")
    assert error["pickled"] is None
    assert 50_000 < len(error["message"]) < 65_536
    assert 50_000 < len(error["traceback"]) < 65_536
    small = raised(worker, "ValueError('x' * 100_000)")
    assert pickle.loads(small["pickled"]).args == ("x" * 100_000,)
