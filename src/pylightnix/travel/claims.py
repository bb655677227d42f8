"""What a program says of the code that it sends to a worker, and how the worker's own code differs from it.

The program sends what its digest covers, the plain values that its code reads, and digests of its files. A value that
each process makes anew (a path made from the working folder, a time) is taken from the program: what is built is what
the program asked for. Code that differs is refused. Must not know how builds run.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import re
import sys
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Optional

from pylightnix.codekey import CodeManifest
from pylightnix.comparison import code_changes
from pylightnix.errors import shown

__all__ = ["ClaimedRealizer", "CodeClaim", "Difference", "changed_file", "differences", "file_digest", "sent_values", "take_values"]

_VALUE_BYTES_MAX: Final = 1 << 16
_VALUES_BYTES_MAX: Final = 1 << 20
_SHOWN_CHARACTERS: Final = 60
_ADDRESS: Final = re.compile(r" at 0x[0-9a-f]+")


@dataclass(frozen=True, slots=True)
class CodeClaim:
    """What code a realizer is in the program that sends it."""

    manifest: str
    """What its digest covers, as JSON."""
    files: Mapping[str, str]
    """Digests of the project's files that the program has loaded, by path."""
    stale: str
    """What shows that a file changed after the program loaded it, as a sentence; else empty."""
    touched: Sequence[str]
    """Files that may have changed after the program loaded them: they are younger than the program."""
    values: Mapping[str, bytes]
    """Pickles of the plain values that it reads, by module and name."""


@dataclass(frozen=True, slots=True)
class ClaimedRealizer:
    """A realizer as `pylightnix.travel.pack_realizer` packs it, with what is said of its code."""

    blob: bytes
    claim: CodeClaim


@dataclass(frozen=True, slots=True)
class Difference:
    """A function, class or value that is another one in the worker."""

    kind: str
    name: str
    text: str
    """For people, such as ``the value job.DATA differs: 1 here, 2 in the worker``."""

    @property
    def is_value(self) -> bool:
        return self.kind in ("data", "state")


# --- in the program ---------------------------------------------------------------------------------------


def sent_values(names: Iterable[str]) -> dict[str, bytes]:
    """Return pickles of the values of these names: those that can be pickled and are small."""
    found: dict[str, bytes] = {}
    size = 0
    for name in sorted(names):
        try:
            owner, attribute = _owner(name)
            blob = pickle.dumps(vars(owner)[attribute])
        except Exception:  # noqa: BLE001  # a name of no module or class, or methods of users' classes
            continue
        size += len(blob)
        if len(blob) <= _VALUE_BYTES_MAX and size <= _VALUES_BYTES_MAX:
            found[name] = blob
    return found


def _owner(name: str) -> tuple[types.ModuleType | type, str]:
    """Return the module, or the class in it, that has a value, and its name there.

    Raises:
        LookupError: it is the value of something else: a closure, the default of a parameter.
    """
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        owner: Any = sys.modules.get(".".join(parts[:end]))
        if isinstance(owner, types.ModuleType):
            for part in parts[end:-1]:
                owner = vars(owner)[part]
                if not isinstance(owner, type):
                    raise LookupError(name)
            return owner, parts[-1]
    raise LookupError(name)


def file_digest(path: str) -> str:
    """Return the digest of a file's bytes; empty if it cannot be read. Read once as long as the file stays the same."""
    try:
        stat = os.stat(path)
    except OSError:
        return ""
    return _file_digest(path, (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev))


@functools.lru_cache(maxsize=4096)
def _file_digest(path: str, stamp: tuple[int, ...]) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


# --- in the worker ----------------------------------------------------------------------------------------


def changed_file(claim: CodeClaim) -> Optional[str]:
    """Return a file that is not what it was when the program sent the claim; None if all are."""
    return next((path for path, digest in claim.files.items() if file_digest(path) != digest), None)


def differences(claim: CodeClaim, claimed: CodeManifest, found: CodeManifest) -> Iterator[Difference]:
    """Yield in what the worker's code differs from the program's, which claims to have the code `claimed`."""
    for kind, name, here, there in code_changes(claimed, found):
        if here == there and kind == "data":
            here, there = _texts(claim, name)
        what = "value" if kind == "data" else kind
        values = f": {here} here, {there} in the worker" if here != there else " in the worker"
        yield Difference(kind, name, f"the {what} {name} differs{values}")


def _texts(claim: CodeClaim, name: str) -> tuple[str, str]:
    """Return how a value of a type that manifests do not show reads in the program and in the worker."""
    try:
        owner, attribute = _owner(name)
        return _line(pickle.loads(claim.values[name])), _line(vars(owner)[attribute])
    except Exception:  # noqa: BLE001  # methods of users' classes
        return "", ""


def _line(value: object) -> str:
    return _ADDRESS.sub("", " ".join(shown(value, _SHOWN_CHARACTERS).split()))


def take_values(claim: CodeClaim, names: Sequence[str]) -> list[str]:
    """Bind these names of modules and classes to the values that the program has; return those for which that was done."""
    taken = []
    for name in names:
        try:
            owner, attribute = _owner(name)
            setattr(owner, attribute, pickle.loads(claim.values[name]))
        except Exception:  # noqa: BLE001  # it has not travelled, or methods of users' classes
            continue
        taken.append(name)
    return taken
