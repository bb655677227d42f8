"""What live objects say about themselves that a walk over code asks: whose they are, and what functions and classes hold.

Must not know graphs.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Optional, TypeGuard

from pylightnix._codeimports import MISSING
from pylightnix._definitions import enclosing_definitions, function_definitions, the_definition
from pylightnix._names import names_of
from pylightnix._origins import is_project_class, is_project_file
from pylightnix._references import Passed
from pylightnix._wrappers import wrapped_of
from pylightnix.errors import CodeKeyError

if TYPE_CHECKING:
    import ast

    from pylightnix._syntax import Definition

__all__ = [
    "attribute_change",
    "cell_content",
    "cell_made",
    "changes_argument",
    "changes_parameter",
    "given_defaults",
    "is_atom",
    "is_module",
    "is_project_code",
    "made_value",
    "subclasses",
]

_ATOMS: Final = (str, int, float, complex, bytes, type(None))


def is_module(value: Any) -> TypeGuard[types.ModuleType]:
    return issubclass(type(value), types.ModuleType)  # not isinstance: a proxy may raise when it is asked what it is


def is_atom(value: Any) -> bool:
    return issubclass(type(value), _ATOMS)


def subclasses(cls: type) -> list[type]:
    found: list[type] = []
    stack = [cls]
    while stack:
        known: list[type] = type.__subclasses__(stack.pop())
        for below in known:
            if is_project_class(below) and below not in found:
                found.append(below)
                stack.append(below)
    return found


def _made_fields(cls: type) -> list[Any]:
    """Return what `make_dataclass` was told of the fields of a class."""
    fields: Any = vars(cls).get("__dataclass_fields__")
    found = []
    for field in fields.values() if isinstance(fields, dict) else ():
        parts = (field.name, field.type, field.default, field.default_factory, field.init, field.kw_only)
        found.append([None if type(part).__name__ == "_MISSING_TYPE" else part for part in parts])
    return found


def made_value(cls: type) -> list[Any]:
    """Return what a class without a definition was made from, beside its bases and attributes."""
    names = ("_fields", "_field_defaults", "__annotations__", "__total__", "__required_keys__", "__match_args__", "__slots__")
    held = {name: vars(cls)[name] for name in names if not isinstance(vars(cls).get(name), (types.GetSetDescriptorType, type(None)))}
    plain = {name: sorted(item) if isinstance(item, frozenset) else item for name, item in held.items()}
    return [_made_fields(cls), cls.__name__, plain]


def attribute_change(attributes: frozenset[Any], cls: type, name: str) -> str:
    """Return how code changes an attribute of instances of a class: ``to`` something else, ``in`` it, or not at all.

    Args:
        attributes: what code changes: the class, by identity, 0 of any; how; the name.
    """
    owners = (0, *map(id, cls.__mro__))
    return next((how for how in ("to", "in") if any((owner, how, name) in attributes for owner in owners)), "")


def looked_up(namespace: dict[str, Any], path: Sequence[str]) -> Any:
    found: Any = namespace.get(path[0], MISSING)
    for attribute in path[1:]:
        found = vars(found).get(attribute, MISSING) if is_module(found) else MISSING
    return found


def is_project_code(pyobj: Any) -> bool:
    if isinstance(pyobj, type):
        return is_project_class(pyobj)
    if isinstance(pyobj, types.FunctionType):
        return is_project_file(pyobj.__code__.co_filename) or wrapped_of(pyobj) is not None
    return wrapped_of(pyobj) is not None or isinstance(pyobj, (staticmethod, classmethod, property))


def cell_content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return MISSING


def cell_made(filename: str, definition: Optional[Definition], name: str) -> Optional[tuple[ast.AST, ...]]:
    """Return how the function around a definition makes what a closure cell holds; None if that is given to it."""
    import ast

    if definition is None:
        return None
    for outer in enclosing_definitions(filename, definition):
        arguments = [*outer.args.posonlyargs, *outer.args.args, outer.args.vararg, *outer.args.kwonlyargs, outer.args.kwarg]
        if any(argument is not None and argument.arg == name for argument in arguments):
            return None
        body = outer.body if isinstance(outer.body, list) else []
        found = [
            statement
            for statement in body
            if any(isinstance(node, ast.Name) and node.id == name and not isinstance(node.ctx, ast.Load) for node in ast.walk(statement))
        ]
        if found:
            return tuple(found)
    return None


def given_defaults(function: types.FunctionType, definition: Definition) -> dict[str, tuple[Any, Optional[ast.expr]]]:
    """Return the defaults of a function's parameters by name, with what is written, but for the constants that stand in its text."""
    import ast

    if isinstance(definition, ast.ClassDef):
        return {}
    arguments = definition.args
    every = [*arguments.posonlyargs, *arguments.args]
    positional, named = function.__defaults__ or (), function.__kwdefaults__ or {}
    written: list[Optional[ast.expr]] = [*arguments.defaults] if len(arguments.defaults) == len(positional) else [None] * len(positional)
    names = [argument.arg for argument in every[len(every) - len(positional) :]]
    keywords = {argument.arg: default for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)}
    found = {name: (item, expression) for name, item, expression in zip(names, positional, written, strict=False)}
    found |= {name: (item, keywords.get(name)) for name, item in sorted(named.items())}
    return {name: given for name, given in found.items() if not isinstance(given[1], ast.Constant)}


# --- what functions change ----


def changes_argument(called: Any, passed: Passed, seen: frozenset[Any] = frozenset()) -> bool:
    """Tell whether a function changes what it is passed."""
    if type(called) is not types.FunctionType or not is_project_file(called.__code__.co_filename):
        return False
    code = called.__code__
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    name = passed.keyword if passed.position < 0 else names[passed.position] if passed.position < code.co_argcount else ""
    return changes_parameter(called, name, seen)


def changes_parameter(function: types.FunctionType, name: str, seen: frozenset[Any] = frozenset()) -> bool:
    """Tell whether a function changes what one of its parameters is, itself or by a function that it passes it to."""
    if (function, name) in seen:
        return False
    try:
        names = names_of(the_definition(function, function_definitions(function))[0])
    except CodeKeyError:
        return False
    if name in names.changed_parameters:
        return True
    inner = [passed for passed in names.passed if passed.is_parameter and passed.path[0] == name]
    seen |= {(function, name)}
    return any(changes_argument(looked_up(function.__globals__, passed.called), passed, seen) for passed in inner)
