"""The wire protocol: what client, daemon and workers say to each other, as bytes, types and rules. Sans-IO.

The specification is `docs/protocol.md`. The messages themselves are in `messages` and `worker_messages`;
what one end of a connection needs is here. Nothing that `import pylightnix` loads may import this package:
it costs two libraries that a program without a daemon does not need.
"""

from __future__ import annotations

from pylightnix.protocol.client import ClientConnection
from pylightnix.protocol.connection import (
    ClientEvent,
    ConnectionEnded,
    ConnectionState,
    Greeted,
    NotificationReceived,
    ProtocolFailed,
    RequestFailed,
    RequestReceived,
    RequestRefused,
    ResponseReceived,
    ServerEvent,
    Welcomed,
)
from pylightnix.protocol.errors_on_wire import WireError, error_from_failed_row, error_from_wire, error_to_wire, json_fields
from pylightnix.protocol.framing import (
    Decoder,
    Envelope,
    Notification,
    Request,
    Response,
    encode_notification,
    encode_request,
    encode_response,
)
from pylightnix.protocol.limits import Limits
from pylightnix.protocol.server import ServerConnection
from pylightnix.protocol.vocabulary import Message, Method, NotificationType, Side, Vocabulary, parse_message

__all__ = [
    "ClientConnection",
    "ClientEvent",
    "ConnectionEnded",
    "ConnectionState",
    "Decoder",
    "Envelope",
    "Greeted",
    "Limits",
    "Message",
    "Method",
    "Notification",
    "NotificationReceived",
    "NotificationType",
    "ProtocolFailed",
    "Request",
    "RequestFailed",
    "RequestReceived",
    "RequestRefused",
    "Response",
    "ResponseReceived",
    "ServerConnection",
    "ServerEvent",
    "Side",
    "Vocabulary",
    "Welcomed",
    "WireError",
    "encode_notification",
    "encode_request",
    "encode_response",
    "error_from_failed_row",
    "error_from_wire",
    "error_to_wire",
    "json_fields",
    "parse_message",
]
