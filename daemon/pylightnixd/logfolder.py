"""The daemon's folder of logs: which there are, and which are removed.

What is kept in memory is what lies in the folder, no more. `logs_to_drop` decides what goes. Names and places are those of
`pylightnix.store.build_logs`. Must not know what writes a log.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Final, Optional

from pylightnix.store.build_logs import COMPRESSED, DRAFT, KeptLog, LogCatalog, LogPlace, Made, log_name, stored_logs
from pylightnix.types import RRef
from pylightnixd.logs import compress_log

__all__ = ["Keep", "LogFolder", "logs_to_drop", "remove_logs"]

_log = logging.getLogger("pylightnixd")

COMPRESS_BYTES: Final = 1 << 16
READ_SECONDS: Final = 60.0
"""How long after its last reading a log counts as being read: who follows it comes back for the next piece."""
DAY_SECONDS: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class Keep:
    """How long logs are kept, and how many."""

    days: float = 30.0
    bytes_in_all: int = 1 << 30
    empty: int = 5_000
    """How many logs of builds that wrote nothing."""
    count: int = 50_000
    """How many logs, each of which takes an inode, and a block however short it is."""


def logs_to_drop(logs: Iterable[KeptLog], busy: Collection[str], keep: Keep, now: float) -> list[str]:
    """Return the names of the logs that are beyond what is kept, oldest first; those in `busy` stay."""
    oldest_first = sorted(logs, key=lambda log: (log.ended, log.name))
    total, empty, count = (
        sum(log.bytes_on_disk for log in oldest_first),
        sum(not log.bytes_on_disk for log in oldest_first),
        len(oldest_first),
    )
    found = []
    for log in oldest_first:
        within = count <= keep.count and (total <= keep.bytes_in_all if log.bytes_on_disk else empty <= keep.empty)
        if log.name in busy or (within and now - log.ended <= keep.days * DAY_SECONDS):
            continue
        found.append(log.name)
        total -= log.bytes_on_disk
        empty -= not log.bytes_on_disk
        count -= 1
    return found


@dataclass(slots=True, eq=False)
class LogFolder:
    """The folder of logs. Made with `LogFolder.of`. Used by one thread, but for `compress`."""

    path: str
    _catalog: LogCatalog
    _last_read: dict[str, float] = field(default_factory=dict)
    """Name -> when, monotonic seconds."""
    _bytes: int = 0
    _empty: int = 0

    @classmethod
    def of(cls, path: str) -> LogFolder:
        """Return the folder, made if there is none, with the logs of earlier daemons in it. What they left half done goes."""
        os.makedirs(path, 0o700, exist_ok=True)
        for name, entry in stored_logs(path):
            if entry.name.endswith(DRAFT) or (entry.name.endswith(COMPRESSED) and os.path.exists(os.path.join(path, name))):
                os.unlink(entry.path)  # its source is still there, and surely whole
        catalog = LogCatalog.of(path)
        sizes = [log.bytes_on_disk for log in catalog.logs.values()]
        return cls(path, catalog, _bytes=sum(sizes), _empty=sizes.count(0))

    def path_of(self, build: str, dref: str, began: float) -> str:
        """Return where the log of a build belongs that begins then, UTC seconds since the epoch."""
        return os.path.join(self.path, log_name(build, dref, began))

    def ended(self, path: str) -> None:
        """Enter a log that nobody writes any more."""
        now = time.time_ns()
        try:
            os.utime(path, ns=(now, now))  # it may have been written last long before the build ended
            size = os.stat(path).st_size
        except FileNotFoundError:
            return  # the build never began
        except OSError as error:
            _log.warning("cannot enter the log %s: %s", path, error)
            return
        self._bytes += size
        self._empty += not size
        self._catalog.enter(KeptLog(os.path.basename(path), size, now / 1e9))

    def compress(self, path: str) -> Optional[int]:
        """Compress a log if that is worth while, in any thread; return the size that `compressed` wants to know then."""
        try:
            if os.stat(path).st_size <= COMPRESS_BYTES:
                return None
            compress_log(path)
            return os.stat(path + COMPRESSED).st_size
        except FileNotFoundError:
            return None  # it was removed meanwhile
        except OSError as error:
            _log.warning("cannot compress the log %s: %s", path, error)
            return None

    def compressed(self, path: str, size: int) -> None:
        """Enter that a log takes less room now."""
        before = self._catalog.logs.get(os.path.basename(path))
        if before is not None:
            self._bytes += size - before.bytes_on_disk
            self._catalog.resize(before.name, size)

    def find(self, ref: str, made: Callable[[RRef], Optional[Made]]) -> Optional[LogPlace]:
        """Do as `LogCatalog.find`."""
        return self._catalog.find(ref, made)

    def touch(self, path: str) -> None:
        """Enter that a log is about to be read: it stays for a while."""
        self._last_read[os.path.basename(path)] = time.monotonic()

    def excess(self, keep: Keep) -> list[str]:
        """Return the paths of the logs that are to go; none of them is being read."""
        now, logs = time.monotonic(), self._catalog.logs
        self._last_read = {name: at for name, at in self._last_read.items() if now - at < READ_SECONDS}
        oldest = next(iter(logs.values()), None)
        if oldest is None:
            return []
        few = len(logs) <= keep.count and self._bytes <= keep.bytes_in_all and self._empty <= keep.empty
        if few and time.time() - oldest.ended <= keep.days * DAY_SECONDS:
            return []  # as most often: there is no need to look at all
        names = logs_to_drop(logs.values(), self._last_read, keep, time.time())
        return [os.path.join(self.path, name) for name in names]

    def forget(self, paths: Iterable[str]) -> None:
        """Enter that logs are to be removed: nobody finds them any more."""
        for name in map(os.path.basename, paths):
            size = self._catalog.logs[name].bytes_on_disk
            self._bytes -= size
            self._empty -= not size
            self._catalog.forget(name)


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
