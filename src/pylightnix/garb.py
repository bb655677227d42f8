"""Collection of garbage: what of a store nothing that is to be kept needs, and its removal.

What is to be kept is said by symbolic links: whatever a link in one of the given folders leads to, with all
that it was made from. Must not know how anything is removed: see `pylightnix.store.collection`.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Optional, TypeVar, Union

from pylightnix.errors import Misuse, PylightnixException, StoreFull
from pylightnix.leftovers import failed_builds, remove_failed
from pylightnix.planner.graph import dependency_order
from pylightnix.query import alldrefs, allrrefs, dref2path, drefdeps, drefdeps1, located, rref2path, rrefdeps, rrefdeps1
from pylightnix.refs import isrref, rref2dref
from pylightnix.sanitize import escaped
from pylightnix.searching import config_bytes, realization_bytes
from pylightnix.types import DRef, RRef, StorageSettings
from pylightnix.walking import walk

__all__ = ["collect", "diskspace_h", "failed_candidates", "gc", "gc_candidates", "gc_exceptions", "store_gc", "sweep"]

R = TypeVar("R", bound=str)

_PATH_BYTES: Final = 4096
BATCH_MAX: Final = 2_000
"""How much is removed at a time: what others may have to wait for."""


def store_gc(keep_drefs: Iterable[DRef], keep_rrefs: Iterable[RRef], S: Optional[StorageSettings] = None) -> tuple[set[DRef], set[RRef]]:
    """Return what of the store is not needed. Removes nothing.

    Needed are the derivations `keep_drefs`, all that they depend on and all realizations of these; the realizations
    `keep_rrefs`, and the derivations of both; and whatever any of these was made from.

    Returns:
        Derivations and realizations; those of a derivation that is not needed are among the latter.

    Raises:
        MissingDerivation, MissingRealization: something to be kept, or what it needs, is not in the store.
    """
    everything = list(allrrefs(S))
    drefs = set(keep_drefs)
    drefs |= drefdeps(drefs, S)
    rrefs = {*keep_rrefs, *(rref for rref in everything if rref2dref(rref) in drefs)}
    rrefs |= rrefdeps(rrefs, S)
    made = {rref2dref(rref) for rref in rrefs}
    drefs |= made | drefdeps(made, S)
    return set(alldrefs(S)) - drefs, set(everything) - rrefs


# --- what is to be kept -------------------------------------------------------------------------------


def gc_exceptions(keep_paths: Iterable[str], S: Optional[StorageSettings] = None) -> tuple[list[DRef], list[RRef]]:
    """Return the derivations and realizations that symbolic links lead to, sorted.

    A link to a file in a realization stands for the realization; links to links are followed; a link into another
    store, to anything else or to what is gone stands for nothing.

    Args:
        keep_paths: folders to look in, at any depth; or links; or paths in the store.
        S: the store.

    Raises:
        Misuse: one of them is not there.
        OSError: a folder in them cannot be read, so what it keeps is not known.
    """
    found: set[Union[DRef, RRef]] = set()
    for path in _listed(keep_paths):
        if not os.path.lexists(path):
            raise Misuse(f"gc expects folders whose links say what is to be kept, found nothing at {path}")
        for candidate in (path, *_links_below(path, S)):
            place = located(candidate, S)
            if place is not None and _is_there(place[0], S):
                found.add(place[0])
    return sorted(DRef(ref) for ref in found if not isrref(ref)), sorted(RRef(ref) for ref in found if isrref(ref))


def _listed(paths: Iterable[str]) -> list[str]:
    # One path is meant as a list of it: the letters of a text are no paths.
    return [os.fspath(path) for path in ([paths] if isinstance(paths, (str, os.PathLike)) else paths)]


def _links_below(path: str, S: Optional[StorageSettings]) -> Iterator[str]:
    # What lies in the store was found by its path; the links in it are part of what was built.
    if located(path, S) is not None or not os.path.isdir(path):
        return
    for folder in walk(path):
        for name in folder.others:
            if stat.S_ISLNK(os.stat(name, dir_fd=folder.fd, follow_symlinks=False).st_mode):
                entry = f"{folder.path}/{name}"
                # Of a link whose path is longer than the system takes, what it names is taken as it stands.
                yield entry if len(os.fsencode(entry)) < _PATH_BYTES else os.path.join(folder.path, os.readlink(name, dir_fd=folder.fd))


def failed_candidates(keep_paths: Iterable[str], S: Optional[StorageSettings] = None) -> dict[str, int]:
    """Return the folders of failed builds that no link in these folders leads to, each with its bytes."""
    found = failed_builds(S)
    kept = {os.path.realpath(link) for path in _listed(keep_paths) if found for link in (path, *_links_below(path, S))}
    return {
        path: size
        for path, size in found.items()
        if not any(each == real or each.startswith(f"{real}/") for real in [os.path.realpath(path)] for each in kept)
    }


def _is_there(ref: Union[DRef, RRef], S: Optional[StorageSettings]) -> bool:
    return os.path.isdir(rref2path(RRef(ref), S) if isrref(ref) else dref2path(DRef(ref), S))


def gc_candidates(keep: tuple[Iterable[DRef], Iterable[RRef]], S: Optional[StorageSettings] = None) -> tuple[set[DRef], set[RRef]]:
    """Return what `store_gc` says of such a pair as `gc_exceptions` returns."""
    return store_gc(keep[0], keep[1], S)


# --- removing the rest --------------------------------------------------------------------------------


def gc(keep_dirs: Sequence[str], interactive: bool = True, verbose: bool = True, S: Optional[StorageSettings] = None) -> None:
    """Remove from the store what nothing needs that links in these folders lead to, and what failed builds left.

    What came to be needed, or to be kept, since it was listed stays.

    Args:
        keep_dirs: folders with links, see `gc_exceptions`.
        interactive: ask first. No answer but ``y`` or ``yes`` is a yes.
        verbose: print what is to go, with its size.
        S: the store.

    Raises:
        Misuse: it is to ask and cannot: it prints nothing, or standard input is no terminal.
        StoreBusy: another process works in the store.
    """
    if interactive and not verbose:
        raise Misuse("gc expects verbose=True where it is to ask, for one must see what would go")
    if interactive and not (sys.stdin and sys.stdin.isatty()):
        raise Misuse("gc can ask on a terminal only; pass interactive=False to remove without asking")
    drefs, rrefs = gc_candidates(gc_exceptions(keep_dirs, S), S)
    failed = failed_candidates(keep_dirs, S)
    if verbose:
        _print_candidates(drefs, rrefs, S)
        for path, size in failed.items():
            print(escaped(f"{diskspace_h(size)}  {path}"))  # noqa: T201  # `verbose` asks for it
    if not drefs and not rrefs and not failed:
        return
    what = f"{len(drefs)} derivations and {len(rrefs)} realizations" + (f", and what {len(failed)} failed builds left" if failed else "")
    if interactive and input(f"Remove {what}? [yN] ").strip().lower() not in ("y", "yes"):
        return
    sweep(keep_dirs, drefs, rrefs, S)
    remove_failed(failed.keys() & failed_candidates(keep_dirs, S).keys(), S)


def _print_candidates(drefs: set[DRef], rrefs: set[RRef], S: Optional[StorageSettings]) -> None:
    for rref in sorted(rrefs):
        print(f"{diskspace_h(realization_bytes(rref, S))}  {rref}")  # noqa: T201  # `verbose` asks for it
    for dref in sorted(drefs):
        print(f"{diskspace_h(config_bytes(dref, S))}  {dref}")  # noqa: T201  # the same


def sweep(
    keep_dirs: Sequence[str], drefs: set[DRef], rrefs: set[RRef], S: Optional[StorageSettings] = None
) -> tuple[list[DRef], list[RRef]]:
    """Remove what was listed and is not kept by a link that was made since; return what is gone, sorted."""
    now_drefs, now_rrefs = gc_candidates(gc_exceptions(keep_dirs, S), S)
    return collect(drefs & now_drefs, rrefs & now_rrefs, S)


def collect(
    drefs: Iterable[DRef], rrefs: Iterable[RRef], S: Optional[StorageSettings] = None, batch: int = BATCH_MAX
) -> tuple[list[DRef], list[RRef]]:
    """Remove what is not needed any more of these derivations and realizations; return what is gone, sorted.

    Those that are needed by others, or used by somebody's operation, stay; those that are gone already are left out.
    """
    gone_drefs: list[DRef] = []
    gone_rrefs: list[RRef] = []
    # Realizations before their derivations.
    for rref_batch in _batches(set(rrefs), lambda rref: rrefdeps1([rref], S), batch):
        gone_rrefs += _removed([], rref_batch, S)[1]
    for dref_batch in _batches(set(drefs), lambda dref: drefdeps1([dref], S), batch):
        gone_drefs += _removed(dref_batch, [], S)[0]
    return sorted(gone_drefs), sorted(gone_rrefs)


def _removed(drefs: list[DRef], rrefs: list[RRef], S: Optional[StorageSettings]) -> tuple[list[DRef], list[RRef]]:
    """Remove a batch; where the disk has no room to note so much, half of it first, which makes room for the other half."""
    from pylightnix.remote import remove

    try:
        removal = remove(drefs, rrefs, S, only_unused=True)
    except StoreFull:
        if len(drefs) + len(rrefs) <= 1:
            raise
        halves = [(drefs[: len(drefs) // 2], rrefs[: len(rrefs) // 2]), (drefs[len(drefs) // 2 :], rrefs[len(rrefs) // 2 :])]
        gone = [_removed(some_drefs, some_rrefs, S) for some_drefs, some_rrefs in halves if some_drefs or some_rrefs]
        return [dref for found, _ in gone for dref in found], [rref for _, found in gone for rref in found]
    return removal.drefs, removal.rrefs


def _batches(refs: set[R], needs_of: Callable[[R], set[R]], size: int) -> Iterator[list[R]]:
    """Yield all of `refs`, dependents first, so that no batch holds back what would go with the next."""
    ordered = sorted(refs)
    if len(ordered) > size:
        needs = {ref: sorted(_readable(needs_of, ref) & refs) for ref in ordered}
        ordered = dependency_order(ordered, needs)[::-1]
    for i in range(0, len(ordered), size):
        yield ordered[i : i + size]


def _readable(needs_of: Callable[[R], set[R]], ref: R) -> set[R]:
    try:
        return needs_of(ref)
    except (PylightnixException, OSError):
        return set()  # it is garbage, and perhaps that is why


def diskspace_h(sz: int) -> str:
    """Return a number of bytes in K, M or G, for people, right-aligned in four columns and a letter."""
    for unit, bytes_each in (("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)):
        if sz >= bytes_each:
            return f"{sz // bytes_each:>4}{unit}"
    return f"{sz:>4} "
