from __future__ import annotations

import copy
import functools
import inspect
import os
import pickle
import time
from collections.abc import Sequence
from typing import Any

import pytest
from tests.stores import Notes, refuses, stage, writes

from pylightnix import (
    BuildError,
    Derivation,
    DRef,
    Registry,
    RRef,
    StorageSettings,
    current_registry,
    drefcfg_,
    instantiate,
    match_latest,
    match_only,
    match_some,
    mkregistry,
    realize,
    realize1,
    realizeMany,
    rref2path,
    selfref,
)
from pylightnix.attrs import Attrs, realizeU, unroll, unrollR
from pylightnix.autostage import AutoStage, InvalidStageCall, autostage
from pylightnix.build import Build, build_outpath, build_outpaths
from pylightnix.codekey import pyobjhash
from pylightnix.errors import ConflictingArguments, InvalidConfig, MissingRealization, Misuse, NoRegistry, NotRealized

pytestmark = pytest.mark.language


@pytest.fixture
def r(S: StorageSettings) -> Registry:
    return mkregistry(S)


def config_of(dref: DRef, r: Registry) -> dict[str, Any]:
    return drefcfg_(dref, r.S).val


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def read(path: str) -> str:
    with open(path) as file:
        return file.read()


@autostage
def number(build: Build, n: int = 1, out: Any = [selfref, "n"]) -> None:  # noqa: B006  # a config item, never changed
    """Write a number."""
    write(out, str(n))


def calls(f: Any, S: StorageSettings, **config: Any) -> Sequence[dict[str, Any]]:
    """Realize a stage and return with which keywords its function was called."""
    seen = Notes()

    @functools.wraps(f)
    def recorded(*args: Any, **kwargs: Any) -> None:
        seen.append(kwargs)
        f(*args, **kwargs)

    realize(instantiate(autostage(**config)(recorded), S=S), force_rebuild=True)
    return seen


# --- config -------------------------------------------------------------------------------------------


def test_config_is_defaults_then_decorator_then_call(r: Registry) -> None:
    @autostage(b=2, c=2, extra=2)
    def f(build: Build, a: int = 1, *, b: int, c: int, d: Any = None) -> None: ...

    expected = {"a": 1, "b": 2, "c": 3, "d": None, "extra": 4, "name": "x", "__source__": pyobjhash([f])}
    assert config_of(f(r, c=3, extra=4, name="x"), r) == expected


def test_name_is_not_that_of_the_function(r: Registry) -> None:
    assert number(r=r).endswith("-unnamed")
    assert autostage(name="train")(number.__wrapped__)(r=r).endswith("-train")


def test_steering_keywords_are_not_stored(r: Registry) -> None:
    f = number.__wrapped__
    steered = autostage(nouts=2, matcher=match_some(2), always_multiref=True, sourcedeps=[], r=r)(f)
    assert steered() == number(r=r)


def test_default_of_what_the_build_supplies_is_not_stored(r: Registry) -> None:
    @autostage
    def f(build: Any = None, rindex: Any = None, r: Any = None) -> None: ...

    assert set(config_of(f(r=r), r)) == {"__source__"}


def test_name_in_default_and_decorator_is_refused() -> None:
    with pytest.raises(ConflictingArguments, match="'n' twice"):
        autostage(n=2)(number.__wrapped__)


def test_name_of_steering_in_parameter_and_decorator_is_refused() -> None:
    with pytest.raises(ConflictingArguments, match="'nouts'"):

        @autostage(nouts=2)
        def f(nouts: int) -> None: ...


def test_parameter_named_like_steering_is_config_at_the_call(r: Registry) -> None:
    @autostage
    def f(nouts: int = 1) -> None: ...

    assert config_of(f(r=r, nouts=5), r)["nouts"] == 5


def test_code_is_part_of_the_config(r: Registry) -> None:
    one = autostage(lambda build, a=1: print(1))
    other = autostage(lambda build, a=1: print(2))
    assert one(r=r) != other(r=r)


def test_code_of_sourcedeps_is_part_of_the_config(r: Registry) -> None:
    f = number.__wrapped__
    plain, with_helper = number(r=r), autostage(sourcedeps=[read])(f)(r=r)
    assert plain != with_helper
    assert number(r=r, sourcedeps=[read]) == with_helper
    assert with_helper != autostage(sourcedeps=[write])(f)(r=r)


# --- registries -----------------------------------------------------------------------------------------


def test_registry_by_position_by_keyword_of_the_decorator_or_current(r: Registry) -> None:
    dref = number(r)
    assert number(r=r) == dref
    assert autostage(r=r)(number.__wrapped__)() == dref
    with current_registry(r):
        assert number() == number(r=None) == dref
    assert list(r.builders) == [dref]


def test_registry_of_the_call_wins(S: StorageSettings, r: Registry) -> None:
    other = mkregistry(S)
    autostage(r=other)(number.__wrapped__)(r=r)
    assert (len(r.builders), len(other.builders)) == (1, 0)


def test_no_registry(defaults: None) -> None:
    with pytest.raises(NoRegistry):
        number()


def test_what_is_no_registry_is_refused(r: Registry) -> None:
    for args, kwargs in (([3], {}), ([r, r], {}), ([r], {"r": r}), ([], {"r": "r"})):
        with pytest.raises(InvalidStageCall, match="takes a registry"):
            number(*args, **kwargs)


def test_registering_again_does_not_warn(r: Registry, caplog: pytest.LogCaptureFixture) -> None:
    number(r=r)
    number(r=r)
    assert caplog.messages == []


# --- calls that cannot work -----------------------------------------------------------------------------


def test_d27_misspelt_keyword_is_refused_with_a_suggestion(r: Registry) -> None:
    @autostage(extra=1)
    def f(build: Build, learning_rate: float = 0.1) -> None: ...

    with pytest.raises(InvalidStageCall, match="'learning_rat'; did you mean 'learning_rate'") as raised:
        f(r=r, learning_rat=1)
    assert isinstance(raised.value, AssertionError)
    assert isinstance(raised.value, TypeError)
    assert r.builders == {}
    config = config_of(f(r=r, extra=2, name="x", build=None), r)
    assert (config["extra"], config["name"]) == (2, "x")


def test_d27_what_the_build_supplies_is_refused_where_the_function_does_not_take_it(r: Registry) -> None:
    @autostage
    def plain(a: int = 1) -> None: ...

    for key in ("build", "rindex"):
        with pytest.raises(InvalidStageCall, match=f"no parameter '{key}'; it has 'a'"):
            plain(r=r, **{key: 0})
    assert r.builders == {}

    @autostage
    def takes(build: Build, rindex: int) -> None: ...

    dref = takes(r=r)
    assert takes(r=r, build=1, rindex=2) == dref
    assert {"build", "rindex"} & config_of(dref, r).keys() == set()

    @autostage(build="an item of the decorator")
    def has(a: int = 1) -> None: ...

    assert config_of(has(r=r, build="new"), r)["build"] == "new"

    @autostage
    def rest(**rest: Any) -> None: ...

    assert config_of(rest(r=r, build="an item"), r)["build"] == "an item"


def test_missing_parameter_is_refused_at_the_call(r: Registry) -> None:
    @autostage
    def f(build: Build, rindex: int, a: int, *, b: int) -> None: ...

    with pytest.raises(InvalidStageCall, match="no value for 'b'; pass b=…"):
        f(r=r, a=1)
    with pytest.raises(InvalidStageCall, match="'a', 'b'"):
        f(r=r)
    f(r=r, a=1, b=2)


def test_d28_value_that_is_no_json_is_refused(r: Registry) -> None:
    for value in ({1}, dict, len, (1,)):
        with pytest.raises(InvalidConfig, match=r"config\.n"):
            number(r=r, n=value)


def test_number_of_outputs_is_checked(r: Registry) -> None:
    for nouts in (0, -1, True, "2", 2.0, None):
        with pytest.raises(Misuse, match="nouts is how many realizations one run makes, a number from 1; found"):
            autostage(nouts=nouts)(number.__wrapped__)
        with pytest.raises(Misuse, match="nouts"):
            number(r=r, nouts=nouts)


def test_source_dependencies_are_a_list(r: Registry) -> None:
    for given in (number, number.__wrapped__, Build):
        with pytest.raises(Misuse, match=r"sourcedeps is a list of functions and classes; found .*; write sourcedeps=\[.*\.\w+\]"):
            autostage(sourcedeps=given)(number.__wrapped__)  # type: ignore[call-overload]
    for no_list in (3, None, "number"):
        with pytest.raises(Misuse, match="sourcedeps is a list"):
            number(r=r, sourcedeps=no_list)
    assert number(r=r, sourcedeps=(number, Build)) == number(r=r, sourcedeps=[number, Build])


def test_a_maker_of_matchers_is_no_matcher(r: Registry) -> None:
    with pytest.raises(Misuse, match=r"matcher= expects a matcher, found match_only, which makes matchers; write match_only\(\)"):
        autostage(matcher=match_only)(number.__wrapped__)
    with pytest.raises(Misuse, match=r"write match_latest\(\)"):
        number(r=r, matcher=match_latest)
    with pytest.raises(Misuse, match="matcher= expects a matcher, which can be called"):
        number(r=r, matcher="latest")
    assert r.builders == {}


def test_what_has_no_signature_is_refused() -> None:
    with pytest.raises(Misuse, match="Python function"):
        autostage(3)  # type: ignore[call-overload]


# --- callable items -------------------------------------------------------------------------------------


def test_callable_items_are_called_with_the_registry(r: Registry) -> None:
    @autostage
    def above(build: Build, a: Any = number, b: Any = lambda r: number(n=2, r=r), c: Any = lambda r: 3) -> None: ...

    config = config_of(above(r, a=functools.partial(number, n=4)), r)
    assert (config["a"], config["b"], config["c"]) == (number(r=r, n=4), number(r=r, n=2), 3)


# --- what the function gets -----------------------------------------------------------------------------


def test_json_values_and_paths(S: StorageSettings) -> None:
    def f(a: Any, out: Any, nested: Any) -> None:
        write(out, "x")

    value = {"x": [1, None, 0.5, "t", {"y": True}]}
    [seen] = calls(f, S, a=value, out=[selfref, "o"], nested={"p": [[selfref, "o"], 1]})
    assert seen["a"] == value
    assert os.path.basename(os.path.dirname(seen["out"])).startswith("out-")
    assert seen["nested"] == {"p": [seen["out"], 1]}


def test_only_parameters_are_passed(S: StorageSettings) -> None:
    def f(a: int) -> None: ...

    assert calls(f, S, a=1, extra=2, name="x") == [{"a": 1}]


def test_rest_parameters_get_the_rest(S: StorageSettings) -> None:
    def f(a: int, **rest: Any) -> None: ...

    assert calls(f, S, a=1, extra=2, name="x") == [{"a": 1, "extra": 2, "name": "x"}]


def test_unknown_keywords_are_for_rest_parameters(r: Registry) -> None:
    @autostage
    def f(**rest: Any) -> None: ...

    assert config_of(f(r=r, anything=1), r)["anything"] == 1


def test_build_is_passed_whatever_the_config_says(S: StorageSettings) -> None:
    def f(build: Any) -> None: ...

    [seen] = calls(f, S, build="config item")
    assert isinstance(seen["build"], Build)


def test_positional_only_parameters(S: StorageSettings) -> None:
    seen = Notes()

    @autostage(a=1)
    def f(build: Build, a: int, /, *rest: Any, b: int = 2) -> None:
        seen.append((type(build), a, rest, b))

    realize(instantiate(f, S=S))
    assert seen == [(Build, 1, (), 2)]


def test_one_call_per_output_in_order(S: StorageSettings) -> None:
    def f(out: str, rindex: int, build: Build) -> None:
        assert os.path.dirname(out) == build_outpaths(build)[rindex]
        write(out, str(rindex))

    seen = calls(f, S, nouts=3, out=[selfref, "n"])
    assert [call["rindex"] for call in seen] == [0, 1, 2]
    assert len({call["out"] for call in seen}) == 3


def test_number_of_the_output_when_there_is_but_one(S: StorageSettings) -> None:
    def needs(rindex: int) -> None: ...

    def has_default(rindex: Any = None) -> None: ...

    assert calls(needs, S) == [{"rindex": 0}]
    assert calls(has_default, S) == [{}]
    assert calls(has_default, S, always_multiref=True) == [{"rindex": 0}]


def test_outputs_are_matched_by_default(S: StorageSettings) -> None:
    @autostage(nouts=3)
    def f(rindex: int, out: Any = [selfref, "n"]) -> None:  # noqa: B006
        write(out, str(rindex))

    rrefs = realizeMany(instantiate(f, S=S))
    assert sorted(read(os.path.join(rref2path(rref, S), "n")) for rref in rrefs) == ["0", "1", "2"]
    assert len(realizeMany(instantiate(f, S=S, nouts=2))) == 2


def test_failure_is_a_build_error(S: StorageSettings) -> None:
    @autostage
    def f(build: Build) -> None:
        raise ValueError("boom")

    with pytest.raises(BuildError, match="ValueError: boom"):
        realize(instantiate(f, S=S))


# --- dependencies ---------------------------------------------------------------------------------------


def test_dependency_is_an_object(S: StorageSettings) -> None:
    def f(dep: Any) -> None:
        assert isinstance(dep, Attrs)
        assert (dep.n, read(dep.out)) == (7, "7")
        assert dep.out == os.path.join(rref2path(dep._rref, S), "n")
        assert dep.__source__ == pyobjhash([number])

    assert len(calls(f, S, dep=lambda r: number(r=r, n=7))) == 1


def test_d12_dependencies_nested_in_lists_and_dicts(S: StorageSettings) -> None:
    def f(deps: Any, one: Any) -> None:
        assert [dep.n for dep in deps["list"]] == [1, 2]
        assert [dep.n for dep in one] == [1]  # one derivation in a list is a list, not a path

    def main(r: Registry) -> DRef:
        one, two = number(r=r), number(r=r, n=2)
        return autostage(deps={"list": [one, two]}, one=[one])(f)(r=r)

    realize(instantiate(main, S=S))


def test_d23_path_of_another_derivation_is_a_list_of_paths(S: StorageSettings) -> None:
    def f(one: Any, many: Any) -> None:
        assert [read(path) for path in one] == ["1"]
        assert sorted(read(path) for path in many) == ["0", "1"]

    @autostage(nouts=2)
    def two(rindex: int, out: Any = [selfref, "x"]) -> None:  # noqa: B006
        write(out, str(rindex))

    seen = calls(f, S, one=lambda r: [number(r=r), "n"], many=lambda r: [two(r=r), "x"])
    assert all(type(path) is str for path in seen[0]["many"])


def test_several_realizations_are_a_list(S: StorageSettings) -> None:
    @autostage(nouts=2)
    def two(rindex: int, out: Any = [selfref, "x"]) -> None:  # noqa: B006
        write(out, str(rindex))

    def f(dep: Any, one: Any) -> None:
        assert sorted(read(d.out) for d in dep) == ["0", "1"]
        assert len({d._rref for d in dep}) == 2

    seen = calls(f, S, dep=two, one=number)
    assert isinstance(seen[0]["one"], Attrs)
    seen = calls(f, S, dep=two, one=number, always_multiref=True)
    assert [type(one) for one in seen[0]["one"]] == [Attrs]


def chain(S: StorageSettings, length: int) -> Any:
    """A diamond-shaped history: each stage depends on the one before in two ways."""

    def main(r: Registry) -> DRef:
        dref = number(r=r)
        for i in range(length):
            dref = stage(r, f"s{i}", left=dref, right=dref, realizer=writes({"out.txt": "x"}))
        return dref

    return instantiate(main, S=S)


def test_d24_deep_diamonds_are_unrolled_at_once(S: StorageSettings) -> None:
    started = time.monotonic()
    attrs = realizeU(chain(S, 60))
    for _ in range(60):
        assert attrs.left is attrs.right
        attrs = attrs.left
    assert read(attrs.out) == "1"
    assert time.monotonic() - started < 30  # 2**60 objects otherwise


def test_history_is_seen_from_inside_a_stage(S: StorageSettings) -> None:
    seen = Notes()

    @autostage
    def top(dep: Any) -> None:
        seen.append(dep.left.right.n)

    def main(r: Registry) -> DRef:
        middle = stage(r, "m", left=number(r=r), right=number(r=r))
        return top(r=r, dep=stage(r, "n", left=stage(r, "o", right=number(r=r)), right=middle))

    realize(instantiate(main, S=S))
    assert seen == [1]


# --- Attrs and unrolling --------------------------------------------------------------------------------


@pytest.fixture
def attrs(S: StorageSettings) -> Any:
    return realizeU(chain(S, 2))


def test_attributes_are_plain(attrs: Any, S: StorageSettings) -> None:
    assert set(vars(attrs)) == {"name", "left", "right", "_rref"}
    assert {"name", "left"} <= set(dir(attrs))
    assert vars(attrs.left)["name"] == "s0"
    assert repr(attrs) == f"Attrs({attrs._rref})"
    assert not hasattr(attrs, "missing")
    with pytest.raises(AttributeError, match="'missing'; it has _rref, left, name, right"):
        attrs.missing  # noqa: B018
    attrs.parked = 3
    assert attrs.parked == 3
    del attrs.parked
    assert not hasattr(attrs, "parked")
    with pytest.raises(AttributeError):
        del attrs.parked


def test_objects_are_copied_and_pickled(attrs: Any) -> None:
    for twin in (copy.deepcopy(attrs), pickle.loads(pickle.dumps(attrs))):
        assert twin.left is twin.right is not attrs.left
        assert (twin._rref, twin.left.left.n) == (attrs._rref, 1)
    assert copy.copy(attrs).left is attrs.left


def test_objects_of_a_dry_run(S: StorageSettings) -> None:
    closure = chain(S, 1)
    with pytest.raises(NotRealized, match=r"-s0 is not realized, and a dry run builds nothing; realize\(…, dry_run=True\) says"):
        realizeU(closure, dry_run=True)
    found = realizeU(closure)
    assert realizeU(closure, dry_run=True)._rref == found._rref
    with pytest.raises(NotRealized):
        realizeU(closure, force_rebuild=True, dry_run=True)


def test_depth_is_limited(S: StorageSettings) -> None:
    closure = chain(S, 2)
    rref = realize1(closure)
    assert realizeU(closure, max_depth=0) == rref
    one = realizeU(closure, max_depth=1)
    assert one._rref == rref
    assert isinstance(one.left, RRef)
    assert isinstance(realizeU(closure, max_depth=2).left.left, str)
    assert [type(item) for item in realizeU(closure, always_multiref=True)] == [Attrs]


def test_d26_results_of_any_shape(S: StorageSettings) -> None:
    def main(r: Registry) -> Any:
        return {"a": (number(r=r), [number(r=r, n=2)]), "b": "text", "c": 3}

    result = realizeU(instantiate(main, S=S))
    assert isinstance(result["a"], tuple)
    assert (result["a"][0].n, result["a"][1][0].n, result["b"], result["c"]) == (1, 2, "text", 3)


def test_d25_every_realization_has_its_own_paths(S: StorageSettings) -> None:
    @autostage(nouts=2)
    def two(rindex: int, out: Any = [selfref, "x"]) -> None:  # noqa: B006
        write(out, str(rindex))

    assert sorted(read(attrs.out) for attrs in realizeU(instantiate(two, S=S))) == ["0", "1"]


def test_one_output_of_a_derivation(S: StorageSettings) -> None:
    result, _, context = realize(chain(S, 2))
    attrs = unroll(context, result, None, 0, S=S)
    assert attrs.left.left.n == 1
    assert isinstance(unroll(context, result, None, 0, max_depth=0, S=S).left, RRef)
    with pytest.raises(Misuse, match="counted from 0"):
        unroll(context, result, None, 1, S=S)
    assert unrollR([result], context, S=S)[0]._rref == attrs._rref


def test_one_output_of_a_running_build(S: StorageSettings) -> None:
    seen = Notes()

    @autostage(out=[selfref, "x"], dep=number)
    def f(build: Build, out: str) -> None:
        write(out, "x")
        attrs = unroll(build.context, build.dref, build, 0)
        seen.append((attrs.out == out, os.path.dirname(out) == build_outpath(build), attrs.dep.n))

    realize(instantiate(f, S=S))
    assert seen == [(True, True, 1)]


def test_realization_that_is_gone_is_named_when_it_is_looked_at(S: StorageSettings) -> None:
    attrs = realizeU(chain(S, 1))
    twin = Attrs({"_rref": attrs._rref}, lambda: (_ for _ in ()).throw(MissingRealization(attrs._rref, "there")))
    for _ in range(2):
        with pytest.raises(MissingRealization):
            twin.anything  # noqa: B018


# --- the stage as an object -----------------------------------------------------------------------------


def test_stage_looks_like_its_function() -> None:
    assert isinstance(number, AutoStage)
    assert (number.__name__, number.__doc__, number.__module__) == ("number", "Write a number.", __name__)
    assert repr(number) == f"<stage {__name__}.number>"
    assert callable(number.__wrapped__)


def test_signature_says_what_a_call_may_give() -> None:
    def f(build: Build, rindex: int, a: int, b: int, r: Any = None, *args: Any, c: float = 0.5, **rest: Any) -> None: ...

    items: dict[str, Any] = {"b": 2, "extra": 3, "not-a-name": 4}
    signature = inspect.signature(autostage(**items)(f))
    assert [p.name for p in signature.parameters.values()] == ["r", "a", "b", "c", "extra", "rest"]
    assert signature.parameters["b"].default == 2
    assert signature.parameters["a"].default is inspect.Parameter.empty
    signature.bind(None, a=1, z=3)


def test_stage_and_realizer_are_pickled_by_name(r: Registry) -> None:
    assert pickle.loads(pickle.dumps(number)) is number
    realizer = r.builders[number(r=r)].realizer
    twin = pickle.loads(pickle.dumps(realizer))
    assert twin == realizer
    assert pickle.dumps(twin) == pickle.dumps(realizer)
    assert number.__wrapped__.__code__.co_code not in pickle.dumps(realizer)


def test_realizer_shows_the_code_of_the_function(r: Registry) -> None:
    assert pyobjhash([r.builders[number(r=r)].realizer]) == pyobjhash([number]) == pyobjhash([number.__wrapped__])


def test_matcher_is_that_of_the_decorator_or_of_the_call(r: Registry) -> None:
    assert r.builders[number(r=r, matcher=match_only())].matcher == match_only()
    steered = autostage(matcher=match_some(2))(number.__wrapped__)
    assert r.builders[steered(r=r, n=5)].matcher == match_some(2)


def test_nothing_is_built_twice(S: StorageSettings) -> None:
    rref = realize1(instantiate(number, S=S))
    result, closure = instantiate(number, S=S)
    derivations = [Derivation(d.dref, d.matcher, refuses) for d in closure.derivations]
    assert realize1((result, closure._replace(derivations=derivations))) == rref
