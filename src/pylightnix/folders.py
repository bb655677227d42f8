"""Folders and files of programs: their modes, copies, sizes and removal. Symbolic links are never followed.

Utilities: the store has its own, stricter ways (see `pylightnix.store`).
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from typing import Final, Optional

from pylightnix.errors import Misuse
from pylightnix.walking import file_bytes, walk

__all__ = ["dirchmod", "dircp", "dirro", "dirrm", "dirrw", "dirsize", "filero", "filerw"]

_WRITE: Final = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


def dirrm(path: str, ignore_not_found: bool = True) -> None:
    """Remove a folder with all that is in it, read-only or not.

    It has another name while it is being removed, so nobody finds half of it under `path`.

    Raises:
        FileNotFoundError: there is nothing, and that is not to be ignored.
        StoreIOError: something in it cannot be removed.
    """
    from pylightnix.store.removal import remove_tree

    doomed = f"{os.fspath(path).rstrip('/')}.{secrets.token_hex(6)}.tmp"
    try:
        os.rename(path, doomed)
    except FileNotFoundError:
        if not ignore_not_found:
            raise
    else:
        remove_tree(doomed)


def filero(f: str) -> None:
    """Take away everybody's right to write a file. A symbolic link, and what it leads to, stays as it is."""
    _chmod(f, 0, _WRITE)


def filerw(f: str) -> None:
    """Let its owner write a file. A symbolic link, and what it leads to, stays as it is."""
    _chmod(f, stat.S_IWUSR, 0)


def dirro(o: str) -> None:
    """Make a folder and all that is in it read-only."""
    dirchmod(o, "ro")


def dirrw(o: str) -> None:
    """Let the owner of a folder write it and all that is in it; others get no rights that they have not."""
    dirchmod(o, "rw")


def dirchmod(o: str, mode: str) -> None:
    """Change the modes of a folder and of all that is in it. Whoever may execute a file still may.

    Args:
        o: the folder.
        mode: ``"ro"``, nobody may write; ``"rw"``, the owner may.

    Raises:
        Misuse: there is no folder, or the mode is another.
        OSError: something belongs to another user.
    """
    if mode not in ("ro", "rw"):
        raise Misuse(f"dirchmod expects the mode 'ro' or 'rw', found {mode!r}")
    if os.path.islink(o) or not os.path.isdir(o):
        raise Misuse(f"dirchmod expects a folder, found none at {o}")
    read_only = mode == "ro"
    added, taken = (0, _WRITE) if read_only else (stat.S_IWUSR, 0)
    # Whoever may write a folder must be able to enter and list it first, to find what is in it.
    of_folders = (0, _WRITE) if read_only else (stat.S_IRWXU, 0)
    _chmod(o, *of_folders)
    for folder in walk(o):
        for name in folder.folders:
            _chmod(name, *of_folders, folder.fd)
        for name in folder.others:
            _chmod(name, added, taken, folder.fd)


def _chmod(path: str, added: int, taken: int, dir_fd: Optional[int] = None) -> None:
    found = os.stat(path, dir_fd=dir_fd, follow_symlinks=False).st_mode
    if stat.S_ISLNK(found):
        return
    wanted = stat.S_IMODE(found) & ~taken | added
    if wanted != stat.S_IMODE(found):
        os.chmod(path, wanted, dir_fd=dir_fd)


def dircp(src: str, dst: str, make_rw: bool = False) -> None:
    """Copy a folder; links are copied as links, and modes go with it.

    Args:
        src: the folder.
        dst: where the copy is to be.
        make_rw: let the owner write the copy, as for one of a realization.

    Raises:
        FileExistsError: there is something at `dst`.
    """
    import shutil  # here, for it takes its time to load

    if os.path.lexists(dst):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), dst)
    draft = f"{os.fspath(dst).rstrip('/')}.{secrets.token_hex(6)}.tmp"
    try:
        shutil.copytree(src, draft, symlinks=True)
        if make_rw:
            dirrw(draft)
        os.rename(draft, dst)
    except BaseException:
        dirrm(draft)
        raise


def dirsize(o: str) -> int:
    """Return the bytes of all regular files in a folder. Links do not count, nor what they lead to."""
    return file_bytes(o)
