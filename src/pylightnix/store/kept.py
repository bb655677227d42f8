"""What failed builds left, kept for whoever wants to look: the last few, outside of `tmp/`."""

from __future__ import annotations

import os
import secrets
import time
from typing import Final

from pylightnix.refs import undref
from pylightnix.store.layout import StoreLayout
from pylightnix.store.removal import remove_tree
from pylightnix.types import DRef

__all__ = ["KEPT_COUNT", "keep_failed"]

KEPT_COUNT: Final = 10
"""How many build folders of failed builds are kept in a store; older ones are removed."""


def keep_failed(layout: StoreLayout, dref: DRef, folder: str) -> str:
    """Move a build folder out of `tmp/` and return where it is now.

    It stays where it is, to be removed with its owner's folder, if it cannot be moved.
    """
    _, name = undref(dref)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    target = f"{layout.failed}/{stamp}-{secrets.token_hex(4)}-{name}"[:250]
    try:
        os.makedirs(layout.failed, 0o700, exist_ok=True)
        os.rename(folder, target)
        for old in sorted(os.listdir(layout.failed))[:-KEPT_COUNT]:
            remove_tree(f"{layout.failed}/{old}")
    except OSError:
        return target if os.path.isdir(target) else folder
    return target
