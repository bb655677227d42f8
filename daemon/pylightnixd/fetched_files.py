"""Files that a fetcher has brought: taken out of its folder, hashed here, and lent to builds.

The fetcher parses what strangers send, so its word counts for nothing: the bytes that are hashed must be those that are used. A file
is moved to where the fetcher has no business, and if nobody else can have it open, it is hashed where it lies; else its bytes
are copied, and the copy is hashed. Threads do all of that. Must not know how files are fetched.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import signal
import stat
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from io import FileIO
from itertools import count
from typing import TYPE_CHECKING, Final, Optional

import trio

from pylightnix.errors import WrongChecksum
from pylightnix.fetch import Checksum, FetchedFile, FetchSpec
from pylightnix.fetch.local import spellings
from pylightnix.fetch.parts import disk_errors
from pylightnix.fetch.urls import shown_url
from pylightnixd.threads import run_in_thread

if TYPE_CHECKING:
    from hashlib import _Hash

__all__ = ["FetchedFiles", "FileGone"]

_TAKEN: Final = re.compile(r"([0-9a-f]{32}\.file)\.\d+")
_BLOCK_BYTES: Final = 1 << 20
_HASH_THREADS: Final = 2
_DROP_SECONDS: Final = 10.0
_COPY: Final = ".copy"


class FileGone(Exception):
    """A file is not there: it was moved away for others who have let it go meanwhile. It is to be fetched again."""


@dataclass(slots=True, eq=False)
class _Taken:
    """One file, and how many builds use it."""

    path: str
    users: int = 0
    file: Optional[FetchedFile] = None
    hashing: trio.Lock = field(default_factory=trio.Lock)


class FetchedFiles:
    """The files of one daemon. They lie in `<fetch folder>/taken`."""

    def __init__(self, folder: str) -> None:
        self._folder, self._own_folder = folder, os.path.join(folder, "taken")
        self._taken: dict[str, _Taken] = {}
        self._numbers = count()
        self._threads = trio.CapacityLimiter(_HASH_THREADS)

    async def give_back(self) -> None:
        """Put back what an earlier daemon had taken and did not use: the next fetch finds it there, and hashes it."""
        await run_in_thread(self._give_back, limiter=self._threads)

    def _give_back(self) -> None:
        with contextlib.suppress(OSError):  # what is wrong with the folder the fetcher will say
            for name in os.listdir(self._own_folder):
                whole = _TAKEN.fullmatch(name)
                with contextlib.suppress(OSError):
                    if whole is not None:
                        os.rename(os.path.join(self._own_folder, name), os.path.join(self._folder, whole[1]))

    @asynccontextmanager
    async def lent(self, name: str, spec: FetchSpec, *, is_alone: bool) -> AsyncIterator[FetchedFile]:
        """Lend the file of this name in the fetch folder, its checksums found right.

        As long as one has it, others who come with its name get the same: the fetcher lends one file of a name at a time.

        Raises:
            FileGone: it is not there, and nobody has it.
            WrongChecksum: it is another file.
            StoreError: it cannot be read, or copied.
        """
        taken = self._taken.get(name)
        if taken is None:
            taken = self._taken[name] = _Taken(os.path.join(self._own_folder, f"{name}.{next(self._numbers)}"))
        taken.users += 1
        try:
            async with taken.hashing:
                if taken.file is None:
                    taken.file = await self._take(name, taken.path, spec, is_alone)
            yield taken.file
        finally:
            taken.users -= 1
            if taken.users == 0:
                del self._taken[name]
                # Before its build's output enters the store, which would have to copy a file that has two names.
                with trio.move_on_after(_DROP_SECONDS, shield=True):
                    await run_in_thread(_drop, taken.path, abandon_on_cancel=True)  # noqa: ASYNC102

    async def _take(self, name: str, path: str, spec: FetchSpec, is_alone: bool) -> FetchedFile:
        def take() -> FetchedFile:
            with disk_errors(self._folder, "taking a fetched file"):
                os.makedirs(self._own_folder, 0o700, exist_ok=True)
                source = os.path.join(self._folder, name)
                if not os.path.lexists(source):
                    raise FileGone(source)
                return _took(source, path, spec, is_alone)

        return await run_in_thread(take, limiter=self._threads)


def _took(source: str, path: str, spec: FetchSpec, is_alone: bool) -> FetchedFile:
    """Make `path` the file at `source`, and return it, its checksums found right. In a thread of trio's."""
    if is_alone:
        os.rename(source, path)
        source = path
    hashes = [hashlib.new(each.algorithm) for each in spec.checksums]
    with open(os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK), "rb", buffering=0) as file:
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid():
            raise OSError(errno.EINVAL, "a fetcher brought what is no plain file of this user", source)
        if is_alone and info.st_nlink == 1 and _is_open_here_only(file.fileno()):
            size = _read(file, hashes, None)
        else:
            copy = f"{path}{_COPY}"
            with open(os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb", buffering=0) as target:
                size = _read(file, hashes, target)
            os.rename(copy, path)
    found = [Checksum(each.algorithm, digest.hexdigest()) for each, digest in zip(spec.checksums, hashes, strict=True)]
    for expected, actual in zip(spec.checksums, found, strict=True):
        if expected != actual:
            raise WrongChecksum(shown_url(spec.urls[0]), spellings(expected), spellings(actual), None)
    return FetchedFile(path, size, tuple(found))


def _is_open_here_only(fd: int) -> bool:
    """Tell whether this descriptor is the only one of its file. The kernel grants a lease for writing to no other."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)  # the usual signal to who has a lease would end this process
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return False  # or a file system that does not know leases
    return True


def _read(file: FileIO, hashes: Sequence[_Hash], target: Optional[FileIO]) -> int:
    """Read a file to its end into digests, and into a copy; return how many bytes it has."""
    size = 0
    while block := file.read(_BLOCK_BYTES):
        trio.from_thread.check_cancelled()
        size += len(block)
        for digest in hashes:
            digest.update(block)
        view = memoryview(block)
        while target is not None and view:
            view = view[target.write(view) :]
    return size


def _drop(path: str) -> None:
    for each in (path, f"{path}{_COPY}"):
        with contextlib.suppress(OSError):
            os.unlink(each)
