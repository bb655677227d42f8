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

from pylightnix._origins import is_project_file
from pylightnix.codekey import CodeManifest
from pylightnix.comparison import code_changes
from pylightnix.errors import shown

__all__ = [
    "ClaimedRealizer",
    "CodeClaim",
    "Difference",
    "changed_file",
    "differences",
    "is_younger",
    "module_files",
    "sent_values",
    "take_values",
]

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
    """Digests of the files of the modules that its code reaches, by path."""
    started: float
    """When the program began, UTC seconds since the epoch; a file that is younger may have changed after it was loaded."""
    stale: str
    """What shows that a file changed after the program loaded it, as a sentence; else empty."""
    values: Mapping[str, bytes]
    """Pickles of the values that it reads in modules and classes, by name."""


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
            file = _Bounded(min(_VALUE_BYTES_MAX, _VALUES_BYTES_MAX - size))
            pickle.Pickler(file).dump(vars(owner)[attribute])
        except Exception:  # noqa: BLE001  # a name of no module or class, too large, or methods of users' classes
            continue
        found[name] = bytes(file.written)
        size += len(found[name])
    return found


class _Bounded:
    """A file that takes so many bytes: a large array is not pickled to its end to be thrown away."""

    def __init__(self, limit: int) -> None:
        self.written = bytearray()
        self._limit = limit

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        if len(self.written) + size > self._limit:
            raise BufferError("too large")
        self.written += data
        return size


def _owner(name: str) -> tuple[types.ModuleType | type, str]:
    """Return the module, or the class in it, that has a value, and its name there.

    Raises:
        LookupError: it is the value of something else: a closure, the default of a parameter.
    """
    owner: Any
    owner, rest = _module_of(name)
    for part in rest[:-1]:
        owner = vars(owner)[part] if owner is not None else None
        if not isinstance(owner, type):
            raise LookupError(name)
    if owner is None:
        raise LookupError(name)
    return owner, rest[-1]


def _module_of(name: str) -> tuple[Optional[types.ModuleType], list[str]]:
    """Return the module in which a name is, None if it is in none, and the rest of the name."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        module = sys.modules.get(".".join(parts[:end]))
        if isinstance(module, types.ModuleType):
            return module, parts[end:]
    return None, parts


def module_files(names: Iterable[str]) -> dict[str, str]:
    """Return digests of the files of the modules in which these names are, by path."""
    paths = {getattr(_module_of(name)[0], "__file__", None) for name in names}
    return {path: _digest_of(path) for path in sorted(path for path in paths if isinstance(path, str) and is_project_file(path))}


def _project_files() -> list[str]:
    """Return the files of the project's modules that are loaded, without that of the program itself."""
    paths = {getattr(module, "__file__", None) for name, module in list(sys.modules.items()) if name not in ("__main__", "__mp_main__")}
    return sorted(path for path in paths if isinstance(path, str) and is_project_file(path))


def is_younger(path: str, moment: float) -> bool:
    """Tell whether a file was changed, or put in place, after a moment."""
    try:
        stat = os.stat(path)
    except OSError:
        return False  # it is no file
    # The second time cannot be set: it tells of files that were put in place with an older first one.
    return max(stat.st_mtime, stat.st_ctime) > moment


def _digest_of(path: str) -> str:
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
    """Return what shows that a file that is loaded here is not what the program had loaded, as a sentence; None if nothing does."""
    for path, digest in claim.files.items():
        if _digest_of(path) != digest:
            return f"{path} changed"
    return next((f"{path} is younger than the program" for path in _project_files() if is_younger(path, claim.started)), None)


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
