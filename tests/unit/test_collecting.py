"""A block without garbage collection leaves the collector as it was found, and gives users' code theirs."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path as FsPath
from typing import Any

import pytest

from pylightnix import Context, DRef, Path, Registry, RRef, StorageSettings, fstmpdir, instantiate, mkconfig, mkdrv, realize1
from pylightnix.collecting import Uncollected


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    assert gc.isenabled()
    yield
    gc.enable()


def test_collection_stops_and_goes_on() -> None:
    with Uncollected():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(KeyError), Uncollected():
        raise KeyError
    assert gc.isenabled()


def test_blocks_nest_and_overlap() -> None:
    one, other = Uncollected(), Uncollected()
    with one:
        with other, other.interrupted():
            assert not gc.isenabled()  # the outer one goes on
        assert not gc.isenabled()
    assert gc.isenabled()
    one.__enter__()
    other.__enter__()
    one.__exit__()
    other.__exit__()
    assert gc.isenabled()


@pytest.mark.parametrize("switched_on", [True, False])
def test_what_users_switch_counts(switched_on: bool) -> None:
    with Uncollected() as block:
        with block.interrupted():
            assert gc.isenabled()
            if not switched_on:
                gc.disable()
        assert not gc.isenabled()
    assert gc.isenabled() is switched_on


def test_who_has_none_gets_none() -> None:
    gc.disable()
    with Uncollected() as block, block.interrupted():
        assert not gc.isenabled()
    assert not gc.isenabled()


@pytest.mark.embedded_only("it is about the collector of this process")
def test_matchers_and_realizers_have_it(S: StorageSettings) -> None:
    seen = []

    def matcher(S: StorageSettings, rrefs: list[RRef]) -> Any:
        seen.append(gc.isenabled())
        return rrefs or None

    def realizer(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Path]:
        seen.append(gc.isenabled())
        folder = Path(f"{fstmpdir(S)}/out")
        FsPath(folder).mkdir()
        return [folder]

    def stage(r: Registry) -> DRef:
        return mkdrv(mkconfig({"name": "one"}), matcher, realizer, r)

    realize1(instantiate(stage, S=S))
    assert seen == [True, True, True]
    assert gc.isenabled()
