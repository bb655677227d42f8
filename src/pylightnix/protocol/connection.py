"""What a connection of either end has: states, the table of transitions, events. The ends are `client` and `server`.

Sans-IO: bytes go in and events come out; what is to be sent is returned as bytes, and the caller sends
it in the order it was returned. No sockets, no clock, no threads; one object is used by one task at a time.

The table. Each end has a state, and only `Conversation.turn` changes it::

    state     what happens          next      who
    -------   -------------------   -------   -----------------------------------------------
    opening   hello_sent            greeting  client
    opening   hello_accepted        ready     server: a hello came, with a version known here
    opening   hello_refused         closed    server: no such version, or not to be served
    greeting  hello_accepted        ready     client: the welcome came
    greeting  hello_refused         closed    client: an error came instead
    ready     message               ready     both: any request, response or notification
    any       failed                closed    both: the other end broke the stream
    any       ended                 closed    both: the bytes ended, or the caller closes

What is not in the table cannot happen: an end that would do it gets a `LocalProtocolError`, an end whose
peer does it closes with a `ProtocolFailed`. A vocabulary without ``hello`` starts out ready.

An error in one message is not an error of the stream: it is answered, and the stream goes on.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final, Optional, TypeAlias, Union

from pylightnix.errors import PylightnixException
from pylightnix.protocol.errors import LocalProtocolError, RemoteProtocolError
from pylightnix.protocol.errors_on_wire import WireError
from pylightnix.protocol.vocabulary import HELLO, Hello, Message, Vocabulary, Welcome

__all__ = [
    "ClientEvent",
    "ConnectionEnded",
    "ConnectionState",
    "Conversation",
    "Greeted",
    "NotificationReceived",
    "ProtocolFailed",
    "RequestFailed",
    "RequestReceived",
    "RequestRefused",
    "ResponseReceived",
    "ServerEvent",
    "Turn",
    "Welcomed",
]


class ConnectionState(Enum):
    """Where an end of a connection is."""

    opening = "opening"
    """No hello yet."""
    greeting = "greeting"
    """Hello was sent, its answer is awaited."""
    ready = "ready"
    """Anything may be said."""
    closed = "closed"
    """Nothing will be sent or received any more."""


class Turn(Enum):
    """What happens to an end of a connection."""

    hello_sent = "hello sent"
    hello_accepted = "hello accepted"
    hello_refused = "hello refused"
    message = "message"
    failed = "failed"
    ended = "ended"


TRANSITIONS: Final[dict[ConnectionState, dict[Turn, ConnectionState]]] = {
    ConnectionState.opening: {
        Turn.hello_sent: ConnectionState.greeting,
        Turn.hello_accepted: ConnectionState.ready,
        Turn.hello_refused: ConnectionState.closed,
    },
    ConnectionState.greeting: {
        Turn.hello_accepted: ConnectionState.ready,
        Turn.hello_refused: ConnectionState.closed,
    },
    ConnectionState.ready: {Turn.message: ConnectionState.ready},
    ConnectionState.closed: {},
}


class Conversation:
    """The state of one end."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.state = ConnectionState.opening if HELLO in vocabulary.methods else ConnectionState.ready

    def turn(self, what: Turn) -> None:
        """Go where the table says.

        Raises:
            LocalProtocolError: it does not say; the state is as it was.
        """
        if what in (Turn.failed, Turn.ended):
            self.state = ConnectionState.closed
            return
        following = TRANSITIONS[self.state].get(what)
        if following is None:
            raise LocalProtocolError(f"no {what.value!r} on a connection that is {self.state.value}")
        self.state = following


# --- what comes out of either end -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NotificationReceived:
    """The other end tells something."""

    method: str
    params: Message


@dataclass(frozen=True, slots=True)
class ProtocolFailed:
    """The other end broke the stream; the connection is closed. Send `reply`, which may be empty, and hang up."""

    error: RemoteProtocolError
    reply: bytes = b""


@dataclass(frozen=True, slots=True)
class ConnectionEnded:
    """The other end hung up between two messages."""

    unanswered: tuple[int, ...]
    """Requests that were not answered, oldest first."""


# --- what comes out of a client's end ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Welcomed:
    """The handshake is done."""

    version: int
    features: frozenset[str]
    """Those that both ends have."""
    welcome: Welcome


@dataclass(frozen=True, slots=True)
class ResponseReceived:
    """A request was answered."""

    id: int
    method: str
    result: Message


@dataclass(frozen=True, slots=True)
class RequestFailed:
    """A request was answered with an error."""

    id: int
    method: str
    error: PylightnixException
    """As it was raised there, as far as this version knows its class."""


ClientEvent: TypeAlias = Union[Welcomed, ResponseReceived, RequestFailed, NotificationReceived, ProtocolFailed, ConnectionEnded]


# --- what comes out of a server's end ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Greeted:
    """A client said hello. Send `reply`. If `accepted` is false, the connection is closed: hang up then."""

    hello: Hello
    version: Optional[int]
    features: frozenset[str]
    """Those that both ends have."""
    accepted: bool
    reply: bytes


@dataclass(frozen=True, slots=True)
class RequestReceived:
    """A client asks something. Answer it with `respond` or `fail`, whenever and in whatever order."""

    id: int
    method: str
    params: Message


@dataclass(frozen=True, slots=True)
class RequestRefused:
    """A client asked something that cannot be. It is answered already: send `reply`."""

    id: int
    error: WireError
    reply: bytes


ServerEvent: TypeAlias = Union[Greeted, RequestReceived, RequestRefused, NotificationReceived, ProtocolFailed, ConnectionEnded]
