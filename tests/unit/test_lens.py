from __future__ import annotations

import copy
import json
import os
import pickle
from typing import Any

import pytest
from tests.stores import Notes, stage, writes

from pylightnix import (
    AmbiguousMatch,
    Build,
    DRef,
    Misuse,
    Registry,
    RRef,
    StorageSettings,
    build_markstart,
    build_outpath,
    build_outpaths,
    build_wrapper,
    context_deref,
    dref2path,
    instantiate,
    match_latest,
    match_some,
    mkbuildargs,
    mkconfig,
    mkdrv,
    mkregistry,
    realize,
    realize1,
    rref2dref,
    rref2path,
    rrefctx,
    selfref,
)
from pylightnix.lens import Lens, LensContext, MissingKey, lens_repr, mklens, mutate, traverse, val2dict, val2path, val2rref

pytestmark = pytest.mark.language

TABLE = {"deep": {"er": [1, 2]}, "text": "t", "none": None}


def main(r: Registry) -> DRef:
    low = stage(r, "low", n=1, out=[selfref, "out.txt"])
    mid = stage(r, "mid", dep=low, realizer=writes({"t.json": json.dumps(TABLE), "list.json": "[1]"}), table=[selfref, "t.json"])
    return stage(r, "top", mid=mid, nested={"low": low, "path": [mid, "list.json"], "missing": [mid, "nowhere"], "none": None})


@pytest.fixture
def top(S: StorageSettings) -> RRef:
    return realize1(instantiate(main, S=S))


# --- dicts --------------------------------------------------------------------------------------------


def test_dict_is_navigated_and_changed_in_place(S: StorageSettings) -> None:
    d: dict[str, Any] = {"a": {"b": 1, "val": 2, "steps": 3}, "n": None}
    lens = mklens(d, S=S)
    assert lens.a.b.val == 1
    assert (lens.a.get("val").val, lens.a.steps.val) == (2, 3)
    lens.a.b.val = 5
    assert d["a"]["b"] == 5
    before = lens.a.b
    d["a"]["b"] = 6
    assert before.val == 6
    assert lens.a.val is d["a"]
    assert lens.n.optval is None
    with pytest.raises(Misuse, match="is None; use optval"):
        _ = lens.n.val


def test_d36_missing_key_is_an_attribute_error_and_an_assertion_error(S: StorageSettings) -> None:
    lens = mklens({"a": 1, "b": {}}, S=S)
    with pytest.raises(MissingKey, match="no item 'c'; it has 'a', 'b'") as raised:
        _ = lens.c
    assert isinstance(raised.value, AttributeError)
    assert isinstance(raised.value, AssertionError)
    assert not hasattr(lens, "c")
    assert getattr(lens, "c", 3) == 3
    with pytest.raises(MissingKey, match="it has no items"):
        _ = lens.a.c
    with pytest.raises(MissingKey, match="it has none"):
        lens.b.get("c")


def test_lens_is_copied_and_pickled(S: StorageSettings) -> None:
    d = {"a": {"b": 1}}
    lens = mklens(d, S=S).a
    assert copy.copy(lens).b.val == copy.deepcopy(lens).b.val == pickle.loads(pickle.dumps(lens)).b.val == 1
    copy.copy(lens).b.val = 2
    assert d["a"]["b"] == 2


def test_assignment_without_val_is_refused(S: StorageSettings) -> None:
    d = {"a": {"b": 1}}
    with pytest.raises(Misuse, match=r"\.a\.b\.val = …"):
        mklens(d, S=S).a.b = 3
    with pytest.raises(Misuse, match=r"optval\.val = …"):
        mklens(d, S=S).a.optval = 3  # type: ignore[misc]
    assert d == {"a": {"b": 1}}


def test_assignment_that_cannot_work_is_refused(S: StorageSettings, top: RRef) -> None:
    d: dict[str, Any] = {"ref": top}
    with pytest.raises(Misuse, match="where the lens starts"):
        mklens(d, S=S).val = {}
    with pytest.raises(Misuse, match="plain dicts only"):
        mklens(d, S=S).ref.name.val = "x"
    with pytest.raises(Misuse, match="plain dicts only"):
        mklens(top, S=S).name.val = "x"
    gone = mklens({"a": {"b": 1}}, S=S).a.b
    traverse(mklens(gone._lens_start), "")["a"] = {}
    with pytest.raises(Misuse, match="no item 'b'"):
        gone.val = 1
    with pytest.raises(Misuse, match="no item 'b'; it had one"):
        _ = gone.val


def test_repr_says_how_it_was_reached(S: StorageSettings) -> None:
    lens = mklens({"a": {"b c": 1}}, S=S)
    assert repr(lens.a.get("b c")) == "mklens({'a': {'b c': 1}}).a.get('b c')"
    assert lens_repr(lens.a, "val").endswith(".a.val")
    assert {"a", "val", "get"} <= set(dir(lens))
    assert "a" in dir(lens)


# --- references ---------------------------------------------------------------------------------------


def test_history_is_followed_from_a_realization(S: StorageSettings, top: RRef) -> None:
    lens = mklens(top, S=S)
    assert lens.name.val == "top"
    assert lens.mid.dep.n.val == lens.nested.low.n.val == 1
    low = rrefctx(top, S)[lens.nested.low.dref]
    assert [lens.mid.dep.rref] == [lens.nested.low.rref] == low
    assert lens.mid.dep.syspath == rref2path(lens.mid.dep.rref, S)
    assert lens.nested.low.out.syspath == os.path.join(lens.nested.low.syspath, "out.txt")
    assert lens.nested.low.out.contents == "low"
    assert lens.nested.low.out.refpath == [lens.nested.low.val, "out.txt"]
    assert (lens.rref, lens.dref, lens.val, lens.syspath) == (top, rref2dref(top), top, rref2path(top, S))


def test_json_artifacts_are_gone_into(S: StorageSettings, top: RRef) -> None:
    lens = mklens(top, S=S).mid.table
    assert (lens.deep.er.val, lens.text.val, lens.none.optval) == ([1, 2], "t", None)
    assert json.loads(lens.contents) == TABLE


def test_what_is_no_json_object_is_not_gone_into(S: StorageSettings, top: RRef) -> None:
    lens = mklens(top, S=S)
    for item, problem in ((lens.nested.path, "holds a list"), (lens.nested.missing, "No such file"), (lens.mid.dep.out, "no such file")):
        with pytest.raises(MissingKey, match=problem):
            _ = item.x
        assert not hasattr(item, "x")


def test_files_are_read_once(S: StorageSettings, top: RRef) -> None:
    lens = mklens(top, S=S)
    deep = lens.mid.table.deep
    path = lens.mid.table.syspath
    seen = os.stat(path)
    os.chmod(path, 0o644)
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    with open(path, "r+b") as file:
        file.write(b"[" * seen.st_size)  # no JSON any more; nobody is to notice
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    assert deep.er.val == [1, 2]
    os.rename(dref2path(lens.mid.dref, S), dref2path(lens.mid.dref, S) + ".away")
    assert lens.mid.name.val == "mid"


def test_values_of_configs_are_copies(S: StorageSettings, top: RRef) -> None:
    lens = mklens(top, S=S)
    lens.nested.val["low"] = "changed"
    lens.mid.table.deep.er.val.append(3)
    assert lens.nested.low.n.val == 1
    assert lens.mid.table.deep.er.val == [1, 2]


def test_derivation_has_no_realization_unless_it_is_told(S: StorageSettings, top: RRef) -> None:
    dref = rref2dref(top)
    lens = mklens(dref, S=S)
    assert lens.mid.dep.n.val == 1
    assert lens.syspath == dref2path(dref, S)
    with pytest.raises(Misuse, match="no realization of"):
        _ = lens.rref
    with pytest.raises(Misuse, match="no realization of"):
        _ = lens.mid.table.syspath
    for told in (mklens(dref, rref=top, S=S), mklens(dref, ctx=rrefctx(top, S), S=S)):
        assert told.mid.table.text.val == "t"
        assert told.mid.syspath == rref2path(told.mid.rref, S)


def test_realization_in_the_context_of_another(S: StorageSettings, top: RRef) -> None:
    mid = mklens(top, S=S).mid.rref
    assert mklens(mid, rref=top, S=S).dep.out.contents == "low"
    assert mklens(mid, ctx=rrefctx(top, S), S=S).table.text.val == "t"
    assert mklens(mid, ctx={}, S=S).table.text.val == "t"


def test_refpath_and_dict_as_start(S: StorageSettings, top: RRef) -> None:
    mid = mklens(top, S=S).mid.dref
    assert mklens([mid, "t.json"], rref=top, S=S).text.val == "t"
    assert mklens({"x": [mid, "t.json"]}, rref=top, S=S).x.deep.er.val == [1, 2]


def test_several_realizations_are_refused_unless_one_is_named(S: StorageSettings) -> None:
    def several(r: Registry) -> DRef:
        dep = mkdrv(mkconfig({"out": [selfref, "n"]}), match_some(2), writes({"n": "1"}, {"n": "2"}), r)
        return stage(r, "top", dep=dep)

    rref = realize1(instantiate(several, S=S))
    lens = mklens(rref, S=S)
    for item, name in ((lens.dep, "rref"), (lens.dep, "syspath"), (lens.dep.out, "contents")):
        with pytest.raises(AmbiguousMatch):
            getattr(item, name)
    context = rrefctx(rref, S)
    texts = [mklens(one, ctx=context, S=S).out.contents for one in context_deref(context, lens.dep.dref)]
    assert sorted(texts) == ["1", "2"]


def test_property_of_the_wrong_kind_of_value(S: StorageSettings, top: RRef) -> None:
    lens = mklens(top, S=S)
    asked = [(lens.name, name) for name in ("dref", "rref", "refpath", "syspath", "closure")]
    asked += [(lens.mid, "contents"), (lens.mid, "closure"), (lens.nested.missing, "contents")]
    for item, name in asked:
        with pytest.raises(Misuse) as raised:
            getattr(item, name)
        assert not isinstance(raised.value, AttributeError)


@pytest.mark.parametrize("x", [3, "text", None, [], ["a"], (1, 2), mkconfig({})])
def test_what_cannot_be_looked_into(x: Any) -> None:
    with pytest.raises(Misuse, match="mklens expects"):
        mklens(x)


# --- closures -----------------------------------------------------------------------------------------


def test_d35_closure_is_its_target_in_its_own_store(S: StorageSettings) -> None:
    _, closure = instantiate(main, S=S)
    lens = mklens(closure)  # no S: the closure knows
    assert lens.name.val == "top"
    assert lens.syspath == dref2path(closure.targets[0], S)
    below = lens.mid.closure
    assert below.targets == [lens.mid.dref]
    assert below.derivations == closure.derivations
    realize(below)
    assert lens.closure.targets == closure.targets
    assert mklens(closure.targets[0], closure=closure).mid.closure == below


def test_closure_with_several_targets_is_refused(S: StorageSettings) -> None:
    _, closure = instantiate(lambda r: [stage(r, "a"), stage(r, "b")], S=S)
    with pytest.raises(Misuse, match="one with 2"):
        _ = mklens(closure).name


def test_store_of_a_registry(S: StorageSettings) -> None:
    r = mkregistry(S)
    assert mklens(stage(r, "a", n=3), r=r).n.val == 3


# --- builds -------------------------------------------------------------------------------------------


def lone_build(S: StorageSettings, **config: Any) -> Build:
    dref = mkdrv(mkconfig(config), match_latest(), writes(), mkregistry(S))
    return Build(mkbuildargs(S, dref, {}, None, None, {}, {}))


def test_build_without_outputs_can_be_looked_at(S: StorageSettings) -> None:
    b = lone_build(S, n=1, out=[selfref, "o"])
    lens = mklens(b)
    assert (lens.n.val, lens.out.val) == (1, [b.dref, "o"])
    with pytest.raises(Misuse, match="declare outputs first"):
        _ = lens.out.syspath
    with pytest.raises(Misuse, match="no outputs yet"):
        _ = lens.syspath


def test_build_has_its_own_artifacts_and_those_of_its_dependencies(S: StorageSettings) -> None:
    seen = Notes()

    def f(b: Build) -> None:
        lens = mklens(b)
        assert lens.syspath == build_outpath(b)
        with open(lens.out.syspath, "w") as file:
            file.write('{"x": 1}')
        assert lens.out.x.val == 1
        with open(lens.out.syspath, "w") as file:
            file.write('{"x": 22}')
        assert lens.out.x.val == 22  # what is being built may change, and is read again
        seen.extend([lens.mid.table.text.val, lens.mid.dep.out.contents])
        assert mklens(lens.mid.rref, b=b).table.text.val == "t"
        assert mklens({"own": [selfref, "o"]}, b=b).own.x.val == 22

    def built(r: Registry) -> DRef:
        mid = mklens({"m": main(r)}, r=r).m.mid.dref
        return mkdrv(mkconfig({"mid": mid, "out": [selfref, "o"]}), match_latest(), build_wrapper(f), r)

    realize(instantiate(built, S=S))
    assert seen == ["t", "low"]


def test_number_of_the_output(S: StorageSettings) -> None:
    b = lone_build(S, out=[selfref, "o"])
    build_markstart(b, 2)
    for i in range(2):
        assert mklens(b, build_output_idx=i).out.syspath == os.path.join(build_outpaths(b)[i], "o")
        assert mklens(b.dref, b=b, build_output_idx=i).syspath == dref2path(b.dref, S)
    with pytest.raises(Misuse, match="0 to 1, found 2"):
        mklens(b, build_output_idx=2)


def test_artifact_of_a_stranger_is_not_taken_for_ones_own(S: StorageSettings) -> None:
    stranger = stage(mkregistry(S), "stranger")
    b = lone_build(S, out=[selfref, "o"])
    build_markstart(b, 1)
    with pytest.raises(Misuse, match="no realization of"):
        _ = mklens({"x": [stranger, "o"]}, b=b).x.syspath


def test_output_folder_given_by_path(S: StorageSettings, tmp_path: Any) -> None:
    b = lone_build(S, out=[selfref, "o"])
    expected = os.path.join(tmp_path, "o")
    assert mklens(b.dref, o=tmp_path, S=S).out.syspath == expected
    assert mklens({"out": [b.dref, "o"]}, o=tmp_path, S=S).out.syspath == expected


# --- the parts ----------------------------------------------------------------------------------------


def test_functions_of_values(S: StorageSettings, top: RRef) -> None:
    ctx = LensContext(S, None, rrefctx(top, S), None)
    assert val2dict(3, ctx) is None
    config = val2dict(top, ctx)
    assert config is not None
    assert config["name"] == "top"
    mid = val2rref(config["mid"], ctx)
    assert val2path([config["mid"], "t.json"], ctx) == os.path.join(rref2path(mid, S), "t.json")
    lens = Lens(ctx, {"a": {"b": 1}}, ["a", "b"])
    mutate(lens, 2, "test")
    assert traverse(lens, "test") == 2


def test_errors_show_references_whole(S: StorageSettings) -> None:
    rref = realize1(instantiate(stage, S=S))
    with pytest.raises(MissingKey) as caught:
        mklens(rref, S=S).get("nope")
    assert f"mklens({str(rref)!r}) has no item 'nope'" in str(caught.value)


# --- several realizations -------------------------------------------------------------------------------


def trials(r: Registry) -> DRef:
    low = stage(r, "low", realizer=writes({"low.txt": "a"}, {"low.txt": "b"}), matcher=match_latest(2), text=[selfref, "low.txt"])
    models = stage(
        r,
        "models",
        low=low,
        realizer=writes({"rmse": "0.1"}, {"rmse": "0.2"}, {"rmse": "0.3"}),
        matcher=match_latest(2),
        rmse=[selfref, "rmse"],
    )
    return stage(r, "report", models=models, file=[models, "rmse"], several=[models, [low, 5], {"deep": low}], one=stage(r, "one"))


def test_each_of_several_realizations_is_reached_by_its_number(S: StorageSettings) -> None:
    lens = mklens(realize1(instantiate(trials, S=S)), S=S)
    rrefs = sorted(rrefctx(lens.rref, S)[lens.models.dref] or [])
    assert len(rrefs) == 2
    for number, rref in enumerate(rrefs):
        assert lens.models[number].rref == rref
        assert lens.models[number].rmse.contents in ("0.1", "0.2", "0.3")
        assert lens.models[number].rmse.syspath == f"{rref2path(rref, S)}/rmse"
        assert lens.file[number].contents == lens.models[number].rmse.contents
        assert lens.models[number - 2].rref == rref
    assert [model.rref for model in lens.models] == rrefs
    assert sorted(low.text.contents for low in lens.models[0].low) == ["a", "b"]
    assert [one.syspath for one in lens.one] == [lens.one.syspath], "one is a choice as well"
    assert lens[0].rref == lens.rref


def test_items_of_lists_are_reached_by_their_numbers(S: StorageSettings) -> None:
    lens = mklens(realize1(instantiate(trials, S=S)), S=S)
    assert lens.several[0].dref == lens.models.dref
    assert lens.several[0][1].rmse.contents == lens.models[1].rmse.contents
    assert (lens.several[1][1].val, lens.several[2].deep.dref) == (5, lens.models[0].low.dref)
    assert lens_repr(lens.several[1][1], "val").endswith(".several[1][1].val")
    assert pickle.loads(pickle.dumps(lens.several[1][1])).val == 5
    d = {"a": [1, {"b": [2, 3]}]}
    mklens(d, S=S).a[1].b[-1].val = 4
    mklens(d, S=S).a[0].val = 0
    assert d == {"a": [0, {"b": [2, 4]}]}
    assert mklens(d, S=S).a[1].val is d["a"][1]
    kept = mklens(d, S=S).a[1]
    d["a"].pop()
    with pytest.raises(Misuse, match="it had one when the lens was made"):
        _ = kept.val


def test_a_lens_on_several_says_how_to_take_one(S: StorageSettings) -> None:
    lens = mklens(realize1(instantiate(trials, S=S)), S=S)
    for several, what in ((lens.models, "rref"), (lens.models.rmse, "contents"), (lens.models.rmse, "syspath"), (lens.file, "contents")):
        with pytest.raises(AmbiguousMatch, match=r"found 2 .*; take one by its number, as in mklens\(…\)\.models\[0\]") as caught:
            getattr(several, what)
        assert "choose with a matcher" not in str(caught.value)


@pytest.mark.parametrize("index", [2, -3, "rmse", 0.0, None])
def test_a_number_that_is_not_there(S: StorageSettings, index: Any) -> None:
    lens = mklens(realize1(instantiate(trials, S=S)), S=S)
    with pytest.raises(MissingKey, match="expected a number from 0 to 1") as caught:
        _ = lens.models[index]
    assert isinstance(caught.value, IndexError)


@pytest.mark.parametrize("value", [5, "text", None, {"a": 1}])
def test_other_values_have_no_numbers(S: StorageSettings, value: Any) -> None:
    with pytest.raises(Misuse, match="numbers lead to items of lists"):
        _ = mklens({"item": value}, S=S).item[0]
    with pytest.raises(Misuse, match="numbers lead to items of lists"):
        list(mklens({"item": value}, S=S).item)
