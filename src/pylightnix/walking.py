"""Going through trees by descriptors: of any depth, with paths of any length, with few descriptors.

No symbolic link below the top is followed. Must not know what a tree is for.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

__all__ = ["OpenFolders", "WalkedFolder", "file_bytes", "walk"]

_OPEN_LEVELS: Final = 48
"""A process may have few descriptors: 256 is a usual limit."""
_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class OpenFolders:
    """The folders on the way down a tree, the deepest of them open.

    Those above are opened again by "..", which must lead to the folder that it led to before. The top's descriptor is the
    caller's and stays open.
    """

    def __init__(self, top_fd: int) -> None:
        self._fds = [top_fd]
        self._closed: dict[int, tuple[int, int]] = {}
        """Device and inode of each level whose descriptor was closed."""

    @property
    def fd(self) -> int:
        """The descriptor of the deepest folder."""
        return self._fds[-1]

    def __len__(self) -> int:
        return len(self._fds)

    def enter(self, fd: int) -> None:
        """Go into a folder in the deepest one, given its descriptor, which is this object's from now on."""
        self._fds.append(fd)
        level = len(self._fds) - _OPEN_LEVELS
        if level > 0 and level not in self._closed:
            info = os.fstat(self._fds[level])
            self._closed[level] = (info.st_dev, info.st_ino)
            os.close(self._fds[level])

    def leave(self) -> None:
        """Go back to the folder above.

        Raises:
            OSError: it is another one now.
        """
        inner = self._fds.pop()
        try:
            expected = self._closed.get(len(self._fds) - 1)
            if expected is not None:
                fd = os.open("..", _FLAGS, dir_fd=inner)
                info = os.fstat(fd)
                if (info.st_dev, info.st_ino) != expected:
                    os.close(fd)
                    raise FileNotFoundError(2, "it was moved while it was read", "..")
                self._fds[-1] = fd
                del self._closed[len(self._fds) - 1]
        finally:
            os.close(inner)

    def close(self) -> None:
        """Close all but the top."""
        for level in range(len(self._fds) - 1, 0, -1):
            if level not in self._closed:
                os.close(self._fds[level])
        del self._fds[1:]
        self._closed.clear()


@dataclass(frozen=True, slots=True)
class WalkedFolder:
    """A folder that a walk is in. Its descriptor is good until the walk goes on."""

    fd: int
    folders: list[str]
    """The folders in it, as the system lists them. The walk goes into those that are left when it goes on, in this order."""
    others: list[str]
    """Everything else in it."""
    _names: list[str]

    @property
    def path(self) -> str:
        """Its path, for errors: it may be longer than the system takes."""
        return "/".join(self._names)


def _open_folder(name: str, parent_fd: int) -> int:
    return os.open(name, _FLAGS, dir_fd=parent_fd)


def file_bytes(top: str, open_folder: Callable[[str, int], int] = _open_folder) -> int:
    """Return the bytes of all regular files in a folder. Links do not count, nor what they lead to."""
    return sum(
        info.st_size
        for folder in walk(top, open_folder)
        for name in folder.others
        if stat.S_ISREG((info := os.stat(name, dir_fd=folder.fd, follow_symlinks=False)).st_mode)
    )


def walk(top: str, open_folder: Callable[[str, int], int] = _open_folder) -> Iterator[WalkedFolder]:
    """Go through all folders of a tree, each before those in it.

    Args:
        top: the tree.
        open_folder: opens a folder of this name in the one open at this descriptor.

    Raises:
        OSError: one of them cannot be read; `filename` says which.
    """
    top_fd = os.open(top, _FLAGS & ~os.O_NOFOLLOW)
    way, names, waiting = OpenFolders(top_fd), [os.fspath(top)], [_none()]
    try:
        begins = True
        while waiting:
            if begins:
                folder = _listed(way.fd, names)
                yield folder
                waiting[-1] = iter(folder.folders)
            name = next(waiting[-1], None)
            begins = name is not None
            if name is not None:
                names.append(name)
                way.enter(open_folder(name, way.fd))
                waiting.append(_none())
            else:
                waiting.pop()
                if waiting:
                    way.leave()
                    names.pop()
    except OSError as error:
        raise OSError(error.errno, error.strerror, "/".join(names)) from error
    finally:
        way.close()
        os.close(top_fd)


def _none() -> Iterator[str]:
    return iter(())


def _listed(fd: int, names: list[str]) -> WalkedFolder:
    folders: list[str] = []
    others: list[str] = []
    with os.scandir(fd) as entries:
        for entry in entries:
            (folders if entry.is_dir(follow_symlinks=False) else others).append(entry.name)
    return WalkedFolder(fd, folders, others, names)
