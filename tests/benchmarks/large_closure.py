"""Instantiate, plan and confirm one large closure, as a process of its own so that its memory can be told.

``python tests/benchmarks/large_closure.py COUNT ROOT`` writes one JSON object: seconds of each step, on the wall and of
this process's CPU, and how many MiB it had at most. With ``--confirm`` what is realized already is confirmed only,
through the daemon if one serves the store.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

from pylightnix import (
    Closure,
    Context,
    DRef,
    Path,
    Registry,
    RRef,
    StorageSettings,
    fsinit,
    instantiate,
    match_latest,
    mkconfig,
    mkdrv,
    mkSS,
)
from pylightnix.context import context_key
from pylightnix.embedded import Outcome
from pylightnix.registry import needed_graph
from pylightnix.remote import realize_closure
from pylightnix.storage import store_layout
from pylightnix.store.index import NewRealization
from pylightnix.store.store import open_store

LAYERS = 100
BELOW = 3


def unbuilt(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Path]:
    raise AssertionError(f"{dref} was built although it is realized")


def layers(count: int, r: Registry) -> list[DRef]:
    """Register `count` stages in layers, each on three of the layer below; return the top one."""
    below: list[DRef] = []
    for layer in range(LAYERS):
        row = []
        for i in range(count // LAYERS):
            deps = [below[(i + j) % len(below)] for j in range(BELOW)] if below else []
            config = mkconfig({"name": f"stage-{layer}-{i}", "count": count, "below": deps})
            row.append(mkdrv(config, match_latest(), unbuilt, r))
        below = row
    return below


def realize_in_bulk(closure: Closure, settings: StorageSettings) -> None:
    """Enter a realization of everything in `closure`, as if it had been built, in one transaction."""
    graph = needed_graph(closure.targets, closure.derivations, settings)
    layout = store_layout(settings)
    made: dict[DRef, RRef] = {}
    with open_store(layout) as store, store.index.transaction(durable=True):
        for dref in graph.order:
            context = {dep: [made[dep]] for dep in graph.deps[dref]}
            rref = made[dref] = RRef(f"rref:{hashlib.sha256(dref.encode()).hexdigest()[:32]}-{dref[5:]}")
            os.makedirs(layout.realization(rref))
            new = NewRealization(
                rref, dref, context_key(context), "0" * 64, 100, 1.0, 2.0, "bulk", "here", None, tuple(made[d] for d in context)
            )
            store.index.enter_pending(new, store.owner.id)
        store.index.make_valid(made.values())


def main(count: int, root: str, *, only_confirm: bool) -> None:
    settings = mkSS(root)
    seconds: dict[str, tuple[float, float]] = {}

    def timed(what: str, action: Callable[[], Any]) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        result = action()
        seconds[what] = time.perf_counter() - wall, time.process_time() - cpu
        return result

    if not only_confirm:
        fsinit(settings, use_as_default=False)
        timed("instantiate, first", lambda: instantiate(layers, count, S=settings))
    closure = timed("instantiate, again", lambda: instantiate(layers, count, S=settings))[1]
    planned: Outcome = timed("plan", lambda: realize_closure(closure, dry_run=True))
    if len(planned.steps) != len(closure.derivations):
        raise AssertionError(f"planned {len(planned.steps)} of {len(closure.derivations)}")
    if not only_confirm:
        timed("(insert in bulk)", lambda: realize_in_bulk(closure, settings))
    outcome: Outcome = timed("confirm", lambda: realize_closure(closure))
    if len(outcome.reused) != len(closure.derivations):
        raise AssertionError(f"reused {len(outcome.reused)} of {len(closure.derivations)}: {outcome.failed[:1]}")
    mebibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "mebibytes": mebibytes}))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], only_confirm="--confirm" in sys.argv[3:])
