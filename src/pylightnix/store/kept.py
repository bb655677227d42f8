"""What failed builds left, kept for whoever wants to look: the last few, outside of `tmp/`.

And the errors that say where that is, which must go on to do so.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pylightnix.errors import BuildError, PromiseException, StoreError
from pylightnix.refs import undref
from pylightnix.store.layout import StoreLayout
from pylightnix.store.removal import make_movable, open_unlocked
from pylightnix.store.trash import put_away
from pylightnix.types import DRef, Path
from pylightnix.walking import file_bytes

__all__ = ["KeepFailed", "drop_failed", "failed_to_drop", "keep_failed", "left_by", "point_to"]


@dataclass(frozen=True, slots=True)
class KeepFailed:
    """How many build folders of failed builds are kept in a store; older ones are removed.

    The latest stays, however large, unless `count` is 0.
    """

    count: int = 10
    bytes_in_all: int = 1 << 30


_USUAL: Final = KeepFailed()


def failed_to_drop(sizes: Mapping[str, int], held: Sequence[str], keep: KeepFailed) -> list[str]:
    """Return which folders are beyond what is kept, oldest first.

    Args:
        sizes: the bytes of each, oldest first.
        held: folders that stay, whatever they count for, or paths in them.
        keep: how many.
    """
    total, count = sum(sizes.values()), len(sizes)
    found = []
    for path, size in list(sizes.items())[: -1 if keep.count else None]:
        if total <= keep.bytes_in_all and count <= keep.count:
            break
        if not any(each == path or each.startswith(f"{path}/") for each in held):
            found.append(path)
            total, count = total - size, count - 1
    return found


def drop_failed(layout: StoreLayout, keep: KeepFailed) -> int:
    """Move the oldest folders of failed builds that are beyond what is kept to the trash; return how many bytes that was about.

    One in which a process has its working folder stays: somebody looks at it.
    """
    paths = [f"{layout.failed}/{name}" for name in sorted(_names(layout.failed))]
    if not paths:
        return 0
    sizes = {path: _size(path) for path in paths}
    dropped = failed_to_drop(sizes, _working_folders(), keep)
    for path in dropped:
        put_away(layout, path)
    return sum(sizes[path] for path in dropped)


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


_known_sizes: dict[str, int] = {}
"""Bytes of folders by path; what a failed build has left does not grow."""


def _size(path: str) -> int:
    if path not in _known_sizes:
        try:
            make_movable(path)
            size = file_bytes(path, open_unlocked)
        except (OSError, StoreError):
            return 0  # root's, perhaps
        if len(_known_sizes) >= _SIZES_KEPT:
            _known_sizes.clear()
        _known_sizes[path] = size
    return _known_sizes[path]


_SIZES_KEPT: Final = 1000


def _working_folders() -> list[str]:
    """Return the working folders of all processes that this user may look at."""
    found = []
    for name in _names("/proc"):
        if name.isdecimal():
            try:
                found.append(os.readlink(f"/proc/{name}/cwd"))
            except OSError:
                continue  # another user's, or it has ended
    return found


def keep_failed(layout: StoreLayout, dref: DRef, folder: str, keep: KeepFailed = _USUAL) -> str:
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
        drop_failed(layout, keep)
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
