"""The blocking face of the client: one connection to a daemon, used by one thread at a time.

Carries exchanges over a Unix socket; what is said stands in `exchange`, `submission` and `outcomes`.
Every wait has an end but that for an operation, which may take days: there, the end is the daemon's,
which the kernel tells, or the caller's. Whoever waits for an operation does meanwhile, in its own thread,
what the daemon hands back: realizers and matchers that cannot leave this process.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Final, Optional, TypeVar, Union, cast

from pylightnix.errors import MissingRealization, PylightnixException
from pylightnix.protocol import messages as m
from pylightnix.protocol.errors import NoSuchClaim, OperationCancelled, TooMany
from pylightnix.types import Closure, DRef, RealizeArg, RRef
from pylightnix_client.connecting import PATIENCE_SECONDS, Queue, Where, connect, is_trusted, silence, socket_of
from pylightnix_client.errors import DaemonGone
from pylightnix_client.exchange import Ask, Dialogue, Exchange, query_rows, registration, whole_log

if TYPE_CHECKING:
    from pylightnix.embedded import Outcome
    from pylightnix.store.collection import Removal
    from pylightnix.store.index import RealizationInfo
    from pylightnix.store.mending import Mended
    from pylightnix_client.errands import Errand, Errands
    from pylightnix_client.operation import Operation

__all__ = ["Client"]

T = TypeVar("T")

DEADLINE_SECONDS: Final = 10.0
"""How long connecting and the greeting may take."""
REPLY_SECONDS: Final = 60.0
"""How long an answer may take that waits for no build."""
REMOVAL_SECONDS: Final = 600.0
"""How long the answer to a removal may take: the daemon looks through all derivations, and renames tree by tree."""
_RECEIVE_BYTES: Final = 1 << 18
_STARTS_AT_ONCE: Final = 10_000


class Client:
    """A connection to a daemon. Made by `Client.connect`.

    Attributes:
        path: the socket's path.
        trusted: whether the daemon is this user's or root's. Of another's, no exceptions are unpickled, and nothing is done in its folders.
        welcome: what the daemon said of itself.
        aside: what is entered around realizers and matchers that run here, such as to keep a display off the terminal.
    """

    welcome: m.DaemonWelcome

    def __init__(self, connection: socket.socket, path: str, trusted: bool) -> None:
        self.path, self.trusted = path, trusted
        self._socket = connection
        self._dialogue = Dialogue(path)
        self._errands: dict[str, Errands] = {}
        self._waits: dict[str, int] = {}
        self.aside: Callable[[], AbstractContextManager[object]] = nullcontext

    @classmethod
    def connect(
        cls,
        where: Where = None,
        deadline_seconds: float = DEADLINE_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
        waiting: Optional[Callable[[TooMany], None]] = None,
    ) -> Client:
        """Connect to the daemon at a socket's path, or to the one that owns a store.

        Args:
            where: the path; or the store, as `mkSS` gives it; None for the current store.
            deadline_seconds: how long it may take to answer.
            patience_seconds: how long to wait for others' end where it has as many connections of this user as it takes.
            waiting: is called once, with what it said, before such a wait.

        Raises:
            NoDaemon: there is none.
            SocketRefused, NotYours: it is not for this user.
            DaemonGone: it did not answer in time, or hung up.
            DaemonFull: it still had too many connections in the end.
            UnsupportedVersion: it speaks another version of the protocol.
        """
        queue = Queue(patience_seconds, waiting)
        while True:
            try:
                return cls._connect(where, deadline_seconds)
            except TooMany as refusal:
                pause = queue.pause_seconds(refusal)
            time.sleep(pause)

    @classmethod
    def _connect(cls, where: Where, deadline_seconds: float) -> Client:
        path = socket_of(where)
        connection = connect(path, deadline_seconds)
        try:
            client = cls(connection, path, is_trusted(connection))
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
            raise self._dialogue.gone(f"is gone ({error.strerror or error})") from error

    def _receive(self, seconds: Optional[float]) -> None:
        self._socket.settimeout(seconds)
        try:
            data = self._socket.recv(_RECEIVE_BYTES)
        except TimeoutError as error:
            raise silence(self._socket, self.path, seconds or 0.0) from error
        except ConnectionError:
            data = b""  # it was killed with something of ours unread
        except OSError as error:
            raise self._dialogue.gone(f"is gone ({error.strerror or error})") from error
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
                    if isinstance(error, DaemonGone) or self._dialogue.ended is not None:
                        raise  # nobody is there to be told of it
                    ask = exchange.throw(error)
                else:
                    ask = exchange.send(answer)
        except StopIteration as end:
            return cast(T, end.value)

    def wait(self, operation: str) -> m.WaitResult:
        """Wait until an operation has ended, and do what is handed back meanwhile.

        Raises:
            BaseException: a realizer or matcher raised what is no `Exception`, such as `KeyboardInterrupt`. Its
                operation is cancelled then.
        """
        number, data = self._dialogue.ask(Ask("wait", m.Wait(operation=operation)))
        self._send(data)
        while (answer := self._dialogue.answer(number)) is None:
            self._work_or_receive()
        self._errands.pop(operation, None)
        return cast(m.WaitResult, answer)

    def next_pause(self, operation: str) -> Optional[m.Pause]:
        """Wait for the next pause of an operation, as `wait` does; None when it has ended."""
        if operation not in self._waits:
            self._waits[operation], data = self._dialogue.ask(Ask("wait", m.Wait(operation=operation)))
            self._send(data)
        while (pause := self._dialogue.pause(operation)) is None:
            if self._dialogue.answer(self._waits[operation]) is not None:
                del self._waits[operation]
                return None
            self._work_or_receive()
        return pause

    def take_raised(self, operation: str, dref: DRef) -> Optional[BaseException]:
        """Return what a realizer or matcher raised here, once; None if it did not."""
        errands = self._errands.get(operation)
        return errands.raised.pop(dref, None) if errands is not None else None

    def next_notice(self, operation: str) -> m.Message:
        """Wait for the next notice of an operation that was subscribed to, as `wait` does."""
        while (notice := self._dialogue.notice(operation)) is None:
            self._work_or_receive()
        return notice

    def _work_or_receive(self) -> None:
        errand = self._dialogue.next_errand()
        if errand is None:
            self._receive(None)
            return
        from pylightnix_client.errands import refusal

        errands = self._errands.get(errand.operation)
        try:
            with self.aside():
                answer = errands.run(errand) if errands is not None else refusal(errand, OperationCancelled(errand.operation))
        except BaseException as error:
            self._give_up(errand, error)
            raise
        self._answer(errand, answer)

    def _answer(self, errand: Errand, answer: Ask) -> None:
        from pylightnix_client.errands import refusal

        try:
            self.call(answer)
        except NoSuchClaim:
            pass  # the operation has ended meanwhile, which `wait` tells
        except DaemonGone:
            raise
        except PylightnixException as error:
            self.call(refusal(errand, error))  # such as outputs with names that no message can have

    def _give_up(self, errand: Errand, error: BaseException) -> None:
        """Cancel the operation of an errand that was interrupted. Others that want the same build do it themselves."""
        from pylightnix_client.errands import refusal

        try:
            self.cancel(errand.operation)
            self._answer(errand, refusal(errand, error))
        except PylightnixException:
            pass  # the daemon has gone, and with it the operation

    def add_credit(self, operation: str, credit: int) -> None:
        """Let the daemon send so many notices more."""
        self._send(self._dialogue.tell("credit", m.Credit(operation=operation, credit=credit)))

    def say_fetched(self, operation: str) -> None:
        """Let the daemon forget what came of an operation, unless others want to know."""
        with suppress(PylightnixException):  # it has ended, and forgets it anyway
            self._send(self._dialogue.tell("fetched", m.Fetched(operation=operation)))

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
        log: bool = False,
        jobs: Optional[int] = None,
        ask: Sequence[DRef] = (),
        ask_on_failure: bool = False,
    ) -> Operation:
        """Have what the targets of `closure` need realized; return at once. See `submission`.

        With `watch`, `Operation.events` begins with the very first; without, with what comes after it was called. With
        `log` as well, it has what builds write. `jobs` is how many builds the operation may want at a time.
        With `ask` or `ask_on_failure` it is to be turned by `next_pause`.
        """
        from pylightnix_client.errands import Errands
        from pylightnix_client.operation import Operation
        from pylightnix_client.submission import Wishes, submission

        wishes = Wishes(force_rebuild, assert_realized, realize_args or {}, dry_run, keep_going, watch, log, jobs, ask, ask_on_failure)
        errands = Errands(closure, wishes.realize_args, self.welcome, None if self.trusted else self.path)
        errands.survives_interrupts = ask_on_failure
        operation = self.carry(submission(closure, errands.within(wishes)))
        self._errands[operation] = errands
        return Operation(self, operation, closure, dry_run, watched=watch, raised=errands.raised)

    def realize(
        self,
        closure: Closure,
        *,
        force_rebuild: Union[Sequence[DRef], bool] = (),
        assert_realized: Sequence[DRef] = (),
        realize_args: Optional[Mapping[DRef, RealizeArg]] = None,
        dry_run: bool = False,
        keep_going: bool = False,
        jobs: Optional[int] = None,
    ) -> Outcome:
        """Have what the targets of `closure` need realized, wait for that, and return what came of it: `submit` and `Operation.outcome`.

        `Outcome.check` raises what failed. An interrupt cancels the operation.

        Raises:
            PylightnixException: it was cancelled or refused, the store failed, or the daemon has gone.
        """
        operation = self.submit(
            closure,
            force_rebuild=force_rebuild,
            assert_realized=assert_realized,
            realize_args=realize_args,
            dry_run=dry_run,
            keep_going=keep_going,
            jobs=jobs,
        )
        try:
            return operation.outcome()
        except KeyboardInterrupt:
            self.cancel(operation.id)
            raise

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
        if operation in self._errands:
            self._errands[operation].wanted = False
        self.call(Ask("cancel", m.Cancel(operation=operation)))

    # --- questions ------------------------------------------------------------------------------------

    def status(self) -> m.DaemonStatus:
        return cast(m.DaemonStatus, self.call(Ask("status", m.Status())))

    def ps(self) -> m.Processes:
        return cast(m.Processes, self.call(Ask("ps", m.Ps())))

    def log(self, ref: str, offset: int = 0, limit: Optional[int] = None) -> m.LogResult:
        """Return a log from `offset` on, as far as it is written; with a `limit`, no more than so many bytes of it (4 MiB at most).

        Args:
            ref: a build's name; a derivation, whose latest build is meant; or a realization, for the build that made it.
            offset: where to begin, in bytes.
            limit: how many bytes to ask for, in one request; None for all that there are.

        Raises:
            MissingLog: there is none.
        """
        if limit is None:
            return self.carry(whole_log(ref, offset))
        return cast(m.LogResult, self.call(Ask("log", m.Log(ref=ref, offset=offset, limit=limit))))

    def log_end(self, ref: str, size: int) -> m.LogResult:
        """Return the last part of a log as it is now, up to `size` bytes."""
        return cast(m.LogResult, self.call(Ask("log", m.Log(ref=ref, limit=size, tail=True))))

    def info(self, rref: str) -> m.InfoResult:
        """Return what is known of a realization. Raises `MissingRealization`."""
        return cast(m.InfoResult, self.call(Ask("info", m.Info(ref=rref))))

    def code(self, digest: str) -> Optional[str]:
        """Return what a realizer's digest covers, as JSON; None if that was not recorded."""
        return cast(m.CodeResult, self.call(Ask("code", m.Code(digest=digest)))).manifest

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

    def remove(self, drefs: Sequence[DRef], rrefs: Sequence[RRef], only_unused: bool = False) -> Removal:
        """Take derivations, with all their realizations, and realizations out of the store.

        Arguments, result and errors are those of `pylightnix.store.collection.remove`. At most 10,000 of either can be given; of what
        is gone, as many realizations are named.
        """
        from pylightnix.store.collection import Removal

        params = m.Remove(drefs=[str(dref) for dref in drefs], rrefs=[str(rref) for rref in rrefs], only_unused=only_unused)
        removed = cast(m.Removed, self.call(Ask("remove", params), REMOVAL_SECONDS))
        kept = {row.ref: row.needed_by for row in removed.kept}
        return Removal([DRef(dref) for dref in removed.drefs], [RRef(rref) for rref in removed.rrefs], kept)

    def mend(self, rrefs: Sequence[RRef]) -> list[Mended]:
        """Mend realizations that may be damaged, or have them moved to the quarantine.

        Arguments, result and errors are those of `pylightnix.store.mending.mend`.
        """
        from pylightnix.store.mending import Mended, Outcome

        found: list[Mended] = []
        for rref in rrefs:
            # One at a time, and however long it takes to hash: the kernel tells if the daemon ends.
            mended = cast(m.Mended, self.call(Ask("mend", m.Mend(rrefs=[str(rref)])), None))
            found += [Mended(RRef(row.rref), Outcome(row.outcome), row.damage, row.detail, row.moved_to) for row in mended.mended]
        return found

    def register(self, configs: Sequence[bytes]) -> list[DRef]:
        """Put derivations into the store, given by their canonical configs."""
        return [DRef(dref) for dref in self.carry(registration(list(configs)))]
