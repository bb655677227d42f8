"""Bytes to messages: whole, in pieces, with garbage behind, and broken in every way a header can announce."""

from __future__ import annotations

import os
import struct

import msgpack  # type: ignore[import-untyped]  # it ships no type information
import pytest
from tests.loops import for_each
from tests.wire import RECORDS, Recorded, bytewise

from pylightnix.protocol import (
    Decoder,
    Envelope,
    Limits,
    Notification,
    Request,
    Response,
    encode_notification,
    encode_request,
    encode_response,
)
from pylightnix.protocol.errors import LocalProtocolError, MessageInvalid, MessageTooDeep, MessageTooLarge, RemoteProtocolError
from pylightnix.protocol.limits import DEFAULT_LIMITS
from pylightnix.types import DRef

PING = encode_request(5, "ps", {})


def envelope_of(item: Recorded) -> Envelope:
    if item.message == "notification":
        return Notification(item.method, item.value)
    assert item.id is not None
    if item.message == "request":
        return Request(item.id, item.method, item.value)
    return Response(item.id, item.value, None) if item.message == "error" else Response(item.id, None, item.value)


def decode_all(pieces: list[bytes], limits: Limits = DEFAULT_LIMITS) -> list[Envelope]:
    decoder, found = Decoder(limits), []
    for piece in pieces:
        decoder.receive_data(piece)
        while (envelope := decoder.next_message()) is not None:
            found.append(envelope)
    return found


def feed(decoder: Decoder, pieces: list[bytes]) -> None:
    for piece in pieces:
        decoder.receive_data(piece)
        decoder.next_message()


def broken_by(data: bytes, limits: Limits = DEFAULT_LIMITS) -> RemoteProtocolError:
    """Return the error, which must be the same whole and byte by byte, and stay the same afterwards."""
    found = []
    for pieces in ([data], bytewise(data)):
        decoder = Decoder(limits)
        with pytest.raises(RemoteProtocolError) as caught:
            feed(decoder, pieces)
        decoder.receive_data(PING)
        with pytest.raises(RemoteProtocolError) as again:
            decoder.next_message()
        assert again.value is caught.value
        assert decoder.pending_bytes == 0
        found.append(caught.value)
    assert (type(found[0]), found[0].problem) == (type(found[1]), found[1].problem)
    return found[0]


# --- sound messages -----------------------------------------------------------------------------------


@for_each("item", RECORDS)
def test_message_is_read_whole(item: Recorded) -> None:
    assert decode_all([item.data]) == [envelope_of(item)]


@for_each("item", RECORDS)
def test_message_is_read_byte_by_byte(item: Recorded) -> None:
    assert decode_all(bytewise(item.data)) == [envelope_of(item)]


@for_each("item", RECORDS)
def test_message_before_garbage_is_read(item: Recorded) -> None:
    decoder = Decoder()
    decoder.receive_data(item.data + b"\xc1garbage")
    assert decoder.next_message() == envelope_of(item)
    with pytest.raises(RemoteProtocolError):
        decoder.next_message()


@for_each("item", RECORDS)
def test_truncated_message_is_awaited(item: Recorded) -> None:
    for end in range(len(item.data)):
        decoder = Decoder()
        decoder.receive_data(item.data[:end])
        assert decoder.next_message() is None
        assert decoder.pending_bytes == end


def test_all_messages_in_one_piece() -> None:
    assert decode_all([b"".join(item.data for item in RECORDS)]) == [envelope_of(item) for item in RECORDS]


@pytest.mark.parametrize(
    "value", [0, 127, 128, -1, -32, -33, 2**15, -(2**31), 2**63, 2**64 - 1, 1.5, True, False, None, "ä" * 40, b"\0" * 70_000]
)
def test_every_kind_of_value_is_read(value: object) -> None:
    params = {"value": value, "list": [value] * 20, "map": {f"{i}": value for i in range(20)}}
    data = encode_request(1, "m", params)
    assert data == msgpack.packb([0, 1, "m", [params]])
    assert decode_all(bytewise(data)) == [Request(1, "m", params)]


def test_lengths_may_be_spelt_longer_than_needed() -> None:
    data = b"\xdd\x00\x00\x00\x04\xcd\x00\x00\xcf" + struct.pack(">Q", 5) + b"\xdb\x00\x00\x00\x02ps\xdc\x00\x01\xdf\x00\x00\x00\x00"
    assert decode_all(bytewise(data)) == [Request(5, "ps", {})]


def test_references_travel_as_text() -> None:
    [message] = decode_all([encode_notification("m", {"dref": DRef("dref:x")})])
    assert type(message.params["dref"]) is str  # type: ignore[union-attr]  # it is a notification


@pytest.mark.parametrize("value", [object(), 2**64, "\ud800", print])
def test_what_has_no_form_on_the_wire_is_a_local_error(value: object) -> None:
    with pytest.raises(LocalProtocolError, match="cannot be encoded"):
        encode_request(1, "m", {"value": value})


# --- broken streams -----------------------------------------------------------------------------------

START = b"\x94\x00\x2a\xa4wait\x91\x81\xa1x"  # request 42, up to the value of its only param
TOO_LARGE = {
    "bin32": b"\xc6\x80\x00\x00\x00",
    "str32": b"\xdb\x80\x00\x00\x00",
    "array32": b"\xdd\x80\x00\x00\x00",
    "map32": b"\xdf\x80\x00\x00\x00",
    "bin32 just over": b"\xc6" + struct.pack(">I", 4 * 1024 * 1024 + 1),
    "str32 just over": b"\xdb" + struct.pack(">I", 4 * 1024 * 1024 + 1),
    "array32 just over": b"\xdd" + struct.pack(">I", 100_001),
    "map16 just over": b"\xde" + struct.pack(">H", 10_001),
}


@for_each("header", TOO_LARGE.values())
def test_length_over_the_limit_is_refused_by_its_header(header: bytes) -> None:
    error = broken_by(START + header)
    assert (type(error), error.code, error.request_id) == (MessageTooLarge, "too-large", 42)


@for_each("header", TOO_LARGE.values())
def test_length_over_the_limit_is_refused_as_the_whole_message(header: bytes) -> None:
    assert isinstance(broken_by(header), RemoteProtocolError)


def test_message_over_the_limit_is_refused_by_the_header_that_makes_it_so() -> None:
    pieces = START + b"\x93" + 2 * (b"\xc6" + struct.pack(">I", 4 * 1024 * 1024) + b"\0" * 4 * 1024 * 1024)
    decoder = Decoder()
    decoder.receive_data(pieces[: 4 * 1024 * 1024 + 20])
    assert decoder.next_message() is None
    decoder.receive_data(pieces[4 * 1024 * 1024 + 20 : 4 * 1024 * 1024 + 30])
    with pytest.raises(MessageTooLarge, match="longer than 8388608 bytes"):
        decoder.next_message()


def test_announced_items_count_towards_the_message() -> None:
    error = broken_by(b"\x94\x00\x01\xa1m\x91\x81\xa1x\xdc\x00\x64", Limits(message_bytes=100))
    assert error.problem == "a message is longer than 100 bytes"


def test_message_of_exactly_the_limit_is_read() -> None:
    data = encode_request(1, "m", {"x": b"\0" * 200})
    assert decode_all([data], Limits(message_bytes=len(data)))
    with pytest.raises(MessageTooLarge):
        decode_all([data], Limits(message_bytes=len(data) - 1))


def test_many_small_values_are_refused() -> None:
    # Each is one byte here and an object there.
    rows = b"\xdd" + struct.pack(">I", 100_000) + b"\x90" * 100_000
    decoder = Decoder()
    decoder.receive_data(START + b"\x96" + rows * 3)
    with pytest.raises(MessageTooLarge, match="more than 200000 values"):
        decoder.next_message()


@pytest.mark.parametrize("depth", [65, 10_000])
@pytest.mark.parametrize("opening", [b"\x91", b"\x81\xa1k"], ids=["arrays", "maps"])
def test_deep_nesting_is_refused(opening: bytes, depth: int) -> None:
    error = broken_by(START + opening * (depth - 3))
    assert (type(error), error.code, error.request_id) == (MessageTooDeep, "too-deep", 42)


def test_nesting_of_exactly_the_limit_is_read() -> None:
    # Envelope, params and their map are three levels.
    [message] = decode_all([START + b"\x91" * 60 + b"\x90"])
    assert isinstance(message, Request)


@pytest.mark.parametrize("first", [0xC1, 0xC7, 0xC8, 0xC9, *range(0xD4, 0xD9)])
def test_extension_types_are_refused(first: int) -> None:
    assert "begins no value" in broken_by(START + bytes([first])).problem
    assert "begins no value" in broken_by(bytes([first])).problem


@pytest.mark.parametrize("value", [b"\x00", b"\xc0", b"\xa1a", b"\xc4\x01a", b"\x80", b"\xcb" + bytes(8)])
def test_message_that_is_no_array_is_refused_at_once(value: bytes) -> None:
    assert broken_by(value[:1] if value[0] < 0xC4 else value[:2]).problem == "a message is an array"


@pytest.mark.parametrize("key", [b"\x01", b"\xc0", b"\xc4\x01a", b"\x90", b"\x80", b"\xc3"])
def test_key_that_is_not_text_is_refused(key: bytes) -> None:
    assert broken_by(START + b"\x82\xa1a\x01" + key).problem == "a key of a map is not text"


def test_repeated_key_is_refused() -> None:
    error = broken_by(b"\x94\x00\x05\xa1m\x91\x82\xa1a\x01\xa1a\x02")
    assert (error.problem, error.request_id) == ("a map has the same key twice", 5)


@pytest.mark.parametrize("text", [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"/caf\xe9", b"\xe2\x82"])
def test_bytes_that_are_not_utf8_come_as_the_system_has_them(text: bytes) -> None:
    data = encode_request(5, "m", {"key": os.fsdecode(text), os.fsdecode(text): [1]})
    assert data == b"\x94\x00\x05\xa1m\x91\x82\xa3key" + 2 * (bytes([0xA0 + len(text)]) + text) + b"\x91\x01"
    for pieces in ([data], bytewise(data)):
        [request] = decode_all(pieces)
        assert isinstance(request, Request)
        assert {os.fsencode(key): value for key, value in request.params.items()} == {b"key": os.fsdecode(text), text: [1]}


def test_surrogate_that_stands_for_no_byte_is_not_sent() -> None:
    for number in (0xD800, 0xDBFF, 0xDC00, 0xDC7F, 0xDD00):
        with pytest.raises(LocalProtocolError, match="cannot be encoded"):
            encode_request(5, "m", {"path": f"/a{chr(number)}"})


@pytest.mark.parametrize(
    "value", [[], [3, 1, "m", [{}]], [-1], ["0", 1, "m", [{}]], [0.0, 1, "m", [{}]], [False, 1, "m", [{}]], [None], [[0]]]
)
def test_array_of_another_kind_breaks_the_stream(value: list[object]) -> None:
    assert broken_by(msgpack.packb(value)).field == "$[0]"


# --- wrong messages in a sound stream -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "field", "request_id"),
    [
        ([0], "$", None),
        ([0, 7], "$", 7),
        ([0, 7, "m", [{}], 1], "$", 7),
        ([0, -1, "m", [{}]], "$[1]", None),
        ([0, 2**32, "m", [{}]], "$[1]", None),
        ([0, "7", "m", [{}]], "$[1]", None),
        ([0, True, "m", [{}]], "$[1]", None),
        ([0, 7, 1, [{}]], "$[2]", 7),
        ([0, 7, b"m", [{}]], "$[2]", 7),
        ([0, 7, "m" * 65, [{}]], "$[2]", 7),
        ([0, 7, "m", {}], "$[3]", 7),
        ([0, 7, "m", []], "$[3]", 7),
        ([0, 7, "m", [{}, {}]], "$[3]", 7),
        ([0, 7, "m", [[]]], "$[3]", 7),
        ([0, 7, "m", None], "$[3]", 7),
        ([1, 7, None], "$", None),
        ([1, "7", None, {}], "$[1]", None),
        ([1, 7, None, None], "$", None),
        ([1, 7, {}, {}], "$", None),
        ([1, 7, "no", None], "$", None),
        ([1, 7, None, 5], "$", None),
        ([2, "m"], "$", None),
        ([2, 7, [{}]], "$[1]", None),
        ([2, "m", [{}], 1], "$", None),
        ([2, "m", [5]], "$[2]", None),
    ],
)
def test_wrong_message_costs_itself_only(value: list[object], field: str, request_id: int | None) -> None:
    for pieces in ([msgpack.packb(value) + PING], bytewise(msgpack.packb(value) + PING)):
        decoder, errors, found = Decoder(), [], []
        for piece in pieces:
            decoder.receive_data(piece)
            while True:
                try:
                    envelope = decoder.next_message()
                except MessageInvalid as error:
                    errors.append((error.field, error.request_id))
                    continue
                if envelope is None:
                    break
                found.append(envelope)
        assert (errors, found) == ([(field, request_id)], [Request(5, "ps", {})])


@pytest.mark.parametrize("request_id", [0, 127, 128, 255, 256, 65535, 65536, 2**32 - 1])
def test_broken_message_names_its_request(request_id: int) -> None:
    data = encode_request(request_id, "m", {"x": 1})
    assert broken_by(data[:-1] + b"\xc1").request_id == request_id


@pytest.mark.parametrize("start", [b"\x94\x01\x05", b"\x94\x00\xa1a", b"\x93\x02\xa1m", b"\x94\x00\xcf" + bytes(8)])
def test_broken_message_without_an_id_names_none(start: bytes) -> None:
    assert broken_by(start + b"\xc1").request_id is None


# --- cost -----------------------------------------------------------------------------------------------


def test_cost_is_linear_when_fed_byte_by_byte() -> None:
    params = {"rows": [["ab", i, 1.5, {"key": "value" * 8}] for i in range(12_000)], "data": b"\0" * 300_000}
    data = encode_response(1, None, params)
    assert len(data) > 1024 * 1024 - 100_000
    at_once = Decoder()
    at_once.receive_data(data)
    assert at_once.next_message() is not None
    bytewise_decoder = Decoder()
    for i in range(len(data)):
        bytewise_decoder.receive_data(data[i : i + 1])
        assert (bytewise_decoder.next_message() is not None) == (i == len(data) - 1)
    # Each header is looked at once when it is whole, and once for each of its at most four length bytes before.
    assert at_once.headers_read < len(data)
    assert bytewise_decoder.headers_read <= 5 * at_once.headers_read
