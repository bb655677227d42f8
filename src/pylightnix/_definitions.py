"""Where a function or class is defined: from the live object to the syntax tree of its definition.

A definition is looked for in its whole file, by the line and name that the compiler recorded, so that
its indentation, line continuations and multi-line strings are no matter. Notebook cells count as files.
Must not know what the tree is for.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Optional, Union

from pylightnix._syntax import canonical_text
from pylightnix._typed import is_without_file, program_name, typed_lines
from pylightnix.errors import CodeKeyError

if TYPE_CHECKING:
    import ast
    from typing import TypeAlias

    from pylightnix._syntax import Definition

    FunctionNode: TypeAlias = Union[ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda]

__all__ = [
    "check_as_before",
    "class_definitions",
    "class_file",
    "enclosing_definitions",
    "file_stamp",
    "function_definitions",
    "module_body",
    "name_of",
    "parse_file",
    "parsed_files",
    "spelled_paths",
    "the_definition",
]

_FILES_KEPT: Final = 64
"""Parsed files that are remembered: a program's own, without holding every notebook cell of a long day."""
_TEXTS_KEPT: Final = 8192
_CALL_SHAPE: Final = 0x04 | 0x08 | 0x20
"""Code flags: takes ``*args``, takes ``**kwargs``, is a generator."""


def name_of(pyobj: Any) -> str:
    """Return how to name an object to people: module and qualified name where it has them."""
    module, name = getattr(pyobj, "__module__", None), getattr(pyobj, "__qualname__", None)
    return f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else f"{pyobj!r:.80}"


def function_definitions(function: types.FunctionType) -> list[FunctionNode]:
    """Return the definition of a function; several if they cannot be told apart (lambdas on one line).

    Raises:
        CodeKeyError: its file cannot be read, or does not have the function where it was.
    """
    code = function.__code__
    source = _source_of(function, code.co_filename, function.__globals__)
    found = source.functions.get((code.co_firstlineno, code.co_name), [])
    if not found:
        where = f"line {code.co_firstlineno} of {code.co_filename}"
        problem = f"it is not on {where} any more; the file changed after it was loaded, so start again"
        raise CodeKeyError(name_of(function), problem, stale=True)
    return found if len(found) == 1 else _narrowed(found, code)


def class_definitions(cls: type) -> list[ast.ClassDef]:
    """Return the definition of a class; several if the file has more of that name that cannot be told apart.

    Raises:
        CodeKeyError: its file is not known, cannot be read, or does not have the class.
    """
    import sys

    codes = list(_own_codes(cls))
    module = sys.modules.get(cls.__module__)
    filename = class_file(cls)
    if filename is None:
        raise CodeKeyError(name_of(cls), "neither its module nor a method of it says in which file it is")
    found = _source_of(cls, filename, vars(module) if module else {}).classes.get(cls.__qualname__, [])
    if len(found) > 1:
        # Python 3.13 records a class's first line; before, its methods give the place away.
        lines = {code.co_firstlineno for code in codes} | {line for line in [cls.__dict__.get("__firstlineno__")] if line}
        found = [node for node in found if all(_first_line(node) <= line <= (node.end_lineno or 0) for line in lines)]
    if not found:
        problem = f"{filename} has no class {cls.__qualname__} where it was; did the file change after it was loaded?"
        raise CodeKeyError(name_of(cls), problem, stale=bool(codes))
    return found


def class_file(cls: type) -> Optional[str]:
    """Return the name of the file that a class is defined in, None if nothing says so."""
    import sys

    for code in _own_codes(cls):
        return code.co_filename
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return file if isinstance(file, str) else program_name() if cls.__module__ == "__main__" else None


def _own_codes(cls: type) -> Iterator[types.CodeType]:
    """Yield the code of the functions that stand in the class's own body, not of inherited or generated ones."""
    for value in vars(cls).values():
        if isinstance(value, property):
            value = value.fget
        elif isinstance(value, functools.cached_property):
            value = value.func
        elif isinstance(value, (staticmethod, classmethod)):
            value = value.__func__
        if isinstance(value, types.FunctionType) and value.__code__.co_qualname.startswith(f"{cls.__qualname__}."):
            yield value.__code__


# --- files ------------------------------------------------------------------------------------------------


class _Source:
    """One parsed source file: where its functions and classes are."""

    def __init__(self, lines: list[str]) -> None:
        import ast

        self.lines = lines
        self.body = ast.parse("".join(lines)).body
        self.paths: set[str] = set()
        self.around: dict[int, FunctionNode] = {}
        """The function that a function stands in, by identity."""
        self.functions: dict[tuple[int, str], list[FunctionNode]] = {}
        self.classes: dict[str, list[ast.ClassDef]] = {}
        stack: list[tuple[ast.AST, str, Optional[FunctionNode]]] = [(node, "", None) for node in reversed(self.body)]
        while stack:
            node, prefix, outer = stack.pop()
            if outer is not None and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                self.around[id(node)] = outer
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value[:1] == "/" and node.value.strip("/"):
                self.paths.add(node.value)
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                self.functions.setdefault((_first_line(node), node.name), []).append(node)
                prefix, outer = f"{prefix}{node.name}.<locals>.", node
            elif isinstance(node, ast.Lambda):
                self.functions.setdefault((node.lineno, "<lambda>"), []).append(node)
                prefix, outer = f"{prefix}<lambda>.<locals>.", node
            elif isinstance(node, ast.ClassDef):
                self.classes.setdefault(prefix + node.name, []).append(node)
                prefix = f"{prefix}{node.name}."
            stack.extend((child, prefix, outer) for child in ast.iter_child_nodes(node))


_sources: dict[str, _Source] = {}


def parsed_files() -> dict[str, object]:
    """Return the names of the files that are parsed, each with an object that is another one when it was parsed anew."""
    return dict(_sources)


def parse_file(filename: str) -> list[Definition]:
    """Parse a file before it is asked for and return its definitions; none if it cannot be parsed. What it says is not run."""
    try:
        source = _source_of(filename, filename, {})
    except (CodeKeyError, MemoryError):
        return []
    functions = [node for nodes in source.functions.values() for node in nodes]
    return [*functions, *(node for nodes in source.classes.values() for node in nodes)]


def module_body(filename: str) -> list[ast.stmt]:
    """Return the statements of a file, none if it cannot be read or parsed."""
    try:
        return _source_of(filename, filename, {}).body
    except (CodeKeyError, MemoryError):
        return []


def enclosing_definitions(filename: str, definition: Definition) -> Iterator[FunctionNode]:
    """Yield the functions that a definition stands in, the innermost first."""
    source = _sources.get(filename)
    outer = source.around.get(id(definition)) if source is not None else None
    while source is not None and outer is not None:
        yield outer
        outer = source.around.get(id(outer))


def spelled_paths(filename: str) -> set[str]:
    """Return the absolute paths that stand in a file as they are."""
    try:
        return _source_of(filename, filename, {}).paths
    except (CodeKeyError, MemoryError):
        return set()


def file_stamp(filename: str) -> object:
    """Return an object that stays the same one as long as the text of a file does."""
    import linecache

    linecache.checkcache(filename)
    return linecache.cache.get(filename)


def _source_of(pyobj: Any, filename: str, module_globals: dict[str, Any]) -> _Source:
    """Return the parsed file that `pyobj` is defined in; parsed once as long as its text stays the same."""
    import linecache

    linecache.checkcache(filename)
    lines = linecache.getlines(filename, module_globals) or _interactive_lines(pyobj) or _typed_lines(pyobj, filename)
    if not lines:
        where = f"its source {filename} {'is not kept' if is_without_file(filename) else 'cannot be read'}"
        raise CodeKeyError(name_of(pyobj), where)
    known = _sources.get(filename)
    if known is not None and (known.lines is lines or known.lines == lines):
        return known
    try:
        source = _Source(lines)
    except (SyntaxError, ValueError, RecursionError) as error:
        problem = f"its source {filename} cannot be parsed ({error}); did it change after it was loaded?"
        raise CodeKeyError(name_of(pyobj), problem, stale=True) from error
    _sources.pop(filename, None)
    _sources[filename] = source
    while len(_sources) > _FILES_KEPT:
        _sources.pop(next(iter(_sources)), None)
    return source


def _interactive_lines(pyobj: Any) -> list[str]:
    import inspect  # newer Pythons keep what was typed at the prompt, where only `inspect` finds it

    try:
        return inspect.findsource(pyobj)[0]
    except (OSError, TypeError):
        return []


def _typed_lines(pyobj: Any, filename: str) -> list[str]:
    if not is_without_file(filename):
        return []
    code = next(_own_codes(pyobj), None) if isinstance(pyobj, type) else getattr(pyobj, "__code__", None)
    return typed_lines(filename, code)


def _first_line(node: Union[ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef]) -> int:
    """Return what the compiler takes for a definition's first line: that of its first decorator."""
    return node.decorator_list[0].lineno if node.decorator_list else node.lineno


# --- lambdas on one line ------------------------------------------------------------------------------------


def _narrowed(candidates: list[FunctionNode], code: types.CodeType) -> list[FunctionNode]:
    """Return those of several lambdas on one line that `code` may be.

    Each instruction knows which columns it is for: all lie in the body, and not all in a lambda inside
    it. Some have none (Python 3.12 gives none to a constant result); then what is compiled decides.
    """
    import ast

    lambdas = [node for node in candidates if isinstance(node, ast.Lambda)]
    spans = [
        ((line, column), (end_line, end_column))
        for line, end_line, column, end_column in code.co_positions()
        if line is not None and end_line is not None and column is not None and end_column is not None
        if (line, column) != (end_line, end_column)
    ]
    if not spans:
        return [*[node for node in lambdas if _shape(_compiled(node)) == _shape(code)]] or candidates
    start, end = min(s for s, _ in spans), max(e for _, e in spans)
    around = [node for node in lambdas if _span(node.body)[0] <= start and end <= _span(node.body)[1]]
    # Bodies around one place lie in each other, and the innermost is the one that starts last.
    return [max(around, key=lambda node: _span(node.body)[0])] if around else candidates


def _span(node: ast.expr) -> tuple[tuple[int, int], tuple[int, int]]:
    return (node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0)


def _compiled(node: ast.Lambda) -> types.CodeType:
    import ast

    whole = compile(ast.Expression(node), "<lambda>", "eval")
    # The last one: those of lambdas among the parameters' defaults come before.
    return next(item for item in reversed(whole.co_consts) if isinstance(item, types.CodeType))


def _shape(code: types.CodeType) -> tuple[Any, ...]:
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & _CALL_SHAPE)
    return (*counts, code.co_varnames, code.co_names, code.co_code, ascii(code.co_consts))


# --- which one it is -----------------------------------------------------------------------------------------


def the_definition(pyobj: Any, definitions: Sequence[Definition]) -> tuple[Definition, bytes]:
    texts = {canonical_text(node): node for node in definitions}
    if len(texts) > 1:
        lines = ", ".join(sorted({str(node.lineno) for node in definitions}))
        raise CodeKeyError(name_of(pyobj), f"it may be any of {len(definitions)} on line {lines}; give each a line and a name of its own")
    [(text, node)] = texts.items()
    return node, text


_texts: dict[int, tuple[types.CodeType, bytes]] = {}


def check_as_before(function: types.FunctionType, text: bytes) -> None:
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
