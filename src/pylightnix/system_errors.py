"""What the operating system refuses, in our words: the one place where an `OSError` becomes an error that says what to do.

A disk that is full, failing or read-only, and a process with too many open files, are no mistakes of this package: whatever
call meets them, they are named as such. Must not know which call that was.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Final, Optional

from pylightnix.errors import PylightnixException, StoreError, StoreFull, StoreIOError, StoreReadOnly

__all__ = ["is_refusal", "refusal"]

_AGAIN: Final = "then run the same command again"
_ADVICE: Final[Mapping[int, str]] = {
    errno.EIO: f"see what the kernel says of that disk (dmesg), check what is stored with pylightnix store verify, {_AGAIN}",
    errno.ESTALE: f"another host has removed it or its server has started anew; mount that file system again, {_AGAIN}",
    errno.EMFILE: f"let less run at once, or raise the limit on open files (ulimit -n; LimitNOFILE= of a systemd unit), {_AGAIN}",
    errno.ENFILE: f"too many files are open in the whole system: end some programs, or raise the sysctl fs.file-max, {_AGAIN}",
    errno.ENOMEM: f"let less run at once, or give the system more memory, {_AGAIN}",
    errno.EAGAIN: f"let less run at once, or raise the limit on processes (ulimit -u; TasksMax= of a systemd unit), {_AGAIN}",
}
_READ_ONLY_ADVICE: Final = (
    "see what the kernel says of that disk (dmesg) and mount it for writing again, or choose another with --store or PYLIGHTNIX_ROOT"
)
_REFUSED: Final = frozenset(
    {
        *_ADVICE,
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
        errno.EFBIG,
        errno.ENOLCK,
        errno.ENODEV,
        errno.ENXIO,
        errno.ENOTCONN,
        errno.ETIMEDOUT,
        errno.EHOSTDOWN,
        errno.EREMOTEIO,
        errno.EUCLEAN,
        errno.ENOMEDIUM,
        errno.ESHUTDOWN,
    }
)
"""What says something of the machine, and nothing of how it was asked."""


def is_refusal(error: BaseException) -> bool:
    """Tell whether an error is the system's word on the machine, a disk or a limit, which no mistake of ours brings about."""
    return isinstance(error, OSError) and not isinstance(error, PylightnixException) and error.errno in _REFUSED


def refusal(error: OSError, doing: str, where: str, root: Optional[str] = None) -> StoreError:
    """Return our error for one of the operating system's.

    Args:
        error: what it said.
        doing: what was being done: "writing a lock".
        where: the file or folder, should the error not say.
        root: what cannot be written if there is no permission; None if that is not what it means.
    """
    path, inside = _place(error, where)
    reason = f"{error.strerror or error}{inside}"
    if error.errno == errno.ENOSPC:
        return StoreFull(path, doing)
    if error.errno == errno.EDQUOT:
        return StoreFull(path, doing, "disk quota exceeded")
    if root is not None and error.errno in (errno.EACCES, errno.EPERM):
        return StoreReadOnly(root, f"{reason} at {path} while {doing}")
    if error.errno == errno.EROFS:
        return StoreReadOnly(root or where, f"{reason} at {path} while {doing}", _READ_ONLY_ADVICE)
    advice = _ADVICE.get(error.errno or 0)
    return StoreIOError(path, doing, reason) if advice is None else StoreIOError(path, doing, reason, advice)


def _place(error: OSError, where: str) -> tuple[str, str]:
    """Return the path that an error names, and what is to be added where it names something without saying in which folder."""
    names = [os.fsdecode(name) for name in (error.filename2, error.filename) if isinstance(name, (str, bytes))]
    found = next((name for name in names if os.path.isabs(name)), None)
    if found is None and names and names[0] and not where.endswith(names[0]):
        return where, f" (at {names[0]!r})"
    return found or where, ""
