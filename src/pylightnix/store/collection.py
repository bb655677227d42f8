"""Taking realizations and derivations out of a store: what may go, and in which order it goes.

What is needed stays: by a realization that was made from it, by a derivation that depends on it, by its own
realizations, or by what the caller says is at work. The order of a removal loses nothing and leaves nothing:

1. rows are marked *deleted*, in one durable transaction that has looked who refers to them;
2. trees go to the trash, one rename each, and then their rows go;
3. folders of derivations go to the trash;
4. the trash is emptied, which may be much later.

A crash before the end of 1 changes nothing; after it, the next start finishes 2 as it finishes any deletion.
Whoever removes is alone in the store, or has made sure that nobody builds with the derivations concerned. Must
not know what is worth keeping, nor who asks.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final

from pylightnix.config import cfgdeps
from pylightnix.errors import InUse, MissingDerivation, MissingRealization, PylightnixException
from pylightnix.refs import isrref, rref2dref
from pylightnix.store.access import translated_errors
from pylightnix.store.derivations import read_config
from pylightnix.store.faults import reach
from pylightnix.store.index import PENDING
from pylightnix.store.layout import CONFIG_FILE, StoreLayout
from pylightnix.store.presence import is_there
from pylightnix.store.provenance import drop_provenance
from pylightnix.store.recovery import finish_deletions
from pylightnix.store.room import make_reserve, with_room
from pylightnix.store.set_aside import retry_set_aside
from pylightnix.store.store import Store, open_store_alone
from pylightnix.store.trash import empty_trash, put_away
from pylightnix.types import DRef, RRef

__all__ = ["Removal", "dependents_of", "needed_still", "remove", "remove_alone"]

_DREF: Final = re.compile(rb"dref:[0-9a-f]{32}-[a-zA-Z0-9_-]{1,211}")
_UNFINISHED: Final = "a build that is not finished"


@dataclass(frozen=True, slots=True)
class Removal:
    """What a removal came to."""

    drefs: list[DRef] = field(default_factory=list)
    """Derivations that are gone, sorted."""
    rrefs: list[RRef] = field(default_factory=list)
    """Realizations that are gone, sorted; those of the derivations among them."""
    kept: dict[str, list[str]] = field(default_factory=dict)
    """What was to go and is needed -> by what."""


def needed_still(users: Mapping[str, Collection[str]]) -> dict[str, list[str]]:
    """Return which of the keys of `users` must stay, each with what needs it.

    Args:
        users: everything that is to go, with all that needs it directly.

    A thing may go if all that needs it goes. So what stays keeps what it needs, and all the rest can go.
    """
    kept = {ref: sorted(by for by in needs if by not in users) for ref, needs in users.items()}
    kept = {ref: by for ref, by in kept.items() if by}
    needed_by: dict[str, list[str]] = {}
    for ref, needs in users.items():
        for user in needs:
            if user in users and user != ref:
                needed_by.setdefault(user, []).append(ref)
    stack = list(kept)
    while stack:
        user = stack.pop()
        for ref in needed_by.get(user, ()):
            if ref not in kept:
                kept[ref] = []
                stack.append(ref)
            kept[ref].append(user)
    return kept


def dependents_of(layout: StoreLayout, drefs: Collection[DRef]) -> dict[DRef, list[DRef]]:
    """Return, for each of `drefs`, the derivations in the store that directly depend on it, sorted.

    A derivation whose config cannot be read counts where its text names another one.
    """
    found: dict[DRef, list[DRef]] = {dref: [] for dref in drefs}
    if not found:
        return found
    with os.scandir(layout.storage) as entries:
        names = sorted(entry.name for entry in entries)
    for name in names:
        dependent = DRef(f"dref:{name}")
        for dref in _named_in(f"{layout.storage}/{name}/{CONFIG_FILE}") & found.keys():
            if dref != dependent and _depends(layout, dependent, dref):
                found[dref].append(dependent)
    return found


def _named_in(path: str) -> set[DRef]:
    try:
        with open(path, "rb") as file:
            return {DRef(text.decode("ascii")) for text in _DREF.findall(file.read())}
    except OSError:
        return set()


def _depends(layout: StoreLayout, dependent: DRef, dref: DRef) -> bool:
    try:
        return dref in cfgdeps(read_config(layout, dependent))
    except PylightnixException:
        return True


def remove(
    store: Store,
    drefs: Iterable[DRef],
    rrefs: Iterable[RRef],
    *,
    only_unused: bool = False,
    at_work: Mapping[DRef, Sequence[str]],
) -> Removal:
    """Take derivations, with all their realizations, and realizations out of the store; the trash is left full.

    Args:
        store: the store.
        drefs: derivations.
        rrefs: realizations.
        only_unused: leave what is needed alone, a derivation with any other realization than `rrefs` too; and what is
            not there.
        at_work: who works with a derivation just now, and hence with any of its realizations.

    Raises:
        InUse: something is needed that stays, and `only_unused` was not given. Nothing was removed.
        MissingDerivation, MissingRealization: one is not there; nothing was removed either.
        StoreError: the store failed; what was marked by then is gone, at the latest after the next start.
    """
    wanted = list(dict.fromkeys(drefs))
    # Before the transaction: it may take a while, and a derivation that comes meanwhile writes what it needs again.
    dependents = dependents_of(store.layout, set(wanted))

    def decide() -> tuple[Removal, list[tuple[RRef, str]]]:
        with translated_errors(store.layout, "removing realizations"), store.index.transaction(durable=True):
            users = _users_of_all(store, wanted, rrefs, only_unused, dependents, at_work)
            kept = needed_still(users)
            if kept and not only_unused:
                raise InUse({ref: outer for ref in kept if (outer := sorted(by for by in users[ref] if by not in users))})
            reach("removal_decided")
            gone = sorted(users.keys() - kept.keys())
            removal = Removal([DRef(ref) for ref in gone if not isrref(ref)], [RRef(ref) for ref in gone if isrref(ref)], kept)
            return removal, store.index.delete(removal.rrefs, store.owner.id)

    # Each on its own: what was decided must not be decided again.
    removal, rows = with_room(store.layout, decide, early=True)

    def finish() -> None:
        with translated_errors(store.layout, "removing realizations"):
            _finish(store, removal, rows)

    with_room(store.layout, finish, early=True)
    return removal


def _users_of_all(
    store: Store,
    drefs: Iterable[DRef],
    rrefs: Iterable[RRef],
    only_unused: bool,
    dependents: Mapping[DRef, Sequence[DRef]],
    at_work: Mapping[DRef, Sequence[str]],
) -> dict[str, list[str]]:
    """Return everything that is to go and is there, with all that needs it directly."""
    index = store.index
    all_rrefs = dict.fromkeys(rrefs)
    if not only_unused:
        all_rrefs.update((rref, None) for dref in drefs for rref in index.states(dref))
    users: dict[str, list[str]] = {}
    for rref in all_rrefs:
        if _has_realization(store, rref, only_unused):
            unfinished = [_UNFINISHED] if index.state_of(rref) == PENDING else []
            users[rref] = [*index.referrers(rref), *unfinished, *at_work.get(rref2dref(rref), ())]
    for dref in drefs:
        if _has_derivation(store, dref, only_unused):
            users[dref] = [*dependents[dref], *index.states(dref), *at_work.get(dref, ())]
    return users


def _has_derivation(store: Store, dref: DRef, may_be_gone: bool) -> bool:
    folder = store.layout.derivation(dref)
    if is_there(folder) or store.index.states(dref):
        return True
    if may_be_gone:
        return False
    raise MissingDerivation(dref, folder)


def _has_realization(store: Store, rref: RRef, may_be_gone: bool) -> bool:
    folder = store.layout.realization(rref)
    # A tree without a row counts as no realization; it may be removed like one.
    if is_there(folder) or rref in store.index.states(rref2dref(rref)):
        return True
    if may_be_gone:
        return False
    raise MissingRealization(rref, folder)


def _finish(store: Store, gone: Removal, rows: Sequence[tuple[RRef, str]]) -> None:
    layout = store.layout
    reach("removal_marked")
    finish_deletions(layout, store.index, rows)
    for rref in gone.rrefs:
        if is_there(layout.realization(rref)) and store.index.state_of(rref) is None:
            put_away(layout, layout.realization(rref))
            drop_provenance(layout, rref)
    reach("removal_trashed")
    for dref in gone.drefs:
        if not store.index.states(dref):  # nothing can be lost with it, whatever happened since the decision
            put_away(layout, layout.derivation(dref))
            reach("derivation_trashed")
    reach("removal_finished")


def remove_alone(layout: StoreLayout, drefs: Sequence[DRef], rrefs: Sequence[RRef], *, only_unused: bool = False) -> Removal:
    """Do as `remove` in a store that nobody else is to work in meanwhile, and empty the trash.

    Raises:
        StoreOwned: a daemon has it.
        StoreBusy: somebody works in it, perhaps with what is to go.
        What `remove` raises.
    """
    with ExitStack() as stack:
        store = with_room(layout, lambda: stack.enter_context(open_store_alone(layout, "removing")), early=True)
        store.flush()
        removal = remove(store, drefs, rrefs, only_unused=only_unused, at_work={})
    # Without the lock: others may go on while a large tree is unlinked.
    with translated_errors(layout, "emptying the trash"):
        empty_trash(layout)
        retry_set_aside(layout)
    make_reserve(layout)
    return removal
