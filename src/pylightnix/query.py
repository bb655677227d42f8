"""Questions about a store: what is in it, and what was made from what.

Questions about one named reference read the tree (or the current registry); those that enumerate ask
the index. Nothing is told of a realization that is not durable.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Optional, TypeVar, Union

from pylightnix.config import Config, RConfig, cfgcattrs, cfgdeps, resolve
from pylightnix.context import context_deref, context_key, parse_context
from pylightnix.errors import InvalidReference, MissingRealization, Misuse, PylightnixException, StoreCorrupt, StoreFull
from pylightnix.planner.graph import dependency_order
from pylightnix.refs import assert_valid_dref, assert_valid_refpath, isdref, isrref, mkdref, mkrref, rref2dref
from pylightnix.registry import registered_config, write_waiting, written_config
from pylightnix.storage import fsstorage, store_layout
from pylightnix.store.layout import CONTEXT_FILE, METADATA_NAMES, START_FILE, STOP_FILE, StoreLayout
from pylightnix.timestamps import parsetime
from pylightnix.types import Context, DRef, Path, RefPath, RRef, StorageSettings

if TYPE_CHECKING:
    from pylightnix.store.index import RealizationInfo
    from pylightnix.store.store import Store
    from pylightnix_client.client import Client

__all__ = [
    "PYLIGHTNIX_RESERVED",
    "alldrefs",
    "allrrefs",
    "context_derefpath",
    "direct_context",
    "dref2path",
    "drefattrs",
    "drefcfg",
    "drefcfg_",
    "drefcfgpath",
    "drefdeps",
    "drefdeps1",
    "drefrrefs",
    "drefrrefsC",
    "located",
    "path2dref",
    "path2rref",
    "realization_info",
    "realization_starts",
    "reserved",
    "rootdrefs",
    "rootrrefs",
    "rref2path",
    "rrefattrs",
    "rrefbdelta",
    "rrefbstart",
    "rrefbstop",
    "rrefctx",
    "rrefdata",
    "rrefdeps",
    "rrefdeps1",
    "rrefpath2path",
]

R = TypeVar("R", bound=str)
A = TypeVar("A")

# --- paths (textual) ----------------------------------------------------------------------------------


def dref2path(r: DRef, S: Optional[StorageSettings] = None) -> Path:
    """Return the folder of a derivation. Looks at no file."""
    return Path(store_layout(S).derivation(r))


def rref2path(r: RRef, S: Optional[StorageSettings] = None) -> Path:
    """Return the folder of a realization. Looks at no file."""
    return Path(store_layout(S).realization(r))


def drefcfgpath(r: DRef, S: Optional[StorageSettings] = None) -> Path:
    """Return the path of a derivation's `config.json`. Looks at no file."""
    return Path(store_layout(S).config(r))


def rrefpath2path(r: RRef, refpath: RefPath, S: Optional[StorageSettings] = None) -> Path:
    """Return the path of the artifact `refpath` in the realization `r` of the same derivation."""
    assert_valid_refpath(refpath)
    if refpath[0] != rref2dref(r):
        raise InvalidReference(refpath, f"a refpath of {rref2dref(r)}, which {r} is a realization of")
    return Path(os.path.join(rref2path(r, S), *refpath[1:]))


def context_derefpath(context: Context, refpath: RefPath, S: Optional[StorageSettings] = None) -> list[Path]:
    """Return where the artifact `refpath` is in each realization that stands for its derivation in `context`.

    Raises:
        InvalidReference: it is no refpath.
        Misuse: `context` has nothing for its derivation.
    """
    assert_valid_refpath(refpath)
    return [rrefpath2path(rref, refpath, S) for rref in context_deref(context, DRef(refpath[0]))]


PYLIGHTNIX_RESERVED: Final = sorted(METADATA_NAMES)
"""The names at the top of a realization that are the store's own and no part of what was made."""


def reserved(folder: str, name: str) -> Path:
    """Return the path of one of the store's own files in a realization.

    Raises:
        Misuse: `name` is none of `PYLIGHTNIX_RESERVED`.
    """
    if name not in METADATA_NAMES:
        raise Misuse(f"expected one of the reserved names {', '.join(PYLIGHTNIX_RESERVED)}, found {name!r:.200}")
    return Path(os.path.join(folder, name))


def _link_target(p: str) -> str:
    return os.readlink(p) if os.path.islink(p) else os.fspath(p)


def path2dref(p: str) -> Optional[DRef]:
    """Return the derivation that a path, or the link at that path, names; None if it names none."""
    dhash, _, name = os.path.basename(_link_target(p).rstrip("/")).partition("-")
    try:
        return mkdref(dhash, name)
    except PylightnixException:
        return None


def path2rref(p: str) -> Optional[RRef]:
    """Return the realization that a path, or the link at that path, names; None if it names none."""
    head, rhash = os.path.split(_link_target(p).rstrip("/"))
    dhash, _, name = os.path.basename(head).partition("-")
    try:
        return mkrref(rhash, dhash, name)
    except PylightnixException:
        return None


def located(path: str, S: Optional[StorageSettings] = None) -> Optional[tuple[Union[DRef, RRef], str]]:
    """Return which realization (or derivation) of the store a path lies in, and the path inside it; None if it lies elsewhere.

    Links are followed, as far as they lead; what the last one names need not exist.
    """
    storage = os.path.realpath(store_layout(S).storage)
    real = os.path.realpath(path)
    parts = real[len(storage) + 1 :].split(os.sep) if real.startswith(storage + os.sep) else []
    if len(parts) >= 2 and isrref(f"rref:{parts[1]}-{parts[0]}"):
        return RRef(f"rref:{parts[1]}-{parts[0]}"), os.sep.join(parts[2:])
    if parts and isdref(f"dref:{parts[0]}"):
        return DRef(f"dref:{parts[0]}"), os.sep.join(parts[1:])
    return None


# --- one derivation -----------------------------------------------------------------------------------


def drefcfg_(dref: DRef, S: Optional[StorageSettings] = None) -> Config:
    """Return a derivation's config as it was given, self-paths included.

    Raises:
        MissingDerivation, StoreCorrupt: the store does not have it, or not whole.
    """
    assert_valid_dref(dref)
    return registered_config(dref) or written_config(dref, S)


def drefcfg(dref: DRef, S: Optional[StorageSettings] = None) -> RConfig:
    """Return a derivation's config with its self-paths resolved to refpaths."""
    return resolve(drefcfg_(dref, S), dref)


def drefattrs(r: DRef, S: Optional[StorageSettings] = None) -> Any:
    """Return the items of a derivation's resolved config as attributes."""
    return cfgcattrs(drefcfg(r, S))


def drefdeps1(drefs: Iterable[DRef], S: Optional[StorageSettings] = None) -> set[DRef]:
    """Return the direct dependencies of all these derivations."""
    return set().union(*(cfgdeps(drefcfg_(dref, S)) for dref in drefs))


def drefdeps(drefs: Iterable[DRef], S: Optional[StorageSettings] = None) -> set[DRef]:
    """Return all dependencies of these derivations at any distance, without themselves."""
    return _reachable(drefs, lambda dref: cfgdeps(drefcfg_(dref, S)))


def _reachable(starts: Iterable[R], below: Any) -> set[R]:
    found: set[R] = set()
    stack = list(starts)
    seen = set(stack)
    while stack:
        for item in below(stack.pop()):
            found.add(item)
            if item not in seen:
                seen.add(item)
                stack.append(item)
    return found


# --- one realization ----------------------------------------------------------------------------------


def direct_context(layout: StoreLayout, rref: RRef) -> tuple[dict[DRef, list[RRef]], dict[DRef, list[RRef]]]:
    """Return what a realization was made from: (what its config names, what was found while running).

    Raises:
        MissingRealization, StoreCorrupt: the store does not have it, or not whole.
    """
    path = f"{layout.realization(rref)}/{CONTEXT_FILE}"
    try:
        with open(path, "rb") as file:
            value = json.load(file)
    except FileNotFoundError as error:
        if os.path.isdir(layout.realization(rref)):
            raise _bad_context(layout, rref, "it is not there") from error
        raise MissingRealization(rref, path) from error
    except OSError as error:
        raise _bad_context(layout, rref, error.strerror or str(error)) from error
    except (ValueError, RecursionError) as error:
        raise _bad_context(layout, rref, f"not JSON ({error})") from error
    try:
        return parse_context(value)
    except PylightnixException as error:
        raise _bad_context(layout, rref, str(error)) from error


def _bad_context(layout: StoreLayout, rref: RRef, problem: str) -> StoreCorrupt:
    from pylightnix.store.index_file import store_command

    return StoreCorrupt(
        f"{layout.realization(rref)}/{CONTEXT_FILE}", problem, f"mend it: {store_command(layout, 'verify', '--repair', rref)}"
    )


def rrefctx(r: RRef, S: Optional[StorageSettings] = None) -> Context:
    """Return which realizations stand for each dependency of `r`, at any distance, sorted.

    Raises:
        MissingRealization: `r`, or something below it, is not in the store.
    """
    layout = store_layout(S)
    found: dict[DRef, set[RRef]] = {}
    stack, seen = [RRef(r)], {r}
    while stack:
        for part in direct_context(layout, stack.pop()):
            for dref, rrefs in part.items():
                found.setdefault(dref, set()).update(rrefs)
                for rref in rrefs:
                    if rref not in seen:
                        seen.add(rref)
                        stack.append(rref)
    return {dref: sorted(rrefs) for dref, rrefs in sorted(found.items())}


def rrefattrs(r: RRef, S: Optional[StorageSettings] = None) -> Any:
    """Return the items of the resolved config of a realization's derivation as attributes."""
    return drefattrs(rref2dref(r), S)


def rrefdeps1(rrefs: Iterable[RRef], S: Optional[StorageSettings] = None) -> set[RRef]:
    """Return the realizations that these were directly made from."""
    layout = store_layout(S)
    parts = (part for rref in rrefs for part in direct_context(layout, rref))
    return {rref for part in parts for matched in part.values() for rref in matched}


def rrefdeps(rrefs: Iterable[RRef], S: Optional[StorageSettings] = None) -> set[RRef]:
    """Return all realizations that these were made from, at any distance, without themselves."""
    return _reachable(rrefs, lambda rref: rrefdeps1([rref], S))


def rrefdata(rref: RRef, S: Optional[StorageSettings] = None) -> list[Path]:
    """Return the paths of a realization's top-level entries, sorted, `context.json` left out."""
    folder = rref2path(rref, S)
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError as error:
        raise MissingRealization(rref, folder) from error
    return [Path(os.path.join(folder, name)) for name in names if name != CONTEXT_FILE]


def _stamp(rref: RRef, name: str, S: Optional[StorageSettings]) -> Optional[str]:
    try:
        with open(os.path.join(rref2path(rref, S), name), encoding="utf-8") as file:
            return file.read().strip()
    except (OSError, UnicodeDecodeError):
        return None


def rrefbstart(rref: RRef, S: Optional[StorageSettings] = None) -> Optional[str]:
    """Return the time stamp at which the build began that made this tree, or None."""
    return _stamp(rref, START_FILE, S)


def rrefbstop(rref: RRef, S: Optional[StorageSettings] = None) -> Optional[str]:
    """Return the time stamp at which the build ended that made this tree, or None."""
    return _stamp(rref, STOP_FILE, S)


def rrefbdelta(rref: RRef, S: Optional[StorageSettings] = None) -> Optional[float]:
    """Return how many seconds that build took, or None if a stamp is missing or unreadable."""
    start, stop = rrefbstart(rref, S), rrefbstop(rref, S)
    begun = parsetime(start) if start else None
    ended = parsetime(stop) if stop else None
    return None if begun is None or ended is None else ended - begun


# --- enumerations -------------------------------------------------------------------------------------


def alldrefs(S: Optional[StorageSettings] = None) -> Iterator[DRef]:
    """Iterate over every derivation in the store, sorted. Foreign entries of the folder do not count."""
    with suppress(StoreFull):  # these are not there then, and whoever makes room must be able to look
        write_waiting(S)
    try:
        with os.scandir(fsstorage(S)) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        names = []
    for name in names:
        if isdref(f"dref:{name}"):
            yield DRef(f"dref:{name}")


def _ask(S: Optional[StorageSettings], question: Callable[[Store], A], request: Callable[[Client], A], flush: bool = True) -> A:
    """Put a question to the index, or the same `request` to the daemon that owns the store."""
    from pylightnix.remote import ask_store

    return ask_store(S, question, request, flush)


def allrrefs(S: Optional[StorageSettings] = None) -> Iterator[RRef]:
    """Iterate over every realization in the store, sorted."""
    yield from _ask(S, lambda store: store.index.valid_rrefs(), lambda client: client.rrefs("allrrefs"))


def drefrrefs(dref: DRef, S: Optional[StorageSettings] = None) -> set[RRef]:
    """Return all realizations of a derivation."""
    assert_valid_dref(dref)
    return set(_ask(S, lambda store: store.index.valid_rrefs(dref), lambda client: client.rrefs("drefrrefs", dref)))


def drefrrefsC(dref: DRef, context: Context, S: Optional[StorageSettings] = None) -> Iterator[RRef]:
    """Iterate over the realizations of `dref` that were made in this context, sorted.

    `context` may hold more than the direct dependencies of `dref`; only those are compared.
    """
    direct = {dep: context.get(dep) or [] for dep in drefdeps1([dref], S)}
    yield from _ask(
        S,
        lambda store: store.index.valid_rrefs(dref, context_key(direct)),
        lambda client: client.rrefs("drefrrefsC", dref, direct),
    )


def rootdrefs(S: Optional[StorageSettings] = None) -> set[DRef]:
    """Return the derivations that no other derivation in the store depends on.

    Raises:
        CycleError: they cannot be sorted.
    """
    deps = {dref: sorted(cfgdeps(drefcfg_(dref, S))) for dref in alldrefs(S)}
    known = {dref: [dep for dep in below if dep in deps] for dref, below in deps.items()}
    dependency_order(list(known), known)
    return set(known) - {dep for below in known.values() for dep in below}


def rootrrefs(S: Optional[StorageSettings] = None) -> set[RRef]:
    """Return the realizations that no other realization in the store was made from."""

    def question(store: Store) -> set[RRef]:
        return set(store.index.valid_rrefs()) - store.index.referred()

    return _ask(S, question, lambda client: set(client.rrefs("rootrrefs")))


def realization_starts(rrefs: Iterable[RRef], S: Optional[StorageSettings] = None) -> dict[RRef, float]:
    """Return when the latest build of each of these realizations started, UTC seconds since the epoch."""
    wanted = list(rrefs)
    return _ask(S, lambda store: store.index.starts(wanted), lambda client: client.starts(wanted), flush=False)


def realization_info(rref: RRef, S: Optional[StorageSettings] = None) -> Optional[RealizationInfo]:
    """Return what the index knows of a realization, or None if it is not a valid one."""
    return _ask(S, lambda store: store.index.info(rref), lambda client: client.realization_info(rref))
