"""What a trivial stage costs embedded, printed beside a bare loop of write, fsync, rename, commit.

Run with ``make bench``. Figures are printed, never asserted; what is asserted is that the number of
Python calls grows in proportion to the closure, which no load on the machine can change.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path as FsPath
from types import FrameType
from typing import Any

import pytest

from pylightnix import (
    Closure,
    Context,
    DRef,
    Path,
    Registry,
    StorageSettings,
    fsinit,
    instantiate,
    match_latest,
    mkconfig,
    mkdrv,
    mkSS,
    realize,
)


def _realizer(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Path]:
    assert S.tmpdir is not None
    folder = Path(f"{S.tmpdir}/out")
    os.mkdir(folder)
    with open(f"{folder}/artifact", "w") as file:
        file.write(dref)
    return [folder]


def _layers(count: int, r: Registry) -> DRef:
    """Register `count` stages, each on the three before it."""
    drefs: list[DRef] = []
    for number in range(count):
        config = mkconfig({"name": f"stage-{number}", "count": count, "below": list(drefs[-3:])})
        drefs.append(mkdrv(config, match_latest(), _realizer, r))
    return drefs[-1]


def _store(folder: FsPath) -> StorageSettings:
    settings = mkSS(str(folder))
    fsinit(settings, use_as_default=False)
    return settings


def _seconds(action: Callable[[], object]) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def _bare_loop(folder: FsPath, count: int) -> None:
    """Write, fsync, rename, commit: what durability costs one by one, without anything of ours."""
    folder.mkdir()
    db = sqlite3.connect(folder / "index.sqlite", isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("CREATE TABLE made (name TEXT PRIMARY KEY)")
    for number in range(count):
        draft = folder / f"{number}.tmp"
        draft.mkdir()
        with open(draft / "artifact", "w") as file:
            file.write(str(number))
            file.flush()
            os.fsync(file.fileno())
        draft.rename(folder / str(number))
        db.execute("INSERT INTO made VALUES (?)", (str(number),))
    db.close()


def _closure(count: int, settings: StorageSettings) -> Closure:
    closure: Closure = instantiate(_layers, count, S=settings)[1]
    return closure


@pytest.mark.slow
def test_trivial_stages_beside_a_bare_loop(tmp_path: FsPath) -> None:
    settings = _store(tmp_path / "store")
    rows = []
    for count in (1_000, 10_000):
        bare = _seconds(partial(_bare_loop, tmp_path / f"bare-{count}", count))
        steps = {}
        for run in ("cold", "warm"):
            steps[f"{run} instantiate"] = _seconds(partial(_closure, count, settings))
            closure = _closure(count, settings)
            steps[f"{run} realize"] = _seconds(partial(realize, closure))
        rows.append((count, bare, steps))
    print()
    for count, bare, steps in rows:
        print(f"{count:>6} stages; bare loop {bare:.2f} s ({bare / count * 1e6:.0f} µs each)")
        for what, seconds in steps.items():
            print(f"       {what:<18} {seconds:7.3f} s  {seconds / count * 1e6:7.0f} µs each  {seconds / bare:6.3f} × bare")
    (few, _, small), (many, _, large) = rows
    for what in small:
        print(f"       growth of {what:<18} {large[what] / small[what]:5.1f} × for {many // few} × the stages")


def _calls(action: Callable[[], object]) -> int:
    calls = 0

    def count(frame: FrameType, event: str, arg: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        action()
    finally:
        sys.setprofile(None)
    return calls


def test_no_step_is_quadratic(tmp_path: FsPath) -> None:
    counts: dict[str, list[int]] = {}
    for size in (200, 800):
        settings = _store(tmp_path / f"store-{size}")
        for run in ("cold", "warm"):
            counts.setdefault(f"{run} instantiate", []).append(_calls(partial(_closure, size, settings)))
            closure = _closure(size, settings)
            counts.setdefault(f"{run} realize", []).append(_calls(partial(realize, closure)))
    for what, (small, large) in counts.items():
        # Four times the stages: 4 is linear, 16 quadratic; the order costs a logarithm.
        assert large <= 5 * small, f"{what}: {small} calls for 200 stages, {large} for 800"
