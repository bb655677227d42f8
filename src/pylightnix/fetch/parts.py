"""One file on its way: its bytes on disk, their digests so far, and where they came from.

In the fetch folder, for each key: `<key>.part`, the bytes so far; `<key>.json`, where they came from; `<key>.file`, the whole, its checksum
found right. `kept/<algorithm>-<hex>` is what prefetch keeps, `wrong/` what had another checksum. Nothing is synced: what a
power cut spoils is found out by its checksum. Synchronous, for threads; the caller holds the key's locks.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Final, Optional

from pylightnix.fetch.checksums import Checksum
from pylightnix.fetch.resuming import Resumable
from pylightnix.system_errors import refusal

if TYPE_CHECKING:
    from hashlib import _Hash

__all__ = ["KEPT_FOLDER", "WRONG_FOLDER", "PartFile", "aside_path", "digests_of", "disk_errors", "make_fetch_folder"]

KEPT_FOLDER: Final = "kept"
WRONG_FOLDER: Final = "wrong"
_BLOCK_BYTES: Final = 1 << 20


@contextlib.contextmanager
def disk_errors(where: str, doing: str) -> Iterator[None]:
    """Turn errors of the system inside the block into ours."""
    try:
        yield
    except OSError as error:
        raise refusal(error, doing, where, where) from error


def make_fetch_folder(folder: str) -> None:
    """Make a fetch folder where there is none. It is its user's alone: others could put files into it."""
    with disk_errors(folder, "making the folder for fetched files"):
        for path in (folder, os.path.join(folder, KEPT_FOLDER), os.path.join(folder, WRONG_FOLDER)):
            os.makedirs(path, 0o700, exist_ok=True)


def aside_path(folder: str, checksum: Checksum) -> str:
    """Return where a file with this checksum lies that was not the expected one."""
    return os.path.join(folder, WRONG_FOLDER, f"{checksum.algorithm}-{checksum.hex}")


def digests_of(path: str, algorithms: Sequence[str]) -> tuple[Checksum, ...]:
    """Return the checksums of a file, in the order of `algorithms`."""
    hashes = [hashlib.new(name) for name in algorithms]
    with open(path, "rb", buffering=0) as file:
        _hash_up_to(file.fileno(), hashes, None)
    return tuple(Checksum(name, digest.hexdigest()) for name, digest in zip(algorithms, hashes, strict=True))


def _hash_up_to(fd: int, hashes: Sequence[_Hash], size: Optional[int]) -> int:
    """Read an open file from where it is, `size` bytes or all, into digests; return how many bytes there were."""
    done = 0
    while size is None or done < size:
        block = os.read(fd, _BLOCK_BYTES if size is None else min(_BLOCK_BYTES, size - done))
        if not block:
            break
        for digest in hashes:
            digest.update(block)
        done += len(block)
    return done


class PartFile:
    """The bytes of one file, as far as they are there.

    Attributes:
        size: how many there are. All of them are hashed.
        known: where they came from; None if that is not known, and then they are good for nothing.
        was_resumed: whether bytes of an earlier process, or of several servers, are among them.
    """

    def __init__(self, folder: str, key: str, algorithms: Sequence[str]) -> None:
        self.path = os.path.join(folder, f"{key}.part")
        self.whole_path = os.path.join(folder, f"{key}.file")
        self._folder, self._key, self._algorithms = folder, key, tuple(algorithms)
        self._sidecar = os.path.join(folder, f"{key}.json")
        self._hashes = [hashlib.new(name) for name in self._algorithms]
        self.size = 0
        self.was_resumed = False
        self.known = self._read_sidecar()
        self._fd = self._open()
        try:
            self._take_up()
        except BaseException:
            os.close(self._fd)
            raise

    def _open(self) -> int:
        return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def _read_sidecar(self) -> Optional[Resumable]:
        try:
            with open(self._sidecar, encoding="ascii") as file:
                found = json.load(file)
            known = Resumable(**found)
        except (OSError, ValueError, TypeError):
            return None
        texts = (known.source, known.etag or "", known.last_modified or "", str(known.total or 0))
        return known if all(isinstance(text, str) for text in texts) and texts[3].isdecimal() else None

    def _take_up(self) -> None:
        if self.known is None:
            os.ftruncate(self._fd, 0)
            return
        size = os.fstat(self._fd).st_size
        if self.known.total is not None and size > self.known.total:
            self.start_over(None)
            return
        self.size = _hash_up_to(self._fd, self._hashes, size)
        self.was_resumed = self.size > 0

    def start_over(self, known: Optional[Resumable]) -> None:
        """Drop all bytes; those to come are from `known`."""
        # The sidecar first: without one the bytes count for nothing, with another's they would be mixed.
        self._drop_sidecar()
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._hashes = [hashlib.new(name) for name in self._algorithms]
        self.size = 0
        self.was_resumed = False
        self.known = None
        if known is not None:
            self.note(known)

    def try_begin(self, known: Resumable) -> bool:
        """Do as `start_over` if that takes no time at all: nothing is there, and what comes is too small to be worth a sidecar."""
        if self.size > 0 or self.known is not None or known.total is None or known.total > _BLOCK_BYTES:
            return False
        self.known = known
        return True

    def note(self, known: Resumable) -> None:
        """Write down where the bytes come from."""
        if known == self.known:
            return
        self.was_resumed = self.was_resumed or (self.known is not None and self.known.source != known.source)
        temporary = f"{self._sidecar}.new"
        with open(temporary, "w", encoding="ascii") as file:
            json.dump(asdict(known), file)
        os.rename(temporary, self._sidecar)
        self.known = known

    def append(self, blocks: Sequence[bytes]) -> None:
        """Write and hash bytes that follow."""
        for block in blocks:
            view = memoryview(block)
            while view:
                view = view[os.write(self._fd, view) :]
            for digest in self._hashes:
                digest.update(block)
            self.size += len(block)

    def checksums(self) -> tuple[Checksum, ...]:
        """Return the checksums of what is there."""
        return tuple(Checksum(name, digest.hexdigest()) for name, digest in zip(self._algorithms, self._hashes, strict=True))

    def finish(self) -> str:
        """Give the file the name of a whole one, and return that."""
        os.rename(self.path, self.whole_path)
        self._drop_sidecar()
        return self.whole_path

    def set_aside(self, found: Checksum) -> str:
        """Move the file to where files with a wrong checksum are kept, and return its name there."""
        aside = aside_path(self._folder, found)
        os.rename(self.path, aside)
        os.close(self._fd)
        self._fd = self._open()
        self.start_over(None)
        return aside

    def _drop_sidecar(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._sidecar)

    def close(self) -> None:
        """Leave the bytes for the next one. A part without any is removed."""
        if self.size == 0:
            self._drop_sidecar()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
        os.close(self._fd)
