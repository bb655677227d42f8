"""What a store of Pylightnix 0.x holds. Reads configs and contexts, and believes none before its hash is checked.

store-v0/<dhash>-<name>/config.json      dhash: the first 32 digits of the SHA-256 of the file
store-v0/<dhash>-<name>/<rhash>/         rhash: see `hashing`; context.json there has every dependency at any distance
store-v0/…*.tmp                          what was being written or removed when somebody died
"""

from __future__ import annotations

import enum
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Optional

from pylightnix.errors import InvalidStorage
from pylightnix.refs import isdref, rref2dref
from pylightnix.types import DRef, RRef
from pylightnix.workfolder import absolute

__all__ = [
    "OldDerivation",
    "OldRealization",
    "Remark",
    "RemarkKind",
    "find_storage",
    "read_context",
    "read_derivations",
    "read_realizations",
]

_STORAGE_NAME: Final = "store-v0"
_HEX: Final = re.compile("[0-9a-f]{32}")


class RemarkKind(enum.Enum):
    """What became of something in the old store."""

    SKIPPED = "skipped"
    """It is nothing of a store's: left over, or put there by somebody else."""
    REFUSED = "refused"
    """It is, but it cannot be taken."""
    NOTE = "note"
    """It was taken, but something is to be known of it."""


@dataclass(frozen=True, slots=True)
class Remark:
    """Something that whoever imports a store should know."""

    kind: RemarkKind
    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class OldDerivation:
    """A derivation whose config is what its name says."""

    dref: DRef
    folder: str
    config: dict[str, Any]


@dataclass(frozen=True, slots=True)
class OldRealization:
    """A folder that is named like a realization."""

    rref: RRef
    rhash: str
    folder: str


def find_storage(path: str) -> str:
    """Return the storage folder of an old store, given that folder or a root that it lies in.

    Raises:
        InvalidStorage: there is none.
    """
    top = absolute(path)
    for folder in (top, os.path.join(top, _STORAGE_NAME), os.path.join(top, "_pylightnix", _STORAGE_NAME)):
        if os.path.isdir(folder) and (os.path.basename(folder) == _STORAGE_NAME or _looks_old(folder)):
            return folder
    raise InvalidStorage(
        f"expected a store of Pylightnix 0.x at {path}, found no folder {_STORAGE_NAME} there; give its root or its storage folder"
    )


def _looks_old(folder: str) -> bool:
    with os.scandir(folder) as entries:
        return any(isdref(f"dref:{entry.name}") and os.path.isfile(os.path.join(entry.path, "config.json")) for entry in entries)


def read_derivations(storage: str, remarks: list[Remark]) -> Iterator[OldDerivation]:
    """Yield the derivations, in the order of their folders' names; what is none of them goes into `remarks`."""
    for name, path in _folders(storage, remarks):
        if not isdref(f"dref:{name}"):
            if os.path.lexists(os.path.join(path, "config.json")):
                remarks.append(Remark(RemarkKind.REFUSED, path, "its name is not one that a derivation can have"))
            else:
                remarks.append(Remark(RemarkKind.SKIPPED, path, "it is no derivation"))
            continue
        config, problem = _config(path, name)
        if config is None:
            remarks.append(Remark(RemarkKind.REFUSED, path, problem))
        else:
            yield OldDerivation(DRef(f"dref:{name}"), path, config)


def _folders(parent: str, remarks: list[Remark], known: str = "") -> Iterator[tuple[str, str]]:
    """Yield (name, path) of the folders in a folder, sorted; `known` is a file that belongs there."""
    with os.scandir(parent) as entries:
        found = sorted(((entry.name, entry.path, entry.is_dir(follow_symlinks=False)) for entry in entries), key=lambda item: item[0])
    for name, path, is_folder in found:
        if name.endswith(".tmp"):
            remarks.append(Remark(RemarkKind.SKIPPED, path, "it was being written or removed when somebody died"))
        elif is_folder:
            yield name, path
        elif name != known:
            remarks.append(Remark(RemarkKind.SKIPPED, path, "it is no folder"))


def _config(path: str, name: str) -> tuple[Optional[dict[str, Any]], str]:
    """Return (config, "") or (None, what is wrong with it)."""
    try:
        with open(os.path.join(path, "config.json"), "rb") as file:
            data = file.read()
        found = hashlib.sha256(data).hexdigest()[:32]
        if found != name[:32]:
            return None, f"its config.json has the hash {found}"
        value = json.loads(data)
    except OSError as error:
        return None, f"its config.json cannot be read ({error.strerror})"
    except (ValueError, RecursionError) as error:
        return None, f"its config.json is not JSON ({error})"
    if not isinstance(value, dict) or str(value.get("name", "unnamed")) != name[33:]:
        return None, "its config.json has another name"
    return value, ""


def read_realizations(derivation: OldDerivation, remarks: list[Remark]) -> Iterator[OldRealization]:
    """Yield the realizations of a derivation, in the order of their folders' names. Their hashes are not checked yet."""
    for name, path in _folders(derivation.folder, remarks, known="config.json"):
        if _HEX.fullmatch(name):
            yield OldRealization(RRef(f"rref:{name}-{derivation.dref[5:]}"), name, path)
        else:
            remarks.append(Remark(RemarkKind.SKIPPED, path, "it is no realization"))


def read_context(realization: OldRealization) -> dict[DRef, list[RRef]]:
    """Return which realizations stood for each dependency, at any distance.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no context.
    """
    with open(os.path.join(realization.folder, "context.json"), "rb") as file:
        value = json.load(file)
    if not isinstance(value, dict) or not all(isinstance(rrefs, list) and rrefs for rrefs in value.values()):
        raise ValueError("its context.json maps no derivations to realizations")
    for dref, rrefs in value.items():
        if any(rref2dref(rref) != dref for rref in rrefs):
            raise ValueError(f"its context.json has something else than realizations of {dref}")
    return {DRef(dref): sorted(map(RRef, rrefs)) for dref, rrefs in value.items()}
