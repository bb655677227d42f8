"""Symbolic links that are put in place in one step, and folders of logs with a link to the latest."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Sequence
from typing import Any, Optional

from pylightnix.timestamps import timestring
from pylightnix.types import Path

__all__ = ["forcelink", "logdir", "mklogdir"]


def forcelink(src: str, dst: str, **kwargs: Any) -> None:
    """Make a symbolic link, in place of an old one if there is one.

    Nobody ever finds no link there while one replaces the other.

    Args:
        src: what it leads to, as text.
        dst: where it is to be.
        kwargs: for `os.symlink`.

    Raises:
        FileExistsError: there is something else than a link.
    """
    dir_fd = kwargs.get("dir_fd")
    folder, name = os.path.split(dst)
    # In the same folder, for the rename to stay on one file system; hidden, should we be killed in between.
    # A long name is cut, for it may have all the 255 bytes that a name can have.
    draft = os.path.join(folder, f".{os.fsdecode(os.fsencode(name)[:200])}.{secrets.token_hex(6)}")
    os.symlink(src, draft, **kwargs)
    try:
        if _is_something_else(dst, dir_fd):
            raise FileExistsError(errno.EEXIST, "there is something else than a link", dst)
        os.replace(draft, dst, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    except BaseException:
        os.unlink(draft, dir_fd=dir_fd)
        raise


def _is_something_else(path: str, dir_fd: Optional[int]) -> bool:
    try:
        os.readlink(path, dir_fd=dir_fd)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno == errno.EINVAL:
            return True
        raise
    return False


def logdir(tag: str, logrootdir: str, timetag: Optional[str] = None) -> Path:
    """Return the path of a folder of logs, ``<logrootdir>/<tag>_<time>``. Makes nothing.

    Args:
        tag: what the logs are of; may be empty, and then there is no underscore.
        logrootdir: where such folders lie.
        timetag: the time; now, if None.
    """
    return Path(os.path.join(logrootdir, f"{tag}{'_' if tag else ''}{timestring() if timetag is None else timetag}"))


def mklogdir(tag: str, logrootdir: str, subdirs: Sequence[str] = (), symlinks: bool = True, timetag: Optional[str] = None) -> Path:
    """Make a folder of logs and return its path, see `logdir`.

    Args:
        tag: what the logs are of.
        logrootdir: where such folders lie; made if it is not there.
        subdirs: folders to make in it.
        symlinks: whether the link ``_<tag>_latest`` beside it (``_latest`` for an empty tag) is to lead to it.
        timetag: the time; now, if None.
    """
    path = logdir(tag, logrootdir, timetag)
    os.makedirs(path, exist_ok=True)
    for name in subdirs:
        os.makedirs(os.path.join(path, name), exist_ok=True)
    if symlinks:
        forcelink(os.path.basename(path), os.path.join(logrootdir, f"_{tag}_latest" if tag else "_latest"))
    return path
