"""Requests and their answers, whoever carries them: the base of the blocking and of any other face of the client.

An exchange is a generator that yields an `Ask`, is sent its answer (or thrown its error), and returns what
came of it all. So it is written once, and needs neither socket nor event loop. `Dialogue` is what both
faces have in common of a connection: bytes in, answers by number and notices by operation out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Final, Optional, TypeAlias, TypeVar

from pylightnix._version import __version__
from pylightnix.errors import PylightnixException
from pylightnix.protocol import messages as m
from pylightnix.protocol.client import ClientConnection
from pylightnix.protocol.connection import (
    ClientEvent,
    ConnectionEnded,
    NotificationReceived,
    ProtocolFailed,
    RequestFailed,
    ResponseReceived,
    Welcomed,
)
from pylightnix.protocol.errors import Draining
from pylightnix_client.errors import DaemonGone

__all__ = ["CREDIT", "Ask", "Dialogue", "Exchange", "query_rows", "registration", "whole_log"]

T = TypeVar("T")

VERSIONS: Final = (1,)
CREDIT: Final = 64
"""How many notices of an operation may be on their way. What comes beyond that is dropped by the daemon, with a mark."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request."""

    method: str
    params: m.Message


Exchange: TypeAlias = Generator[Ask, Any, T]


class Dialogue:
    """One connection, as far as it needs no input or output.

    Attributes:
        welcome: what the daemon said of itself; None before the handshake is done.
        ended: why nothing will come any more; None as long as something may.
    """

    def __init__(self, where: str) -> None:
        self.welcome: Optional[m.DaemonWelcome] = None
        self.ended: Optional[PylightnixException] = None
        self._where = where
        self._draining: Optional[Draining] = None
        self._connection = ClientConnection()
        self._answers: dict[int, m.Message | PylightnixException] = {}
        self._notices: dict[str, deque[m.Message]] = {}
        self._errands: deque[m.Claim | m.Match] = deque()
        self._pauses: dict[str, deque[m.Pause]] = {}

    def hello(self) -> tuple[int, bytes]:
        """Return the number and the bytes of the greeting, which must be answered before anything else is sent."""
        return self._connection.send_hello(m.ClientHello(versions=list(VERSIONS), client=f"pylightnix/{__version__}"))

    def ask(self, ask: Ask) -> tuple[int, bytes]:
        """Return the number and the bytes of a request."""
        if self.ended is not None:
            raise self.ended
        if isinstance(ask.params, m.Subscribe):
            # From here on its notices are kept. No more come than there is credit for.
            self._notices.setdefault(ask.params.operation, deque())
        return self._connection.send_request(ask.method, ask.params)

    def tell(self, method: str, params: m.Message) -> bytes:
        """Return the bytes of a notification."""
        if self.ended is not None:
            raise self.ended
        return self._connection.send_notification(method, params)

    def hear(self, data: bytes) -> None:
        """Take in what arrived; no bytes mean the end."""
        for event in self._connection.receive_data(data) if data else self._connection.receive_eof():
            self._heard(event)

    def _heard(self, event: ClientEvent) -> None:
        if isinstance(event, ResponseReceived):
            self._answers[event.id] = event.result
        elif isinstance(event, RequestFailed):
            self._answers[event.id] = event.error
        elif isinstance(event, Welcomed):
            if not isinstance(event.welcome, m.DaemonWelcome):
                raise AssertionError(f"BUG: the vocabulary of daemons has a welcome that is a {type(event.welcome).__name__}")
            self.welcome = event.welcome
        elif isinstance(event, NotificationReceived) and isinstance(event.params, (m.Claim, m.Match)):
            self._errands.append(event.params)
        elif isinstance(event, NotificationReceived) and isinstance(event.params, m.Pause):
            self._pauses.setdefault(event.params.operation, deque()).append(event.params)
        elif isinstance(event, NotificationReceived) and isinstance(event.params, m.DrainingNotice):
            self._draining = Draining(event.params.retry_after)
        elif isinstance(event, NotificationReceived):
            operation = getattr(event.params, "operation", None)
            if operation in self._notices:
                self._notices[operation].append(event.params)
        elif isinstance(event, ProtocolFailed):
            self.ended = event.error
        elif isinstance(event, ConnectionEnded):
            self.gone("hung up")

    def gone(self, problem: str) -> PylightnixException:
        """Take the connection for ended, and return as what: the daemon stops, if it said so, else it is gone."""
        self.ended = self.ended or self._draining or DaemonGone(self._where, problem)
        return self.ended

    def answer(self, number: int) -> Optional[m.Message]:
        """Return the answer to a request, once; None if it has not come.

        Raises:
            PylightnixException: the request failed, or its answer will never come.
        """
        found = self._answers.pop(number, None)
        if isinstance(found, PylightnixException):
            raise found
        if found is None and self.ended is not None:
            raise self.ended
        return found

    def notice(self, operation: str) -> Optional[m.Message]:
        """Return the next notice of an operation that was subscribed to; None if there is none now."""
        waiting = self._notices.get(operation)
        if waiting:
            found = waiting.popleft()
            if isinstance(found, m.Ended):
                del self._notices[operation]  # nothing follows
            return found
        if self.ended is not None:
            raise self.ended
        return None

    def has_notice(self, operation: str) -> bool:
        """Tell whether `notice` would return one now."""
        return bool(self._notices.get(operation))

    def pause(self, operation: str) -> Optional[m.Pause]:
        """Return before what an operation pauses, once; None if it does not."""
        waiting = self._pauses.get(operation)
        return waiting.popleft() if waiting else None

    def next_errand(self) -> Optional[m.Claim | m.Match]:
        """Return what the daemon hands back to this process, oldest first; None if there is nothing now."""
        return self._errands.popleft() if self._errands else None

    def has_errand(self) -> bool:
        """Tell whether `next_errand` would return one now."""
        return bool(self._errands)


# --- exchanges that need nothing else -----------------------------------------------------------------


def query_rows(query: m.Query) -> Exchange[list[m.Row]]:
    """Ask for all pages of an enumeration."""
    import msgspec

    rows: list[m.Row] = []
    offset: Optional[int] = 0
    while offset is not None:
        page = yield Ask("query", msgspec.structs.replace(query, offset=offset, limit=_PAGE_ROWS))
        rows += m.rows_of(query.what, page)
        offset = page.next
    return rows


def whole_log(ref: str, offset: int) -> Exchange[m.LogResult]:
    """Ask for a log from `offset` on, as far as it is written; it comes in as many parts as it takes."""
    import msgspec

    parts: list[bytes] = []
    found: Optional[m.LogResult] = None
    while found is None or found.data:
        # By the build's name from the second part on: a later build of the same must not be mixed into this log.
        found = yield Ask("log", m.Log(ref=ref, offset=offset))
        ref, offset = found.build, found.next
        parts.append(found.data)
    return msgspec.structs.replace(found, data=b"".join(parts))


_PAGE_ROWS: Final = 10_000
_REGISTER_BYTES_MAX: Final = 6 << 20


def registration(configs: list[bytes]) -> Exchange[list[str]]:
    """Put derivations into the store, in as few requests as the limits allow."""
    drefs: list[str] = []
    batch: list[bytes] = []
    size = 0
    for config in [*configs, None]:
        full = len(batch) == _REGISTER_CONFIGS_MAX or (config is not None and size + len(config) > _REGISTER_BYTES_MAX)
        if batch and (config is None or full):
            registered = yield Ask("register", m.Register(configs=batch))
            drefs += registered.drefs
            batch, size = [], 0
        if config is not None:
            batch.append(config)
            size += len(config)
    return drefs


_REGISTER_CONFIGS_MAX: Final = 1000
