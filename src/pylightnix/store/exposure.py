"""Who else may put another folder, or another socket, in the place of one: by the folders that it lies in.

A user who may rename an entry of a folder on the way to a store can have others work in another store tomorrow. What follows depends on
whose the store is, which is looked at each time:

- One's own: what takes its place belongs to somebody else, and is refused for that (`StoreForeign`). So a warning is enough: programs
  read realizations by their paths. Refusing would stop what is usual: a group's project folder, a container whose folders have other
  owners, a CI runner's with mode 0777.
- Another user's: nothing tells it from what took its place, whose results would be believed. It is refused.

A folder with the sticky bit (``/tmp``) is safe, unless its owner is not. Access control lists are not looked at.
"""

from __future__ import annotations

import functools
import logging
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Optional

from pylightnix.errors import StoreError
from pylightnix.sanitize import escaped

__all__ = ["ExposedFolder", "Exposure", "FolderFacts", "check_folders", "exposure_of"]

_log = logging.getLogger("pylightnix")
_seen: Final[set[tuple[str, int]]] = set()
_told: Final[set[str]] = set()
_OVERFLOW_UID: Final = 65534
"""Whose what is of users that a user namespace does not know. In one, this is as good as root: it may be root."""


class ExposedFolder(StoreError):
    """A store or socket of another user lies in a folder where a third one could exchange it."""

    code = "exposed-folder"
    exit_status = 77

    def __init__(self, path: str, folder: str, who: str, advice: str) -> None:
        self.path, self.folder, self.who, self.advice = path, folder, who, advice
        super().__init__(
            f"{path} belongs to another user and lies in {folder}, where {who} could put something else in its place; "
            f"expected folders that only its owner or root can change\n{advice}, or use a store of your own"
        )


@dataclass(frozen=True, slots=True)
class FolderFacts:
    """A folder on the way to something."""

    path: str
    uid: int
    gid: int
    mode: int


@dataclass(frozen=True, slots=True)
class Exposure:
    """Who could exchange what lies in a folder, and what helps."""

    folder: str
    who: str
    advice: str


def exposure_of(folder: FolderFacts, trusted: frozenset[int], is_private: Callable[[int], bool]) -> Optional[Exposure]:
    """Return who else may rename what lies in a folder; None if nobody may but the `trusted` users. Pure.

    `is_private` tells of a group whether nobody is in it but the user of the same name.
    """
    sticky = bool(folder.mode & stat.S_ISVTX)
    mode = f"mode {stat.S_IMODE(folder.mode):04o}"
    if folder.mode & stat.S_IWOTH and not sticky:
        return Exposure(folder.path, f"anybody ({mode})", f"take that right away with: chmod o-w {folder.path}")
    if folder.uid not in trusted:
        return Exposure(folder.path, f"its owner (uid {folder.uid})", f"have {folder.path} owned by root or by you")
    if folder.mode & stat.S_IWGRP and not sticky and folder.gid != 0 and not is_private(folder.gid):
        return Exposure(folder.path, f"its group (gid {folder.gid}, {mode})", f"take that right away with: chmod g-w {folder.path}")
    return None


def check_folders(*paths: str) -> None:
    """Look at the folders above each path, and at the path itself if it is one. What is not there is let pass.

    What was found good, or was warned of, is not looked at again in this process: a look costs a stat for each folder.

    Raises:
        ExposedFolder: it is another user's, and a third one could exchange it.
    """
    euid = os.geteuid()
    for path in paths:
        if (path, euid) not in _seen and _check(path, euid):
            _seen.add((path, euid))


def _check(path: str, euid: int) -> bool:
    """Check one path; tell whether it is there."""
    try:
        owner = os.stat(path).st_uid
    except OSError:
        return False
    trusted = frozenset({0, euid, owner, *([_OVERFLOW_UID] if _is_in_user_namespace() else [])})
    found = next((each for facts in _above(path) if (each := exposure_of(facts, trusted, _is_private)) is not None), None)
    if found is not None and owner != euid:
        raise ExposedFolder(escaped(path), escaped(found.folder), found.who, escaped(found.advice))
    if found is not None and found.folder not in _told:
        _told.add(found.folder)
        said = f"{path} lies in {found.folder}, where {found.who} could put something else in its place"
        _log.warning("%s", escaped(f"{said}; {found.advice}"))
    return True


def _above(path: str) -> Iterator[FolderFacts]:
    """Yield the folders on the way to `path`, by its name and by where links lead; itself, too, if it is one."""
    for folder in dict.fromkeys(part for way in (os.path.abspath(path), os.path.realpath(path)) for part in _parts(way)):
        try:
            info = os.stat(folder)
        except OSError:
            continue
        if stat.S_ISDIR(info.st_mode):
            yield FolderFacts(folder, info.st_uid, info.st_gid, info.st_mode)


def _parts(path: str) -> Iterable[str]:
    while True:
        yield path
        above = os.path.dirname(path)
        if above == path:
            return
        path = above


@functools.cache
def _is_in_user_namespace() -> bool:
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:
            return file.read().split() != ["0", "0", "4294967295"]
    except OSError:
        return False


@functools.cache
def _is_private(gid: int) -> bool:
    """Tell whether a group is one user's own, as systems with umask 002 make one for each."""
    import grp
    import pwd

    try:
        group = grp.getgrgid(gid)
        user = pwd.getpwnam(group.gr_name)
    except KeyError:
        return False
    return user.pw_gid == gid and set(group.gr_mem) <= {user.pw_name}
