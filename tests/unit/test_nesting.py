"""What realizers realize while they run: dependencies of what they make, that no config names."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path as FsPath
from typing import Any

import anyio
import pytest
from tests.stores import new_store, output, refuses, stage, text_of, unharmed, writes

from pylightnix import (
    Context,
    DRef,
    Misuse,
    Path,
    Realizer,
    Registry,
    RRef,
    StorageSettings,
    instantiate,
    match_all,
    mkregistry,
    realize,
    realize1,
    realize_async,
    realizeMany,
    rref2dref,
    rref2path,
    rrefctx,
    rrefdeps1,
)
from pylightnix.arch import copyclosure
from pylightnix.context import realization_hash
from pylightnix.nar import tree_hash
from pylightnix.nesting import being_built, build_token, running_realizer
from pylightnix.query import direct_context
from pylightnix.refs import unrref
from pylightnix.storage import store_layout
from pylightnix.store.layout import METADATA_NAMES

pytestmark = pytest.mark.language

INNER = {"out.txt": "inner"}


def dynamic_of(rref: RRef, S: StorageSettings) -> dict[DRef, list[RRef]]:
    return direct_context(store_layout(S), rref)[1]


def nesting(*stages: Callable[[Registry], DRef], how: Callable[..., Any] = realize) -> Realizer:
    """Return a realizer that realizes stages and writes what they came to."""

    def realizer(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Path]:
        for inner in stages:
            how(instantiate(inner, r=mkregistry(S)))
        return [output(S, {"out.txt": "outer"})]

    return realizer


def inner(r: Registry) -> DRef:
    return stage(r, "inner", realizer=writes(INNER))


def outer_of(S: StorageSettings, realizer: Realizer) -> RRef:
    return realize1(instantiate(lambda r: stage(r, "outer", realizer=realizer), S=S))


def test_they_are_recorded_and_part_of_the_reference(S: StorageSettings) -> None:
    outer = outer_of(S, nesting(inner))
    made = realize1(instantiate(inner, S=S))
    assert direct_context(store_layout(S), outer) == ({}, {rref2dref(made): [made]})
    assert rrefctx(outer, S) == {rref2dref(made): [made]}
    assert rrefdeps1([outer], S) == {made}
    digest = tree_hash(rref2path(outer, S), exclude_top=METADATA_NAMES).sha256
    assert unrref(outer)[0] == realization_hash(digest, {}, {rref2dref(made): [made]})
    with unharmed(S):
        pass


def test_matching_does_not_ask_for_them(S: StorageSettings) -> None:
    outer = outer_of(S, nesting(inner))
    assert outer_of(S, refuses) == outer


def test_the_same_without_them_is_another_realization(S: StorageSettings) -> None:
    outer = outer_of(S, nesting(inner))
    closure = instantiate(lambda r: stage(r, "outer", realizer=nesting(), matcher=match_all), S=S)
    assert len({outer, *realizeMany(closure, force_rebuild=True)}) == 2


def test_each_has_its_own(S: StorageSettings) -> None:
    def middle(r: Registry) -> DRef:
        return stage(r, "middle", realizer=nesting(inner))

    outer = outer_of(S, nesting(middle))
    (below,) = dynamic_of(outer, S).values()
    assert rref2dref(below[0]).endswith("-middle")
    ((bottom,),) = dynamic_of(below[0], S).values()
    assert rref2dref(bottom).endswith("-inner")
    assert set(rrefctx(outer, S)) == {rref2dref(below[0]), rref2dref(bottom)}


def test_several_realizations_of_one_derivation(S: StorageSettings) -> None:
    number = iter(range(9))

    def fresh(r: Registry) -> DRef:
        return stage(r, "inner", realizer=writes({"out.txt": str(next(number))}))

    def again(closure: Any) -> None:
        realize(closure, force_rebuild=True)

    ((found),) = dynamic_of(outer_of(S, nesting(fresh, fresh, how=again)), S).values()
    assert sorted(text_of(rref, S) for rref in found) == ["0", "1"]


def test_dry_runs_are_none(S: StorageSettings) -> None:
    realize1(instantiate(inner, S=S))

    def dry(closure: Any) -> None:
        realize(closure, dry_run=True)

    assert dynamic_of(outer_of(S, nesting(inner, how=dry)), S) == {}


def test_what_is_in_another_store_is_none(S: StorageSettings, tmp_path: FsPath) -> None:
    other = new_store(tmp_path / "other")

    def elsewhere(closure: Any) -> None:
        realize(instantiate(inner, S=other))

    assert dynamic_of(outer_of(S, nesting(inner, how=elsewhere)), S) == {}


def test_what_an_event_loop_realizes_is_one(S: StorageSettings) -> None:
    outer = outer_of(S, nesting(inner, how=lambda closure: anyio.run(realize_async, closure)))
    assert [rref2dref(rref) for rrefs in dynamic_of(outer, S).values() for rref in rrefs] == list(dynamic_of(outer, S))
    assert len(dynamic_of(outer, S)) == 1


def test_a_realization_that_has_lost_one_does_not_count(S: StorageSettings) -> None:
    outer = outer_of(S, nesting(inner))
    ((made,),) = dynamic_of(outer, S).values()
    FsPath(rref2path(made, S)).chmod(0o755)
    shutil.rmtree(rref2path(made, S))
    with pytest.raises(Misuse, match="asked"):
        outer_of(S, _says("asked"))
    assert outer_of(S, nesting(inner)) == outer
    assert text_of(made, S) == "inner"


def _says(text: str) -> Realizer:
    def realizer(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Path]:
        raise Misuse(text)

    return realizer


def test_they_travel_with_what_was_made_from_them(S: StorageSettings, tmp_path: FsPath) -> None:
    outer = outer_of(S, nesting(inner))
    there = new_store(tmp_path / "there")
    copyclosure([outer], S, there)
    assert dynamic_of(outer, there) == dynamic_of(outer, S)
    assert outer_of(there, refuses) == outer
    with unharmed(there):
        pass


def test_who_runs_where() -> None:
    a, b = DRef(f"dref:{'0' * 32}-a"), DRef(f"dref:{'0' * 32}-b")
    assert (being_built("/s"), build_token("/s")) == ([], None)
    with running_realizer(a, "/s", "first"), running_realizer(b, "/s", "second"), running_realizer(a, "/t", "third"):
        assert being_built("/s") == [a, b]
        assert (build_token("/s"), build_token("/t"), build_token("/u")) == ("second", "third", None)
        with pytest.raises(Misuse, match=f"{a} → {b} → {a}"), running_realizer(a, "/s"):
            pass
    assert being_built("/s") == []
