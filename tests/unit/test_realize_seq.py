"""Realizing in steps: where it pauses, what may be answered, and that a pause holds nothing of the store."""

from __future__ import annotations

import os
from pathlib import Path as FsPath
from typing import Any, Optional

import pytest
from tests.stores import Notes, Numbered, check_tmp, in_child, output, refuses, stage, text_of, writes

from pylightnix import (
    Closure,
    Context,
    DRef,
    InvalidOutput,
    MissingRealization,
    Misuse,
    NotRealized,
    Path,
    RealizeSeqGen,
    Registry,
    RRef,
    StorageSettings,
    allrrefs,
    drefrrefs,
    fsinit,
    fstmpdir,
    instantiate,
    mkrealization,
    realize,
    realize1,
    realizeSeq,
    rref2path,
    rrefctx,
)
from pylightnix.storage import store_layout
from pylightnix.store.locks import exclusive_lock
from pylightnix.store.store import open_store

pytestmark = pytest.mark.language


def chain(r: Registry, **options: Any) -> dict[str, DRef]:
    """a <- b <- c"""
    a = stage(r, "a", **options)
    b = stage(r, "b", below=a, **options)
    return {"a": a, "b": b, "c": stage(r, "c", below=b, **options)}


def closure_of(S: StorageSettings, **options: Any) -> tuple[dict[str, DRef], Closure]:
    result, closure = instantiate(chain, S=S, **options)
    return result, closure


def end(gen: RealizeSeqGen, answer: Any = None) -> Context:
    """Go on to the end, where there must be no pause before it."""
    with pytest.raises(StopIteration) as stop:
        gen.send(answer)
    context: Context = stop.value.value
    return context


def test_without_pauses_it_is_realize(S: StorageSettings) -> None:
    drefs, closure = closure_of(S)
    context = end(realizeSeq(closure))
    assert context == realize(closure)[2]
    assert list(context) == sorted(drefs.values())


def test_a_pause_tells_what_is_to_be_done(S: StorageSettings) -> None:
    drefs, closure = closure_of(S)
    gen = realizeSeq((closure.result, closure), [drefs["b"]], realize_args={drefs["b"]: {"x": 1}})
    settings, dref, context, derivation, rarg = next(gen)
    assert (dref, rarg) == (drefs["b"], {"x": 1})
    assert derivation == closure.derivations[1]
    assert context == {drefs["a"]: list(drefrrefs(drefs["a"], S))}
    assert (settings.root, settings.storage) == (S.root, store_layout(S).storage)
    assert os.listdir(fstmpdir(settings)) == []
    assert set(end(gen, (None, False))) == set(drefs.values())
    check_tmp(S)


def test_it_pauses_before_what_is_realized_already(S: StorageSettings) -> None:
    build = Numbered()
    drefs, closure = closure_of(S, realizer=build)
    realize(closure)
    gen = realizeSeq(closure, [drefs["a"]])
    assert next(gen)[1] == drefs["a"]
    context = end(gen, (None, False))
    assert build.runs[3:] == [drefs["a"], drefs["b"], drefs["c"]], "the realizer runs whatever there is, and what is above follows"
    assert text_of((context[drefs["a"]] or [])[0], S) == "4"


def test_the_context_of_a_pause_reaches_all_the_way_down(S: StorageSettings) -> None:
    drefs, closure = closure_of(S)
    gen = realizeSeq(closure, [drefs["c"]])
    _, _, context, _, _ = next(gen)
    assert set(context) == {drefs["a"], drefs["b"]}
    gen.close()


def test_realizations_that_are_given_count_without_the_matcher(S: StorageSettings) -> None:
    def picky(S: StorageSettings, rrefs: list[RRef]) -> Optional[list[RRef]]:
        raise AssertionError("asked")

    def main(r: Registry) -> dict[str, DRef]:
        below = stage(r, "below", matcher=picky, realizer=refuses)
        return {"below": below, "top": stage(r, "top", below=below)}

    drefs, closure = instantiate(main, S=S)
    mine = mkrealization(drefs["below"], {}, output(S, {"out.txt": "by hand"}), S)
    gen = realizeSeq(closure, [drefs["below"]])
    next(gen)
    context = end(gen, ([mine], False))
    assert context[drefs["below"]] == [mine]
    assert rrefctx((context[drefs["top"]] or [])[0], S) == {drefs["below"]: [mine]}


def test_several_pauses_in_the_order_of_the_plan(S: StorageSettings) -> None:
    drefs, closure = closure_of(S)
    gen = realizeSeq(closure, [drefs["c"], drefs["a"]])
    assert next(gen)[1] == drefs["a"]
    assert gen.send((None, False))[1] == drefs["c"]
    assert set(end(gen, (None, False))) == set(drefs.values())


def test_giving_up_keeps_what_was_finished(S: StorageSettings) -> None:
    drefs, closure = closure_of(S)
    gen = realizeSeq(closure, [drefs["c"]])
    folder = fstmpdir(next(gen)[0])
    assert end(gen, (None, True)) == {}
    assert not os.path.exists(folder)
    assert {rref.rpartition("-")[2] for rref in allrrefs(S)} == {"a", "b"}
    check_tmp(S)


def test_a_pause_that_nobody_answers_leaves_nothing(S: StorageSettings) -> None:
    drefs, closure = closure_of(S)
    gen = realizeSeq(closure, [drefs["a"]])
    next(gen)
    gen.close()
    check_tmp(S)


def test_a_dry_run_pauses_and_builds_nothing(S: StorageSettings) -> None:
    drefs, closure = closure_of(S, realizer=refuses)
    gen = realizeSeq(closure, [drefs["a"]], dry_run=True)
    next(gen)
    assert end(gen, (None, False)) == dict.fromkeys(sorted(drefs.values()))


def test_what_must_be_realized_already_is_not_built_on_request(S: StorageSettings) -> None:
    drefs, closure = closure_of(S, realizer=refuses)
    gen = realizeSeq(closure, [drefs["a"]], assert_realized=[drefs["a"]])
    next(gen)
    with pytest.raises(NotRealized):
        gen.send((None, False))


MADE_UP = RRef("rref:" + "0" * 32 + "-" + "0" * 32 + "-x")


@pytest.mark.parametrize(
    ("answer", "error"),
    [(["rref:nonsense"], Misuse), ([], Misuse), ([MADE_UP], (MissingRealization, Misuse))],
)
def test_realizations_that_cannot_settle_it(S: StorageSettings, answer: list[RRef], error: Any) -> None:
    drefs, closure = closure_of(S)
    gen = realizeSeq(closure, [drefs["a"]])
    next(gen)
    with pytest.raises(error):
        gen.send((answer, False))
    check_tmp(S)


def test_what_is_wrong_with_a_closure_is_said_at_the_call(S: StorageSettings) -> None:
    with pytest.raises(Misuse):
        realizeSeq(("no", "closure"))  # type: ignore[arg-type]


# --- the store during a pause -------------------------------------------------------------------------


@pytest.mark.embedded_only("a daemon holds the lock as long as it lives")
def test_a_pause_holds_no_lock_and_its_folder_is_not_swept(S: StorageSettings) -> None:
    drefs, closure = closure_of(S)
    gen = realizeSeq(closure, [drefs["c"]])
    settings = next(gen)[0]
    mine = output(settings, {"out.txt": "slowly made"})

    def others() -> None:
        with exclusive_lock(store_layout(S), "test", 0.0):
            pass
        with open_store(store_layout(S)):
            pass  # sweeps what dead owners left
        assert realize1(instantiate(lambda r: chain(r)["b"], S=S), assert_realized=list(drefs.values()))

    in_child(others)
    rref = mkrealization(drefs["c"], {drefs["b"]: list(drefrrefs(drefs["b"], S))}, mine, settings)
    assert end(gen, ([rref], False))[drefs["c"]] == [rref]


def test_what_came_before_a_pause_is_durable(S: StorageSettings) -> None:
    """It may last for days, so what was built before it must be there for others at once."""
    drefs, closure = closure_of(S)
    gen = realizeSeq(closure, [drefs["c"]])
    next(gen)
    assert in_child(lambda: len(list(allrrefs(S)))) == 2
    gen.close()


@pytest.mark.embedded_only("it makes the store anew")
def test_what_was_removed_during_a_pause_is_told(S: StorageSettings) -> None:
    drefs, closure = closure_of(S)
    gen = realizeSeq(closure, [drefs["c"]])
    next(gen)
    fsinit(S, remove_existing=True, use_as_default=False)
    with pytest.raises(MissingRealization, match="-a in the store"):
        gen.send((None, False))


# --- mkrealization ------------------------------------------------------------------------------------


def test_a_folder_becomes_a_realization_of_its_direct_dependencies(S: StorageSettings) -> None:
    drefs, closure = closure_of(S)
    context = realize(closure)[2]
    made = output(S, {"out.txt": "by hand", "deep/er.txt": "too"})
    rref = mkrealization(drefs["c"], context, made, S)
    assert not os.path.exists(made)
    assert (text_of(rref, S), text_of(rref, S, "deep/er.txt")) == ("by hand", "too")
    assert rrefctx(rref, S) == {drefs["a"]: context[drefs["a"]], drefs["b"]: context[drefs["b"]]}
    assert os.stat(rref2path(rref, S)).st_mode & 0o777 == 0o555
    check_tmp(S)
    assert in_child(lambda: rref in set(allrrefs(S)))


def test_equal_folders_are_one_realization(S: StorageSettings) -> None:
    drefs, _ = closure_of(S)
    built = realize1(instantiate(lambda r: stage(r, "a"), S=S))
    assert mkrealization(drefs["a"], {}, output(S, {"out.txt": "a"}), S) == built
    check_tmp(S)


def test_a_folder_is_dated_by_its_start_stamp(S: StorageSettings) -> None:
    """So that `match_latest` ranks it by when its making began, as it does others."""
    from pylightnix.query import realization_starts

    drefs, _ = closure_of(S)
    rref = mkrealization(drefs["a"], {}, output(S, {"x": "", "__buildstart__.txt": "20200102-00:00:00:000000+0000"}), S)
    assert realization_starts([rref], S) == {rref: 1577923200.0}


def test_what_is_no_folder(S: StorageSettings, tmp_path: FsPath) -> None:
    drefs, _ = closure_of(S)
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("file", "link", "nothing"):
        with pytest.raises(AssertionError, match="expects the folder"):
            mkrealization(drefs["a"], {}, Path(tmp_path / name), S)


def test_a_missing_dependency_and_an_unknown_derivation(S: StorageSettings) -> None:
    drefs, _ = closure_of(S)
    made = output(S)
    with pytest.raises(AssertionError, match="not among the dependencies"):
        mkrealization(drefs["b"], {}, made, S)
    with pytest.raises(FileNotFoundError):
        mkrealization(DRef(f"dref:{'0' * 32}-x"), {}, made, S)
    assert os.path.isdir(made)


def test_a_folder_that_cannot_be_stored_stays_where_it_is(S: StorageSettings) -> None:
    drefs, _ = closure_of(S)
    made = output(S)
    os.mkfifo(f"{made}/pipe")
    with pytest.raises(InvalidOutput, match="pipe"):
        mkrealization(drefs["a"], {}, made, S)
    os.unlink(f"{made}/pipe")
    assert text_of(mkrealization(drefs["a"], {}, made, S), S) == "text"


@pytest.mark.embedded_only("it makes the store anew")
def test_pausing_is_one_loop_with_realize(S: StorageSettings) -> None:
    """Matchers see the same, in either."""
    seen = Notes()

    def matcher(S: StorageSettings, rrefs: list[RRef]) -> Optional[list[RRef]]:
        seen.append(len(rrefs))
        return rrefs or None

    _, closure = closure_of(S, matcher=matcher, realizer=writes({"x": "1"}, {"x": "2"}))
    end(realizeSeq(closure))
    once = list(seen)
    seen.clear()
    fsinit(S, remove_existing=True, use_as_default=False)
    _, closure = closure_of(S, matcher=matcher, realizer=writes({"x": "1"}, {"x": "2"}))
    realize(closure)
    assert seen == once
