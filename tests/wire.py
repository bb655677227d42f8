"""The recorded messages of the wire protocol, and a wire in memory that joins both ends of a connection."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from pylightnix.protocol import ClientConnection, ClientEvent, Method, ServerConnection, ServerEvent, WireError
from pylightnix.protocol.messages import CLIENT_VOCABULARY, ClientHello, DaemonWelcome
from pylightnix.protocol.vocabulary import Message, Vocabulary
from pylightnix.protocol.worker_messages import MATCHER_VOCABULARY, WORKER_VOCABULARY

GOLDEN = Path(__file__).resolve().parent / "golden" / "protocol"

HELLO = ClientHello(versions=[1], features=[], client="tests/1")
WELCOME = DaemonWelcome(daemon="pylightnixd/1", store="/s", storage="/s/store-v1", caller="owner", pid=7)

WORKER_AND_MATCHER = Vocabulary.of(
    {**WORKER_VOCABULARY.methods, **MATCHER_VOCABULARY.methods},
    {**WORKER_VOCABULARY.notifications, **MATCHER_VOCABULARY.notifications},
)


@dataclass(frozen=True, slots=True)
class Recorded:
    """One message on record: what it is, what it says, and its bytes."""

    message: str
    method: str
    id: Optional[int]
    value: dict[str, Any]
    data: bytes
    type: type[Message]

    def __str__(self) -> str:
        return f"{self.method}-{self.message}"


def _revived(value: Any) -> Any:
    if isinstance(value, dict):
        return bytes.fromhex(value["$bin"]) if set(value) == {"$bin"} else {key: _revived(item) for key, item in value.items()}
    return [_revived(item) for item in value] if isinstance(value, list) else value


def _type_of(message: str, method: str, vocabulary: Vocabulary) -> type[Message]:
    if message == "error":
        return WireError
    if message == "notification":
        return vocabulary.notifications[method].params
    known: Method = vocabulary.methods[method]
    return known.params if message == "request" else known.result


def _recorded(name: str, vocabulary: Vocabulary) -> Iterator[Recorded]:
    for row in json.loads((GOLDEN / f"{name}.json").read_text()):
        kind = _type_of(row["message"], row["method"], vocabulary)
        yield Recorded(row["message"], row["method"], row.get("id"), _revived(row["value"]), bytes.fromhex(row["hex"]), kind)


CLIENT_RECORDS = list(_recorded("client", CLIENT_VOCABULARY))
WORKER_RECORDS = list(_recorded("worker", WORKER_AND_MATCHER))
ERROR_RECORDS = list(_recorded("errors", CLIENT_VOCABULARY))
RECORDS = [*CLIENT_RECORDS, *WORKER_RECORDS, *ERROR_RECORDS]


def params_on_record(method: str, message: str = "request") -> Any:
    """Return the checked message of a method of the client's vocabulary that is on record."""
    from pylightnix.protocol import parse_message

    found = next(item for item in CLIENT_RECORDS if (item.method, item.message) == (method, message))
    return parse_message(found.value, found.type)


def whole(data: bytes) -> list[bytes]:
    return [data]


def bytewise(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


class Wire:
    """A client's end and a server's end, with nothing between them that fails. Bytes travel as `split` cuts them."""

    def __init__(self, client: ClientConnection, server: ServerConnection, split: Callable[[bytes], list[bytes]] = whole) -> None:
        self.client, self.server, self.split = client, server, split

    def to_server(self, data: bytes) -> list[ServerEvent]:
        return [event for piece in self.split(data) for event in self.server.receive_data(piece)]

    def to_client(self, data: bytes) -> list[ClientEvent]:
        return [event for piece in self.split(data) for event in self.client.receive_data(piece)]
