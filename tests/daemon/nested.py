"""Stages whose realizers realize others, for tests of a daemon. They travel by reference."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tests.daemon.stages import Arguments, add, config, journals, out, waits

from pylightnix import Closure, Context, DRef, Path, StorageSettings, instantiate, realize, realize1


def one(name: str, realizer: object, **items: object) -> Closure:
    return instantiate(lambda r: add(r, name, realizer, **items))[1]  # type: ignore[arg-type]  # realizers of tests


def nests(S: StorageSettings, dref: DRef, context: Context, rarg: Arguments) -> list[Path]:
    """Realize what is one less deep, and write its reference."""
    depth = config(S, dref)["depth"]
    return [out(S, realize1(one(f"depth{depth - 1}", nests, depth=depth - 1)) if depth else "bottom")]


def realizes_shared(S: StorageSettings, dref: DRef, context: Context, rarg: Arguments) -> list[Path]:
    return [out(S, realize1(one("shared", journals, journal=config(S, dref)["journal"])))]


def realizes_both(S: StorageSettings, dref: DRef, context: Context, rarg: Arguments) -> list[Path]:
    journal = config(S, dref)["journal"]
    found = [realize1(one(side, realizes_shared, journal=journal)) for side in ("left", "right")]
    return [out(S, " ".join(found))]


def realizes_itself(S: StorageSettings, dref: DRef, context: Context, rarg: Arguments) -> list[Path]:
    return [out(S, realize1(one("itself", realizes_itself)))]


def realizes_next(S: StorageSettings, dref: DRef, context: Context, rarg: Arguments) -> list[Path]:
    """Realize the next of a ring of three."""
    number = config(S, dref)["number"]
    return [out(S, realize1(one(f"ring{(number + 1) % 3}", realizes_next, number=(number + 1) % 3)))]


def realizes_waiting(S: StorageSettings, dref: DRef, context: Context, rarg: Arguments) -> list[Path]:
    print("parent", os.getpid(), flush=True)
    return [out(S, realize1(one("waiting", waits, gate=config(S, dref)["gate"])))]


def waits_and_realizes(S: StorageSettings, dref: DRef, context: Context, rarg: Arguments) -> list[Path]:
    waits(S, dref, context, rarg)
    realize1(one("depth0", nests, depth=0))
    return [out(S, "late", "late")]


def realizes_in_threads(S: StorageSettings, dref: DRef, context: Context, rarg: Arguments) -> list[Path]:
    def realized(number: int) -> str:
        return realize1(instantiate(lambda r: add(r, f"thread{number}", nests, depth=0), S=S))

    with ThreadPoolExecutor(3) as threads:
        return [out(S, " ".join(threads.map(realized, range(3))))]


def tries(S: StorageSettings, dref: DRef, context: Context, rarg: Arguments) -> list[Path]:
    """Ask what would be built, and write whether it was there."""
    _, closure, found = realize(one("tried", journals, journal=config(S, dref)["journal"]), dry_run=True)
    return [out(S, repr(found[closure.targets[0]]))]


def fails_inside(S: StorageSettings, dref: DRef, context: Context, rarg: Arguments) -> list[Path]:
    realize1(one("failing", fails))
    return []


def fails(S: StorageSettings, dref: DRef, context: Context, rarg: Arguments) -> list[Path]:
    raise ValueError("no more flour")


def together(S: StorageSettings, realizer: object, names: Sequence[str], **items: object) -> Closure:
    """Return a closure of several stages that do not depend on each other."""
    return instantiate(lambda r: [add(r, name, realizer, **items) for name in names], S=S)[1]  # type: ignore[arg-type]  # the same
