"""Which names a function or class refers to, beyond those that it binds itself.

A name is followed by the attributes that are written behind it: ``helpers.scale`` is one reference. What a
definition imports itself is told as such. Names that it also changes (assigns as ``global``, writes
an item or attribute of, calls ``append`` or ``update`` or the like on) are told apart: what they stand for is state.
Must not know what a name stands for.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Optional

from pylightnix._syntax import without_stage_decorator

if TYPE_CHECKING:
    import ast

    from pylightnix._syntax import Definition

__all__ = ["Imported", "Names", "Reference", "names_of"]

_CHANGING_METHODS: Final = frozenset(
    {
        *("add", "append", "appendleft", "clear", "difference_update", "discard", "extend", "extendleft", "insert"),
        *("intersection_update", "pop", "popitem", "popleft", "remove", "reverse", "setdefault", "sort"),
        *("symmetric_difference_update", "update"),
    }
)


@dataclass(frozen=True, slots=True, order=True)
class Imported:
    """An import statement inside a definition."""

    level: int
    """How many dots stand before the module's name."""
    module: str
    name: str
    """What is imported from the module; empty for the module itself."""


@dataclass(frozen=True, slots=True)
class Reference:
    """One use of a name."""

    path: tuple[str, ...]
    """The name, then the attributes behind it."""
    imported: Optional[Imported] = None
    needed: bool = True
    """False if it may well stand for nothing: in annotations, and in class bodies that bind it too."""

    @property
    def text(self) -> str:
        return ".".join(self.path)


@dataclass(frozen=True, slots=True)
class Names:
    """The references of a definition."""

    references: tuple[Reference, ...]
    """Sorted, without doubles."""
    changed: frozenset[tuple[str, ...]]
    """Paths of what the definition changes."""


@functools.lru_cache(maxsize=4096)  # as the text of a definition is: nodes of parsed files stay as they are
def names_of(definition: Definition) -> Names:
    """Return what a definition refers to. The defaults of its own parameters, which are values by now, are left out."""
    reader = _Reader()
    reader.read(without_stage_decorator(definition))
    return reader.names()


@dataclass(slots=True, eq=False)
class _Scope:
    """Where names are bound: a function, a class or a comprehension; the outermost one binds nothing."""

    kind: str
    parent: Optional[_Scope]
    bound: set[str] = field(default_factory=set)
    imports: dict[str, Imported] = field(default_factory=dict)
    outer: set[str] = field(default_factory=set)
    """Declared ``global``."""
    passed: set[str] = field(default_factory=set)
    """Declared ``nonlocal``."""

    def home(self) -> _Scope:
        """Return where ``:=`` binds: comprehensions are passed by."""
        scope = self
        while scope.kind == "comprehension" and scope.parent is not None:
            scope = scope.parent
        return scope

    def binder(self, name: str) -> Optional[_Scope]:
        """Return the scope in which a name used here is bound, None if that is outside."""
        scope: Optional[_Scope] = self
        while scope is not None:
            if name in scope.outer:
                return None
            # Names of a class body are not seen from the functions in it.
            if name in scope.bound and name not in scope.passed and (scope.kind != "class" or scope is self):
                return scope
            scope = scope.parent
        return None


class _Reader:
    """Reads one definition. An explicit stack, for expressions may be a thousand levels deep."""

    def __init__(self) -> None:
        self._outside = _Scope("outside", None)
        self._uses: list[tuple[_Scope, tuple[str, ...], bool]] = []
        self._changes: list[tuple[_Scope, tuple[str, ...]]] = []
        self._stack: list[tuple[Any, _Scope, bool]] = []

    def read(self, definition: Definition) -> None:
        self._define(definition, self._outside, is_root=True)
        while self._stack:
            node, scope, needed = self._stack.pop()
            self._node(node, scope, needed)

    def names(self) -> Names:
        needed: dict[tuple[tuple[str, ...], Optional[Imported]], bool] = {}
        for scope, path, is_needed in self._uses:
            binder = scope.binder(path[0])
            imported = binder.imports.get(path[0]) if binder is not None else None
            if binder is None or imported is not None or binder.kind == "class":
                key = (path, imported)
                needed[key] = needed.get(key, False) or (is_needed and (binder is None or imported is not None))
        changed = frozenset(path for scope, path in self._changes if scope.binder(path[0]) is None)
        ordered = sorted(needed, key=lambda key: (key[0], key[1] is not None, key[1] or Imported(0, "", "")))
        return Names(tuple(Reference(path, imported, needed[path, imported]) for path, imported in ordered), changed)

    # --- nodes ----------------------------------------------------------------------------------------

    def _push(self, nodes: Iterable[Any], scope: _Scope, needed: bool = True) -> None:
        self._stack.extend((node, scope, needed) for node in nodes if node is not None)

    def _node(self, node: ast.AST, scope: _Scope, needed: bool) -> None:
        import ast

        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
            self._define(node, scope, is_root=False)
        elif isinstance(node, (ast.Name, ast.Attribute, ast.Subscript)):
            self._place(node, scope, needed)
        elif isinstance(node, (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
            inner = _Scope("comprehension", scope)
            self._push([node.generators[0].iter], scope)
            self._push([child for child in ast.iter_child_nodes(node) if child is not node.generators[0]], inner)
            self._push([node.generators[0].target, *node.generators[0].ifs], inner)
        elif isinstance(node, ast.NamedExpr):
            scope.home().bound.add(node.target.id)
            self._push([node.value], scope)
        elif isinstance(node, ast.AnnAssign):
            self._push([node.target, node.value], scope)
            self._push([node.annotation], scope, needed=False)
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute) and node.func.attr in _CHANGING_METHODS:
                self._change(node.func.value, scope)
            self._push(ast.iter_child_nodes(node), scope, needed)
        else:
            if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
                self._uses.append((scope, (node.target.id,), needed))  # what is assigned there is read first
            self._binding(node, scope)
            self._push(ast.iter_child_nodes(node), scope, needed)

    def _place(self, node: ast.Name | ast.Attribute | ast.Subscript, scope: _Scope, needed: bool) -> None:
        """Read a name, an attribute or an item that is used, assigned or deleted."""
        import ast

        if not isinstance(node.ctx, ast.Load):
            self._change(node if isinstance(node, ast.Name) else node.value, scope)
        path = _path(node)
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            scope.bound.add(node.id)
            scope.imports.pop(node.id, None)
        elif path is not None:
            self._uses.append((scope, path, needed))
        else:
            self._push(ast.iter_child_nodes(node), scope, needed)

    def _change(self, node: ast.expr, scope: _Scope) -> None:
        import ast

        while isinstance(node, ast.Subscript):  # writing table['a']['b'] changes the table
            node = node.value
        path = _path(node)
        if path is not None:
            self._changes.append((scope, path))

    def _binding(self, node: ast.AST, scope: _Scope) -> None:
        import ast

        if isinstance(node, ast.Global):
            scope.outer.update(node.names)
        elif isinstance(node, ast.Nonlocal):
            scope.passed.update(node.names)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            self._import(node, scope)
        elif isinstance(node, ast.MatchMapping):
            scope.bound.update([node.rest] if node.rest else [])
        elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) or type(node).__name__ in _TYPE_PARAMETERS:
            name = getattr(node, "name", None)
            scope.bound.update([name] if isinstance(name, str) else [])

    def _import(self, node: ast.Import | ast.ImportFrom, scope: _Scope) -> None:
        import ast

        for alias in node.names:
            if isinstance(node, ast.ImportFrom):
                name, imported = alias.asname or alias.name, Imported(node.level, node.module or "", alias.name)
            elif alias.asname:
                name, imported = alias.asname, Imported(0, alias.name, "")
            else:
                name, imported = alias.name.partition(".")[0], Imported(0, alias.name.partition(".")[0], "")
            if name not in scope.bound:
                scope.imports[name] = imported
            scope.bound.add(name)
            # It counts even if the name is never used: it may be imported for what that does.
            parts = alias.name.split(".")
            self._uses.append((scope, (name, *(parts[1:] if isinstance(node, ast.Import) and not alias.asname else [])), True))

    def _define(self, node: Definition, scope: _Scope, is_root: bool) -> None:
        import ast

        if not isinstance(node, ast.Lambda):
            if not is_root:
                scope.bound.add(node.name)
            self._push(node.decorator_list, scope)
        if isinstance(node, ast.ClassDef):
            inner = _Scope("class", scope, bound={"__module__", "__qualname__"})
            self._push([*node.bases, *node.keywords], scope)
        else:
            every = [*node.args.posonlyargs, *node.args.args, node.args.vararg, *node.args.kwonlyargs, node.args.kwarg]
            arguments = [argument for argument in every if argument is not None]
            inner = _Scope("function", scope, bound={"__class__", *(argument.arg for argument in arguments)})
            self._push([argument.annotation for argument in arguments], scope, needed=False)
            if not is_root:
                self._push([*node.args.defaults, *node.args.kw_defaults], scope)
        if isinstance(node, ast.Lambda):
            self._push([node.body], inner)
        else:
            self._push([*getattr(node, "type_params", []), *node.body], inner)
            self._push([getattr(node, "returns", None)], scope, needed=False)


_TYPE_PARAMETERS: Final = frozenset({"ParamSpec", "TypeVar", "TypeVarTuple"})


def _path(node: ast.AST) -> Optional[tuple[str, ...]]:
    """Return a name and the attributes behind it; None if something else stands at the front."""
    import ast

    attributes: list[str] = []
    while isinstance(node, ast.Attribute):
        attributes.append(node.attr)
        node = node.value
    return (node.id, *reversed(attributes)) if isinstance(node, ast.Name) else None
