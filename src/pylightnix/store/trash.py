"""The trash: where trees go in one rename, to be unlinked when there is time."""

from __future__ import annotations

import os
import secrets

from pylightnix.store.faults import reach
from pylightnix.store.layout import StoreLayout
from pylightnix.store.removal import make_movable, remove_tree

__all__ = ["empty_trash", "to_trash"]


def to_trash(layout: StoreLayout, path: str) -> None:
    """Move a file or folder to the trash. What is not there (any more) is no error."""
    try:
        make_movable(path)
        os.rename(path, f"{layout.trash}/{secrets.token_hex(12)}")
    except FileNotFoundError:
        if not os.path.isdir(layout.trash):
            os.makedirs(layout.trash, 0o700, exist_ok=True)
            if os.path.lexists(path):
                to_trash(layout, path)


def empty_trash(layout: StoreLayout) -> None:
    """Unlink everything in the trash. Several processes may do so at once."""
    try:
        names = os.listdir(layout.trash)
    except FileNotFoundError:
        return
    for name in names:
        remove_tree(f"{layout.trash}/{name}")
    if names:
        reach("trash_emptied")
