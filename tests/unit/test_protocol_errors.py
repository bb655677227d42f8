"""Errors cross the wire and come out as the same class, with what they know; nothing of ours leaks, nothing hostile gets in."""

from __future__ import annotations

from pathlib import Path as FilePath
from typing import Any

import pytest
from tests.loops import for_each

from pylightnix.errors import (
    AmbiguousMatch,
    BuildError,
    CycleError,
    InvalidConfig,
    MissingRealization,
    PromiseException,
    PylightnixException,
    RemoteFailure,
    StoreBusy,
)
from pylightnix.protocol import (
    Decoder,
    Response,
    WireError,
    encode_response,
    error_from_failed_row,
    error_from_wire,
    error_to_wire,
    parse_message,
)
from pylightnix.protocol.errors import (
    Draining,
    InternalError,
    LocalProtocolError,
    MessageInvalid,
    MessageTooLarge,
    NoSuchOperation,
    RemoteProtocolError,
    TooMany,
    UnknownError,
    UnknownMethod,
    UnsupportedVersion,
)
from pylightnix.protocol.errors_on_wire import ERROR_CLASSES, FAILURE_CLASSES, failed_row_from_dump
from pylightnix.protocol.messages import FailedRow
from pylightnix.travel.failures import CodeChanged, dump_exception
from pylightnix.types import DRef, Output, Path, RRef, StorageSettings

DREF = DRef("dref:" + "0" * 32 + "-model")
RREF = RRef("rref:" + "1" * 32 + "-" + "0" * 32 + "-model")


def sent(error: BaseException) -> WireError:
    """Return the error as the other end reads it."""
    decoder = Decoder()
    decoder.receive_data(encode_response(1, error_to_wire(error, "incident-1"), None))
    response = decoder.next_message()
    assert isinstance(response, Response)
    assert response.error is not None
    return parse_message(response.error, WireError)


def crossed(error: BaseException) -> PylightnixException:
    return error_from_wire(sent(error))


@pytest.mark.parametrize(
    "error",
    [
        StoreBusy("/s", ["pid 1"], 10.0),
        CycleError([DREF, DREF]),
        InvalidConfig("config.x", "bad", "mend it"),
        MissingRealization(RREF, "/s"),
        AmbiguousMatch("x", [RREF], "one"),
        NoSuchOperation("op-1"),
        Draining(2.5),
        TooMany("operations", 256),
        TooMany("operations", 256, 1.0),
        UnknownMethod("mine"),
        UnsupportedVersion([2], [1]),
        MessageTooLarge("a text has 5 bytes", None),
        MessageInvalid("wrong", "$.x"),
        InternalError("incident-9"),
    ],
    ids=lambda error: error.code,
)
def test_error_keeps_class_text_and_facts(error: PylightnixException) -> None:
    found = crossed(error)
    assert type(found) is type(error)
    assert str(found) == str(error)
    facts = {name: value for name, value in vars(error).items() if value is not None}
    assert {name: getattr(found, name) for name in facts} == facts
    assert (found.code, found.retryable, found.exit_status) == (error.code, error.retryable, error.exit_status)


def test_tuples_become_lists() -> None:
    error = PromiseException(DREF, [(Path("/out"), ["__self__", "a"])])
    found = crossed(error)
    assert isinstance(found, PromiseException)
    assert vars(found)["failed"] == [["/out", ["__self__", "a"]]]
    assert str(found) == str(error)


def test_build_error_keeps_the_name_and_text_of_what_was_raised() -> None:
    error = BuildError(StorageSettings(), DREF, Output([Path("/kept")]), ValueError("no data"), "stage")
    found = crossed(error)
    assert isinstance(found, BuildError)
    assert isinstance(found.exception, RemoteFailure)
    assert (found.S, found.dref, found.outpaths, found.msg) == (None, DREF, ["/kept"], "stage")
    assert (found.exception.type_name, found.exception.text) == ("ValueError", "no data")
    assert "no data" in str(found)
    assert "/kept" in str(found)


@pytest.mark.parametrize("error", [KeyError("raw"), CodeChanged(DREF, "a" * 64, "b" * 64)], ids=["remote-exception", "code-changed"])
def test_what_only_builds_raise_has_a_class_of_its_own(error: Exception) -> None:
    row = failed_row_from_dump(dump_exception(error), DREF)
    found = error_from_failed_row(row)
    assert type(found) is FAILURE_CLASSES[row.code]
    assert found.code == row.code
    assert type(error).__name__ in str(found) or str(found) == str(error)
    assert row.code not in ERROR_CLASSES, "no request is answered so"


def test_failed_row_becomes_an_error() -> None:
    wire = error_to_wire(BuildError(None, DREF, None, ValueError("no data")), "")
    row = FailedRow(dref=DREF, code=wire.code, message=wire.message, type="my.Error", traceback="Traceback", fields=wire.fields)
    found = error_from_failed_row(row)
    assert isinstance(found, BuildError)
    assert isinstance(found.exception, RemoteFailure)
    assert (found.dref, found.exception.type_name, found.exception.traceback) == (DREF, "my.Error", "Traceback")


class Unforeseen(Exception):
    pass


class Derived(StoreBusy):
    """A class that the other end does not have."""

    code = "derived"


@pytest.mark.parametrize("error", [Unforeseen("secret"), KeyError("secret"), LocalProtocolError("secret"), MemoryError()])
def test_unknown_error_tells_an_incident_only(error: BaseException) -> None:
    wire = sent(error)
    assert (wire.code, wire.fields) == ("internal", {"incident": "incident-1"})
    assert "secret" not in str(wire)
    found = error_from_wire(wire)
    assert isinstance(found, InternalError)
    assert found.incident == "incident-1"


def test_derived_error_goes_as_the_class_that_is_known() -> None:
    assert type(crossed(Derived("/s", [], 1.0))) is StoreBusy


def test_broken_stream_is_told_as_an_invalid_message() -> None:
    assert type(crossed(RemoteProtocolError("garbage"))) is MessageInvalid


def test_group_of_one_counts_as_that_one() -> None:
    group = BaseExceptionGroup("g", [ExceptionGroup("h", [NoSuchOperation("op-1")])])
    assert type(crossed(group)) is NoSuchOperation


def test_group_of_several_counts_as_a_bug_in_it_else_as_the_first() -> None:
    assert type(crossed(ExceptionGroup("h", [NoSuchOperation("a"), Draining(1.0)]))) is NoSuchOperation
    assert sent(ExceptionGroup("h", [NoSuchOperation("a"), ExceptionGroup("i", [ZeroDivisionError()])])).code == "internal"


def test_code_of_a_newer_daemon_is_kept() -> None:
    found = error_from_wire(WireError(code="out-of-gpus", message="no gpu is free", fields={"gpus": 0}, retry_after=3.0))
    assert isinstance(found, UnknownError)
    assert (found.remote_code, str(found)) == ("out-of-gpus", "no gpu is free [out-of-gpus]")
    assert (vars(found)["gpus"], vars(found)["retry_after"]) == (0, 3.0)


@for_each("code", ERROR_CLASSES)
def test_error_without_fields_has_its_text(code: str) -> None:
    found = error_from_wire(WireError(code=code, message="what happened"))
    assert type(found) is ERROR_CLASSES[code]
    assert "what happened" in str(found)
    assert repr(found)


@for_each("code", ERROR_CLASSES)
def test_hostile_fields_change_nothing_but_attributes(code: str) -> None:
    names = ["args", "code", "retryable", "exit_status", "__class__", "__traceback__", "_x", "with_traceback", "a b"]
    values: list[Any] = [5, None, [], {}, "x"]
    for value in values:
        fields = {**dict.fromkeys(names, value), **dict.fromkeys(["outpaths", "exception", "msg", "dref", "S"], value)}
        found = error_from_wire(WireError(code=code, message="what happened", fields=fields))
        assert type(found) is ERROR_CLASSES[code]
        assert found.code == code
        assert isinstance(str(found), str)
        assert not set(names) & set(vars(found))
        assert found.with_traceback(None) is found


def test_fields_hold_what_json_can_express() -> None:
    error = NoSuchOperation("op-1")
    deep: list[Any] = []
    for _ in range(100):
        deep = [deep]
    vars(error).update(
        path=FilePath("/x"), raw=b"x", nan=float("nan"), huge=2**70, deep=deep, many=list(range(20_000)), long="x" * 300_000, _private=1,
        good={"a": [1, None, True, 1.5]}, keyed={1: 2}, settings=StorageSettings(), where="/caf\udcff", lone="\ud800",
    )  # fmt: skip
    assert sent(error).fields == {"operation": "op-1", "good": {"a": [1, None, True, 1.5]}, "where": "/caf\udcff", "lone": "\\ud800"}


def test_all_fields_together_stay_small() -> None:
    error = NoSuchOperation("op-1")
    vars(error).update({f"field_{i}": "x" * 50_000 for i in range(100)})
    assert len(encode_response(1, error_to_wire(error, ""), None)) < 300_000


def test_long_or_unspeakable_text_is_made_sendable() -> None:
    assert len(sent(NoSuchOperation("x" * 1_000_000)).message) < 65_536
    assert "\\udcff" in sent(NoSuchOperation("/a/\udcff")).message
