"""Bringing what a store of Pylightnix 0.x holds into a store of today.

Each derivation gets the reference of its config in today's form, with the references in it rewritten; each realization that
of its tree and of its direct dependencies. What cannot be checked or does not hang together is left out, with all that
depends on it, and reported.
"""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Optional

from pylightnix.config import assert_rref_deps, canonical_bytes, cfgname, mkconfig
from pylightnix.context import realization_hash
from pylightnix.errors import InvalidStorage, InvalidTree, Misuse
from pylightnix.nar import tree_hash
from pylightnix.planner.graph import dependency_order
from pylightnix.refs import mkrref, undref
from pylightnix.remote import ask_store
from pylightnix.storage import store_layout
from pylightnix.store.derivations import derivation_ref
from pylightnix.store.layout import METADATA_NAMES, START_FILE, STOP_FILE
from pylightnix.timestamps import parsetime
from pylightnix.transfer.arrival import Arrivals, Arriving, Refused, arrivals
from pylightnix.transfer.copying import copy_folder
from pylightnix.transfer.records import STAMP_BYTES
from pylightnix.types import DRef, RRef, StorageSettings
from pylightnix.v0.hashing import has_hash, is_ambiguous
from pylightnix.v0.reading import (
    OldDerivation,
    OldRealization,
    Remark,
    RemarkKind,
    find_storage,
    read_context,
    read_derivations,
    read_realizations,
)
from pylightnix.walking import walk

__all__ = ["ImportReport", "Remark", "RemarkKind", "import_v0"]

_UNKNOWN_HOST: Final = "unknown"
_DREF_LENGTH: Final = len("dref:") + 32
"""What began with ``dref:`` and was at least so long counted as a reference."""


@dataclass(slots=True)
class ImportReport:
    """What an import took, or would take."""

    storage: str
    """The old store's folder of derivations."""
    derivations: dict[DRef, DRef] = field(default_factory=dict)
    """Each derivation that was taken, by its old reference."""
    realizations: dict[RRef, RRef] = field(default_factory=dict)
    """Each realization that was taken, by its old reference."""
    present: int = 0
    """How many of these were in the store already."""
    remarks: list[Remark] = field(default_factory=list)

    def refused(self) -> list[Remark]:
        """Return what could not be taken, and why."""
        return [remark for remark in self.remarks if remark.kind is RemarkKind.REFUSED]


def import_v0(path: str, S: Optional[StorageSettings] = None, *, dry_run: bool = False) -> ImportReport:
    """Bring what an old store holds into the store `S`. The old store is only read. Doing it again changes nothing.

    Args:
        path: the old store's root, or its folder `store-v0`.
        S: the store.
        dry_run: report what would be taken, and take nothing.

    Raises:
        InvalidStorage: there is no old store at `path`.
        StoreError, InvalidStorage: the store cannot be used.
        NoDaemon, DaemonGone: the daemon that owns it ended in the middle.
    """
    report = ImportReport(find_storage(path))
    if dry_run:
        _Import(report, None).run()
        report.present = _present(report.realizations.values(), S)
        return report
    with arrivals(store_layout(S)) as arrived:
        _Import(report, arrived).run()
    report.present = arrived.present
    return report


def _present(rrefs: Iterable[RRef], S: Optional[StorageSettings]) -> int:
    wanted = sorted(set(rrefs))
    try:
        return ask_store(
            S,
            lambda store: sum(store.index.info(rref) is not None for rref in wanted),
            lambda client: sum(client.realization_info(rref) is not None for rref in wanted),
        )
    except InvalidStorage:
        return 0  # there is no store yet


class _Untaken(Exception):
    """Something cannot be taken; the text says why."""


@contextmanager
def _refusals(report: ImportReport, path: str) -> Iterator[None]:
    """Turn what is wrong with one thing in the old store into a remark."""
    try:
        yield
    except InvalidTree as error:
        report.remarks.append(Remark(RemarkKind.REFUSED, path, f"{error.where} {error.problem}"))
    except (_Untaken, Refused, Misuse, ValueError, RecursionError) as error:
        report.remarks.append(Remark(RemarkKind.REFUSED, path, str(error)))


@contextmanager
def _reading() -> Iterator[None]:
    """Tell errors of the old store's disk from those of ours. Nothing of ours may run inside."""
    try:
        yield
    except OSError as error:
        raise _Untaken(f"{error.filename or 'something in it'} cannot be read ({error.strerror})") from error


class _Import:
    def __init__(self, report: ImportReport, arrived: Optional[Arrivals]) -> None:
        self._report, self._arrived = report, arrived
        self._contexts: dict[RRef, dict[DRef, list[RRef]]] = {}

    def run(self) -> None:
        try:
            found = {derivation.dref: derivation for derivation in read_derivations(self._report.storage, self._report.remarks)}
        except OSError as error:
            raise InvalidStorage(f"cannot read the old store {self._report.storage}: {error.strerror}; check its permissions") from error
        named = {dref: sorted(_references(derivation.config)) for dref, derivation in found.items()}
        deps = {dref: [dep for dep in below if dep in found] for dref, below in named.items()}
        for dref in dependency_order(list(found), deps):
            derivation = found[dref]
            with _refusals(self._report, derivation.folder):
                self._derivation(derivation)
                with _reading():
                    realizations = list(read_realizations(derivation, self._report.remarks))
                for realization in realizations:
                    with _refusals(self._report, realization.folder):
                        self._realization(realization, named[dref])

    def _derivation(self, derivation: OldDerivation) -> None:
        config = mkconfig(_rewritten(derivation.config, self._report.derivations))
        assert_rref_deps(config)
        canonical = canonical_bytes(config.val)
        dref = derivation_ref(canonical, cfgname(config))
        if self._arrived is not None:
            self._arrived.derivation(dref, canonical)
        self._report.derivations[derivation.dref] = dref

    def _realization(self, old: OldRealization, named: list[DRef]) -> None:
        with _reading():
            context = read_context(old)
            _check_hash(old)
            digest = tree_hash(old.folder, exclude_top=METADATA_NAMES)
            start, stop = _stamp(old.folder, START_FILE), _stamp(old.folder, STOP_FILE)
            links = list(_links_out(old.folder))
        deps = self._direct(context, named)
        dhash, name = undref(self._report.derivations[_dref(old)])
        started = _seconds(start)
        arriving = Arriving(
            rref=mkrref(realization_hash(digest.sha256, deps, {}), dhash, name),
            deps=deps,
            started=started,
            stopped=max(started, _seconds(stop)),
            host=_UNKNOWN_HOST,
            start_stamp=start,
            stop_stamp=stop,
        )
        if self._arrived is not None and not self._arrived.has(arriving):
            self._arrived.realization(arriving, functools.partial(copy_folder, old.folder, exclude_top=METADATA_NAMES))
        self._report.realizations[old.rref] = arriving.rref
        self._contexts[old.rref] = context
        self._report.remarks += [
            Remark(RemarkKind.NOTE, path, f"the link leads out of the realization, to {target}; it was taken as it is")
            for path, target in links
        ]

    def _direct(self, context: Mapping[DRef, list[RRef]], named: list[DRef]) -> dict[DRef, list[RRef]]:
        """Return the direct dependencies, in today's references, of a context that has them all in old ones."""
        deps: dict[DRef, list[RRef]] = {}
        for dep in named:
            for rref in context.get(dep, ()):
                if rref not in self._report.realizations:
                    raise _Untaken(f"it was made from {rref}, which is not in the old store or was not taken")
                if any(context.get(other) != rrefs for other, rrefs in self._contexts[rref].items()):
                    raise _Untaken(f"its context contradicts that of {rref}, which it was made from")
            if dep not in context:
                raise _Untaken(f"its context has nothing for {dep}, which its derivation depends on")
            deps[self._report.derivations[dep]] = sorted({self._report.realizations[rref] for rref in context[dep]})
        return deps


def _dref(old: OldRealization) -> DRef:
    return DRef(f"dref:{old.rref[len('rref:') + 33 :]}")


# --- configs ------------------------------------------------------------------------------------------


def _is_reference(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("dref:") and len(value) >= _DREF_LENGTH


def _references(value: Any) -> set[DRef]:
    found = set()
    stack = [value]
    while stack:
        item = stack.pop()
        if _is_reference(item):
            found.add(DRef(item))
        elif isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
    return found


def _rewritten(value: Any, derivations: Mapping[DRef, DRef]) -> Any:
    """Return a copy of a config in which old references are today's."""
    if isinstance(value, dict):
        return {key: _rewritten(item, derivations) for key, item in value.items()}
    if isinstance(value, list):
        return [_rewritten(item, derivations) for item in value]
    if not _is_reference(value):
        return value
    if value not in derivations:
        raise _Untaken(f"it depends on {value}, which is not in the old store or was not taken")
    return str(derivations[DRef(value)])


# --- realizations ---------------------------------------------------------------------------------------


def _check_hash(old: OldRealization) -> None:
    if not has_hash(old.folder, old.rhash):
        hint = "; it has folders beside each other, which a copied store may list in another order" if is_ambiguous(old.folder) else ""
        raise _Untaken(f"its files do not have the hash that its name says{hint}")


def _stamp(folder: str, name: str) -> Optional[bytes]:
    path = os.path.join(folder, name)
    try:
        info = os.lstat(path)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(info.st_mode) or info.st_size > STAMP_BYTES:
        raise _Untaken(f"{name} is kept for a time, and this is none")
    with open(path, "rb") as file:
        return file.read()


def _seconds(stamp: Optional[bytes]) -> float:
    return (parsetime(stamp.decode("ascii", "replace").strip()) if stamp is not None else None) or 0.0


def _links_out(folder: str) -> Iterator[tuple[str, str]]:
    """Yield (path, target) of the links that lead out of a realization: a relative one led elsewhere from where that was."""
    for walked in walk(folder):
        for name in sorted(walked.others):
            if stat.S_ISLNK(os.stat(name, dir_fd=walked.fd, follow_symlinks=False).st_mode):
                target = os.readlink(name, dir_fd=walked.fd)
                inside = os.path.normpath(os.path.join(walked.path, target))
                if os.path.isabs(target) or not inside.startswith(f"{folder}{os.sep}"):
                    yield f"{walked.path}/{name}", target
