"""What a stage's function returns: nothing, or a warning, for it is stored nowhere."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from pylightnix import (
    Build,
    DRef,
    Misuse,
    Registry,
    StorageSettings,
    autodrv,
    autodrv_,
    autostage,
    autostage_,
    build_wrapper,
    instantiate,
    match_latest,
    mkconfig,
    mkdrv,
    realize1,
    stagebody,
)


@pytest.fixture(autouse=True)
def untold() -> Iterator[None]:
    told, before = stagebody._told, set(stagebody._told)
    told.clear()
    yield
    told.clear()
    told.update(before)


def by_autostage(f: Any) -> Any:
    return autostage(name="s")(f)


def by_autostage_(f: Any) -> Any:
    return autostage_(name="s")(lambda_free(f))


def by_autodrv(f: Any) -> Any:
    return lambda r: autodrv(r, name="s")(f)


def by_autodrv_(f: Any) -> Any:
    return lambda r: autodrv_(r=r, name="s")(lambda_free(f))


def lambda_free(f: Any) -> Any:
    @functools.wraps(f, assigned=("__module__", "__qualname__"), updated=())
    def raw(build: Build, arglist: Any) -> Any:
        return f()

    del raw.__wrapped__  # else its parameters would be those of `f`
    return raw


def number() -> Any:
    return 5


def text() -> Any:
    return "text " * 100


def empty() -> Any:
    return []


@pytest.mark.embedded_only("the warning is told where the stage runs")
@pytest.mark.parametrize("made", [by_autostage, by_autostage_, by_autodrv, by_autodrv_])
@pytest.mark.parametrize("f", [number, text, empty])
def test_what_is_returned_is_told_once(S: StorageSettings, made: Any, f: Any) -> None:
    stage = made(f)
    with pytest.warns(UserWarning, match=f"the stage {f.__name__} returned .* is stored nowhere; let it write") as told:
        [realize1(instantiate(stage, S=S), force_rebuild=True) for _ in range(2)]
    assert len(told) == 1
    assert told[0].filename == __file__
    assert len(str(told[0].message)) < 300


@pytest.mark.language
def test_what_returns_nothing_or_cannot_help_it_is_not_told(S: StorageSettings) -> None:
    def nothing() -> None:
        pass

    realize1(instantiate(autostage(nothing), S=S))
    realize1(instantiate(autostage(lambda: 5), S=S))

    def stage(r: Registry) -> DRef:
        return mkdrv(mkconfig({"name": "w"}), match_latest(), build_wrapper(lambda b: 5), r)

    realize1(instantiate(stage, S=S))


def test_where_a_daemon_runs_it_the_log_tells(tmp_path: Path) -> None:
    (tmp_path / "returns.py").write_text("from pylightnix import autostage\n@autostage(name='five')\ndef five():\n    return 5\n")
    command = [str(Path(sys.executable).parent / "pylightnix"), "--store", str(tmp_path / "store")]
    built = subprocess.run([*command, "build", "returns.py:five"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert built.returncode == 0, built.stderr
    log = subprocess.run([*command, "log", built.stdout.split()[0]], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "UserWarning: the stage five returned 5, which is stored nowhere" in log.stdout


async def coroutine() -> None:
    pass


def generator() -> Iterator[int]:
    yield 1


async def both() -> AsyncIterator[int]:  # noqa: ASYNC124  # it is refused as it is
    yield 1


class HasMethod:
    async def method(self) -> None:
        pass


@pytest.mark.parametrize("made", [by_autostage, lambda f: by_autodrv(f)(Registry())])
@pytest.mark.parametrize("f", [coroutine, generator, both, HasMethod().method, functools.partial(generator)], ids=range(5))
def test_what_would_not_run_is_refused(made: Any, f: Any) -> None:
    with pytest.raises(Misuse, match="a stage runs when it is called"):
        made(f)
