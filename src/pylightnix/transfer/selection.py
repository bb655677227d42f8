"""What goes along when realizations leave a store: everything that they were made from, dependencies first.

Reads configs and contexts of the trees, and asks the index which realizations count. Must not know where they go.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional

from pylightnix.config import cfgdeps
from pylightnix.errors import MissingRealization
from pylightnix.planner.graph import dependency_order
from pylightnix.query import direct_context
from pylightnix.refs import assert_valid_rref, rref2dref
from pylightnix.remote import ask_store
from pylightnix.storage import store_layout
from pylightnix.store.derivations import read_config
from pylightnix.store.layout import StoreLayout
from pylightnix.types import DRef, RRef, StorageSettings

if TYPE_CHECKING:
    from pylightnix.store.index import RealizationInfo

__all__ = ["Selection", "select"]


@dataclass(frozen=True, slots=True)
class Selection:
    """Derivations and realizations of one store, each after what it depends on."""

    layout: StoreLayout
    roots: tuple[RRef, ...]
    derivations: tuple[DRef, ...]
    realizations: tuple[RealizationInfo, ...]


def select(roots: Iterable[RRef], S: Optional[StorageSettings], *, siblings: bool) -> Selection:
    """Return what `roots` need: they, and all they were made from at any distance, with the derivations.

    Args:
        roots: realizations.
        S: their store.
        siblings: whether all other realizations of these derivations go along, with what they were made from.

    Raises:
        MissingRealization: the store does not have one of them, or it does not count as realized.
        MissingDerivation, StoreCorrupt: the store does not have something whole.
    """
    wanted = tuple(sorted(set(roots)))
    for rref in wanted:
        assert_valid_rref(rref)
    layout = store_layout(S)
    drefs: dict[DRef, list[DRef]] = {}
    rrefs: dict[RRef, list[RRef]] = {}
    fresh = set(wanted)
    while fresh:
        for rref in fresh:
            deps, dynamic = direct_context(layout, rref)
            rrefs[rref] = [below for part in (deps, dynamic) for matched in part.values() for below in matched]
        met = _with_dependencies(layout, (rref2dref(rref) for rref in fresh), drefs)
        fresh = {below for rref in fresh for below in rrefs[rref]}
        if siblings:
            fresh |= _realizations(met, S)
        fresh -= rrefs.keys()
    order = dependency_order(sorted(rrefs), {rref: rrefs[rref] for rref in sorted(rrefs)})
    derivations = dependency_order(sorted(drefs), {dref: drefs[dref] for dref in sorted(drefs)})
    return Selection(layout, wanted, tuple(derivations), _infos(order, layout, S))


def _with_dependencies(layout: StoreLayout, starts: Iterable[DRef], known: dict[DRef, list[DRef]]) -> list[DRef]:
    """Enter derivations and all that their configs name into `known`; return those that were not there."""
    stack = list(starts)
    met = []
    while stack:
        dref = stack.pop()
        if dref not in known:
            known[dref] = sorted(cfgdeps(read_config(layout, dref)))
            met.append(dref)
            stack += known[dref]
    return met


def _realizations(drefs: list[DRef], S: Optional[StorageSettings]) -> set[RRef]:
    return ask_store(
        S,
        lambda store: {rref for dref in drefs for rref in store.index.valid_rrefs(dref)},
        lambda client: {rref for dref in drefs for rref in client.rrefs("drefrrefs", dref)},
    )


def _infos(rrefs: list[RRef], layout: StoreLayout, S: Optional[StorageSettings]) -> tuple[RealizationInfo, ...]:
    found = ask_store(
        S,
        lambda store: [store.index.info(rref) for rref in rrefs],
        lambda client: [client.realization_info(rref) for rref in rrefs],
    )
    for rref, info in zip(rrefs, found, strict=True):
        if info is None:
            raise MissingRealization(rref, f"{layout.realization(rref)}, and the index")
    return tuple(info for info in found if info is not None)
