"""Expressions that look a name up by a constant text.

Such as ``getattr(helpers, "scale")``, ``globals()["scale"]``, ``import_module("helpers")``. Reads syntax only; must not
know scopes, nor what a name stands for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Optional, TypeGuard

if TYPE_CHECKING:
    import ast

__all__ = ["LOOKUPS", "constant_member", "constant_source", "constant_text", "path_of"]

LOOKUPS: Final = frozenset({"__import__", "getattr", "globals", "hasattr", "import_module", "modules", "vars"})


def constant_text(call: ast.AST) -> Optional[str]:
    """Return the constant text that is all that a call is given."""
    import ast

    if not isinstance(call, ast.Call) or call.keywords or len(call.args) != 1:
        return None
    value = call.args[0].value if isinstance(call.args[0], ast.Constant) else None
    return value if isinstance(value, str) else None


def constant_member(node: ast.expr) -> tuple[Optional[ast.expr], str]:
    """Return an object and the name of a member of it that an expression reads; None if it reads none, or by a name made at run time."""
    import ast

    if isinstance(node, ast.Attribute):
        return node.value, node.attr
    if (_is_call_of(node, "getattr") or _is_call_of(node, "hasattr")) and len(node.args) == 2:
        key, owner = node.args[1], node.args[0]
    elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute) and node.value.attr == "__dict__":
        key, owner = node.slice, node.value.value
    elif isinstance(node, ast.Subscript) and _is_call_of(node.value, "vars") and len(node.value.args) == 1:
        key, owner = node.slice, node.value.args[0]
    else:
        return None, ""
    return (owner, key.value) if isinstance(key, ast.Constant) and isinstance(key.value, str) else (None, "")


def constant_source(node: ast.AST) -> tuple[str, bool]:
    """Return the name of a module, or of a global, that an expression looks up by a constant text, and which it is; else no name."""
    import ast

    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str):
        if path_of(node.value) == ("sys", "modules"):
            return node.slice.value, True
        if _is_call_of(node.value, "globals"):
            return node.slice.value, False
    text = constant_text(node)
    if isinstance(node, ast.Call) and text and not text.startswith("."):
        path = path_of(node.func) or ("",)
        if path[-2:] in (("import_module",), ("importlib", "import_module")) or (path == ("__import__",) and "." not in text):
            return text, True
    return "", False


def _is_call_of(node: ast.AST, name: str) -> TypeGuard[ast.Call]:
    import ast

    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name


def path_of(node: ast.AST) -> Optional[tuple[str, ...]]:
    """Return a name and the attributes behind it; None if something else stands at the front."""
    import ast

    attributes: list[str] = []
    while isinstance(node, ast.Attribute):
        attributes.append(node.attr)
        node = node.value
    return (node.id, *reversed(attributes)) if isinstance(node, ast.Name) else None
