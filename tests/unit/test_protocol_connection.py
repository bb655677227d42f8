"""Both ends of a connection, joined by a wire in memory: handshake, multiplexing, refusals, and whose fault it was."""

from __future__ import annotations

from typing import Any

import msgpack  # type: ignore[import-untyped]  # it ships no type information
import pytest
from tests.loops import for_each
from tests.wire import HELLO, WELCOME, Wire, bytewise, params_on_record, whole

from pylightnix.protocol import (
    ClientConnection,
    ClientEvent,
    ConnectionEnded,
    ConnectionState,
    Greeted,
    Limits,
    NotificationReceived,
    ProtocolFailed,
    RequestFailed,
    RequestReceived,
    RequestRefused,
    ResponseReceived,
    ServerConnection,
    Vocabulary,
    Welcomed,
    WireError,
    encode_notification,
    encode_request,
    encode_response,
    error_to_wire,
)
from pylightnix.protocol.connection import TRANSITIONS, Conversation, Turn
from pylightnix.protocol.errors import (
    HandshakeExpected,
    LocalProtocolError,
    MessageInvalid,
    MessageTooLarge,
    NoSuchOperation,
    RemoteProtocolError,
    TooMany,
    UnknownMethod,
    UnsupportedVersion,
)
from pylightnix.protocol.messages import (
    CLIENT_VOCABULARY,
    METHODS,
    NOTIFICATIONS,
    ClientHello,
    Credit,
    DaemonWelcome,
    Done,
    Ended,
    LogResult,
    Ps,
    Status,
    Submitted,
    Wait,
    WaitResult,
)
from pylightnix.protocol.vocabulary import Side
from pylightnix.protocol.worker_messages import MATCHER_VOCABULARY, WORKER_VOCABULARY, Forked, Kill, WorkerHello, WorkerWelcome

SPLITS = [whole, bytewise]
BAD = error_to_wire(NoSuchOperation("op"), "")


def new_wire(**limits: Any) -> Wire:
    both = Limits(**limits)
    return Wire(ClientConnection(limits=both), ServerConnection(WELCOME, limits=both))


def ready_wire(**limits: Any) -> Wire:
    wire = new_wire(**limits)
    [greeted] = wire.to_server(wire.client.send_hello(HELLO)[1])
    assert isinstance(greeted, Greeted)
    wire.to_client(greeted.reply)
    assert (wire.client.state, wire.server.state) == (ConnectionState.ready, ConnectionState.ready)
    return wire


def failure(events: list[Any]) -> ProtocolFailed:
    assert isinstance(events[-1], ProtocolFailed)
    return events[-1]


def told(event: ProtocolFailed | RequestRefused | Greeted) -> tuple[int, str, str | None]:
    """Return (request id, code, field) of the reply."""
    kind, request_id, error, result = msgpack.unpackb(event.reply)
    assert (kind, result) == (1, None)
    return request_id, error["code"], error["field"]


# --- handshake ----------------------------------------------------------------------------------------------


@for_each("split", SPLITS)
def test_handshake_agrees_on_the_highest_version_and_common_features(split: Any) -> None:
    vocabulary = Vocabulary(METHODS, NOTIFICATIONS, versions=(1, 2, 3))
    wire = Wire(ClientConnection(vocabulary), ServerConnection(WELCOME, ["a", "b"], vocabulary=vocabulary), split)
    hello = ClientHello(versions=[2, 1, 9], features=["b", "c"], client="t")
    [greeted] = wire.to_server(wire.client.send_hello(hello)[1])
    assert isinstance(greeted, Greeted)
    assert greeted.hello == hello
    assert (greeted.version, greeted.features, greeted.accepted) == (2, frozenset({"b"}), True)
    [welcomed] = wire.to_client(greeted.reply)
    assert isinstance(welcomed, Welcomed)
    assert isinstance(welcomed.welcome, DaemonWelcome)
    assert (welcomed.version, welcomed.features, welcomed.welcome.pid) == (2, frozenset({"b"}), WELCOME.pid)
    assert (wire.client.version, wire.server.version) == (2, 2)
    assert wire.client.features == wire.server.features == {"b"}


def test_requests_may_be_sent_behind_hello() -> None:
    # By clients that know what version they speak; ours waits.
    server = ServerConnection(WELCOME)
    greeted, asked = server.receive_data(encode_request(1, "hello", HELLO) + encode_request(2, "ps", {}))
    assert isinstance(greeted, Greeted)
    assert asked == RequestReceived(2, "ps", Ps())


def test_no_common_version() -> None:
    wire = new_wire()
    failed = failure(wire.to_server(wire.client.send_hello(ClientHello(versions=[7], client="t"))[1]))
    assert isinstance(failed.error, UnsupportedVersion)
    [answer] = wire.to_client(failed.reply)
    assert isinstance(answer, RequestFailed)
    assert isinstance(answer.error, UnsupportedVersion)
    assert (answer.error.offered, answer.error.known) == ([7], [1])
    assert wire.client.state is wire.server.state is ConnectionState.closed


def test_refused_client_is_told_why() -> None:
    refusal = error_to_wire(TooMany("connections", 64), "")
    wire = Wire(ClientConnection(), ServerConnection(WELCOME, refusal=refusal))
    [greeted] = wire.to_server(wire.client.send_hello(HELLO)[1] + encode_request(2, "ps", {}))
    assert isinstance(greeted, Greeted)
    assert (greeted.accepted, greeted.version) == (False, None)
    [answer] = wire.to_client(greeted.reply)
    assert isinstance(answer, RequestFailed)
    assert isinstance(answer.error, TooMany)
    assert wire.client.state is wire.server.state is ConnectionState.closed


@pytest.mark.parametrize(
    ("data", "reply"),
    [
        (encode_request(4, "ps", {}), (4, "handshake-expected", None)),
        (encode_request(4, "no.such", {}), (4, "handshake-expected", None)),
        (encode_request(4, "hello", {"versions": [1]}), (4, "invalid-message", "$")),
        (encode_request(4, "hello", {"versions": "1", "client": "t"}), (4, "invalid-message", "$.versions")),
        (encode_request(4, "hello", {"versions": [], "client": "t"}), (4, "invalid-message", "$.versions")),
        (msgpack.packb([0, 4, "hello", {}]), (4, "invalid-message", "$[3]")),
        (encode_notification("credit", {"operation": "o", "credit": 1}), None),
        (encode_response(4, None, {}), None),
        (b"GET / HTTP/1.1\r\n", None),
    ],
)
@for_each("split", SPLITS)
def test_anything_but_hello_first_ends_it(data: bytes, reply: Any, split: Any) -> None:
    server = ServerConnection(WELCOME)
    failed = failure([event for piece in split(data) for event in server.receive_data(piece)])
    assert server.state is ConnectionState.closed
    if reply is None:
        assert failed.reply == b""
    else:
        request_id, code, field = told(failed)
        assert (request_id, code) == reply[:2]
        assert reply[2] is None or field == reply[2]


def test_second_hello_is_refused_and_the_stream_goes_on() -> None:
    wire = ready_wire()
    refused, asked = wire.to_server(encode_request(8, "hello", HELLO) + encode_request(9, "ps", {}))
    assert isinstance(refused, RequestRefused)
    assert told(refused)[:2] == (8, "invalid-message")
    assert isinstance(asked, RequestReceived)


def test_client_needs_its_hello_answered_first() -> None:
    client = ClientConnection()
    with pytest.raises(LocalProtocolError):
        client.send_request("ps", Ps())
    client.send_hello(HELLO)
    with pytest.raises(LocalProtocolError):
        client.send_request("ps", Ps())
    with pytest.raises(LocalProtocolError):
        client.send_hello(HELLO)
    assert client.state is ConnectionState.greeting
    assert client.unanswered == (1,)


@pytest.mark.parametrize(
    "data",
    [
        encode_notification("ended", {"operation": "o"}),
        encode_notification("no such", {}),
        encode_response(2, None, {}),
        encode_response(1, None, {"version": 1}),
        encode_request(1, "ps", {}),
    ],
)
def test_client_takes_nothing_before_its_welcome(data: bytes) -> None:
    client = ClientConnection()
    client.send_hello(HELLO)
    failure(client.receive_data(data))
    assert client.state is ConnectionState.closed


def test_server_must_choose_a_version_that_was_offered() -> None:
    client = ClientConnection()
    _, _ = client.send_hello(HELLO)
    answer = {"version": 2, "features": [], "daemon": "d", "store": "/s", "storage": "/s", "caller": "root", "pid": 1}
    assert isinstance(failure(client.receive_data(encode_response(1, None, answer))).error, UnsupportedVersion)


def test_features_that_were_not_asked_for_do_not_count() -> None:
    client = ClientConnection()
    client.send_hello(HELLO)
    answer = {"version": 1, "features": ["surprise"], "daemon": "d", "store": "/s", "storage": "/s", "caller": "root", "pid": 1}
    [welcomed] = client.receive_data(encode_response(1, None, answer))
    assert isinstance(welcomed, Welcomed)
    assert (welcomed.features, welcomed.welcome.features) == (frozenset(), [])


# --- every message, across the wire -------------------------------------------------------------------------


@for_each("split", SPLITS)
@for_each("method", [method for method in METHODS if method != "hello"])
def test_method_goes_there_and_back(method: str, split: Any) -> None:
    wire = ready_wire()
    wire.split = split
    params, result = params_on_record(method), params_on_record(method, "response")
    request_id, data = wire.client.send_request(method, params)
    assert wire.to_server(data) == [RequestReceived(request_id, method, params)]
    assert wire.client.unanswered == wire.server.unanswered == (request_id,)
    assert wire.to_client(wire.server.respond(request_id, result)) == [ResponseReceived(request_id, method, result)]
    assert [*wire.client.unanswered, *wire.server.unanswered] == []


@for_each("split", SPLITS)
@for_each("name", NOTIFICATIONS)
def test_notification_arrives(name: str, split: Any) -> None:
    wire = ready_wire()
    wire.split = split
    params = params_on_record(name, "notification")
    expected = [NotificationReceived(name, params)]
    if NOTIFICATIONS[name].sender is Side.client:
        assert wire.to_server(wire.client.send_notification(name, params)) == expected
        with pytest.raises(LocalProtocolError):
            wire.server.notify(name, params)
    else:
        assert wire.to_client(wire.server.notify(name, params)) == expected
        with pytest.raises(LocalProtocolError):
            wire.client.send_notification(name, params)


def test_responses_come_in_any_order() -> None:
    wire = ready_wire()
    sent = [wire.client.send_request("wait", Wait(operation=f"op-{i}")) for i in range(20)]
    asked = wire.to_server(b"".join(data for _, data in sent))
    assert [event.id for event in asked if isinstance(event, RequestReceived)] == [request_id for request_id, _ in sent]
    replies = [wire.server.respond(request_id, WaitResult(ok=True, state="done", built=request_id)) for request_id, _ in reversed(sent)]
    answers = wire.to_client(b"".join(replies))
    assert answers == [
        ResponseReceived(request_id, "wait", WaitResult(ok=True, state="done", built=request_id)) for request_id, _ in reversed(sent)
    ]


def test_error_response_is_an_exception_of_its_class() -> None:
    wire = ready_wire()
    request_id, data = wire.client.send_request("wait", Wait(operation="op-1"))
    wire.to_server(data)
    [failed] = wire.to_client(wire.server.fail(request_id, error_to_wire(NoSuchOperation("op-1"), "")))
    assert isinstance(failed, RequestFailed)
    assert isinstance(failed.error, NoSuchOperation)
    assert (failed.id, failed.method, failed.error.operation) == (request_id, "wait", "op-1")
    assert wire.client.state is ConnectionState.ready


# --- the server's patience ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "code", "field"),
    [
        (encode_request(5, "no.such", {}), "unknown-method", None),
        (encode_request(5, "wait", {}), "invalid-message", "$"),
        (encode_request(5, "wait", {"operation": 5}), "invalid-message", "$.operation"),
        (encode_request(5, "submit.add", {"operation": "o", "derivations": [{}]}), "invalid-message", "$.derivations[0]"),
        (msgpack.packb([0, 5, "wait", {"operation": "o"}]), "invalid-message", "$[3]"),
        (msgpack.packb([0, 5, None, [{}]]), "invalid-message", "$[2]"),
    ],
)
@for_each("split", SPLITS)
def test_wrong_request_is_answered_and_the_stream_goes_on(data: bytes, code: str, field: str | None, split: Any) -> None:
    wire = ready_wire()
    wire.split = split
    refused, asked = wire.to_server(data + encode_request(6, "ps", {}))
    assert isinstance(refused, RequestRefused)
    assert told(refused) == (5, code, field)
    assert refused.error.code == code
    assert asked == RequestReceived(6, "ps", Ps())
    assert wire.server.unanswered == (6,)


def test_client_hears_what_was_wrong() -> None:
    # A client that is newer than the server.
    newer = Vocabulary({**METHODS, "later": METHODS["ps"]}, NOTIFICATIONS)
    wire = Wire(ClientConnection(newer), ServerConnection(WELCOME))
    [greeted] = wire.to_server(wire.client.send_hello(HELLO)[1])
    assert isinstance(greeted, Greeted)
    wire.to_client(greeted.reply)
    [refused] = wire.to_server(wire.client.send_request("later", Ps())[1])
    assert isinstance(refused, RequestRefused)
    [failed] = wire.to_client(refused.reply)
    assert isinstance(failed, RequestFailed)
    assert isinstance(failed.error, UnknownMethod)
    assert failed.error.method == "later"


@pytest.mark.parametrize(
    ("data", "reply"),
    [
        (encode_notification("credit", {"operation": "o", "credit": 0}), None),
        (encode_response(1, None, {}), None),
        (msgpack.packb([0, -1, "ps", [{}]]), None),
        (msgpack.packb([2, 5, [{}]]), None),
        (b"\x94\x00\x05\xa2ps\x91\x81\xa1x\xc6\x80\x00\x00\x00", (5, "too-large")),
        (b"\x94\x00\x05\xa2ps\x91\x81\xa1x" + b"\x91" * 99, (5, "too-deep")),
        (b"\x94\x00\x05\xa2ps\x91\x81\xa1x\xc1", (5, "invalid-message")),
        (b"\xc1", None),
    ],
)
@for_each("split", SPLITS)
def test_broken_stream_ends_it(data: bytes, reply: Any, split: Any) -> None:
    wire = ready_wire()
    wire.split = split
    *before, last = wire.to_server(encode_request(4, "ps", {}) + data + encode_request(6, "ps", {}))
    assert before == [RequestReceived(4, "ps", Ps())]
    assert isinstance(last, ProtocolFailed)
    assert (told(last)[:2] if last.reply else None) == reply
    assert wire.server.state is ConnectionState.closed
    assert wire.server.receive_data(encode_request(7, "ps", {})) == []
    assert wire.server.receive_eof() == []
    with pytest.raises(LocalProtocolError):
        wire.server.respond(4, params_on_record("ps", "response"))


def test_id_of_an_unanswered_request_cannot_be_used_again() -> None:
    for second in (encode_request(4, "ps", {}), encode_request(4, "no.such", {}), msgpack.packb([0, 4, None, [{}]])):
        wire = ready_wire()
        asked, failed = wire.to_server(encode_request(4, "wait", {"operation": "o"}) + second)
        assert isinstance(asked, RequestReceived)
        assert isinstance(failed, ProtocolFailed)
        assert failed.reply == b""  # it would look like the answer to the first


def test_id_may_be_used_again_after_its_answer() -> None:
    wire = ready_wire()
    for _ in range(3):
        [asked] = wire.to_server(encode_request(4, "ps", {}))
        assert isinstance(asked, RequestReceived)
        wire.server.respond(4, params_on_record("ps", "response"))


def test_unknown_notification_is_passed_over() -> None:
    wire = ready_wire()
    assert wire.to_server(encode_notification("later", {}) + encode_notification("ended", {"operation": "o"})) == []
    assert wire.to_client(encode_notification("later", {}) + encode_notification("credit", {})) == []
    assert wire.client.state is wire.server.state is ConnectionState.ready


def test_too_many_unanswered_requests_are_refused_one_by_one() -> None:
    wire = ready_wire(unanswered_requests=3)
    events = wire.to_server(b"".join(encode_request(i, "wait", {"operation": "o"}) for i in range(10, 15)))
    assert [type(event) for event in events] == [RequestReceived] * 3 + [RequestRefused] * 2
    assert [told(event)[:2] for event in events if isinstance(event, RequestRefused)] == [(13, "too-many"), (14, "too-many")]
    wire.server.fail(10, BAD)
    [asked] = wire.to_server(encode_request(15, "ps", {}))
    assert isinstance(asked, RequestReceived)


# --- misuse by this end -----------------------------------------------------------------------------------------


def test_client_holds_itself_to_the_limit_of_unanswered_requests() -> None:
    wire = ready_wire(unanswered_requests=2)
    first, _ = wire.client.send_request("ps", Ps())
    wire.client.send_request("ps", Ps())
    assert not wire.client.may_request
    with pytest.raises(LocalProtocolError, match="2 requests are unanswered"):
        wire.client.send_request("ps", Ps())
    wire.client.receive_data(encode_response(first, BAD, None))
    assert wire.client.may_request


def test_wrong_types_are_local_errors() -> None:
    wire = ready_wire()
    request_id, data = wire.client.send_request("submit.commit", params_on_record("submit.commit"))
    wire.to_server(data)
    misuses: list[Any] = [
        lambda: wire.client.send_request("no.such", Ps()),
        lambda: wire.client.send_request("status", Ps()),
        lambda: wire.client.send_request("hello", HELLO),
        lambda: wire.client.send_notification("credit", Ps()),
        lambda: wire.client.send_notification("no.such", Ps()),
        lambda: wire.server.respond(request_id, Submitted(operation="o")),
        lambda: wire.server.respond(99, Done()),
        lambda: wire.server.fail(99, BAD),
        lambda: wire.server.notify("ended", Credit(operation="o", credit=1)),
        lambda: wire.server.notify("no.such", Ended(operation="o")),
    ]
    for misuse in misuses:
        with pytest.raises(LocalProtocolError):
            misuse()
    assert wire.to_client(wire.server.respond(request_id, Done())) == [ResponseReceived(request_id, "submit.commit", Done())]
    with pytest.raises(LocalProtocolError):
        wire.server.respond(request_id, Done())


def test_answer_over_the_limit_leaves_the_request_to_fail() -> None:
    wire = ready_wire(message_bytes=1000)
    request_id, data = wire.client.send_request("log", params_on_record("log"))
    wire.to_server(data)
    with pytest.raises(LocalProtocolError, match="longer than the 1000"):
        wire.server.respond(request_id, LogResult(data=b"x" * 1000, next=1000, finished=False, build="b", path="/l"))
    assert wire.server.unanswered == (request_id,)
    [failed] = wire.to_client(wire.server.fail(request_id, BAD))
    assert isinstance(failed, RequestFailed)


def test_request_over_the_limit_is_not_sent() -> None:
    wire = ready_wire(message_bytes=1000)
    with pytest.raises(LocalProtocolError, match="longer than the 1000"):
        wire.client.send_request("wait", Wait(operation="x" * 1000))
    assert wire.client.unanswered == ()


def test_nothing_is_said_after_closing() -> None:
    wire = ready_wire()
    wire.client.close()
    wire.server.close()
    for misuse in (lambda: wire.client.send_request("status", Status()), lambda: wire.server.notify("ended", Ended(operation="o"))):
        with pytest.raises(LocalProtocolError, match="closed"):
            misuse()
    assert wire.client.receive_data(encode_notification("ended", {"operation": "o"})) == []
    assert (wire.client.receive_eof(), wire.server.receive_eof()) == ([], [])


# --- the client's distrust --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        encode_response(99, None, {}),
        encode_response(2, None, {"ok": 1, "state": "done"}),
        encode_response(2, {"code": 5, "message": ""}, None),
        encode_response(2, {}, None),
        msgpack.packb([1, 2, None, None]),
        encode_request(1, "ps", {}),
        encode_notification("ended", {}),
        b"\x94\x01\x02\xc0\xc6\x80\x00\x00\x00",
        b"\xc1",
    ],
)
@for_each("split", SPLITS)
def test_client_hangs_up_on_a_server_that_breaks_the_protocol(data: bytes, split: Any) -> None:
    wire = ready_wire()
    wire.split = split
    wire.client.send_request("wait", Wait(operation="o"))
    events: list[ClientEvent] = wire.to_client(encode_notification("ended", {"operation": "o"}) + data)
    assert events[0] == NotificationReceived("ended", Ended(operation="o"))
    assert isinstance(failure(events).error, RemoteProtocolError)
    assert wire.client.state is ConnectionState.closed
    assert wire.client.unanswered == (2,)


# --- the end ----------------------------------------------------------------------------------------------------


def test_end_between_messages_names_what_is_unanswered() -> None:
    wire = ready_wire()
    request_id, data = wire.client.send_request("wait", Wait(operation="o"))
    wire.to_server(data)
    assert wire.client.receive_eof() == [ConnectionEnded((request_id,))]
    assert wire.server.receive_eof() == [ConnectionEnded((request_id,))]
    assert wire.client.state is wire.server.state is ConnectionState.closed


def test_end_inside_a_message_is_the_other_ends_fault() -> None:
    wire = ready_wire()
    data = encode_request(5, "ps", {})
    assert wire.to_server(data[:-1]) == []
    assert failure(list(wire.server.receive_eof())).error.problem == "the bytes ended inside a message"
    assert wire.to_client(data[:2]) == []
    assert failure(list(wire.client.receive_eof())).error.problem == "the bytes ended inside a message"


def test_limits_are_those_given() -> None:
    wire = ready_wire(text_bytes=40)
    failed = failure(wire.to_server(encode_request(5, "wait", {"operation": "x" * 41})))
    assert isinstance(failed.error, MessageTooLarge)


def test_ids_go_round_past_those_in_use() -> None:
    wire = ready_wire()
    client = wire.client
    first, _ = client.send_request("wait", Wait(operation="o"))
    client._next_id = 2**32 - 1  # four thousand million requests later
    assert client.send_request("ps", Ps())[0] == 2**32 - 1
    assert client.send_request("ps", Ps())[0] == 0
    assert client.send_request("ps", Ps())[0] == 1
    assert first == 2
    assert client.send_request("ps", Ps())[0] == 3


# --- the table, and other languages ------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ConnectionState)
@pytest.mark.parametrize("what", Turn)
def test_only_the_table_moves_the_state(state: ConnectionState, what: Turn) -> None:
    conversation = Conversation(CLIENT_VOCABULARY)
    conversation.state = state
    following = ConnectionState.closed if what in (Turn.failed, Turn.ended) else TRANSITIONS[state].get(what)
    if following is None:
        with pytest.raises(LocalProtocolError):
            conversation.turn(what)
        following = state
    else:
        conversation.turn(what)
    assert conversation.state is following


def test_daemon_and_worker_speak_their_own_language() -> None:
    welcome = WorkerWelcome(package="1", python="3.11.7", pid=5)
    wire = Wire(ClientConnection(WORKER_VOCABULARY), ServerConnection(welcome, vocabulary=WORKER_VOCABULARY), bytewise)
    hello = WorkerHello(versions=[1], import_path=["/p"], umask=0o22)
    [greeted] = wire.to_server(wire.client.send_hello(hello)[1])
    assert isinstance(greeted, Greeted)
    assert greeted.hello == hello
    [welcomed] = wire.to_client(greeted.reply)
    assert isinstance(welcomed, Welcomed)
    assert welcomed.welcome == WorkerWelcome(version=1, package="1", python="3.11.7", pid=5)
    request_id, data = wire.client.send_request("kill", Kill(build="b"))
    assert wire.to_server(data) == [RequestReceived(request_id, "kill", Kill(build="b"))]
    with pytest.raises(LocalProtocolError):
        wire.server.respond(request_id, Forked(pid=1))


def test_language_without_hello_starts_ready() -> None:
    server = ServerConnection(None, vocabulary=MATCHER_VOCABULARY)
    assert server.state is ConnectionState.ready
    assert ClientConnection(MATCHER_VOCABULARY).may_request


def test_repr_tells_where_it_is() -> None:
    wire = ready_wire()
    _, data = wire.client.send_request("ps", Ps())
    wire.to_server(data)
    assert repr(wire.client) == "<ClientConnection ready, 1 unanswered>"
    assert repr(wire.server) == "<ServerConnection ready, 1 unanswered>"


def test_errors_say_whose_fault_it_was() -> None:
    assert not issubclass(LocalProtocolError, RemoteProtocolError)
    assert not issubclass(MessageInvalid, RemoteProtocolError)
    assert issubclass(HandshakeExpected, RemoteProtocolError)
    assert WireError(code="x", message="").fields == {}
