"""What cannot be removed: it is moved out of the way, told of once, and tried again now and then.

Root's folders as containers leave them in a build folder, mounts, immutable files: none of these may keep a store from
opening, building or collecting. What can be moved lies in `set-aside/`. What cannot be stays where it is, and is
named in `quarantine.json`, which also tells of each why it is there. That file is only a record: where it is lost, or
there is no room to write it, what lies in `set-aside/` is still found. Must not know which trees may be removed.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import secrets
import shlex
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Final, Optional

from pylightnix.errors import StoreError
from pylightnix.store.layout import StoreLayout
from pylightnix.store.removal import make_movable, try_remove

__all__ = ["SetAside", "all_set_aside", "discard", "is_passing", "note_stuck", "retry_set_aside"]

_log = logging.getLogger("pylightnix")

_PASSING: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EINTR, errno.EAGAIN, errno.ESTALE}
)
_FILE_BYTES_MAX: Final = 16 << 20


def is_passing(error: OSError) -> bool:
    """Tell whether an error says nothing of what was to be removed: the same may work later."""
    return error.errno in _PASSING


@dataclass(frozen=True, slots=True)
class SetAside:
    """Something that cannot be removed."""

    path: str
    """Where it is."""
    was: str
    """Where it was when it was to be removed."""
    obstacle: str
    """What in it cannot be removed: a path as it is now."""
    problem: str
    """Why, in the words of the system."""
    code: int
    """The number of that error."""
    since: float
    """UTC seconds since the epoch."""
    inode: int = 0
    """Which file or folder it is: a sound one may have taken its place. 0 if that is not known."""

    @property
    def command(self) -> str:
        """What its owner, or an administrator, runs to be rid of it. The store forgets it by itself then."""
        path, obstacle = _quoted(self.path), _quoted(self.obstacle)
        if self.code == errno.EBUSY and os.path.basename(self.obstacle).startswith(".nfs"):
            return f"fuser -v {obstacle}"  # somebody has it open, and NFS keeps it under this name until it is closed
        if self.code == errno.EBUSY:
            return f"sudo umount {obstacle}"
        if self.code == errno.EPERM:
            return f"sudo chattr -R -f -i -a {path}"
        return f"sudo rm -rf {path}"

    def __str__(self) -> str:
        what, where = _quoted(self.was), _quoted(self.obstacle)
        return f"cannot remove {what}: {self.problem} at {where}; the store goes on without it; to be rid of it: {self.command}"


def _quoted(path: str) -> str:
    """Return a path as a shell takes it, on one line and without anything that a terminal would obey."""
    if path.isprintable():
        return shlex.quote(path)
    escaped = "".join(chr(byte) if 32 <= byte < 127 and byte not in b"'\\" else f"\\x{byte:02x}" for byte in os.fsencode(path))
    return f"$'{escaped}'"


def discard(layout: StoreLayout, path: str, deadline: float = float("inf"), tell: Optional[Callable[[str], None]] = None) -> bool:
    """Remove whatever is at `path`, or set it aside. Never raises for what cannot be removed.

    Args:
        layout: the store.
        path: nobody's any more.
        deadline: on the monotonic clock; what is left then stays where it is, to be discarded again.
        tell: called, beside the log, with what cannot be removed and what to do.

    Returns:
        Whether nothing is there any more; false if time was up, or if what is left there cannot even be moved.
    """
    try:
        return try_remove(path, deadline)
    except OSError as error:
        if is_passing(error):
            _log.warning("cannot remove %s now: %s", path, error.strerror)
            return False
        aside = _moved(layout, path, error)
    _record(layout, aside)
    if tell is not None:
        tell(str(aside))
    return aside.path != path


def note_stuck(layout: StoreLayout, path: str, error: OSError) -> None:
    """Name what can be neither removed nor moved. The first time it is told of."""
    obstacle = error.filename if isinstance(error.filename, str) else path
    problem, code = _cause(obstacle, error)
    _record(layout, SetAside(path, path, obstacle, problem, code, time.time(), _inode(path)))


def all_set_aside(layout: StoreLayout) -> list[SetAside]:
    """Return all that could not be removed and is still there, sorted by path."""
    named = {entry.path: entry for entry in _read(layout) if _is_there(entry)}
    for folder in layout.set_aside_folders:
        for name in _names(folder):
            path = f"{folder}/{name}"
            if path not in named:  # there was no room to name it
                named[path] = SetAside(path, path, path, "it could not be removed", errno.EACCES, _changed(path))
    return [named[path] for path in sorted(named)]


def retry_set_aside(layout: StoreLayout, deadline: float = float("inf")) -> list[SetAside]:
    """Try once more to remove all that was set aside, forget what is gone, and return what is left. Nothing is told again."""
    before = _read(layout)
    left = []
    for entry in all_set_aside(layout):
        try:
            # What is in the way in the storage is the business of whoever removes the realization of that name.
            if entry.path.startswith(f"{layout.storage}/") or not try_remove(entry.path, deadline):
                left.append(entry)
        except OSError:
            left.append(entry)
    if {entry.path for entry in before} - {entry.path for entry in left}:
        _write(layout, left)
    return left


def _moved(layout: StoreLayout, path: str, error: OSError) -> SetAside:
    """Move what cannot be removed out of the way, if it can be moved."""
    obstacle = error.filename if isinstance(error.filename, str) else path
    problem, code = _cause(obstacle, error)
    for folder in layout.set_aside_folders:
        name = os.fsdecode(os.fsencode(os.path.basename(path))[:200])
        target = f"{folder}/{secrets.token_hex(6)}-{name}"
        try:
            os.makedirs(folder, 0o700, exist_ok=True)
            make_movable(path)
            os.rename(path, target)
        except OSError as failure:
            if failure.errno == errno.EXDEV:
                continue
        except StoreError:
            pass
        else:
            inside = obstacle[len(path) :] if obstacle == path or obstacle.startswith(f"{path}/") else ""
            return SetAside(target, path, target + inside, problem, code, time.time(), _inode(target))
        break
    return SetAside(path, path, obstacle, problem, code, time.time(), _inode(path))


def _cause(obstacle: str, error: OSError) -> tuple[str, int]:
    """Return what is the matter, and the number of the error; EACCES for all that is so because of another user."""
    if error.errno in (errno.EPERM, errno.EACCES) and os.geteuid() != 0:
        for path in (obstacle, os.path.dirname(obstacle)):
            try:
                owner = os.lstat(path).st_uid
            except OSError:
                continue  # in a folder that only its owner may enter
            if owner != os.geteuid():
                return f"it belongs to another user (uid {owner})", errno.EACCES
    return error.strerror or str(error), error.errno or 0


# --- the record -----------------------------------------------------------------------------------------


def _record(layout: StoreLayout, aside: SetAside) -> None:
    known = _read(layout)
    if any(entry.path == aside.path for entry in known):
        return
    _log.warning("%s", aside)
    _write(layout, [*known, aside])


def _read(layout: StoreLayout) -> list[SetAside]:
    """Return what `quarantine.json` says; nothing if it is not there, or damaged."""
    try:
        with open(layout.quarantine, encoding="utf-8") as file:
            said = json.loads(file.read(_FILE_BYTES_MAX))
        return [SetAside(**entry) for entry in said["set_aside"]]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def _write(layout: StoreLayout, entries: Iterable[SetAside]) -> None:
    listed = [asdict(entry) for entry in entries if _is_there(entry)]
    draft = f"{layout.quarantine}.{secrets.token_hex(6)}"
    try:
        if not listed:
            os.unlink(layout.quarantine)
            return
        with open(draft, "w", encoding="utf-8") as file:
            json.dump({"set_aside": listed}, file, indent=1)
        os.replace(draft, layout.quarantine)
    except FileNotFoundError:
        return
    except OSError as error:
        _log.warning("cannot write %s: %s", layout.quarantine, error.strerror)
        _forget(draft)


def _forget(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _is_there(entry: SetAside) -> bool:
    found = _inode(entry.path)
    return found != 0 and entry.inode in (0, found)


def _inode(path: str) -> int:
    try:
        return os.lstat(path).st_ino
    except OSError:
        return 0


def _changed(path: str) -> float:
    try:
        return os.lstat(path).st_ctime
    except OSError:
        return 0.0
