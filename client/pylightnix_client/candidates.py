"""Realizations and derivations as lines to choose from: the newest first, each with its time and what there is of it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Final, Union

from pylightnix.query import drefrrefs, realization_starts
from pylightnix.refs import isrref
from pylightnix.storage import store_layout
from pylightnix.types import DRef, RRef, StorageSettings

__all__ = ["candidate_lines", "human_age", "short_references"]

SHORT_DIGITS: Final = 8


def candidate_lines(refs: Sequence[Union[DRef, RRef]], S: StorageSettings) -> list[str]:
    """Return a line for each of `refs`, the newest first."""
    realizations = {ref: [RRef(ref)] if isrref(ref) else sorted(drefrrefs(DRef(ref), S)) for ref in refs}
    starts = realization_starts([rref for rrefs in realizations.values() for rref in rrefs], S)
    rows = []
    for ref, rrefs in realizations.items():
        built = max((starts[rref] for rref in rrefs if rref in starts), default=None)
        moment = _registered(DRef(ref), S) if built is None and not isrref(ref) else built
        rows.append((-(moment or 0.0), f"{ref}  {_status(ref, rrefs, built)}"))
    return [line for _, line in sorted(rows)]


def _status(ref: str, rrefs: Sequence[RRef], built: float | None) -> str:
    if built is None:
        return "not known to the store's index" if isrref(ref) else "not built"
    number = "" if isrref(ref) or len(rrefs) == 1 else f", {len(rrefs)} realizations"
    return f"built {human_age(time.time() - built)} ago ({datetime.fromtimestamp(built, UTC):%Y-%m-%d %H:%M:%S} UTC){number}"


def _registered(dref: DRef, S: StorageSettings) -> float | None:
    try:
        return os.stat(store_layout(S).derivation(dref)).st_mtime
    except OSError:
        return None


def short_references(rrefs: Sequence[RRef]) -> dict[RRef, str]:
    """Return how each of these begins, in as many digits as tell it from the others, and eight at least."""
    ordered = sorted(rrefs)
    common = [0, *(len(os.path.commonprefix(pair)) for pair in pairwise(ordered)), 0]  # noqa: RUF071  # they are no paths
    return {
        rref: rref[: max(len("rref:") + SHORT_DIGITS, before + 1, after + 1)]
        for rref, before, after in zip(ordered, common[:-1], common[1:], strict=True)
    }


def human_age(seconds: float) -> str:
    """Return for how long something has been there, in its largest unit: ``5 s``, ``3 min``, ``2 h``, ``12 d``."""
    whole = max(0, int(seconds))
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if whole >= size:
            return f"{whole // size} {unit}"
    return f"{whole} s"
