"""The bytes of an archive, in a file or a pipe, with or without compression: read exactly, written whole or not at all."""

from __future__ import annotations

import functools
import io
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, BinaryIO, Final, Optional, Protocol, TypeVar, cast

from pylightnix.errors import ArchiveIOError, InvalidArchive, PylightnixException
from pylightnix.nar import Sink
from pylightnix.transfer.limits import IMPORT_LIMITS, Allowance
from pylightnix.unpack_limits import UnpackLimits

__all__ = ["StreamSource", "opened_archive", "written_archive"]

T = TypeVar("T")

_GZIP: Final = b"\x1f\x8b"
_XZ: Final = b"\xfd7zXZ\0"
_BLOCK_BYTES: Final = 1 << 16


class StreamSource:
    """A stream of bytes, decompressed if it is compressed.

    Attributes:
        where: its name, for errors.
        allowance: what it may still bring.
    """

    def __init__(self, stream: IO[bytes], where: str, limits: UnpackLimits = IMPORT_LIMITS) -> None:
        self.where = where
        self._read_bytes = 0
        self._packed = _Counted(stream)
        self._stream, self._is_packed = self._reading(lambda: _decompressed(self._packed, limits.memory_bytes))
        self.allowance = Allowance(where, limits, _size(stream), self._is_packed)

    def take(self, count: int) -> bytes:
        """Return exactly so many bytes.

        Raises:
            InvalidArchive: there are fewer.
            ArchiveIOError: they cannot be read.
        """
        pieces = []
        left = count
        while left:
            # In blocks: no memory is taken up for a declared size before the bytes are there.
            piece = self._reading(functools.partial(self._stream.read, min(left, 1 << 20)))
            if not piece:
                raise InvalidArchive(self.where, f"it ends after {self._read_bytes} bytes, in the middle")
            pieces.append(piece)
            left -= len(piece)
            self._read_bytes += len(piece)
            if self._is_packed:
                self.allowance.check_ratio(self._read_bytes, self._packed.read_bytes)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def at_end(self) -> bool:
        return not self._reading(lambda: self._stream.read(1))

    def _reading(self, read: Callable[[], T]) -> T:
        import gzip
        import lzma
        import zlib

        try:
            return read()
        except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
            raise InvalidArchive(self.where, f"its compressed data are damaged ({error})") from error
        except OSError as error:
            raise ArchiveIOError(self.where, "reading an archive", error.strerror or str(error)) from error


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Counted:
    """Counts what is read of a stream."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(cast(io.RawIOBase, stream))
        self.read_bytes = 0

    def peek(self, size: int) -> bytes:
        return self._stream.peek(size)

    def read(self, size: int = -1, /) -> bytes:
        data = self._stream.read(size)
        self.read_bytes += len(data)
        return data


def _size(stream: IO[bytes]) -> Optional[int]:
    """Return how large the file is that a stream reads; None for a pipe."""
    try:
        info = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return None  # it is no file
    return info.st_size if stat.S_ISREG(info.st_mode) else None


class _Unxz:
    """Decompresses one xz stream, in memory of our choice: a dictionary of 4 GiB is a stranger's to declare."""

    def __init__(self, stream: _Counted, memory_bytes: int) -> None:
        import lzma

        self._stream = stream
        self._decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=memory_bytes)

    def read(self, size: int, /) -> bytes:
        while not self._decompressor.eof:
            block = self._stream.read(_BLOCK_BYTES) if self._decompressor.needs_input else b""
            if self._decompressor.needs_input and not block:
                raise EOFError("they end early")
            if data := self._decompressor.decompress(block, size):
                return data
        return self._decompressor.unused_data[:size] or self._stream.read(size)


def _decompressed(packed: _Counted, memory_bytes: int) -> tuple[_Readable, bool]:
    """Return what reads the stream, and whether it is compressed."""
    begin = packed.peek(len(_XZ))
    if begin.startswith(_GZIP):
        import gzip

        return gzip.GzipFile(fileobj=cast(IO[bytes], packed)), True
    if begin.startswith(_XZ):
        return _Unxz(packed, memory_bytes), True
    return packed, False


@contextmanager
def opened_archive(path: str, limits: UnpackLimits = IMPORT_LIMITS) -> Iterator[StreamSource]:
    """Read from a file.

    Raises:
        ArchiveIOError: it cannot be opened.
    """
    try:
        stream = open(path, "rb")  # noqa: SIM115  # closed below; errors of opening are apart from those of the block
    except OSError as error:
        raise ArchiveIOError(path, "opening an archive", error.strerror or str(error)) from error
    with stream:
        yield StreamSource(stream, path, limits)


@contextmanager
def written_archive(path: str) -> Iterator[Sink]:
    """Write a file that appears at `path` when the block ends without an error, whole and durable; an old one is replaced.

    It is compressed if its name ends in ``.gz`` or ``.xz``. A pipe or a device is written as it stands. Yields what writes.

    Raises:
        ArchiveIOError: it cannot be written; a file that was at `path` before is still there.
    """
    target = os.path.realpath(path)
    try:
        if os.path.exists(target) and not os.path.isfile(target):
            with open(target, "wb") as device, _compressed(device, path) as stream:
                yield stream.write
        else:
            with _draft_of(target) as file, _compressed(file, path) as stream:
                yield stream.write
    except (PylightnixException, BrokenPipeError):
        raise
    except OSError as error:
        raise ArchiveIOError(path, "writing an archive", error.strerror or str(error)) from error


@contextmanager
def _draft_of(target: str) -> Iterator[BinaryIO]:
    """Open a file that takes the place of `target` at the end of the block."""
    folder, name = os.path.split(target)
    draft = os.path.join(folder, f".{secrets.token_hex(6)}-{name}"[:200])
    with open(draft, "xb") as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())  # before the rename, or a power cut could leave the name with nothing behind it
            os.rename(draft, target)
        except BaseException:
            os.unlink(draft)
            raise
    _sync_folder(folder)


@contextmanager
def _compressed(file: BinaryIO, name: str) -> Iterator[IO[bytes]]:
    if name.endswith(".gz"):
        import gzip

        with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:  # equal exports are equal bytes
            yield cast(IO[bytes], packed)
    elif name.endswith(".xz"):
        import lzma

        with lzma.LZMAFile(file, "wb") as packed_xz:
            yield cast(IO[bytes], packed_xz)
    else:
        yield file


def _sync_folder(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
