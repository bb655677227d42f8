"""The program's own script in the process of a build: a module `__main__` that pickling and `multiprocessing` can use.

A script cannot be imported, so what a stage reaches of it travels by value. In the build's process all of that
lies in a `Script`, a module of the same name and file. So the stage can pickle instances of its classes, hand its functions to
processes that it starts, and the pickles can be read by the script itself. What did not travel because the stage
does not name it, such as a class that only a pickle names, is loaded from the file when it is asked for: as
`multiprocessing` loads a script, so that what stands below ``if __name__ == "__main__":`` does not run.

The same goes for other modules that travel by value, such as a file whose name no module may have. Must not know how a
value is packed.
"""

from __future__ import annotations

import ast
import hashlib
import linecache
import os
import sys
import types
from importlib.machinery import ModuleSpec
from typing import Any, Final, Optional, cast

from pylightnix.nesting import loading_script

__all__ = ["Namespace", "Script", "become_main_program", "code_reduced"]

_CHILD_NAME: Final = "__mp_main__"
"""What `multiprocessing` calls the script in a process that it has started."""


class Script(types.ModuleType):
    """A module whose code has travelled, in the process of a build."""

    __slots__ = ("_problem", "_tree")  # not among the names of the script

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._tree: Optional[ast.Module] = None
        self._problem = ""

    def __getattr__(self, name: str) -> Any:
        # Asked only for what is not there. Python itself looks for many such names, which must not run a file.
        if not name.startswith("__") and self._defines(name):
            self._load(name)
            if name in vars(self):
                return vars(self)[name]
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}{self._problem}")

    @property
    def _file(self) -> str:
        found = vars(self).get("__file__")
        return found if isinstance(found, str) else ""

    def _defines(self, name: str) -> bool:
        if self._tree is None:
            try:
                with open(self._file, "rb") as file:
                    self._tree = ast.parse(file.read(), self._file)
            except (OSError, SyntaxError, ValueError, RecursionError):
                self._tree = ast.Module([], [])
        return name in _bound(self._tree)

    def _load(self, name: str) -> None:
        """Run the file, but for what has travelled and for what it does only when it is run."""
        tree, self._tree = self._tree or ast.Module([], []), ast.Module([], [])  # once, however it ends
        travelled = dict(vars(self))
        definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        tree.body = [part for part in tree.body if not (isinstance(part, definitions) and part.name in travelled)]
        code = compile(cast(ast.Module, _AsLoaded().visit(tree)), self._file, "exec", dont_inherit=True)
        try:
            with loading_script(f"{self._file} is loaded by a build, which looks for its {name}"):
                exec(code, vars(self))
        except Exception as error:  # noqa: BLE001  # a user's code
            self._problem = f": loading {self._file} raised {type(error).__name__}: {error}"
        vars(self).update(travelled)


class _AsLoaded(ast.NodeTransformer):
    """Has the code of a module find that it is not the program, while what it defines belongs to `__main__`."""

    def visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            return node  # what is run later has the module's name
        if isinstance(node, ast.Name) and node.id == "__name__" and isinstance(node.ctx, ast.Load):
            return ast.copy_location(ast.Constant(_CHILD_NAME), node)
        return self.generic_visit(node)


def _bound(tree: ast.Module) -> set[str]:
    """Return the names that a module gives a meaning to, as far as it does so in its own text."""
    found: set[str] = set()
    stack: list[ast.AST] = list(tree.body)
    while stack:
        node = stack.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found.update((alias.asname or alias.name).partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.Name):
            found.update([node.id] if isinstance(node.ctx, ast.Store) else [])
        elif not isinstance(node, ast.Lambda):
            stack += ast.iter_child_nodes(node)
    return found


def become_main_program() -> None:
    """Put an empty script in the place of this process's own program, for code of a user's that comes.

    What a build starts with `multiprocessing` must not take the worker for the program to start again.
    """
    sys.modules["__main__"] = sys.modules[_CHILD_NAME] = Script("__main__")


# --- on the way -----------------------------------------------------------------------------------------


class Namespace:
    """The globals of a module that travels by value, as all its functions share them."""

    def __init__(self, module: types.ModuleType) -> None:
        file, spec = getattr(module, "__file__", None), getattr(module, "__spec__", None)
        self.facts = (
            module.__name__,
            os.path.abspath(file) if isinstance(file, str) else None,
            spec.name if spec is not None else None,
            getattr(module, "__package__", None),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return namespace_of, self.facts


def namespace_of(name: str, file: Optional[str], spec: Optional[str], package: Optional[str]) -> dict[str, Any]:
    """Return the globals for functions that have travelled: those of a `Script` in a build's process, else fresh ones."""
    module = sys.modules.get(name)
    if module is None and isinstance(sys.modules.get("__main__"), Script):
        module = sys.modules[name] = Script(name)
    if not isinstance(module, Script):
        found = {"__name__": name, "__package__": package}
        return found if file is None else {**found, "__file__": file}
    if "__file__" not in vars(module) and file is not None:
        vars(module).update(__file__=file, __package__=package)
        if spec is not None:  # of `python -m` and of imports; multiprocessing starts others by this name
            module.__spec__ = ModuleSpec(spec, None, origin=file)
        if name == "__main__":
            sys.argv[:] = [file]
    return vars(module)


def code_reduced(code: types.CodeType, remake: tuple[Any, ...], texts: dict[str, Optional[str]]) -> tuple[Any, ...]:
    """Return how a code object travels so that tracebacks and `inspect.getsource` find its source.

    `remake` is how it would travel without; `texts` keeps, for one pickle, what was found of each file.
    """
    name = code.co_filename
    if name not in texts:
        texts[name] = None if os.path.isfile(name) else "".join(linecache.getlines(name)) or ""
    text = texts[name]
    if text is None:
        return _code_at, (remake, os.path.abspath(name), None)
    if not text:
        return remake
    # Cells of notebooks have names that differ from session to session.
    return _code_at, (remake, f"<cell {hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}>", text)


def _code_at(remake: tuple[Any, ...], filename: str, text: Optional[str]) -> types.CodeType:
    make, arguments = remake[:2]
    code: types.CodeType = make(*arguments).replace(co_filename=filename)
    if text is not None:
        linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    return code
