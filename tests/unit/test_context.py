"""Contexts: what is refused, and the corners of the helpers."""

from __future__ import annotations

from typing import Any

import pytest

from pylightnix.context import (
    LazyContext,
    assert_valid_context,
    context_add,
    context_deref,
    context_eq,
    context_file_text,
    context_key,
    context_serialize,
    mkcontext,
    parse_context,
)
from pylightnix.errors import InvalidReference, Misuse
from pylightnix.refs import mkdref, mkrref
from pylightnix.types import Context

A, B = mkdref("a" * 32, "one"), mkdref("b" * 32, "two")
A1, A2, B1 = mkrref("1" * 32, "a" * 32, "one"), mkrref("2" * 32, "a" * 32, "one"), mkrref("1" * 32, "b" * 32, "two")


def test_the_text_of_context_json() -> None:
    assert context_file_text({}, {}) == '{\n  "deps": {},\n  "dynamic": {}\n}\n'
    lines = [
        "{",
        '  "deps": {',
        f'    "{A}": [',
        f'      "{A1}",',
        f'      "{A2}"',
        "    ],",
        f'    "{B}": [',
        f'      "{B1}"',
        "    ]",
        "  },",
        '  "dynamic": {}',
        "}",
    ]
    assert context_file_text({B: [B1], A: [A2, A1]}, {}).splitlines() == lines


def test_the_key_of_nothing_is_that_of_an_empty_object() -> None:
    assert context_key({}) == "44136fa355b3678a1146ad16f7e8649e"


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"deps": {}},
        {"deps": {}, "dynamic": {}, "more": {}},
        {"deps": [], "dynamic": {}},
        {"deps": {}, "dynamic": None},
        {"deps": {A: A1}, "dynamic": {}},
        {"deps": {A: None}, "dynamic": {}},
        {"deps": {A: [A]}, "dynamic": {}},
        {"deps": {A: [1]}, "dynamic": {}},
        {"deps": {A1: [A1]}, "dynamic": {}},
        {"deps": {}, "dynamic": {"x": []}},
        {A: [A1]},
    ],
)
def test_a_stored_context_of_another_shape_is_refused(value: Any) -> None:
    with pytest.raises(InvalidReference, match="expected"):
        parse_context(value)


@pytest.mark.parametrize(
    "context", [None, [], {A1: [A1]}, {"x": None}, {A: [A]}, {A: [None]}, {A: A1}, {A: 5}, {A: 0}, {A: (A1,)}, {A: ""}, {A: {A1: 1}}]
)
def test_an_invalid_context_is_refused(context: Any) -> None:
    with pytest.raises(InvalidReference):
        assert_valid_context(context)


def test_valid_contexts() -> None:
    valid: list[Context] = [mkcontext(), {A: None}, {A: [A1, A2], B: [B1]}, {A: []}]
    for context in valid:
        assert_valid_context(context)


def test_no_realizations_are_stored_as_none() -> None:
    assert context_add({}, A, []) == context_add({}, A, None) == {A: None}
    assert context_serialize({B: [], A: [A2, A1]}) == f'{{"{A}":["{A1}","{A2}"],"{B}":null}}'
    assert context_eq({A: None}, {A: []})
    assert not context_eq({A: None}, {})
    with pytest.raises(Misuse, match=f"{A} is in this context already"):
        context_add({A: None}, A, [A1])
    empty: list[Context] = [{}, {A: None}]
    for context in empty:
        with pytest.raises(Misuse, match=f"{A} is not among the dependencies of this build"):
            context_deref(context, A)


def test_a_lazy_context_computes_when_something_else_is_asked_for() -> None:
    asked: list[str] = []

    def compute() -> dict[Any, list[Any]]:
        asked.append("computed")
        return {B: [B1], A: [A1]}

    context = LazyContext({B: [B1]}, compute)
    assert context[B] == [B1]
    assert asked == []
    assert context[A] == [A1]
    assert list(context) == [A, B]
    assert asked == ["computed"]
