"""What there is to say of a derivation or a realization, as values that JSON can hold. Must not print."""

from __future__ import annotations

from typing import Any, Optional

from pylightnix.config import cfgdict
from pylightnix.query import drefcfg_, drefdeps1, drefrrefs, realization_info, realization_starts, rrefbdelta, rrefdeps1
from pylightnix.refs import rref2dref
from pylightnix.storage import store_layout
from pylightnix.types import DRef, RRef, StorageSettings
from pylightnix_client.references import existing_realization

__all__ = ["build_seconds", "describe_derivation", "describe_realization"]


def describe_derivation(dref: DRef, S: StorageSettings) -> dict[str, Any]:
    """Return path, config, direct dependencies and realizations (the latest first) of a derivation.

    Raises:
        MissingDerivation: the store does not have it.
    """
    config = drefcfg_(dref, S)
    rrefs = sorted(drefrrefs(dref, S))
    starts = realization_starts(rrefs, S)
    return {
        "dref": dref,
        "path": store_layout(S).derivation(dref),
        "config": cfgdict(config),
        "deps": sorted(drefdeps1([dref], S)),
        "realizations": sorted(rrefs, key=lambda rref: -starts.get(rref, 0.0)),
    }


def describe_realization(rref: RRef, S: StorageSettings) -> dict[str, Any]:
    """Return what is known of a realization: from its folder, and from the store's index.

    `state` is ``valid``, or ``unknown`` for a folder that the index does not vouch for; then there are no times,
    nor a tree hash. `started` and `stopped` are seconds since 1970 UTC; `seconds` is how long the build took.

    Raises:
        MissingRealization: it is not there.
    """
    folder = existing_realization(rref, S)
    dref = rref2dref(rref)
    context: dict[str, list[str]] = {}
    for dep in sorted(rrefdeps1([rref], S)):
        context.setdefault(rref2dref(dep), []).append(dep)
    found: dict[str, Any] = {"rref": rref, "dref": dref, "path": folder, "context": context, "state": "unknown"}
    info = realization_info(rref, S)
    if info is not None:
        found.update(
            state="valid",
            tree_hash=info.tree_hash,
            nar_bytes=info.nar_bytes,
            started=info.started,
            stopped=info.stopped,
            seconds=build_seconds(rref, S, info.stopped - info.started),
            builder=info.builder,
            host=info.host,
        )
    return found


def build_seconds(rref: RRef, S: StorageSettings, otherwise: float) -> Optional[float]:
    """Return how long the build of a realization took, which is `otherwise` where it left no stamps; None if that is unknown."""
    # The index has the latest start, the folder the stamps of the build that made it. When a later build made
    # the same bytes again, only the folder's belong together.
    stamped = rrefbdelta(rref, S)
    if stamped is not None:
        return round(stamped, 6)
    return round(otherwise, 6) if otherwise >= 0 else None
