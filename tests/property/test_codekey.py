"""Laws of the normalised tree, tried on the standard library's own code."""

from __future__ import annotations

import argparse
import ast
import configparser
import copy
import difflib
import inspect
import json.decoder
import textwrap
from collections.abc import Iterator
from functools import cache
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from pylightnix._syntax import canonical_text

MODULES = [argparse, configparser, difflib, json.decoder, textwrap]
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)


@cache
def corpus() -> list[Any]:
    trees = [ast.parse(inspect.getsource(module)) for module in MODULES]
    return [node for tree in trees for node in ast.walk(tree) if isinstance(node, DEFINITIONS)]


def definitions() -> st.SearchStrategy[Any]:
    return st.integers(0, len(corpus()) - 1).map(lambda i: corpus()[i])


def parsed(text: str) -> Any:
    [statement] = ast.parse(text).body
    return statement.value if isinstance(statement, ast.Expr) else statement


@given(definitions())
def test_formatting_and_comments_do_not_matter(definition: Any) -> None:
    # Written anew by the standard library: other quotes, other breaks, no comments.
    assert canonical_text(parsed(ast.unparse(definition))) == canonical_text(definition)


@given(definitions(), st.text(alphabet="abc .'\"\\", max_size=20))
def test_docstring_does_not_matter(definition: Any, text: str) -> None:
    assume(not isinstance(definition, ast.Lambda))
    body = definition.body[1:] if ast.get_docstring(definition, clean=False) is not None else definition.body
    assume(body and not (isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant)))
    other = copy.copy(definition)
    other.body = [ast.Expr(ast.Constant(text)), *body]
    assert canonical_text(other) == canonical_text(definition)


@given(definitions(), st.data())
def test_every_name_and_constant_matters(definition: Any, data: st.DataObject) -> None:
    other = copy.deepcopy(definition)
    docstrings = {id(node.body[0].value) for node in walk(other) if has_docstring(node)}
    atoms = [
        node for node in walk(other) if isinstance(node, (ast.Constant, ast.Name, ast.Attribute, ast.arg)) and id(node) not in docstrings
    ]
    assume(atoms)
    atom = data.draw(st.sampled_from(atoms))
    field = {"Constant": "value", "Name": "id", "Attribute": "attr", "arg": "arg"}[type(atom).__name__]
    setattr(atom, field, "something else")
    assert canonical_text(other) != canonical_text(definition)


def walk(definition: Any) -> Iterator[Any]:
    yield from ast.walk(definition)


def has_docstring(node: ast.AST) -> bool:
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and ast.get_docstring(node, clean=False) is not None


@given(definitions(), st.data())
def test_every_statement_matters(definition: Any, data: st.DataObject) -> None:
    other = copy.deepcopy(definition)
    bodies = [node.body for node in walk(other) if isinstance(getattr(node, "body", None), list) and not has_docstring(node)]
    bodies = [body for body in bodies if body]
    assume(bodies)
    del data.draw(st.sampled_from(bodies))[0]
    assert canonical_text(other) != canonical_text(definition)


@given(definitions(), definitions())
def test_equal_texts_mean_equal_code(one: Any, other: Any) -> None:
    if canonical_text(one) == canonical_text(other):
        assert ast.dump(without_docstrings(one)) == ast.dump(without_docstrings(other))


def without_docstrings(definition: Any) -> Any:
    bare = copy.deepcopy(definition)
    for node in walk(bare):
        if has_docstring(node):
            del node.body[0]
    return bare
