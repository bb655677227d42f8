"""Stages made of other stages: what is registered and what is not, and what is built."""

from __future__ import annotations

import os
import pickle
from typing import Any

import pytest
from tests.client import daemons
from tests.stores import new_store, refuses, stage, text_of, writes

from pylightnix import (
    DRef,
    ForeignDerivation,
    Misuse,
    NoRegistry,
    NotRealized,
    Registry,
    StorageSettings,
    alldrefs,
    current_registry,
    dref2path,
    drefcfg,
    drefcfg_,
    drefdeps,
    instantiate,
    match_latest,
    match_only,
    mkregistry,
    realize,
    realize1,
    realized,
    realizeMany,
    redefine,
    rref2dref,
)
from pylightnix.stages.transform import MustBeRealized, Redefined

pytestmark = pytest.mark.language


def leaf(r: Registry, text: str = "old") -> DRef:
    return stage(r, "leaf", text=text)


def tree(r: Registry) -> dict[str, Any]:
    """What is returned lies below and above of what is not."""
    a = stage(r, "a", text="old")
    middle = stage(r, "middle", below=a, refpath=[a, "out.txt"])
    return {"pair": (a, [stage(r, "top", deep={"list": [middle]})])}


def renew(config: dict[str, Any]) -> None:
    config["text"] = "new"


def stored(S: StorageSettings) -> set[str]:
    return {dref.partition("-")[2] + ":" + str(drefcfg(dref, S).val.get("text")) for dref in alldrefs(S)}


def test_a_config_is_changed_in_place_and_the_old_one_leaves_no_trace(S: StorageSettings) -> None:
    result, closure = instantiate(redefine(leaf, new_config=renew), S=S)
    assert drefcfg(result, S).val == {"name": "leaf", "text": "new"}
    assert [derivation.dref for derivation in closure.derivations] == [result]
    assert stored(S) == {"leaf:new"}
    assert rref2dref(realize1(closure)) == result


def test_what_new_config_returns_does_not_matter(S: StorageSettings) -> None:
    result, _ = instantiate(redefine(leaf, new_config=lambda config: {"ignored": 1}), S=S)
    assert result == instantiate(leaf, S=S)[0]


def test_matcher_and_realizer_are_replaced_and_else_kept(S: StorageSettings) -> None:
    two = writes({"out.txt": "1"}, {"out.txt": "2"})
    assert len(realizeMany(instantiate(redefine(leaf, new_matcher=match_latest(2), new_realizer=two), S=S))) == 2
    _, closure = instantiate(redefine(leaf), S=S)
    assert closure.derivations[0].matcher == match_latest()
    with pytest.raises(AssertionError, match="match_only"):
        realize1(instantiate(redefine(leaf, new_matcher=match_only()), S=S))


def test_d29_without_an_explicit_registry(S: StorageSettings) -> None:
    with current_registry(mkregistry(S)) as r:
        dref = redefine(leaf, new_config=renew)()
        assert list(r.builders) == [dref]
    with pytest.raises(NoRegistry):
        redefine(leaf)()


def test_a_registry_by_position_and_arguments_of_the_stage(S: StorageSettings) -> None:
    r = mkregistry(S)
    plain = redefine(leaf)
    assert drefcfg(plain(r, "given"), S).val["text"] == drefcfg(plain(text="given", r=r), S).val["text"] == "given"
    assert len(r.builders) == 1


def test_all_that_a_stage_returns_is_redefined_and_what_is_above_follows(S: StorageSettings) -> None:
    """What refers to something whose reference changes must refer to the new one, returned or not."""
    result, closure = instantiate(redefine(tree, new_config=renew), S=S)
    a, (top,) = result["pair"]
    assert (drefcfg(a, S).val["text"], drefcfg(top, S).val["text"]) == ("new", "new")
    (middle,) = drefcfg(top, S).val["deep"]["list"]
    assert drefcfg(middle, S).val == {"name": "middle", "below": a, "refpath": [a, "out.txt"]}
    assert {derivation.dref for derivation in closure.derivations} == {a, middle, top}
    assert stored(S) == {"a:new", "middle:None", "top:new"}
    context = realize(closure)[2]
    assert set(context) == {a, middle, top}


def test_what_was_registered_on_top_before_is_built_after_it(S: StorageSettings) -> None:
    """Only the realizer changes, so the reference does not: whatever came first, its dependent comes later."""

    def main(r: Registry) -> DRef:
        top = stage(r, "top", below=leaf(r))
        redefine(leaf, new_realizer=writes({"out.txt": "redefined"}))(r=r)
        return top

    result, closure = instantiate(main, S=S)
    context = realize(closure)[2]
    (below,) = drefdeps([result], S)
    (rref,) = context[below] or []
    assert text_of(rref, S) == "redefined"


def test_a_derivation_that_something_else_needs_stays(S: StorageSettings) -> None:
    def main(r: Registry) -> list[DRef]:
        old = leaf(r)
        return [stage(r, "top", below=old), redefine(lambda r: old, new_config=renew)(r=r)]

    _, closure = instantiate(main, S=S)
    assert [derivation.dref.partition("-")[2] for derivation in closure.derivations] == ["leaf", "top", "leaf"]
    realize(closure)


def test_a_derivation_that_nothing_else_needs_goes(S: StorageSettings) -> None:
    r = mkregistry(S)
    old = leaf(r)
    new = redefine(lambda r: old, new_config=renew)(r=r)
    assert list(r.builders) == [new]
    with pytest.raises(ForeignDerivation):
        redefine(lambda r: old)(r=r)


def test_redefining_twice_what_was_registered_before(S: StorageSettings) -> None:
    r = mkregistry(S)
    old = leaf(r)
    new = redefine(redefine(lambda r: old), renew)(r=r)
    assert (drefcfg(new, S).val["text"], new in r.builders) == ("new", True)


def test_redefining_twice(S: StorageSettings) -> None:
    def louder(config: dict[str, Any]) -> None:
        config["text"] += "!"

    result, _ = instantiate(redefine(redefine(leaf, renew), louder), S=S)
    assert drefcfg(result, S).val["text"] == "new!"
    assert stored(S) == {"leaf:new!"}


def test_self_paths_stay_promises(S: StorageSettings) -> None:
    def promising(r: Registry) -> DRef:
        return stage(r, "x", out=["__self__", "out.txt"])

    result, _ = instantiate(redefine(promising, renew), S=S)
    assert drefcfg_(result, S).val["out"] == ["__self__", "out.txt"]


def test_a_stage_that_looks_at_its_own_derivations(S: StorageSettings) -> None:
    def looking(r: Registry) -> DRef:
        below = leaf(r, "seen")
        return stage(r, "top", below=below, text=drefcfg(below, r.S).val["text"])

    result, _ = instantiate(redefine(looking), S=S)
    assert drefcfg(result, S).val["text"] == "seen"


def test_a_stage_that_fails_registers_nothing(S: StorageSettings) -> None:
    def failing(r: Registry) -> DRef:
        leaf(r)
        raise OSError("no")

    r = mkregistry(S)
    with pytest.raises(OSError, match="no"):
        redefine(failing)(r=r)
    assert (r.builders, list(alldrefs(S))) == ({}, [])


def test_a_stage_without_result(S: StorageSettings) -> None:
    with pytest.raises(Misuse, match="returns DRefs"):
        instantiate(redefine(lambda r: None), S=S)


def test_instantiating_inside_is_refused_as_ever(S: StorageSettings) -> None:
    with pytest.raises(Misuse, match="inside itself"):
        instantiate(redefine(lambda r: instantiate(leaf, r=r)[0]), S=S)


def test_a_stage_may_use_another_store_inside(S: StorageSettings, tmp_path: Any) -> None:
    other = new_store(tmp_path / "other")

    def main(r: Registry) -> DRef:
        return stage(r, "outer", text=text_of(realize1(instantiate(leaf, S=other)), other))

    result, _ = instantiate(redefine(main), S=S)
    assert drefcfg(result, S).val["text"] == "leaf"


# --- realized -----------------------------------------------------------------------------------------


def test_what_must_be_realized_already(S: StorageSettings) -> None:
    with pytest.raises(AssertionError, match="forbids building it") as refused:
        realize1(instantiate(realized(leaf), S=S))
    assert type(refused.value) is NotRealized
    rref = realize1(instantiate(leaf, S=S))
    assert realize1(instantiate(realized(leaf), S=S)) == rref


def test_only_the_result_must_be_realized(S: StorageSettings) -> None:
    def main(r: Registry) -> DRef:
        return stage(r, "top", below=realized(lambda r: stage(r, "data"))(r=r))

    with pytest.raises(NotRealized, match="-data is not realized"):
        realize1(instantiate(main, S=S))
    realize1(instantiate(lambda r: stage(r, "data"), S=S))
    assert realize1(instantiate(main, S=S))


# --- travelling ---------------------------------------------------------------------------------------


def test_they_are_pickled_by_name_and_equal_when_made_of_the_same() -> None:
    changed = redefine(leaf, renew, match_latest(), refuses)
    assert pickle.loads(pickle.dumps(changed)) == changed == redefine(leaf, renew, match_latest(), refuses)
    assert pickle.loads(pickle.dumps(realized(leaf))) == realized(leaf)
    assert pickle.dumps(MustBeRealized()) == pickle.dumps(MustBeRealized())
    assert isinstance(changed, Redefined)


def test_through_a_daemon() -> None:
    def main(r: Registry) -> DRef:
        def words(config: dict[str, Any]) -> None:
            config["text"] = "changed"

        dref: DRef = redefine(daemons.chain, words)(r=r, length=1)
        return dref

    with daemons.served_store() as S:
        with pytest.raises(NotRealized, match="forbids building it"):
            realize1(instantiate(realized(main), S=S))
        rref = realize1(instantiate(main, S=S))
        assert text_of(rref, S) == "changed"
        assert realize1(instantiate(realized(main), S=S)) == rref
        assert [path for path in os.listdir(os.path.join(str(S.root), "store-v1")) if "link" in path] == [
            os.path.basename(dref2path(rref2dref(rref), S))
        ]
