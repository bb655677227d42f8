"""Orders over dependency graphs, and what becomes of a closure that runs in a circle."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pylightnix import realize, realizeMany
from pylightnix.embedded import realize_closure
from pylightnix.errors import CycleError
from pylightnix.matchers import match_only
from pylightnix.planner.graph import dependency_order, find_cycle
from pylightnix.registry import RegisteredDerivation, Registry, mkclosure
from pylightnix.types import Closure, DRef, StorageSettings

pytestmark = pytest.mark.language


def test_dependencies_come_first_and_the_rest_keeps_its_order() -> None:
    graph = {"late": ["base"], "other": [], "base": [], "unneeded": ["late"], "top": ["late", "other"]}
    assert dependency_order(["top"], graph) == ["other", "base", "late", "top"]
    assert dependency_order(["top", "other", "top"], graph) == ["other", "base", "late", "top"]
    assert dependency_order([], graph) == []


def test_a_dependency_may_be_named_twice() -> None:
    assert dependency_order(["b"], {"b": ["a", "a"], "a": []}) == ["a", "b"]


def test_a_long_chain_is_no_recursion() -> None:
    size = 20_000
    graph = {str(i): [str(i + 1)] for i in range(size)} | {str(size): []}
    assert dependency_order(["0"], graph) == [str(i) for i in range(size, -1, -1)]


@pytest.mark.parametrize(
    ("graph", "path"),
    [
        ({"a": ["a"]}, "a a"),
        ({"a": ["b"], "b": ["a"]}, "a b a"),
        ({"top": ["c"], "c": ["b"], "b": ["a"], "a": ["c"]}, "a c b a"),
        ({"a": ["b", "leaf"], "b": ["c"], "c": ["b"], "leaf": []}, "b c b"),
        ({"a": ["d", "c"], "b": ["a"], "c": ["b"], "d": ["d"]}, "a c b a"),
    ],
)
def test_a_circle_is_named_from_its_least_node(graph: dict[str, list[str]], path: str) -> None:
    with pytest.raises(CycleError) as caught:
        dependency_order(list(graph), graph)
    assert caught.value.path == path.split()
    assert f"circle: {path.replace(' ', ' -> ')};" in str(caught.value)


def test_a_circle_that_no_target_needs_is_no_error() -> None:
    assert dependency_order(["a"], {"a": [], "b": ["c"], "c": ["b"]}) == ["a"]


def test_a_long_circle_is_no_recursion() -> None:
    size = 20_000
    graph = {f"{i:05}": [f"{(i + 1) % size:05}"] for i in range(size)}
    assert len(find_cycle(list(graph), graph)) == size + 1


def test_order_and_circle_are_the_same_in_every_process() -> None:
    """Sets of texts are iterated in another order under another hash seed."""
    script = """if 1:
        from pylightnix.errors import CycleError
        from pylightnix.planner.graph import dependency_order
        names = [f"n{i}" for i in range(40)]
        graph = {name: names[i // 3 : i : 4] for i, name in enumerate(names)}
        print(dependency_order(names[20:], graph))
        try:
            dependency_order(names, {name: [names[i * 7 % 40], names[(i + 3) % 40]] for i, name in enumerate(names)})
        except CycleError as error:
            print(error.path)
    """
    source = str(Path(dependency_order.__code__.co_filename).parents[2])
    printed = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": source},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1
    assert printed.pop().count("\n") == 2


# --- through the public API -------------------------------------------------------------------------

X, Y, Z = (DRef(f"dref:{number:032x}-{name}") for number, name in enumerate("xyz"))


def never(*args: Any) -> list[Any]:
    raise AssertionError("a realizer ran although there is a circle")


def registered(dref: DRef, deps: Sequence[DRef]) -> RegisteredDerivation:
    """Make by hand what no config can say: the hash of a config covers the references in it."""
    derivation = RegisteredDerivation(dref, match_only(), never)
    derivation.config, derivation.deps = b"{}", tuple(deps)
    return derivation


def test_a_closure_with_a_circle_is_refused_naming_it(S: StorageSettings) -> None:
    derivations = [registered(Z, [X]), registered(X, [Y]), registered(Y, [Z])]
    closure = Closure(Z, [Z], list(derivations), S)
    for attempt in (lambda: realize(closure), lambda: realizeMany(closure), lambda: realize_closure(closure, dry_run=True)):
        with pytest.raises(CycleError) as caught:
            attempt()
        assert caught.value.path == [X, Y, Z, X]
        assert f"{X} -> {Y} -> {Z} -> {X}" in str(caught.value)


def test_a_derivation_that_depends_on_itself_is_refused(S: StorageSettings) -> None:
    registry = Registry(S)
    registry.builders[X] = registered(X, [X])
    with pytest.raises(CycleError) as caught:
        mkclosure([X], registry)
    assert caught.value.path == [X, X]
