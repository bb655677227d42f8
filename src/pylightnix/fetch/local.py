"""Local files as fetched ones: opened by the calling process, copied, and their checksums compared."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Final, Optional

from pylightnix.errors import FetchFailed, WrongChecksum
from pylightnix.fetch.checksums import Checksum
from pylightnix.fetch.files import FetchedFile
from pylightnix.fetch.parts import disk_errors

__all__ = ["local_checksum", "local_file", "spellings"]

_BLOCK_BYTES: Final = 1 << 20


def spellings(checksum: Checksum) -> dict[str, str]:
    """Return a checksum as `WrongChecksum` tells it."""
    return {checksum.algorithm: checksum.hex, "sri": checksum.sri}


def local_checksum(path: str, algorithm: str = "sha256") -> Checksum:
    """Return the checksum of a file.

    Raises:
        FetchFailed: it cannot be read.
    """
    with _opened(path) as fd, open(fd, "rb", buffering=0, closefd=False) as file:
        return Checksum(algorithm, hashlib.file_digest(file, algorithm).hexdigest())


@contextmanager
def local_file(path: str, folder: str, checksums: Sequence[Checksum], max_bytes: Optional[int] = None) -> Iterator[FetchedFile]:
    """Lend a copy of a local file in `folder`. A copy, so that what was compared is what is used.

    Raises:
        FetchFailed: it cannot be read, is no plain file, or too large.
        WrongChecksum: it is another file.
    """
    with disk_errors(folder, f"copying {path}"):
        copy = tempfile.NamedTemporaryFile(dir=folder, prefix="fetched-")  # noqa: SIM115  # closed below
    with copy:
        with _opened(path) as fd, disk_errors(folder, f"copying {path}"):
            file = _copied(fd, path, copy, checksums, max_bytes)
        yield file


def _copied(fd: int, path: str, copy: IO[bytes], checksums: Sequence[Checksum], max_bytes: Optional[int]) -> FetchedFile:
    hashes = {name: hashlib.new(name) for name in [each.algorithm for each in checksums] or ["sha256"]}
    size = 0
    while block := os.read(fd, _BLOCK_BYTES):
        size += len(block)
        if max_bytes is not None and size > max_bytes:
            raise FetchFailed([path], [(path, f"has more than the {max_bytes} bytes that are allowed")])
        for digest in hashes.values():
            digest.update(block)
        copy.write(block)
    copy.flush()
    found = {name: Checksum(name, digest.hexdigest()) for name, digest in hashes.items()}
    for expected in checksums:
        if found[expected.algorithm] != expected:
            raise WrongChecksum(path, spellings(expected), spellings(found[expected.algorithm]), None)
    return FetchedFile(copy.name, size, tuple(found.values()))


@contextmanager
def _opened(path: str) -> Iterator[int]:
    import stat

    try:
        # A pipe without a writer would be waited for.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise FetchFailed([path], [(path, f"cannot be read ({reason})")]) from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise FetchFailed([path], [(path, "is no plain file")])
        yield fd
    finally:
        os.close(fd)
