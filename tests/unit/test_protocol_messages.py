"""Params and results: what is let through, and that what is not names its field."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import msgspec
import pytest
from tests.loops import for_each
from tests.wire import RECORDS, Recorded

from pylightnix.protocol import _values, messages, parse_message, worker_messages
from pylightnix.protocol.errors import MessageInvalid
from pylightnix.protocol.limits import CONFIG_BYTES_MAX, DERIVATIONS_PER_MESSAGE_MAX
from pylightnix.protocol.messages import (
    Abandon,
    Candidate,
    ClientHello,
    Deliver,
    DrainingNotice,
    FailedRow,
    MatchedRow,
    Register,
    Rows,
    SkippedRow,
    StepRow,
    SubmitAdd,
    SubmitOpen,
    ToldRow,
    rows_of,
)
from pylightnix.protocol.vocabulary import in_words

DREF = "dref:" + "0123456789abcdef" * 2 + "-model"
RREF = "rref:" + "fedcba9876543210" * 2 + "-" + "0123456789abcdef" * 2 + "-model"
VALUES: list[Any] = [None, True, -1, 2**64, 1.5, "", "\n", "x" * 70_000, b"", b"\0\0", [], [None], {}, {"": None}, [[]], [0, 0]]

FIELDS = [(item, name) for item in RECORDS for name in item.value]


def problem_of(value: dict[str, Any], wanted: type[msgspec.Struct]) -> MessageInvalid | None:
    try:
        parse_message(value, wanted, 7)
    except MessageInvalid as error:
        return error
    return None


def problem_with(value: dict[str, Any], wanted: type[msgspec.Struct]) -> MessageInvalid:
    error = problem_of(value, wanted)
    assert error is not None
    assert error.request_id == 7
    return error


@for_each("item, name", FIELDS)
def test_wrong_type_names_its_field(item: Recorded, name: str) -> None:
    problems = [error for wrong in VALUES if (error := problem_of({**item.value, name: wrong}, item.type)) is not None]
    assert [error for error in problems if f"$.{name}" not in str(error.field) or error.request_id != 7] == []
    # A field takes few of these; what is any JSON map takes two, and rows take all lists.
    assert len(problems) >= len(VALUES) // 2


@for_each("item, name", FIELDS)
def test_absent_field_has_a_default_or_is_missed(item: Recorded, name: str) -> None:
    rest = {key: value for key, value in item.value.items() if key != name}
    field = next(field for field in msgspec.structs.fields(item.type) if field.name == name)
    if field.required:
        assert name in problem_with(rest, item.type).problem
    else:
        parse_message(rest, item.type)


@for_each("item", RECORDS)
def test_unknown_field_is_ignored(item: Recorded) -> None:
    assert parse_message({**item.value, "of a newer version": [1]}, item.type) == parse_message(item.value, item.type)


DERIVATION = {"config": b"{}", "matcher": {"kind": "latest"}, "realizer": {"kind": "mknode"}}
ENVIRONMENT = {"interpreter": "/bin/python", "import_path": [], "umask": 0o22, "variables": {}}


@pytest.mark.parametrize(
    ("wanted", "value", "field"),
    [
        (SubmitAdd, {"operation": "o", "derivations": [DERIVATION, {**DERIVATION, "config": "{}"}]}, "$.derivations[1].config"),
        (SubmitAdd, {"operation": "o", "derivations": [{**DERIVATION, "matcher": {"kind": "best"}}]}, "$.derivations[0].matcher.kind"),
        (
            SubmitAdd,
            {"operation": "o", "derivations": [{**DERIVATION, "matcher": {"kind": "some", "n": -1}}]},
            "$.derivations[0].matcher.n",
        ),
        (SubmitAdd, {"operation": "o", "derivations": [DERIVATION] * (DERIVATIONS_PER_MESSAGE_MAX + 1)}, "$.derivations"),
        (SubmitAdd, {"operation": "a b", "derivations": []}, "$.operation"),
        (SubmitOpen, {"targets": [DREF, RREF], "environment": ENVIRONMENT}, "$.targets[1]"),
        (SubmitOpen, {"targets": [DREF + "\n"], "environment": ENVIRONMENT}, "$.targets[0]"),
        (SubmitOpen, {"targets": [], "environment": {**ENVIRONMENT, "umask": 0o1000}}, "$.environment.umask"),
        (SubmitOpen, {"targets": [], "environment": {**ENVIRONMENT, "interpreter": "python"}}, "$.environment.interpreter"),
        (SubmitOpen, {"targets": [], "environment": {**ENVIRONMENT, "variables": {"A": "\0"}}}, "$.environment.variables[...]"),
        (SubmitOpen, {"targets": [], "environment": {**ENVIRONMENT, "variables": {"A=": ""}}}, "key in $.environment.variables"),
        (Register, {"configs": [b"x" * (CONFIG_BYTES_MAX + 1)]}, "$.configs[0]"),
        (Register, {"configs": ["e30="]}, "$.configs[0]"),
        (DrainingNotice, {"retry_after": float("nan")}, "$.retry_after"),
        (DrainingNotice, {"retry_after": float("inf")}, "$.retry_after"),
        (DrainingNotice, {"retry_after": "1"}, "$.retry_after"),
        (SubmitAdd, {}, "$"),
        (ClientHello, {"versions": [1], "client": "caf\udce9"}, "$.client"),
        (ClientHello, {"versions": [1], "client": "c", "\udce9": 1}, "$"),
        (SubmitOpen, {"targets": ["\udce9"], "environment": ENVIRONMENT}, "$.targets[0]"),
        (Abandon, {"claim": "c", "error": {"code": "c", "message": "\udce9"}}, "$.error.message"),
        (Abandon, {"claim": "c", "error": {"code": "\udce9", "message": ""}}, "$.error.code"),
        *((Deliver, {"claim": "c", "outputs": ["out", name], "started": 0}, "$.outputs[1]") for name in ("", ".", "..", "a/b", "a\0")),
    ],
)
def test_what_is_out_of_range_names_its_path(wanted: type[msgspec.Struct], value: dict[str, Any], field: str) -> None:
    error = problem_with(value, wanted)
    assert error.field == field
    assert field in str(error)


@pytest.mark.parametrize("name", [".a", "..a", "...", "a.", "é" * 100])
def test_folder_names_may_have_dots(name: str) -> None:
    assert parse_message({"claim": "c", "outputs": [name], "started": 0}, Deliver).outputs == [name]


def test_rows_get_their_types() -> None:
    failed = {"dref": DREF, "code": "build-failed", "message": "no"}
    assert rows_of("matched", Rows(rows=[[DREF, [RREF]]])) == [MatchedRow(DREF, [RREF])]
    assert rows_of("built", Rows(rows=[DREF])) == [DREF]
    assert rows_of("failed", Rows(rows=[failed])) == [FailedRow(dref=DREF, code="build-failed", message="no")]
    assert rows_of("skipped", Rows(rows=[[DREF, DREF]])) == [SkippedRow(DREF, DREF)]
    assert rows_of("steps", Rows(rows=[[DREF, "build", "new"]])) == [StepRow(DREF, "build", "new")]
    assert rows_of("told", Rows(rows=[[DREF, "UserWarning", "look"]])) == [ToldRow(DREF, "UserWarning", "look")]
    assert rows_of("allrrefs", Rows(rows=[RREF])) == [RREF]
    assert rows_of("starts", Rows(rows=[[RREF, 5]])) == [Candidate(RREF, 5.0)]


def test_wrong_row_names_its_place() -> None:
    with pytest.raises(MessageInvalid) as caught:
        rows_of("matched", Rows(rows=[[DREF, []], [DREF, [DREF]]]))
    assert caught.value.field is not None
    assert caught.value.field.startswith("$.rows[1]")


@pytest.mark.parametrize("module", [messages, worker_messages])
def test_names_are_sorted_and_there(module: Any) -> None:
    assert list(module.__all__) == sorted(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)


def test_importing_the_package_loads_no_protocol() -> None:
    script = "import sys, json, pylightnix; print(json.dumps(sorted(sys.modules)))"
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd="/")
    assert not {"msgpack", "msgspec", "pylightnix.protocol"} & set(json.loads(child.stdout))


def test_no_pattern_reaches_whoever_sent_a_wrong_value() -> None:
    patterns = {
        meta.pattern
        for kind in vars(_values).values()
        for meta in getattr(kind, "__metadata__", ())
        if isinstance(meta, msgspec.Meta) and meta.pattern is not None
    }
    assert len(patterns) >= 12
    for pattern in patterns:
        said = in_words(f"Expected `str` matching regex {pattern!r}")
        assert said.startswith("Expected `str`: ")
        assert "another text" not in said, f"{pattern} has no words"
    for ref in ("./result", "wine.stages:model", "a b", "dref:00", ""):
        with pytest.raises(MessageInvalid, match=r"\$\.ref: Expected `str`: dref:<32 hex .* or the name of a build") as caught:
            parse_message({"ref": ref}, messages.Log)
        assert "regex" not in str(caught.value)
