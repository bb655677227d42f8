"""`mknode`: a stage whose realization is given bytes. Must not know where the bytes come from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

from pylightnix.build import Build, build_outpath, build_wrapper, stored_config
from pylightnix.config import mkconfig
from pylightnix.errors import InvalidOutput, Misuse, kind_of
from pylightnix.matchers import match_only
from pylightnix.registry import Registry, mkdrv
from pylightnix.store.layout import METADATA_NAMES
from pylightnix.types import Context, DRef, Path, RealizeArg, StorageSettings

__all__ = ["NodeRealizer", "mknode", "problem_with_entry"]

_KEY = "__artifacts__"


def problem_with_entry(name: object) -> Optional[str]:
    """Return why `name` cannot name an entry at the top of an output folder, or None if it can."""
    if not isinstance(name, str):
        return f"it is {kind_of(name)}, not text"
    if name in ("", ".", ".."):
        return "it names no entry of a folder"
    if "/" in name or "\0" in name:
        return "it has a slash or a NUL; entries lie directly in the output folder"
    if name in METADATA_NAMES:
        return "it is reserved for what the store itself writes"
    if len(os.fsencode(name)) > 255:
        return "it is longer than 255 bytes"
    return None


def checked_name(what: str, name: object, default: str) -> str:
    """Return the name of a derivation, `default` for None.

    Raises:
        Misuse: it is no text. Which texts are names is the config's business.
    """
    if name is None or isinstance(name, str):
        return default if name is None else name
    raise Misuse(f"{what} expects for name a text, found {name!r:.100}")


def checked_mapping(what: str, name: str, found: object, example: str) -> Mapping[Any, Any]:
    """Return an argument that must be a dict.

    Raises:
        Misuse: it is none.
    """
    if not isinstance(found, Mapping):
        raise Misuse(f"{what} expects for {name} a dict, found {found!r:.100}; write {name}={example}")
    return found


@dataclass(frozen=True, slots=True)
class NodeRealizer:
    """Writes bytes that it holds, after comparing them with the digests in the config."""

    artifacts: tuple[tuple[str, bytes], ...]

    def __call__(self, S: StorageSettings, dref: DRef, context: Context, rarg: RealizeArg) -> list[Path]:
        return build_wrapper(self._fill)(S, dref, context, rarg)

    def _fill(self, b: Build) -> None:
        expected = stored_config(b).val.get(_KEY)
        found = {name: hashlib.sha256(data).hexdigest() for name, data in self.artifacts}
        if found != expected:
            problem = f"the bytes at hand have the digests {found!r}, its config has {expected!r}"
            raise InvalidOutput(b.dref, "its artifacts", problem, "call mknode again with the bytes that belong to this config")
        for name, data in self.artifacts:
            with open(os.path.join(build_outpath(b), name), "wb") as file:
                file.write(data)


def mknode(
    r: Optional[Registry],
    cfgdict: Mapping[str, Any],
    artifacts: Mapping[str, bytes] = {},  # never changed, and part of the published signature
    name: str = "mknode",
) -> DRef:
    """Register a derivation that is realized by writing `artifacts` into files.

    The config is `cfgdict`, the item ``name`` (always that of the argument), and under ``__artifacts__``
    the SHA-256 of each artifact.

    Args:
        r: the registry, or None for the current one.
        cfgdict: config items.
        artifacts: contents by file name.
        name: the name of the derivation.

    Raises:
        Misuse: an artifact's name is not one of a plain file, or `cfgdict` has the item ``__artifacts__``.
    """
    if isinstance(r, Mapping):
        raise Misuse("mknode expects the registry first, found a dict; write mknode(r, {…}), or mknode(None, {…}) for the current one")
    if _KEY in checked_mapping("mknode", "cfgdict", cfgdict, "{'item': 'value'}"):
        raise Misuse(f"mknode writes the config item {_KEY!r} itself, found it in the config given; remove it there")
    for entry, data in checked_mapping("mknode", "artifacts", artifacts, "{'file': b'bytes'}").items():
        problem = problem_with_entry(entry)
        if problem:
            raise Misuse(f"mknode expects artifacts with the names of plain files, found {entry!r}: {problem}")
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise Misuse(f"mknode expects bytes for the artifact {entry!r}, found {kind_of(data)}; text becomes bytes with .encode()")
    kept = tuple(sorted((entry, bytes(data)) for entry, data in artifacts.items()))
    digests = {entry: hashlib.sha256(data).hexdigest() for entry, data in kept}
    config = mkconfig({**cfgdict, "name": checked_name("mknode", name, "mknode"), _KEY: digests})
    return mkdrv(config, match_only(), NodeRealizer(kept), r)
