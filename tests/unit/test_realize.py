"""From closures to realizations on a real store: order, matching, rebuilding, contexts, threads, defaults."""

from __future__ import annotations

import itertools
import json
import logging
import os
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path as FsPath
from typing import Any, Optional

import pytest
from tests.stores import Notes, Numbered, check_error, check_tmp, new_store, output, refuses, stage, text_of, unharmed, writes

from pylightnix import (
    AmbiguousMatch,
    BuildError,
    Closure,
    Context,
    Derivation,
    DRef,
    ForeignDerivation,
    InvalidMatch,
    InvalidStorage,
    Matcher,
    MatcherRefused,
    Misuse,
    NotRealized,
    Path,
    Realizer,
    Registry,
    RRef,
    StorageSettings,
    allrrefs,
    assert_valid_closure,
    build_wrapper,
    context_deref,
    current_registry,
    current_storage,
    drefrrefs,
    evaluate,
    fsinit,
    fsroot,
    fsstorage,
    fstmpdir,
    instantiate,
    match_all,
    match_exact,
    match_latest,
    match_only,
    match_some,
    mkconfig,
    mkdrv,
    mklens,
    mkregistry,
    mkSS,
    realize,
    realize1,
    realizeMany,
    rref2dref,
    rref2path,
    rrefctx,
    selfref,
    setregistry,
    setstorage,
    tlregistry,
    tlstorage,
)
from pylightnix.query import realization_info
from pylightnix.registry import RegisteredDerivation

pytestmark = pytest.mark.language

SRC = str(FsPath(__file__).resolve().parents[2] / "src")


class Recorder:
    """A realizer that records what it was called with, and leaves its derivation's reference."""

    def __init__(self) -> None:
        self.calls = Notes()

    @property
    def names(self) -> list[str]:
        return [dref.partition("-")[2] for _, dref, _, _ in self.calls]

    def __call__(self, S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Path]:
        self.calls.append((S, dref, context, rarg))
        return [output(S, {"out.txt": dref})]


def chain(r: Registry, length: int = 3, **options: Any) -> DRef:
    """Register stages 0, 1, … each on the one before it."""
    dref: Optional[DRef] = None
    for number in range(length):
        dref = stage(r, str(number), below=dref, **options)
    assert dref is not None
    return dref


# --- order and reuse ----------------------------------------------------------------------------------


@pytest.mark.embedded_only("a daemon builds side by side")
def test_realizers_run_in_the_order_of_registration(S: StorageSettings) -> None:
    build = Recorder()

    def main(r: Registry) -> list[DRef]:
        for name in ("not", "wanted"):
            stage(r, name, realizer=refuses)
        leaves = [stage(r, name, realizer=build) for name in ("z", "a", "m")]
        top = stage(r, "top", realizer=build, below=leaves[1])
        return [top, stage(r, "last", realizer=build), leaves[0], leaves[2], top]

    result, closure, context = realize(instantiate(main, S=S))
    assert build.names == ["z", "a", "m", "top", "last"]
    assert list(context) == sorted(context)
    assert set(context) == {dref for _, dref, _, _ in build.calls}
    assert closure.targets == result
    assert len(closure.derivations) == 7


def test_d17_a_dependency_that_was_registered_after_its_dependent_is_built_before_it(S: StorageSettings) -> None:
    build = Recorder()

    def main(r: Registry) -> DRef:
        below = stage(r, "below", realizer=build)
        above = stage(r, "above", realizer=build, below=below)
        r.builders[below] = r.builders.pop(below)
        return above

    realize(instantiate(main, S=S))
    assert build.names == ["below", "above"]


def test_what_is_realized_is_used_again(S: StorageSettings, tmp_path: FsPath) -> None:
    rrefs = realizeMany(instantiate(chain, S=S))
    with unharmed(S):
        assert realizeMany(instantiate(chain, S=S, realizer=refuses)) == rrefs
    # The same from other stores and in other processes: the reference is of what it is made of.
    assert realizeMany(instantiate(chain, S=new_store(tmp_path / "other"))) == rrefs


def test_a_derivation_without_dependencies_has_one_realization_for_all(S: StorageSettings) -> None:
    leaf = realize1(instantiate(lambda r: stage(r, "leaf"), S=S))
    closure = instantiate(lambda r: stage(r, "above", below=stage(r, "leaf", realizer=refuses)), S=S)
    assert context_deref(realize(closure)[2], rref2dref(leaf)) == [leaf]


def test_the_whole_language_in_one_golden_realization(S: StorageSettings) -> None:
    """References are what other hosts and later versions must arrive at."""

    def tool(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Path]:
        folder = output(S, {"out.txt": "text", "sub/tool": "#!/bin/sh\n", "__init__.py": ""})
        os.chmod(f"{folder}/sub/tool", 0o750)
        os.symlink("../out.txt", f"{folder}/sub/link")
        os.mkdir(f"{folder}/empty")
        return [folder]

    def main(r: Registry) -> DRef:
        return stage(r, "golden", realizer=tool, below=stage(r, "below"), list=[1, 2.5, None, True], text="grün")

    rref = realize1(instantiate(main, S=S))
    assert rref == GOLDEN_RREF
    top = FsPath(rref2path(rref, S))
    modes = {str(path.relative_to(top)): oct(stat.S_IMODE(path.lstat().st_mode)) for path in top.rglob("*") if not path.is_symlink()}
    assert modes == {
        "__init__.py": "0o444",
        "context.json": "0o444",
        "empty": "0o555",
        "out.txt": "0o444",
        "sub": "0o555",
        "sub/tool": "0o555",
    }
    assert oct(stat.S_IMODE(top.stat().st_mode)) == "0o555"
    assert os.readlink(top / "sub/link") == "../out.txt"
    [below] = context_deref(rrefctx(rref, S), DRef(GOLDEN_BELOW))
    assert json.loads((top / "context.json").read_text()) == {"deps": {GOLDEN_BELOW: [below]}, "dynamic": {}}


# Computed once with a few lines of Python that know nothing of this package.
GOLDEN_RREF = "rref:a00e4f3ea4e5f748f98233423956f11e-03932cb5cb3dd89b3ba51e53e029dff2-golden"
GOLDEN_BELOW = "dref:e3b0876e2379505bcfde5661001f4c23-below"


# --- matchers -----------------------------------------------------------------------------------------


def test_matchers_are_shown_the_realizations_of_their_own_context(S: StorageSettings) -> None:
    seen = Notes()

    def watching(S: StorageSettings, rrefs: list[RRef]) -> Optional[list[RRef]]:
        seen.append(list(rrefs))
        return rrefs or None

    below, above = Numbered(), Numbered()

    def main(r: Registry) -> DRef:
        return stage(r, "above", realizer=above, matcher=watching, below=stage(r, "below", realizer=below))

    closure = instantiate(main, S=S)
    lower = closure[1].derivations[0].dref
    [first] = realizeMany(closure)
    assert seen == [[], [first]]
    seen.clear()
    both = realizeMany(closure, force_rebuild=True)
    assert first in both
    assert len(both) == 2
    assert seen == [both]
    seen.clear()
    # Another realization of the dependency is another context: nothing to choose from.
    [third] = realizeMany(closure, force_rebuild=[lower])
    assert third not in both
    assert seen == [[], [third]]
    assert drefrrefs(closure[0], S) == {*both, third}


def test_matchers_see_the_store(S: StorageSettings) -> None:
    """They are user code: they may look at artifacts, at settings and at the index."""

    def longest(S: StorageSettings, rrefs: list[RRef]) -> Optional[list[RRef]]:
        assert tlstorage() == S
        assert set(rrefs) >= drefrrefs(rref2dref(rrefs[0]), S) if rrefs else True  # of what is not durable yet nobody is told
        return sorted(rrefs, key=lambda rref: len(text_of(rref, S)))[-1:] or None

    outputs = [{"out.txt": "x" * size} for size in (3, 9, 5)]
    rref = realize1(instantiate(lambda r: stage(r, realizer=writes(*outputs), matcher=longest), S=S))
    assert text_of(rref, S) == "x" * 9


def test_matchers_may_leave_the_store_out(S: StorageSettings, tmp_path: FsPath, defaults: None) -> None:
    fsinit(str(tmp_path / "default"))

    def third(S: StorageSettings, rrefs: list[RRef]) -> Optional[list[RRef]]:
        return [rref for rref in rrefs if mklens(rref).out.contents == "3" and rrefctx(rref) == {} and rref2path(rref)] or None

    outputs = [{"out.txt": str(number)} for number in range(5)]
    rref = realize1(instantiate(lambda r: stage(r, realizer=writes(*outputs), matcher=third, out=[selfref, "out.txt"]), S=S))
    assert text_of(rref, S) == "3"
    assert tlstorage() != S


@pytest.mark.parametrize(
    ("matcher", "count"), [(match_all, 3), (match_latest(2), 2), (match_some(3), 3), (match_some(2, key=lambda S, rref: rref), 2)]
)
def test_several_outputs(S: StorageSettings, matcher: Matcher, count: int) -> None:
    outputs = [{"out.txt": str(number)} for number in range(3)]

    def main(r: Registry, realizer: Optional[Realizer] = None) -> DRef:
        return stage(r, realizer=realizer or writes(*outputs), matcher=matcher)

    closure = instantiate(main, S=S)
    rrefs = realizeMany(closure)
    assert len(rrefs) == count
    assert rrefs == sorted(rrefs)
    assert len(drefrrefs(closure[0], S)) == 3
    assert realizeMany(instantiate(main, S=S, realizer=refuses)) == rrefs
    with pytest.raises(AmbiguousMatch) as caught:
        realize1(closure)
    check_error(caught.value, AmbiguousMatch, "ambiguous-match", 1, closure[0], f"found {count}", "match_latest()")


@pytest.mark.embedded_only("the warning is in the daemon's log")
def test_outputs_that_coincide_are_one_realization(S: StorageSettings, caplog: pytest.LogCaptureFixture) -> None:
    same = {"out.txt": "same"}
    with caplog.at_level(logging.WARNING):
        assert realize1(instantiate(lambda r: stage(r, realizer=writes(same, same), matcher=match_only()), S=S))
    assert "1 of 2 outputs coincide" in caplog.text
    check_tmp(S)


@pytest.mark.embedded_only("the warning is in the daemon's log")
def test_a_build_of_which_the_matcher_picks_nothing_is_warned_of(S: StorageSettings, caplog: pytest.LogCaptureFixture) -> None:
    first = realize1(instantiate(lambda r: stage(r, realizer=writes({"out.txt": "a"})), S=S))
    only_first = match_some(key=lambda S, rref: rref == first)
    closure = instantiate(lambda r: stage(r, realizer=writes({"out.txt": "b"}), matcher=only_first), S=S)
    with caplog.at_level(logging.WARNING):
        assert realize1(closure) == first
        assert "picked none" not in caplog.text
        assert realize1(closure, force_rebuild=True) == first
    assert "picked none of what came of it: rref:" in caplog.text


def test_too_few_outputs_for_the_matcher(S: StorageSettings) -> None:
    closure = instantiate(lambda r: stage(r, matcher=match_latest(2)), S=S)
    with pytest.raises(MatcherRefused) as caught:
        realize(closure)
    check_error(caught.value, MatcherRefused, "matcher-refused", 1, closure[0], "none of the 1 realizations", "nouts")
    assert isinstance(caught.value, AssertionError)
    # What was built is a realization all the same, and a later matcher may want it.
    assert realize1(instantiate(lambda r: stage(r, realizer=refuses), S=S)) in set(allrrefs(S))


def test_match_only_refuses_two(S: StorageSettings) -> None:
    outputs = [{"out.txt": "1"}, {"out.txt": "2"}]
    closure = instantiate(lambda r: stage(r, realizer=writes(*outputs), matcher=match_only()), S=S)
    with pytest.raises(AmbiguousMatch) as caught:
        realize(closure)
    check_error(caught.value, AmbiguousMatch, "ambiguous-match", 1, closure[0], "found 2")


@pytest.mark.parametrize("what", ["before", "after"])
def test_what_a_matcher_raises_arrives_as_it_is(S: StorageSettings, what: str) -> None:
    error = ZeroDivisionError("mine")

    def raising(S: StorageSettings, rrefs: list[RRef]) -> Optional[list[RRef]]:
        if rrefs or what == "before":
            raise error
        return None

    closure = instantiate(lambda r: stage(r, "above", below=stage(r, "below", matcher=raising)), S=S)
    with pytest.raises(ZeroDivisionError) as caught:
        realize(closure)
    assert (type(caught.value), caught.value.args) == (ZeroDivisionError, ("mine",))
    assert len(list(allrrefs(S))) == (what == "after")
    check_tmp(S)


ANSWERS: list[tuple[Callable[[list[RRef]], Any], str]] = [
    (lambda rrefs: [], "answered an empty list when offered"),
    (lambda rrefs: "rref", "answered 'rref'"),
    (lambda rrefs: 0, "answered 0"),
    (lambda rrefs: [RRef("rref:made-up")], "answered 'rref:made-up', which it was not offered"),
    (lambda rrefs: [[]], "answered [], which it was not offered"),
    (lambda rrefs: [None], "answered None, which it was not offered"),
    (iter, "answered <list_iterator"),
]


@pytest.mark.parametrize(("answer", "problem"), ANSWERS)
@pytest.mark.parametrize("as_target", [True, False])
def test_d18_answers_that_are_none(S: StorageSettings, answer: Callable[[list[RRef]], Any], problem: str, as_target: bool) -> None:
    def main(r: Registry) -> DRef:
        odd = stage(r, "odd", matcher=lambda S, rrefs: answer(rrefs), realizer=refuses)
        return odd if as_target else stage(r, "above", below=odd)

    _, closure = instantiate(main, S=S)
    with unharmed(S):
        with pytest.raises(InvalidMatch) as caught:
            realize(closure)
        check_error(caught.value, InvalidMatch, "invalid-match", 1, closure.derivations[0].dref, problem, "or None to ask for a build")


def test_a_matcher_may_answer_with_a_tuple_and_repeat_itself(S: StorageSettings) -> None:
    answer: Any = lambda S, rrefs: (*rrefs, *rrefs) or None  # noqa: E731  # an untyped matcher, as programs have them
    assert realize1(instantiate(lambda r: stage(r, matcher=answer), S=S))


def test_match_exact_demands_what_is_there_and_accepts_nothing_else(S: StorageSettings) -> None:
    build = Numbered()
    first = realize1(instantiate(lambda r: stage(r, realizer=build), S=S))
    second = realize1(instantiate(lambda r: stage(r, realizer=build), S=S), force_rebuild=True)
    assert first != second
    for rref in (first, second):
        assert realize1(instantiate(lambda r, rref=rref: stage(r, matcher=match_exact([rref]), realizer=refuses), S=S)) == rref


# --- forcing ------------------------------------------------------------------------------------------


def test_forcing_the_targets(S: StorageSettings) -> None:
    below, above = Numbered(), Numbered()

    def main(r: Registry) -> DRef:
        return stage(r, "above", realizer=above, below=stage(r, "below", realizer=below))

    closure = instantiate(main, S=S)
    first = realize1(closure)
    second = realize1(closure, force_rebuild=True)
    assert (len(below.runs), len(above.runs)) == (1, 2)
    assert first != second
    assert realize1(closure) == second, "the last build counts"
    assert rrefctx(first, S) == rrefctx(second, S)
    nothing: Any
    for nothing in (False, [], ()):
        realize1(closure, force_rebuild=nothing)
    assert len(above.runs) == 2


def test_forcing_some_and_what_is_not_there(S: StorageSettings) -> None:
    below, above = Numbered(["same"] * 3), Numbered()

    def main(r: Registry) -> DRef:
        return stage(r, "above", realizer=above, below=stage(r, "below", realizer=below))

    closure = instantiate(main, S=S)
    lower, unknown = closure[1].derivations[0].dref, DRef(f"dref:{'0' * 32}-unknown")
    first = realize1(closure)
    for forced in ([lower, unknown], (lower, lower)):
        assert realize1(closure, force_rebuild=forced) == first
    assert len(below.runs) == 3
    assert len(above.runs) == 1, "the same dependency does not rebuild what is above it"


def test_a_rebuilt_dependency_that_differs_rebuilds_what_is_above_it(S: StorageSettings) -> None:
    below = Numbered()
    above, top = Recorder(), Recorder()

    def main(r: Registry) -> DRef:
        middle = stage(r, "above", realizer=above, below=stage(r, "below", realizer=below))
        return stage(r, "top", realizer=top, below=middle)

    closure = instantiate(main, S=S)
    lower = closure[1].derivations[0].dref
    first = realize1(closure)
    second = realize1(closure, force_rebuild=[lower])
    assert second != first
    assert (len(above.calls), len(top.calls)) == (2, 2)
    assert text_of(second, S) == text_of(first, S), "the same bytes from other inputs are another realization"
    assert rrefctx(second, S)[lower] != rrefctx(first, S)[lower]


def test_d14_a_forced_build_with_the_same_bytes_is_the_same_realization_but_newer(S: StorageSettings) -> None:
    texts = Numbered(["old", "new", "old"])
    closure = instantiate(lambda r: stage(r, realizer=texts), S=S)
    old = realize1(closure)
    folder = FsPath(rref2path(old, S))
    before = {path: path.stat().st_ino for path in (folder, folder / "out.txt")}
    new = realize1(closure, force_rebuild=True)
    assert realize1(closure) == new != old
    started = realization_info(old, S)
    assert started is not None
    assert realize1(closure, force_rebuild=True) == old
    assert realize1(closure) == old, "match_latest ranks by the latest start"
    again, other = realization_info(old, S), realization_info(new, S)
    assert again is not None
    assert other is not None
    assert started.started < other.started < again.started
    assert {path: path.stat().st_ino for path in (folder, folder / "out.txt")} == before, "the tree stays"


# --- assert_realized, arguments, dry runs ---------------------------------------------------------------


def test_d19_what_must_be_realized_already(S: StorageSettings) -> None:
    closure = instantiate(chain, S=S, realizer=refuses)
    lowest = closure[1].derivations[0].dref
    with unharmed(S):
        with pytest.raises(NotRealized) as caught:
            realize(closure, assert_realized=[lowest])
        check_error(caught.value, NotRealized, "not-realized", 1, lowest, "no realization", "assert_realized")
        assert isinstance(caught.value, AssertionError)
    realize(instantiate(chain, S=S))
    assert realize1(closure, assert_realized=[d.dref for d in closure[1].derivations])
    with pytest.raises(NotRealized):
        realize(closure, force_rebuild=[lowest], assert_realized=[lowest])


def test_arguments_reach_the_realizer_and_no_hash(S: StorageSettings) -> None:
    build = Recorder()
    closure = instantiate(lambda r: chain(r, 2, realizer=build), S=S)
    lower, upper = (d.dref for d in closure[1].derivations)
    given = {"deep": (1, {2})}
    rref = realize1(closure, realize_args={lower: given, DRef("dref:x"): {}})
    assert [rarg for _, _, _, rarg in build.calls] == [given, {}]
    assert realize1(closure, realize_args={upper: {"other": 1}}) == rref
    assert len(build.calls) == 2


def test_d20_a_dry_run_builds_nothing(S: StorageSettings) -> None:
    below, above = Numbered(), Numbered()

    def main(r: Registry) -> list[DRef]:
        lower = stage(r, "below", realizer=below)
        return [stage(r, "above", realizer=above, below=lower), stage(r, "beside", realizer=refuses)]

    result, closure = instantiate(main, S=S)
    lower = closure.derivations[0].dref
    with unharmed(S):
        context = realize(closure, dry_run=True)[2]
        assert realize(closure, dry_run=True) == (result, closure, dict.fromkeys([lower, *result]))
        assert list(context) == sorted(context) != [lower, *result], "in textual order"
        assert realizeMany(mkclosure_of(closure, result[0]), dry_run=True) == []
        with pytest.raises(NotRealized) as caught:
            realize1(mkclosure_of(closure, result[0]), dry_run=True)
        check_error(caught.value, NotRealized, "not-realized", 1, result[0], "a dry run builds nothing")
    rref = realize1(mkclosure_of(closure, result[0]))
    [lowest] = rrefctx(rref, S)[lower] or []
    with unharmed(S):
        context = realize(closure, dry_run=True)[2]
        assert context == {lower: [lowest], result[0]: [rref], result[1]: None}
        assert list(context) == sorted(context)
        assert realize1(mkclosure_of(closure, result[0]), dry_run=True) == rref
        # Forced or not; what depends on what would be built is not known.
        context = realize(closure, dry_run=True, force_rebuild=[lower])[2]
        assert context == {lower: None, result[0]: None, result[1]: None}
        assert list(context) == sorted(context)
        assert realizeMany(mkclosure_of(closure, result[0]), dry_run=True, force_rebuild=True) == []
    assert (len(below.runs), len(above.runs)) == (1, 1)


def mkclosure_of(closure: Closure, target: DRef) -> Closure:
    return closure._replace(result=target, targets=[target])


# --- contexts -----------------------------------------------------------------------------------------


def test_d15_a_realizer_is_given_the_whole_chain_and_the_store_keeps_the_direct_part(S: StorageSettings) -> None:
    build = Recorder()
    closure = instantiate(lambda r: chain(r, 5, realizer=build), S=S)
    result, _, whole = realize(closure)
    drefs = [d.dref for d in closure[1].derivations]
    for number, (_, dref, context, _) in enumerate(build.calls):
        assert dref == drefs[number]
        assert set(context) == set(drefs[:number])
        assert context == {below: whole[below] for below in drefs[:number]}
    [rref] = whole[result] or []
    with open(f"{rref2path(rref, S)}/context.json") as file:
        assert json.load(file)["deps"] == {drefs[3]: whole[drefs[3]]}
    assert rrefctx(rref, S) == {dref: whole[dref] for dref in sorted(drefs[:4])}


@pytest.mark.embedded_only("it looks into the objects that realizers got")
def test_a_context_is_computed_when_it_is_looked_at(S: StorageSettings) -> None:
    kept: list[Context] = []

    def main(r: Registry) -> DRef:
        return chain(r, 4, realizer=keeps)

    def keeps(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Path]:
        kept.append(context)
        assert isinstance(context, dict)
        return [output(S, {"out.txt": dref})]

    closure = instantiate(main, S=S)
    lowest, _, below, _ = (d.dref for d in closure[1].derivations)
    realize(closure)
    # Long after the build, and asked in any order, it answers as it would have then.
    assert dict.__len__(kept[3]) == 1
    assert below in kept[3]
    assert dict.__len__(kept[3]) == 1
    assert context_deref(kept[3], lowest)
    assert len(kept[3]) == 3
    assert json.loads(json.dumps(kept[2])) == kept[2]


def test_a_diamond(S: StorageSettings) -> None:
    build = Recorder()

    def main(r: Registry) -> DRef:
        lowest = stage(r, "lowest", realizer=build)
        sides = [stage(r, side, realizer=build, below=lowest) for side in ("left", "right")]
        return stage(r, "top", realizer=build, sides=sides, again={"refpath": [lowest, "out.txt"]})

    result, _, context = realize(instantiate(main, S=S))
    assert build.names in (["lowest", "left", "right", "top"], ["lowest", "right", "left", "top"])
    with open(f"{rref2path((context[result] or [])[0], S)}/context.json") as file:
        assert len(json.load(file)["deps"]) == 3, "a dependency named by a refpath is a direct one"


# --- realizers and the store --------------------------------------------------------------------------


def test_a_realizer_works_in_a_folder_of_its_own(S: StorageSettings) -> None:
    build = Recorder()
    realize(instantiate(lambda r: chain(r, 2, realizer=build), S=S))
    folders = [fstmpdir(given) for given, _, _, _ in build.calls]
    assert len(set(folders)) == 2
    for folder, (given, _, _, _) in zip(folders, build.calls, strict=True):
        assert folder.startswith(f"{fstmpdir(S)}/")
        assert (fsroot(given), fsstorage(given)) == (fsroot(S), fsstorage(S))
        assert not os.path.exists(folder)


def test_a_realizer_that_captured_the_stores_settings(S: StorageSettings) -> None:
    captured = S
    made = Notes()

    def strays(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Path]:
        folder = tempfile.mkdtemp(prefix="mine-", dir=fstmpdir(captured))
        made.append(folder)
        FsPath(folder, "out.txt").write_text("stray")
        return [Path(folder)]

    rref = realize1(instantiate(lambda r: stage(r, realizer=strays), S=S))
    assert text_of(rref, S) == "stray"
    assert os.path.dirname(made[0]) == fstmpdir(S)
    check_tmp(S)


def test_without_settings_a_realizer_means_its_own_folder(S: StorageSettings) -> None:
    def plain(_: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Path]:
        folder = tempfile.mkdtemp(dir=fstmpdir())
        FsPath(folder, "out.txt").write_text(str(len(drefrrefs(dref))))
        return [Path(folder)]

    assert text_of(realize1(instantiate(lambda r: stage(r, realizer=plain), S=S)), S) == "0"
    assert tlstorage() is None


@pytest.mark.parametrize("how", ["given", "captured", "current"])
def test_realizing_inside_a_realizer(S: StorageSettings, how: str) -> None:
    store = S
    inner = Notes()

    def nests(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Path]:
        r = mkregistry({"given": S, "captured": store, "current": None}[how])
        inner.append(realize1(instantiate(chain, r=r)))
        # It was told of, so it is durable, and so is what was built before it on the way here.
        assert inner[0] in set(allrrefs(S))
        assert text_of(inner[0], S) == "2"
        for rrefs in context.values():
            assert set(rrefs or []) <= set(allrrefs(S))
        return [output(S, {"out.txt": inner[0]})]

    def main(r: Registry) -> DRef:
        return stage(r, "outer", realizer=nests, below=stage(r, "below"))

    outer = realize1(instantiate(main, S=S))
    assert text_of(outer, S) == inner[0]
    assert realize1(instantiate(lambda r: chain(r, realizer=refuses), S=S)) == inner[0]
    assert json.loads(FsPath(rref2path(outer, S), "context.json").read_text())["dynamic"] == {rref2dref(inner[0]): inner}
    assert inner[0] in {rref for rrefs in rrefctx(outer, S).values() for rref in rrefs or []}
    with unharmed(S):
        pass


def test_what_was_realized_inside_a_realizer_that_fails_stays(S: StorageSettings) -> None:
    def fails(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Path]:
        realize(instantiate(chain, S=S, r=Registry(S)))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        realize(instantiate(lambda r: stage(r, realizer=fails), S=S))
    assert len(list(allrrefs(S))) == 3
    with unharmed(S):
        pass


@pytest.mark.parametrize("distance", [1, 3])
def test_asking_for_ones_own_derivation(S: StorageSettings, distance: int) -> None:
    def asks(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Path]:
        realize(instantiate(main, r=Registry(S)))
        return [output(S)]

    def main(r: Registry) -> DRef:
        below = stage(r, "asks", realizer=asks)
        for number in range(distance - 1):
            below = stage(r, str(number), below=below)
        return below

    closure = instantiate(main, S=S)
    with unharmed(S):
        with pytest.raises(Misuse) as caught:
            realize(closure)
        check_error(caught.value, Misuse, "misuse", 2, closure[1].derivations[0].dref, "asks for its own derivation")


def test_two_derivations_that_realize_each_other(S: StorageSettings) -> None:
    def asks_for(name: str) -> Realizer:
        def asks(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Path]:
            realize(instantiate(lambda r: stage(r, name, realizer=asks_for({"a": "b", "b": "a"}[name])), r=Registry(S)))
            return [output(S)]

        return asks

    with pytest.raises(Misuse, match="asks for its own derivation"):
        realize(instantiate(lambda r: stage(r, "a", realizer=asks_for("b")), S=S))
    assert list(allrrefs(S)) == []
    with unharmed(S):
        pass


# --- instantiate --------------------------------------------------------------------------------------


def test_instantiating_is_pure(S: StorageSettings) -> None:
    names = ["a", "b", "c"]

    def main(r: Registry, order: Sequence[str] = names) -> dict[str, DRef]:
        return {name: stage(r, name, b=1, a={"y": [], "x": 2}, realizer=refuses) for name in order}

    first, closure = instantiate(main, S=S)
    for order in itertools.permutations(names):
        again, _ = instantiate(main, S=S, order=order)
        assert again == first
    assert list(allrrefs(S)) == []
    assert closure.targets == list(first.values())
    assert (
        instantiate(lambda r: mkdrv(mkconfig({"b": 2, "a": 1}), match_latest(), refuses, r), S=S)[0]
        == (instantiate(lambda r: mkdrv(mkconfig({"a": 1, "b": 2}), match_latest(), refuses, r), S=S)[0])
    )


def test_which_closures_are_valid(S: StorageSettings) -> None:
    result, closure = instantiate(chain, S=S)
    [target], derivations = closure.targets, closure.derivations
    for valid in (
        closure,
        tuple(closure),
        Closure(None, [], derivations, S),
        Closure(None, [target, derivations[0].dref, target], derivations, None),
        closure._replace(derivations=[Derivation(*derivation) for derivation in derivations]),
    ):
        assert_valid_closure(valid)  # type: ignore[arg-type]  # one is a plain tuple
    for invalid in (
        closure._replace(derivations=[]),
        closure._replace(targets=[DRef("no reference")]),
        (result, closure),
        tuple(closure)[:3],
        target,
        None,
    ):
        with pytest.raises(Misuse, match="expected a closure with derivations, as instantiate returns it, found"):
            assert_valid_closure(invalid)  # type: ignore[arg-type]
    for lacking in (closure._replace(derivations=derivations[:-1]), tuple(closure._replace(derivations=derivations[:-1]))):
        with pytest.raises(ForeignDerivation) as caught:
            assert_valid_closure(lacking)  # type: ignore[arg-type]
        check_error(caught.value, ForeignDerivation, "foreign-derivation", 2, f"{target} (a target) is not registered")
        assert isinstance(caught.value, AssertionError)


def test_an_older_closure_is_not_changed_by_what_is_registered_later(S: StorageSettings) -> None:
    r = mkregistry(S)
    first, closure = instantiate(lambda r: stage(r, "first"), r=r)
    instantiate(lambda r: stage(r, "second", realizer=refuses), r=r)
    assert [d.dref for d in closure.derivations] == [first]
    assert len(r.builders) == 2


def test_registering_again_replaces_in_place_with_a_warning(S: StorageSettings, caplog: pytest.LogCaptureFixture) -> None:
    r = mkregistry(S)
    with caplog.at_level(logging.WARNING, "pylightnix"):
        first = stage(r, "first", realizer=refuses)
        second = stage(r, "second")
        assert caplog.records == []
        assert stage(r, "first", realizer=writes({"out.txt": "the last one"})) == first
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert first in caplog.text
    assert list(r.builders) == [first, second]
    assert text_of(realize1(instantiate(first, r=r)), S) == "the last one"


def test_registering_the_same_again_is_no_news(S: StorageSettings, caplog: pytest.LogCaptureFixture) -> None:
    r, realizer, matcher = mkregistry(S), writes(), match_latest()
    for _ in range(2):
        stage(r, realizer=realizer, matcher=matcher)
    assert caplog.records == []


@pytest.mark.parametrize(
    "shape",
    [
        lambda a, b: {"x": a, "y": {"z": [b, a]}},
        lambda a, b: (a, (b, a)),
        lambda a, b: [[[a]], "text", None, 3, {"k": (b, [a])}],
    ],
)
def test_results_may_be_nested(S: StorageSettings, shape: Callable[[DRef, DRef], Any]) -> None:
    def main(r: Registry) -> Any:
        return shape(stage(r, "a"), stage(r, "b"))

    result, closure = instantiate(main, S=S)
    a, b = (d.dref for d in closure.derivations)
    assert closure.targets == [a, b, a]
    realized, same, context = realize((result, closure))
    assert realized == result == shape(a, b)
    assert same == closure
    assert set(context) == {a, b}


def test_instantiate_takes_references_and_arguments(S: StorageSettings) -> None:
    r = mkregistry(S)
    a, b = stage(r, "a"), stage(r, "b")
    assert instantiate([a, {"b": b}], r=r)[1].targets == [a, b]
    dref, _ = instantiate(lambda name, *, r, more: stage(r, name, more=more), "c", r=r, more=1)
    assert len(r.builders) == 3
    assert realize1(instantiate(dref, r=r)).endswith("-c")
    assert isinstance(r.builders[dref], RegisteredDerivation)


def test_instantiate_inside_a_stage_with_another_registry(S: StorageSettings) -> None:
    def main(r: Registry) -> DRef:
        inner = realize1(instantiate(lambda r: stage(r, "inner"), r=Registry(S)))
        return stage(r, "outer", text=text_of(inner, S))

    assert realize1(instantiate(main, S=S))


def test_evaluate(S: StorageSettings) -> None:
    assert evaluate(chain, length=2, S=S) == realize1(instantiate(chain, length=2, S=S, realizer=refuses))


# --- current storage and registry ---------------------------------------------------------------------


def test_current_contexts_end_where_they_began(S: StorageSettings, tmp_path: FsPath) -> None:
    other = new_store(tmp_path / "other")
    r = mkregistry(S)
    with current_registry(r) as yielded:
        assert yielded is r
        assert (tlregistry(), tlstorage()) == (r, S)
        with pytest.raises(ZeroDivisionError), current_storage(other) as settings:  # noqa: PT012  # what is undone is looked at inside
            assert settings is other
            assert tlstorage() == other
            raise ZeroDivisionError
        assert tlstorage() == S
        with pytest.raises(ZeroDivisionError), current_registry(Registry(other)):  # noqa: PT012  # as above
            assert tlstorage() == other
            raise ZeroDivisionError
        assert (tlregistry(), tlstorage()) == (r, S)
        assert instantiate(stage)[1].S == S
    assert (tlregistry(), tlstorage()) == (None, None)


@pytest.mark.usefixtures("defaults")
def test_setting_the_current_storage_and_registry(S: StorageSettings, tmp_path: FsPath) -> None:
    r = mkregistry(S)
    assert setstorage(S) is None
    assert setregistry(r) is None
    assert setregistry(None) is r
    assert setstorage(None) == S
    setregistry(r)
    assert tlstorage() == S, "the store of the current registry"
    assert realize1(instantiate(stage))


def test_a_current_registry_is_the_one_that_stages_register_in(S: StorageSettings) -> None:
    with current_registry(mkregistry(S)) as r:
        dref = mkdrv(mkconfig({"name": "here"}), match_latest(), writes())
        assert list(r.builders) == [dref]
        assert realize1(instantiate(dref))


def test_the_current_registry_and_another_store(S: StorageSettings, tmp_path: FsPath) -> None:
    with current_registry(mkregistry(S)), pytest.raises(InvalidStorage):
        instantiate(stage, S=new_store(tmp_path / "other"))


@pytest.mark.usefixtures("defaults")
def test_d52_a_thread_that_chose_no_store_has_the_one_of_the_process(tmp_path: FsPath) -> None:
    fsinit(str(tmp_path))
    found: list[object] = []

    def work() -> None:
        found.append(fsroot())
        found.append(realize1(instantiate(chain)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [str(tmp_path / "_pylightnix"), realize1(instantiate(chain, realizer=refuses))]


def test_d50_explicit_settings_beat_the_environment(S: StorageSettings, tmp_path: FsPath, monkeypatch: pytest.MonkeyPatch) -> None:
    other = new_store(tmp_path / "other")
    monkeypatch.setenv("PYLIGHTNIX_ROOT", fsroot(other))
    monkeypatch.setenv("PYLIGHTNIX_STORAGE", fsstorage(other))
    monkeypatch.setenv("PYLIGHTNIX_TMP", fstmpdir(other))
    rref = realize1(instantiate(chain, S=S))
    assert os.path.isdir(rref2path(rref, S))
    assert list(allrrefs(other)) == []
    # Without settings the environment decides.
    assert fsstorage() == fsstorage(other)
    assert realize1(instantiate(chain)) == rref
    assert len(list(allrrefs())) == 3


@pytest.mark.usefixtures("defaults")
@pytest.mark.parametrize("how", ["settings", "default", "current", "environment"])
def test_d51_a_relative_root_and_realizers_that_change_the_folder(tmp_path: FsPath, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)
    relative = mkSS("store")
    fsinit(relative, use_as_default=how == "default")
    if how == "environment":
        monkeypatch.setenv("PYLIGHTNIX_ROOT", "store")

    def moves(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Path]:
        os.chdir(elsewhere)
        assert list(drefrrefs(dref, S)) == []
        return [output(S, {"out.txt": dref})]

    def looks(S: StorageSettings, rrefs: list[RRef]) -> Optional[list[RRef]]:
        assert all(os.path.isdir(rref2path(rref, S)) for rref in rrefs)
        assert not rrefs or set(rrefs) == drefrrefs(rref2dref(rrefs[0]), S)
        return rrefs or None

    def main(r: Registry) -> DRef:
        return chain(r, realizer=moves, matcher=looks)

    if how == "current":
        with current_storage(relative):
            closure = instantiate(main)
            realize(closure)
            if closure[1].S is not None:
                assert len(list(allrrefs())) == 3
    else:
        realize(instantiate(main, S=relative if how == "settings" else None))
    assert os.listdir(elsewhere) == []
    assert len(list(allrrefs(mkSS(str(tmp_path / "store"))))) == 3


def test_a_closure_made_before_the_folder_changed(tmp_path: FsPath, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    fsinit(mkSS("store"), use_as_default=False)
    closure = instantiate(chain, S=mkSS("store"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert realize1(closure) in set(allrrefs(mkSS("../store")))


def test_a_storage_set_apart_from_its_root(tmp_path: FsPath) -> None:
    apart = mkSS(str(tmp_path / "root"), str(tmp_path / "apart/trees"), str(tmp_path / "apart/tmp"))
    whole = mkSS(str(tmp_path / "root"))
    for settings in (apart, whole):
        fsinit(settings, use_as_default=False)
    rref = realize1(instantiate(chain, S=apart))
    assert rref2path(rref, apart).startswith(str(tmp_path / "apart/trees/"))
    assert list(allrrefs(whole)) == []
    with unharmed(apart), unharmed(whole):
        pass


# --- threads ------------------------------------------------------------------------------------------


def test_two_threads_on_one_store(S: StorageSettings) -> None:
    start = threading.Barrier(2)
    found: dict[str, RRef] = {}

    def work(name: str) -> None:
        start.wait()
        for number in range(5):
            found[f"{name}{number}"] = realize1(instantiate(chain, S=S, length=3 + number, owner=name))

    run_threads(lambda: work("left"), lambda: work("right"))
    assert len(found) == 10
    assert set(found.values()) <= set(allrrefs(S))
    with unharmed(S):
        pass


def test_two_threads_that_want_the_same_build_it_once(S: StorageSettings) -> None:
    start = threading.Barrier(2)
    build = Numbered()
    found: list[RRef] = []

    def work() -> None:
        closure = instantiate(lambda r: stage(r, "above", below=stage(r, "shared", realizer=build)), S=S)
        start.wait()
        found.append(realize1(closure))

    run_threads(work, work)
    assert len(build.runs) == 1
    assert len(set(found)) == 1
    with unharmed(S):
        pass


def test_two_threads_that_are_the_first_in_a_store(tmp_path: FsPath) -> None:
    for number in range(10):
        S = new_store(tmp_path / str(number))
        start = threading.Barrier(2)

        def work(S: StorageSettings = S, start: threading.Barrier = start) -> None:
            start.wait()
            realize(instantiate(chain, S=S, owner=threading.get_ident()))

        run_threads(work, work)
        assert len(list(allrrefs(S))) == 6
        with unharmed(S):
            pass


def run_threads(*functions: Callable[[], object]) -> None:
    with ThreadPoolExecutor(len(functions)) as pool:
        for future in [pool.submit(function) for function in functions]:
            future.result(60)


# --- without asserts ----------------------------------------------------------------------------------


def test_d62_misuse_is_refused_under_python_o_too(tmp_path: FsPath) -> None:
    script = """
from pylightnix import *
from pylightnix.errors import *
S = mkSS("store")
fsinit(S)
def realizer(S, dref, context, rarg): return None
def expect(kind, call):
    try:
        call()
    except kind as error:
        print(type(error).__name__)
    else:
        print("nothing was raised")
def main(r, **config): return mkdrv(mkconfig({"name": "x", **config}), match_only(), realizer, r)
assert False, "asserts are off"
closure = instantiate(main)
expect(AssertionError, lambda: mkconfig({"a": (1, 2)}))
expect(AssertionError, lambda: mkname("a/b"))
expect(AssertionError, lambda: mkdrv(mkconfig({}), match_only(), realizer))
expect(AssertionError, lambda: instantiate(closure[0], r=mkregistry()))
expect(AssertionError, lambda: instantiate(lambda r: None))
expect(AssertionError, lambda: realizeMany((closure, closure)))
expect(AssertionError, lambda: realize(closure, assert_realized=[closure[0]]))
expect(AssertionError, lambda: rref2dref("rref:x"))
expect(FileNotFoundError, lambda: drefcfg("dref:" + "0" * 32 + "-x"))
expect(PylightnixException, lambda: realize(closure))
"""
    environment = {**os.environ, "PYTHONPATH": SRC}
    child = subprocess.run(
        [sys.executable, "-O", "-W", "error", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert child.stderr == ""
    assert child.stdout.split() == [
        "InvalidConfig",
        "InvalidName",
        "NoRegistry",
        "ForeignDerivation",
        "Misuse",
        "Misuse",
        "NotRealized",
        "InvalidReference",
        "MissingDerivation",
        "InvalidOutput",
    ]


@pytest.mark.parametrize("leave", ["exit", "raise", "return"])
def test_a_child_that_a_realizer_forked_does_not_go_on_with_its_parents_plan(S: StorageSettings, tmp_path: FsPath, leave: str) -> None:
    def forks(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Path]:
        folder = Path(f"{fstmpdir(S)}/out")
        os.mkdir(folder)
        pid = os.fork()
        if pid == 0:
            if leave == "exit":
                sys.exit(3)
            if leave == "raise":
                raise ZeroDivisionError("of the child")
            return [folder]
        expected = {"exit": 3, "raise": 1, "return": 0}[leave]
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == expected
        return [folder]

    rref = realize1(instantiate(lambda r: stage(r, realizer=forks), S=S))
    assert set(allrrefs(S)) == {rref}
    assert os.listdir(rref2path(rref, S)) == ["context.json"]


class Odd(Exception):
    """An error that plain pickling cannot bring back: its constructor takes something else than its text."""

    def __init__(self, left: int, right: list[int]) -> None:
        super().__init__(f"{left}-{right}")
        self.left, self.right = left, right


def odd(*args: Any) -> Any:
    raise Odd(1, [2])


@pytest.mark.parametrize("where", ["function", "realizer", "matcher"])
def test_errors_arrive_with_their_type_and_fields(S: StorageSettings, where: str) -> None:
    chosen: dict[str, Any] = {"matcher": {"matcher": odd}, "realizer": {"realizer": odd}, "function": {"realizer": build_wrapper(odd)}}[
        where
    ]
    with pytest.raises(BuildError if where == "function" else Odd) as caught:
        realize1(instantiate(lambda r: stage(r, **chosen), S=S))
    error = caught.value.exception if isinstance(caught.value, BuildError) else caught.value
    assert type(error) is Odd
    assert (error.left, error.right, error.args) == (1, [2], ("1-[2]",))
