"""What code reaches: a graph of functions, classes and data, from live objects.

Followed is what a definition names, in the project's own files: functions, classes with their bases and attributes, values
of modules and closures, defaults of parameters, what is imported inside functions. Installed packages and the
standard library are leaves, known by name. What can be named but not seen becomes a sentence in `problems`.

One graph serves any number of digests, as long as what they rest on stays as it is. What differs from digest to digest is
which values the code changes: those count otherwise, so a value may have several contents. Longer than most files:
every step of following a name also notes what must stay as it is for the outcome to hold, and the two must change
together. Must not know digests.
"""

from __future__ import annotations

import builtins
import collections
import functools
import operator
import sys
import types
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Optional

from pylightnix._bindings import binding_of
from pylightnix._codeclasses import class_values
from pylightnix._codegraph import UNORDERED, Content, Edge, Node, View, reached
from pylightnix._codeimports import MISSING, Leaf, imported_value, module_member
from pylightnix._codeobjects import (
    attribute_change,
    cell_content,
    cell_made,
    changes_argument,
    changes_parameter,
    given_defaults,
    is_atom,
    is_module,
    is_project_code,
    made_value,
    subclasses,
)
from pylightnix._codestates import Changed, code_in
from pylightnix._codevalues import Encoder, Token, shown_value, type_text
from pylightnix._codewatch import same_code, same_name, same_value, unchanged_attributes, unchanged_class, unchanged_function
from pylightnix._definitions import (
    check_as_before,
    class_definitions,
    class_file,
    file_stamp,
    function_definitions,
    name_of,
    the_definition,
)
from pylightnix._names import names_of, names_of_statements
from pylightnix._origins import is_project_class, is_project_file, is_project_module, package_of
from pylightnix._placing import NOWHERE, Place
from pylightnix._references import Names, Reference
from pylightnix._syntax import canonical_text
from pylightnix._unseen import Line, finder_name, finder_of_module
from pylightnix._wrappers import is_code, wrapped_of
from pylightnix.errors import CodeKeyError, kind_of

if TYPE_CHECKING:
    from pylightnix._syntax import Definition

__all__ = ["CodeWalk"]


@dataclass(frozen=True, slots=True, eq=False)
class _Scope:
    """Where the names of a definition are looked up."""

    name: str
    """Of the definition, for people."""
    definition: Optional[Definition]
    namespace: dict[str, Any]
    cells: dict[str, types.CellType]
    filename: str


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """What a reference stands for."""

    key: Any
    """The same for all references to one place; None if there is nothing."""
    name: str
    """For people; what is wrong, if there is nothing."""
    value: Any = MISSING
    place: Place = NOWHERE


class CodeWalk:
    """A graph that grows with each root that is asked about."""

    def __init__(self, follow: bool) -> None:
        self.size = 0
        self.fresh: set[Content] = set()
        """What was found since this was last emptied."""
        self._follow = follow
        self._known: dict[Any, Node] = {}
        self._kept: list[Any] = []  # so that no id is given anew
        self._at: Optional[Line] = None
        self._todo: list[tuple[Any, Node, Definition]] = []
        self._values: dict[Node, tuple[Any, Any]] = {}
        self._contents: dict[Node, list[Content]] = {}
        self._classes: dict[int, type] = {}
        self._stamps: dict[str, object] = {}

    # --- digests --------------------------------------------------------------------------------------

    def root(self, pyobj: Any) -> Node:
        """Return the node of what is asked about, which counts wherever it comes from.

        Raises:
            CodeKeyError: its source cannot be found, or it has none.
        """
        node = self._root(pyobj)
        self._finish()
        return node

    def view(self, roots: Sequence[Node]) -> View:
        """Return all that roots reach, with what code changes as they reach it."""
        changed: frozenset[object] = frozenset()
        attributes: frozenset[Any] = frozenset()
        while True:
            # Which values count otherwise depends on what code is reached, some of it through values: until no more is.
            found = reached(roots, functools.partial(self._content, changed=changed, attributes=attributes))
            running = reached(roots, found.__getitem__, running=True).values()
            more = changed.union(*(content.changed for content in running))
            more_attributes = attributes.union(*(content.changed_attributes for content in running))
            if (more, more_attributes) == (changed, attributes):
                return found
            changed, attributes = more, more_attributes

    def holds(self, view: View, fresh: Collection[Content] = ()) -> bool:
        """Tell whether a new walk would find the same: no name was bound anew, no file or value changed.

        Args:
            view: what was found.
            fresh: what was found just now, and need not be looked at again.
        """
        files: set[str] = set()
        for content in view.values():
            files |= content.files
            if content.still and content not in fresh and not all(still() for still in content.still):
                return False
        return all(file_stamp(name) is self._stamps[name] for name in files)

    # --- roots ----------------------------------------------------------------------------------------

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
                return self._call(pyobj)
            if isinstance(pyobj, (types.BuiltinFunctionType, types.MethodWrapperType, types.WrapperDescriptorType)):
                raise CodeKeyError(name_of(pyobj), "it is not written in Python; call it from a function of your own")
            if not is_project_class(type(pyobj)) and wrapped_of(pyobj) is not None:
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
        if not is_project_class(type(pyobj)) or not self._follow:
            return cls
        return self._value(pyobj, ("root", id(pyobj)), f"{name_of(type(pyobj))}()", NOWHERE)

    def _call(self, pyobj: Any) -> Node:
        """Return the node of a partial call or bound method that is asked about."""
        node = self._known.get(id(pyobj))
        if node is not None:
            return node
        is_partial = isinstance(pyobj, functools.partial)
        under = self._root(pyobj.func if is_partial else pyobj.__func__)
        node = self._node("data", f"{type(pyobj).__name__} of {under.name}", key=id(pyobj), keep=pyobj)
        node.content.text = type(pyobj).__name__.encode("ascii")
        node.content.edges.append(Edge("", under))
        if is_partial:
            arguments: list[Any] = [list(pyobj.args), pyobj.keywords]
        else:
            arguments = [pyobj.__self__] if self._follow else []
        given = self._value(arguments, ("arguments", id(pyobj)), f"arguments of {under.name}", NOWHERE)
        node.content.edges.append(Edge("arguments", given))
        return node

    # --- code -----------------------------------------------------------------------------------------

    def _code(self, pyobj: Any) -> Node:
        """Return the node of code that was reached. Never fails."""
        seen = set()
        while id(pyobj) not in seen:
            seen.add(id(pyobj))
            if isinstance(pyobj, type):
                return self._reached(pyobj) if is_project_class(pyobj) else self._external(pyobj)
            if isinstance(pyobj, types.FunctionType):
                if is_project_file(pyobj.__code__.co_filename):
                    return self._reached(pyobj)
                return self._foreign_wrapper(pyobj)
            if isinstance(pyobj, property):
                parts = {"get": pyobj.fget, "set": pyobj.fset, "delete": pyobj.fdel}
                return self._wrapper(pyobj, "property", {name: part for name, part in parts.items() if part is not None}, ())
            if isinstance(pyobj, functools.singledispatchmethod):
                pyobj = pyobj.dispatcher
            elif isinstance(pyobj, functools.cached_property):
                pyobj = pyobj.func
            elif isinstance(pyobj, (staticmethod, classmethod)):
                pyobj = pyobj.__func__
            elif is_code(pyobj) and wrapped_of(pyobj) is not None and not isinstance(pyobj, types.BuiltinFunctionType):
                pyobj = wrapped_of(pyobj)
            else:
                break
        return self._external(pyobj)

    def _reached(self, pyobj: Any) -> Node:
        try:
            return self._defined(pyobj)
        except CodeKeyError as error:
            if error.stale:
                raise
            return self._no_source(pyobj, error)

    def _no_source(self, pyobj: Any, error: CodeKeyError) -> Node:
        """Return the node of code without a definition: a class tells about itself, a function is not seen."""
        node = self._node("class" if isinstance(pyobj, type) else "function", name_of(pyobj), key=id(pyobj), keep=pyobj)
        if node.content.text:
            return node
        node.content.text = b"made"
        if not isinstance(pyobj, type):
            node.content.text = b"unseen"
            node.content.problems.setdefault(f"{node.name}: {error.problem}", self._at)
            return node
        about = made_value(pyobj)
        node.content.edges.append(Edge("made", self._value(about, ("made", id(pyobj)), f"{node.name} as made", Place(made=()))))
        self._follow_class(pyobj, node, None)
        return node

    def _foreign_wrapper(self, function: types.FunctionType) -> Node:
        """Return the node of a function that an installed decorator made: what it wraps, or holds, of the project counts."""
        cells = dict(zip(function.__code__.co_freevars, map(cell_content, function.__closure__ or ()), strict=False))
        attributes = dict(vars(function))
        inner, found = wrapped_of(function), dict[str, Any]()
        if isinstance(attributes.get("registry"), types.MappingProxyType):  # of functools.singledispatch
            pairs = list(attributes["registry"].items())
            return self._wrapper(function, "dispatch", {}, [part for pair in pairs for part in pair])
        for name, content in ({"__wrapped__": inner} | cells | attributes).items():
            ours = [item for item in code_in(content) if is_project_code(item)]
            found |= {f"{name} {number}": item for number, item in enumerate(ours) if not any(item is other for other in found.values())}
        plain = {name: item for name, item in cells.items() if type(item) in (str, int, float, bool, bytes)}
        if not found:
            return self._external(function)
        if len(found) == 1 and not plain:
            return self._code(*found.values())
        return self._wrapper(function, ascii(sorted(plain.items())), found, ())

    def _wrapper(self, pyobj: Any, text: str, named: dict[str, Any], pairs: Sequence[Any]) -> Node:
        node = self._node("wrapper", name_of(pyobj), key=id(pyobj), keep=pyobj)
        if not node.content.text:
            node.content.text = text.encode("ascii")
            node.content.edges = [Edge(name, self._code(item)) for name, item in named.items()]
            for cls, handler in zip(pairs[::2], pairs[1::2], strict=True):
                pair = Node("", Content("part", b"pair", [Edge("0", self._code(cls)), Edge("1", self._code(handler))]))
                node.content.edges.append(Edge("*", pair))
            node.content.still.append(unchanged_attributes(pyobj))
        return node

    def _external(self, pyobj: Any) -> Node:
        if type(pyobj) is Leaf:
            name = pyobj.name
        elif is_module(pyobj):
            name = pyobj.__name__
        else:
            module = getattr(pyobj, "__module__", None)
            name = getattr(pyobj, "__qualname__", None) or getattr(pyobj, "__name__", None) or type(pyobj).__qualname__
            name = f"{package_of(module if isinstance(module, str) else type(pyobj).__module__)}:{name}"
        node = self._node("external", name, key=name)
        node.content.text = name.encode("ascii", "backslashreplace")
        return node

    def _defined(self, pyobj: Any) -> Node:
        """Return the node of a function or class, whose names are followed later."""
        node = self._known.get(id(pyobj))
        if node is not None:
            return node
        if isinstance(pyobj, type):
            definition, text = the_definition(pyobj, class_definitions(pyobj))
            filename = class_file(pyobj) or ""
        else:
            definition, text = the_definition(pyobj, function_definitions(pyobj))
            filename = pyobj.__code__.co_filename
            check_as_before(pyobj, text)
        node = self._node("class" if isinstance(pyobj, type) else "function", name_of(pyobj), key=id(pyobj), keep=pyobj)
        node.content.text = text
        self._note_file(node.content, filename)
        if self._follow:
            self._todo.append((pyobj, node, definition))
        return node

    def _node(self, kind: str, name: str, key: Any, keep: Any = None) -> Node:
        node = self._known.get(key)
        if node is None:
            node = self._known[key] = Node(name, Content(kind))
            self.fresh.add(node.content)
            self._kept.append(keep)
            self.size += 1
        return node

    # --- names ----------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Follow the names of all code that was found."""
        while self._todo:
            pyobj, node, definition = self._todo.pop()
            if isinstance(pyobj, type):
                self._follow_class(pyobj, node, definition)
            else:
                self._follow_function(pyobj, node, definition)

    def _follow_function(self, function: types.FunctionType, node: Node, definition: Definition) -> None:
        import ast

        content, filename = node.content, function.__code__.co_filename
        content.still.append(unchanged_function(function))
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=False))
        names = names_of(definition)
        scope = _Scope(node.name, definition, function.__globals__, cells, filename)
        self._follow_names(content, names, scope)
        if wrapped_of(function) is not None:
            content.edges.append(Edge("__wrapped__", self._code(wrapped_of(function))))
        for name, item in vars(function).items():
            if not (name.startswith("__") and name.endswith("__")):
                place = Place(filename, function.__globals__, function.__name__, is_added=True)
                content.edges.append(Edge(f".{name}", self._bound(item, ("attribute", id(function), name), f"{node.name}.{name}", place)))
        if isinstance(definition, ast.ClassDef):
            return
        given = given_defaults(function, definition)
        for name, (item, expression) in given.items():
            key = ("default", id(function), name)
            if changes_parameter(function, name):
                content.changed |= _changed_place(key, item)
            place = Place(filename, function.__globals__, made=() if expression is None else (expression,))
            content.edges.append(Edge(f"={name}", self._bound(item, key, f"{node.name}={name}", place)))

    def _follow_class(self, cls: type, node: Node, definition: Optional[Definition]) -> None:
        content, filename = node.content, class_file(cls) or ""
        self._classes[id(cls)] = cls
        content.still.append(unchanged_class(cls))
        namespace: dict[str, Any] = vars(sys.modules[cls.__module__]) if cls.__module__ in sys.modules else {}
        cells: dict[str, types.CellType] = {}
        for method in vars(cls).values():
            function = getattr(method, "__func__", getattr(method, "fget", method))
            if isinstance(function, types.FunctionType) and function.__closure__:
                cells.update(zip(function.__code__.co_freevars, function.__closure__, strict=False))
                namespace = namespace or function.__globals__
        for number, base in enumerate(cls.__bases__):
            if base is not object:
                content.edges.append(Edge(f"base {number}", self._code(base)))
        if type(cls) is not type:
            content.edges.append(Edge("metaclass", self._code(type(cls))))
        if definition is not None:
            names = names_of(definition, issubclass(cls, type))
            self._follow_names(content, names, _Scope(node.name, definition, namespace, cells, filename))
            content.changed_attributes |= {(id(cls), how, name) for how, name in names.own_changed_attributes}
            if names.finds_subclasses:
                self._add_subclasses(content, cls)
        for held in class_values(cls, definition):  # type: ignore[arg-type]  # of a class
            made = () if held.is_written or definition is None else None
            name = cls.__name__ if cls.__qualname__ == cls.__name__ else ""
            place = Place(filename, namespace, name, made, is_added=not held.is_written, is_quiet=held.is_quiet)
            found = self._bound(held.value, ("class", id(cls), held.name), f"{node.name}.{held.name}", place)
            content.edges.append(Edge(f".{held.name}", found))

    def _add_subclasses(self, content: Content, cls: type) -> None:
        taken = subclasses(cls)
        content.still.append(lambda: len(now := subclasses(cls)) == len(taken) and all(map(operator.is_, now, taken)))
        content.edges += [Edge(UNORDERED, self._code(found)) for found in taken]

    def _follow_names(self, content: Content, names: Names, scope: _Scope, needed: bool = True) -> None:
        for reference in names.references:
            self._at = Line(scope.filename, reference.line)
            found = self._referred(reference, scope, content)
            if reference.is_open:
                self._check_finder(content, reference, scope, found)
            if found is None:
                continue
            if found.value is MISSING:
                if reference.needed and needed:
                    content.problems.setdefault(f"{scope.name}: {found.name}", self._at)
            elif is_module(found.value) and is_project_module(found.value.__name__):
                content.edges.append(Edge(reference.text, self._module(content, found.value, reference, scope), reference.runs))
            else:
                content.edges.append(Edge(reference.text, self._bound(found.value, found.key, found.name, found.place), reference.runs))
            if found.value is not MISSING and names.finds_subclasses and isinstance(found.value, type) and is_project_class(found.value):
                self._add_subclasses(content, found.value)
        scratch = Content("")  # what is looked up here is named, too, so that it is watched already
        for path in sorted(names.changed):
            found = self._referred(Reference(path, needed=False), scope, scratch)
            if found is not None and found.value is not MISSING:
                content.changed |= _changed_place(found.key, found.value)
        for path in sorted(names.rebound):
            owner = self._referred(Reference(path[:-1], needed=False), scope, scratch) if len(path) > 1 else None
            found = self._referred(Reference(path, needed=False), scope, scratch)
            if found is not None and found.value is not MISSING and (len(path) == 1 or (owner is not None and is_module(owner.value))):
                content.changed |= {("rebound", found.key)}
        for path in sorted(names.indexed - names.changed):
            found = self._referred(Reference(path, needed=False), scope, scratch)
            if found is not None and issubclass(type(found.value), collections.defaultdict):
                content.changed |= _changed_place(found.key, found.value)
        for passed in names.passed:
            called = None if passed.is_parameter else self._referred(Reference(passed.called, needed=False), scope, scratch)
            if called is not None and changes_argument(called.value, passed):
                found = self._referred(Reference(passed.path, needed=False), scope, scratch)
                content.changed |= _changed_place(found.key, found.value) if found is not None and found.value is not MISSING else set()
        content.changed_attributes |= {(0, how, name) for how, name in names.changed_attributes}

    def _check_finder(self, content: Content, reference: Reference, scope: _Scope, found: Optional[_Found]) -> None:
        """Tell of functions that find code by a name made at run time."""
        name, value = reference.path[0], MISSING if found is None else found.value
        if found is None and reference.imported is None and name not in scope.namespace:
            value = getattr(builtins, name, MISSING)
        attributes = reference.path[1:]
        if type(value) is Leaf:
            module, _, member = value.name.partition(":")
            finder = finder_of_module(module, [*([member] if member else []), *attributes])
        else:
            finder = finder_name(value, attributes)
        if finder:
            told = f"{scope.name}, line {reference.line}: what {finder} finds by a name or text made at run time"
            content.problems.setdefault(told, self._at)

    def _module(self, content: Content, module: types.ModuleType, reference: Reference, scope: _Scope) -> Node:
        """Return the node of a module of the project that a name stands for: which names of it are read is not known."""
        if reference.is_open:
            what = f"the module {module.__name__} is used as a value, so any name of it may be read"
            content.problems.setdefault(f"{scope.name}, line {reference.line}: {what}", self._at)
        node = self._node("data", module.__name__, key=("module", module.__name__))
        node.content.text = type_text(module)
        return node

    def _bound(self, value: Any, key: Any, name: str, place: Place) -> Node:
        """Return the node of what a name stands for."""
        if type(value) is Leaf or (is_module(value) and not is_project_module(value.__name__)):
            return self._external(value)
        if is_code(value):
            return self._code(value)
        return self._value(value, key, name, place)

    def _value(self, value: Any, key: Any, name: str, place: Place) -> Node:
        node = self._known.get(key)
        if node is None or self._values[node][1] is not value:
            node = self._known[key] = Node(name, Content("data"), place, self._at)
            self._kept.append(value)
            self._values[node] = key, value
            self.size += 1
        return node

    def _referred(self, reference: Reference, scope: _Scope, content: Content) -> Optional[_Found]:
        """Return what a reference stands for, None if it does not count."""
        name, attributes = reference.path[0], reference.path[1:]
        if reference.imported is not None:
            value, problem = imported_value(reference.imported, scope.namespace)
            if value is MISSING:
                return _Found(None, problem)
            imported = reference.imported
            key: Any = ("import", imported) if is_module(value) else ("name", imported.module, imported.name)
            found = _Found(key, f"{imported.module}.{imported.name}".strip("."), value)
            if not is_module(value) and imported.module in sys.modules:
                found = _Found(key, found.name, value, Place("", vars(sys.modules[imported.module]), imported.name))
        elif name in scope.cells:
            cell = scope.cells[name]
            value = cell_content(cell)
            content.still.append(lambda: cell_content(cell) is value)
            self._kept.append(cell)
            place = Place(
                scope.filename, None if (made := cell_made(scope.filename, scope.definition, name)) is None else scope.namespace, made=made
            )
            found = _Found(("cell", id(cell)), f"{scope.name}.{name}", value, place)
        elif name in scope.namespace:
            value = scope.namespace[name]
            content.still.append(same_name(scope.namespace, name, value))
            shown = f"{scope.namespace.get('__name__', '')}.{name}"
            found = _Found((id(scope.namespace), name), shown, value, Place(scope.filename, scope.namespace, name))
        else:
            content.still.append(same_name(scope.namespace, name, MISSING))
            return None if hasattr(builtins, name) else _Found(None, f"there is nothing of the name {name}")
        if found.value is MISSING:
            return _Found(None, f"{name} has no value yet")
        return self._member(found, attributes, content)

    def _member(self, found: _Found, attributes: Sequence[str], content: Content) -> Optional[_Found]:
        """Follow attributes as long as they lead through modules of the project."""
        for attribute in attributes:
            if not is_module(found.value) or not is_project_module(found.value.__name__):
                break
            if attribute == "__dict__":  # any name of the module may be read from there
                break
            if attribute.startswith("__") and attribute.endswith("__"):
                return None
            module, namespace = found.value, vars(found.value)
            value, shown = module_member(module, attribute), f"{module.__name__}.{attribute}"
            if value is MISSING:
                return _Found(None, f"there is no {shown}")
            content.still.append(same_name(namespace, attribute, value))
            place = Place(getattr(module, "__file__", None) or "", namespace, attribute)
            found = _Found((id(namespace), attribute), shown, value, place)
        return None if found.name.rpartition(".")[2] in _MODULE_ITEMS else found

    # --- data -----------------------------------------------------------------------------------------

    def _content(self, node: Node, changed: frozenset[object], attributes: frozenset[Any]) -> Content:
        """Return the content of a node where code changes these things."""
        if node.place is None:
            return node.content
        key, value = self._values[node]
        is_changed = functools.partial(attribute_change, attributes)
        how = ""
        if ("rebound", key) in changed:
            how = "to"
        elif key in changed or (not is_atom(value) and ("value", id(value)) in changed):
            how = "in"
        elif key[0] in ("class", "attribute"):
            how = self._is_attribute_changed(attributes, self._classes.get(key[1]), key[2])
        for content in self._contents.setdefault(node, []):
            if content.how == how and all(is_changed(*asked) == told for asked, told in content.consulted.items()):
                return content
        content = self._encoded(node, value, how, is_changed)
        self._contents[node].append(content)
        self.fresh.add(content)
        self._finish()
        return content

    def _is_attribute_changed(self, attributes: frozenset[Any], cls: Optional[type], name: str) -> str:
        """Tell how code changes an attribute of a function or class: by that class, one below or one above it."""
        found = set()
        for owner, how, changed in attributes:
            other = self._classes.get(owner)
            if changed == name and (other is None or (cls is not None and (issubclass(other, cls) or issubclass(cls, other)))):
                found.add(how)
        return max(found, default="")

    def _encoded(self, node: Node, value: Any, how: str, is_changed: Changed) -> Content:
        place = node.place or NOWHERE
        content = Content("state" if how else "data", shown=shown_value(value), how=how)

        def ask(cls: type, name: str) -> str:
            told = content.consulted.get((cls, name))
            if told is None:
                told = content.consulted[cls, name] = is_changed(cls, name)
            return told

        encoder = Encoder(self._code_or_module, ask, place.filename)
        token: Token = b"" if how == "to" else encoder.code_in(value) if how else encoder.of(value)
        content.text = token if isinstance(token, bytes) else b"code"
        if isinstance(token, Node):
            content.edges.append(Edge("value", token))
        content.changed = frozenset(changed for part in encoder.changed for changed in _changed_place(None, part) if changed)
        is_seen = not encoder.problems or token != type_text(value)
        is_bound = False
        if how or encoder.has_state or (encoder.problems and place.namespace is not None and not is_module(value)):
            is_bound = self._add_statements(content, place, node, needed=not encoder.problems)
            self._add_statements_of_subclasses(content, node)
        if how and not is_bound:
            content.is_absent = place.is_added and not isinstance(token, Node)
            content.text += type_text(value)
        if not place.is_quiet:
            told = {f"{node.name}: {problem}; it counts by its type only": node.line for problem in encoder.problems}
            content.problems = told | content.problems
        if how == "in":
            content.still.append(same_code(value))
        elif not how and is_seen and not is_atom(value):  # what counts by its type only is not looked at again
            content.still.append(same_value(value, lambda cls, name: content.consulted.get((cls, name), ""), encoder.is_plain))
        if place.filename:
            self._note_file(content, place.filename)
        return content

    def _add_statements(self, content: Content, place: Place, node: Node, needed: bool) -> bool:
        """Add what binds and fills a value: statements of its module, or what its definition says. Return whether there is such."""
        bindings = [] if place.made is None else [(place.namespace or {}, place.filename, "", place.made)]
        outside = binding_of(place.namespace, place.name) if place.namespace is not None and place.name else None
        for namespace, filename, bound, statements in [*bindings, *([] if outside is None else [outside])]:
            content.text += b"bound by" + b";".join(map(canonical_text, statements))
            if filename:
                self._note_file(content, filename)
            scope = _Scope(node.name, None, namespace, {}, filename)
            self._follow_names(content, names_of_statements(statements, bound), scope, needed=bool(bound))
        is_bound = bool(bindings) or outside is not None
        if needed and not is_bound and not place.is_added:
            told = f"{node.name}: code changes it, and what binds it is not to be found; it counts by its type only"
            content.problems[told] = node.line
        return is_bound

    def _add_statements_of_subclasses(self, content: Content, node: Node) -> None:
        """Add the statements that fill an attribute of a class by the names of classes below it."""
        key, _ = self._values[node]
        for below in subclasses(self._classes[key[1]]) if key[0] == "class" else []:
            module = sys.modules.get(below.__module__)
            if module is not None and below.__qualname__ == below.__name__:
                self._add_statements(content, Place("", vars(module), below.__name__, is_added=True), node, needed=False)

    def _code_or_module(self, pyobj: Any) -> Node:
        return self._external(pyobj) if is_module(pyobj) else self._code(pyobj)

    def _note_file(self, content: Content, filename: str) -> None:
        content.files.add(filename)
        if filename not in self._stamps:
            self._stamps[filename] = file_stamp(filename)


_MODULE_ITEMS: Final = frozenset({"__builtins__", "__doc__", "__file__", "__loader__", "__name__", "__package__", "__path__", "__spec__"})


def _changed_place(key: Any, value: Any) -> set[object]:
    """Return how it is noted that code changes a value: by where it is, and by which it is, wherever else that is."""
    return {key} if is_atom(value) else {key, ("value", id(value))}
