"""What failed builds left, kept for whoever wants to look: the last few, outside of `tmp/`.

And the errors that say where that is, which must go on to do so.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from typing import Any, Final

from pylightnix.errors import BuildError, PromiseException, StoreError
from pylightnix.refs import undref
from pylightnix.store.layout import StoreLayout
from pylightnix.store.removal import make_movable, remove_tree
from pylightnix.types import DRef, Path

__all__ = ["KEPT_COUNT", "keep_failed", "left_by", "point_to"]

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
        make_movable(folder)
        os.rename(folder, target)
        for old in sorted(os.listdir(layout.failed))[:-KEPT_COUNT]:
            remove_tree(f"{layout.failed}/{old}")
    except (OSError, StoreError):  # the build has failed already, and says why
        return target if os.path.isdir(target) else folder
    return target


def left_by(error: BaseException) -> list[Path]:
    """Return the output folders that the error of a failed build names, each once."""
    if isinstance(error, BuildError):
        return list(error.outpaths)
    if isinstance(error, PromiseException):
        return list(dict.fromkeys(folder for folder, _ in _broken(error)))
    return []


def _broken(error: PromiseException) -> list[tuple[Path, Any]]:
    """Return what an error lists. One that stands for another process's may lack it."""
    failed = vars(error).get("failed")
    pairs = [tuple(pair) for pair in failed if isinstance(pair, (list, tuple)) and len(pair) == 2] if isinstance(failed, list) else []
    return [(Path(folder), selfpath) for folder, selfpath in pairs if isinstance(folder, str) and isinstance(selfpath, list)]


def point_to(error: BaseException, moved: Callable[[str], str]) -> None:
    """Make the error of a failed build name output folders where they are now: `moved` says that of each."""
    if isinstance(error, BuildError):
        error.outpaths = [Path(moved(folder)) for folder in error.outpaths]
        point_to(error.exception, moved)
    elif isinstance(error, PromiseException) and _broken(error):
        error.failed = [(Path(moved(folder)), selfpath) for folder, selfpath in _broken(error)]
        error.args = PromiseException(error.dref, error.failed, vars(error).get("left") or ()).args  # the message
