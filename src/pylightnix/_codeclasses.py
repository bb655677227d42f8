"""What a class holds beside its definition: attributes as they are, which may have been filled while modules loaded.

Must not know graphs.
"""

from __future__ import annotations

import enum
import functools
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Optional

from pylightnix._origins import is_project_class, is_project_file, package_of
from pylightnix._wrappers import is_code

if TYPE_CHECKING:
    import ast

__all__ = ["ClassValue", "class_values"]

_DESCRIPTORS: Final = (types.MemberDescriptorType, types.GetSetDescriptorType, types.WrapperDescriptorType, types.MethodDescriptorType)
_MACHINERY: Final = frozenset({"_abc_data", "_tuplegetter"})
_QUIET_PACKAGES: Final = frozenset({"abc", "builtins", "collections", "enum", "typing"})


@dataclass(frozen=True, slots=True)
class ClassValue:
    """One attribute of a class."""

    name: str
    value: Any
    is_quiet: bool
    """Whether it may be of another package's making."""
    is_written: bool = False
    """Whether the body of the class binds it."""


def class_values(cls: type, definition: Optional[ast.ClassDef]) -> Iterator[ClassValue]:
    """Yield the attributes of a class that its definition does not tell all about."""
    if issubclass(type(cls), enum.EnumMeta):
        yield ClassValue("members", {name: member._value_ for name, member in cls.__members__.items()}, is_quiet=False)  # type: ignore[attr-defined]
        return
    bound, defined = _bound(definition) if definition is not None else (set(), set())
    is_foreign = any(not is_project_class(base) and package_of(base.__module__) not in _QUIET_PACKAGES for base in cls.__mro__)
    is_foreign = is_foreign or (not is_project_class(type(cls)) and package_of(type(cls).__module__) not in _QUIET_PACKAGES)
    for name, value in list(vars(cls).items()):
        if (name.startswith("__") and name.endswith("__")) or isinstance(value, _DESCRIPTORS) or type(value).__name__ in _MACHINERY:
            continue
        function = function_in(value)
        if function is not None:
            if _is_shown(cls, function, has_source=definition is not None) or not is_project_file(function.__code__.co_filename):
                continue
            yield ClassValue(name, function, is_quiet=False)
        elif name in bound:
            yield ClassValue(name, value, is_quiet=name in defined and not is_code(value), is_written=True)
        elif not (is_foreign and (name.startswith("_") or not _is_ours(value))):
            yield ClassValue(name, value, is_quiet=True)


def function_in(value: Any) -> Optional[types.FunctionType]:
    """Return the function of a method, whatever kind of method it is."""
    if isinstance(value, property):
        value = value.fget or value.fset or value.fdel
    elif isinstance(value, functools.cached_property):
        value = value.func
    elif isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    return value if isinstance(value, types.FunctionType) else None


def _is_shown(cls: type, function: types.FunctionType, has_source: bool) -> bool:
    """Tell whether a function stands in the text of a class."""
    return has_source and function.__code__.co_qualname.startswith(f"{cls.__qualname__}.")


def _is_ours(value: Any) -> bool:
    if isinstance(value, type):
        return is_project_class(value)
    return type(value) in (str, int, float, bool, list, tuple, dict, set, frozenset) or is_project_class(type(value))


def _bound(definition: ast.ClassDef) -> tuple[set[str], set[str]]:
    """Return the names that the body of a class binds, and those of them that it defines."""
    import ast

    defined = {node.name for node in definition.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))}
    targets: list[ast.expr] = []
    for statement in definition.body:
        if isinstance(statement, (ast.Assign, ast.AnnAssign)):
            targets += statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    return defined | {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}, defined
