"""Configs, names, registries and closures that cannot work: what is said, and that the store stays as it was."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path as FsPath
from typing import Any

import pytest
from tests.stores import check_error, new_store, refuses, stage, unharmed, writes

from pylightnix import (
    Closure,
    Config,
    CycleError,
    Derivation,
    DRef,
    ForeignDerivation,
    InvalidConfig,
    InvalidName,
    InvalidStorage,
    MissingDerivation,
    Misuse,
    NoRegistry,
    Registry,
    RRef,
    StorageSettings,
    instantiate,
    match_latest,
    mkclosure,
    mkconfig,
    mkdrv,
    mkregistry,
    mkSS,
    realize,
    realize1,
    realizeMany,
    rref2dref,
)
from pylightnix.config import canonical_bytes, readable_text
from pylightnix.registry import RegisteredDerivation, assert_have_realizers, mkdrv_
from pylightnix.storage import store_layout
from pylightnix.store.derivations import derivation_ref

pytestmark = pytest.mark.language


class Registryish:
    pass


def a_list_in_itself() -> list[Any]:
    endless: list[Any] = []
    endless.append(endless)
    return endless


# --- configs ------------------------------------------------------------------------------------------


@pytest.mark.embedded_only("it is refused before the store is asked")
@pytest.mark.parametrize(
    ("config", "where", "advice"),
    [
        ({"a": (1, 2)}, "config.a: (1, 2) is a tuple", "list(x)"),
        ({"a": {"b": [0, {1, 2}]}}, "config.a.b[1]: {1, 2} is a set", "sorted(x)"),
        ({"a": frozenset()}, "config.a: frozenset() is a frozenset", "sorted(x)"),
        ({"a": b"bytes"}, "config.a: b'bytes' is a bytes", "x.hex()"),
        ({"a": bytearray(b"b")}, "config.a: ", "x.hex()"),
        ({"a": 1j}, "config.a: 1j is a complex", "[x.real, x.imag]"),
        ({"a": FsPath("/x")}, "config.a: PosixPath('/x') is a PosixPath", "str(x)"),
        ({"a": Config({})}, "config.a: Config({}) is a Config", "cfgdict(x)"),
        ({"a": len}, "config.a: <built-in function len>", "call it"),
        ({"a": Registryish()}, "config.a: ", "a config holds"),
        ({"a b": [..., 1]}, "config['a b'][0]: Ellipsis", "a config holds"),
        ({1: "one"}, "config: the key 1 is an int", "str(key)"),
        ({"a": {None: 0}}, "config.a: the key None is a NoneType", "str(key)"),
        ({"a": "\udc80"}, "config.a: the text '\\udc80' has a lone surrogate at position 0", "UTF-8"),
        ({"a": {"b\ud800": 1}}, "config.a", "UTF-8"),
        ({"a": 10**5000}, "config.a: the integer has too many digits", "hex(x)"),
        ({"a": a_list_in_itself()}, "nested deeper than 100 levels", "holds itself"),
        ({"r2": Registry()}, "config.r2: Registry(0 derivations", "name it 'r'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_config_that_json_cannot_hold(S: StorageSettings, config: dict[Any, Any], where: str, advice: str) -> None:
    def main(r: Registry) -> DRef:
        return mkdrv(mkconfig(config), match_latest(), writes(), r)

    with unharmed(S):
        with pytest.raises(InvalidConfig) as caught:
            instantiate(main, S=S)
        check_error(caught.value, InvalidConfig, "invalid-config", 2, "invalid config", where, advice)


def test_a_config_is_checked_again_when_it_is_registered(S: StorageSettings) -> None:
    def main(r: Registry) -> DRef:
        config = mkconfig({"list": [1]})
        config.val["list"].append({2})
        return mkdrv(config, match_latest(), writes(), r)

    with unharmed(S):
        with pytest.raises(InvalidConfig) as caught:
            instantiate(main, S=S)
        check_error(caught.value, InvalidConfig, "invalid-config", 2, "config.list[1]", "{2} is a set")


@pytest.mark.parametrize("config", ["text", None, [("a", 1)], 3])
def test_a_config_that_is_no_dict(config: Any) -> None:
    with pytest.raises(InvalidConfig) as caught:
        mkconfig(config)
    check_error(caught.value, InvalidConfig, "invalid-config", 2, repr(config), "a config is a dict")


def test_a_plain_dict_in_place_of_a_config(S: StorageSettings) -> None:
    with unharmed(S):
        with pytest.raises(Misuse) as caught:
            instantiate(lambda r: mkdrv({"a": 1}, match_latest(), writes(), r), S=S)  # type: ignore[arg-type]  # the misuse
        check_error(caught.value, Misuse, "misuse", 2, "found a dict", "mkconfig")


def test_a_realization_in_a_config(S: StorageSettings) -> None:
    rref = realize1(instantiate(lambda r: stage(r, "below"), S=S))
    with unharmed(S):
        with pytest.raises(InvalidConfig) as caught:
            instantiate(lambda r: stage(r, "above", deps={"below": [rref]}), S=S)
        check_error(caught.value, InvalidConfig, "invalid-config", 2, "config.deps.below[0]", rref, "rref2dref")


@pytest.mark.embedded_only("it is refused before the store is asked")
@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("with space", "' '"),
        ("a/b", "'/'"),
        ("..", "'.'"),
        ("naïve", "'ï'"),
        ("ends-in-newline\n", r"'\n'"),
        ("tab\tnul\0", r"'\x00' '\t'"),
        ("", "0 characters"),
        ("x" * 212, "212 characters"),
        ("x" * 5000, "5000 characters"),
        (1.5, "'.'"),
        ([], "'['"),
    ],
)
def test_a_name_that_no_reference_can_have(S: StorageSettings, name: Any, problem: str) -> None:
    with unharmed(S):
        with pytest.raises(InvalidName) as caught:
            instantiate(lambda r: stage(r, name), S=S)
        check_error(caught.value, InvalidName, "invalid-name", 2, "invalid name", problem, "ASCII letters, digits, dashes and underscores")
        assert len(str(caught.value)) < 500


def test_a_name_may_be_a_number(S: StorageSettings) -> None:
    rref = realize1(instantiate(lambda r: mkdrv(mkconfig({"name": 33}), match_latest(), writes(), r), S=S))
    assert rref.endswith("-33")


@pytest.mark.embedded_only("it is refused before the store is asked")
@pytest.mark.parametrize(("matcher", "realizer"), [(None, writes()), (match_latest(), None), (match_latest(), "realizer")])
def test_a_matcher_or_realizer_that_cannot_be_called(S: StorageSettings, matcher: Any, realizer: Any) -> None:
    with unharmed(S):
        with pytest.raises(Misuse) as caught:
            instantiate(lambda r: mkdrv(mkconfig({}), matcher, realizer, r), S=S)
        check_error(caught.value, Misuse, "misuse", 2, "mkdrv", "can be called")


# --- registries ---------------------------------------------------------------------------------------


def test_no_registry_at_all() -> None:
    with pytest.raises(NoRegistry) as caught:
        mkdrv(mkconfig({}), match_latest(), writes())
    check_error(caught.value, NoRegistry, "no-registry", 2, "mkdrv", "r=…")


def test_a_dependency_of_another_registry(S: StorageSettings) -> None:
    def both(r: Registry) -> list[DRef]:
        foreign = stage(r, "foreign")
        return [foreign, stage(r, "above", below=foreign)]

    foreign, above = instantiate(both, S=S)[0]
    with unharmed(S):
        with pytest.raises(ForeignDerivation) as caught:
            instantiate(lambda r: stage(r, "above", below=foreign), S=S)
        check_error(caught.value, ForeignDerivation, "foreign-derivation", 2, foreign, above, "r=…")
        assert isinstance(caught.value, AssertionError)
        assert (caught.value.dref, caught.value.needed_by) == (foreign, above)


def test_a_target_of_another_registry(S: StorageSettings) -> None:
    foreign: DRef = instantiate(lambda r: stage(r, "foreign"), S=S)[0]
    with unharmed(S):
        with pytest.raises(ForeignDerivation) as caught:
            instantiate([foreign], S=S)
        check_error(caught.value, ForeignDerivation, "foreign-derivation", 2, foreign, "a target")
        with pytest.raises(ForeignDerivation):
            assert_have_realizers(mkregistry(S), [foreign])


def test_a_dependency_that_is_not_even_in_the_store(S: StorageSettings, tmp_path: FsPath) -> None:
    missing: DRef = instantiate(lambda r: stage(r, "missing"), S=new_store(tmp_path / "other"))[0]
    mkdrv_(mkconfig({"name": "above", "below": missing}), S)
    with unharmed(S):
        for given in (lambda r: stage(r, "above", below=missing), missing):
            with pytest.raises(MissingDerivation) as caught:
                instantiate(given, S=S)
            where = os.path.join(store_layout(S).derivation(missing), "config.json")
            check_error(caught.value, MissingDerivation, "missing-derivation", 66, missing, where, "instantiate its stage")
            assert isinstance(caught.value, FileNotFoundError)


def test_a_foreign_derivation_that_no_target_needs_is_let_through(S: StorageSettings) -> None:
    foreign: DRef = instantiate(lambda r: stage(r, "foreign"), S=S)[0]

    def main(r: Registry) -> DRef:
        stage(r, "beside", below=foreign)
        return stage(r, "wanted")

    closure = instantiate(main, S=S)
    assert len(closure[1].derivations) == 2
    assert realize1(closure)


@pytest.mark.embedded_only("it is refused before the store is asked")
@pytest.mark.parametrize("result", [None, [], {}, "text", 1, ["a", {"b": 2}], "dref:short-x"])
def test_a_stage_without_derivations_as_result(S: StorageSettings, result: Any) -> None:
    with unharmed(S):
        with pytest.raises(Misuse) as caught:
            instantiate(lambda r: result, S=S)
        check_error(caught.value, Misuse, "misuse", 2, repr(result), "return a DRef")


def test_instantiate_inside_itself_with_the_same_registry(S: StorageSettings) -> None:
    def inner(r: Registry) -> DRef:
        return stage(r, "inner")

    def main(r: Registry) -> Any:
        return instantiate(inner, r=r)

    r = mkregistry(S)
    with unharmed(S):
        with pytest.raises(Misuse) as caught:
            instantiate(main, r=r)
        check_error(caught.value, Misuse, "misuse", 2, "inside itself", "r=…")
    assert not r.in_instantiate
    assert realize1(instantiate(inner, r=r))


def test_a_store_and_a_registry_on_another(S: StorageSettings, tmp_path: FsPath) -> None:
    other = new_store(tmp_path / "other")
    with unharmed(S):
        with pytest.raises(InvalidStorage) as caught:
            instantiate(stage, S=other, r=mkregistry(S))
        check_error(caught.value, InvalidStorage, "invalid-storage", 2, str(tmp_path / "other"), str(tmp_path / "store"), "one of them")


def test_a_store_and_a_registry_that_mean_the_same(S: StorageSettings) -> None:
    assert realize1(instantiate(stage, S=mkSS(f"{S.root}/"), r=mkregistry(S)))


# --- closures -----------------------------------------------------------------------------------------


def test_a_circle_is_named(S: StorageSettings) -> None:
    # A circle of true references would take a hash that holds itself, so their hashes are made up, and
    # the only way in is a registry whose derivations say themselves what they depend on.
    names = ["first", "second", "third"]
    drefs = [DRef(f"dref:{number:032x}-{name}") for number, name in enumerate(names)]
    r = mkregistry(S)
    for number, dref in enumerate(drefs):
        derivation = RegisteredDerivation(dref, match_latest(), refuses)
        derivation.config, derivation.deps = b"{}", (drefs[(number + 1) % 3],)
        r.builders[dref] = derivation
    closure = Closure(drefs[0], [drefs[0]], list(r.builders.values()), S)
    calls: list[Callable[[], object]] = [lambda: instantiate(drefs[0], r=r), lambda: mkclosure([drefs[1]], r), lambda: realize(closure)]
    with unharmed(S):
        for call in calls:
            with pytest.raises(CycleError) as caught:
                call()
            check_error(caught.value, CycleError, "cycle", 2, " -> ".join([*drefs, drefs[0]]), "remove one")


def test_a_closure_made_by_hand_with_a_made_up_derivation(S: StorageSettings) -> None:
    made_up = DRef(f"dref:{'0' * 32}-made-up")
    closure = Closure(made_up, [made_up], [Derivation(made_up, match_latest(), refuses)], S)
    with unharmed(S):
        with pytest.raises(MissingDerivation) as caught:
            realize(closure)
        check_error(caught.value, MissingDerivation, "missing-derivation", 66, made_up)


def test_a_closure_with_a_target_that_is_not_in_it(S: StorageSettings) -> None:
    result, closure = instantiate(stage, S=S)
    other = DRef(f"dref:{'0' * 32}-other")
    with unharmed(S):
        with pytest.raises(ForeignDerivation) as caught:
            realize(closure._replace(targets=[result, other]))
        check_error(caught.value, ForeignDerivation, "foreign-derivation", 2, other, "a target")


@pytest.mark.parametrize("given", [None, "text", (), ("a", "b"), ("a", "b", "c", "d"), 1, lambda r: r])
def test_what_is_no_closure(given: Any) -> None:
    for call in (realize, realizeMany, realize1):
        with pytest.raises(Misuse) as caught:
            call(given)
        check_error(caught.value, Misuse, "misuse", 2, "expected a closure", "call instantiate(stage) first")


def test_an_empty_closure(S: StorageSettings) -> None:
    with pytest.raises(Misuse, match="expected a closure with derivations"):
        realize(Closure([], [], [], S))


@pytest.mark.parametrize("force", ["dref:", None, 1, {"a": 1}, lambda: True])
def test_a_force_rebuild_of_another_type(S: StorageSettings, force: Any) -> None:
    closure = instantiate(stage, S=S)
    with unharmed(S):
        with pytest.raises(Misuse) as caught:
            realize(closure, force_rebuild=force)
        check_error(caught.value, Misuse, "misuse", 2, "force_rebuild expects True, False or a list of DRefs")


@pytest.mark.parametrize("result", [lambda drefs: drefs, lambda drefs: {"a": drefs[0]}])
def test_realize1_and_many_take_one_dref_only(S: StorageSettings, result: Callable[[list[DRef]], Any]) -> None:
    closure = instantiate(lambda r: result([stage(r, "a"), stage(r, "b")]), S=S)
    with unharmed(S):
        for call in (realizeMany, realize1):
            with pytest.raises(Misuse) as caught:
                call(closure)
            check_error(caught.value, Misuse, "misuse", 2, "one DRef", "use realize")


def test_errors_name_derivations_as_the_store_does(S: StorageSettings) -> None:
    """The reference in an error is the one that the store uses: the hash of the canonical config."""
    config = mkconfig({"name": "checked", "b": 1, "a": [float("inf")]})
    dref: DRef = instantiate(lambda r: mkdrv(config, match_latest(), writes(), r), S=S)[0]
    assert dref == derivation_ref(canonical_bytes(config.val), "checked")
    assert FsPath(store_layout(S).config(dref)).read_text() == readable_text(config.val)
    assert rref2dref(RRef(f"rref:{'0' * 32}-{dref[5:]}")) == dref


def test_a_refused_call_warns_of_nothing(S: StorageSettings, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), pytest.raises(InvalidConfig):
        instantiate(lambda r: stage(r, bad={1}), S=S)
    assert caplog.records == []
