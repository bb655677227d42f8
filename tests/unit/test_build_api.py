from __future__ import annotations

import os
import pickle
from typing import Any, Optional

import pytest
from tests.stores import output, stage, writes

from pylightnix import (
    Context,
    DRef,
    Output,
    Path,
    Registry,
    StorageSettings,
    fstmpdir,
    instantiate,
    match_latest,
    match_some,
    mkconfig,
    mkdrv,
    mkregistry,
    realize1,
    realizeMany,
    rref2path,
    rrefbstart,
    rrefbstop,
    selfref,
)
from pylightnix.build import (
    Build,
    build_cattrs,
    build_config,
    build_context,
    build_deref,
    build_deref_,
    build_environ,
    build_markstart,
    build_markstop,
    build_markstop_noexcept,
    build_name,
    build_outpath,
    build_outpaths,
    build_path,
    build_paths,
    build_wrapper,
    build_wrapper_,
    mkbuildargs,
)
from pylightnix.codekey import pyobjhash
from pylightnix.errors import (
    AmbiguousMatch,
    BuildError,
    InvalidOutput,
    InvalidReference,
    MissingDerivation,
    Misuse,
    PromiseException,
)
from pylightnix.outputs import output_realizer, output_validate
from pylightnix.timestamps import parsetime

pytestmark = pytest.mark.language


def build(S: StorageSettings, f: Any, config: Optional[dict[str, Any]] = None, *, realizer: Any = None, **wrapping: Any) -> Any:
    """Realize one derivation whose function is `f`, and return its realization."""

    def main(r: Registry) -> DRef:
        return mkdrv(mkconfig(config or {}), match_latest(), realizer or build_wrapper(f, **wrapping), r)

    return realize1(instantiate(main, S=S))


def write(folder: str, name: str, text: str = "") -> None:
    with open(os.path.join(folder, name), "w") as file:
        file.write(text)


def names(folder: str) -> set[str]:
    return set(os.listdir(folder))


def lone_build(S: StorageSettings, config: dict[str, Any], context: Optional[Context] = None) -> Build:
    """A build outside of any realizer, as the REPL has it."""
    dref = mkdrv(mkconfig(config), match_latest(), writes(), mkregistry(S))
    return Build(mkbuildargs(S, dref, context or {}, "AUTO", "AUTO", {}, {"x": 1}))


# --- realizers ----------------------------------------------------------------------------------------


def test_one_output_with_both_stamps(S: StorageSettings) -> None:
    rref = build(S, lambda b: write(build_outpath(b), "a"))
    assert names(rref2path(rref, S)) == {"a", "context.json", "__buildstart__.txt", "__buildstop__.txt"}
    start, stop = (parsetime(text or "") for text in (rrefbstart(rref, S), rrefbstop(rref, S)))
    assert start is not None
    assert stop is not None
    assert start <= stop


def test_stamps_are_given_or_left_out(S: StorageSettings) -> None:
    rref = build(S, lambda b: None, starttime="long ago", stoptime=None)
    assert (rrefbstart(rref, S), rrefbstop(rref, S)) == ("long ago", None)


def test_stamps_are_no_part_of_the_realization(S: StorageSettings) -> None:
    assert build(S, lambda b: None, starttime="a") == build(S, lambda b: None, starttime="b", stoptime=None)


def test_several_outputs(S: StorageSettings) -> None:
    def f(b: Build) -> None:
        for i, folder in enumerate(build_outpaths(b)):
            write(folder, "n", str(i))

    def main(r: Registry) -> DRef:
        return mkdrv(mkconfig({}), match_some(3), build_wrapper(f, nouts=3), r)

    assert len(realizeMany(instantiate(main, S=S))) == 3


def test_function_opens_its_outputs_itself(S: StorageSettings) -> None:
    def f(b: Build) -> None:
        with pytest.raises(Misuse, match="no outputs yet"):
            build_outpaths(b)
        [folder] = build_markstart(b, 1)
        write(folder, "a")
        with pytest.raises(Misuse, match="opened before"):
            build_markstart(b, 1)

    assert "a" in names(rref2path(build(S, f, nouts=None), S))


def test_forgotten_outputs_are_refused(S: StorageSettings) -> None:
    with pytest.raises(Misuse, match="no outputs yet"):
        build(S, lambda b: None, nouts=None)


@pytest.mark.parametrize("nouts", [0, -1])
def test_number_of_outputs_is_checked(S: StorageSettings, nouts: int) -> None:
    with pytest.raises(BuildError) as raised:
        build(S, lambda b: None, nouts=nouts)
    assert isinstance(raised.value.exception, AssertionError)


def test_outputs_lie_in_the_build_folder(S: StorageSettings) -> None:
    def f(b: Build) -> None:
        assert b.S is not None
        assert os.path.dirname(build_outpath(b)) == fstmpdir(b.S) == b.S.tmpdir != fstmpdir(S)
        assert os.path.basename(build_outpath(b)).startswith("out-")

    build(S, f)


def test_failure_keeps_the_outputs_and_stamps_the_stop(S: StorageSettings) -> None:
    def f(b: Build) -> None:
        write(build_outpath(b), "half", "done")
        raise ValueError("boom")

    with pytest.raises(BuildError, match="ValueError: boom") as raised:
        build(S, f)
    error = raised.value
    assert isinstance(error.exception, ValueError)
    assert error.__cause__ is error.exception
    [kept] = error.outpaths
    assert names(kept) == {"half", "__buildstart__.txt", "__buildstop__.txt"}


def test_failure_before_any_output(S: StorageSettings) -> None:
    def f(b: Build) -> None:
        raise ValueError("boom")

    with pytest.raises(BuildError) as raised:
        build(S, f, nouts=None)
    assert raised.value.outpaths == []


def test_keyboard_interrupt_is_not_wrapped(S: StorageSettings) -> None:
    def f(b: Build) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(S, f)


def test_broken_promise_is_raised_as_it_is(S: StorageSettings) -> None:
    config = {"kept": [selfref, "a"], "broken": {"deep": [[selfref, "b", "c"]]}}
    with pytest.raises(PromiseException) as raised:
        build(S, lambda b: write(build_outpath(b), "a"), config)
    [(folder, selfpath)] = raised.value.failed
    assert selfpath == [selfref, "b", "c"]
    assert "out-" in folder


def test_realizer_holds_its_function_and_no_config() -> None:
    one, other = build_wrapper(build_name), build_wrapper(build_name)
    assert one.__wrapped__ is build_name  # type: ignore[attr-defined]
    assert one == other
    assert pickle.dumps(one) == pickle.dumps(other)
    assert pickle.loads(pickle.dumps(one)) == one
    assert pyobjhash([one]) == pyobjhash([build_name])


class Counting(Build):
    def __init__(self, ba: Any) -> None:
        super().__init__(ba)
        self.count = 41


def test_build_of_a_class_of_ones_own(S: StorageSettings) -> None:
    def f(b: Counting) -> None:
        write(build_outpath(b), "n", str(b.count + 1))

    rref = build(S, None, realizer=build_wrapper_(f, Counting))
    with open(os.path.join(rref2path(rref, S), "n")) as file:
        assert file.read() == "42"


# --- outside of a realizer ------------------------------------------------------------------------------


def test_build_has_its_arguments(S: StorageSettings) -> None:
    b = lone_build(S, {"name": "x"})
    assert (b.S, b.context, b.starttime, b.stoptime, b.iarg, b.rarg) == (S, {}, "AUTO", "AUTO", {}, {"x": 1})
    assert (b.outpaths, b.cattrs_cache) == (None, None)
    assert build_name(b) == "x"
    assert build_context(b) is b.context


def test_arguments_need_a_derivation_in_the_store(S: StorageSettings) -> None:
    with pytest.raises(MissingDerivation):
        mkbuildargs(S, DRef("dref:" + "0" * 32 + "-x"), {}, None, None, {}, {})


def test_stop_without_outputs_does_nothing(S: StorageSettings) -> None:
    build_markstop(lone_build(S, {}))


def test_stop_in_an_output_that_is_gone(S: StorageSettings) -> None:
    b = lone_build(S, {})
    os.rename(build_markstart(b, 1)[0], os.path.join(fstmpdir(S), "elsewhere"))
    with pytest.raises(FileNotFoundError):
        build_markstop(b)
    build_markstop_noexcept(b)


def test_the_output_is_refused_when_there_are_two(S: StorageSettings) -> None:
    b = lone_build(S, {"a": [selfref, "x"]})
    build_markstart(b, 2)
    with pytest.raises(Misuse, match="2 outputs"):
        build_outpath(b)
    with pytest.raises(Misuse, match="2 outputs"):
        build_path(b, build_config(b).val["a"])
    assert build_paths(b, [selfref, "x"]) == [os.path.join(folder, "x") for folder in build_outpaths(b)]


def test_config_is_resolved_and_a_copy(S: StorageSettings) -> None:
    b = lone_build(S, {"a": {"b": [selfref, "x"]}})
    build_config(b).val["a"]["b"] = 1
    assert build_config(b).val["a"]["b"] == [b.dref, "x"]


def test_config_attributes_are_one_object_to_park_values_in(S: StorageSettings) -> None:
    b = lone_build(S, {"a": 1})
    build_cattrs(b).parked = 2
    assert (build_cattrs(b).a, build_cattrs(b).parked) == (1, 2)


# --- dependencies ---------------------------------------------------------------------------------------


def test_dependencies_at_any_distance(S: StorageSettings) -> None:
    def f(b: Build) -> None:
        below, lowest = build_config(b).val["below"], None
        assert build_deref_(b, below) == [build_deref(b, below)]
        assert build_path(b, [below, "out.txt"]) == os.path.join(rref2path(build_deref(b, below), S), "out.txt")
        assert build_path(b, [below]) == rref2path(build_deref(b, below), S)
        for dref in build_context(b):
            lowest = dref if dref != below else lowest
        assert lowest is not None
        with open(build_path(b, [lowest, "out.txt"])) as file:
            assert file.read() == "lowest"

    def main(r: Registry) -> DRef:
        below = stage(r, "below", dep=stage(r, "lowest"))
        return mkdrv(mkconfig({"below": below}), match_latest(), build_wrapper(f), r)

    realize1(instantiate(main, S=S))


def test_several_realizations_of_a_dependency(S: StorageSettings) -> None:
    def f(b: Build) -> None:
        below = build_config(b).val["below"]
        assert len(build_deref_(b, below)) == len(build_paths(b, [below, "n"])) == 2
        with pytest.raises(AmbiguousMatch, match="build_paths"):
            build_deref(b, below)
        with pytest.raises(AmbiguousMatch):
            build_path(b, [below, "n"])
        assert build_environ(b, {})["below_n"] == str([below, "n"])

    def main(r: Registry) -> DRef:
        below = mkdrv(mkconfig({}), match_some(2), writes({"n": "1"}, {"n": "2"}), r)
        return mkdrv(mkconfig({"below": below, "below_n": [below, "n"]}), match_latest(), build_wrapper(f), r)

    realize1(instantiate(main, S=S))


def test_stranger_is_no_dependency(S: StorageSettings) -> None:
    b = lone_build(S, {})
    stranger = DRef("dref:" + "0" * 32 + "-x")
    for ask in (lambda: build_deref(b, stranger), lambda: build_path(b, [stranger, "x"])):
        with pytest.raises(Misuse, match="not among the dependencies"):
            ask()


@pytest.mark.parametrize("refpath", [[], ["x"], "x", ["dref:x", "y"], None, [3]])
def test_malformed_refpath_is_refused(S: StorageSettings, refpath: Any) -> None:
    with pytest.raises(InvalidReference):
        build_path(lone_build(S, {}), refpath)


def test_environment_has_config_items_as_text(S: StorageSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROM_OUTSIDE", "1")
    b = lone_build(S, {"n": 3, "text": "t", "out": [selfref, "x"]})
    build_markstart(b, 1)
    given = {"A": "b"}
    assert build_environ(b, given) == {"A": "b", "n": "3", "text": "t", "out": os.path.join(build_outpath(b), "x")}
    assert given == {"A": "b"}
    assert build_environ(b)["FROM_OUTSIDE"] == "1"


# --- outputs and promises -------------------------------------------------------------------------------


def validated(S: StorageSettings, folder: Path, *selfpath: str) -> list[Path]:
    b = lone_build(S, {"promise": [selfref, *selfpath]})
    return output_validate(b.dref, Output([folder]), S)


def test_promise_is_kept_by_anything_that_is_there(S: StorageSettings) -> None:
    folder = output(S, {"file": "", "dir/file": ""})
    os.symlink("nowhere", os.path.join(folder, "link"))
    for selfpath in (["file"], ["dir"], ["dir", "file"], ["link"], []):
        assert validated(S, folder, *selfpath) == [folder]


def test_promise_is_not_kept_outside_of_the_output(S: StorageSettings) -> None:
    folder = output(S, {"dir/file": ""})
    beside = os.path.basename(output(S, {"x": ""}))
    for selfpath in (["missing"], ["..", beside], ["dir", "..", "..", beside, "x"], ["/etc/passwd"]):
        with pytest.raises(PromiseException):
            validated(S, folder, *selfpath)


def test_every_output_and_every_promise_is_looked_at(S: StorageSettings) -> None:
    b = lone_build(S, {"a": [selfref, "a"], "b": [selfref, "b"]})
    folders = [output(S, {"a": ""}), output(S, {"b": ""})]
    with pytest.raises(PromiseException) as raised:
        output_validate(b.dref, Output(folders), S)
    assert raised.value.failed == [(folders[0], [selfref, "b"]), (folders[1], [selfref, "a"])]


def test_realizer_of_outputs(S: StorageSettings) -> None:
    def f(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> Output[Path]:
        return Output([output(S, {"a": "x"})])

    assert "a" in names(rref2path(build(S, None, realizer=output_realizer(f)), S))
    with pytest.raises(PromiseException):
        build(S, None, {"b": [selfref, "b"]}, realizer=output_realizer(f))
    assert output_realizer(f).__wrapped__ is f  # type: ignore[attr-defined]


def test_realizer_of_outputs_that_returns_a_list(S: StorageSettings) -> None:
    with pytest.raises(InvalidOutput, match="expected an Output"):
        build(S, None, realizer=output_realizer(writes()))  # type: ignore[arg-type]
