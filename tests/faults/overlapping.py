"""One of several processes that realize overlapping closures on one store: run by `test_processes.py`, not a test.

    overlapping.py ROOT JOURNAL SEED WIDTH DEPTH

It says on standard output what it does, a line each, until `done` and what it got. It appends to the
journal when a realizer starts and when it ends.
"""

from __future__ import annotations

import json
import os
import random
import sys
from typing import Any

from pylightnix import (
    Context,
    DRef,
    Path,
    Registry,
    RRef,
    StorageSettings,
    fstmpdir,
    instantiate,
    match_all,
    mkconfig,
    mkdrv,
    mkSS,
)
from pylightnix.embedded import realize_closure
from pylightnix.store import faults


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


class Realizer:
    """Deterministic: what it leaves depends on what it depends on, in one, two or three outputs."""

    def __init__(self, journal: str, number: int) -> None:
        self.journal, self.number = journal, number

    def __call__(self, S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Path]:
        self._note("start", dref)
        outputs = []
        for i in range(self.number % 3 + 1):
            folder = f"{fstmpdir(S)}/out{i}"
            os.makedirs(f"{folder}/deep")
            for name, text in (("unit.txt", f"all {self.number % 3 + 1}"), ("number", str(i)), ("deep/context", json.dumps(dict(context)))):
                with open(f"{folder}/{name}", "w", encoding="utf-8") as file:
                    file.write(text)
            outputs.append(Path(folder))
        self._note("end", dref)
        return outputs

    def _note(self, what: str, dref: DRef) -> None:
        fd = os.open(self.journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(fd, f"{what} {dref} {os.getpid()}\n".encode())
        os.close(fd)


def graph(r: Registry, journal: str, width: int, depth: int) -> list[DRef]:
    """Layers of derivations, each of which depends on two of the layer below."""
    layer: list[DRef] = []
    every: list[DRef] = []
    for level in range(depth):
        above = []
        for i in range(width):
            deps = [layer[i], layer[(i + 1) % width]] if layer else []
            config = mkconfig({"name": f"n{level}-{i}", "deps": deps})
            above.append(mkdrv(config, match_all, Realizer(journal, level * width + i), r))
        every += above
        layer = above
    return every


def main() -> None:
    root, journal, seed, width, depth = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
    chance = random.Random(seed)
    S = mkSS(root)
    faults.set_hook(say)
    got: dict[DRef, list[RRef]] = {}

    def everything(r: Registry) -> list[DRef]:
        found = graph(r, journal, width, depth)
        if seed:  # some of it first, in any order; 0 is for everything at once
            chance.shuffle(found)
        return found

    targets, closure = instantiate(everything, S=S)
    if seed:
        for target in targets[:3]:
            _realize(closure._replace(targets=[target]), got)
    _realize(closure, got)
    say(f"done {json.dumps(got)}")


def _realize(closure: Any, got: dict[DRef, list[RRef]]) -> None:
    outcome = realize_closure(closure)
    outcome.check()
    for dref, rrefs in outcome.context.items():
        if got.setdefault(dref, rrefs or []) != rrefs:
            raise AssertionError(f"{dref} was {got[dref]} and is {rrefs}")
    say(f"acknowledged {' '.join(rref for rrefs in outcome.context.values() for rref in rrefs or ())}")


if __name__ == "__main__":
    main()
