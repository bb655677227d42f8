"""Decorators that register at once, and the raw forms, which get all outputs in one call."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from tests.stores import Notes

from pylightnix import (
    Build,
    DRef,
    Options,
    Registry,
    StorageSettings,
    autodrv,
    autodrv_,
    autostage,
    autostage_,
    build_outpaths,
    current_registry,
    drefcfg_,
    instantiate,
    match_some,
    mkregistry,
    options_of,
    pyobjhash,
    realize1,
    realizeMany,
    rref2path,
    selfref,
    wrapsig,
)
from pylightnix.attrs import Attrs
from pylightnix.errors import BuildError, ConflictingArguments, Misuse, NoRegistry
from pylightnix.travel.packing import pack_realizer, unpack

pytestmark = pytest.mark.language


def config_of(dref: DRef, r: Registry) -> dict[str, Any]:
    return drefcfg_(dref, r.S).val


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def read(path: str) -> str:
    with open(path) as file:
        return file.read()


SEEN = Notes()


def test_function_becomes_a_derivation(S: StorageSettings) -> None:
    SEEN.clear()

    def stage(r: Registry, a: int = 1, name: str = "made") -> DRef:
        out = [selfref, "out"]

        @autodrv(**locals())
        def made(build: Build, a: int, name: str, out: str) -> None:
            SEEN.append({"a": a, "name": name, "build": type(build)})
            write(out, str(a))

        return made

    dref, closure = instantiate(stage, a=3, S=S)
    rref = realize1((dref, closure))
    assert read(f"{rref2path(rref, S)}/out") == "3"
    assert [{"a": 3, "name": "made", "build": Build}] == SEEN
    assert dref.endswith("-made")
    assert set(drefcfg_(dref, S).val) == {"a", "name", "out", "__source__"}


def test_rest_parameters_get_every_item_and_the_build(S: StorageSettings) -> None:
    seen = Notes()

    def stage(r: Registry) -> DRef:
        @autodrv(r=r, x=1, nouts=2, matcher=match_some(2))
        def made(rindex: int, **kw: Any) -> None:
            seen.append(set(kw))
            write(f"{build_outpaths(kw['build'])[rindex]}/n", str(rindex))

        return made

    assert len(realizeMany(instantiate(stage, S=S))) == 2
    assert seen == [{"x", "build"}] * 2


def test_keywords_win_over_defaults_and_stages_are_called(S: StorageSettings) -> None:
    r = mkregistry(S)

    @autostage(name="dependency")
    def dependency(build: Build) -> None: ...

    def made(build: Build, a: int = 1, b: int = 2, dep: Any = None) -> None: ...

    dref = autodrv(r, a=5, dep=dependency)(made)
    config = config_of(dref, r)
    assert (config["a"], config["b"], config["__source__"]) == (5, 2, pyobjhash([made]))
    assert config["dep"] in r.builders


def test_registry_is_found(S: StorageSettings) -> None:
    def made(build: Build) -> None: ...

    r = mkregistry(S)
    with current_registry(r):
        assert autodrv(made) == autodrv()(made) == autodrv(r)(made) == autodrv(r=r)(made)
    with pytest.raises(NoRegistry):
        autodrv(made)
    with pytest.raises(Misuse, match="autodrv takes a registry"):
        autodrv(r, r=r)
    with pytest.raises(Misuse, match="has no value for 'a'"):
        autodrv(r)(lambda a: None)


def test_steering(S: StorageSettings) -> None:
    def made(build: Build) -> None: ...

    r = mkregistry(S)
    dref = autodrv(r, options=Options(cpus=2), sourcedeps=[read])(made)
    assert options_of(r.builders[dref].realizer).cpus == 2
    assert config_of(dref, r) == {"__source__": pyobjhash([made, read])}
    with pytest.raises(ConflictingArguments, match="nouts"):
        autodrv(r, nouts=1)(lambda nouts: None)


# --- raw forms ------------------------------------------------------------------------------------------


@autostage_(nouts=2, matcher=match_some(2), out=[selfref, "n"], n=1)
def raw(build: Build, arglist: list[Attrs]) -> None:
    """Fill all outputs at once."""
    for number, arguments in enumerate(arglist):
        write(arguments.out, f"{arguments.n} {number}")


def test_raw_stage_is_called_once(S: StorageSettings) -> None:
    rrefs = realizeMany(instantiate(raw, n=7, extra=1, S=S))
    assert sorted(read(f"{rref2path(rref, S)}/n") for rref in rrefs) == ["7 0", "7 1"]
    r = mkregistry(S)
    assert config_of(raw(r=r), r) == {"n": 1, "out": [selfref, "n"], "__source__": pyobjhash([raw])}


def test_raw_realizer_travels_by_name(S: StorageSettings) -> None:
    r = mkregistry(S)
    realizer = r.builders[raw(r=r)].realizer
    assert pickle.loads(pickle.dumps(realizer)) == realizer
    blob = pack_realizer(realizer).blob
    assert blob is not None
    assert len(blob) < 500
    assert unpack(blob) == realizer


def test_raw_derivation_is_registered_at_once(S: StorageSettings) -> None:
    r = mkregistry(S)

    @autodrv_(r=r, a=1, name="raw")
    def made(build: Build, arglist: list[Attrs]) -> None:
        write(f"{build_outpaths(build)[0]}/a", str(arglist[0].a))

    assert isinstance(made, str)
    assert read(f"{rref2path(realize1(instantiate(made, r=r)), S)}/a") == "1"


def test_raw_functions_take_two_arguments() -> None:
    for function in (lambda build: None, lambda build, arglist, more: None):
        with pytest.raises(Misuse, match=r"f\(build, arglist\)"):
            autostage_(function)


def test_wrapsig_makes_a_raw_function(S: StorageSettings) -> None:
    seen = Notes()

    def f(a: int, b: int = 2, *, build: Build, rindex: int) -> None:
        seen.append((a, b, rindex))
        write(f"{build_outpaths(build)[rindex]}/n", str(rindex))

    items, call = wrapsig(f, {"a": 1, "c": 3})
    assert items == {"a": 1, "b": 2, "c": 3}
    realizeMany(instantiate(autostage_(nouts=2, matcher=match_some(2), **items)(call), S=S))
    assert seen == [(1, 2, 0), (1, 2, 1)]
    assert pyobjhash([call]) == pyobjhash([f])
    with pytest.raises(ConflictingArguments, match="'b' twice"):
        wrapsig(f, {"b": 3})
    items, call = wrapsig(lambda **kw: seen.append(kw), {"a": 1})
    with pytest.raises(BuildError):
        realize1(instantiate(autostage_(**items)(lambda build, arglist: call(build, [*arglist, None])), S=S))  # type: ignore[list-item]
    assert seen[-1] == {"a": 1}
