"""Failed builds as realizations."""

from __future__ import annotations

import os
import pickle
import socket
from pathlib import Path
from typing import Any, Optional

import pytest
from tests.stores import Notes, check_tmp, check_usable, output, text_of, writes

from pylightnix import (
    AmbiguousMatch,
    Build,
    DRef,
    InvalidOutput,
    Misuse,
    NotRealized,
    Output,
    PromiseException,
    Registry,
    RRef,
    StorageSettings,
    StoreFull,
    allrrefs,
    build_outpath,
    build_outpaths,
    build_wrapper,
    drefrrefs,
    instantiate,
    match_latest,
    match_only,
    mkconfig,
    mkdrv,
    realize,
    realizeMany,
    rref2path,
    selfref,
)
from pylightnix import Path as PathText
from pylightnix.codekey import pyobjhash
from pylightnix.either import (
    Either,
    either_isLeft,
    either_isRight,
    either_loadR,
    either_matcher,
    either_paths,
    either_realizer,
    either_status,
    either_validate,
    mkdrvE,
    mkleft,
    mkright,
    realizeE,
    realizeManyE,
)

pytestmark = pytest.mark.language


class Switch:
    """A realizer that fails until it is told not to."""

    def __init__(self, error: Exception) -> None:
        self.error: Optional[Exception] = error
        self.runs = 0

    def __call__(self, S: StorageSettings, dref: DRef, context: Any, rarg: Any) -> Output[PathText]:
        self.runs += 1
        if self.error is not None:
            raise self.error
        return Output([output(S, {"out.txt": "good"})])


def takes_all(S: StorageSettings, rrefs: Output[RRef]) -> Optional[Output[RRef]]:
    return Output(sorted(rrefs.val)) if rrefs.val else None


def one(realizer: Any, matcher: Any = None, **config: Any) -> Any:
    return lambda r: mkdrvE(mkconfig({"name": "one", **config}), matcher or match_latest(), realizer, r)


def test_an_either_has_a_side() -> None:
    right = mkright(Output([RRef("x")]))
    left: Either[RRef] = Either(left=([RRef("y")], "why"))
    assert (either_isRight(right), either_isLeft(right), either_status(right), either_paths(right)) == (True, False, None, ["x"])
    assert (either_isRight(left), either_isLeft(left), either_status(left), either_paths(left)) == (False, True, "why", ["y"])
    assert right == mkright(Output([RRef("x")])) != left
    assert (repr(right), repr(left)) == ("Either(right=Output(['x']))", "Either(left=(['y'], 'why'))")
    with pytest.raises(AssertionError, match="found neither"):
        Either()


def test_a_left_output_says_why_and_only_once(tmp_path: Path) -> None:
    folder = PathText(tmp_path)
    assert either_paths(mkleft([folder], "no luck")) == [folder]
    assert (tmp_path / "either_status.txt").read_text() == "no luck"
    with pytest.raises(AssertionError, match="already"):
        mkleft([folder], "again")
    assert (tmp_path / "either_status.txt").read_text() == "no luck"


def test_success_is_right(S: StorageSettings) -> None:
    found = realizeE(instantiate(one(writes({"out.txt": "x"}), out=[selfref, "out.txt"]), S=S))
    assert either_isRight(found)
    assert text_of(either_paths(found)[0], S) == "x"
    assert realizeManyE(instantiate(one(writes({"out.txt": "x"}), out=[selfref, "out.txt"]), S=S)) == found


@pytest.mark.embedded_only("the realizer counts its runs in memory")
def test_d30_failure_is_left_is_remembered_and_gives_way_to_success(S: StorageSettings) -> None:
    switch = Switch(ValueError("no luck"))
    plan = instantiate(one(switch, out=[selfref, "out.txt"]), S=S)
    failed = realizeE(plan)
    assert either_isLeft(failed)
    status = either_status(failed) or ""
    assert status.startswith("Traceback")
    assert status.rstrip().endswith("ValueError: no luck")
    assert realizeE(plan) == failed
    assert switch.runs == 1

    switch.error = None
    good = realizeE(plan, force_rebuild=True)
    assert either_isRight(good)
    assert realizeE(plan) == good
    assert switch.runs == 2

    switch.error = ValueError("worse luck")
    assert realizeE(plan, force_rebuild=True) == good, "a failure does not count beside a success"
    assert switch.runs == 3
    assert len(drefrrefs(DRef(plan[0]), S)) == 3
    check_tmp(S)


def test_failures_of_different_kinds_are_told_together(S: StorageSettings) -> None:
    switch = Switch(ValueError("first"))
    plan = instantiate(one(switch), S=S)
    realizeE(plan)
    switch.error = ValueError("second")
    both = realizeE(plan, force_rebuild=True)
    assert either_isLeft(both)
    assert len(either_paths(both)) == 2
    assert "first" in (either_status(both) or "")
    assert "second" in (either_status(both) or "")


@pytest.mark.parametrize("matcher", [match_latest(), match_only(), takes_all])
def test_matchers_of_both_kinds_see_what_succeeded(S: StorageSettings, matcher: Any) -> None:
    switch = Switch(ValueError("first"))
    plan = instantiate(one(switch, matcher), S=S)
    realizeE(plan)
    switch.error = None
    found = realizeManyE(plan, force_rebuild=True)
    assert (either_isRight(found), len(either_paths(found))) == (True, 1)
    assert either_matcher(matcher)(S, []) is None


def _fails_halfway(b: Build) -> None:
    with open(os.path.join(build_outpaths(b)[0], "half.txt"), "w") as file:
        file.write("half")
    raise RuntimeError("halfway")


def test_d31_wrapped_build_functions_keep_what_they_left(S: StorageSettings) -> None:
    found = realizeE(instantiate(one(build_wrapper(_fails_halfway, nouts=2)), S=S))
    assert either_isLeft(found)
    (rref,) = either_paths(found)  # the other output is empty
    assert text_of(rref, S, "half.txt") == "half"
    status = either_status(found) or ""
    assert "in _fails_halfway" in status
    assert "BuildError" not in status
    assert sorted(os.listdir(rref2path(rref, S))) == [
        "__buildstart__.txt",
        "__buildstop__.txt",
        "context.json",
        "either_status.txt",
        "half.txt",
    ]


def _breaks_promise(b: Build) -> None:
    with open(os.path.join(build_outpath(b), "other.txt"), "w") as file:
        file.write("other")


@pytest.mark.parametrize("realizer", [build_wrapper(_breaks_promise), writes({"other.txt": "other"}, {"out.txt": "good"})])
def test_broken_promises_are_failures(S: StorageSettings, realizer: Any) -> None:
    found = realizeE(instantiate(one(realizer, out=[selfref, "out.txt"]), S=S))
    assert either_isLeft(found)
    assert "PromiseException" in (either_status(found) or "")
    assert [text_of(rref, S, "other.txt") for rref in either_paths(found) if os.path.exists(rref2path(rref, S) + "/other.txt")] == ["other"]


def _leaves_a_socket(b: Build) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        folder = os.open(build_outpath(b), os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{folder}/s")  # the path itself may be too long for a socket
        os.close(folder)
    raise RuntimeError("crashed")


def _leaves_status(b: Build) -> None:
    with open(os.path.join(build_outpath(b), "either_status.txt"), "w") as file:
        file.write("mine")
    raise RuntimeError("crashed")


@pytest.mark.parametrize("f", [_leaves_a_socket, _leaves_status])
def test_what_a_store_cannot_take_does_not_hide_the_failure(S: StorageSettings, f: Any) -> None:
    found = realizeE(instantiate(one(build_wrapper(f)), S=S))
    assert "crashed" in (either_status(found) or "")
    assert sorted(os.listdir(rref2path(either_paths(found)[0], S))) == ["context.json", "either_status.txt"]
    check_tmp(S)


def test_what_depends_on_a_failure_inherits_it_and_is_not_called(S: StorageSettings) -> None:
    calls = Notes()
    switch = Switch(ValueError("at the bottom"))

    def upper(S: StorageSettings, dref: DRef, context: Any, rarg: Any) -> Output[PathText]:
        calls.append(dref)
        return Output([output(S)])

    def chain(r: Registry) -> DRef:
        low = mkdrvE(mkconfig({"name": "low"}), match_latest(), switch, r)
        middle = mkdrvE(mkconfig({"name": "middle", "low": low}), match_latest(), upper, r)
        return mkdrvE(mkconfig({"name": "high", "of": [middle, low]}), match_latest(), upper, r)

    plan = instantiate(chain, S=S)
    failed = realizeE(plan)
    assert either_isLeft(failed)
    assert (either_status(failed) or "").count("at the bottom") == (either_status(realizeE(plan)) or "").count("at the bottom")
    assert calls == []
    switch.error = None
    low = plan[1].derivations[0].dref
    assert either_isRight(realizeE(plan, force_rebuild=[low]))
    assert len(calls) == 2


def test_dry_runs_build_nothing(S: StorageSettings) -> None:
    switch = Switch(ValueError("no luck"))
    plan = instantiate(one(switch), S=S)
    with pytest.raises(NotRealized):
        realizeE(plan, dry_run=True)
    assert realizeManyE(plan, dry_run=True) == mkright(Output([]))
    assert switch.runs == 0
    failed = realizeE(plan)
    assert realizeE(plan, dry_run=True) == failed


def test_several_successes_are_ambiguous(S: StorageSettings) -> None:
    plan = instantiate(one(writes({"a": "1"}, {"a": "2"}), takes_all), S=S)
    assert len(either_paths(realizeManyE(plan))) == 2
    with pytest.raises(AmbiguousMatch):
        realizeE(plan)


def test_failures_of_the_store_and_interrupts_are_raised(S: StorageSettings) -> None:
    for error in (StoreFull("/somewhere", "testing"), KeyboardInterrupt()):

        def raises(S: StorageSettings, dref: DRef, context: Any, rarg: Any, error: BaseException = error) -> Output[PathText]:
            raise error

        with pytest.raises(type(error)):
            realizeE(instantiate(one(raises), S=S))
    assert list(allrrefs(S)) == []
    check_usable(S)


def test_answers_of_another_type_are_failures(S: StorageSettings) -> None:
    found = realizeE(instantiate(one(lambda *_: 42), S=S))
    assert "returned 42" in (either_status(found) or "")


def test_results_of_other_shapes_are_refused(S: StorageSettings) -> None:
    def two(r: Registry) -> list[DRef]:
        return [one(writes())(r), one(writes(), n=2)(r)]

    with pytest.raises(Misuse):
        realizeManyE(instantiate(two, S=S))


def test_validate(S: StorageSettings) -> None:
    dref = DRef(instantiate(one(writes(), out=[selfref, "out.txt"]), S=S)[0])
    good, bad = output(S), output(S, {"x": ""})
    assert either_validate(dref, mkright(Output([good])), S) == [good]
    with pytest.raises(PromiseException):
        either_validate(dref, mkright(Output([good, bad])), S)
    assert either_validate(dref, mkleft([bad], "why"), S) == [bad]


def test_plain_realizations_are_right(S: StorageSettings) -> None:
    def plain(r: Registry) -> DRef:
        low = mkdrv(mkconfig({"name": "low"}), match_latest(), writes(), r)
        return mkdrvE(mkconfig({"name": "high", "low": low}), match_latest(), writes(), r)

    assert either_isRight(realizeE(instantiate(plain, S=S)))
    assert either_isRight(either_loadR(list(allrrefs(S)), S))
    assert either_isRight(either_loadR([], S))


def test_a_raw_realizer_sees_the_error_of_its_left_dependency_as_files(S: StorageSettings) -> None:
    switch = Switch(ValueError("no luck"))

    def mixed(r: Registry) -> DRef:
        low = mkdrvE(mkconfig({"name": "low"}), match_latest(), switch, r)
        return mkdrv(mkconfig({"name": "high", "low": low}), match_latest(), writes(), r)

    rrefs = realizeMany(instantiate(mixed, S=S))
    assert either_isRight(either_loadR(rrefs, S))


def test_wrappers_travel_and_show_the_code_they_wrap() -> None:
    realizer, matcher = either_realizer(build_wrapper(_fails_halfway)), either_matcher(match_latest(2))
    assert pickle.loads(pickle.dumps(realizer)) == realizer
    assert pickle.loads(pickle.dumps(matcher)) == matcher
    assert pyobjhash([realizer]) == pyobjhash([_fails_halfway])


def test_invalid_outputs_are_errors_of_the_stage(S: StorageSettings, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    plan = instantiate(one(lambda *_: [PathText(tmp_path / "elsewhere")]), S=S)
    with pytest.raises(InvalidOutput):
        realize(plan)
    check_usable(S)
