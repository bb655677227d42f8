"""Lines of users' files, and which functions of Python find code by a name made at run time.

Must not know how code is followed.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["Line", "finder_name", "finder_of_module"]

_FINDERS: Final = frozenset(
    {
        *("builtins.__import__", "builtins.eval", "builtins.exec", "builtins.globals", "importlib.__import__", "importlib.import_module"),
        *("importlib.machinery.SourceFileLoader", "importlib.util.module_from_spec", "importlib.util.spec_from_file_location"),
        *("importlib._bootstrap.__import__", "importlib._bootstrap.module_from_spec"),
        *("importlib._bootstrap_external.SourceFileLoader", "importlib._bootstrap_external.spec_from_file_location"),
        *("pkgutil.resolve_name", "pydoc.locate", "runpy.run_module", "runpy.run_path", "sys.modules"),
    }
)
_FOUND_IN: Final = frozenset(name.partition(".")[0] for name in _FINDERS)


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a file."""

    filename: str
    number: int


def finder_name(value: Any, attributes: Sequence[str] = ()) -> str:
    """Return the name of the function of Python that finds code by name and that a value, or an attribute of a module, is.

    Args:
        value: what a name stands for. Builtin functions are asked about as values.
        attributes: those written behind the name; they may begin with some that led to `value`.

    Returns:
        Such as ``eval`` or ``importlib.import_module``; empty for all else.
    """
    if value is sys.modules:
        return "sys.modules"
    if "__globals__" in attributes:
        return "__globals__"
    if issubclass(type(value), types.ModuleType):
        return finder_of_module(value.__name__, attributes)
    if issubclass(type(value), (types.FunctionType, types.BuiltinFunctionType, type)):
        return _known(f"{value.__module__}.{value.__qualname__}")
    return ""


def finder_of_module(module: str, attributes: Sequence[str]) -> str:
    """Return the same of attributes of a module, which need not be loaded."""
    if module.partition(".")[0] not in _FOUND_IN:
        return ""
    names = (".".join([module, *attributes[begin:end]]) for begin in range(len(attributes)) for end in range(len(attributes) + 1))
    return next(filter(None, map(_known, names)), "")


def _known(name: str) -> str:
    return name.removeprefix("builtins.") if name in _FINDERS else ""
