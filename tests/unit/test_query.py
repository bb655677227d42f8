"""Questions about a small real store, and the paths of what is in it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path as FsPath
from typing import Any

import pytest
from tests.stores import Numbered, check_error, new_store, stage, writes

from pylightnix import (
    AmbiguousMatch,
    Context,
    DRef,
    InvalidReference,
    MissingDerivation,
    MissingRealization,
    Path,
    Registry,
    RRef,
    StorageSettings,
    alldrefs,
    allrrefs,
    build_outpath,
    build_wrapper,
    current_registry,
    current_storage,
    dref2path,
    drefattrs,
    drefcfg,
    drefcfg_,
    drefdeps,
    drefdeps1,
    drefrrefs,
    drefrrefsC,
    fsstorage,
    instantiate,
    match_all,
    match_only,
    mkregistry,
    mkSS,
    parsetime,
    path2dref,
    path2rref,
    realize,
    realize1,
    rootdrefs,
    rootrrefs,
    rref2dref,
    rref2path,
    rrefattrs,
    rrefbstart,
    rrefctx,
    rrefdeps,
    rrefdeps1,
    selfref,
    undref,
    unrref,
)
from pylightnix.query import (
    drefcfgpath,
    realization_info,
    realization_starts,
    rrefbdelta,
    rrefbstop,
    rrefdata,
    rrefpath2path,
)

pytestmark = pytest.mark.language

DIGITS = "0" * 32
UNKNOWN = DRef(f"dref:{DIGITS}-unknown")


@dataclass(frozen=True)
class Small:
    """leaf (two realizations) <- middle (one for both) <- top, and lone."""

    S: StorageSettings
    leaf: DRef
    middle: DRef
    top: DRef
    lone: DRef
    context: Context

    def rrefs(self, dref: DRef) -> list[RRef]:
        return self.context[dref] or []

    def rref(self, dref: DRef) -> RRef:
        [rref] = self.rrefs(dref)
        return rref


@pytest.fixture
def small(S: StorageSettings) -> Small:
    def main(r: Registry) -> list[DRef]:
        leaf = stage(r, "leaf", realizer=writes({"out.txt": "1"}, {"out.txt": "2"}), matcher=match_all)
        middle = stage(r, "middle", path=[leaf, "out.txt"], promise={"file": [selfref, "out.txt"]})
        return [leaf, middle, stage(r, "top", below=[middle], number=7), stage(r, "lone")]

    (leaf, middle, top, lone), _, context = realize(instantiate(main, S=S))
    return Small(S, leaf, middle, top, lone, context)


# --- paths --------------------------------------------------------------------------------------------


def test_paths_are_textual(tmp_path: FsPath) -> None:
    S = mkSS(str(tmp_path / "nowhere"))
    rref = RRef(f"rref:{'1' * 32}-{DIGITS}-unknown")
    assert dref2path(UNKNOWN, S) == f"{tmp_path}/nowhere/store-v1/{DIGITS}-unknown"
    assert drefcfgpath(UNKNOWN, S) == f"{tmp_path}/nowhere/store-v1/{DIGITS}-unknown/config.json"
    assert rref2path(rref, S) == f"{tmp_path}/nowhere/store-v1/{DIGITS}-unknown/{'1' * 32}"
    assert rrefpath2path(rref, [UNKNOWN, "a", "b"], S) == f"{rref2path(rref, S)}/a/b"
    assert rrefpath2path(rref, [UNKNOWN], S) == rref2path(rref, S)
    assert not (tmp_path / "nowhere").exists()
    apart = mkSS(str(tmp_path), str(tmp_path / "apart"))
    assert rrefpath2path(rref, [UNKNOWN, "a"], apart) == f"{tmp_path}/apart/{DIGITS}-unknown/{'1' * 32}/a"
    with current_storage(apart):
        assert dref2path(UNKNOWN) == dref2path(UNKNOWN, apart)


@pytest.mark.parametrize("call", [dref2path, drefcfgpath, rref2path, drefcfg_, drefrrefs, rrefctx, rrefdata])
@pytest.mark.parametrize(
    "text", ["", "text", "dref:x", f"dref:{DIGITS}", f"rref:{DIGITS}-x", f"dref:{DIGITS}-x/../y", f"dref:{DIGITS}-x\n"]
)
def test_what_is_no_reference(S: StorageSettings, call: Callable[[Any, StorageSettings], Any], text: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        call(text, S)
    check_error(caught.value, InvalidReference, "invalid-reference", 2, repr(text), "expected a ")


def test_a_refpath_of_another_derivation(small: Small) -> None:
    for refpath in ([small.top, "x"], ["x"], [], [selfref, "x"]):
        with pytest.raises(InvalidReference) as caught:
            rrefpath2path(small.rref(small.middle), refpath, small.S)
        check_error(caught.value, InvalidReference, "invalid-reference", 2, repr(refpath))


def test_paths_and_links_lead_back(small: Small, tmp_path: FsPath) -> None:
    dref, rref = small.top, small.rref(small.top)
    folder = rref2path(rref, small.S)
    assert path2dref(dref2path(dref, small.S)) == dref
    assert path2rref(folder) == rref
    for path in (f"{folder}/", f"{undref(dref)[0]}-top/{unrref(rref)[0]}", f"/nowhere/{undref(dref)[0]}-top/{unrref(rref)[0]}"):
        assert path2rref(path) == rref
    link, second = tmp_path / "result", tmp_path / "second"
    link.symlink_to(folder)
    second.symlink_to(link)
    assert path2rref(str(link)) == rref
    assert path2dref(str(link)) is None
    assert path2rref(str(second)) is None, "one readlink"
    dangling = tmp_path / "dangling"
    dangling.symlink_to(f"nowhere/{DIGITS}-x")
    assert path2dref(str(dangling)) == f"dref:{DIGITS}-x"
    for path in ("", "/", ".", "x", f"{DIGITS}", f"{DIGITS}-", f"{DIGITS}-a.tmp", f"{DIGITS}-x/y", f"{DIGITS}-x/{DIGITS}.tmp", "a\nb"):
        assert path2rref(path) is None
        assert path2dref(path) is None


# --- one derivation -----------------------------------------------------------------------------------


def test_configs(small: Small) -> None:
    S = small.S
    assert drefcfg_(small.top, S).val == {"name": "top", "below": [small.middle], "number": 7}
    assert drefcfg_(small.middle, S).val["promise"] == {"file": [selfref, "out.txt"]}
    assert drefcfg(small.middle, S).val["promise"] == {"file": [small.middle, "out.txt"]}
    assert drefattrs(small.top, S).number == rrefattrs(small.rref(small.top), S).number == 7
    with current_registry(mkregistry(S)) as r:
        here = stage(r, "here", number=1)
        assert here in alldrefs(S)  # so it is written, whoever owns the store
        os.remove(drefcfgpath(here, S))
        assert drefcfg_(here).val["number"] == 1, "what the current registry has is not read again"


def test_a_derivation_that_is_not_there(S: StorageSettings) -> None:
    for call in (drefcfg_, drefcfg, drefattrs, lambda dref, S: drefdeps([dref], S), lambda dref, S: list(drefrrefsC(dref, {}, S))):
        with pytest.raises(MissingDerivation) as caught:
            call(UNKNOWN, S)
        check_error(caught.value, MissingDerivation, "missing-derivation", 66, UNKNOWN, drefcfgpath(UNKNOWN, S))
    assert drefrrefs(UNKNOWN, S) == set()


def test_dependencies_of_derivations(small: Small) -> None:
    S = small.S
    assert drefdeps1([small.top], S) == {small.middle}
    assert drefdeps1([small.top, small.middle, small.lone], S) == {small.middle, small.leaf}
    assert drefdeps1([], S) == drefdeps([], S) == drefdeps([small.leaf], S) == set()
    assert drefdeps([small.top], S) == {small.middle, small.leaf}
    assert drefdeps([small.top, small.middle], S) == {small.middle, small.leaf}, "an argument that another one needs is among them"


# --- one realization ----------------------------------------------------------------------------------


def test_contexts(small: Small) -> None:
    S = small.S
    middle, top = small.rref(small.middle), small.rref(small.top)
    assert rrefctx(small.rref(small.lone), S) == {}
    assert rrefctx(middle, S) == {small.leaf: small.rrefs(small.leaf)}
    assert rrefctx(top, S) == {small.leaf: small.rrefs(small.leaf), small.middle: [middle]}
    assert list(rrefctx(top, S)) == sorted([small.leaf, small.middle])
    assert rrefdeps1([top], S) == {middle}
    assert rrefdeps1([top, middle], S) == {middle, *small.rrefs(small.leaf)}
    assert rrefdeps([top], S) == {middle, *small.rrefs(small.leaf)}
    assert rrefdeps([], S) == rrefdeps(small.rrefs(small.leaf), S) == set()


def test_a_realization_that_is_not_there(small: Small) -> None:
    rref = RRef(f"rref:{DIGITS}-{small.top[5:]}")
    for call in (rrefctx, rrefdata, lambda rref, S: rrefdeps1([rref], S), lambda rref, S: rrefdeps([rref], S)):
        with pytest.raises(MissingRealization) as caught:
            call(rref, small.S)
        check_error(caught.value, MissingRealization, "missing-realization", 66, rref, rref2path(rref, small.S))
        assert isinstance(caught.value, FileNotFoundError)
    assert rrefbstart(rref, small.S) is None
    assert realization_info(rref, small.S) is None
    assert realization_starts([rref], small.S) == {}


def test_the_top_level_of_a_realization(S: StorageSettings) -> None:
    files = {"b": "", "a/deep": "", "__buildstart__.txt": "start", ".hidden": ""}
    rref = realize1(instantiate(lambda r: stage(r, realizer=writes(files)), S=S))
    assert [os.path.basename(path) for path in rrefdata(rref, S)] == [".hidden", "__buildstart__.txt", "a", "b"]
    assert {os.path.dirname(path) for path in rrefdata(rref, S)} == {rref2path(rref, S)}


def test_stamps(S: StorageSettings) -> None:
    before = time.time()

    def main(r: Registry) -> dict[str, DRef]:
        made = {
            "auto": build_wrapper(build_outpath),
            "given": build_wrapper(build_outpath, starttime="yesterday", stoptime="20260101-00:00:00:0+0000"),
            "none": build_wrapper(build_outpath, starttime=None, stoptime=None),
            "day": build_wrapper(build_outpath, starttime="20260101-00:00:00:0+0000", stoptime="20260102-00:00:00:500000+0000"),
            "raw": writes({"__buildstart__.txt": "  spaced \n"}),
        }
        return {name: stage(r, name, realizer=realizer) for name, realizer in made.items()}

    drefs, _, context = realize(instantiate(main, S=S))
    rrefs = {name: (context[dref] or [])[0] for name, dref in drefs.items()}
    start, stop = rrefbstart(rrefs["auto"], S), rrefbstop(rrefs["auto"], S)
    assert before - 1 < (parsetime(start) or 0) <= (parsetime(stop) or 0) < time.time() + 1
    assert (rrefbdelta(rrefs["auto"], S) or 0) >= 0
    assert (rrefbstart(rrefs["given"], S), rrefbdelta(rrefs["given"], S)) == ("yesterday", None)
    assert (rrefbstart(rrefs["none"], S), rrefbstop(rrefs["none"], S), rrefbdelta(rrefs["none"], S)) == (None, None, None)
    assert rrefbdelta(rrefs["day"], S) == 86400.5
    assert (rrefbstart(rrefs["raw"], S), rrefbstop(rrefs["raw"], S)) == ("spaced", None)
    # Stamps are no part of the tree: what differs in nothing else is one tree.
    infos = [realization_info(rrefs[name], S) for name in ("auto", "given", "none", "day", "raw")]
    assert len({info.tree_hash for info in infos if info is not None}) == 1


def test_what_the_index_knows(small: Small) -> None:
    rref = small.rref(small.top)
    info = realization_info(rref, small.S)
    assert info is not None
    assert (info.rref, info.dref) == (rref, small.top)
    assert info.started <= info.stopped <= time.time()
    assert info.host == os.uname().nodename
    assert len(info.tree_hash) == 64
    assert info.nar_bytes > 0
    assert realization_starts([rref], small.S) == {rref: info.started}


# --- enumerations -------------------------------------------------------------------------------------


def test_everything_in_a_store(small: Small) -> None:
    S = small.S
    drefs = {small.leaf, small.middle, small.top, small.lone}
    assert list(alldrefs(S)) == sorted(drefs)
    assert list(allrrefs(S)) == sorted(rref for dref in drefs for rref in small.rrefs(dref))
    assert drefrrefs(small.leaf, S) == set(small.rrefs(small.leaf))
    assert len(drefrrefs(small.leaf, S)) == 2
    assert rootdrefs(S) == {small.top, small.lone}
    assert rootrrefs(S) == {small.rref(small.top), small.rref(small.lone)}


def test_an_empty_store(S: StorageSettings) -> None:
    assert (list(alldrefs(S)), list(allrrefs(S))) == ([], [])
    assert (rootdrefs(S), rootrrefs(S), drefrrefs(UNKNOWN, S)) == (set(), set(), set())


def test_a_registered_derivation_has_no_realizations_yet(S: StorageSettings) -> None:
    dref = instantiate(stage, S=S)[0]
    assert list(alldrefs(S)) == [dref]
    assert rootdrefs(S) == {dref}
    assert drefrrefs(dref, S) == rootrrefs(S) == set()


def test_roots_are_not_disturbed_by_a_missing_dependency(small: Small) -> None:
    os.remove(drefcfgpath(small.leaf, small.S))
    os.rename(dref2path(small.leaf, small.S), f"{small.S.root}/moved")
    assert rootdrefs(small.S) == {small.top, small.lone}


def test_realizations_in_a_context(S: StorageSettings) -> None:
    below, above = Numbered(), Numbered()

    def main(r: Registry) -> DRef:
        middle = stage(r, "middle", below=stage(r, "below", realizer=below), realizer=above)
        return stage(r, "top", below=middle)

    closure = instantiate(main, S=S)
    lower, middle, _ = (d.dref for d in closure[1].derivations)
    contexts = [realize(closure, force_rebuild=forced)[2] for forced in ([], [middle], [lower])]
    first = {rref for context in contexts[:2] for rref in context[middle] or []}
    assert len(first) == 2
    # What is not a direct dependency does not count, nor does the order in which realizations are named.
    assert list(drefrrefsC(middle, contexts[0], S)) == sorted(first)
    assert list(drefrrefsC(middle, {lower: contexts[0][lower]}, S)) == sorted(first)
    assert set(drefrrefsC(middle, contexts[2], S)) == set(contexts[2][middle] or [])
    assert drefrrefs(middle, S) == first | set(contexts[2][middle] or [])
    assert list(drefrrefsC(middle, {}, S)) == list(drefrrefsC(middle, {lower: None}, S)) == []
    assert list(drefrrefsC(middle, {lower: [*(contexts[0][lower] or []), *(contexts[2][lower] or [])]}, S)) == []
    assert set(drefrrefsC(lower, {}, S)) == drefrrefs(lower, S)


@pytest.mark.embedded_only("it interrupts the process that builds")
def test_only_what_is_durable_is_told_of(S: StorageSettings) -> None:
    """A question asked while a closure is being realized makes durable what it tells of."""
    seen: list[RRef] = []

    def asks(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Path]:
        seen.extend(allrrefs(S))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        realize(instantiate(lambda r: stage(r, realizer=asks, below=stage(r, "below")), S=S))
    assert seen == list(allrrefs(S)) != []


def test_questions_about_two_stores_do_not_mix(S: StorageSettings, tmp_path: FsPath) -> None:
    other = new_store(tmp_path / "other")
    here = realize1(instantiate(lambda r: stage(r, "here"), S=S))
    there = realize1(instantiate(lambda r: stage(r, "there"), S=other))
    assert (list(allrrefs(S)), list(allrrefs(other))) == ([here], [there])
    with current_storage(other):
        assert list(allrrefs()) == [there]
        assert list(alldrefs()) == [rref2dref(there)]
        assert list(allrrefs(S)) == [here]
        assert fsstorage() == fsstorage(other)


def test_two_realizations_are_one_too_many_for_match_only(S: StorageSettings) -> None:
    build = Numbered()
    closure = instantiate(lambda r: stage(r, realizer=build), S=S)
    for _ in range(2):
        realize(closure, force_rebuild=True)
    with pytest.raises(AmbiguousMatch):
        realize(instantiate(lambda r: stage(r, matcher=match_only()), S=S))
    assert drefrrefs(closure[0], S) == set(allrrefs(S))
