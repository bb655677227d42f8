"""The blocking face of the client: one connection to a daemon, used by one thread at a time.

Carries exchanges over a Unix socket; what is said stands in `exchange`, `submission` and `outcomes`.
Every wait has an end but that for an operation, which may take days: there, the end is the daemon's,
which the kernel tells, or the caller's.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Final, Optional, TypeVar, Union, cast

from pylightnix.errors import MissingRealization, PylightnixException
from pylightnix.protocol import messages as m
from pylightnix.store.layout import StoreLayout
from pylightnix.types import Closure, DRef, RealizeArg, RRef
from pylightnix_client.connecting import connect, is_trusted, socket_of
from pylightnix_client.errors import DaemonGone
from pylightnix_client.exchange import Ask, Dialogue, Exchange, query_rows, registration

if TYPE_CHECKING:
    from pylightnix.store.index import RealizationInfo
    from pylightnix_client.operation import Operation

__all__ = ["Client"]

T = TypeVar("T")

DEADLINE_SECONDS: Final = 10.0
"""How long connecting and the greeting may take."""
REPLY_SECONDS: Final = 60.0
"""How long an answer may take that waits for no build."""
_RECEIVE_BYTES: Final = 1 << 18
_STARTS_AT_ONCE: Final = 10_000


class Client:
    """A connection to a daemon. Made by `Client.connect`.

    Attributes:
        path: the socket's path.
        trusted: whether exceptions that the daemon pickled are opened.
        welcome: what the daemon said of itself.
    """

    welcome: m.DaemonWelcome

    def __init__(self, connection: socket.socket, path: str, trusted: bool) -> None:
        self.path, self.trusted = path, trusted
        self._socket = connection
        self._dialogue = Dialogue(path)

    @classmethod
    def connect(cls, where: Union[str, StoreLayout], deadline_seconds: float = DEADLINE_SECONDS) -> Client:
        """Connect to the daemon at a socket's path, or to the one that owns a store.

        Raises:
            NoDaemon: there is none.
            SocketRefused, NotYours: it is not for this user.
            DaemonGone: it did not answer in time, or hung up.
            UnsupportedVersion: it speaks another version of the protocol.
        """
        path = socket_of(where)
        connection = connect(path, deadline_seconds)
        try:
            client = cls(connection, path, is_trusted(connection, where))
            number, data = client._dialogue.hello()
            client._send(data)
            while client._dialogue.welcome is None:
                client._dialogue.answer(number)  # raises if it was refused
                client._receive(deadline_seconds)
            client.welcome = client._dialogue.welcome
        except BaseException:
            connection.close()
            raise
        return client

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        self.close()

    def close(self) -> None:
        """Hang up. Operations that nobody else is attached to are cancelled by the daemon."""
        self._socket.close()

    # --- carrying -------------------------------------------------------------------------------------

    def _send(self, data: bytes) -> None:
        self._socket.settimeout(REPLY_SECONDS)
        try:
            self._socket.sendall(data)
        except TimeoutError as error:
            raise DaemonGone(self.path, f"took nothing for {REPLY_SECONDS:g} s") from error
        except OSError as error:
            raise DaemonGone(self.path, f"is gone ({error.strerror or error})") from error

    def _receive(self, seconds: Optional[float]) -> None:
        self._socket.settimeout(seconds)
        try:
            data = self._socket.recv(_RECEIVE_BYTES)
        except TimeoutError as error:
            raise DaemonGone(self.path, f"did not answer within {seconds:g} s") from error
        except ConnectionError:
            data = b""  # it was killed with something of ours unread
        except OSError as error:
            raise DaemonGone(self.path, f"is gone ({error.strerror or error})") from error
        self._dialogue.hear(data)

    def call(self, ask: Ask, seconds: Optional[float] = REPLY_SECONDS) -> m.Message:
        """Make one request and wait for its answer, for at most so long; None is for ever.

        Raises:
            PylightnixException: the daemon's error, or `DaemonGone`.
        """
        number, data = self._dialogue.ask(ask)
        self._send(data)
        while (answer := self._dialogue.answer(number)) is None:
            self._receive(seconds)
        return answer

    def carry(self, exchange: Exchange[T]) -> T:
        """Carry an exchange to its end and return its result."""
        try:
            ask = next(exchange)
            while True:
                try:
                    answer = self.call(ask)
                except PylightnixException as error:
                    if isinstance(error, DaemonGone):
                        raise  # nobody is there to be told of it
                    ask = exchange.throw(error)
                else:
                    ask = exchange.send(answer)
        except StopIteration as end:
            return cast(T, end.value)

    def next_notice(self, operation: str) -> m.Message:
        """Wait for the next notice of an operation that was subscribed to."""
        while (notice := self._dialogue.notice(operation)) is None:
            self._receive(None)
        return notice

    def add_credit(self, operation: str, credit: int) -> None:
        """Let the daemon send so many notices more."""
        self._send(self._dialogue.tell("credit", m.Credit(operation=operation, credit=credit)))

    # --- operations -----------------------------------------------------------------------------------

    def submit(
        self,
        closure: Closure,
        *,
        force_rebuild: Union[Sequence[DRef], bool] = (),
        assert_realized: Sequence[DRef] = (),
        realize_args: Optional[Mapping[DRef, RealizeArg]] = None,
        dry_run: bool = False,
        keep_going: bool = False,
        watch: bool = False,
    ) -> Operation:
        """Have what the targets of `closure` need realized; return at once. See `submission`.

        With `watch`, `Operation.events` begins with the very first; without, with what comes after it was called.
        """
        from pylightnix_client.operation import Operation
        from pylightnix_client.submission import Wishes, submission

        wishes = Wishes(force_rebuild, assert_realized, realize_args or {}, dry_run, keep_going, watch)
        return Operation(self, self.carry(submission(closure, wishes)), closure, dry_run, watched=watch)

    def attach(self, operation: str) -> Operation:
        """Come to an operation that exists; it then lives as long as this connection, if no other is attached.

        Raises:
            NoSuchOperation: there is none of that name.
        """
        from pylightnix_client.operation import Operation

        attached = cast(m.Attached, self.call(Ask("attach", m.Attach(operation=operation))))
        return Operation(self, operation, attached=attached)

    def cancel(self, operation: str) -> None:
        """End an operation, whoever began it."""
        self.call(Ask("cancel", m.Cancel(operation=operation)))

    # --- questions ------------------------------------------------------------------------------------

    def status(self) -> m.DaemonStatus:
        return cast(m.DaemonStatus, self.call(Ask("status", m.Status())))

    def ps(self) -> m.Processes:
        return cast(m.Processes, self.call(Ask("ps", m.Ps())))

    def log(self, ref: str, offset: int = 0) -> m.LogResult:
        """Return a part of the log of a build, or of the latest build of what was built."""
        return cast(m.LogResult, self.call(Ask("log", m.Log(ref=ref, offset=offset))))

    def info(self, rref: str) -> m.InfoResult:
        """Return what is known of a realization. Raises `MissingRealization`."""
        return cast(m.InfoResult, self.call(Ask("info", m.Info(ref=rref))))

    def realization_info(self, rref: str) -> Optional[RealizationInfo]:
        """Return what is known of a realization, None of one that does not count."""
        from pylightnix.store.index import RealizationInfo

        try:
            found = self.info(rref)
        except MissingRealization:
            return None
        return RealizationInfo(
            RRef(found.rref),
            DRef(found.dref),
            found.tree_hash,
            found.nar_bytes,
            found.started,
            found.stopped,
            found.builder,
            found.host,
            found.realizer_digest,
        )

    def rrefs(self, what: m.QueryWhat, dref: Optional[str] = None, context: Optional[Mapping[DRef, Sequence[RRef]]] = None) -> list[RRef]:
        """Return what an enumeration of realizations gives, sorted as there."""
        from pylightnix.config import canonical_bytes

        packed = None if context is None else canonical_bytes({dep: sorted(rrefs) for dep, rrefs in context.items()})
        rows = self.carry(query_rows(m.Query(what=what, dref=dref, context=packed)))
        return [RRef(row) for row in rows if isinstance(row, str)]

    def starts(self, rrefs: Sequence[str]) -> dict[RRef, float]:
        """Return when the latest build of each of these realizations started, UTC seconds since the epoch."""
        found: dict[RRef, float] = {}
        for i in range(0, len(rrefs), _STARTS_AT_ONCE):
            wanted = [str(rref) for rref in rrefs[i : i + _STARTS_AT_ONCE]]
            rows = self.carry(query_rows(m.Query(what="starts", rrefs=wanted)))
            found.update({RRef(row.rref): row.started for row in rows if isinstance(row, m.Candidate)})
        return found

    def register(self, configs: Sequence[bytes]) -> list[DRef]:
        """Put derivations into the store, given by their canonical configs."""
        return [DRef(dref) for dref in self.carry(registration(list(configs)))]
