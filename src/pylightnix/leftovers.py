"""What lies in a store beside derivations and realizations: how much room it takes, and the removal of what is done with.

The folders of failed builds are kept for whoever wants to look, until a collection of garbage; see `store.kept`. Of the
trash and of build folders those that nobody needs go by themselves. Must not know what is garbage among realizations.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Final, Optional

from pylightnix.errors import InvalidStorage, StoreError
from pylightnix.storage import store_layout
from pylightnix.store.layout import StoreLayout
from pylightnix.store.removal import make_movable, open_unlocked
from pylightnix.store.set_aside import SetAside, all_set_aside, discard, retry_set_aside
from pylightnix.types import StorageSettings
from pylightnix.walking import file_bytes

__all__ = ["failed_builds", "leftovers", "remove_failed", "unremovable"]

_RETRY_SECONDS: Final = 5.0


def failed_builds(S: Optional[StorageSettings] = None) -> dict[str, int]:
    """Return the folders that failed builds have left, the oldest first, each with the bytes of its files."""
    layout = _layout(S)
    return {} if layout is None else _sizes(layout.failed)


def leftovers(S: Optional[StorageSettings] = None) -> dict[str, int]:
    """Return what else takes room, in bytes: the trash, the folders of builds that run or ran, and damaged realizations moved aside."""
    layout = _layout(S)
    if layout is None:
        return {}
    return {folder: size for folder in (layout.trash, layout.tmp, layout.quarantine_folders[0]) if (size := sum(_sizes(folder).values()))}


def remove_failed(paths: Iterable[str], S: Optional[StorageSettings] = None) -> list[str]:
    """Remove folders that failed builds have left, and return those that are out of the way."""
    layout = _layout(S)
    return [path for path in paths if layout is not None and discard(layout, path)]


def unremovable(S: Optional[StorageSettings] = None, retry: bool = False) -> dict[SetAside, int]:
    """Return what could not be removed and was set aside, each with its bytes as far as they can be seen.

    Args:
        S: the store.
        retry: try again first.
    """
    layout = _layout(S)
    if layout is None:
        return {}
    found = retry_set_aside(layout, time.monotonic() + _RETRY_SECONDS) if retry else all_set_aside(layout)
    return {entry: _size(entry.path) for entry in found}


def _layout(S: Optional[StorageSettings]) -> Optional[StoreLayout]:
    """Return where everything lies. A daemon may keep its state elsewhere: only it knows where. None where there is no store."""
    from pylightnix.remote import ask_store

    try:
        state: str = ask_store(S, lambda store: store.layout.state, lambda client: client.welcome.store, flush=False)
    except InvalidStorage:
        return None
    return replace(store_layout(S), state=state)


def _sizes(folder: str) -> dict[str, int]:
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return {}  # there is none, or it is another user's
    return {path: _size(path) for name in names for path in [f"{folder}/{name}"]}


def _size(path: str) -> int:
    try:
        if os.path.islink(path) or not os.path.isdir(path):
            return os.lstat(path).st_size
        make_movable(path)
        return file_bytes(path, open_unlocked)
    except (OSError, StoreError):
        return 0  # it was removed just now, or holds what this user may not see
