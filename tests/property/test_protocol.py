"""The wire protocol under any split of any bytes: the same messages, or the other end's fault, and never anything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack  # type: ignore[import-untyped]  # it ships no type information
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.wire import HELLO, RECORDS, WELCOME

from pylightnix.protocol import (
    ClientConnection,
    ConnectionState,
    Decoder,
    Envelope,
    Greeted,
    Limits,
    Message,
    Notification,
    NotificationReceived,
    ProtocolFailed,
    Request,
    RequestFailed,
    RequestReceived,
    RequestRefused,
    Response,
    ResponseReceived,
    ServerConnection,
    Welcomed,
    encode_notification,
    encode_request,
    encode_response,
    error_from_wire,
    error_to_wire,
    parse_message,
)
from pylightnix.protocol.errors import MessageInvalid, NoSuchOperation, RemoteProtocolError
from pylightnix.protocol.messages import METHODS, Ended, Wait, WaitResult

SMALL = Limits(message_bytes=4096, depth=8, text_bytes=64, binary_bytes=64, array_items=16, map_items=16, values=64)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | texts | st.binary(max_size=300)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=20) | st.dictionaries(texts, inner, max_size=20), max_leaves=30)
maps = st.dictionaries(texts, values, max_size=8)
ids = st.integers(0, 2**32 - 1)

envelopes = (
    st.builds(Request, ids, texts, maps)
    | st.builds(Response, ids, maps, st.none())
    | st.builds(Response, ids, st.none(), maps)
    | st.builds(Notification, texts, maps)
)


def encoded(envelope: Envelope) -> bytes:
    if isinstance(envelope, Request):
        return encode_request(envelope.id, envelope.method, envelope.params)
    if isinstance(envelope, Response):
        return encode_response(envelope.id, envelope.error, envelope.result)
    return encode_notification(envelope.method, envelope.params)


@st.composite
def pieces(draw: Callable[[st.SearchStrategy[Any]], Any], data: bytes) -> list[bytes]:
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=12)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def heard(parts: list[bytes], limits: Limits) -> list[Any]:
    """Return every message, and every error by its type and text."""
    decoder, found = Decoder(limits), list[Any]()
    for part in parts:
        decoder.receive_data(part)
        while True:
            try:
                envelope = decoder.next_message()
            except MessageInvalid as error:
                found.append((type(error), str(error), error.request_id))
                continue
            except RemoteProtocolError as error:
                return [*found, (type(error), str(error), error.request_id)]
            if envelope is None:
                break
            found.append(envelope)
    return found


# --- the decoder ------------------------------------------------------------------------------------------------


@given(st.data(), st.lists(envelopes, max_size=5))
def test_messages_survive_any_split(data: st.DataObject, messages: list[Envelope]) -> None:
    stream = b"".join(map(encoded, messages))
    assert heard(data.draw(pieces(stream)), Limits()) == messages


@given(envelopes)
def test_bytes_are_those_of_another_implementation(message: Envelope) -> None:
    if isinstance(message, Request):
        array: list[Any] = [0, message.id, message.method, [message.params]]
    elif isinstance(message, Response):
        array = [1, message.id, message.error, message.result]
    else:
        array = [2, message.method, [message.params]]
    assert msgpack.unpackb(encoded(message)) == array
    assert heard([msgpack.packb(array)], Limits()) == [message]
    assert heard([msgpack.packb(array, use_single_float=False)], Limits()) == [message]


@given(st.data(), st.binary(max_size=200), st.sampled_from(["raw", "in params", "behind a message"]))
def test_garbage_is_the_other_ends_fault_in_any_split(data: st.DataObject, garbage: bytes, where: str) -> None:
    before = {"raw": b"", "in params": b"\x94\x00\x05\xa2ps\x91\x83\xa1x", "behind a message": encode_request(5, "ps", {})}[where]
    stream = before + garbage
    at_once = heard([stream], SMALL)
    assert heard(data.draw(pieces(stream)), SMALL) == at_once
    assert heard([stream[i : i + 1] for i in range(len(stream))], SMALL) == at_once


@given(st.sampled_from(RECORDS), st.data())
def test_changed_bytes_are_a_message_or_the_other_ends_fault(item: Any, data: st.DataObject) -> None:
    changed = bytearray(item.data)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    found = heard([bytes(changed)], SMALL)
    assert heard(data.draw(pieces(bytes(changed))), SMALL) == found


@given(values)
def test_any_value_as_a_message_is_one_or_the_other_ends_fault(value: Any) -> None:
    found = heard([msgpack.packb(value), encode_request(5, "ps", {})], Limits())
    assert found[-1] == Request(5, "ps", {}) or found[-1][0] is RemoteProtocolError or isinstance(value, list)


@given(st.lists(st.sampled_from([b"\x91", b"\x92", b"\x81\xa1k", b"\xdc\x00\x01", b"\xde\x00\x01\xa1k"]), min_size=8, max_size=300))
def test_no_depth_is_too_deep_to_refuse(openings: list[bytes]) -> None:
    [(kind, _, _)] = heard([b"\x94\x00\x05" + b"".join(openings)], SMALL)
    assert issubclass(kind, RemoteProtocolError)


@given(st.binary(max_size=60))
def test_what_is_read_is_what_another_implementation_reads(garbage: bytes) -> None:
    stream = b"\x93\x02\xa1m\x91\x81\xa1x" + garbage
    found = heard([stream], SMALL)
    if found and isinstance(found[0], Notification):
        reader = msgpack.Unpacker(strict_map_key=True, unicode_errors="surrogateescape")  # paths may hold any bytes
        reader.feed(stream)
        assert repr(found[0].params) == repr(reader.unpack()[2][0])  # as text, for the sake of NaN


# --- messages ---------------------------------------------------------------------------------------------------


def field_refused(value: dict[str, Any], wanted: type[Message]) -> str | None:
    """Return the field that is wrong, or nothing in particular where none is; no other error comes through."""
    try:
        parse_message(value, wanted)
    except MessageInvalid as error:
        return error.field
    return ""


@given(st.sampled_from(list(METHODS)), maps)
def test_any_map_is_a_message_or_names_its_field(method: str, value: dict[str, Any]) -> None:
    assert field_refused(value, METHODS[method].params) is not None


@given(st.sampled_from(RECORDS), st.data())
def test_changed_field_is_a_message_or_names_its_field(item: Any, data: st.DataObject) -> None:
    value = dict(item.value)
    for name in data.draw(st.lists(st.sampled_from([*value, "unknown"]), max_size=2)):
        value[name] = data.draw(values)
    assert field_refused(value, item.type) is not None


@given(st.dictionaries(st.text(max_size=20), values | st.text() | st.floats(), max_size=6), st.text(max_size=100))
def test_any_facts_of_an_error_can_be_sent(facts: dict[str, Any], operation: str) -> None:
    error = NoSuchOperation(operation)
    vars(error).update(facts)
    decoder = Decoder()
    decoder.receive_data(encode_response(1, error_to_wire(error, ""), None))
    response = decoder.next_message()
    assert isinstance(response, Response)
    found = error_from_wire(error_to_wire(error, ""))
    assert isinstance(found, NoSuchOperation)
    assert str(found)


# --- connections ------------------------------------------------------------------------------------------------


@given(st.data(), st.lists(st.binary(max_size=40) | st.sampled_from(RECORDS).map(lambda item: item.data), max_size=8), st.booleans())
def test_server_answers_any_bytes(data: st.DataObject, parts: list[bytes], greeted: bool) -> None:
    server = ServerConnection(WELCOME, limits=Limits(unanswered_requests=3))
    stream = (encode_request(0, "hello", HELLO) if greeted else b"") + b"".join(parts)
    for part in data.draw(pieces(stream)):
        for event in server.receive_data(part):
            if isinstance(event, (Greeted, RequestRefused, ProtocolFailed)):
                assert heard([event.reply], Limits()) or not event.reply
    assert len(server.unanswered) <= 3
    server.receive_eof()
    assert server.state is ConnectionState.closed


@given(st.data(), st.lists(st.binary(max_size=40) | st.sampled_from(RECORDS).map(lambda item: item.data), max_size=8))
def test_client_takes_any_bytes(data: st.DataObject, parts: list[bytes]) -> None:
    client = ClientConnection()
    client.send_hello(HELLO)
    for part in data.draw(pieces(b"".join(parts))):
        client.receive_data(part)
    client.receive_eof()
    assert client.state is ConnectionState.closed


class TwoEnds(RuleBasedStateMachine):
    """A client and a server, and two pipes that deliver any number of bytes at any time."""

    def __init__(self) -> None:
        super().__init__()
        limits = Limits(unanswered_requests=4)
        self.client, self.server = ClientConnection(limits=limits), ServerConnection(WELCOME, limits=limits)
        self.upstream, self.downstream = bytearray(), bytearray()
        self.waiting: dict[int, str] = {}  # asked by the client, not yet answered by the test
        self.expected: dict[int, bool] = {}  # answered by the test, not yet heard: whether well
        self.notices = 0

    @initialize()
    def hello(self) -> None:
        self.upstream += self.client.send_hello(HELLO)[1]

    @precondition(lambda self: self.client.may_request)
    @rule(operation=st.from_regex(r"\A[a-z]{1,8}\Z"))
    def ask(self, operation: str) -> None:
        self.upstream += self.client.send_request("wait", Wait(operation=operation))[1]

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), well=st.booleans())
    def answer(self, data: st.DataObject, well: bool) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.waiting)))
        operation = self.waiting.pop(request_id)
        if well:
            self.downstream += self.server.respond(request_id, WaitResult(ok=True, state=operation))
        else:
            self.downstream += self.server.fail(request_id, error_to_wire(NoSuchOperation(operation), ""))
        self.expected[request_id] = well

    @precondition(lambda self: self.server.state is ConnectionState.ready)
    @rule()
    def notify(self) -> None:
        self.downstream += self.server.notify("ended", Ended(operation="o"))
        self.notices += 1

    @rule(count=st.integers(1, 200))
    def deliver_up(self, count: int) -> None:
        part, self.upstream = bytes(self.upstream[:count]), self.upstream[count:]
        for event in self.server.receive_data(part):
            if isinstance(event, Greeted):
                self.downstream += event.reply
            else:
                assert isinstance(event, RequestReceived)
                assert isinstance(event.params, Wait)
                self.waiting[event.id] = event.params.operation

    @rule(count=st.integers(1, 200))
    def deliver_down(self, count: int) -> None:
        part, self.downstream = bytes(self.downstream[:count]), self.downstream[count:]
        for event in self.client.receive_data(part):
            if isinstance(event, NotificationReceived):
                self.notices -= 1
            elif not isinstance(event, Welcomed):
                assert isinstance(event, (ResponseReceived, RequestFailed))
                assert self.expected.pop(event.id) == isinstance(event, ResponseReceived)

    @invariant()
    def both_ends_know_what_is_unanswered(self) -> None:
        assert set(self.server.unanswered) == set(self.waiting)
        assert set(self.waiting) | set(self.expected) <= set(self.client.unanswered)
        assert self.notices >= 0
        assert ConnectionState.closed not in (self.client.state, self.server.state)

    def teardown(self) -> None:
        while self.upstream or self.downstream:
            self.deliver_up(1 << 20)
            self.deliver_down(1 << 20)
        while self.waiting:
            self.downstream += self.server.fail(self.waiting.popitem()[0], error_to_wire(NoSuchOperation("o"), ""))
        self.expected = dict.fromkeys(self.client.unanswered, False) | self.expected
        self.deliver_down(1 << 20)
        assert (self.client.unanswered, self.notices) == ((), 0)


TestTwoEnds = TwoEnds.TestCase
TestTwoEnds.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
