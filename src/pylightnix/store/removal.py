"""Removing trees whose folders are read-only, and undoing such modes where they are in the way.

Must not know which trees may be removed, nor what a realization is.

Rules:

- It goes by directory file descriptors and follows no symbolic link; modes are changed only of what is open.
- Others may be removing the same tree: what is gone already is no error.
- What cannot be removed keeps nothing else: all that can be goes, then the first obstacle is told.
- Nothing behind a mount point is touched. The kernel refuses to remove one before it looks whether it is empty,
  so each folder is tried with ``rmdir`` first and entered only if that says that it is not empty.
- At most `_MAX_LEVELS` folders are open at once. What lies deeper is first moved up into the top folder,
  so a tree of any depth can be removed, and a crash leaves everything below that top.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import time
from dataclasses import dataclass, field
from typing import Final, Optional

from pylightnix.system_errors import refusal

__all__ = ["make_movable", "open_unlocked", "remove_tree", "reopen_unlocked", "try_remove"]

_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_LEVELS: Final = 48
_MAX_REFUSALS: Final = 1000
_MAX_INNER: Final = 10_000
"""How many names of folders in one are remembered at a time."""
_CLOCK_ENTRIES: Final = 64
"""How many entries are removed between two looks at the clock: so much is done at every call, however late it is."""


def remove_tree(path: str) -> None:
    """Remove whatever is at `path`: a folder with all that is in it, or anything else. Idempotent.

    The folder that `path` lies in is found as usual, through symbolic links; below it none is followed.

    Raises:
        StoreIOError: Something cannot be removed; what could be is gone.
    """
    try:
        try_remove(path)
    except OSError as error:
        raise refusal(error, "removing it", path) from error


def try_remove(path: str, deadline: float = float("inf")) -> bool:
    """Do as `remove_tree`, until a moment of the monotonic clock; tell whether all of it is gone.

    Calling it again goes on. Where time is up and an obstacle was met, that is told at once: one that takes long to go
    round would else be met for ever.

    Raises:
        OSError: Something cannot be removed, `filename` says what; what could be until then is gone.
    """
    top = path.rstrip("/")
    parent, name = os.path.split(top)
    if name in ("", ".", ".."):
        raise AssertionError(f"BUG: asked to remove {path!r}")
    try:
        parent_fd = os.open(parent or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        return _Remover(parent, deadline).run(parent_fd, name)
    finally:
        os.close(parent_fd)


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
        raise refusal(error, "making it writable", path) from error


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
    inner: list[str] = field(default_factory=list)
    """Names of folders in it that were seen and not yet gone into."""
    stuck: set[str] = field(default_factory=set)
    """Names of what cannot be removed from it."""
    is_closed: bool = False
    """Whether nothing at all can be removed from it."""
    refusals: int = 0
    """How often it was found not to be empty after all."""


class _OutOfTime(Exception):
    pass


@dataclass(slots=True)
class _Remover:
    """One removal. What cannot be removed is noted and left; `run` raises the first of these at the end."""

    parent: str
    """The path of the folder that the tree lies in, for errors."""
    deadline: float
    stack: list[_Folder] = field(default_factory=list)
    obstacle: Optional[OSError] = None
    _entries: int = 0

    def run(self, parent_fd: int, name: str) -> bool:
        try:
            self._enter(parent_fd, name)
            while self.stack:
                folder = self.stack[-1]
                if not folder.inner:
                    if self._finished(folder):
                        os.close(self.stack.pop().fd)
                elif len(self.stack) < _MAX_LEVELS:
                    self._enter(folder.fd, folder.inner.pop())
                else:
                    self._move_up(folder, self.stack[0])
        except _OutOfTime:
            if self.obstacle is None:
                return False
        finally:
            for folder in self.stack:
                os.close(folder.fd)
            self.stack.clear()
        if self.obstacle is not None:
            raise self.obstacle
        return True

    def _enter(self, parent_fd: int, name: str) -> None:
        """Remove a folder that is empty, a mount point not, and go into any other."""
        try:
            os.rmdir(name, dir_fd=parent_fd)
            self._look_at_clock()
        except FileNotFoundError:
            return
        except NotADirectoryError:
            self._unlink(parent_fd, name)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                self._note(error, name)
                return
            try:
                self.stack.append(_Folder(parent_fd, name, open_unlocked(name, parent_fd)))
            except FileNotFoundError:
                return
            except OSError as error:
                self._note(error, name)

    def _finished(self, folder: _Folder) -> bool:
        """Unlink what is no folder, note what is; try to remove the folder if nothing is left to do in it."""
        with os.scandir(folder.fd) as entries:  # one after another, for there may be millions
            for entry in entries:
                if entry.name in folder.stuck:
                    continue
                if len(folder.inner) >= _MAX_INNER:
                    break
                if entry.is_dir(follow_symlinks=False):
                    folder.inner.append(entry.name)
                elif folder.is_closed:
                    folder.stuck.add(entry.name)
                else:
                    self._unlink(folder.fd, entry.name)
        if folder.inner:
            return False
        if folder.stuck:
            self._stick(folder.name, below=1)
            return True
        try:
            os.rmdir(folder.name, dir_fd=folder.parent_fd)
            self._look_at_clock()
        except FileNotFoundError:
            return True
        except OSError as error:
            # Somebody put something into it since it was listed, perhaps another remover by `_move_up`.
            folder.refusals += 1
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and folder.refusals < _MAX_REFUSALS:
                return False
            self._note(error, folder.name, below=1)
        return True

    def _move_up(self, folder: _Folder, top: _Folder) -> None:
        """Move one inner folder into the top folder, to be emptied from there."""
        name = folder.inner.pop()
        moved = f".removed-{secrets.token_hex(8)}"
        try:
            os.close(open_unlocked(name, folder.fd))  # lets it be moved, see `make_movable`
            os.rename(name, moved, src_dir_fd=folder.fd, dst_dir_fd=top.fd)
        except FileNotFoundError:
            return
        except NotADirectoryError:
            self._unlink(folder.fd, name)
            return
        except OSError as error:
            self._note(error, name)
            return
        top.inner.append(moved)

    def _unlink(self, parent_fd: int, name: str) -> None:
        self._look_at_clock()
        try:
            os.unlink(name, dir_fd=parent_fd)
        except FileNotFoundError:
            pass
        except OSError as error:
            if self.stack and error.errno in (errno.EACCES, errno.EROFS):
                self.stack[-1].is_closed = True  # it is the folder that cannot be written
            self._note(error, name)

    def _note(self, error: OSError, name: str, below: int = 0) -> None:
        """Note an obstacle, `name` in the folder that is `below` levels above the deepest one."""
        self._stick(name, below)
        if self.obstacle is None:
            names = [folder.name for folder in self.stack[: len(self.stack) - below]]
            self.obstacle = OSError(error.errno, error.strerror, os.path.join(self.parent, *names, name))

    def _stick(self, name: str, below: int) -> None:
        level = len(self.stack) - 1 - below
        if level >= 0:
            self.stack[level].stuck.add(name)

    def _look_at_clock(self) -> None:
        self._entries += 1
        if self._entries % _CLOCK_ENTRIES == 0 and time.monotonic() >= self.deadline:
            raise _OutOfTime


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
