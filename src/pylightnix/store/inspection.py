"""Whether one realization on the disk is what its name says: its tree, its context, its modes, its provenance.

A realization's name is the hash of its tree and its context, so no index is needed to tell. Reads only, and follows no
link. Must not know which realizations there should be, nor what becomes of a damaged one.
"""

from __future__ import annotations

import enum
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Optional

from pylightnix.context import parse_context, realization_hash
from pylightnix.errors import InvalidSource, InvalidTree, Misuse, PylightnixException
from pylightnix.nar import OPEN_FLAGS, EntryKind, TreeDigest, hash_folder
from pylightnix.refs import rref2dref, unrref
from pylightnix.store.derivations import read_config
from pylightnix.store.fixed_outputs import FolderReader, broken_promise
from pylightnix.store.layout import CONTEXT_FILE, METADATA_NAMES, StoreLayout
from pylightnix.store.presence import is_there
from pylightnix.store.provenance import Provenance, read_provenance
from pylightnix.types import DRef, RRef

__all__ = ["Damage", "Inspected", "fits", "inspect"]

_CONTEXT_BYTES_MAX: Final = 1 << 30

Context = Mapping[DRef, list[RRef]]


class Damage(enum.Enum):
    """What is wrong with a realization, the worst first."""

    missing = "missing"
    """Its folder is gone."""
    unreadable = "unreadable"
    """The system cannot read it."""
    tree = "tree"
    """Its files are not those that were stored."""
    checksum = "checksum"
    """Its files are not those that its config has the checksums of."""
    context = "context"
    """What it was made from is not recorded beside it any more."""
    mode = "mode"
    """Something in it can be written, or not be read, or belongs to another user."""
    provenance = "provenance"
    """What says who built it cannot be read."""


@dataclass(frozen=True, slots=True)
class Inspected:
    """What there is where a realization should be."""

    rref: RRef
    damage: Optional[Damage] = None
    problem: str = ""
    """Says what was expected and what was found, and where; empty if nothing is wrong."""
    digest: Optional[TreeDigest] = None
    """None if the tree could not be hashed."""
    deps: Context = field(default_factory=dict)
    dynamic: Context = field(default_factory=dict)
    provenance: Optional[Provenance] = None

    @property
    def is_whole(self) -> bool:
        """Whether all that its name stands for is there."""
        return self.damage in (None, Damage.mode, Damage.provenance)

    @property
    def targets(self) -> set[RRef]:
        """The realizations that it was made from."""
        return {rref for part in (self.deps, self.dynamic) for rrefs in part.values() for rref in rrefs}


def fits(rref: RRef, tree_hash: str, deps: Context, dynamic: Context) -> bool:
    """Tell whether a tree and a context have this name."""
    return realization_hash(tree_hash, deps, dynamic) == unrref(rref)[0]


def inspect(layout: StoreLayout, rref: RRef) -> Inspected:
    """Hash the tree of a realization, and compare it with its name and with the checksums that its config has."""
    folder = layout.realization(rref)
    looking = _Looking()
    try:
        deps, dynamic, lost = _read_context(folder)
        digest = _hash(folder, looking)
    except FileNotFoundError:
        if os.path.isdir(folder):
            return Inspected(rref, Damage.tree, f"{folder}: it changed while it was read")
        return Inspected(rref, Damage.missing, f"{folder}: expected the folder of a realization, found none")
    except NotADirectoryError:
        return Inspected(rref, Damage.tree, f"{folder}: expected the folder of a realization, found something else")
    except InvalidTree as error:
        return Inspected(rref, Damage.tree, str(error))
    except OSError as error:
        return Inspected(rref, Damage.unreadable, f"{error.filename or folder}: {error.strerror or error}")
    found = Inspected(rref, digest=digest, deps=deps, dynamic=dynamic, provenance=read_provenance(layout.provenance(rref)))
    damage, problem = _damage(layout, found, lost, looking)
    return found if damage is None else _with(found, damage, problem)


def _with(found: Inspected, damage: Damage, problem: str) -> Inspected:
    return Inspected(found.rref, damage, problem, found.digest, found.deps, found.dynamic, found.provenance)


def _damage(layout: StoreLayout, found: Inspected, lost: Optional[str], looking: _Looking) -> tuple[Optional[Damage], str]:
    folder = layout.realization(found.rref)
    if lost is not None:
        return Damage.context, f"{folder}/{CONTEXT_FILE}: {lost}"
    if found.digest is None:
        raise AssertionError("BUG: hashed, and no digest")
    if not fits(found.rref, found.digest.sha256, found.deps, found.dynamic):
        return Damage.tree, f"{folder}: its tree hash is {found.digest.sha256}, which with its context does not give its name"
    if (problem := _promise_broken(layout, found.rref, folder)) is not None:
        return Damage.checksum, f"{folder}: {problem}"
    if looking.odd is not None:
        return Damage.mode, looking.odd
    if found.provenance is None and is_there(layout.provenance(found.rref)):
        return Damage.provenance, f"{layout.provenance(found.rref)}: it cannot be read"
    return None, ""


def _read_context(folder: str) -> tuple[Context, Context, Optional[str]]:
    """Return the context, and why it cannot be had.

    Raises:
        OSError: the folder itself is not there.
    """
    try:
        fd = os.open(f"{folder}/{CONTEXT_FILE}", OPEN_FLAGS)
        with open(fd, "rb") as file:
            data = file.read(_CONTEXT_BYTES_MAX)
        deps, dynamic = parse_context(json.loads(data))
    except OSError as error:
        os.close(os.open(folder, OPEN_FLAGS | os.O_DIRECTORY))
        return {}, {}, error.strerror or str(error)
    except (ValueError, RecursionError, Misuse) as error:
        return {}, {}, f"it is no context ({error})"
    return deps, dynamic, None


def _promise_broken(layout: StoreLayout, rref: RRef, folder: str) -> Optional[str]:
    try:
        return broken_promise(read_config(layout, rref2dref(rref)).val, FolderReader(folder))
    except InvalidSource as error:
        return str(error)
    except (PylightnixException, OSError):
        return None  # its derivation is damaged, which is told of the derivation


def _hash(folder: str, access: _Looking) -> TreeDigest:
    fd = os.open(folder, OPEN_FLAGS | os.O_DIRECTORY)
    try:
        access.look(fd, os.fsencode(folder), is_folder=True)
        return hash_folder(fd, where=folder, exclude_top=METADATA_NAMES, access=access)
    finally:
        os.close(fd)


class _Looking:
    """Access that changes nothing, and notes what is not sealed."""

    def __init__(self) -> None:
        self.odd: Optional[str] = None
        """What was found first."""
        self._uid = os.geteuid()

    def look(self, fd: int, where: bytes, *, is_folder: bool = False) -> os.stat_result:
        info = os.fstat(fd)
        allowed = (0o555,) if is_folder or stat.S_ISDIR(info.st_mode) else (0o444, 0o555)
        if stat.S_IMODE(info.st_mode) not in allowed:
            self._note(where, f"expected the mode {allowed[-1]:o}, found {stat.S_IMODE(info.st_mode):o}")
        elif self._uid not in (info.st_uid, 0):
            self._note(where, f"it belongs to the user {info.st_uid}")
        return info

    def _note(self, where: bytes, problem: str) -> None:
        if self.odd is None:
            self.odd = f"{where.decode('utf-8', 'backslashreplace')}: {problem}"

    def open_entry(self, parent_fd: int, name: bytes, where: bytes) -> tuple[int, os.stat_result]:
        fd = os.open(name, OPEN_FLAGS, dir_fd=parent_fd)
        try:
            return fd, self.look(fd, where)
        except BaseException:
            os.close(fd)
            raise

    def skip_entry(self, parent_fd: int, name: bytes, kind: EntryKind, where: bytes) -> None:
        pass

    def leave_file(self, fd: int) -> None:
        pass

    def leave_link(self, parent_fd: int, name: bytes) -> None:
        pass

    def leave_folder(self, fd: int, where: bytes) -> None:
        pass
