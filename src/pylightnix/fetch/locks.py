"""Who is at which file of a fetch folder: locks between processes, and between fetches of one.

One file, `locks`, whose byte ranges stand for keys, as those of the store's `lock.builds` do: there is nothing to clean up after a
crash. Two bytes belong to a key: who holds the first exclusively fetches, who holds the second shared uses the file. Whoever
can have the second exclusively knows that nobody uses it. Must not know what the files are.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import Final

from pylightnix.store.locks import close_lock_file, open_lock_file

__all__ = ["KeyLocks"]

_FLOCK: Final = "hhqqi4x"  # struct flock of 64-bit Linux: type, whence, start, length, pid (0 for these locks)
_FETCHING: Final = 0
_USING: Final = 1


class KeyLocks:
    """The locks of one key, as one fetch holds them. All are free again when it is closed, or its process dies."""

    def __init__(self, folder: str, key: str) -> None:
        self._start = int(key[:16], 16) >> 2 & ~1
        self._fd = open_lock_file(os.path.join(folder, "locks"))

    def try_fetching(self) -> bool:
        """Become the one who fetches, if nobody is."""
        return self._set(_FETCHING, fcntl.F_WRLCK)

    def end_fetching(self) -> None:
        self._set(_FETCHING, fcntl.F_UNLCK)

    def try_using(self) -> bool:
        """Become one of those who use the file; that fails only while somebody removes it."""
        return self._set(_USING, fcntl.F_RDLCK)

    def try_alone(self) -> bool:
        """Become the only one who uses the file, if nobody else does; else stay one of those who do."""
        return self._set(_USING, fcntl.F_WRLCK)

    def try_removing(self) -> bool:
        """Let go of the file, and become the one who may remove it, if nobody else uses it."""
        # Let go first: of two who keep it until they have it alone, neither would get it.
        self._set(_USING, fcntl.F_UNLCK)
        return self._set(_USING, fcntl.F_WRLCK)

    def close(self) -> None:
        close_lock_file(self._fd)

    def _set(self, byte: int, kind: int) -> bool:
        request = struct.pack(_FLOCK, kind, os.SEEK_SET, self._start + byte, 1, 0)
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, request)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        return True
