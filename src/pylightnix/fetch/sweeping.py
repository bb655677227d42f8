"""Which files of a fetch folder have had their time, and removing them.

What somebody is at stays, whatever its age.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from pylightnix.fetch.locks import KeyLocks
from pylightnix.fetch.parts import KEPT_FOLDER, WRONG_FOLDER

__all__ = ["Leftover", "drop_parts", "expired", "sweep"]

_KEYED: Final = re.compile(r"([0-9a-f]{32})\.(part|file|json|json\.new)")


@dataclass(frozen=True, slots=True)
class Leftover:
    """A file that nobody may need any more."""

    path: str
    bytes: int
    modified: float
    """Seconds since the epoch."""


def expired(found: Iterable[Leftover], now: float, *, max_age_seconds: float, max_bytes: int) -> list[Leftover]:
    """Return what is to go: what is too old, then the oldest until the rest takes no more than `max_bytes`."""
    gone: list[Leftover] = []
    room = max_bytes
    for each in sorted(found, key=lambda each: (-each.modified, each.path)):  # the newest first
        room -= each.bytes
        if now - each.modified > max_age_seconds or room < 0:
            gone.append(each)
    return gone


def sweep(folder: str, now: float, *, max_age_seconds: float, max_bytes: int) -> int:
    """Remove what has had its time from a fetch folder, and return how many files that were. Blocks."""
    return sum(
        _remove(folder, leftover) for leftover in expired(_leftovers(folder), now, max_age_seconds=max_age_seconds, max_bytes=max_bytes)
    )


def drop_parts(folder: str) -> int:
    """Remove all that can only be fetched further, or is of use to nobody; return how many bytes that were. For a full disk. Blocks.

    Whole files, those that prefetch kept among them, stay, and so does what somebody fetches.
    """
    dropped = 0
    for leftover in _leftovers(folder):
        name, place = os.path.basename(leftover.path), os.path.basename(os.path.dirname(leftover.path))
        is_whole = place == KEPT_FOLDER or name.endswith(".file")
        if not is_whole and _remove(folder, leftover):
            dropped += leftover.bytes
    return dropped


def _remove(folder: str, leftover: Leftover) -> int:
    named = _KEYED.fullmatch(os.path.basename(leftover.path))
    if named is None:
        return _unlink(leftover.path)
    locks = KeyLocks(folder, named[1])
    try:
        return _unlink(leftover.path) if locks.try_fetching() and locks.try_removing() else 0
    finally:
        locks.close()


def _leftovers(folder: str) -> Iterator[Leftover]:
    for where in (folder, os.path.join(folder, KEPT_FOLDER), os.path.join(folder, WRONG_FOLDER)):
        try:
            entries = list(os.scandir(where))
        except FileNotFoundError:
            continue
        for entry in entries:
            if where == folder and _KEYED.fullmatch(entry.name) is None:
                continue
            try:
                info = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue  # another removed it
            if entry.is_file(follow_symlinks=False):
                yield Leftover(entry.path, info.st_size, info.st_mtime)


def _unlink(path: str) -> int:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return 0
    return 1
