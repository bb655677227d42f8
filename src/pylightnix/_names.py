"""Which names a function or class refers to, beyond those that it binds itself.

A name is followed by the attributes that are written behind it: ``helpers.scale`` is one reference. What a
definition imports itself is told as such. Names that it also changes (assigns as ``global``, writes
an item or attribute of, calls ``append`` or ``update`` or the like on) are told apart: what they stand for is state.
Names in constant text are read like others: ``getattr(helpers, "scale")``, ``globals()["scale"]``,
``import_module("helpers").scale``, ``eval("scale(2)")``. Must not know what a name stands for.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Optional

from pylightnix._lookups import LOOKUPS, constant_member, constant_source, constant_text
from pylightnix._lookups import path_of as _path
from pylightnix._references import Imported, Names, Passed, Reference
from pylightnix._syntax import without_stage_decorator

if TYPE_CHECKING:
    import ast

    from pylightnix._definitions import FunctionNode
    from pylightnix._syntax import Definition

__all__ = ["CHANGING_METHODS", "names_of", "names_of_statements"]

CHANGING_METHODS: Final = frozenset(
    {
        *("add", "append", "appendleft", "clear", "difference_update", "discard", "extend", "extendleft", "fill", "insert"),
        *("intersection_update", "itemset", "move_to_end", "pop", "popitem", "popleft", "put", "remove", "resize", "reverse"),
        *("rotate", "set", "setdefault", "sort", "subtract", "symmetric_difference_update", "update", "__delitem__", "__setitem__"),
    }
)
"""A method of one of these names is taken to change its object."""
_CHANGING_FUNCTIONS: Final = frozenset(
    {
        *("copyto", "delattr", "delitem", "heapify", "heappop", "heappush", "heappushpop", "heapreplace", "insort", "insort_left"),
        *("insort_right", "place", "putmask", "setattr", "setitem", "shuffle"),
    }
)
"""A function of one of these names is taken to change its first argument."""
_CONSTRUCTORS: Final = frozenset({"__attrs_post_init__", "__init__", "__new__", "__post_init__", "__setstate__"})
_LOADING_METHODS: Final = frozenset({"__class_getitem__", "__init_subclass__", "__prepare__", "__set_name__"})
"""Methods that run while classes are made."""
_CONTAINERS: Final = frozenset({"bytearray", "dict", "list", "set"})


@functools.lru_cache(maxsize=4096)  # as the text of a definition is: nodes of parsed files stay as they are
def names_of(definition: Definition, is_metaclass: bool = False) -> Names:
    """Return what a definition refers to. The defaults of its own parameters, which are values by now, are left out."""
    reader = _Reader(_LOADING_METHODS | {"__new__", "__init__"} if is_metaclass else _LOADING_METHODS)
    reader.read(without_stage_decorator(definition))
    return reader.names()


@functools.lru_cache(maxsize=4096)
def names_of_statements(statements: tuple[ast.AST, ...], name: str) -> Names:
    """Return what statements of a module refer to, beyond the name that they bind or fill."""
    reader = _Reader(_LOADING_METHODS)
    reader.read_statements(statements, name)
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
    at_load: bool = False
    """Whether what stands here runs while the definition is made."""
    parameters: tuple[str, ...] = ()
    is_method: bool = False
    is_constructor: bool = False

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


@dataclass(frozen=True, slots=True)
class _Use:
    """How a name is used in one place; see `Reference`."""

    needed: bool
    line: int
    is_open: bool = True


class _Reader:
    """Reads one definition. An explicit stack, for expressions may be a thousand levels deep."""

    def __init__(self, loading: frozenset[str]) -> None:
        self._loading = loading
        self._outside = _Scope("outside", None, at_load=True)
        # Names that an expression brings, not a statement: globals()["scale"], import_module("helpers").
        self._anywhere = _Scope("outside", None)
        # A decorator of a method that is reached by itself may be a name of its class.
        self._decorators = _Scope("outside", None, at_load=True)
        self._unbound = _Scope("function", self._outside)
        self._root: Optional[_Scope] = None
        self._attributes: list[tuple[_Scope, Optional[tuple[str, ...]], tuple[str, str]]] = []
        self._rebound: list[tuple[_Scope, tuple[str, ...]]] = []
        self._indexed: list[tuple[_Scope, tuple[str, ...]]] = []
        self._aliases: list[tuple[_Scope, str, tuple[str, ...]]] = []
        self._passed: list[tuple[_Scope, tuple[str, ...], int, str, tuple[str, ...]]] = []
        self._finds_subclasses = False
        self._uses: list[tuple[_Scope, tuple[str, ...], _Use]] = []
        self._changes: list[tuple[_Scope, tuple[str, ...]]] = []
        self._assigned: list[tuple[_Scope, str, str, int]] = []
        self._stack: list[tuple[Any, _Scope, bool]] = []

    def read(self, definition: Definition) -> None:
        self._define(definition, self._outside, is_root=True)
        self._drain()

    def read_statements(self, statements: Iterable[ast.AST], name: str) -> None:
        self._outside.bound.add(name)
        self._push(statements, self._outside)
        self._drain()

    def _drain(self) -> None:
        while self._stack:
            node, scope, needed = self._stack.pop()
            self._node(node, scope, needed)
        for scope, name, module, line in self._assigned:
            if name not in scope.imports:  # it is bound to something else, too: what is done with it may be done with either
                self._module(module, (), line)

    def names(self) -> Names:
        found: dict[tuple[tuple[str, ...], Optional[Imported]], Reference] = {}
        # The open ones first, by line: theirs is the line to tell.
        for scope, path, use in sorted(self._uses, key=lambda item: (not item[2].is_open, item[2].line)):
            binder = scope.binder(path[0])
            imported = binder.imports.get(path[0]) if binder is not None else None
            if binder is None or imported is not None or binder.kind == "class":
                is_needed = use.needed and scope is not self._decorators and (binder is None or imported is not None)
                first = found.setdefault((path, imported), Reference(path, imported, is_needed, use.is_open, use.line, runs=False))
                now = replace(first, needed=first.needed or is_needed, runs=first.runs or not scope.at_load)
                found[path, imported] = now if now != first else first
        ordered = sorted(found, key=lambda key: (key[0], key[1] is not None, key[1] or Imported(0, "", "")))
        references = tuple(found[key] for key in ordered)
        later = {place for scope, path in self._changes if not scope.at_load for place in self._meant(scope, path)}
        changed = frozenset(path for path, is_parameter in later if not is_parameter)
        rebound = frozenset(path for scope, path in self._rebound if not scope.at_load and scope.binder(path[0]) is None)
        parameters = frozenset(path[0] for path, is_parameter in later if is_parameter)
        passed = tuple(sorted({found for entry in self._passed for found in self._passed_on(*entry)}))
        indexed = frozenset(path for scope, path in self._indexed if not scope.at_load and scope.binder(path[0]) is None)
        return Names(references, changed, indexed, rebound, parameters, passed, *self._changed_attributes(), self._finds_subclasses)

    def _meant(self, scope: _Scope, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], bool]]:
        """Return the paths outside, and of own parameters, that a path stands for: through local names for the same thing."""
        found: list[tuple[tuple[str, ...], bool]] = []
        stack, seen = [(scope, path)], set()
        while stack:
            scope, path = stack.pop()
            binder = scope.binder(path[0])
            if (id(binder), path[0]) in seen:
                continue
            seen.add((id(binder), path[0]))
            if binder is None:
                found.append((path, False))
            elif binder is self._root and path[0] in binder.parameters:
                found.append((path, True))
            else:
                stack += [(where, real) for where, name, real in self._aliases if name == path[0] and where.home() is binder.home()]
        return found

    def _passed_on(self, scope: _Scope, called: tuple[str, ...], position: int, keyword: str, path: tuple[str, ...]) -> Iterator[Passed]:
        if not scope.at_load and scope.binder(called[0]) is None:
            for real, is_parameter in self._meant(scope, path):
                yield Passed(called, position, keyword, real, is_parameter)

    def _changed_attributes(self) -> tuple[frozenset[tuple[str, str]], frozenset[tuple[str, str]]]:
        every: set[tuple[str, str]] = set()
        own: set[tuple[str, str]] = set()
        for scope, base, attribute in self._attributes:
            binder = scope.binder(base[0]) if base is not None and len(base) == 1 else None
            is_own = base is not None and binder is not None and binder.is_method and binder.parameters[:1] == base
            if scope.at_load or (is_own and binder is not None and binder.is_constructor):
                continue
            (own if is_own else every).add(attribute)
        return frozenset(every), frozenset(own)

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
            inner = _Scope("comprehension", scope, at_load=scope.at_load)
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
            self._call(node, scope)
            if not self._constant_call(node, scope, needed):
                self._push(ast.iter_child_nodes(node), scope, needed)
        elif not needed and isinstance(node, ast.Constant):
            self._push(_quoted(node.value), scope, needed)
        elif isinstance(node, ast.Assign) and self._module_kept(node, scope):
            pass
        elif isinstance(node, ast.Compare) and _path(node.comparators[-1]) is not None and isinstance(node.ops[-1], (ast.In, ast.NotIn)):
            # Whether a name is in a table leads to nothing that the table holds.
            self._use(scope, _path(node.comparators[-1]) or (), _Use(needed, node.lineno, is_open=False))
            self._push([node.left, *node.comparators[:-1]], scope, needed)
        else:
            self._alias(node, scope)
            if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
                self._use(scope, (node.target.id,), _Use(needed, node.lineno))  # what is assigned there is read first
            self._binding(node, scope)
            self._push(ast.iter_child_nodes(node), scope, needed)

    def _place(self, node: ast.Name | ast.Attribute | ast.Subscript, scope: _Scope, needed: bool) -> None:
        """Read a name, an attribute or an item that is used, assigned or deleted."""
        import ast

        if not isinstance(node.ctx, ast.Load):
            self._change(node if isinstance(node, ast.Name) else node.value, scope)
            if isinstance(node, ast.Attribute):
                self._attributes.append((scope, _path(node.value), ("to", node.attr)))
                self._rebound += [(scope, path)] if (path := _path(node)) is not None else []
            elif isinstance(node, ast.Name):
                self._rebound.append((scope, (node.id,)))
        elif isinstance(node, ast.Subscript) and (indexed := _path(node.value)) is not None:
            self._indexed.append((scope, indexed))
        self._finds_subclasses = self._finds_subclasses or (isinstance(node, ast.Attribute) and node.attr == "__subclasses__")
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            scope.bound.add(node.id)
            scope.imports.pop(node.id, None)
        elif not self._chain(node, scope, needed):
            self._push(ast.iter_child_nodes(node), scope, needed)

    def _use(self, scope: _Scope, path: tuple[str, ...], use: _Use) -> None:
        self._uses.append((scope, path, use))

    def _chain(self, node: ast.expr, scope: _Scope, needed: bool) -> bool:
        """Read a name and the attributes behind it, written as such or as constant text; return False if it is none."""
        import ast

        line, attributes = node.lineno, []
        while True:
            owner, text = constant_member(node)
            if owner is None:
                break
            if not isinstance(node, ast.Attribute) and isinstance(node, (ast.Call, ast.Subscript)):
                self._helper(node, scope, line)
            attributes.append(text)
            node = owner
        rest = tuple(reversed(attributes))
        if isinstance(node, ast.Name):
            self._use(scope, (node.id, *rest), _Use(needed, line))
            return True
        text, is_module = constant_source(node)
        if not text:
            return False
        self._helper(node, scope, line)
        if not is_module:
            self._use(self._anywhere, (text, *rest), _Use(needed, line))
            return True
        self._module(text, rest, line)
        return True

    def _module(self, module: str, attributes: tuple[str, ...], line: int) -> None:
        name = f"import {module}"
        self._unbound.bound.add(name)
        self._unbound.imports[name] = Imported(0, module, "")
        # It may be another function of the name `import_module`, too.
        self._use(self._unbound, (name, *attributes), _Use(needed=False, line=line))

    def _module_kept(self, node: ast.Assign, scope: _Scope) -> bool:
        """Read ``m = import_module("helpers")`` as an import statement; return False if it is something else."""
        import ast

        module, is_module = constant_source(node.value)
        target = node.targets[0]
        if not is_module or len(node.targets) > 1 or not isinstance(target, ast.Name) or target.id in scope.bound:
            return False
        scope.bound.add(target.id)
        scope.imports[target.id] = Imported(0, module, "")
        self._assigned.append((scope, target.id, module, node.lineno))
        self._helper(node.value, scope, node.lineno)
        return True

    def _helper(self, node: ast.AST, scope: _Scope, line: int) -> None:
        """Read what does the looking up: `getattr`, `globals`, `importlib.import_module`, which may be a name of the project."""
        import ast

        for called in (node, getattr(node, "value", None)):
            path = _path(called.func) if isinstance(called, ast.Call) else _path(called) if isinstance(called, ast.expr) else None
            if path is not None and path[-1] != "__dict__" and path[-1] in LOOKUPS:
                self._use(scope, path, _Use(needed=True, line=line, is_open=False))

    def _constant_call(self, node: ast.Call, scope: _Scope, needed: bool) -> bool:
        """Read a call whose constant text says what it reaches; return False if it is none."""
        import ast

        if self._chain(node, scope, needed):
            return True
        if isinstance(node.func, ast.Name) and node.func.id == "getattr" and len(node.args) == 3:
            pair = ast.copy_location(ast.Call(node.func, node.args[:2], []), node)
            self._push([node.args[2]], scope, needed)
            return self._chain(pair, scope, needed=False) or self._pushed(node.args[:2], scope, needed)
        text = constant_text(node)
        if not isinstance(node.func, ast.Name) or node.func.id not in ("eval", "exec") or text is None:
            return False
        try:
            tree = ast.increment_lineno(ast.parse(text.strip()), node.lineno - 1)
        except (SyntaxError, ValueError, RecursionError):
            return False
        self._use(scope, (node.func.id,), _Use(needed, node.lineno, is_open=False))
        return self._pushed(tree.body, scope if node.func.id == "eval" else _Scope("function", scope), needed)

    def _pushed(self, nodes: Iterable[Any], scope: _Scope, needed: bool) -> bool:
        self._push(nodes, scope, needed)
        return True

    def _alias(self, node: ast.AST, scope: _Scope) -> None:
        """Read another name for something, or for what is in it: ``p = PARAMS``, ``for p in TABLE.values():``."""
        import ast

        value: ast.AST
        if isinstance(node, ast.Assign):
            targets, value = node.targets, node.value
        elif isinstance(node, (ast.For, ast.AsyncFor)):
            targets, value = [node.target], node.iter
        else:
            return
        while isinstance(value, ast.Subscript) or (isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute)):
            value = value.value if isinstance(value, ast.Subscript) else value.func.value  # type: ignore[attr-defined]
        path = _path(value)
        if path is not None:
            names = [name for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
            self._aliases += [(scope, name.id, path) for name in names]

    def _call(self, node: ast.Call, scope: _Scope) -> None:
        """Read what a call changes: the object of a method, or the first argument of a function."""
        import ast

        if isinstance(node.func, ast.Attribute) and node.func.attr in CHANGING_METHODS:
            self._change(node.func.value, scope)
        called = _path(node.func)
        if called is None:
            return
        given = [
            *((number, "", value) for number, value in enumerate(node.args)),
            *((-1, word.arg or "", word.value) for word in node.keywords),
        ]
        self._passed += [(scope, called, number, keyword, path) for number, keyword, value in given if (path := _path(value)) is not None]
        for word in node.keywords:
            if word.arg == "out":
                self._change(word.value, scope)
        if not node.args:
            return
        if called[-1] in _CHANGING_FUNCTIONS or (called[0] in _CONTAINERS and called[-1] in CHANGING_METHODS):
            self._change(node.args[0], scope)

    def _change(self, node: ast.expr, scope: _Scope) -> None:
        import ast

        while isinstance(node, ast.Subscript):  # writing table['a']['b'] changes the table
            node = node.value
        path = _path(node)
        if path is not None:
            self._changes.append((scope, path))
        if isinstance(node, ast.Attribute):
            self._attributes.append((scope, _path(node.value), ("in", node.attr)))

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
            parts = alias.name.split(".")[1:] if isinstance(node, ast.Import) and not alias.asname else []
            self._use(scope, (name, *parts), _Use(needed=True, line=node.lineno, is_open=False))

    def _define(self, node: Definition, scope: _Scope, is_root: bool) -> None:
        import ast

        if not isinstance(node, ast.Lambda):
            if not is_root:
                scope.bound.add(node.name)
            self._push(node.decorator_list, self._decorators if is_root else scope)
        if isinstance(node, ast.ClassDef):
            inner = _Scope("class", scope, bound={"__module__", "__qualname__"}, at_load=scope.at_load)
            self._push([*node.bases, *node.keywords], scope)
        else:
            every = [*node.args.posonlyargs, *node.args.args, node.args.vararg, *node.args.kwonlyargs, node.args.kwarg]
            arguments = [argument for argument in every if argument is not None]
            inner = self._function_scope(node, scope, tuple(argument.arg for argument in arguments))
            self._push([argument.annotation for argument in arguments], scope, needed=False)
            if not is_root:
                self._push([*node.args.defaults, *node.args.kw_defaults], scope)
        self._root = inner if is_root else self._root
        if isinstance(node, ast.Lambda):
            self._push([node.body], inner)
        else:
            self._push([*getattr(node, "type_params", []), *node.body], inner)
            self._push([getattr(node, "returns", None)], scope, needed=False)

    def _function_scope(self, node: FunctionNode, scope: _Scope, parameters: tuple[str, ...]) -> _Scope:
        name = getattr(node, "name", "")
        at_load = scope.at_load if scope.kind in ("function", "comprehension") else scope.kind == "class" and name in self._loading
        found = _Scope("function", scope, bound={"__class__", *parameters}, at_load=at_load, parameters=parameters)
        found.is_method, found.is_constructor = scope.kind == "class", scope.kind == "class" and name in _CONSTRUCTORS
        return found


_TYPE_PARAMETERS: Final = frozenset({"ParamSpec", "TypeVar", "TypeVarTuple"})


def _quoted(text: Any) -> list[ast.expr]:
    """Return the expression of an annotation that is written as text."""
    import ast

    try:
        return [ast.parse(text, mode="eval").body] if isinstance(text, str) else []
    except (SyntaxError, ValueError, RecursionError):
        return []
