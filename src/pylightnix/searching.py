"""Questions about a whole store that a person asks: what takes the room, what is there, how do two stages differ.

Stages that are asked about are instantiated in a store of their own, which is gone afterwards.
"""

from __future__ import annotations

import fnmatch
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Optional, Union

from pylightnix.config import Config, readable_text
from pylightnix.errors import Misuse
from pylightnix.folders import dirrm, dirsize
from pylightnix.query import alldrefs, allrrefs, dref2path, drefcfg_, drefcfgpath, realization_starts, rref2path
from pylightnix.refs import isdref, isrref, rref2dref, undref, unrref
from pylightnix.registry import current_registry, instantiate, mkregistry
from pylightnix.sanitize import escaped
from pylightnix.storage import fsinit, mkSS
from pylightnix.types import DRef, RRef, Stage, StorageSettings

__all__ = ["config_bytes", "diff", "du", "find", "realization_bytes"]


@contextmanager
def _instantiated(stage: Stage) -> Iterator[tuple[DRef, Config]]:
    """Have the one derivation that a stage gives, with its config; nothing of it comes into any store."""
    import tempfile  # here, for it takes its time to load

    folder = tempfile.mkdtemp(prefix="pylightnix-")
    try:
        apart = mkSS(folder)
        fsinit(apart, use_as_default=False)
        # Current as well, for derivations that are registered without saying where.
        with current_registry(mkregistry(apart)) as r:
            _, closure = instantiate(stage, r=r)
            if len(closure.targets) != 1:
                raise Misuse(f"expected a stage that gives one derivation, found one that gives {len(closure.targets)}")
            yield closure.targets[0], drefcfg_(closure.targets[0])
    finally:
        dirrm(folder)


def du(S: Optional[StorageSettings] = None) -> dict[DRef, tuple[int, dict[RRef, int]]]:
    """Return what takes how much room, in bytes of regular files.

    Returns:
        For each derivation in the store: what it takes, which is its `config.json` and all its realizations; and
        what each of its realizations takes.
    """
    rrefs: dict[DRef, dict[RRef, int]] = {dref: {} for dref in alldrefs(S)}
    for rref in allrrefs(S):
        rrefs.setdefault(rref2dref(rref), {})[rref] = realization_bytes(rref, S)
    return {dref: (config_bytes(dref, S) + sum(sizes.values()), sizes) for dref, sizes in sorted(rrefs.items())}


def realization_bytes(rref: RRef, S: Optional[StorageSettings] = None) -> int:
    """Return the bytes of all regular files of a realization."""
    try:
        return dirsize(rref2path(rref, S))
    except FileNotFoundError:
        return 0  # it was removed just now


def config_bytes(dref: DRef, S: Optional[StorageSettings] = None) -> int:
    """Return the bytes of a derivation's `config.json`."""
    try:
        return os.stat(drefcfgpath(dref, S)).st_size
    except FileNotFoundError:
        return 0


def find(name: Union[Stage, str, None] = None, newer: Optional[float] = None, S: Optional[StorageSettings] = None) -> list[RRef]:
    """Return the realizations in the store that have a name and an age, sorted.

    Args:
        name: a pattern for the names of their configs, as `fnmatch` has it; or a stage, whose name is the pattern;
            None for any.
        newer: the latest build of a realization began then or later, in seconds since 1970 UTC; or so many seconds
            before now, if it is not above zero. None for any time.
        S: the store.

    Raises:
        Misuse: the stage gives more than one derivation.
    """
    pattern = "*" if name is None else name
    if not isinstance(pattern, str):
        with _instantiated(pattern) as (dref, _):
            pattern = undref(dref)[1]
    found = [rref for rref in allrrefs(S) if fnmatch.fnmatchcase(unrref(rref)[2], pattern)]
    if newer is None:
        return found
    since = newer if newer > 0 else time.time() + newer
    starts = realization_starts(found, S)
    return [rref for rref in found if starts.get(rref, float("-inf")) >= since]


def diff(stageA: Union[RRef, DRef, Stage], stageB: Union[RRef, DRef, Stage], S: Optional[StorageSettings] = None) -> None:
    """Print how two configs differ, as ``diff -u`` does: nothing if they are equal.

    Args:
        stageA: a derivation, a realization of one, or a stage that gives one.
        stageB: the same.
        S: the store.
    """
    import difflib

    (nameA, a), (nameB, b) = _config_lines(stageA, S), _config_lines(stageB, S)
    lines = difflib.unified_diff(a, b, nameA, nameB)
    sys.stdout.writelines(map(escaped, lines) if sys.stdout.isatty() else lines)


def _config_lines(what: Any, S: Optional[StorageSettings]) -> tuple[str, list[str]]:
    if isinstance(what, str):
        if not (isdref(what) or isrref(what)):
            raise Misuse(f"diff expects a derivation, a realization or a stage, found {what!r:.200}")
        dref = rref2dref(what) if isrref(what) else DRef(what)
        return drefcfgpath(dref, S), readable_text(drefcfg_(dref, S).val).splitlines(keepends=True)
    with _instantiated(what) as (dref, config):
        return f"{dref2path(dref, S)}/config.json", readable_text(config.val).splitlines(keepends=True)
