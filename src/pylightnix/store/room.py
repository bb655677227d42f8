"""Getting out of a full disk: a reserve that is given up first, and what goes before anything that anybody needs.

To remove is to write, too: a row of the index, its log, a lock, a folder. So some bytes and some inodes are kept
in `reserve/`, and given up when something that makes room finds none. What then goes by itself, in this order: the trash,
parts of fetches that nobody is at, the folders of failed builds that nobody looks at. The reserve is made again when there
is room. Must not know what is garbage among realizations.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from typing import Final, Optional, TypeVar

from pylightnix.errors import StoreError, StoreFull
from pylightnix.store.kept import KeepFailed, drop_failed
from pylightnix.store.layout import StoreLayout
from pylightnix.store.trash import empty_trash

__all__ = ["RESERVE_BYTES", "is_nearly_full", "make_reserve", "make_room", "release_reserve", "with_room"]

_log = logging.getLogger("pylightnix")

T = TypeVar("T")

RESERVE_BYTES: Final = 4 << 20
"""How large the reserve is: the log of a removal of some hundred realizations."""
_RESERVE_FILES: Final = 16
"""How many inodes: a process that opens a store makes two files of the index, a lock and a folder, and leaves none of them."""
_FEW_FILES: Final = 8
"""With fewer inodes a disk counts as nearly full."""
_SHARE: Final = 32
"""The reserve takes at most so many-th a part of a file system."""
_WHOLE: Final = "bytes"
_PART: Final = "some-bytes"
"""The file of bytes in a reserve that is smaller than it is to be."""
_TRASH_SECONDS: Final = 20.0
"""How long the trash is emptied before something is tried again."""


def make_reserve(layout: StoreLayout, wanted_bytes: Optional[int] = None) -> bool:
    """Make the reserve, if it is not there and there is room for it twice; tell whether it is there. Never raises for want of room.

    Args:
        layout: the store.
        wanted_bytes: how large it is to be; 0 for none. Without it whatever is there is enough.
    """
    if wanted_bytes is None and os.path.isdir(layout.reserve) and not os.path.exists(f"{layout.reserve}/{_PART}"):
        return True
    try:
        size, files = _affordable(layout.state, RESERVE_BYTES if wanted_bytes is None else wanted_bytes)
        if _found_bytes(layout) == size and (size == 0 or len(os.listdir(layout.reserve)) > files):
            return True
        if size != 0 and not _has_room(layout.state, 2 * size, 2 * files):
            return False
        release_reserve(layout)
        _make(layout, _WHOLE if size else None, size, files if size else 0)
    except OSError as error:
        release_reserve(layout)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            _log.warning("cannot make the reserve %s for a full disk: %s", layout.reserve, error)
        return False
    return True


def _take_back(layout: StoreLayout) -> None:
    """Make as much of the reserve as there is room for, before others take that: there will be another removal."""
    try:
        size, files = _affordable(layout.state, RESERVE_BYTES)
        info = os.statvfs(layout.state)
        _make(layout, _PART, min(size, info.f_bavail * info.f_frsize // 2), min(files, max(0, info.f_favail - 2)))
    except OSError as error:
        _log.debug("cannot take the reserve back: %s", error)


def _make(layout: StoreLayout, name: Optional[str], size: int, files: int) -> None:
    os.makedirs(layout.reserve, 0o700, exist_ok=True)
    if name is not None:
        _allocate(f"{layout.reserve}/{name}", size)
    for number in range(files):
        os.close(_new_file(f"{layout.reserve}/inode-{number}"))


def release_reserve(layout: StoreLayout) -> bool:
    """Give up the reserve; tell whether there was any."""
    try:
        names = os.listdir(layout.reserve)
        for name in names:
            os.unlink(f"{layout.reserve}/{name}")
        os.rmdir(layout.reserve)
    except OSError:
        return False  # there is none, or another is giving it up just now
    return bool(names)


def is_nearly_full(layout: StoreLayout) -> bool:
    """Tell whether a file system of the store has hardly any room left, of bytes or of inodes."""
    return any(_is_tight(folder) for folder in (layout.state, layout.storage))


def make_room(layout: StoreLayout, trash_seconds: float = _TRASH_SECONDS) -> int:
    """Remove everything that nobody needs and that was kept for convenience only; return how many bytes of it were counted.

    The trash is emptied for about so long. What a build or a fetch is at stays, and so does what somebody has a working folder in;
    and the reserve: builds that fail for want of room would use it up.
    """
    from pylightnix.fetch.sweeping import drop_parts

    freed = _dropped("parts of fetches", lambda: drop_parts(layout.fetch))
    freed += _dropped("what failed builds left", lambda: drop_failed(layout, KeepFailed(0, 0)))
    empty_trash(layout, trash_seconds)
    if freed:
        _log.warning("the disk of %s is full: removed parts of fetches and what failed builds left, %d bytes", layout.state, freed)
    return freed


def _dropped(what: str, drop: Callable[[], int]) -> int:
    try:
        return drop()
    except (OSError, StoreError) as error:
        _log.warning("cannot remove %s: %s", what, error)
        return 0


def with_room(layout: StoreLayout, work: Callable[[], T], early: bool = False) -> T:
    """Do what must be done on a full disk, too, such as a removal: with the reserve, then with all else that can go.

    `work` is called again where it raised StoreFull. With `early` the reserve is given up before that where the disk is nearly
    full: for what makes room, and is to have it whole.
    """
    released = early and is_nearly_full(layout) and release_reserve(layout)
    try:
        try:
            return work()
        except StoreFull:
            released = release_reserve(layout) or released
        try:
            return work()
        except StoreFull:
            make_room(layout)
        return work()
    finally:
        if released:
            _take_back(layout)


def _affordable(folder: str, wanted_bytes: int) -> tuple[int, int]:
    info = os.statvfs(folder)
    files = min(_RESERVE_FILES, info.f_files // _SHARE) if info.f_files else 0  # some file systems count no inodes
    return min(wanted_bytes, info.f_blocks * info.f_frsize // _SHARE), files


def _has_room(folder: str, size: int, files: int) -> bool:
    info = os.statvfs(folder)
    return info.f_bavail * info.f_frsize > size and (not info.f_files or info.f_favail > files)


def _is_tight(folder: str) -> bool:
    try:
        info = os.statvfs(folder)
    except OSError:
        return False
    least = min(1 << 20, info.f_blocks * info.f_frsize // _SHARE)
    return info.f_bavail * info.f_frsize < least or (info.f_files > 0 and info.f_favail < _FEW_FILES)


def _found_bytes(layout: StoreLayout) -> int:
    try:
        names = os.listdir(layout.reserve)
        return os.stat(f"{layout.reserve}/{_WHOLE}").st_size if names else 0
    except OSError:
        return -1


def _new_file(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _allocate(path: str, size: int) -> None:
    fd = _new_file(path)
    try:
        if size:
            os.posix_fallocate(fd, 0, size)
    finally:
        os.close(fd)
