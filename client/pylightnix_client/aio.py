"""The async face of the client, on trio and asyncio alike (by anyio): one connection, used by many tasks at once.

Says the same as the blocking face, by the same exchanges. There is no task in the background: of those that wait
for something, one reads for all. Cancelling a wait loses nothing that was or will be read. What is packed for a
submission is packed in the event loop, between its messages. Realizers and matchers that cannot leave this process
run in a thread, one at a time, while a task waits for an operation.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Final, Optional, TypeVar, Union, cast

import anyio
import anyio.lowlevel
import anyio.to_thread

from pylightnix.errors import Misuse, PylightnixException
from pylightnix.protocol import messages as m
from pylightnix.protocol.errors import NoSuchClaim, OperationCancelled, TooMany
from pylightnix.types import Closure, DRef, RealizeArg
from pylightnix_client.connecting import PATIENCE_SECONDS, Queue, Where, connect, is_trusted, silence, socket_of
from pylightnix_client.errors import DaemonGone
from pylightnix_client.exchange import CREDIT, Ask, Dialogue, Exchange, whole_log

if TYPE_CHECKING:
    from pylightnix.embedded import Outcome
    from pylightnix_client.errands import Errand, Errands
    from pylightnix_client.operation import Happening

__all__ = ["AsyncClient", "AsyncOperation"]

T = TypeVar("T")

DEADLINE_SECONDS: Final = 10.0
_SEND_SECONDS: Final = 60.0
_CANCEL_SECONDS: Final = 10.0
"""How long the daemon may take to hear that nobody waits any more."""
_RECEIVE_BYTES: Final = 1 << 18


class AsyncClient:
    """A connection to a daemon. Made by `AsyncClient.connect`; an async context manager.

    Attributes:
        path: the socket's path.
        trusted: as of `Client`.
        welcome: what the daemon said of itself.
    """

    welcome: m.DaemonWelcome

    def __init__(self, connection: socket.socket, path: str, trusted: bool) -> None:
        self.path, self.trusted = path, trusted
        self._socket = connection
        self._socket.setblocking(False)
        self._dialogue = Dialogue(path)
        self._sending, self._receiving, self._working = anyio.Lock(), anyio.Lock(), anyio.Lock()
        self._errands: dict[str, Errands] = {}

    @classmethod
    async def connect(
        cls,
        where: Where = None,
        deadline_seconds: float = DEADLINE_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
        waiting: Optional[Callable[[TooMany], None]] = None,
    ) -> AsyncClient:
        """Connect to the daemon at a socket's path, or to the one that owns a store. Arguments and errors as of `Client.connect`."""
        queue = Queue(patience_seconds, waiting)
        while True:
            try:
                return await cls._connect(where, deadline_seconds)
            except TooMany as refusal:
                pause = queue.pause_seconds(refusal)
            await anyio.sleep(pause)

    @classmethod
    async def _connect(cls, where: Where, deadline_seconds: float) -> AsyncClient:
        path = await anyio.to_thread.run_sync(socket_of, where)
        connection = await anyio.to_thread.run_sync(connect, path, deadline_seconds)
        try:
            client = cls(connection, path, is_trusted(connection))
            number, data = client._dialogue.hello()
            with anyio.move_on_after(deadline_seconds):
                await client._send(lambda: (number, data))
                while client._dialogue.welcome is None:
                    client._dialogue.answer(number)  # raises if it was refused
                    await client._receive(lambda: client._dialogue.welcome is not None)
            if client._dialogue.welcome is None:
                raise silence(connection, path, deadline_seconds)
            client.welcome = client._dialogue.welcome
        except BaseException:
            connection.close()
            raise
        return client

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        self.close()

    def close(self) -> None:
        """Hang up. Operations that nobody else is attached to are cancelled by the daemon."""
        self._socket.close()

    # --- carrying -------------------------------------------------------------------------------------

    async def _send(self, message: Callable[[], tuple[int, bytes]]) -> int:
        """Send what `message` makes, whole, whoever is cancelled: half a message would end the connection for all."""
        async with self._sending:
            number, data = message()
            with anyio.move_on_after(_SEND_SECONDS, shield=True) as scope:
                rest = memoryview(data)
                while rest:
                    try:
                        rest = rest[self._socket.send(rest) :]
                    except BlockingIOError:
                        await anyio.wait_writable(self._socket)
                    except OSError as error:
                        raise self._dialogue.gone(f"is gone ({error.strerror or error})") from error
            if scope.cancelled_caught:
                self.close()
                raise DaemonGone(self.path, f"took nothing for {_SEND_SECONDS:g} s")
            return number

    async def _receive(self, arrived: Callable[[], bool]) -> None:
        """Read once, unless what the caller waits for came while another task was reading."""
        async with self._receiving:
            if arrived() or self._dialogue.ended is not None:
                return
            await anyio.wait_readable(self._socket)
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""  # it was killed with something of ours unread
            self._dialogue.hear(data)

    async def call(self, ask: Ask) -> m.Message:
        """Make one request and wait for its answer.

        Raises:
            PylightnixException: the daemon's error, or `DaemonGone`.
        """
        number = await self._send(lambda: self._dialogue.ask(ask))
        found: list[m.Message] = []

        def arrived() -> bool:
            answer = None if found else self._dialogue.answer(number)
            if answer is not None:
                found.append(answer)
            return bool(found)

        while not arrived():
            await self._receive(arrived)
        return found[0]

    async def carry(self, exchange: Exchange[T]) -> T:
        """Carry an exchange to its end and return its result. One that is cancelled takes back what it has begun."""
        try:
            ask = next(exchange)
            while True:
                try:
                    answer = await self.call(ask)
                except PylightnixException as error:
                    if isinstance(error, DaemonGone) or self._dialogue.ended is not None:
                        raise  # nobody is there to be told of it
                    ask = exchange.throw(error)
                else:
                    ask = exchange.send(answer)
        except StopIteration as end:
            return cast(T, end.value)
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(_CANCEL_SECONDS, shield=True), suppress(PylightnixException):
                await self.call(exchange.throw(OperationCancelled("an exchange")))
            raise

    async def wait(self, operation: str) -> m.WaitResult:
        """Wait until an operation has ended, and do what is handed back meanwhile."""
        number = await self._send(lambda: self._dialogue.ask(Ask("wait", m.Wait(operation=operation))))
        found: list[m.Message] = []

        def arrived() -> bool:
            answer = None if found else self._dialogue.answer(number)
            if answer is not None:
                found.append(answer)
            return bool(found)

        while not arrived():
            await self._work_or_receive(arrived)
        self._errands.pop(operation, None)
        return cast(m.WaitResult, found[0])

    async def next_notice(self, operation: str) -> m.Message:
        """Wait for the next notice of an operation that was subscribed to, as `wait` does. For one task at a time."""
        while (notice := self._dialogue.notice(operation)) is None:
            await self._work_or_receive(lambda: self._dialogue.has_notice(operation))
        return notice

    async def _work_or_receive(self, arrived: Callable[[], bool]) -> None:
        if not self._dialogue.has_errand():
            await self._receive(lambda: arrived() or self._dialogue.has_errand())
            return
        # Shielded: the daemon, and whoever else wants the same, waits for an answer to what was taken on.
        with anyio.CancelScope(shield=True):
            async with self._working:
                errand = self._dialogue.next_errand()
                if errand is not None:
                    await self._work(errand)
        await anyio.lowlevel.checkpoint()

    async def _work(self, errand: Errand) -> None:
        from pylightnix_client.errands import refusal

        errands = self._errands.get(errand.operation)
        if errands is None:
            await self._answer(errand, refusal(errand, OperationCancelled(errand.operation)))
            return
        answer = await anyio.to_thread.run_sync(_run, errands, errand)
        if isinstance(answer, Ask):
            await self._answer(errand, answer)
            return
        try:
            await self.cancel(errand.operation)
            await self._answer(errand, refusal(errand, answer))
        except PylightnixException:
            pass  # the daemon has gone, and with it the operation
        raise answer

    async def _answer(self, errand: Errand, answer: Ask) -> None:
        from pylightnix_client.errands import refusal

        try:
            await self.call(answer)
        except NoSuchClaim:
            pass  # the operation has ended meanwhile, which `wait` tells
        except DaemonGone:
            raise
        except PylightnixException as error:
            await self.call(refusal(errand, error))  # such as outputs with names that no message can have

    async def add_credit(self, operation: str, credit: int) -> None:
        """Let the daemon send so many notices more."""
        await self._send(lambda: (0, self._dialogue.tell("credit", m.Credit(operation=operation, credit=credit))))

    async def say_fetched(self, operation: str) -> None:
        """Let the daemon forget what came of an operation, unless others want to know."""
        with suppress(PylightnixException):  # it has ended, and forgets it anyway
            await self._send(lambda: (0, self._dialogue.tell("fetched", m.Fetched(operation=operation))))

    # --- asking ---------------------------------------------------------------------------------------

    async def submit(
        self,
        closure: Closure,
        *,
        force_rebuild: Union[Sequence[DRef], bool] = (),
        assert_realized: Sequence[DRef] = (),
        realize_args: Optional[Mapping[DRef, RealizeArg]] = None,
        dry_run: bool = False,
        keep_going: bool = False,
        watch: bool = True,
        log: bool = False,
        jobs: Optional[int] = None,
    ) -> AsyncOperation:
        """Have what the targets of `closure` need realized; return when the daemon has taken it.

        With `watch`, `AsyncOperation.events` begins with the very first; without, with what comes after it was called. With
        `log` as well, it has what builds write. `jobs` is how many builds the operation may want at a time.
        """
        from pylightnix_client.errands import Errands
        from pylightnix_client.submission import Wishes, submission

        wishes = Wishes(force_rebuild, assert_realized, realize_args or {}, dry_run, keep_going, watch, log, jobs)
        errands = Errands(closure, wishes.realize_args, self.welcome, None if self.trusted else self.path)
        operation = await self.carry(submission(closure, errands.within(wishes)))
        self._errands[operation] = errands
        return AsyncOperation(self, operation, closure, dry_run, watched=watch, raised=errands.raised)

    async def realize(
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
        """Do as `Client.realize`. Cancelling the task cancels the operation."""
        operation = await self.submit(
            closure,
            force_rebuild=force_rebuild,
            assert_realized=assert_realized,
            realize_args=realize_args,
            dry_run=dry_run,
            keep_going=keep_going,
            watch=False,
            jobs=jobs,
        )
        try:
            return await operation.outcome()
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(_CANCEL_SECONDS, shield=True), suppress(PylightnixException):
                await operation.cancel()
            raise

    async def attach(self, operation: str) -> AsyncOperation:
        """Come to an operation that exists; it then lives as long as this connection, if no other is attached.

        Raises:
            NoSuchOperation: there is none of that name.
        """
        attached = cast(m.Attached, await self.call(Ask("attach", m.Attach(operation=operation))))
        return AsyncOperation(self, operation, attached=attached)

    async def cancel(self, operation: str) -> None:
        """End an operation, whoever began it."""
        if operation in self._errands:
            self._errands[operation].wanted = False
        await self.call(Ask("cancel", m.Cancel(operation=operation)))

    async def status(self) -> m.DaemonStatus:
        return cast(m.DaemonStatus, await self.call(Ask("status", m.Status())))

    async def ps(self) -> m.Processes:
        return cast(m.Processes, await self.call(Ask("ps", m.Ps())))

    async def log(self, ref: str, offset: int = 0, limit: Optional[int] = None) -> m.LogResult:
        """Return a log from `offset` on, as far as it is written; with a `limit`, no more than so many bytes of it (4 MiB at most).

        Args:
            ref: a build's name; a derivation, whose latest build is meant; or a realization, for the build that made it.
            offset: where to begin, in bytes.
            limit: how many bytes to ask for, in one request; None for all that there are.

        Raises:
            MissingLog: there is none.
        """
        if limit is None:
            return await self.carry(whole_log(ref, offset))
        return cast(m.LogResult, await self.call(Ask("log", m.Log(ref=ref, offset=offset, limit=limit))))

    async def info(self, rref: str) -> m.InfoResult:
        """Return what is known of a realization. Raises `MissingRealization`."""
        return cast(m.InfoResult, await self.call(Ask("info", m.Info(ref=rref))))


def _run(errands: Errands, errand: Errand) -> Union[Ask, BaseException]:
    """Return the answer to an errand, or what ends more than that: a `SystemExit`, for example."""
    try:
        return errands.run(errand)
    except BaseException as error:  # noqa: BLE001, ASYNC103  # raised again, in the task
        return error  # noqa: ASYNC104


class AsyncOperation:
    """One closure that a daemon realizes. Made by `AsyncClient.submit` and `AsyncClient.attach`.

    Attributes:
        id: its name.
        attached: where it was when it was attached to; None for one that was submitted.
        dropped: how many events were left out, because nobody read them.
    """

    def __init__(
        self,
        client: AsyncClient,
        operation: str,
        closure: Optional[Closure] = None,
        dry_run: bool = False,
        attached: Optional[m.Attached] = None,
        watched: bool = False,
        raised: Optional[Mapping[DRef, BaseException]] = None,
    ) -> None:
        self._client, self._closure, self._dry_run = client, closure, dry_run
        self.id, self.attached = operation, attached
        self.dropped = 0
        self._subscribed = watched
        self._raised: Mapping[DRef, BaseException] = {} if raised is None else raised
        self._result: Optional[m.WaitResult] = None
        self._outcome: Optional[Outcome] = None

    def __repr__(self) -> str:
        return f"<AsyncOperation {self.id} at {self._client.path}>"

    async def wait(self) -> m.WaitResult:
        """Wait until it has ended, well or not, and return how.

        Realizers and matchers that cannot leave this process run meanwhile, in a thread, to their ends.
        """
        if self._result is None:
            self._result = await self._client.wait(self.id)
        return self._result

    def events(self, log: bool = False) -> AsyncIterator[Happening]:
        """Iterate over what happens until the end, from the very first if it was submitted with `watch`. Once only.

        What was not subscribed to yet begins with the first step of the iteration; with `log` it has what builds write as well.
        """
        subscribed, self._subscribed = self._subscribed, True
        return _Happenings(self._client, self, None if subscribed else m.Subscribe(operation=self.id, credit=CREDIT, log=log))

    async def cancel(self) -> None:
        """End it. What it had built is kept, and builds that others want go on."""
        await self._client.cancel(self.id)

    async def outcome(self) -> Outcome:
        """Wait for the end and return what came of it, as the embedded driver would. The daemon may forget it then.

        Raises:
            Misuse: it was attached to, so its closure is not known here.
            PylightnixException: it was cancelled, or the store failed.
        """
        from pylightnix_client.outcomes import outcome_of

        if self._closure is None:
            raise Misuse("only whoever submitted an operation has its closure; ask for the parts of its outcome instead")
        if self._outcome is None:
            result = await self.wait()
            self._outcome = await self._client.carry(
                outcome_of(self.id, self._closure, result, self._client.trusted, self._dry_run, self._raised)
            )
            await self._client.say_fetched(self.id)
        return self._outcome


class _Happenings:
    """What happens in an operation. No async generator: one that is left in the middle would have to be closed."""

    def __init__(self, client: AsyncClient, operation: AsyncOperation, subscription: Optional[m.Subscribe]) -> None:
        self._client, self._operation, self._subscription = client, operation, subscription
        self._waiting: deque[Happening] = deque()
        self._spent = 0

    def __aiter__(self) -> _Happenings:
        return self

    async def __anext__(self) -> Happening:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await self._client.call(Ask("subscribe", subscription))
        while not self._waiting:
            notice = await self._client.next_notice(self._operation.id)
            if isinstance(notice, (m.Events, m.Ended)):
                self._operation.dropped += notice.dropped
            if isinstance(notice, m.Ended):
                raise StopAsyncIteration
            if isinstance(notice, m.Events):
                self._waiting += notice.events
                self._spent += 1
            elif isinstance(notice, m.LogPiece):
                self._waiting.append(notice)
                self._spent += 1
            if self._spent >= CREDIT // 2:
                spent, self._spent = self._spent, 0
                await self._client.add_credit(self._operation.id, spent)
        return self._waiting.popleft()
