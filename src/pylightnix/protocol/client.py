"""The client's end of a connection, for a blocking and for an async client alike. Sans-IO: see `connection`."""

from __future__ import annotations

from typing import Optional

import msgspec

from pylightnix.protocol.connection import (
    ClientEvent,
    ConnectionEnded,
    ConnectionState,
    Conversation,
    NotificationReceived,
    ProtocolFailed,
    RequestFailed,
    ResponseReceived,
    Turn,
    Welcomed,
)
from pylightnix.protocol.errors import HandshakeExpected, LocalProtocolError, MessageInvalid, RemoteProtocolError, UnsupportedVersion
from pylightnix.protocol.errors_on_wire import WireError, error_from_wire
from pylightnix.protocol.framing import Decoder, Envelope, Notification, Request, Response, encode_notification, encode_request
from pylightnix.protocol.limits import DEFAULT_LIMITS, Limits
from pylightnix.protocol.messages import CLIENT_VOCABULARY
from pylightnix.protocol.vocabulary import HELLO, Hello, Message, Side, Vocabulary, Welcome, parse_message

__all__ = ["ClientConnection"]

_ID_MODULUS = 2**32


class ClientConnection:
    """Makes requests, matches their responses, takes notifications."""

    def __init__(self, vocabulary: Vocabulary = CLIENT_VOCABULARY, limits: Limits = DEFAULT_LIMITS) -> None:
        self._vocabulary = vocabulary
        self._limits = limits
        self._decoder = Decoder(limits)
        self._conversation = Conversation(vocabulary)
        self._unanswered: dict[int, str] = {}
        self._next_id = 1
        self._hello: Optional[Hello] = None
        self.version: Optional[int] = None
        """The version that was agreed on; None before the handshake is done."""
        self.features: frozenset[str] = frozenset()
        """The features that both ends have."""

    def __repr__(self) -> str:
        return f"<ClientConnection {self.state.value}, {len(self._unanswered)} unanswered>"

    @property
    def state(self) -> ConnectionState:
        return self._conversation.state

    def _is_open(self) -> bool:
        return self.state is not ConnectionState.closed

    @property
    def unanswered(self) -> tuple[int, ...]:
        """The requests that were not answered, oldest first."""
        return tuple(self._unanswered)

    @property
    def may_request(self) -> bool:
        """Whether another request may be sent now, or an answer has to come first."""
        return self.state is ConnectionState.ready and len(self._unanswered) < self._limits.unanswered_requests

    # --- saying -----------------------------------------------------------------------------------------

    def send_hello(self, hello: Hello) -> tuple[int, bytes]:
        """Return the id and the bytes of the handshake. Nothing else may be sent before `Welcomed`."""
        data = self._encoded(self._next_id, HELLO, hello)
        self._conversation.turn(Turn.hello_sent)
        self._hello = hello
        return self._remember(HELLO), data

    def send_request(self, method: str, params: Message) -> tuple[int, bytes]:
        """Return the id of a new request, which its response will bear, and the bytes to send.

        Raises:
            LocalProtocolError: the connection is not ready, has too many requests unanswered, the params are
                not this method's, or the message would be longer than the limit.
        """
        if method == HELLO:
            raise LocalProtocolError("hello is sent by send_hello, once")
        if self.state is ConnectionState.ready and not self.may_request:
            raise LocalProtocolError(f"{len(self._unanswered)} requests are unanswered, more may not be; wait for an answer")
        data = self._encoded(self._next_id, method, params)
        self._conversation.turn(Turn.message)
        return self._remember(method), data

    def send_notification(self, method: str, params: Message) -> bytes:
        """Return the bytes of a notification. Raises as `send_request`."""
        known = self._vocabulary.notifications.get(method)
        if known is None or known.sender is not Side.client or not isinstance(params, known.params):
            raise LocalProtocolError(f"a client sends no notification {method!r} with {type(params).__name__}")
        data = encode_notification(method, params)
        self._check_size(data)
        self._conversation.turn(Turn.message)
        return data

    def _encoded(self, request_id: int, method: str, params: Message) -> bytes:
        known = self._vocabulary.methods.get(method)
        if known is None or not isinstance(params, known.params):
            raise LocalProtocolError(f"there is no method {method!r} that takes {type(params).__name__}")
        data = encode_request(request_id, method, params)
        self._check_size(data)
        return data

    def _check_size(self, data: bytes) -> None:
        if len(data) > self._limits.message_bytes:
            raise LocalProtocolError(f"a message of {len(data)} bytes is longer than the {self._limits.message_bytes} that may be sent")

    def _remember(self, method: str) -> int:
        request_id = self._next_id
        self._unanswered[request_id] = method
        # Ids go round; one that is still in use, by a request that waits for days, is passed over.
        while self._next_id in self._unanswered:
            self._next_id = (self._next_id + 1) % _ID_MODULUS
        return request_id

    # --- hearing ----------------------------------------------------------------------------------------

    def receive_data(self, data: bytes | bytearray | memoryview) -> list[ClientEvent]:
        """Return what the bytes say, in order. Bytes that come after the end are ignored."""
        events: list[ClientEvent] = []
        if not self._is_open():
            return events
        self._decoder.receive_data(data)
        while self._is_open():
            try:
                envelope = self._decoder.next_message()
                if envelope is None:
                    break
                event = self._heard(envelope)
            except MessageInvalid as error:
                # Nobody to tell: a server that sends such things cannot be talked to.
                event = self._failed(RemoteProtocolError(error.problem, error.field))
            except RemoteProtocolError as error:
                event = self._failed(error)
            if event is not None:
                events.append(event)
        return events

    def receive_eof(self) -> list[ClientEvent]:
        """Return what it means that no more bytes will come: nothing, if the connection was closed already."""
        if not self._is_open():
            return []
        if self._decoder.pending_bytes:
            return [self._failed(RemoteProtocolError("the bytes ended inside a message"))]
        self._conversation.turn(Turn.ended)
        return [ConnectionEnded(self.unanswered)]

    def close(self) -> None:
        """End the connection from this end. Requests that are unanswered stay so."""
        self._conversation.turn(Turn.ended)

    def _failed(self, error: RemoteProtocolError) -> ProtocolFailed:
        self._conversation.turn(Turn.failed)
        return ProtocolFailed(error)

    def _heard(self, envelope: Envelope) -> Optional[ClientEvent]:
        if isinstance(envelope, Response):
            return self._answered(envelope)
        if self.state is not ConnectionState.ready:
            raise HandshakeExpected("something came before the answer to hello")
        if isinstance(envelope, Request):
            raise RemoteProtocolError("a server makes no requests", "$[0]")
        return self._notified(envelope)

    def _notified(self, envelope: Notification) -> Optional[ClientEvent]:
        known = self._vocabulary.notifications.get(envelope.method)
        if known is None or known.sender is not Side.server:
            return None  # from a newer server, which may tell more
        self._conversation.turn(Turn.message)
        return NotificationReceived(envelope.method, parse_message(envelope.params, known.params))

    def _answered(self, response: Response) -> ClientEvent:
        method = self._unanswered.get(response.id)
        if method is None:
            raise RemoteProtocolError(f"a response to {response.id}, which is no unanswered request", "$[1]")
        if response.error is not None:
            error = error_from_wire(parse_message(response.error, WireError))
            self._conversation.turn(Turn.hello_refused if method == HELLO else Turn.message)
            del self._unanswered[response.id]
            return RequestFailed(response.id, method, error)
        result = parse_message(response.result or {}, self._vocabulary.methods[method].result)
        event = self._welcomed(result) if isinstance(result, Welcome) else ResponseReceived(response.id, method, result)
        self._conversation.turn(Turn.hello_accepted if method == HELLO else Turn.message)
        del self._unanswered[response.id]
        return event

    def _welcomed(self, welcome: Welcome) -> Welcomed:
        if self._hello is None:
            raise AssertionError("BUG: a welcome to a connection that did not say hello")
        if welcome.version not in self._hello.versions:
            raise UnsupportedVersion([welcome.version], self._hello.versions)
        self.version = welcome.version
        self.features = frozenset(welcome.features) & frozenset(self._hello.features)
        return Welcomed(self.version, self.features, msgspec.structs.replace(welcome, features=sorted(self.features)))
