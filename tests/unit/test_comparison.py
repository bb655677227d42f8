"""What differs between two derivations: named by its place, plain values first."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from pylightnix.codekey import CodeEntry, CodeManifest
from pylightnix.comparison import ConfigChange, code_change, config_changes
from pylightnix.types import DRef, Hash

ONE, OTHER = (DRef(f"dref:{digit * 32}-x") for digit in "01")


@pytest.mark.parametrize(
    ("new", "old", "said"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": float("nan")}, {"a": float("nan")}, []),
        ({"a": 1}, {"a": 2}, ["the config value a is 1, and was 2"]),
        ({"a": 1}, {"a": 1.0}, ["the config value a is 1, and was 1.0"]),
        ({"a": True}, {"a": 1}, ["the config value a is True, and was 1"]),
        ({"a": {"b": [0, 1]}}, {"a": {"b": [0, 2]}}, ["the config value a.b[1] is 1, and was 2"]),
        ({"a": [1]}, {"a": [1, 2]}, ["the config value a is [1], and was [1, 2]"]),
        ({"a": None}, {}, ["the config value a is new: None"]),
        ({}, {"a": "x"}, ["the config value a is gone; it was 'x'"]),
        ({"a": ONE}, {"a": "x"}, [f"the config value a is {str(ONE)!r}, and was 'x'"]),
        ({"__source__": "1"}, {"__source__": "2"}, []),
        ({"b": 1, "a": 2}, {"b": 2, "a": 1}, ["the config value a is 2, and was 1", "the config value b is 1, and was 2"]),
    ],
)
def test_values_that_differ_are_named(new: dict[str, Any], old: dict[str, Any], said: list[str]) -> None:
    assert [change.text for change in config_changes(new, old)] == said


def test_dependencies_come_last() -> None:
    changes = config_changes({"a": [ONE, "out"], "b": 1}, {"a": [OTHER, "out"], "b": 2})
    assert changes == [ConfigChange("b", "the config value b is 1, and was 2"), ConfigChange("a[0]", "", (ONE, OTHER))]


def manifest(**entries: tuple[str, str, str]) -> CodeManifest:
    return CodeManifest(Hash("0" * 64), {name: CodeEntry(*entry) for name, entry in entries.items()}, (), {})


def test_code_that_differs_is_named() -> None:
    f, g = ("function", "1", ""), ("function", "2", "")
    assert code_change(manifest(f=f), manifest(f=f)) is None
    assert code_change(manifest(f=f), manifest(f=g)) == "the function f changed"
    assert code_change(manifest(X=("data", "1", "3")), manifest(X=("data", "2", "4"))) == "the data X is 3, and was 4"
    assert code_change(manifest(f=f, a=g), manifest(f=g)) == "the function f changed", "what called it comes first"
    assert code_change(manifest(f=f, a=g), manifest(f=f)) == "the function a is reached, and was not"
    assert code_change(manifest(f=f), manifest(f=f, a=g)) == "the function a was reached, and is not any more"


def test_name_in_another_module_is_the_same_name() -> None:
    f, g = ("function", "1", ""), ("function", "2", "")
    script, module = manifest(**{"__main__.f": f, "__main__.g": f}), manifest(**{"q.f": g, "q.g": f})
    assert code_change(module, script) == "the function q.f changed"
    assert code_change(script, module) == "the function __main__.f changed"
    assert code_change(manifest(**{"q.f": f}), manifest(**{"p.f": f})) is None, "it was moved"
    assert code_change(manifest(**{"q.f": f, "r.f": f}), manifest(**{"p.f": f})) == "the function q.f is reached, and was not"
    assert code_change(manifest(**{"q.f": ("data", "1", "3")}), manifest(**{"p.f": f})) == "the data q.f is reached, and was not"
    packages = [manifest(**{name: ("external", name, "")}) for name in ("a.b:loads", "a.c:loads")]
    assert code_change(*packages) == "the external a.b:loads is reached, and was not"


def test_other_version_of_the_key_is_told_before_all_else() -> None:
    f = ("function", "1", "")
    old = replace(manifest(f=f), key=1)
    assert code_change(replace(manifest(g=f), key=2), old) == "the key's version changed: code counts by version 2, and did by version 1"
    recorded = json.loads(old.to_json())
    del recorded["key"]
    assert CodeManifest.from_json(json.dumps(recorded)).key == 1, "manifests of the first version do not have it"
