"""`docs/protocol.md` says what the code does: every name, type, default, limit and error code, in both directions."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import msgspec
import pytest
from msgspec import inspect
from tests.loops import for_each
from tests.wire import CLIENT_RECORDS

from pylightnix.protocol import limits
from pylightnix.protocol.errors_on_wire import ERROR_CLASSES, FAILURE_CLASSES, WireError
from pylightnix.protocol.messages import METHODS, NOTIFICATIONS, OUTCOME_ROWS, QUERY_ROWS
from pylightnix.protocol.vocabulary import Side

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "protocol.md"
TEXT = DOCUMENT.read_text() if DOCUMENT.is_file() else ""

SIMPLE = {
    inspect.BoolType: "bool",
    inspect.IntType: "int",
    inspect.FloatType: "float",
    inspect.StrType: "text",
    inspect.BytesType: "bin",
    inspect.AnyType: "any",
    inspect.NoneType: "nil",
}


# --- how the document spells a type -----------------------------------------------------------------------


def title_of(kind: inspect.Type) -> str | None:
    return (kind.extra_json_schema or {}).get("title") if isinstance(kind, inspect.Metadata) else None


def spell(kind: inspect.Type) -> str:
    if isinstance(kind, inspect.Metadata):
        return title_of(kind) or spell(kind.type)
    if isinstance(kind, inspect.ListType):
        return f"[{spell(kind.item_type)}]"
    if isinstance(kind, inspect.DictType):
        return f"{{{spell(kind.key_type)}: {spell(kind.value_type)}}}"
    if isinstance(kind, inspect.LiteralType):
        return " or ".join(json.dumps(value) for value in kind.values)
    if isinstance(kind, inspect.UnionType):
        return " or ".join(spell(part) for part in kind.types)
    if isinstance(kind, inspect.StructType):
        return kind.cls.__name__
    return SIMPLE[type(kind)]


def spell_default(field: inspect.Field) -> str:
    if field.required:
        return "required"
    if field.default is msgspec.NODEFAULT and field.default_factory is msgspec.NODEFAULT:
        return "absent"
    value = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
    return "nil" if value is None else json.dumps(value)


def spell_bounds(kind: inspect.Type) -> str:
    """Return what is valid of a titled kind of value, as the document says it."""
    if isinstance(kind, inspect.StrType):
        pattern = (kind.pattern or "").removeprefix(r"\A").removesuffix(r"\Z").replace("|", r"\|")
        parts = [f"`{pattern}`"] if pattern else []
        if kind.max_length is not None:
            parts.append(f"{kind.min_length or 0} to {kind.max_length} characters")
        return "text: " + ", ".join(parts)
    if isinstance(kind, inspect.BytesType):
        return f"bin: {kind.min_length or 0} to {kind.max_length} bytes"
    assert isinstance(kind, (inspect.IntType, inspect.FloatType))
    if isinstance(kind, inspect.IntType):
        return f"int: {kind.ge} to {kind.le}"
    assert kind.ge is not None
    assert kind.le is not None
    return f"float or int: {kind.ge:g} to {kind.le:g}"


def rows_of_type(kind: type) -> list[tuple[str, str, str]]:
    described = inspect.type_info(kind)
    assert isinstance(described, inspect.StructType)
    return [(field.name, spell(field.type), spell_default(field)) for field in described.fields]


# --- what the code has --------------------------------------------------------------------------------------


def parts_of(kind: inspect.Type) -> list[inspect.Type]:
    if isinstance(kind, inspect.Metadata):
        return [kind.type]
    if isinstance(kind, inspect.ListType):
        return [kind.item_type]
    if isinstance(kind, inspect.DictType):
        return [kind.key_type, kind.value_type]
    if isinstance(kind, inspect.UnionType):
        return list(kind.types)
    return [field.type for field in kind.fields] if isinstance(kind, inspect.StructType) else []


def reachable() -> tuple[dict[str, str], dict[str, type]]:
    """Return the titled kinds of values with their bounds, and the structs, that any message is made of."""
    tops: list[object] = [kind for method in METHODS.values() for kind in (method.params, method.result)]
    tops += [known.params for known in NOTIFICATIONS.values()] + [WireError, *OUTCOME_ROWS.values(), *QUERY_ROWS.values()]
    titled: dict[str, str] = {}
    structs: dict[str, type] = {}
    stack = [inspect.type_info(top) for top in tops]
    while stack:
        kind = stack.pop()
        if title := title_of(kind):
            assert isinstance(kind, inspect.Metadata)
            titled[title] = spell_bounds(kind.type)
        if isinstance(kind, inspect.StructType):
            structs[kind.cls.__name__] = kind.cls
        stack += parts_of(kind)
    # Params and results have tables of their own, and so has the error.
    top_names = {getattr(top, "__name__", "") for top in tops} - ROW_TYPES
    nested = {name: cls for name, cls in structs.items() if name not in top_names}
    return titled, nested


ROW_TYPES = {kind.__name__ for kind in (*OUTCOME_ROWS.values(), *QUERY_ROWS.values()) if isinstance(kind, type)}


# --- what the document has ----------------------------------------------------------------------------------


def section(title: str) -> str:
    """Return the text below a heading, up to the next heading of its level or above."""
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^\#{{1,2}} |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert found, f"no section {title!r} in {DOCUMENT}"
    return found[2]


def subsections(title: str) -> dict[str, str]:
    parts = re.split(r"^### (.+)\n", section(title), flags=re.MULTILINE)
    return {name.strip("`"): body for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def table_rows(text: str) -> list[list[str]]:
    """Return the cells of all rows whose first cell is code."""
    lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in cells] for cells in lines]


def fields_table(text: str) -> list[tuple[str, str, str]]:
    return [(name.strip("`"), kind.strip("`"), default.strip("`")) for name, kind, default, meaning in table_rows(text) if meaning]


# --- the comparison -----------------------------------------------------------------------------------------


def test_methods_are_all_there() -> None:
    assert sorted(subsections("Methods")) == sorted(METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_method_is_as_described(method: str) -> None:
    params, _, result = subsections("Methods")[method].partition("Result")
    assert fields_table(params) == rows_of_type(METHODS[method].params)
    assert fields_table(result) == rows_of_type(METHODS[method].result)


@pytest.mark.parametrize("method", METHODS)
def test_read_only_methods_are_marked(method: str) -> None:
    assert ("Read-only." in subsections("Methods")[method]) == METHODS[method].read_only


def test_notifications_are_all_there() -> None:
    assert sorted(subsections("Notifications")) == sorted(NOTIFICATIONS)


@for_each("name", NOTIFICATIONS)
def test_notification_is_as_described(name: str) -> None:
    text = subsections("Notifications")[name]
    sender = "Client to daemon." if NOTIFICATIONS[name].sender is Side.client else "Daemon to client."
    assert sender in text
    assert fields_table(text) == rows_of_type(NOTIFICATIONS[name].params)


def test_shared_types_are_as_described() -> None:
    _, nested = reachable()
    found = {name: fields_table(body) for name, body in subsections("Shared types").items()}
    assert found == {name: rows_of_type(kind) for name, kind in nested.items()}


def test_kinds_of_values_are_as_described() -> None:
    titled, _ = reachable()
    assert {row[0].strip("`"): row[1] for row in table_rows(section("Kinds of values"))} == titled


def test_rows_are_as_described() -> None:
    expected = {name: spell(inspect.type_info(kind)) for name, kind in {**OUTCOME_ROWS, **QUERY_ROWS}.items()}
    assert {row[0].strip("`"): row[1].strip("`") for row in table_rows(section("Rows"))} == expected


def test_limits_are_as_described() -> None:
    numbers = {name.lower(): getattr(limits, name) for name in limits.__all__ if name.isupper() and name != "DEFAULT_LIMITS"}
    everything = {**asdict(limits.Limits()), **numbers}
    expected = {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in everything.items()}
    assert {row[0].strip("`"): row[1] for row in table_rows(section("Limits"))} == expected


def test_errors_are_as_described() -> None:
    codes = [row for row in table_rows(section("Errors")) if len(row) == 3]
    assert {row[0].strip("`"): row[1] for row in codes} == {code: "yes" if cls.retryable else "no" for code, cls in ERROR_CLASSES.items()}
    failures = {row[0].strip("`") for row in table_rows(section("Errors")) if len(row) == 2}
    assert failures == set(FAILURE_CLASSES)
    assert [tuple(cell.strip("`") for cell in row[:3]) for row in table_rows(section("Errors")) if len(row) == 4] == rows_of_type(WireError)


def test_bytes_of_the_conversation_are_on_record() -> None:
    dumps = re.findall(r"^    ([0-9a-f ]+?)(?:  .*)?$", section("A conversation, byte by byte"), re.MULTILINE)
    shown = "".join(dumps).replace(" ", "")
    recorded = {item.data.hex() for item in CLIENT_RECORDS}
    messages = re.split(r"(?=9[34]0[012])", shown)
    assert messages[0] == ""
    for message in messages[1:]:
        assert message in recorded
