"""Making a realization again that was lost, where its config says how: fetched files, and archives that were unpacked.

What comes out counts only if it is the very realization that was lost, so nothing is trusted here but hashes. Must not know
how damage is found.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from typing import Any, Optional

from pylightnix.config import Config, cfgdeps
from pylightnix.context import parse_context
from pylightnix.errors import PylightnixException
from pylightnix.nar import tree_hash
from pylightnix.refs import isrefpath, isselfpath, rref2dref
from pylightnix.storage import fsroot, fsstorage, fstmpdir, store_layout
from pylightnix.store.derivations import read_config
from pylightnix.store.inspection import fits
from pylightnix.store.layout import CONTEXT_FILE, METADATA_NAMES
from pylightnix.types import DRef, Path, Realizer, RRef, StorageSettings

__all__ = ["can_rebuild", "rebuild"]


def can_rebuild(rref: RRef, S: Optional[StorageSettings]) -> bool:
    """Tell whether the config of a realization's derivation says how to make it."""
    try:
        return _realizer(read_config(store_layout(S), rref2dref(rref)).val) is not None
    except PylightnixException:
        return False


def rebuild(rref: RRef, S: Optional[StorageSettings], quarantined: Optional[str]) -> Optional[str]:
    """Make a realization that is not in the store again, and put it there.

    Args:
        rref: the realization.
        S: the store.
        quarantined: the folder that its damaged tree lies in; None if there is none.

    Returns:
        Why it could not be made; None if it is there again.
    """
    dref = rref2dref(rref)
    try:
        config = read_config(store_layout(S), dref)
        realizer = _realizer(config.val)
        if realizer is None:
            return "its config does not say how"
        deps = _context(quarantined, config)
    except (PylightnixException, OSError, ValueError) as error:
        return str(error)
    scratch = tempfile.mkdtemp(prefix="rebuilding-", dir=fstmpdir(S))
    try:
        return _made(rref, dref, deps, realizer, S, scratch)
    except Exception as error:  # noqa: BLE001  # of a server, an archive, the disk: all say that it could not be made
        return f"{type(error).__name__}: {error}"
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _made(
    rref: RRef, dref: DRef, deps: Mapping[DRef, list[RRef]], realizer: Realizer, S: Optional[StorageSettings], scratch: str
) -> Optional[str]:
    from pylightnix.remote import insert

    started = time.time()
    apart = StorageSettings(root=fsroot(S), storage=fsstorage(S), tmpdir=Path(scratch))
    (folder,) = realizer(apart, dref, {dep: list(rrefs) for dep, rrefs in deps.items()}, {})
    found = tree_hash(folder, exclude_top=METADATA_NAMES).sha256
    if not fits(rref, found, deps, {}):
        return f"what comes out now is something else (its tree hash is {found})"
    insert(dref, deps, folder, started, S)
    return None


def _context(quarantined: Optional[str], config: Config) -> Mapping[DRef, list[RRef]]:
    if not cfgdeps(config):
        return {}
    if quarantined is None:
        raise ValueError("what it was made from is not known")
    import json

    with open(f"{quarantined}/{CONTEXT_FILE}", "rb") as file:
        return parse_context(json.load(file))[0]


def _realizer(config: Mapping[str, Any]) -> Optional[Realizer]:
    """Return what makes a realization from this config alone; None if it takes more, such as a function of the user's."""
    from pylightnix.stages._fetching import FetchRealizer
    from pylightnix.stages.unpack import UnpackRealizer

    path, refpath = config.get("path"), config.get("refpath")
    local = path if isinstance(path, str) and os.path.isabs(path) else None
    if isinstance(config.get("mode"), str) and any(isinstance(config.get(name), str) for name in ("sha256", "sha512", "sha1")):
        out = config.get("out_path")
        name = out[1] if isinstance(out, list) and len(out) == 2 and isinstance(out[1], str) else None
        if isinstance(config.get("url"), str):
            return FetchRealizer(filename=name)
        return FetchRealizer(path=local, filename=name or os.path.basename(local)) if local is not None else None
    if isrefpath(refpath) and not isselfpath(refpath) and path is None:
        return UnpackRealizer()
    return None
