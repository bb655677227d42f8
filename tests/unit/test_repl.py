"""The REPL: being the realizer oneself, with realizers that fail, stores by environment, and many threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
from tests.client.daemons import end_daemon, short_store, start_daemon
from tests.stores import Numbered, check_tmp, in_child, output, refuses, stage, text_of, write_files

import pylightnix.build
from pylightnix import (
    AmbiguousMatch,
    Build,
    BuildError,
    Context,
    DRef,
    MissingRealization,
    Misuse,
    Path,
    PromiseException,
    Registry,
    ReplHelper,
    RRef,
    StorageSettings,
    allrrefs,
    build_markstart,
    build_outpath,
    build_wrapper,
    drefrrefs,
    fsinit,
    fstmpdir,
    instantiate,
    match_latest,
    mkconfig,
    mkdrv,
    realize1,
    repl,
    repl_build,
    repl_buildargs,
    repl_cancel,
    repl_cancelBuild,
    repl_continue,
    repl_continue1,
    repl_continueBuild,
    repl_continueMany,
    repl_realize,
    repl_result,
    repl_rref,
    repl_rrefs,
    rref2dref,
    selfref,
)

pytestmark = pytest.mark.language


def two(r: Registry, **options: Any) -> DRef:
    return stage(r, "top", below=stage(r, "below", **options))


def flaky(failures: int) -> Callable[[Build], None]:
    """Return a function of a build that fails so often before it succeeds."""
    left = [failures]

    def realize(b: Build) -> None:
        write_files(build_outpath(b), {"out.txt": "built"})
        if left[0]:
            left[0] -= 1
            raise ValueError("not yet")

    return realize


def is_paused(rh: ReplHelper) -> bool:
    return rh.gen is not None


def promising(r: Registry) -> DRef:
    return mkdrv(mkconfig({"name": "promising", "out": [selfref, "out.txt"]}), match_latest(), refuses, r)


# --- the way through ----------------------------------------------------------------------------------


def test_it_pauses_before_the_target_and_the_realizer_may_run(S: StorageSettings) -> None:
    rh = repl_realize(instantiate(two, S=S))
    assert rh.dref == rh.result
    assert is_paused(rh)
    assert [rref.rpartition("-")[2] for rrefs in rh.context.values() for rref in rrefs or []] == ["below"]
    assert (repl_result(rh), repl_rrefs(rh), repl_rref(rh)) == (None, None, None)
    result, context = repl_continue()
    assert result == rh.result
    assert not is_paused(rh)
    assert context == rh.context
    assert repl_rref(rh) == realize1(instantiate(two, S=S))
    assert repl_result(rh) == repl_rrefs(rh) == [repl_rref(rh)]


def test_outputs_made_by_hand(S: StorageSettings) -> None:
    rh = repl_realize(instantiate(stage, S=S, realizer=refuses))
    rref = repl_continue1(out_paths=[output(rh.S or S, {"out.txt": "by hand"})])
    assert rref is not None
    assert text_of(rref, S) == "by hand"
    assert rref2dref(rref) == rh.dref
    check_tmp(S)


def test_several_outputs_made_by_hand(S: StorageSettings) -> None:
    rh = repl_realize(instantiate(stage, S=S, realizer=refuses))
    rrefs = repl_continueMany([output(S, {"out.txt": text}) for text in "ab"])
    assert rrefs == sorted(drefrrefs(DRef(rh.result), S))
    assert len(rrefs) == 2
    with pytest.raises(AmbiguousMatch):
        repl_rref(rh)


def test_realizations_that_are_there_already(S: StorageSettings) -> None:
    old = realize1(instantiate(stage, S=S, realizer=Numbered()))
    repl_realize(instantiate(stage, S=S, realizer=refuses, matcher=lambda S, rrefs: None))
    assert repl_continue1(out_rrefs=[old]) == old


def test_outputs_and_realizations_at_once_are_refused(S: StorageSettings) -> None:
    rh = repl_realize(instantiate(stage, S=S))
    with pytest.raises(AssertionError, match="both out_paths and out_rrefs"):
        repl_continue([], [])
    assert is_paused(rh)


def test_pauses_where_it_is_told(S: StorageSettings) -> None:
    result, closure = instantiate(two, S=S)
    below = closure.derivations[0].dref
    rh = repl_realize((result, closure), force_interrupt=[below, result])
    assert rh.dref == below
    assert repl_continue1() is None
    assert rh.dref == result
    assert repl_continueMany() == repl_rrefs(rh)


def test_never_pausing(S: StorageSettings) -> None:
    rh = repl_realize(instantiate(two, S=S), force_interrupt=False)
    assert not is_paused(rh)
    assert repl_rref(rh) == realize1(instantiate(two, S=S))


def test_arguments_of_the_realizer(S: StorageSettings) -> None:
    result, closure = instantiate(stage, S=S)
    rh = repl_realize(closure, realize_args={result: {"x": 1}})
    assert rh.rarg == {"x": 1}
    assert rh.drv == closure.derivations[0]
    assert repl_buildargs().rarg == {"x": 1}


@pytest.mark.parametrize("force_interrupt", ["all", None, 1.5])
def test_another_type_of_where_to_pause(S: StorageSettings, force_interrupt: Any) -> None:
    with pytest.raises(AssertionError, match="force_interrupt expects"):
        repl_realize(instantiate(stage, S=S), force_interrupt=force_interrupt)


def test_results_of_any_shape(S: StorageSettings) -> None:
    def main(r: Registry) -> Any:
        a, b = stage(r, "a"), stage(r, "b")
        return {"pair": (a, [b, "text"]), "a": a}

    rh = repl_realize(instantiate(main, S=S))
    repl_continue()
    with pytest.raises(Misuse, match="one DRef"):
        repl_continue1()
    repl_continue()
    (a,), (b,) = (drefrrefs(d.dref, S) for d in instantiate(main, S=S)[1].derivations)
    assert repl_result(rh) == {"pair": ([a], [[b], "text"]), "a": [a]}


def test_giving_up(S: StorageSettings) -> None:
    rh = repl_realize(instantiate(two, S=S))
    repl_cancel()
    assert not is_paused(rh)
    assert repl_result(rh) is None
    assert len(list(allrrefs(S))) == 1
    check_tmp(S)
    for call in (repl_cancel, repl_continue, repl_build):
        with pytest.raises(AssertionError, match="not paused: it was cancelled"):
            call()


def test_a_helper_made_by_hand(S: StorageSettings) -> None:
    rh = ReplHelper(None, "nothing")
    with pytest.raises(AssertionError, match=repl.ERR_INACTIVE_RH):
        repl_continue(rh=rh)
    with pytest.raises(AssertionError, match="expected a ReplHelper"):
        repl_continue(rh="rh")  # type: ignore[arg-type]


# --- with the Build API -------------------------------------------------------------------------------


def test_a_build_of_ones_own(S: StorageSettings) -> None:
    rh = repl_realize(instantiate(promising, S=S))
    b = repl_build()
    assert b.dref == rh.dref
    assert build_outpath(b).startswith(fstmpdir(rh.S))
    write_files(build_outpath(b), {"out.txt": "mine"})
    rref = repl_continueBuild(b)
    assert rref is not None
    assert text_of(rref, S) == "mine"
    assert text_of(rref, S, "__buildstart__.txt") <= text_of(rref, S, "__buildstop__.txt")
    check_tmp(S)


def test_d33_promises_are_checked_and_can_still_be_kept(S: StorageSettings) -> None:
    repl_realize(instantiate(promising, S=S))
    b = repl_build()
    with pytest.raises(PromiseException, match=r"out\.txt"):
        repl_continueBuild(b)
    write_files(build_outpath(b), {"out.txt": "mine"})
    assert repl_continueBuild(b) is not None


def test_a_build_that_is_given_up_leaves_nothing(S: StorageSettings) -> None:
    rh = repl_realize(instantiate(promising, S=S))
    b = repl_build(nouts=2)
    repl_cancelBuild(b)
    assert not is_paused(rh)
    assert not any(os.path.exists(path) for path in (b.outpaths.val if b.outpaths else []))
    check_tmp(S)


def test_a_build_without_outputs_yet(S: StorageSettings) -> None:
    repl_realize(instantiate(promising, S=S))
    b = repl_build(nouts=None)
    assert b.outpaths is None
    build_markstart(b, 1)
    repl_cancelBuild(b)


def test_a_build_of_something_else_is_refused(S: StorageSettings) -> None:
    result, closure = instantiate(two, S=S)
    repl_realize(closure, [closure.derivations[0].dref, result])
    b = repl_build()
    repl_continue()
    with pytest.raises(Misuse, match="this build is of"):
        repl_continueBuild(b)


def test_the_functions_of_builds_are_found_in_both_modules() -> None:
    for name in ("repl_build", "repl_buildargs", "repl_cancelBuild", "repl_continueBuild"):
        assert getattr(pylightnix.build, name) is getattr(repl, name) is getattr(pylightnix, name)
    assert not hasattr(pylightnix.build, "repl_nothing")


# --- failures -----------------------------------------------------------------------------------------


@pytest.mark.embedded_only("the realizer counts its failures in memory")
def test_d33_a_realizer_that_fails_leaves_the_helper_where_it_was(S: StorageSettings) -> None:
    rh = repl_realize(instantiate(stage, S=S, realizer=build_wrapper(flaky(2))))
    for _ in range(2):
        with pytest.raises(BuildError, match="not yet") as failed:
            repl_continue()
        assert isinstance(failed.value.exception, ValueError)
        assert any("repl_continue() runs its realizer again" in note for note in failed.value.__notes__)
        assert is_paused(rh)
    rref = repl_continue1()
    assert rref is not None
    assert text_of(rref, S) == "built"


def test_a_failure_below_pauses_there(S: StorageSettings) -> None:
    closure = instantiate(two, S=S, realizer=build_wrapper(flaky(9)))
    with pytest.raises(BuildError):
        repl_realize(closure)
    rh = repl.PYLIGHTNIX_REPL_HELPER
    assert rh is not None
    assert rh.dref == closure[1].derivations[0].dref
    assert repl_continue1(out_paths=[output(rh.S or S, {"out.txt": "by hand"})]) is None
    assert rh.dref == closure[0]
    assert repl_continue1() is not None


def test_a_matcher_that_refuses_can_be_answered_for(S: StorageSettings) -> None:
    rh = repl_realize(instantiate(stage, S=S, matcher=lambda S, rrefs: None))
    with pytest.raises(AssertionError, match="accepts none"):
        repl_continue()
    (rref,) = drefrrefs(DRef(rh.result), S)
    assert repl_continue1(out_rrefs=[rref]) == rref


@pytest.mark.embedded_only("the interrupt is of the process that asks")
def test_an_interrupt_can_be_gone_on_from(S: StorageSettings) -> None:
    interrupts = [KeyboardInterrupt()]

    def interrupted(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Path]:
        made = output(S)
        while interrupts:
            raise interrupts.pop()
        return [made]

    repl_realize(instantiate(stage, S=S, realizer=interrupted))
    with pytest.raises(KeyboardInterrupt):
        repl_continue()
    assert repl_continue1() is not None
    check_tmp(S)


def test_a_wrong_answer_leaves_the_helper_where_it_was(S: StorageSettings) -> None:
    rh = repl_realize(instantiate(stage, S=S))
    with pytest.raises(Misuse, match="is to be settled with"):
        repl_continue(out_rrefs=[RRef("nonsense")])
    with pytest.raises(Misuse, match="expects the folder"):
        repl_continue(out_paths=[Path("/nonexistent")])
    assert is_paused(rh)
    assert repl_continue1() is not None


@pytest.mark.embedded_only("it makes the store anew")
def test_what_was_removed_during_a_pause_ends_it_and_the_helper_says_so(S: StorageSettings) -> None:
    rh = repl_realize(instantiate(two, S=S))
    fsinit(S, remove_existing=True, use_as_default=False)
    with pytest.raises(MissingRealization):
        repl_continue()
    assert not is_paused(rh)
    with pytest.raises(AssertionError, match=r"it ended with MissingRealization.*repl_realize"):
        repl_continue()


@pytest.mark.embedded_only("what travels knows no helper of the caller's")
def test_continuing_below_itself_is_refused(S: StorageSettings) -> None:
    def realizer(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Path]:
        repl_continue()
        return [output(S)]

    repl_realize(instantiate(stage, S=S, realizer=realizer))
    with pytest.raises(Misuse, match="it is at work"):
        repl_continue()
    repl_cancel()


# --- which store, which helper ------------------------------------------------------------------------


def test_d33_a_store_named_by_the_environment(S: StorageSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYLIGHTNIX_ROOT", str(S.root))
    rh = repl_realize(instantiate(promising))
    b = repl_build()
    write_files(build_outpath(b), {"out.txt": "mine"})
    monkeypatch.setenv("PYLIGHTNIX_ROOT", "/nonexistent/another")
    rref = repl_continueBuild(b)
    assert rref is not None
    assert rh.S is not None
    assert text_of(rref, S) == "mine"


def test_d33_each_thread_has_a_helper_of_its_own(S: StorageSettings) -> None:
    mine = repl_realize(instantiate(lambda r: stage(r, "mine"), S=S))
    found: list[Any] = []

    def other() -> None:
        found.append(repl.PYLIGHTNIX_REPL_HELPER)
        with pytest.raises(AssertionError, match="no REPL helper yet"):
            repl_continue()
        found.append(repl_realize(instantiate(lambda r: stage(r, "other"), S=S)))
        found.append(repl_continue1(rh=mine))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert found[0] is None
    assert repl.PYLIGHTNIX_REPL_HELPER is mine
    assert repl_rref(mine) == found[2]
    repl_cancel(found[1])


def test_a_paused_helper_keeps_nobody_out(S: StorageSettings) -> None:
    rh = repl_realize(instantiate(two, S=S))
    b = repl_build()
    write_files(build_outpath(b), {"out.txt": "slowly"})
    in_child(lambda: realize1(instantiate(lambda r: stage(r, "another"), S=S)))
    in_child(lambda: realize1(instantiate(two, S=S)))
    rref = repl_continueBuild(b)
    assert rref == repl_rref(rh)
    assert rref is not None
    assert text_of(rref, S) == "slowly"


def test_a_daemon_that_takes_the_store_during_a_pause_goes_on() -> None:
    """What was made by hand meanwhile is not lost."""
    with short_store() as S:
        rh = repl_realize(instantiate(two, S=S))
        b = repl_build()
        write_files(build_outpath(b), {"out.txt": "slowly"})
        daemon = start_daemon(str(S.root), "--drain", "1")
        try:
            rref = repl_continueBuild(b)
            assert rref == repl_rref(rh)
            assert list(drefrrefs(DRef(rh.result), S)) == [rref], "by the daemon"
        finally:
            end_daemon(daemon)
        assert rref is not None
        assert text_of(rref, S) == "slowly"
