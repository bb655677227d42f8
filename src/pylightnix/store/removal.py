"""Removing trees whose folders are read-only, and undoing such modes where they are in the way.

Must not know which trees may be removed, nor what a realization is.

Rules:

- It goes by directory file descriptors and follows no symbolic link; modes are changed only of what is open.
- Others may be removing the same tree: what is gone already is no error.
- At most `_MAX_LEVELS` folders are open at once. What lies deeper is first moved up into the top folder,
  so a tree of any depth can be removed, and a crash leaves everything below that top.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from dataclasses import dataclass
from typing import Final

from pylightnix.errors import StoreIOError

__all__ = ["make_movable", "open_unlocked", "remove_tree", "reopen_unlocked"]

_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_LEVELS: Final = 48
_MAX_ROUNDS: Final = 1000


def remove_tree(path: str) -> None:
    """Remove whatever is at `path`: a folder with all that is in it, or anything else. Idempotent.

    The folder that `path` lies in is found as usual, through symbolic links; below it none is followed.

    Raises:
        StoreIOError: Something cannot be removed; what could be before it is gone.
    """
    parent, name = os.path.split(path.rstrip("/"))
    if name in ("", ".", ".."):
        raise AssertionError(f"BUG: asked to remove {path!r}")
    try:
        parent_fd = os.open(parent or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _remove(parent_fd, name)
        finally:
            os.close(parent_fd)
    except FileNotFoundError:
        return
    except OSError as error:
        inner = f" (at {error.filename!r})" if isinstance(error.filename, str) else ""
        raise StoreIOError(path, "removing it", f"{error.strerror}{inner}") from error


def make_movable(path: str) -> None:
    """Let the owner of the folder at `path` rename it to another parent.

    Moving a folder rewrites its "..", for which the owner needs to write it. Anything but a folder can
    be moved as it is, and nothing at all is left for the rename to complain about.

    Raises:
        StoreIOError: The folder's mode cannot be changed.
    """
    try:
        os.close(open_unlocked(path, None))
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise StoreIOError(path, "making it writable", str(error.strerror)) from error


def reopen_unlocked(path_fd: int, flags: int) -> int:
    """Open for real what an ``O_PATH`` descriptor stands for, after letting its owner read it (and enter a folder).

    For entries whose mode keeps their own owner out. It takes ``/proc``: a mode can be changed neither
    through an ``O_PATH`` descriptor nor, before Linux 6.6, by name without following symbolic links.
    """
    info = os.fstat(path_fd)
    through = f"/proc/self/fd/{path_fd}"
    os.chmod(through, stat.S_IMODE(info.st_mode) | (stat.S_IRWXU if stat.S_ISDIR(info.st_mode) else stat.S_IRUSR))
    return os.open(through, flags & ~os.O_NOFOLLOW)


@dataclass(slots=True)
class _Folder:
    """A folder that is being emptied."""

    parent_fd: int
    name: str
    fd: int
    inner: list[str]
    """Names of folders in it that were seen and not yet gone into."""
    rounds: int = 0
    """How often it was listed."""


def _remove(parent_fd: int, name: str) -> None:
    stack: list[_Folder] = []
    try:
        _enter(stack, parent_fd, name)
        while stack:
            folder = stack[-1]
            if not folder.inner:
                if _finished(folder):
                    os.close(stack.pop().fd)
            elif len(stack) < _MAX_LEVELS:
                _enter(stack, folder.fd, folder.inner.pop())
            else:
                _move_up(folder, stack[0])
    finally:
        for folder in stack:
            os.close(folder.fd)


def _enter(stack: list[_Folder], parent_fd: int, name: str) -> None:
    try:
        stack.append(_Folder(parent_fd, name, open_unlocked(name, parent_fd), []))
    except FileNotFoundError:
        return
    except NotADirectoryError:
        _unlink(parent_fd, name)


def open_unlocked(name: str, parent_fd: int | None) -> int:
    """Open a folder, none by a link, after letting its owner read, write and enter it. The descriptor is the caller's to close."""
    try:
        fd = os.open(name, _FOLDER_FLAGS, dir_fd=parent_fd)
    except PermissionError:
        path_fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent_fd)
        try:
            return reopen_unlocked(path_fd, _FOLDER_FLAGS)
        finally:
            os.close(path_fd)
    try:
        mode = stat.S_IMODE(os.fstat(fd).st_mode)
        if mode & stat.S_IRWXU != stat.S_IRWXU:
            os.fchmod(fd, mode | stat.S_IRWXU)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _finished(folder: _Folder) -> bool:
    """Unlink what is no folder, note what is; try to remove the folder if nothing is left to do in it."""
    folder.rounds += 1
    with os.scandir(folder.fd) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_folder in found:
        if is_folder:
            folder.inner.append(name)
        else:
            _unlink(folder.fd, name)
    if folder.inner:
        return False
    try:
        os.rmdir(folder.name, dir_fd=folder.parent_fd)
    except FileNotFoundError:
        return True
    except OSError as error:
        # Somebody put something into it since it was listed, perhaps another remover by `_move_up`.
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and folder.rounds < _MAX_ROUNDS:
            return False
        raise OSError(error.errno, error.strerror, folder.name) from error
    return True


def _move_up(folder: _Folder, top: _Folder) -> None:
    """Move one inner folder into the top folder, to be emptied from there."""
    name = folder.inner.pop()
    moved = f".removed-{secrets.token_hex(8)}"
    try:
        os.close(open_unlocked(name, folder.fd))  # lets it be moved, see `make_movable`
        os.rename(name, moved, src_dir_fd=folder.fd, dst_dir_fd=top.fd)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        _unlink(folder.fd, name)
        return
    top.inner.append(moved)


def _unlink(parent_fd: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=parent_fd)
    except FileNotFoundError:
        pass
