"""Habits of the language that programs rely on without thinking of them, where no other test is about them."""

from __future__ import annotations

import ast
import os
import pickle
import re
import stat
import sys
import threading
from pathlib import Path as FsPath
from typing import Any, NamedTuple

import pytest
from tests.stores import AS_ROOT, Notes, in_child, output, refuses, stage, text_of, writes

from pylightnix import (
    PYLIGHTNIX_RESERVED,
    Build,
    BuildError,
    Closure,
    Context,
    DRef,
    InvalidConfig,
    InvalidReference,
    Misuse,
    Output,
    Path,
    PromiseException,
    Registry,
    StorageSettings,
    allrrefs,
    assert_serializable,
    assert_valid_dict,
    build_outpath,
    build_wrapper,
    context_derefpath,
    fsinit,
    fsroot,
    instantiate,
    isclosure,
    match_all,
    mkconfig,
    mkdrv,
    mklens,
    mkSS,
    realize,
    realize1,
    realizeMany,
    realizeU,
    repl_continue,
    repl_realize,
    repl_result,
    reserved,
    rref2path,
    rrefctx,
    setstorage,
    unpack_closure_arg_,
)

pytestmark = pytest.mark.language

# --- one process, one thread --------------------------------------------------------------------------


@pytest.mark.embedded_only("what travels runs in a worker")
def test_realizers_run_in_the_callers_process_and_thread_and_see_its_variables(S: StorageSettings) -> None:
    here: list[Any] = []
    word = "before"

    def realizer(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Path]:
        here.append((os.getpid(), threading.get_ident(), word))
        return [output(S)]

    closure = instantiate(stage, S=S, realizer=realizer)
    word = "after"
    realize1(closure)
    assert here == [(os.getpid(), threading.get_ident(), "after")]


def test_a_new_default_store_lets_callers_leave_settings_out(tmp_path: FsPath, defaults: None) -> None:
    fsinit(str(tmp_path / "one"))
    assert fsroot() == str(tmp_path / "one" / "_pylightnix")
    rref = realize1(instantiate(stage))
    assert text_of(rref, mkSS(fsroot())) == "stage"
    fsinit(str(tmp_path / "two"))
    assert list(allrrefs()) == []
    setstorage(mkSS(str(tmp_path / "one" / "_pylightnix")))
    assert list(allrrefs()) == [rref]


def test_a_closure_and_the_pair_that_holds_it_are_told_apart(S: StorageSettings) -> None:
    pair = instantiate(stage, S=S)
    assert (len(pair), len(pair[1])) == (2, 4)
    assert (isclosure(pair[1]), isclosure(pair), isclosure(tuple(pair[1]))) == (True, False, True)
    assert unpack_closure_arg_(pair) == unpack_closure_arg_(pair[1]) == pair
    assert realize1(pair) == realize1(pair[1]) == realize1(tuple(pair[1]))
    assert isinstance(pair[1], Closure)


def test_lists_of_realizations_are_in_the_order_of_their_texts(S: StorageSettings) -> None:
    texts = [{"out.txt": str(i)} for i in range(9)]

    def main(r: Registry) -> DRef:
        return stage(r, "above", below=stage(r, "below", realizer=writes(*texts), matcher=match_all))

    result, closure = instantiate(main, S=S)
    (below,) = [derivation.dref for derivation in closure.derivations if derivation.dref != result]
    context = realize(closure)[2]
    assert len(context[below] or []) == 9
    assert context[below] == sorted(context[below] or []) == realizeMany(instantiate(below, r=_registry(closure)))
    assert rrefctx(realize1(closure), S)[below] == context[below]


def _registry(closure: Closure) -> Registry:
    r = Registry(closure.S)
    r.builders = {derivation.dref: derivation for derivation in closure.derivations}
    return r


class Pair(NamedTuple):
    """What a stage may return like any tuple."""

    a: Any
    b: Any


def test_results_may_be_named_tuples(S: StorageSettings) -> None:
    def main(r: Registry) -> Pair:
        return Pair(stage(r, "a"), {"b": stage(r, "b")})

    closure = instantiate(main, S=S)
    found = realizeU(closure)
    assert isinstance(found, Pair)
    assert (found.a.name, found.b["b"].name) == ("a", "b")
    rh = repl_realize(closure, force_interrupt=[])
    assert isinstance(repl_result(rh), Pair)
    with pytest.raises(Misuse):
        repl_continue(rh=rh)


# --- what is not done ---------------------------------------------------------------------------------


def test_d16_a_warm_plan_reads_neither_configs_nor_contexts(S: StorageSettings) -> None:
    """What was registered is known, and the index knows contexts: a plan of thousands must not open thousands of files."""

    def chain(r: Registry, length: int = 30) -> DRef:
        dref = stage(r, "0")
        for i in range(1, length):
            dref = stage(r, str(i), below=dref)
        return dref

    realize1(instantiate(chain, S=S))
    closure = instantiate(chain, S=S)

    def opened() -> list[str]:
        paths: list[str] = []
        sys.addaudithook(lambda event, args: paths.append(str(args[0])) if event == "open" else None)
        realize1(closure)
        return paths

    paths = in_child(opened)
    assert [path for path in paths if path.endswith(("config.json", "context.json"))] == []
    assert any("lock" in path for path in paths), "the hook sees what is opened"


def test_d34_outputs_lie_in_folders_with_plain_names(S: StorageSettings) -> None:
    seen = Notes()
    realize1(instantiate(lambda r: stage(r, realizer=build_wrapper(lambda b: seen.append(build_outpath(b)))), S=S))
    assert re.fullmatch(r"[\w/.-]+", seen[0].removeprefix(str(S.root)))


# --- exceptions ---------------------------------------------------------------------------------------


def test_d32_a_failed_build_says_what_failed_and_survives_pickling(S: StorageSettings) -> None:
    def fail(b: Build) -> None:
        raise KeyError("the key")

    with pytest.raises(BuildError) as failed:
        realize1(instantiate(lambda r: stage(r, "failing", realizer=build_wrapper(fail)), S=S))
    error, twin = failed.value, pickle.loads(pickle.dumps(failed.value))
    assert isinstance(error.__cause__, KeyError)
    assert (type(twin), str(twin), twin.dref, twin.outpaths, twin.S) == (BuildError, str(error), error.dref, error.outpaths, error.S)
    assert repr(twin.exception) == repr(error.exception) == "KeyError('the key')"
    assert error.dref in str(error)
    assert "KeyError: 'the key'" in str(error)


def test_a_broken_promise_survives_pickling() -> None:
    error = PromiseException(DRef("dref:x"), [(Path("/folder"), ["__self__", "a", "b"])])
    twin = pickle.loads(pickle.dumps(error))
    assert (twin.dref, twin.failed, str(twin)) == ("dref:x", [("/folder", ["__self__", "a", "b"])], str(error))
    assert "a/b" in str(error)


def test_a_build_error_without_outputs() -> None:
    assert BuildError(None, DRef("dref:x"), None, ValueError()).outpaths == []
    assert BuildError(None, DRef("dref:x"), Output([Path("/a")]), ValueError(), "message").outpaths == ["/a"]


def test_nothing_is_checked_by_asserts_that_python_can_be_told_to_leave_out() -> None:
    repository = FsPath(__file__).resolve().parents[2]
    found = [
        f"{path.relative_to(repository)}:{node.lineno}"
        for part in ("src", "client", "daemon")
        for path in (repository / part).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Assert)
    ]
    assert found == []


# --- small functions ----------------------------------------------------------------------------------


def test_where_an_artifact_is_in_a_context(S: StorageSettings) -> None:
    dref, closure = instantiate(lambda r: stage(r, realizer=writes({"f": "1"}, {"f": "2"}), matcher=match_all), S=S)
    context = realize(closure)[2]
    paths = context_derefpath(context, [dref, "f"], S)
    assert paths == [f"{rref2path(rref, S)}/f" for rref in context[dref] or []]
    assert sorted(FsPath(path).read_text() for path in paths) == ["1", "2"]
    with pytest.raises(AssertionError, match="not among the dependencies"):
        context_derefpath({}, [dref, "f"], S)
    with pytest.raises(InvalidReference):
        context_derefpath(context, ["f"], S)


def test_reserved_names() -> None:
    assert [reserved("/folder", name) for name in PYLIGHTNIX_RESERVED] == [f"/folder/{name}" for name in PYLIGHTNIX_RESERVED]
    with pytest.raises(AssertionError, match=r"context\.json"):
        reserved("/folder", "out.txt")


def test_what_comes_back_from_json_unchanged() -> None:
    value = {"a": [1, None, {"b": "text"}], "dref": DRef("dref:x")}
    copy = assert_serializable(value)
    assert copy == value
    assert copy is not value
    assert type(copy["dref"]) is str
    assert assert_serializable([1.5]) == [1.5]
    assert assert_valid_dict(value, "value") is value


@pytest.mark.parametrize("value", [(1, 2), {"a": {1}}, {1: "a"}, {"a": b""}])
def test_what_would_come_back_changed(value: Any) -> None:
    with pytest.raises(InvalidConfig, match="my argument"):
        assert_serializable(value, "my argument")
    with pytest.raises(AssertionError, match="my argument"):
        assert_valid_dict(value, "my argument")


def test_a_derivation_from_nowhere_is_refused_by_its_kind(S: StorageSettings) -> None:
    with pytest.raises(InvalidConfig):
        assert_valid_dict("text", "d")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        instantiate(lambda r: mkdrv(mkconfig({"below": f"dref:{'0' * 32}-x"}), match_all, refuses, r), S=S)


# --- what lies in the store -----------------------------------------------------------------------------


def test_one_context_reaches_dependencies_at_any_depth(S: StorageSettings) -> None:
    def chained(r: Registry) -> DRef:
        below: Any = 0
        for depth in range(12):
            below = stage(r, f"level{depth}", below=below, depth=depth)
        return DRef(below)

    rref = realize1(instantiate(chained, S=S))
    lens, attrs = mklens(rref, S=S), realizeU(instantiate(chained, S=S))
    for depth in reversed(range(12)):
        assert (lens.depth.val, attrs.depth) == (depth, depth)
        assert attrs._rref == lens.rref
        lens, attrs = lens.below, attrs.below
    assert (lens.val, attrs) == (0, 0)
    assert len(rrefctx(rref, S)) == 11


def test_what_is_realized_cannot_be_changed_and_runs_if_it_could_run(S: StorageSettings) -> None:
    def realizer(b: Build) -> None:
        folder = build_outpath(b)
        os.mkdir(f"{folder}/sub")
        for name, mode in (("run", 0o755), ("sub/plain", 0o644)):
            with open(f"{folder}/{name}", "w") as file:
                file.write("#!/bin/sh\n")
            os.chmod(f"{folder}/{name}", mode)

    folder = rref2path(realize1(instantiate(stage, S=S, realizer=build_wrapper(realizer))), S)
    modes = {name: stat.S_IMODE(os.stat(os.path.join(folder, name)).st_mode) for name in ("", "sub", "run", "sub/plain")}
    assert modes == {"": 0o555, "sub": 0o555, "run": 0o555, "sub/plain": 0o444}
    if not AS_ROOT:  # whom no mode keeps out
        with pytest.raises(OSError, match="denied"):
            open(f"{folder}/more", "w").close()
        with pytest.raises(OSError, match="denied"):
            os.remove(f"{folder}/sub/plain")


def test_a_leaf_is_one_realization_wherever_it_stands(S: StorageSettings) -> None:
    alone = realize1(instantiate(stage, S=S, name="leaf"))
    for name in ("one", "other"):
        above = realize1(instantiate(lambda r, name=name: stage(r, name, leaf=stage(r, "leaf", realizer=refuses)), S=S))
        assert [*rrefctx(above, S).values()] == [[alone]]
    assert rrefctx(alone, S) == {}
