"""What code a realizer is, as it is sent to a daemon, and whether that is still the code in its file.

A realizer of an importable module travels by name: workers run what is in its file then. Whoever edits
the file while a program runs would get the new code built where the program has the old, so a file that
was changed is noticed, and the digest sent is one that no code has. Must not know what is built.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import types
from collections.abc import Iterator
from typing import Any, Final, Optional

from pylightnix.attempt import realizer_digest
from pylightnix.errors import CodeKeyError
from pylightnix.types import Realizer

__all__ = ["sent_digest"]

_NO_CODE: Final = hashlib.sha256(b"changed after it was loaded").hexdigest()
_CLOCK_SECONDS: Final = 2.0
"""How far the time at which this process began may be off; the kernel tells it in whole seconds of the clock on the wall."""


def sent_digest(realizer: Realizer, *, travels: bool) -> Optional[str]:
    """Return what code `realizer` is; None if that cannot be told.

    If it `travels` and the file it is in was changed after it was loaded, the digest is that of no code.
    """
    if travels and _is_stale(realizer):
        return _NO_CODE
    try:
        return realizer_digest(realizer)
    except CodeKeyError:  # something that it reaches was changed
        return _NO_CODE if travels else None


def _is_stale(realizer: Any) -> bool:
    code = _code_of(realizer)
    if code is None or not _changed_since_start(code.co_filename):
        return False
    try:
        with open(code.co_filename, "rb") as file:
            whole = compile(file.read(), code.co_filename, "exec", dont_inherit=True)
    except (OSError, SyntaxError, ValueError, RecursionError):
        return True
    return code not in _codes(whole)


def _code_of(pyobj: Any) -> Optional[types.CodeType]:
    """Return the code of a function that a worker imports; None if it is none, or its code travels itself."""
    seen: set[int] = set()
    while id(pyobj) not in seen:
        seen.add(id(pyobj))
        if isinstance(pyobj, types.MethodType):
            pyobj = pyobj.__func__
        elif isinstance(pyobj, functools.partial):
            pyobj = pyobj.func
        elif not isinstance(pyobj, type) and getattr(pyobj, "__wrapped__", None) is not None:
            pyobj = pyobj.__wrapped__
        elif isinstance(pyobj, types.FunctionType):
            return pyobj.__code__ if pyobj.__module__ != "__main__" and "<locals>" not in pyobj.__qualname__ else None
        else:
            pyobj = getattr(type(pyobj), "__call__", None)  # noqa: B004  # the method itself is wanted
    return None


def _codes(whole: types.CodeType) -> Iterator[types.CodeType]:
    stack = [whole]
    while stack:
        code = stack.pop()
        yield code
        stack += [item for item in code.co_consts if isinstance(item, types.CodeType)]


def _changed_since_start(filename: str) -> bool:
    try:
        return os.stat(filename).st_mtime > _process_start() - _CLOCK_SECONDS
    except OSError:
        return False  # not in a file


@functools.cache
def _process_start() -> float:
    """Return when this process began, UTC seconds since the epoch; 0 where the system does not tell."""
    if sys.platform != "linux":
        return 0.0
    try:
        with open("/proc/self/stat", encoding="utf-8", errors="replace") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
        with open("/proc/stat", encoding="utf-8") as file:
            booted = next(int(line.split()[1]) for line in file if line.startswith("btime "))
    except (OSError, ValueError, IndexError, StopIteration):
        return 0.0
    return booted + ticks / os.sysconf("SC_CLK_TCK")
