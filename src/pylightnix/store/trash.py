"""The trash: where trees go in one rename, to be unlinked when there is time, never under the store's lock."""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Iterator

from pylightnix.errors import StoreError
from pylightnix.store.faults import reach
from pylightnix.store.layout import StoreLayout
from pylightnix.store.removal import make_movable
from pylightnix.store.set_aside import all_set_aside, discard, is_passing, note_stuck

__all__ = ["empty_trash", "has_trash", "put_away", "to_trash"]


def to_trash(layout: StoreLayout, path: str) -> None:
    """Move a file or folder to the trash. What is not there (any more) is no error.

    Raises:
        OSError, StoreError: it cannot be moved.
    """
    make_movable(path)
    for trash in layout.trash_folders:
        try:
            _move(path, trash)
        except OSError as error:
            if error.errno != errno.EXDEV or trash == layout.trash_folders[-1]:
                raise
        else:
            return


def _move(path: str, trash: str) -> None:
    target = f"{trash}/{secrets.token_hex(12)}"
    try:
        os.rename(path, target)
    except FileNotFoundError:
        if not os.path.isdir(trash) and os.path.lexists(path):
            os.makedirs(trash, 0o700, exist_ok=True)
            _move(path, trash)


def put_away(layout: StoreLayout, path: str) -> bool:
    """Do as `to_trash`; what cannot be moved is named, see `pylightnix.store.set_aside`, and stays. Tell whether it is out of the way.

    Raises:
        OSError, StoreError: for another reason than what is at `path`.
    """
    try:
        to_trash(layout, path)
    except OSError as error:
        failure = error
    except StoreError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        failure = error.__cause__
    else:
        return True
    if failure.errno in (errno.ENOSPC, errno.EDQUOT):  # the trash may need a block more; unlinking needs none
        return discard(layout, path)
    if is_passing(failure):
        raise failure
    note_stuck(layout, path, failure)
    return False


def has_trash(layout: StoreLayout) -> bool:
    """Tell whether anything waits to be unlinked."""
    return next(_in_trash(layout), None) is not None


def empty_trash(layout: StoreLayout, seconds: float = float("inf")) -> bool:
    """Unlink what is in the trash, for about so long; tell whether all of it is gone. What cannot be unlinked is set aside.

    Several processes may do so at once.
    """
    deadline = time.monotonic() + seconds
    is_late = found = False
    for path in _in_trash(layout):
        if is_late:
            break
        found = True
        discard(layout, path, deadline)
        is_late = time.monotonic() >= deadline
    if found:
        reach("trash_emptied")
    return not is_late


def _in_trash(layout: StoreLayout) -> Iterator[str]:
    for folder in layout.trash_folders:
        try:
            names = os.listdir(folder)
        except OSError:
            continue  # there is none
        stuck = {entry.path for entry in all_set_aside(layout)} if names else ()
        for name in names:
            if f"{folder}/{name}" not in stuck:  # that is tried again at its own time
                yield f"{folder}/{name}"
