"""What people see a derivation called: its name, or for a stage that has none the function that it was made of.

The function's name is no part of the config, so it is known only in the process that called the stage.
"""

from __future__ import annotations

from typing import Any, Final

from pylightnix.refs import undref
from pylightnix.types import DRef

__all__ = ["called", "remember_function"]

_functions: Final[dict[str, str]] = {}


def remember_function(dref: DRef, f: Any) -> None:
    """Remember of which function an unnamed derivation was made."""
    name = getattr(f, "__qualname__", "").rpartition("<locals>.")[2]
    if name.isidentifier():
        _functions[dref] = name


def called(dref: str) -> str:
    """Return what to call a derivation."""
    return _functions.get(dref) or str(undref(DRef(dref))[1])
