"""Bytes to messages and back: the MessagePack-RPC envelopes. Sans-IO.

The rules:

- A limit is enforced when the header that breaks it is seen, before anything is allocated or decoded.
- What breaks the stream (`RemoteProtocolError`) ends the decoder for good; what is merely a wrong message
  in a sound stream (`MessageInvalid`) costs that message only.
- A map says each key once. Two parsers may disagree about a repeated one, so it is refused.
- Paths and environment variables are bytes to the system. Where they are not UTF-8, a text holds those very bytes;
  here they are surrogates, as in `os.fsdecode`. The types of the messages say which texts may hold such bytes.

Must not know any method, nor who is client and who is server.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Optional, TypeAlias, Union

import msgpack  # type: ignore[import-untyped]  # it ships no type information
import msgspec

from pylightnix.protocol._scanner import Scanner
from pylightnix.protocol.errors import LocalProtocolError, MessageInvalid, RemoteProtocolError
from pylightnix.protocol.limits import DEFAULT_LIMITS, Limits

__all__ = [
    "Decoder",
    "Envelope",
    "Notification",
    "Request",
    "Response",
    "encode_notification",
    "encode_request",
    "encode_response",
    "encode_value",
]

Fields: TypeAlias = Mapping[str, Any]
"""A map as it lies in an envelope: names to values that MessagePack has."""

_REQUEST, _RESPONSE, _NOTIFICATION = range(3)
_ID_MAX: Final = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Request:
    """``[0, id, method, [params]]``: wants a response."""

    id: int
    method: str
    params: Fields


@dataclass(frozen=True, slots=True)
class Response:
    """``[1, id, error, result]``: answers the request of that id. One of `error` and `result` is None."""

    id: int
    error: Optional[Fields]
    result: Optional[Fields]


@dataclass(frozen=True, slots=True)
class Notification:
    """``[2, method, [params]]``: wants no response."""

    method: str
    params: Fields


Envelope: TypeAlias = Union[Request, Response, Notification]


class Decoder:
    """Takes bytes as they arrive, gives messages.

    Take all messages with `next_message` after each `receive_data`: what was fed and not taken is kept in memory.
    """

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._scanner = Scanner(limits)
        self._buffer = bytearray()
        self._broken: Optional[RemoteProtocolError] = None

    @property
    def pending_bytes(self) -> int:
        """How many bytes lie here that are not yet a message. Zero is where a stream may end."""
        return len(self._buffer)

    @property
    def headers_read(self) -> int:
        """How much work was done, in headers looked at."""
        return self._scanner.headers_read

    def receive_data(self, data: bytes | bytearray | memoryview) -> None:
        """Take more bytes. Decides nothing yet; a broken stream ignores them."""
        if self._broken is None:
            self._buffer += data

    def next_message(self) -> Optional[Envelope]:
        """Return the next message, or None if more bytes are needed for it.

        Raises:
            MessageInvalid: a message is none of the three. It is gone; the one after it can be asked for.
            RemoteProtocolError: the stream is broken; every further call raises the same.
        """
        if self._broken is not None:
            raise self._broken
        try:
            length = self._scanner.scan(self._buffer)
            if length is None:
                return None
            value = _unpack(self._buffer, length)
            if not value or type(value[0]) is not int or value[0] not in (_REQUEST, _RESPONSE, _NOTIFICATION):
                raise RemoteProtocolError("a message is neither a request nor a response nor a notification", "$[0]")
        except RemoteProtocolError as error:
            if error.request_id is None:
                error.request_id = _request_id_in(self._buffer)
            self._broken = error
            self._buffer = bytearray()
            raise
        del self._buffer[:length]
        return _envelope(value, self._limits)


def _unpack(buffer: bytearray, length: int) -> list[Any]:
    """Decode what the scanner let through: an array within all limits."""
    with memoryview(buffer) as whole, whole[:length] as frame:
        try:
            value: list[Any] = msgpack.unpackb(frame, object_pairs_hook=_without_repeats, unicode_errors="surrogateescape")
        except (ValueError, msgpack.UnpackException) as error:
            raise AssertionError(f"BUG: the scanner let through what is not MessagePack: {error}") from error
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise RemoteProtocolError("a map has the same key twice")
    return result


def _request_id_in(buffer: bytearray) -> Optional[int]:
    """Return the id of the request that `buffer` begins with, so that its sender can be told what was wrong."""
    if buffer[:2] != b"\x94\x00" or len(buffer) < 3:
        return None
    first = buffer[2]
    if first <= 0x7F:
        return first
    width = {0xCC: 1, 0xCD: 2, 0xCE: 4}.get(first)
    if width is None or len(buffer) < 3 + width:
        return None
    return int.from_bytes(buffer[3 : 3 + width], "big")


# --- envelopes ------------------------------------------------------------------------------------------


def _envelope(value: list[Any], limits: Limits) -> Envelope:
    kind, length = value[0], len(value)
    request_id = value[1] if kind == _REQUEST and length > 1 and _is_id(value[1]) else None
    if length != (3 if kind == _NOTIFICATION else 4):
        raise MessageInvalid(f"a message of kind {kind} cannot have {length} items", "$", request_id)
    if kind == _NOTIFICATION:
        return Notification(_method(value[1], "$[1]", limits, None), _params(value[2], "$[2]", None))
    if not _is_id(value[1]):
        raise MessageInvalid(f"expected an id from 0 to {_ID_MAX}, found {value[1]!r:.40}", "$[1]")
    if kind == _REQUEST:
        return Request(value[1], _method(value[2], "$[2]", limits, request_id), _params(value[3], "$[3]", request_id))
    _, response_id, error, result = value
    if not ((isinstance(error, dict) and result is None) or (error is None and isinstance(result, dict))):
        raise MessageInvalid("expected either an error or a result, the one a map and the other nil", "$")
    return Response(response_id, error, result)


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _ID_MAX


def _method(value: object, where: str, limits: Limits, request_id: Optional[int]) -> str:
    if not isinstance(value, str) or len(value) > limits.method_characters:
        raise MessageInvalid(f"expected the name of a method, found {value!r:.80}", where, request_id)
    return value


def _params(value: object, where: str, request_id: Optional[int]) -> Fields:
    if not isinstance(value, list) or len(value) != 1 or not isinstance(value[0], dict):
        raise MessageInvalid("expected the params, an array that holds one map", where, request_id)
    return value[0]


# --- encoding -------------------------------------------------------------------------------------------


def _plain_text(value: object) -> str:
    # References are subclasses of str, which msgspec leaves to us.
    if isinstance(value, str):
        return str.__str__(value)
    raise TypeError(f"{type(value).__name__} has no form on the wire")


_ENCODER: Final = msgspec.msgpack.Encoder(enc_hook=_plain_text)


def encode_value(value: object) -> bytes:
    """Return the bytes that `value` takes in a message. Raises as `encode_request`."""
    try:
        try:
            return _ENCODER.encode(value)
        except UnicodeEncodeError:
            return _encode_escaped(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise LocalProtocolError(f"a message cannot be encoded: {error}") from error


def _encode_escaped(value: object) -> bytes:
    """Encode texts that hold undecodable bytes, which msgspec does not. It is slower, and seldom needed."""
    plain = msgspec.to_builtins(value, builtin_types=(bytes,), enc_hook=_plain_text)
    data: bytes = msgpack.packb(plain, unicode_errors="surrogateescape")
    return data


def encode_request(request_id: int, method: str, params: Fields | msgspec.Struct) -> bytes:
    """Return the bytes of a request. Checks nothing that the types do not say.

    Raises:
        LocalProtocolError: something in it has no form on the wire, such as a lone surrogate that stands for no byte.
    """
    return encode_value((_REQUEST, request_id, method, (params,)))


def encode_response(request_id: int, error: Fields | msgspec.Struct | None, result: Fields | msgspec.Struct | None) -> bytes:
    """Return the bytes of a response; one of `error` and `result` is None. Raises as `encode_request`."""
    return encode_value((_RESPONSE, request_id, error, result))


def encode_notification(method: str, params: Fields | msgspec.Struct) -> bytes:
    """Return the bytes of a notification. Raises as `encode_request`."""
    return encode_value((_NOTIFICATION, method, (params,)))
