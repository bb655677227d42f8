"""Options of realizers: what they may be, and that they travel; what they do to the digest of code."""

from __future__ import annotations

import copy
import pickle
from dataclasses import fields
from typing import Any

import pytest

from pylightnix import (
    Build,
    Options,
    Path,
    StorageSettings,
    UnseenCode,
    autostage,
    build_wrapper,
    command,
    drefcfg_,
    instantiate,
    mkregistry,
    options_of,
    pyobjhash,
    realize1,
    rref2path,
    with_options,
)
from pylightnix.errors import CodeKeyError, Misuse
from pylightnix.options import SteeredRealizer
from pylightnix.travel.packing import pack_realizer, unpack

pytestmark = pytest.mark.language


def realizer(build: Build) -> None:
    helper()


def helper() -> None: ...


def other(build: Build) -> None: ...


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("version", 3), ("version", ""), ("track", "all"), ("cpus", 0), ("cpus", "1"), ("cpus", float("nan")), ("cpus", True),
        ("memory", 0), ("memory", 1.5), ("memory", "1G"), ("tags", ["gpu"]), ("tags", {"gpu": 0}), ("tags", {"": 1}), ("tags", {1: 1}),
        ("timeout_seconds", 0), ("timeout_seconds", "1"), ("silent_timeout_seconds", -1), ("silent_timeout_seconds", float("inf")),
        ("env", "HOME"), ("env", ["A=B"]), ("env", [""]), ("env", [1]), ("sandbox", "docker"), ("worker", "cold"), ("priority", 1.5),
        ("priority", None),
    ],
)  # fmt: skip
def test_options_are_checked(name: str, value: Any) -> None:
    with pytest.raises(Misuse, match=f"the option {name} is "):
        Options(**{name: value})


def test_every_option_can_be_given() -> None:
    given: dict[str, Any] = {
        "version": "3", "track": "function", "cpus": 1.5, "memory": 1 << 30, "tags": {"gpu": 1, "disk": 2}, "timeout_seconds": 1,
        "silent_timeout_seconds": 0.5, "env": ["HOME"], "sandbox": "bwrap", "worker": "fresh", "priority": -1,
    }  # fmt: skip
    options = Options(**given)
    assert set(given) == {each.name for each in fields(Options)}
    assert options != Options()
    assert options == pickle.loads(pickle.dumps(options)) == copy.deepcopy(options)
    assert hash(options) == hash(Options(**{**given, "tags": {"disk": 2, "gpu": 1}}))


def test_options_travel_with_realizers() -> None:
    plain = build_wrapper(realizer)
    options = Options(version="3", cpus=2)
    found = with_options(with_options(plain, Options(cpus=8)), options)
    assert (options_of(plain), options_of(found), options_of(with_options(found, Options()))) == (Options(), options, Options())
    blob = pack_realizer(found).blob
    assert blob is not None
    assert options_of(unpack(blob)) == options
    assert pyobjhash([unpack(blob)]) == pyobjhash([found]) != pyobjhash([plain])
    with pytest.raises(Misuse, match="with_options expects"):
        with_options(plain, {"cpus": 1})  # type: ignore[arg-type]


def test_options_do_not_change_what_kind_a_realizer_is(S: StorageSettings) -> None:
    r = mkregistry(S)
    drv = r.builders[command(["true"], r=r)]
    assert pack_realizer(with_options(drv.realizer, Options(cpus=2))).kind == "command"


def test_realizer_with_options_does_the_same(S: StorageSettings) -> None:
    def realize(S: StorageSettings, dref: Any, context: Any, rarg: Any) -> list[Path]:
        return [Path(f"{dref}{rarg}")]

    found = with_options(realize, Options(cpus=2))
    assert found(S, "dref", {}, {}) == ["dref{}"]  # type: ignore[arg-type]
    assert isinstance(found, SteeredRealizer)
    assert copy.copy(found) == found
    with pytest.raises(AttributeError, match="nouts"):
        _ = found.nouts


# --- what they do to a stage's digest -------------------------------------------------------------------


def source(S: StorageSettings, stage: Any, **keywords: Any) -> str:
    r = mkregistry(S)
    return str(drefcfg_(stage(r=r, **keywords), S).val["__source__"])


def test_version_stands_in_place_of_a_stages_code(S: StorageSettings) -> None:
    one, two = (autostage(options=Options(version="3"))(f) for f in (realizer, other))
    assert source(S, one) == source(S, two) != source(S, autostage(realizer))
    assert source(S, one, options=Options(version="4")) != source(S, one)
    assert source(S, one, options=Options()) == source(S, autostage(realizer)) == pyobjhash([realizer])
    assert source(S, one) == pyobjhash([one])


def test_function_alone_and_sourcedeps(S: StorageSettings) -> None:
    alone = Options(track="function")
    assert source(S, autostage(realizer), options=alone) != source(S, autostage(realizer))
    deps = autostage(sourcedeps=[helper, Build])(realizer)
    assert source(S, deps) == pyobjhash([realizer, helper, Build]) == pyobjhash([deps])
    assert source(S, autostage(realizer), sourcedeps=[other]) == pyobjhash([realizer, other])


def test_other_options_are_no_part_of_the_digest(S: StorageSettings) -> None:
    assert source(S, autostage(options=Options(cpus=4, env=["HOME"], priority=3))(realizer)) == source(S, autostage(realizer))


def test_digest_of_the_realizer_is_the_source(S: StorageSettings) -> None:
    stage = autostage(sourcedeps=[helper], options=Options(track="packages"))(realizer)
    r = mkregistry(S)
    drv = r.builders[stage(r=r)]
    assert pyobjhash([drv.realizer]) == drefcfg_(drv.dref, S).val["__source__"]
    assert options_of(drv.realizer).track == "packages"
    assert r.builders[stage(r=r)].realizer is drv.realizer


@pytest.mark.embedded_only("it is told once in a process")
def test_what_cannot_be_seen_is_told_once(S: StorageSettings) -> None:
    @autostage
    def stage(build: Build) -> None:
        no_such_name()  # type: ignore[name-defined]  # noqa: F821

    with pytest.warns(UnseenCode, match="there is nothing of the name no_such_name"):
        source(S, stage)
    source(S, stage)  # a second warning would be an error here
    with pytest.raises(CodeKeyError, match="no_such_name"):
        source(S, stage, options=Options(track="strict"))
    source(S, stage, options=Options(version="1"))


def test_options_must_be_options() -> None:
    with pytest.raises(Misuse, match="options is Options"):
        autostage(options={"cpus": 1})(realizer)


def test_stage_with_options_is_built(S: StorageSettings) -> None:
    @autostage(out=["__self__", "x"], options=Options(cpus=2, version="1"))
    def stage(out: str) -> None:
        with open(out, "w") as file:
            file.write("x")

    rref = realize1(instantiate(stage, S=S))
    with open(f"{rref2path(rref, S)}/x") as file:
        assert file.read() == "x"
