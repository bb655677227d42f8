"""What is known of files that were read before: a file of records, one for each folder of a source, in the order of the walk.

It lies in the user's cache folder and is read along with the walk, so that neither of them is in memory as a whole. Each
record has a checksum. What is damaged, or of another version, ends what is known; it is never an error, and never an answer.
A memo is replaced as a whole, by a rename. Must not know when a fact holds.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Final, Optional, TypeAlias, cast

__all__ = ["Fact", "Facts", "Memo", "Records"]

Fact: TypeAlias = tuple[int, int, int, int, bytes]
"""Of a file: size, mtime and ctime in nanoseconds, inode, SHA-256."""
Facts: TypeAlias = dict[bytes, Fact]
"""Of the files of a folder, by name."""

_MAGIC: Final = b"pylightnix-sources-1\n"
_FRAME: Final = struct.Struct("<II")
"""Before each record: how long it is, and its CRC-32."""
_SPOOLED_BYTES: Final = 1 << 24
"""How much of a new memo is held in memory: that of some 200,000 files."""
_UNUSED_DAYS: Final = 90
"""How long the memo of a source is kept that nobody asks for."""


class Records:
    """The memo of one source while it is walked: what was known, and what will be.

    Attributes:
        changed: whether these differ.
        failed: whether what will be known cannot be written.
    """

    def __init__(self, old: Optional[IO[bytes]], new: IO[bytes]) -> None:
        self._new = new
        self._old = old if old is not None and _read(old, len(_MAGIC)) == _MAGIC else None
        self._ahead: Optional[tuple[tuple[bytes, ...], Facts, bytes]] = None
        self.changed, self.failed = self._old is None, False
        self._append(_MAGIC)
        self._advance()

    def known(self, path: bytes) -> Facts:
        """Return what was known of the files of a folder. Folders are asked for in the order of the walk, each once."""
        parts = _parts(path)
        while self._ahead is not None and self._ahead[0] < parts:
            self.changed = True  # the folder is gone
            self._advance()
        return self._ahead[1] if self._ahead is not None and self._ahead[0] == parts else {}

    def tell(self, path: bytes, facts: Facts) -> None:
        """Note what is known of the folder that was asked for last."""
        if self._ahead is not None and self._ahead[0] == _parts(path):
            known, record = self._ahead[1:]
            self._advance()
            if known == facts:
                self._write(record)
                return
        self.changed = True
        import msgpack  # type: ignore[import-untyped]  # it ships no type information

        self._write(msgpack.packb([path, [[name, *fact] for name, fact in facts.items()]]))

    def end(self) -> None:
        """Take note that the walk is over."""
        self.changed = self.changed or self._ahead is not None

    def _write(self, record: bytes) -> None:
        self._append(_FRAME.pack(len(record), zlib.crc32(record)) + record)

    def _append(self, piece: bytes) -> None:
        try:
            if not self.failed:
                self._new.write(piece)
        except OSError:  # a full disk is no reason to fail
            self.failed = True

    def _advance(self) -> None:
        self._ahead = None
        if self._old is None or not (frame := _read(self._old, _FRAME.size)):
            return
        try:
            size, checksum = _FRAME.unpack(frame)
            record = _read(self._old, size) if size <= _left(self._old) else b""
            if zlib.crc32(record) == checksum and record:
                path, facts = _parsed(record)
                self._ahead = (_parts(path), facts, record)
        except (struct.error, ValueError, TypeError):
            pass
        if self._ahead is None:  # what follows a damaged record may be anything
            self._old, self.changed = None, True


def _read(file: IO[bytes], size: int) -> bytes:
    try:
        return file.read(size)
    except OSError:
        return b""


def _left(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size - file.tell()


def _parts(path: bytes) -> tuple[bytes, ...]:
    return tuple(path.split(b"/")) if path else ()


def _parsed(record: bytes) -> tuple[bytes, Facts]:
    import msgpack

    path, rows = msgpack.unpackb(record)
    return path, {name: (size, mtime_ns, ctime_ns, inode, sha256) for name, size, mtime_ns, ctime_ns, inode, sha256 in rows}


class Memo:
    """The memos of all sources, in `folder`; by default in the user's cache folder."""

    def __init__(self, folder: Optional[str] = None) -> None:
        if folder is None:
            import platformdirs  # here, for it costs every start some milliseconds otherwise

            folder = os.path.join(platformdirs.user_cache_dir("pylightnix"), "sources")
        self._folder = folder

    @contextmanager
    def of(self, path: str, exclude: Sequence[str]) -> Iterator[Records]:
        """Yield the memo of a source, and replace it at the end of the block unless that raises."""
        key = hashlib.sha256(b"\0".join(os.fsencode(text) for text in (path, *exclude))).hexdigest()[:32]
        file = os.path.join(self._folder, f"{key}.memo")
        with _opened(file) as old, tempfile.SpooledTemporaryFile(_SPOOLED_BYTES) as new:
            records = Records(old, cast(IO[bytes], new))
            yield records
            records.end()
            try:
                self._keep(file, records, cast(IO[bytes], new))
            except OSError:
                pass  # no room, no rights, no home: the next time costs what this one did

    def _keep(self, file: str, records: Records, new: IO[bytes]) -> None:
        if not records.changed:
            os.utime(file)
        if records.failed or not records.changed:
            return
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        fd, draft = tempfile.mkstemp(prefix="draft-", dir=self._folder)
        try:
            with open(fd, "wb") as target:
                import shutil

                new.seek(0)
                shutil.copyfileobj(new, target)
            os.replace(draft, file)
        except OSError:
            os.unlink(draft)
            raise
        self._sweep()

    def _sweep(self) -> None:
        """Remove what nobody has asked for in a long time, drafts of programs that were killed among it."""
        oldest = time.time() - _UNUSED_DAYS * 86400
        with os.scandir(self._folder) as listed:
            for entry in listed:
                if entry.stat(follow_symlinks=False).st_mtime < oldest:
                    os.unlink(entry.path)


@contextmanager
def _opened(file: str) -> Iterator[Optional[IO[bytes]]]:
    try:
        opened = open(file, "rb")  # noqa: SIM115  # closed below; errors of opening are apart from those of the block
    except OSError:
        yield None
        return
    with opened:
        yield opened
