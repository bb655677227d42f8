"""What code reaches: a graph of functions, classes and data, from live objects.

Followed is what a definition names, in the project's own files: functions, classes with their bases, values
of modules and closures, defaults of parameters, what is imported inside functions. Installed packages and the
standard library are leaves, known by name. What can be named but not seen becomes a sentence in `unseen`.
Longer than most files: every step of following a name also notes what must stay as it is for the outcome to
hold, and the two must change together. Must not know digests.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import importlib.util
import operator
import os
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Optional, TypeGuard

from pylightnix._codevalues import DataText, is_code, shown_value, snapshot, type_text, wrapped_of
from pylightnix._definitions import class_definitions, class_file, file_stamp, function_definitions, name_of
from pylightnix._names import Reference, names_of
from pylightnix._origins import is_project_file, is_project_module, package_of
from pylightnix._syntax import canonical_text
from pylightnix._unseen import Place, Unseen, finder_name
from pylightnix.errors import CodeKeyError, kind_of

if TYPE_CHECKING:
    from pylightnix._syntax import Definition

__all__ = ["CodeWalk", "Node"]

_MISSING: Final = object()
_TEXTS_KEPT: Final = 8192


@dataclass(slots=True, eq=False)
class Node:
    """A function, a class, a value, or a leaf."""

    kind: str
    """``function``, ``class``, ``data``, ``state`` (data that the code itself changes), ``wrapper`` or ``external``."""
    name: str
    """For people: module and qualified name."""
    text: bytes = b""
    shown: str = ""
    """A short rendering of data."""
    edges: list[tuple[str, Node]] = field(default_factory=list)
    place: Optional[Place] = None
    """Where it was reached first."""


@dataclass(frozen=True, slots=True)
class _Value:
    """Data that a name stands for, waiting until it is known whether code changes it."""

    node: Node
    value: Any
    folder: str


class CodeWalk:
    """One walk, from any number of roots, and what must stay as it is for its outcome to hold."""

    def __init__(self, follow: bool) -> None:
        self.nodes: list[Node] = []
        self.unseen = Unseen()
        self._follow = follow
        self._known: dict[Any, Optional[Node]] = {}
        self._at: Optional[Place] = None
        self._kept: list[Any] = []  # so that no id is given anew
        self._todo: list[tuple[Any, Node, Definition]] = []
        self._values: dict[Any, _Value] = {}
        self._given: dict[Any, _Value] = {}
        self._changed: set[Any] = set()
        self._files: dict[str, object] = {}
        self._bindings: list[tuple[dict[str, Any], str, Any]] = []
        self._cells: list[tuple[types.CellType, Any]] = []
        self._functions: list[tuple[types.FunctionType, types.CodeType, Any, Any]] = []
        self._watched: list[tuple[_Value, bytes | tuple[bytes, list[Any]]]] = []

    # --- roots ----------------------------------------------------------------------------------------

    def root(self, pyobj: Any) -> Node:
        """Return the node of what is asked about, which counts wherever it comes from.

        Raises:
            CodeKeyError: its source cannot be found, or it has none.
        """
        node = self._root(pyobj)
        self._finish()
        return node

    def _root(self, pyobj: Any) -> Node:
        whole, seen = pyobj, set()
        while id(pyobj) not in seen:
            seen.add(id(pyobj))
            if isinstance(pyobj, (type, types.FunctionType)):
                if isinstance(pyobj, type) or not self._is_looked_through(pyobj):
                    return self._defined(pyobj)
                pyobj = wrapped_of(pyobj)
                continue
            if isinstance(pyobj, (functools.partial, types.MethodType)):
                return self._call(pyobj, root=True)
            if isinstance(pyobj, (types.BuiltinFunctionType, types.MethodWrapperType, types.WrapperDescriptorType)):
                raise CodeKeyError(name_of(pyobj), "it is not written in Python; call it from a function of your own")
            if not is_project_module(type(pyobj).__module__) and wrapped_of(pyobj) is not None:
                pyobj = wrapped_of(pyobj)
            elif callable(pyobj) or wrapped_of(pyobj) is not None:
                return self._instance(pyobj)
            else:
                raise CodeKeyError(name_of(pyobj), f"expected a function or a class, found {kind_of(pyobj)}")
        raise CodeKeyError(name_of(whole), "its __wrapped__ leads back to itself")

    def _is_looked_through(self, function: types.FunctionType) -> bool:
        """Tell whether only what a function wraps counts: where its own code is an installed package's, or nothing is followed."""
        return wrapped_of(function) not in (None, function) and not (self._follow and is_project_file(function.__code__.co_filename))

    def _instance(self, pyobj: Any) -> Node:
        cls = self._defined(type(pyobj))
        if not is_project_module(type(pyobj).__module__) or not self._follow:
            return cls
        node = self._node("data", name_of(type(pyobj)) + "()")
        self._kept.append(pyobj)
        self._data(_Value(node, pyobj, ""))
        return node

    # --- code -----------------------------------------------------------------------------------------

    def _code(self, pyobj: Any) -> Node:
        """Return the node of code that was reached. Never fails."""
        seen = set()
        while id(pyobj) not in seen:
            seen.add(id(pyobj))
            if isinstance(pyobj, type):
                return self._reached(pyobj) if is_project_module(pyobj.__module__) else self._external(pyobj)
            if isinstance(pyobj, types.FunctionType):
                if is_project_file(pyobj.__code__.co_filename):
                    return self._reached(pyobj)
                return self._foreign_wrapper(pyobj)
            if isinstance(pyobj, (functools.partial, types.MethodType)):
                return self._call(pyobj, root=False)
            if isinstance(pyobj, property):
                pyobj = pyobj.fget
            elif isinstance(pyobj, (staticmethod, classmethod)):
                pyobj = pyobj.__func__
            elif isinstance(pyobj, types.BuiltinFunctionType) or wrapped_of(pyobj) is None:
                break
            else:
                pyobj = wrapped_of(pyobj)
        return self._external(pyobj)

    def _reached(self, pyobj: Any) -> Node:
        try:
            return self._defined(pyobj)
        except CodeKeyError as error:
            if error.stale:
                raise
            return self._no_source(pyobj, error)

    def _no_source(self, pyobj: Any, error: CodeKeyError) -> Node:
        """Return the node of code without a definition: some classes tell all about themselves, other code is not seen."""
        node = self._node("class" if isinstance(pyobj, type) else "function", name_of(pyobj), key=id(pyobj), keep=pyobj)
        fields = getattr(pyobj, "_fields", None)
        members = getattr(pyobj, "__members__", None)
        if isinstance(fields, tuple):
            node.text = b"fields:" + self._plain(node, [list(fields), getattr(pyobj, "_field_defaults", {})])
        elif isinstance(members, types.MappingProxyType):
            node.text = b"members:" + self._plain(node, {name: member.value for name, member in members.items()})
        else:
            node.text = b"unseen"
            self.unseen.add(f"{node.name}: {error.problem}", self._at)
        return node

    def _plain(self, node: Node, value: Any) -> bytes:
        return DataText(lambda pyobj: self._in_data(node, pyobj), "").of(value)

    def _foreign_wrapper(self, function: types.FunctionType) -> Node:
        """Return the node of a function that an installed decorator made: what it wraps, or holds, of the project counts."""
        held = [wrapped_of(function)] if wrapped_of(function) is not None else []
        for content in [*map(_content, function.__closure__ or ()), *vars(function).values()]:
            held += content.values() if isinstance(content, Mapping) else [content]
        ours: list[Any] = []
        for item in held:
            if is_code(item) and _is_project_code(item) and not any(item is other for other in ours):
                ours.append(item)
        if not ours:
            return self._external(function)
        if len(ours) == 1:
            return self._code(ours[0])
        node = self._node("wrapper", name_of(function), key=id(function), keep=function)
        if not node.edges:
            node.text = b"wrapper"
            node.edges = [(str(number), self._code(item)) for number, item in enumerate(ours)]
        return node

    def _call(self, pyobj: Any, root: bool) -> Node:
        node = self._known.get(id(pyobj))
        if node is not None:
            return node
        inner = pyobj.func if isinstance(pyobj, functools.partial) else pyobj.__func__
        under = self._root(inner) if root else self._code(inner)
        node = self._node("data", f"{type(pyobj).__name__} of {under.name}", key=id(pyobj), keep=pyobj)
        node.edges.append(("", under))
        if isinstance(pyobj, functools.partial):
            arguments = [list(pyobj.args), pyobj.keywords]
        else:
            arguments = [] if isinstance(pyobj.__self__, (type, types.ModuleType)) or not self._follow else [pyobj.__self__]
        self._data(_Value(node, arguments, ""))
        node.text = type(pyobj).__name__.encode("ascii") + node.text
        return node

    def _external(self, pyobj: Any) -> Node:
        if type(pyobj) is _Leaf:
            name = pyobj.name
        elif _is_module(pyobj):
            name = pyobj.__name__
        else:
            module = getattr(pyobj, "__module__", None)
            name = getattr(pyobj, "__qualname__", None) or getattr(pyobj, "__name__", None) or type(pyobj).__qualname__
            name = f"{package_of(module if isinstance(module, str) else type(pyobj).__module__)}:{name}"
        node = self._known.get(name)
        if node is None:
            node = self._node("external", name, key=name)
            node.text = name.encode("ascii", "backslashreplace")
        return node

    def _defined(self, pyobj: Any) -> Node:
        """Return the node of a function or class, whose names are followed later."""
        node = self._known.get(id(pyobj))
        if node is not None:
            return node
        if isinstance(pyobj, type):
            definition, text = _the_definition(pyobj, class_definitions(pyobj))
            self._note_file(class_file(pyobj) or "")
        else:
            definition, text = _the_definition(pyobj, function_definitions(pyobj))
            self._note_file(pyobj.__code__.co_filename)
            _check_as_before(pyobj, text)
        node = self._node("class" if isinstance(pyobj, type) else "function", name_of(pyobj), key=id(pyobj), keep=pyobj)
        node.text = text
        if self._follow:
            self._todo.append((pyobj, node, definition))
        return node

    def _node(self, kind: str, name: str, key: Any = None, keep: Any = None) -> Node:
        node = self._known.get(key) if key is not None else None
        if node is None:
            node = Node(kind, name)
            self.nodes.append(node)
            if key is not None:
                self._known[key] = node
                self._kept.append(keep)
        return node

    # --- names ----------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Follow names until all is known, then give data its text, for it may lead to more."""
        while self._todo or self._values:
            while self._todo:
                pyobj, node, definition = self._todo.pop()
                if isinstance(pyobj, type):
                    self._follow_class(pyobj, node, definition)
                else:
                    self._follow_function(pyobj, node, definition)
            for key, value in sorted(self._values.items(), key=lambda item: item[1].node.name):
                del self._values[key]
                self._data(value, is_state=key in self._changed)
                self._given[key] = value
            # What was given its text may have led to code that changes what had its text before.
            for key in [key for key, value in self._given.items() if key in self._changed and value.node.kind == "data"]:
                self._data(self._given[key], is_state=True)

    def _follow_function(self, function: types.FunctionType, node: Node, definition: Definition) -> None:
        import ast

        self._functions.append((function, function.__code__, function.__defaults__, function.__kwdefaults__))
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=False))
        self._follow_names(node, definition, function.__globals__, cells, function.__code__.co_filename)
        if wrapped_of(function) is not None:
            node.edges.append(("__wrapped__", self._code(wrapped_of(function))))
        if isinstance(definition, ast.ClassDef):
            return
        arguments = definition.args
        positional, named = function.__defaults__ or (), function.__kwdefaults__ or {}
        plain = len(arguments.defaults) == len(positional)
        # Constants stand in the text already.
        given = {f"={i}": item for i, item in enumerate(positional) if not (plain and isinstance(arguments.defaults[i], ast.Constant))}
        keyword_only = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        constants = {argument.arg for argument, default in keyword_only if isinstance(default, ast.Constant)}
        given |= {f"={name}": item for name, item in sorted(named.items()) if name not in constants}
        folder = os.path.dirname(function.__code__.co_filename)
        for label, item in given.items():
            node.edges.append((label, self._bound(item, (id(function), label), f"{node.name}{label}", folder)))

    def _follow_class(self, cls: type, node: Node, definition: Definition) -> None:
        namespace: dict[str, Any] = vars(sys.modules[cls.__module__]) if cls.__module__ in sys.modules else {}
        cells: dict[str, types.CellType] = {}
        for method in vars(cls).values():
            function = getattr(method, "__func__", getattr(method, "fget", method))
            if isinstance(function, types.FunctionType) and function.__closure__:
                cells.update(zip(function.__code__.co_freevars, function.__closure__, strict=False))
                namespace = namespace or function.__globals__
        for number, base in enumerate(cls.__bases__):
            if base is not object:
                node.edges.append((f"base {number}", self._code(base)))
        if type(cls) is not type:
            node.edges.append(("metaclass", self._code(type(cls))))
        self._follow_names(node, definition, namespace, cells, class_file(cls) or "")

    def _follow_names(
        self, node: Node, definition: Definition, namespace: dict[str, Any], cells: dict[str, types.CellType], filename: str
    ) -> None:
        names = names_of(definition)
        scope = _Scope(node, namespace, cells, os.path.dirname(filename))
        for reference in names.references:
            self._at = Place(filename, reference.line)
            found = self._referred(reference, scope)
            if reference.is_open:
                self._check_finder(node, reference, namespace, found)
            if found is None:
                continue
            key, name, value, place = found
            if value is _MISSING:
                if reference.needed:
                    self.unseen.add(f"{node.name}: {name}", self._at)
                continue
            if _is_module(value) and is_project_module(value.__name__):
                node.edges.append((reference.text, self._module(node, value, reference)))
            else:
                node.edges.append((reference.text, self._bound(value, key, name, place)))
        for path in sorted(names.changed):
            found = self._referred(Reference(path, needed=False), scope)
            if found is not None:
                self._changed.add(found[0])

    def _check_finder(
        self, node: Node, reference: Reference, namespace: Mapping[str, Any], found: Optional[tuple[Any, str, Any, str]]
    ) -> None:
        """Tell of functions that find code by a name made at run time."""
        name, value = reference.path[0], _MISSING if found is None else found[2]
        if found is None and reference.imported is None and name not in namespace:
            value = getattr(builtins, name, _MISSING)
        attributes = reference.path[1:]
        if type(value) is _Leaf:
            module, _, member = value.name.partition(":")
            value, attributes = sys.modules.get(module), (*([member] if member else []), *attributes)
        finder = finder_name(value, attributes)
        if finder:
            self.unseen.add(f"{node.name}, line {reference.line}: what {finder} finds by a name or text made at run time", self._at)

    def _module(self, node: Node, module: types.ModuleType, reference: Reference) -> Node:
        """Return the node of a module of the project that a name stands for: which names of it are read is not known."""
        if reference.is_open:
            what = f"the module {module.__name__} is used as a value, so any name of it may be read"
            self.unseen.add(f"{node.name}, line {reference.line}: {what}", self._at)
        found = self._node("data", module.__name__, key=("module", module.__name__))
        found.text = type_text(module)
        return found

    def _bound(self, value: Any, key: Any, name: str, folder: str) -> Node:
        """Return the node of what a name stands for."""
        if type(value) is _Leaf or (_is_module(value) and not is_project_module(value.__name__)):
            return self._external(value)
        if package_of(type(value).__module__) == "typing":  # in annotations mostly; of no other use at run time
            return self._external(typing)
        if is_code(value):
            return self._code(value)
        node = self._known.get(key)
        if node is None:
            node = self._node("data", name, key=key, keep=value)
            node.text, node.shown, node.place = b"", shown_value(value), self._at
            self._values[key] = _Value(node, value, folder)
        return node

    def _referred(self, reference: Reference, scope: _Scope) -> Optional[tuple[Any, str, Any, str]]:
        """Return what a reference stands for: key, name for people, value, folder. None for what does not count.

        If it stands for nothing, the name says what is wrong.
        """
        name, attributes = reference.path[0], reference.path[1:]
        if reference.imported is not None:
            value, problem = _import(reference, scope.namespace)
            if value is _MISSING:
                return None, problem, _MISSING, ""
            key: Any = ("import", reference.imported)
            if not _is_module(value):
                key = ("name", reference.imported.module, reference.imported.name)
            shown, folder = f"{reference.imported.module}.{reference.imported.name}".strip("."), ""
        elif name in scope.cells:
            cell = scope.cells[name]
            value = _content(cell)
            self._cells.append((cell, value))
            key, shown, folder = ("cell", id(cell)), f"{scope.node.name}.{name}", scope.folder
            self._kept.append(cell)
        elif name in scope.namespace:
            value = scope.namespace[name]
            self._bindings.append((scope.namespace, name, value))
            key, folder = (id(scope.namespace), name), scope.folder
            shown = f"{scope.namespace.get('__name__', '')}.{name}"
        else:
            self._bindings.append((scope.namespace, name, _MISSING))
            if hasattr(builtins, name):
                return None
            return None, f"there is nothing of the name {name}", _MISSING, ""
        if value is _MISSING:
            return None, f"{name} has no value yet", _MISSING, ""
        return self._member(value, attributes, (key, shown, folder))

    def _member(self, value: Any, attributes: Sequence[str], place: tuple[Any, str, str]) -> Optional[tuple[Any, str, Any, str]]:
        """Follow attributes as long as they lead through modules of the project."""
        key, shown, folder = place
        for attribute in attributes:
            if not _is_module(value) or not is_project_module(value.__name__):
                break
            if attribute == "__dict__":  # any name of the module may be read from there
                break
            if attribute.startswith("__") and attribute.endswith("__"):
                return None
            module, namespace = value, vars(value)
            value = _module_member(module, attribute)
            shown = f"{module.__name__}.{attribute}"
            if value is _MISSING:
                return None, f"there is no {shown}", _MISSING, ""
            self._bindings.append((namespace, attribute, value))
            key, folder = (id(namespace), attribute), os.path.dirname(getattr(module, "__file__", None) or "")
        if shown.rpartition(".")[2] in _MODULE_ITEMS:
            return None
        return key, shown, value, folder

    # --- data -----------------------------------------------------------------------------------------

    def _in_data(self, node: Node, pyobj: Any) -> bytes:
        label = f"@{len(node.edges)}"
        node.edges.append((label, self._code(pyobj)))
        return label.encode("ascii")

    def _data(self, value: _Value, is_state: bool = False) -> None:
        node = value.node
        text = DataText(functools.partial(self._in_data, node), value.folder)
        if is_state:
            node.kind, node.edges = "state", []
            node.text = text.of_code_in(value.value)
        else:
            node.text = text.of(value.value)
        for problem in text.problems:
            self.unseen.add(f"{node.name}: {problem}; it counts by its type only", node.place)
        # What counts by its type only is not looked at again; what merely holds such a thing may change beside it.
        is_seen = not text.problems or node.text != type_text(value.value)
        if is_seen and not isinstance(value.value, (str, int, float, complex, bytes, type(None))):
            taken = None if is_state else snapshot(value.value)
            self._watched.append((value, taken if taken is not None else _with_code(value)))

    # --- whether it still holds -------------------------------------------------------------------------

    def _note_file(self, filename: str) -> None:
        if filename not in self._files:
            self._files[filename] = file_stamp(filename)

    def bindings(self) -> list[tuple[dict[str, Any], str, Any]]:
        """Return the names of modules that were looked up, each with what it stood for."""
        return [(space, name, value) for space, name, value in self._bindings if value is not _MISSING]

    def holds(self) -> bool:
        """Tell whether a new walk would find the same: no name was bound anew, no file or value changed."""
        return (
            all(space.get(name, _MISSING) is value for space, name, value in self._bindings)
            and all(_content(cell) is value for cell, value in self._cells)
            and all(
                f.__code__ is code and f.__defaults__ is given and f.__kwdefaults__ is named for f, code, given, named in self._functions
            )
            and all(_is_as_before(value, taken) for value, taken in self._watched)
            and all(file_stamp(name) is stamp for name, stamp in self._files.items())
        )


@dataclass(frozen=True, slots=True)
class _Leaf:
    """What a function imports of an installed package."""

    name: str


@dataclass(frozen=True, slots=True)
class _Scope:
    """Where the names of a definition are looked up."""

    node: Node
    namespace: dict[str, Any]
    cells: dict[str, types.CellType]
    folder: str


_MODULE_ITEMS: Final = frozenset({"__builtins__", "__doc__", "__file__", "__loader__", "__name__", "__package__", "__path__", "__spec__"})


def _is_as_before(value: _Value, taken: bytes | tuple[bytes, list[Any]]) -> bool:
    if isinstance(taken, bytes):
        return snapshot(value.value) == taken
    text, code = _with_code(value)
    return text == taken[0] and len(code) == len(taken[1]) and all(map(operator.is_, code, taken[1]))


def _with_code(value: _Value) -> tuple[bytes, list[Any]]:
    """Return data as text, and the code in it."""
    code: list[Any] = []

    def note(pyobj: Any) -> bytes:
        code.append(pyobj)
        return b"@"

    text = DataText(note, value.folder)
    return text.of_code_in(value.value) if value.node.kind == "state" else text.of(value.value), code


def _is_module(value: Any) -> TypeGuard[types.ModuleType]:
    return issubclass(type(value), types.ModuleType)  # not isinstance: a proxy may raise when it is asked what it is


def _is_project_code(pyobj: Any) -> bool:
    if isinstance(pyobj, type):
        return is_project_module(pyobj.__module__)
    if isinstance(pyobj, types.FunctionType):
        return is_project_file(pyobj.__code__.co_filename) or wrapped_of(pyobj) is not None
    return not isinstance(pyobj, types.BuiltinFunctionType)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _MISSING


def _import(reference: Reference, namespace: dict[str, Any]) -> tuple[Any, str]:
    """Return what an import statement inside a function brings, and what is wrong if it brings nothing."""
    imported = reference.imported
    if imported is None:
        raise AssertionError("BUG: nothing is imported")
    name = imported.module
    try:
        if imported.level:
            package = str(namespace.get("__package__") or "")
            name = importlib.util.resolve_name("." * imported.level + imported.module, package)
        if not _is_project_top(package_of(name)):
            # By what is written, for it may be loaded or not.
            return _Leaf(f"{name}:{imported.name}" if imported.name else name), ""
        module = importlib.import_module(name)
        return (_module_member(module, imported.name) if imported.name else module), f"there is no {name}.{imported.name}"
    except (Exception, SystemExit) as error:  # noqa: BLE001  # code of other people's modules
        return _MISSING, f"importing {name or '.'} raises {type(error).__name__}: {error}"[:200]


def _is_project_top(name: str) -> bool:
    if name in sys.stdlib_module_names:
        return False
    if name in sys.modules:
        return is_project_module(name)
    spec = importlib.util.find_spec(name)
    if spec is None:
        return True  # so that importing it says what is wrong
    places: Iterable[str] = [spec.origin] if spec.origin else spec.submodule_search_locations or ()
    return any(is_project_file(f"{place}{os.sep}") or is_project_file(place) for place in places)


def _module_member(module: types.ModuleType, name: str) -> Any:
    if name in vars(module):
        return vars(module)[name]
    try:
        return getattr(module, name)
    except Exception:  # noqa: BLE001  # a module may compute its members
        pass
    try:
        return importlib.import_module(f"{module.__name__}.{name}")
    except (Exception, SystemExit):  # noqa: BLE001  # code of other people's modules
        return _MISSING


# --- definitions --------------------------------------------------------------------------------------------


def _the_definition(pyobj: Any, definitions: Sequence[Definition]) -> tuple[Definition, bytes]:
    texts = {canonical_text(node): node for node in definitions}
    if len(texts) > 1:
        lines = ", ".join(sorted({str(node.lineno) for node in definitions}))
        raise CodeKeyError(name_of(pyobj), f"it may be any of {len(definitions)} on line {lines}; give each a line and a name of its own")
    [(text, node)] = texts.items()
    return node, text


_texts: dict[int, tuple[types.CodeType, bytes]] = {}


def _check_as_before(function: types.FunctionType, text: bytes) -> None:
    """Refuse a definition that another file has put in the place of what was loaded."""
    code = function.__code__
    known = _texts.get(id(code))
    if known is not None and known[0] is code and known[1] != text:
        where = f"line {code.co_firstlineno} of {code.co_filename}"
        problem = f"it is not on {where} as it was; the file changed after it was loaded, so start again"
        raise CodeKeyError(name_of(function), problem, stale=True)
    if known is None:
        while len(_texts) >= _TEXTS_KEPT:
            _texts.pop(next(iter(_texts)), None)
        _texts[id(code)] = (code, text)
