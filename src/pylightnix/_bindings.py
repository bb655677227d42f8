"""Which statements of a module bind a name, and fill what it stands for.

What code changes while it runs does not count by its value, which depends on what ran before, but by these statements.
Must not know what the statements are for.
"""

from __future__ import annotations

import linecache
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Optional

from pylightnix._definitions import module_body
from pylightnix._names import CHANGING_METHODS, names_of

if TYPE_CHECKING:
    import ast

__all__ = ["Binding", "binding_of"]

_HOPS_MAX: Final = 20

Binding = tuple[dict[str, Any], str, str, "tuple[ast.AST, ...]"]
"""The namespace of a module, its file, the name there, and the statements, in their order."""


def binding_of(namespace: dict[str, Any], name: str) -> Optional[Binding]:
    """Return what binds a name in the module that it is imported from at last; None if that is not to be found."""
    for _ in range(_HOPS_MAX):
        filename, statements = _statements(namespace, name)
        if not statements:
            return None
        source = _imported_from(namespace, name, statements)
        if source is None:
            return namespace, filename, name, statements
        namespace, name = source
    return None


def _statements(namespace: dict[str, Any], name: str) -> tuple[str, tuple[ast.AST, ...]]:
    """Return the file that binds a name, and its statements; of a notebook's cells, the last one that does."""
    for filename in _files(namespace):
        index = _index(filename)
        if name in index:
            return filename, index[name]
        for star in index.get("*", ()):
            if name in getattr(_module(namespace, star), "__dict__", {}):
                return filename, (star,)
    return "", ()


def _files(namespace: dict[str, Any]) -> Sequence[str]:
    file = namespace.get("__file__")
    if isinstance(file, str):
        return [file]
    own = {value.__code__.co_filename for value in list(namespace.values()) if isinstance(value, types.FunctionType)}
    cells = [name for name in linecache.cache if name.startswith("<")] if namespace.get("__name__") == "__main__" else []
    return list(dict.fromkeys([*reversed(cells), *sorted(own)]))


def _imported_from(namespace: dict[str, Any], name: str, statements: Sequence[ast.AST]) -> Optional[tuple[dict[str, Any], str]]:
    import ast

    for statement in statements:
        if isinstance(statement, ast.ImportFrom):
            names = {alias.asname or alias.name: alias.name for alias in statement.names}
            source = _module(namespace, statement)
            if source is not None and ("*" in names or name in names):
                return vars(source), names.get(name, name)
    return None


def _module(namespace: dict[str, Any], statement: Any) -> Optional[types.ModuleType]:
    package = str(namespace.get("__package__") or "").split(".")
    parts = package[: len(package) - statement.level + 1] if statement.level else []
    return sys.modules.get(".".join([*parts, *([statement.module] if statement.module else [])]))


# --- the statements of a file -----------------------------------------------------------------------------


def _index(filename: str) -> Mapping[str, tuple[ast.AST, ...]]:
    body = module_body(filename)
    known = _indexes.get(filename)
    if known is None or known[0] is not body:
        if len(_indexes) > _INDEXES_KEPT:
            _indexes.clear()
        known = _indexes[filename] = (body, _indexed(body))
    return known[1]


_INDEXES_KEPT: Final = 64
_indexes: dict[str, tuple[Sequence[ast.stmt], Mapping[str, tuple[ast.AST, ...]]]] = {}


def _indexed(body: Sequence[ast.stmt]) -> dict[str, tuple[ast.AST, ...]]:
    import ast

    changes: dict[str, set[str]] = {}
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            changes[node.name] = {path[0] for path in names_of(node).changed if len(path) == 1}
    found: dict[str, dict[int, ast.AST]] = {}
    for statement, heads in _simple(body, ()):
        for name in _concerned(statement, changes):
            found.setdefault(name, {}).update({id(node): node for node in (*heads, statement)})
    return {name: tuple(nodes.values()) for name, nodes in found.items()}


def _simple(body: Sequence[ast.stmt], heads: tuple[ast.AST, ...]) -> Iterator[tuple[ast.AST, tuple[ast.AST, ...]]]:
    """Yield the simple statements of a module, each with the heads of the blocks that it stands in; decorators as calls."""
    import ast

    for statement in body:
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            for decorator in statement.decorator_list:
                call = ast.Expr(ast.Call(decorator, [ast.Constant(statement.name)], []))
                yield ast.fix_missing_locations(ast.copy_location(call, decorator)), heads
            continue
        blocks = [value for _, value in ast.iter_fields(statement) if _is_block(value)]
        if not blocks:
            yield statement, heads
            continue
        own = tuple(node for node in ast.iter_child_nodes(statement) if not any(node in block for block in blocks))
        for head in own:
            yield head, heads
        for block in blocks:
            for part in block:
                inner = part.body if isinstance(part, (ast.ExceptHandler, ast.match_case)) else [part]
                yield from _simple(inner, (*heads, *own))


def _is_block(value: Any) -> bool:
    import ast

    return isinstance(value, list) and bool(value) and isinstance(value[0], (ast.stmt, ast.ExceptHandler, ast.match_case))


def _concerned(statement: ast.AST, changes: Mapping[str, set[str]]) -> set[str]:
    """Return the names that a statement binds, or whose values it may change."""
    import ast

    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        return {alias.asname or alias.name.partition(".")[0] for alias in statement.names}
    found: set[str] = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and (isinstance(statement, ast.Expr) or not isinstance(node.ctx, ast.Load)):
            found.add(node.id)
        elif isinstance(node, (ast.Attribute, ast.Subscript)) and not isinstance(node.ctx, ast.Load):
            found |= _base(node)
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute) and node.func.attr in CHANGING_METHODS:
                found |= _base(node.func)
            found |= changes.get(node.func.id, set()) if isinstance(node.func, ast.Name) else set()
    return found


def _base(node: ast.AST) -> set[str]:
    import ast

    while isinstance(node, (ast.Attribute, ast.Subscript)):
        node = node.value
    return {node.id} if isinstance(node, ast.Name) else set()
