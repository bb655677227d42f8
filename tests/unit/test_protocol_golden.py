"""The bytes on record: every message, encoded and decoded. What is on record is added to, never changed."""

from __future__ import annotations

import msgpack  # type: ignore[import-untyped]  # it ships no type information
import pytest
from tests.loops import for_each
from tests.wire import CLIENT_RECORDS, RECORDS, WORKER_AND_MATCHER, WORKER_RECORDS, Recorded

from pylightnix.protocol import encode_notification, encode_request, encode_response, parse_message
from pylightnix.protocol.messages import CLIENT_VOCABULARY
from pylightnix.protocol.vocabulary import Vocabulary


def encoded(item: Recorded, value: object) -> bytes:
    if item.message == "notification":
        return encode_notification(item.method, value)  # type: ignore[arg-type]  # a struct or a map, as the test has it
    assert item.id is not None
    if item.message == "request":
        return encode_request(item.id, item.method, value)  # type: ignore[arg-type]  # the same
    error, result = (value, None) if item.message == "error" else (None, value)
    return encode_response(item.id, error, result)  # type: ignore[arg-type]  # the same


@for_each("item", RECORDS)
def test_value_becomes_the_bytes_on_record(item: Recorded) -> None:
    assert encoded(item, parse_message(item.value, item.type)).hex() == item.data.hex()
    assert encoded(item, item.value).hex() == item.data.hex()


@for_each("item", RECORDS)
def test_bytes_on_record_become_the_value(item: Recorded) -> None:
    envelope = msgpack.unpackb(item.data)
    value = {"request": lambda: envelope[3][0], "response": lambda: envelope[3], "error": lambda: envelope[2]}
    read = value.get(item.message, lambda: envelope[2][0])()
    assert read == item.value
    assert parse_message(read, item.type) == parse_message(item.value, item.type)


@pytest.mark.parametrize(
    ("vocabulary", "records"), [(CLIENT_VOCABULARY, CLIENT_RECORDS), (WORKER_AND_MATCHER, WORKER_RECORDS)], ids=["client", "worker"]
)
def test_every_message_is_on_record(vocabulary: Vocabulary, records: list[Recorded]) -> None:
    expected = {(message, method) for method in vocabulary.methods for message in ("request", "response")}
    expected |= {("notification", method) for method in vocabulary.notifications}
    assert {(item.message, item.method) for item in records} == expected
