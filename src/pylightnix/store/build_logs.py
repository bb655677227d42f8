"""The logs of builds on the disk: how their files are named, found and read, with a daemon and without one.

A build's name is unique in its store for ever, so it finds one log, whichever daemon wrote it. A log's file is named
after the time at which the build began, the build, and the hash of its derivation. Logs of earlier versions are named
after the daemon's life, a number of that life, and the hash; life and number together are the build's name then.
Must not write logs, nor know which are kept.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Optional

from pylightnix.refs import isdref, isrref, rref2dref, undref
from pylightnix.store.log_packing import packed_size, read_packed
from pylightnix.types import RRef

__all__ = ["COMPRESSED", "DRAFT", "KeptLog", "LogCatalog", "LogPlace", "Made", "logs_folder", "read_log", "stored_logs", "tail_offset"]

_log = logging.getLogger("pylightnix")

COMPRESSED: Final = ".gz"
"""What the name of a log ends with once it is compressed."""
DRAFT: Final = ".tmp"
"""What follows that while it is not finished."""
BEGINNING_MIN: Final = 4
"""How many characters of a build's name are enough, if no other begins so."""
_FOLDER: Final = "logs"
_NAME: Final = re.compile(r"([0-9a-f]{10,16})-(b-[0-9a-z]{4,40})-([0-9a-f]{32})\.log", re.ASCII)
_FORMER_NAME: Final = re.compile(r"([0-9a-f]{12,20})-(b[0-9]{1,18})-([0-9a-f]{32})\.log", re.ASCII)
_FORMER_RANDOM_DIGITS: Final = 4
_CLOCK_SECONDS: Final = 0.1
"""By how much times of one build may differ that were taken from different clocks of the system."""


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


@dataclass(frozen=True, slots=True)
class Made:
    """How a realization was made last."""

    build: Optional[str]
    """The name of the latest build by a daemon; None if it was not recorded."""
    started: float
    """When its realizer started, UTC seconds since the epoch."""


def logs_folder(state: str) -> str:
    """Return the folder of a store's logs, given the folder of its state."""
    return os.path.join(state, _FOLDER)


def log_name(build: str, dref: str, began: float) -> str:
    """Return what the log of a build is called that began then, UTC seconds since the epoch."""
    return f"{int(began * 1000):011x}-{build}-{undref(dref)[0]}.log"


def _parts(name: str) -> tuple[float, str, str]:
    """Return when a log's build had not begun yet, the build's name and the hash of its derivation."""
    found = _NAME.fullmatch(name)
    if found is not None:
        return int(found[1], 16) / 1000, found[2], found[3]
    former = _FORMER_NAME.fullmatch(name)
    if former is None:
        raise AssertionError(f"BUG: {name} is no name of a log")
    return float(int(former[1][:-_FORMER_RANDOM_DIGITS], 16)), f"{former[1]}-{former[2]}", former[3]


def stored_logs(path: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Yield the files of logs in a folder, each with the log's name: compressed ones, and what was left half done, too."""
    with os.scandir(path) as entries:
        for entry in entries:
            name = entry.name.removesuffix(DRAFT).removesuffix(COMPRESSED)
            if (_NAME.fullmatch(name) or _FORMER_NAME.fullmatch(name)) and entry.is_file(follow_symlinks=False):
                yield name, entry


@dataclass(slots=True, eq=False)
class LogCatalog:
    """Which finished logs there are."""

    path: str
    logs: dict[str, KeptLog] = field(default_factory=dict)
    """By their names, the oldest first."""
    _by_build: dict[str, str] = field(default_factory=dict)
    _by_derivation: dict[str, dict[str, None]] = field(default_factory=dict)
    """Hash of a derivation -> the names of its logs, the oldest first."""
    _gone: dict[str, None] = field(default_factory=dict)
    """Derivations of which the latest log is gone: an older one is not what is asked for."""

    @classmethod
    def of(cls, path: str) -> LogCatalog:
        """Return what lies in a folder, and change nothing there.

        Raises:
            OSError: it cannot be read.
        """
        found: dict[str, KeptLog] = {}
        for name, entry in stored_logs(path):
            if entry.name.endswith(DRAFT):
                continue
            try:
                info = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue  # it was removed just now
            found[name] = KeptLog(name, info.st_size, info.st_mtime)
        catalog = cls(path)
        for log in sorted(found.values(), key=lambda log: (log.ended, log.name)):
            catalog.enter(log)
        return catalog

    def enter(self, log: KeptLog) -> None:
        """Enter a log that ended after all others."""
        self.logs.pop(log.name, None)
        self.logs[log.name] = log
        _, build, dhash = _parts(log.name)
        self._by_build[build] = log.name
        of_derivation = self._by_derivation.setdefault(dhash, {})
        of_derivation.pop(log.name, None)
        of_derivation[log.name] = None
        self._gone.pop(dhash, None)

    def resize(self, name: str, size: int) -> None:
        """Enter that a log takes another size."""
        self.logs[name] = KeptLog(name, size, self.logs[name].ended)

    def forget(self, name: str) -> None:
        """Enter that a log is not there any more."""
        del self.logs[name]
        _, build, dhash = _parts(name)
        del self._by_build[build]
        of_derivation = self._by_derivation[dhash]
        if name == next(reversed(of_derivation)):
            self._gone[dhash] = None
        del of_derivation[name]
        if not of_derivation:
            del self._by_derivation[dhash]
            self._gone.pop(dhash, None)

    def find(self, ref: str, made: Callable[[RRef], Optional[Made]]) -> Optional[LogPlace]:
        """Return the log of a build, the latest of a derivation, or that of the build which made a realization.

        `made` tells which that was, None for a realization that is not there.
        """
        if isdref(ref):
            return self.of_derivation(ref)
        if isrref(ref):
            known = made(RRef(ref))
            return None if known is None else self.of_realization(rref2dref(ref), known)
        return self.of_build(ref)

    def of_build(self, build: str) -> Optional[LogPlace]:
        """Return the log of the build of this name, or of the only one whose name begins so."""
        name = self._by_build.get(build)
        if name is None and len(build) >= BEGINNING_MIN:
            alike = [known for known in self._by_build if known.startswith(build)]
            name = self._by_build[alike[0]] if len(alike) == 1 else None
        return None if name is None else self._place(name)

    def of_derivation(self, dref: str) -> Optional[LogPlace]:
        """Return the log of the latest build of a derivation."""
        dhash = undref(dref)[0]
        if dhash in self._gone or dhash not in self._by_derivation:
            return None
        return self._place(next(reversed(self._by_derivation[dhash])))

    def of_realization(self, dref: str, made: Made) -> Optional[LogPlace]:
        """Return the log of that build of a derivation which made a realization."""
        if made.build is not None:
            name = self._by_build.get(made.build)
            return None if name is None else self._place(name)
        # Stores of before did not record the build, only when its realizer started.
        began = {name: _parts(name)[0] for name in self._by_derivation.get(undref(dref)[0], ())}
        alike = [
            name
            for name, moment in began.items()
            if moment <= made.started + _CLOCK_SECONDS and made.started - _CLOCK_SECONDS <= self.logs[name].ended
        ]
        best = max(alike, key=lambda name: (began[name] <= made.started, began[name], -self.logs[name].ended), default=None)
        return None if best is None else self._place(best)

    def _place(self, name: str) -> LogPlace:
        return LogPlace(_parts(name)[1], os.path.join(self.path, name), finished=True)


def tail_offset(path: str, limit: int) -> int:
    """Return where the last `limit` bytes of a log begin, as it is now; wherever it is."""
    try:
        try:
            size = os.stat(path).st_size
        except FileNotFoundError:
            size = packed_size(path + COMPRESSED)
    except (OSError, ValueError):
        return 0
    return max(0, size - limit)


def read_log(path: str, offset: int, limit: int) -> bytes:
    """Return up to `limit` bytes of the log that was written to `path`, from `offset` on; nothing if it is gone.

    It is compressed at some time, after which it lies elsewhere.
    """
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(limit)
    except FileNotFoundError:
        pass  # in this order: the other is there before this one goes
    try:
        return read_packed(path + COMPRESSED, offset, limit)
    except FileNotFoundError:
        return b""
    except ValueError as error:
        _log.warning("cannot read a log: %s", error)
        return b""
