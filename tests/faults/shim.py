"""The preloaded library `calls.c`: compiled, and driven from inside the process that it is loaded into."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from errno import EAGAIN, EDQUOT, EIO, EMFILE, ENOMEM, ENOSPC, EROFS, ESTALE, errorcode
from functools import cache
from typing import Final, Optional

import pytest

SOURCE: Final = os.path.join(os.path.dirname(__file__), "calls.c")
SHORT: Final = 1000
"""Instead of an errno: a write takes half of what it is given."""

_DISK: Final = (EIO, ENOSPC, EROFS, EDQUOT, ESTALE)
KINDS: Final[dict[str, tuple[int, ...]]] = {
    "fsync": _DISK,
    "fdatasync": _DISK,
    "syncfs": _DISK,
    "rename": _DISK,
    "unlink": (EIO, EROFS, ENOSPC, ESTALE),
    "mkdir": _DISK,
    "open": (*_DISK, EMFILE),
    "write": (EIO, ENOSPC, EDQUOT, ESTALE, SHORT),
    "pwrite64": (EIO, ENOSPC, EDQUOT, ESTALE, SHORT),
    "ftruncate": (EIO, EROFS, ESTALE),
    "fchmod": (EIO, EROFS, ESTALE),
    "stat": (EIO, ESTALE),
    "pipe2": (EMFILE,),
    "clone": (EAGAIN, ENOMEM),
}
"""Kinds of calls, and what each may fail with."""
ANYWHERE: Final = (EMFILE, EAGAIN, ENOMEM)
"""What has nothing to do with the store's disk, and so is met at files elsewhere, too."""


@dataclass(frozen=True, slots=True)
class Fault:
    """The `nth` call of one kind fails, or that and all later ones of all of `kinds`."""

    kinds: tuple[str, ...]
    nth: int
    error: int
    onwards: bool = False

    def __str__(self) -> str:
        error = "short" if self.error == SHORT else errorcode[self.error]
        return f"{','.join(self.kinds)}:{self.nth}{'+' if self.onwards else ''}:{error}"

    @classmethod
    def parse(cls, text: str) -> Fault:
        kinds, nth, error = text.split(":")
        code = SHORT if error == "short" else next(number for number, name in errorcode.items() if name == error)
        return cls(tuple(kinds.split(",")), int(nth.rstrip("+")), code, nth.endswith("+"))


FULL: Final = ("open", "write", "pwrite64", "mkdir", "rename")
"""What a full disk refuses. (It lets files be opened that are there; a store must do without that, too.)"""
CHANGES: Final = (*FULL, "unlink", "fchmod", "ftruncate", "fsync", "fdatasync", "syncfs")


@cache
def library() -> str:
    """Return the path of the compiled library; skip where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        if os.environ.get("PYLIGHTNIX_TESTS_MUST_RUN"):
            pytest.fail("there is no C compiler, and the tests must run")
        pytest.skip("there is no C compiler to make the library with that fails system calls")
    path = os.path.join(tempfile.mkdtemp(prefix="test-pylightnix-calls-"), "calls.so")
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", path, SOURCE, "-ldl", "-lpthread"], check=True)
    return path


def environment(**more: str) -> dict[str, str]:
    """Return an environment in which a program is started with the library loaded."""
    return {**os.environ, "LD_PRELOAD": library(), "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **more}


class Calls:
    """The library as loaded into this process."""

    def __init__(self, path: str) -> None:
        self._library = ctypes.CDLL(path)
        self._library.fault_seen.restype = ctypes.c_long
        self._library.fault_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int, ctypes.c_int]

    def begin(self, folder: str, log: int = -1, trace: Optional[int] = None) -> None:
        """Concern this process and what lies below `folder`; say in `log` what failed, record all changes in `trace`."""
        self._library.fault_folder(os.fsencode(folder))
        self._library.fault_log(log)
        if trace is not None:
            self._library.fault_trace(trace)

    def arm(self, fault: Fault) -> None:
        """Have a call fail; with `nth` 0 only count."""
        everywhere = fault.error in ANYWHERE
        self._library.fault_arm(",".join(fault.kinds).encode(), fault.nth, fault.error, int(fault.onwards), int(everywhere))

    def disarm(self) -> int:
        """Let all calls succeed; return how many calls of the armed kinds there were."""
        self._library.fault_disarm()
        return int(self._library.fault_seen())

    def spare(self, yes: bool = True) -> None:
        """Let no call of the calling thread fail, or again any."""
        self._library.fault_spare(int(yes))

    def mark(self, text: str) -> None:
        """Note something among the recorded changes."""
        self._library.fault_mark(text.encode())
