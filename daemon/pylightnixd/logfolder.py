"""The logs of all builds on the disk: their names, which is whose, and which may go.

A log is named after the daemon's life, the build and the derivation, so that the latest one of a derivation is
found after a restart by looking at the names. What is kept in memory is what lies in the folder, no more.
`logs_to_drop` decides what goes. Must not know what writes a log.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Final, Optional

from pylightnix.refs import undref
from pylightnixd.logs import COMPRESSED, DRAFT, compress_log

__all__ = ["Keep", "KeptLog", "LogFolder", "LogPlace", "logs_to_drop", "remove_logs"]

_log = logging.getLogger("pylightnixd")

COMPRESS_BYTES: Final = 1 << 16
READ_SECONDS: Final = 60.0
"""How long after its last reading a log counts as being read: who follows it comes back for the next piece."""
SILENT_MAX: Final = 2000
DAY_SECONDS: Final = 86_400.0
_NAME: Final = re.compile(r"([0-9a-f]{12,20})-(b[0-9]{1,18})-([0-9a-f]{32})\.log", re.ASCII)


@dataclass(frozen=True, slots=True)
class Keep:
    """How long logs are kept, and how many."""

    days: float = 30.0
    bytes_in_all: int = 1 << 30


@dataclass(frozen=True, slots=True)
class KeptLog:
    """A log on the disk that nobody writes any more."""

    name: str
    bytes_on_disk: int
    ended: float
    """UTC seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class LogPlace:
    """Where the log of a build is."""

    build: str
    path: str
    finished: bool


def logs_to_drop(logs: Iterable[KeptLog], busy: Collection[str], keep: Keep, now: float) -> list[str]:
    """Return the names of the logs that are beyond what is kept, oldest first; those in `busy` stay."""
    oldest_first = sorted(logs, key=lambda log: (log.ended, log.name))
    total = sum(log.bytes_on_disk for log in oldest_first)
    found = []
    for log in oldest_first:
        if log.name in busy or (total <= keep.bytes_in_all and now - log.ended <= keep.days * DAY_SECONDS):
            continue
        found.append(log.name)
        total -= log.bytes_on_disk
    return found


@dataclass(slots=True, eq=False)
class LogFolder:
    """The folder of logs. Made with `LogFolder.of`. Used by one thread, but for `compress`."""

    path: str
    instance: str
    """Tells the builds of this daemon's life from those of others."""
    _logs: dict[str, KeptLog] = field(default_factory=dict)
    """By their names, the oldest first."""
    _latest: dict[str, str] = field(default_factory=dict)
    """Build of this life, or hash of a derivation -> the name of its latest log."""
    _last_read: dict[str, float] = field(default_factory=dict)
    """Name -> when, monotonic seconds."""
    _silent: dict[str, LogPlace] = field(default_factory=dict)
    """As `_latest`, for builds of late that said nothing and have no file."""
    _bytes: int = 0

    @classmethod
    def of(cls, path: str, instance: str) -> LogFolder:
        """Return the folder, made if there is none, with the logs of earlier daemons in it. What they left half done goes."""
        os.makedirs(path, 0o700, exist_ok=True)
        folder = cls(path, instance)
        found = []
        with os.scandir(path) as entries:
            for entry in entries:
                name = entry.name.removesuffix(DRAFT).removesuffix(COMPRESSED)
                if not _NAME.fullmatch(name) or not entry.is_file(follow_symlinks=False):
                    continue
                if entry.name.endswith(DRAFT) or (entry.name.endswith(COMPRESSED) and os.path.exists(os.path.join(path, name))):
                    os.unlink(entry.path)  # its source is still there, and surely whole
                    continue
                info = entry.stat(follow_symlinks=False)
                found.append(KeptLog(name, info.st_size, info.st_mtime))
        for log in sorted(found, key=lambda log: (log.ended, log.name)):
            folder._enter(log)
        return folder

    def _enter(self, log: KeptLog) -> None:
        before = self._logs.pop(log.name, None)
        self._bytes += log.bytes_on_disk - (before.bytes_on_disk if before else 0)
        self._logs[log.name] = log
        for key in self._keys(log.name):
            self._latest[key] = log.name
            self._silent.pop(key, None)

    def _keys(self, name: str) -> list[str]:
        life, build, dhash = _parts(name)
        return [dhash, build] if life == self.instance else [dhash]

    def path_of(self, build: str, dref: str) -> str:
        """Return where the log of a build of this life belongs."""
        return os.path.join(self.path, f"{self.instance}-{build}-{undref(dref)[0]}.log")

    def ended(self, path: str) -> None:
        """Enter a log that nobody writes any more. An empty one is removed, for reading it gives nothing either way."""
        name = os.path.basename(path)
        try:
            size = os.stat(path).st_size
            if size:
                self._enter(KeptLog(name, size, time.time()))
                return
            os.unlink(path)
        except FileNotFoundError:
            pass  # the build never began
        for key in self._keys(name):
            self._silent.pop(key, None)
            self._silent[key] = LogPlace(_parts(name)[1], path, finished=True)
        while len(self._silent) > SILENT_MAX:
            del self._silent[next(iter(self._silent))]

    def compress(self, path: str) -> Optional[int]:
        """Compress a log if that is worth while, in any thread; return the size that `compressed` wants to know then."""
        try:
            if os.stat(path).st_size <= COMPRESS_BYTES:
                return None
            compress_log(path)
            return os.stat(path + COMPRESSED).st_size
        except FileNotFoundError:
            return None  # it was empty
        except OSError as error:
            _log.warning("cannot compress the log %s: %s", path, error)
            return None

    def compressed(self, path: str, size: int) -> None:
        """Enter that a log takes less room now."""
        before = self._logs.get(os.path.basename(path))
        if before is not None:
            self._bytes += size - before.bytes_on_disk
            self._logs[before.name] = KeptLog(before.name, size, before.ended)

    def latest(self, ref: str) -> Optional[LogPlace]:
        """Return the latest log of a build of this life, or of a derivation; None if there is none."""
        key = undref(ref)[0] if ref.startswith("dref:") else ref
        if key in self._silent:
            return self._silent[key]
        name = self._latest.get(key)
        return None if name is None else LogPlace(_parts(name)[1], os.path.join(self.path, name), finished=True)

    def touch(self, path: str) -> None:
        """Enter that a log is about to be read: it stays for a while."""
        self._last_read[os.path.basename(path)] = time.monotonic()

    def excess(self, keep: Keep) -> list[str]:
        """Return the paths of the logs that are to go; none of them is being read."""
        now = time.monotonic()
        self._last_read = {name: at for name, at in self._last_read.items() if now - at < READ_SECONDS}
        oldest = next(iter(self._logs.values()), None)
        if oldest is None or (self._bytes <= keep.bytes_in_all and time.time() - oldest.ended <= keep.days * DAY_SECONDS):
            return []  # as most often: there is no need to look at all
        names = logs_to_drop(self._logs.values(), self._last_read, keep, time.time())
        return [os.path.join(self.path, name) for name in names]

    def forget(self, paths: Iterable[str]) -> None:
        """Enter that logs are to be removed: nobody finds them any more."""
        for name in map(os.path.basename, paths):
            self._bytes -= self._logs.pop(name).bytes_on_disk
            for key in self._keys(name):
                if self._latest.get(key) == name:
                    del self._latest[key]


def remove_logs(paths: Iterable[str]) -> None:
    """Remove logs, in any thread. One that cannot be removed now is tried again by the next daemon."""
    for path in paths:
        for found in (path, path + COMPRESSED):
            try:
                os.unlink(found)
            except FileNotFoundError:
                pass  # it is the other
            except OSError as error:
                _log.warning("cannot remove the log %s: %s", found, error)


def _parts(name: str) -> tuple[str, str, str]:
    """Return the life, the build and the hash of the derivation that a log is named after."""
    found = _NAME.fullmatch(name)
    if found is None:
        raise AssertionError(f"BUG: {name} is no name of a log")
    return found[1], found[2], found[3]
