"""The server's end of a connection: of a daemon to its clients, of a worker to its daemon. Sans-IO: see `connection`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Optional, Union

import msgspec

from pylightnix.protocol.connection import (
    ConnectionEnded,
    ConnectionState,
    Conversation,
    Greeted,
    NotificationReceived,
    ProtocolFailed,
    RequestReceived,
    RequestRefused,
    ServerEvent,
    Turn,
)
from pylightnix.protocol.errors import (
    HandshakeExpected,
    LocalProtocolError,
    MessageInvalid,
    RemoteProtocolError,
    TooMany,
    UnknownMethod,
    UnsupportedVersion,
)
from pylightnix.protocol.errors_on_wire import WireError, error_to_wire
from pylightnix.protocol.framing import Decoder, Notification, Request, encode_notification, encode_response
from pylightnix.protocol.limits import DEFAULT_LIMITS, Limits
from pylightnix.protocol.messages import CLIENT_VOCABULARY
from pylightnix.protocol.vocabulary import HELLO, Hello, Message, Side, Vocabulary, Welcome, parse_message

__all__ = ["ServerConnection"]


class ServerConnection:
    """Takes requests and notifications of one client, makes responses and notifications.

    The connection itself answers what needs no thought: `hello`, and requests that are invalid, unknown or
    one too many. Such answers come as the `reply` of an event.
    """

    def __init__(
        self,
        welcome: Optional[Welcome],
        features: Iterable[str] = (),
        refusal: Union[WireError, Callable[[], Optional[WireError]], None] = None,
        vocabulary: Vocabulary = CLIENT_VOCABULARY,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        """Begin with what this end will say to a hello.

        `welcome` is the answer, but for its version and features; None if the vocabulary has no hello. With a
        `refusal` every hello is answered by that error: so is told who may not, or not now, connect. A function is asked
        for it when the hello comes.
        """
        self._welcome, self._refusal = welcome, refusal
        self._offered = frozenset(features)
        self._vocabulary, self._limits = vocabulary, limits
        self._decoder = Decoder(limits)
        self._conversation = Conversation(vocabulary)
        self._unanswered: dict[int, str] = {}
        self.version: Optional[int] = None
        """The version that was agreed on; None before the handshake is done."""
        self.features: frozenset[str] = frozenset()
        """The features that both ends have."""

    def __repr__(self) -> str:
        return f"<ServerConnection {self.state.value}, {len(self._unanswered)} unanswered>"

    @property
    def state(self) -> ConnectionState:
        return self._conversation.state

    def _is_open(self) -> bool:
        return self.state is not ConnectionState.closed

    @property
    def unanswered(self) -> tuple[int, ...]:
        """The requests that were not answered, oldest first."""
        return tuple(self._unanswered)

    # --- hearing ----------------------------------------------------------------------------------------

    def receive_data(self, data: bytes | bytearray | memoryview) -> list[ServerEvent]:
        """Return what the bytes say, in order. Bytes that come after the end are ignored.

        Send the replies of these events before receiving more: that is what keeps a flood of bad requests from
        piling up answers.
        """
        events: list[ServerEvent] = []
        if not self._is_open():
            return events
        self._decoder.receive_data(data)
        while self._is_open():
            try:
                event = self._next_event()
            except (MessageInvalid, RemoteProtocolError) as error:
                event = self._wrong(error)
            else:
                if event is None:
                    break
            events.append(event)
        return events

    def receive_eof(self) -> list[ServerEvent]:
        """Return what it means that no more bytes will come: nothing, if the connection was closed already."""
        if not self._is_open():
            return []
        if self._decoder.pending_bytes:
            return [self._wrong(RemoteProtocolError("the bytes ended inside a message"))]
        self._conversation.turn(Turn.ended)
        return [ConnectionEnded(self.unanswered)]

    def close(self) -> None:
        """End the connection from this end. Requests that are unanswered stay so."""
        self._conversation.turn(Turn.ended)

    def _next_event(self) -> Optional[ServerEvent]:
        while True:
            envelope = self._decoder.next_message()
            if envelope is None:
                return None
            if isinstance(envelope, Request):
                return self._asked(envelope)
            if self.state is not ConnectionState.ready:
                raise HandshakeExpected("the first message is not hello")
            if not isinstance(envelope, Notification):
                raise RemoteProtocolError("a response, where nothing was asked", "$[0]")
            known = self._vocabulary.notifications.get(envelope.method)
            if known is not None and known.sender is Side.client:
                self._conversation.turn(Turn.message)
                return NotificationReceived(envelope.method, parse_message(envelope.params, known.params))
            # Else from a newer client, which may tell more: passed over.

    def _asked(self, request: Request) -> ServerEvent:
        if self.state is ConnectionState.opening:
            return self._greeted(request)
        if request.id in self._unanswered:
            raise RemoteProtocolError(f"the id {request.id} is that of a request still unanswered", "$[1]")
        known = self._vocabulary.methods.get(request.method)
        if known is None:
            raise UnknownMethod(request.method, request.id)
        if request.method == HELLO:
            raise MessageInvalid("hello was said already", "$[2]", request.id)
        params = parse_message(request.params, known.params, request.id)
        if len(self._unanswered) >= self._limits.unanswered_requests:
            error = error_to_wire(TooMany("unanswered requests of one connection", self._limits.unanswered_requests), "")
            return RequestRefused(request.id, error, encode_response(request.id, error, None))
        self._conversation.turn(Turn.message)
        self._unanswered[request.id] = request.method
        return RequestReceived(request.id, request.method, params)

    def _greeted(self, request: Request) -> ServerEvent:
        if request.method != HELLO:
            raise HandshakeExpected("the first request is not hello", "$[2]", request.id)
        hello = parse_message(request.params, self._vocabulary.methods[HELLO].params, request.id)
        if not isinstance(hello, Hello) or self._welcome is None:
            raise AssertionError("BUG: this vocabulary has a hello, but its types or its welcome are missing")
        common = set(hello.versions) & set(self._vocabulary.versions)
        if not common:
            raise UnsupportedVersion(hello.versions, self._vocabulary.versions, request.id)
        refusal = self._refusal() if callable(self._refusal) else self._refusal
        if refusal is not None:
            self._conversation.turn(Turn.hello_refused)
            return Greeted(hello, None, frozenset(), False, encode_response(request.id, refusal, None))
        version, features = max(common), self._offered & frozenset(hello.features)
        # Encoded before anything changes: a welcome that has no form on the wire greets nobody.
        reply = encode_response(request.id, None, msgspec.structs.replace(self._welcome, version=version, features=sorted(features)))
        self.version, self.features = version, features
        self._conversation.turn(Turn.hello_accepted)
        return Greeted(hello, version, features, True, reply)

    def _wrong(self, error: MessageInvalid | RemoteProtocolError) -> RequestRefused | ProtocolFailed:
        """Answer what can be answered, and close unless the stream is sound."""
        wire, reply = error_to_wire(error, ""), b""
        # An id that is in use already stays that of the earlier request, which is not answered by this.
        if error.request_id is not None and error.request_id not in self._unanswered:
            reply = encode_response(error.request_id, wire, None)
        if isinstance(error, MessageInvalid):
            if error.request_id is not None and reply and self.state is ConnectionState.ready:
                return RequestRefused(error.request_id, wire, reply)
            # An invalid notification, whose sender cannot be told, or nothing a client may begin with.
            error = RemoteProtocolError(error.problem, error.field, error.request_id)
        self._conversation.turn(Turn.failed)
        return ProtocolFailed(error, reply)

    # --- saying -----------------------------------------------------------------------------------------

    def respond(self, request_id: int, result: Message) -> bytes:
        """Return the bytes of the answer to a request.

        Raises:
            LocalProtocolError: there is no such unanswered request, the result is not its method's, the message
                would be longer than the limit (the request is still unanswered then: `fail` it), or the
                connection is closed.
        """
        method = self._unanswered.get(request_id)
        wanted = self._vocabulary.methods[method].result if method is not None else None
        if wanted is None or not isinstance(result, wanted):
            raise LocalProtocolError(f"no request {request_id} ({method}) is to be answered with {type(result).__name__}")
        return self._answer(request_id, encode_response(request_id, None, result))

    def fail(self, request_id: int, error: WireError) -> bytes:
        """Return the bytes of an error that answers a request. Raises as `respond`."""
        if request_id not in self._unanswered:
            raise LocalProtocolError(f"no request {request_id} is to be answered")
        return self._answer(request_id, encode_response(request_id, error, None))

    def notify(self, method: str, params: Message) -> bytes:
        """Return the bytes of a notification. Raises as `respond`."""
        known = self._vocabulary.notifications.get(method)
        if known is None or known.sender is not Side.server or not isinstance(params, known.params):
            raise LocalProtocolError(f"a server sends no notification {method!r} with {type(params).__name__}")
        data = encode_notification(method, params)
        self._check_size(data)
        self._conversation.turn(Turn.message)
        return data

    def _answer(self, request_id: int, data: bytes) -> bytes:
        self._check_size(data)
        self._conversation.turn(Turn.message)
        del self._unanswered[request_id]
        return data

    def _check_size(self, data: bytes) -> None:
        if len(data) > self._limits.message_bytes:
            raise LocalProtocolError(f"a message of {len(data)} bytes is longer than the {self._limits.message_bytes} that may be sent")
