"""Copying a tree: its serialization goes from one walk to another, so a copy refuses what an archive refuses."""

from __future__ import annotations

import os
import threading
from typing import IO, Final, Optional

from pylightnix.nar import tree_hash
from pylightnix.nar_reader import unpack_folder

__all__ = ["copy_folder"]

_NO_END: Final = 1 << 62


class _Broken(Exception):
    """The serialization ended before the tree did."""


class _Pipe:
    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def left(self) -> int:
        return _NO_END

    def take(self, count: int) -> bytes:
        data = self._stream.read(count)
        if len(data) < count:
            raise _Broken
        return data


class _Sending(threading.Thread):
    """Serializes a folder into a pipe; `error` says in the end what was wrong with the folder, if anything was."""

    def __init__(self, path: str, fd: int, exclude_top: frozenset[str]) -> None:
        super().__init__(name="pylightnix-copy")
        self._path, self._fd, self._exclude_top = path, fd, exclude_top
        self.error: Optional[Exception] = None

    def run(self) -> None:
        try:
            with open(self._fd, "wb", buffering=0) as pipe:
                tree_hash(self._path, exclude_top=self._exclude_top, sink=lambda piece: _write_all(pipe.fileno(), piece))
        except BrokenPipeError:
            pass  # whoever reads has failed, and says why
        except Exception as error:  # noqa: BLE001  # raised again by whoever waits for this thread
            self.error = error


def _write_all(fd: int, piece: bytes | memoryview) -> None:
    rest = memoryview(piece)
    while rest:
        rest = rest[os.write(fd, rest) :]


def copy_folder(path: str, parent_fd: int, name: str, *, exclude_top: frozenset[str] = frozenset()) -> None:
    """Copy the folder at `path` as `name` into the folder open at `parent_fd`: contents, executable bits and links, nothing else.

    Args:
        path: What to copy.
        parent_fd: A folder that nobody else writes to.
        name: A single path component; nothing of that name may be there.
        exclude_top: Names directly in the folder that are left out.

    Raises:
        InvalidTree: It holds a special file, or changed meanwhile.
        OSError: It cannot be read, or the copy cannot be written. After any of these there is a part of the copy.
    """
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    sending = _Sending(path, write_fd, exclude_top)
    broken = False
    with open(read_fd, "rb") as stream:
        sending.start()
        try:
            unpack_folder(_Pipe(stream), parent_fd, name)
        except _Broken:
            broken = True
        finally:
            stream.close()  # the sender then ends, too
            sending.join()
    if sending.error is not None:
        raise sending.error
    if broken:
        raise AssertionError(f"BUG: the serialization of {path} ended early")
