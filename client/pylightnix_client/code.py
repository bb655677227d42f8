"""What code a realizer is, as it is sent to a daemon, and whether that is still the code in its file.

A realizer of an importable module travels by name: workers run what is in its file then. Whoever edits
the file while a program runs would get the new code built where the program has the old, so a file that
was changed is noticed, and the digest sent is one that no code has. Must not know what is built.
"""

from __future__ import annotations

import functools
import hashlib
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Optional

from pylightnix._started import PROGRAM_STARTED
from pylightnix.attempt import realizer_digest, realizer_manifest
from pylightnix.errors import CodeKeyError
from pylightnix.travel.claims import CodeClaim, is_younger, module_files, sent_values
from pylightnix.types import Realizer

__all__ = ["SentCode", "sent_code"]

_NO_CODE: Final = hashlib.sha256(b"changed after it was loaded").hexdigest()


@dataclass(frozen=True, slots=True)
class SentCode:
    """What is sent of the code of a realizer."""

    digest: Optional[str]
    """None if it cannot be told. If a file was changed after it was loaded, that of no code."""
    claim: Optional[CodeClaim]
    """For the worker that it travels to."""


def sent_code(realizer: Realizer, *, travels: bool) -> SentCode:
    """Return what code `realizer` is. It `travels` to a worker, or runs here."""
    stale = ""
    try:
        if travels and _is_stale(realizer):
            code = _code_of(realizer)
            stale = "" if code is None else f"the function {code.co_qualname} differs from {code.co_filename}, which was edited meanwhile"
        digest = None if stale else realizer_digest(realizer)
    except CodeKeyError as error:  # something that it reaches was changed
        digest, stale = None, str(error)
    if not travels:
        return SentCode(digest, None)
    if stale:
        return SentCode(_NO_CODE, CodeClaim("", {}, 0.0, stale, {}))
    manifest = realizer_manifest(realizer) if digest is not None else None
    if manifest is None or manifest.digest != digest:
        return SentCode(digest, None)
    values = sent_values(name for name, entry in manifest.entries.items() if entry.kind == "data")
    return SentCode(digest, CodeClaim(manifest.to_json(), module_files(manifest.entries), PROGRAM_STARTED, "", values))


def _is_stale(realizer: Any) -> bool:
    code = _code_of(realizer)
    if code is None or not is_younger(code.co_filename, PROGRAM_STARTED):
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
