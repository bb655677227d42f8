"""Config items with names that calls, builds and objects use themselves."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from pylightnix import (
    Build,
    BuildError,
    ConflictingArguments,
    DRef,
    InvalidStageCall,
    Misuse,
    Registry,
    StorageSettings,
    autodrv,
    autostage,
    build_cattrs,
    build_environ,
    build_outpath,
    build_wrapper,
    instantiate,
    match_only,
    mkconfig,
    mkdrv,
    mklens,
    realize1,
)

pytestmark = pytest.mark.language

NAMES = [
    "S",
    "r",
    "build",
    "rindex",
    "context",
    "dref",
    "self",
    "cls",
    "config",
    "val",
    "b",
    "f",
    "items",
    "args",
    "kwargs",
    "rarg",
    "class",
]


def seen(b: Build) -> None:
    attrs, environ = build_cattrs(b), build_environ(b)
    assert [getattr(attrs, name) for name in NAMES] == list(range(len(NAMES)))
    assert [environ[name] for name in NAMES] == [str(number) for number in range(len(NAMES))]
    subprocess.run(["true"], env=environ, check=True)


def test_configs_take_every_name(S: StorageSettings) -> None:
    config = {"name": "odd", **{name: number for number, name in enumerate(NAMES)}}
    rref = realize1(instantiate(lambda r: mkdrv(mkconfig(config), match_only(), build_wrapper(seen), r), S=S))
    lens = mklens(rref, S=S)
    assert [getattr(lens, name).val for name in ("S", "r", "build", "self", "context")] == [0, 1, 2, 6, 4]


def test_stages_take_the_names_of_settings_and_contexts(S: StorageSettings) -> None:
    @autostage(name="stage", context=3)
    def stage(S: str, self: int, context: int, dref: int, config: int = 5) -> None:
        assert (S, self, context, dref, config) == ("v", 2, 3, 4, 5)

    def drv(r: Registry, S: int = 1, self: int = 2, context: int = 3) -> DRef:
        @autodrv(**locals())
        def drv(S: int, self: int, context: int) -> None:
            assert (S, self, context) == (1, 2, 3)

        return drv

    realize1(instantiate(lambda r: stage(r=r, S="v", self=2, dref=4), S=S))
    realize1(instantiate(drv, S=S))
    with pytest.raises(Misuse, match=r"S expects the settings of a store, found 'v'.*instantiate\(lambda r: stage"):
        instantiate(stage, S="v", self=2, dref=4)  # type: ignore[arg-type]  # what programs write


def test_the_registry_keeps_its_name(S: StorageSettings) -> None:
    with pytest.raises(ConflictingArguments, match="has a parameter 'r', and 'r' is the registry"):

        @autostage(name="stage")
        def stage(r: Any) -> None:
            raise AssertionError

    with pytest.raises(InvalidStageCall, match="takes for r a registry, found 'v'"):
        autostage(name="stage", r="v")  # type: ignore[call-overload]  # what programs write


def test_items_that_are_no_variables(S: StorageSettings) -> None:
    def environ(b: Build) -> None:
        build_environ(b)
        open(f"{build_outpath(b)}/out", "w").close()

    for number, (key, value) in enumerate({"a=b": 1, "nul\0": 1, "": 1, "value": "a\0b"}.items()):
        config = mkconfig({"name": "env", key: value, "number": number})
        with pytest.raises(BuildError) as caught:
            realize1(instantiate(lambda r, config=config: mkdrv(config, match_only(), build_wrapper(environ), r), S=S))
        assert isinstance(caught.value.exception, Misuse)
        assert repr(key) in str(caught.value.exception)
