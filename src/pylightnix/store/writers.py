"""Whether somebody has a file open for writing: a descriptor that was passed on or kept, a shared mapping of its bytes.

The kernel grants a read lease only on a file that nobody can write to. The lease is given back at once: it is asked for as a question.
File systems without leases (NFS, CIFS, Ceph, some of FUSE) cannot answer. Must not know what follows from an answer.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from typing import Final

__all__ = ["has_writers", "note_cannot_tell"]

_mute: Final[set[int]] = set()
"""Devices that cannot tell. A file system that is mounted later under the same number is not asked either, until this process ends."""


def note_cannot_tell(info: os.stat_result) -> None:
    """Record that files of this device seem to have writers, or none, whatever is true."""
    _mute.add(info.st_dev)


def has_writers(fd: int, info: os.stat_result) -> bool:
    """Tell whether a file is open for writing somewhere; False if the file system cannot tell.

    Args:
        fd: The file, open for reading only.
        info: What `fstat` says of it.
    """
    if info.st_dev in _mute:
        return False
    try:
        # Who opens the file for writing just now has the holder of the lease signalled. SIGIO, the default, would kill it.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EBUSY):
            return True
        _mute.add(info.st_dev)
    return False
