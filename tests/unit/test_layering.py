"""Imports run one way. Read from the sources, so that an import hidden in a function counts too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ROOTS = [root for root in (REPOSITORY / "src", REPOSITORY / "client", REPOSITORY / "daemon") if root.is_dir()]

# Who (a module and all below it) may not import what (a module and all below it), and why.
FORBIDDEN: list[tuple[str, frozenset[str], str]] = [
    ("pylightnix", frozenset({"pylightnix_client", "pylightnixd"}), "the library knows neither who asks nor who serves"),
    ("pylightnix_client", frozenset({"pylightnixd"}), "the client meets the daemon in the wire protocol only"),
    ("pylightnixd", frozenset({"pylightnix_client"}), "the daemon meets the client in the wire protocol only"),
    (
        "pylightnix.planner",
        frozenset(
            {
                *("asyncio", "logging", "os", "pathlib", "random", "socket", "sqlite3", "subprocess", "threading", "time", "trio"),
                "pylightnix.store",
            }
        ),
        "the planner decides; it touches no file, clock, thread or log",
    ),
]

# The few modules that may use only certain others of the package.
ALLOWED_WITHIN_PACKAGE: dict[str, frozenset[str]] = {
    "pylightnix._version": frozenset(),
    "pylightnix.types": frozenset(),
    "pylightnix.errors": frozenset({"pylightnix.types"}),
}

# Pairs (importing module, imported package) that are allowed against the rules above, inside a function only.
# The one place that hands `realize` over to the daemon that owns the store.
LAZY_EXCEPTIONS: frozenset[tuple[str, str]] = frozenset({("pylightnix.remote", "pylightnix_client")})


class Import(NamedTuple):
    importer: str
    imported: str
    line: int
    lazy: bool


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def module_name(path: Path, root: Path) -> str:
    parts = list(path.relative_to(root).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def for_type_checkers_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def read_imports(source: str, importer: str, *, is_package: bool) -> Iterator[Import]:
    """Yield each import of a module, relative ones made absolute.

    ``from p import n`` counts as both ``p`` and ``p.n``, since `n` may be a module.
    """

    def visit(node: ast.AST, lazy: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(importer, alias.name, node.lineno, lazy)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = importer.split(".")
                up = node.level - 1 if is_package else node.level
                package = here[: len(here) - up]
                base = ".".join([*package, base] if base else package)
            yield Import(importer, base, node.lineno, lazy)
            for alias in node.names:
                yield Import(importer, f"{base}.{alias.name}", node.lineno, lazy)
        elif for_type_checkers_only(node):
            assert isinstance(node, ast.If)
            for statement in node.orelse:
                yield from visit(statement, lazy)
        else:
            inner = lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            for child in ast.iter_child_nodes(node):
                yield from visit(child, inner)

    yield from visit(ast.parse(source, filename=importer), False)


def all_imports() -> list[Import]:
    found: list[Import] = []
    for root in ROOTS:
        for path in sorted(root.rglob("*.py")):
            found += read_imports(path.read_text(), module_name(path, root), is_package=path.name == "__init__.py")
    return found


def violations(imports: list[Import]) -> list[str]:
    problems = []
    for item in imports:
        for package, banned, reason in FORBIDDEN:
            hit = next((name for name in sorted(banned) if within(item.imported, name)), None)
            if not within(item.importer, package) or hit is None:
                continue
            if item.lazy and (item.importer, hit) in LAZY_EXCEPTIONS:
                continue
            problems.append(f"{item.importer}:{item.line} imports {item.imported}: {reason}")
        allowed = ALLOWED_WITHIN_PACKAGE.get(item.importer)
        if allowed is not None and within(item.imported, "pylightnix") and not any(within(item.imported, name) for name in allowed):
            problems.append(f"{item.importer}:{item.line} imports {item.imported}: of this package it may use {sorted(allowed)} only")
    return problems


def test_no_import_runs_against_the_layers() -> None:
    imports = all_imports()
    assert imports, "no sources found; is the layout of the repository as expected?"
    assert violations(imports) == []


@pytest.mark.parametrize("importer", sorted(ALLOWED_WITHIN_PACKAGE))
def test_modules_with_rules_of_their_own_exist(importer: str) -> None:
    assert (REPOSITORY / "src" / Path(*importer.split("."))).with_suffix(".py").is_file()


# --- the reader itself: a checker that finds nothing must be known to find something -------------


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("pylightnix.core", "import pylightnix_client"),
        ("pylightnix.core", "from pylightnixd.server import serve"),
        ("pylightnix.core", "def f():\n    import pylightnix_client.cli"),
        ("pylightnix_client.cli", "import pylightnixd"),
        ("pylightnixd.server", "from pylightnix_client import cli"),
        ("pylightnix.planner.machine", "import os.path"),
        ("pylightnix.planner.machine", "from time import monotonic"),
        ("pylightnix.planner.machine", "from ..store import index"),
        ("pylightnix.planner.machine", "from .. import store"),
        ("pylightnix.planner.machine", "from pylightnix import store"),
        ("pylightnix.types", "from pylightnix.refs import mkdref"),
        ("pylightnix.types", "from . import errors"),
        ("pylightnix.errors", "from pylightnix import refs"),
    ],
)
def test_violation_is_found(importer: str, source: str) -> None:
    assert violations(list(read_imports(source, importer, is_package=False)))


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("pylightnix.core", "import os, sqlite3\nfrom pylightnix.store import index"),
        ("pylightnix_client.cli", "from pylightnix import realize"),
        ("pylightnix.planner.machine", "from .events import Built\nfrom pylightnix.types import DRef"),
        ("pylightnix.planner.machine", "import osmium, timeit"),
        ("pylightnix.planner.machine", "if TYPE_CHECKING:\n    from pylightnix.store import Index"),
    ],
)
def test_innocent_import_is_let_through(importer: str, source: str) -> None:
    # `errors` may import `types`, in either spelling; checked apart, as `from pylightnix import x` names the package too.
    assert violations(list(read_imports(source, importer, is_package=False))) == []


def test_relative_import_of_a_package_starts_at_itself() -> None:
    [base, name] = read_imports("from . import machine", "pylightnix.planner", is_package=True)
    assert (base.imported, name.imported) == ("pylightnix.planner", "pylightnix.planner.machine")
