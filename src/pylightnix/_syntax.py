"""The normalised syntax tree of a function or class, as text that stays the same from Python 3.10 to 3.13.

Must not know where trees come from, nor what the text is for.

Rules:

- Fields sorted by name; positions, expression contexts, string prefixes, type comments, absent and
  empty fields and docstrings left out; constants as type and ASCII representation.
- Adjacent literal parts of an f-string are one part: Python 3.12 cuts them otherwise than 3.11.
- The decorator that made the function a stage is left out: what it says stands in the config.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final, Union

if TYPE_CHECKING:
    import ast
    from typing import TypeAlias

    Definition: TypeAlias = Union[ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef]

__all__ = ["canonical_text", "without_stage_decorator"]

_IGNORED_FIELDS: Final = frozenset({"ctx", "kind", "type_comment", "type_ignores"})
_STAGE_DECORATORS: Final = frozenset({"autodrv", "autodrv_", "autostage", "autostage_"})


@functools.lru_cache(maxsize=4096)  # a realizer is asked about at each of its builds; nodes of parsed files stay as they are
def canonical_text(definition: Definition) -> bytes:
    """Return the normalised tree of a definition as ASCII text without NUL."""
    import ast

    parts: list[bytes] = []
    # An explicit stack rather than recursion: a sum of a thousand terms is a thousand levels deep.
    stack: list[Any] = [without_stage_decorator(definition)]
    while stack:
        item = stack.pop()
        if isinstance(item, bytes):
            parts.append(item)
        elif isinstance(item, ast.AST):
            stack.extend(reversed(_node_pieces(item)))
        elif isinstance(item, list):
            stack.append(b"]")
            for element in reversed(item):
                stack += (b",", element)
            stack.append(b"[")
        else:  # names, flags, and the None of a list whose elements may be absent
            parts.append(ascii(item).encode("ascii"))
    return b"".join(parts)


def _node_pieces(node: ast.AST) -> list[Any]:
    import ast

    if isinstance(node, ast.Constant):
        return [_constant_text(node.value)]
    pieces: list[Any] = [f"{type(node).__name__}(".encode("ascii")]
    for field in sorted(set(node._fields) - _IGNORED_FIELDS):
        value = getattr(node, field, None)
        if field == "body" and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            value = _without_docstring(node.body)
        elif isinstance(node, ast.JoinedStr):
            value = _merged(node.values)
        if value is not None and value != []:
            pieces += (f"{field}=".encode("ascii"), value, b";")
    return [*pieces, b")"]


def _constant_text(value: object) -> bytes:
    # Hexadecimal, for Python refuses to write very long integers in decimal.
    shown = f"{value:x}" if type(value) is int else ascii(value)
    return f"{type(value).__name__}:{shown}".encode("ascii")


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    import ast

    first = body[0] if body else None
    has_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    return body[1:] if has_docstring else body


def _merged(values: list[ast.expr]) -> list[ast.expr]:
    """Return the parts of an f-string with nested f-strings flattened, adjacent literals joined, empty ones gone."""
    import ast

    flat: list[ast.expr] = []
    stack = list(reversed(values))
    while stack:
        part = stack.pop()
        if isinstance(part, ast.JoinedStr):
            stack.extend(reversed(part.values))
        elif not isinstance(part, ast.Constant):
            flat.append(part)
        elif part.value != "":
            last = flat[-1] if flat else None
            if isinstance(last, ast.Constant):
                flat[-1] = ast.Constant(f"{last.value!s}{part.value!s}")
            else:
                flat.append(part)
    return flat


def without_stage_decorator(definition: Definition) -> Definition:
    """Return a definition less the decorator that makes it a stage; itself if it has none."""
    import ast
    import copy

    if not isinstance(definition, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return definition
    kept = [decorator for decorator in definition.decorator_list if _decorator_name(decorator) not in _STAGE_DECORATORS]
    if len(kept) == len(definition.decorator_list):
        return definition
    bare = copy.copy(definition)
    bare.decorator_list = kept
    return bare


def _decorator_name(decorator: ast.expr) -> str:
    """Return the last name of a decorator: `autostage` for ``@pylightnix.autostage(nouts=2)``."""
    import ast

    named = decorator.func if isinstance(decorator, ast.Call) else decorator
    if isinstance(named, ast.Attribute):
        return named.attr
    return named.id if isinstance(named, ast.Name) else ""
