"""One fetcher process: started beside the daemon, asked over a socket pair, ended. Each wait on it is bounded.

It parses what strangers send, so it may die, stop or talk nonsense at any time. Then it is lost: killed, and with it the fetches
that it was at, which can be tried again in another one. One that is at work and silent for long is lost too.

It has no secret of this process's environment, and is told of a user's settings with that user's orders only. It ends with this
process, for its socket closes then, and the kernel kills it. Must not know what is fetched for what.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final, Optional

import trio

from pylightnix._version import __version__
from pylightnix.errors import FetchFailed, FetchUnavailable, PylightnixException
from pylightnix.fetch import FetchLimits, FetchProgress
from pylightnix.protocol.errors import ProtocolError
from pylightnix.protocol.errors_on_wire import WireError, error_from_wire
from pylightnix.protocol.framing import Decoder, Envelope, Notification, Response, encode_notification, encode_request
from pylightnix.protocol.vocabulary import Message, parse_message
from pylightnixd.fetch_words import FROM_FETCHER, Fetched, FetcherHello, FetcherWelcome, Order, Release, Told
from pylightnixd.threads import start_thread

__all__ = ["PROGRAM", "FetcherLost", "FetcherProcess", "Patience", "Siblings", "own_environment"]

_log = logging.getLogger("pylightnixd")

PROGRAM: Final = ("-P", "-m", "pylightnixd.fetch_program")
_READ_BYTES: Final = 1 << 14
_LOG_BYTES_MAX: Final = 1 << 20
"""From what size on its log is begun anew."""
_KEPT_VARIABLES: Final = ("HOME", "LANG", "LD_LIBRARY_PATH", "LD_PRELOAD", "PATH", "TMPDIR", "TZ")
"""What an interpreter may need. What may hold a secret, or an order's business (proxies, netrc), is not among it."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a fetcher may take."""

    start_seconds: float = 60.0
    """To say that it is ready: a cold interpreter on a slow disk."""
    ping_seconds: float = 5.0
    """Between two questions whether it is there, while it has anything to do."""
    answer_seconds: float = 20.0
    """To answer that."""
    idle_seconds: float = 60.0
    """With nothing to do, until it is ended."""
    end_seconds: float = 3.0
    """To end when its socket is closed, and when it is killed."""


_USUAL_PATIENCE: Final = Patience()


class FetcherLost(Exception):
    """The fetcher is gone, or of no use any more; what it was at can be tried again in another one."""


@dataclass(slots=True)
class Siblings:
    """The children of this process, as far as those need to know who mind them all."""

    forking: trio.Lock
    """Held while there may be one that is not among `pids` yet."""
    pids: set[int]


def _untold(_: FetchProgress) -> None:
    pass


@dataclass(slots=True, eq=False)
class _Answer:
    """The place of one answer that is awaited."""

    progress: Callable[[FetchProgress], object]
    arrived: trio.Event = field(default_factory=trio.Event)
    error: Optional[Mapping[str, Any]] = None
    result: Optional[Mapping[str, Any]] = None


@dataclass(slots=True, eq=False)
class FetcherProcess:
    """One process. Made by `start`; runs as long as the task of `run` does."""

    process: subprocess.Popen[bytes]
    stream: trio.SocketStream
    patience: Patience
    ended: trio.Event
    """Set when the process is reaped."""
    greeted: trio.Event = field(default_factory=trio.Event)
    lost: trio.Event = field(default_factory=trio.Event)
    why_lost: str = ""
    failure: Optional[PylightnixException] = None
    """Why it cannot do its work, if it said so at once: its folder, its version."""
    fetches: int = 0
    """How many use it."""
    _answers: dict[int, _Answer] = field(default_factory=dict)
    _numbers: count[int] = field(default_factory=lambda: count(1))
    _to_send: deque[bytes] = field(default_factory=deque)
    _more_to_send: trio.Event = field(default_factory=trio.Event)
    _used: trio.Event = field(default_factory=trio.Event)

    # --- its life ---------------------------------------------------------------------------------------

    @classmethod
    async def start(
        cls, siblings: Siblings, log_path: str, patience: Patience = _USUAL_PATIENCE, program: Sequence[str] = PROGRAM
    ) -> FetcherProcess:
        """Start a process. Who has it calls `run`, which ends it.

        Raises:
            OSError: that cannot be done.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                async with siblings.forking:
                    process, ended = await _started([sys.executable, *program], theirs, log_path, siblings.pids, patience.start_seconds)
        except BaseException:
            ours.close()
            raise
        return cls(process, trio.SocketStream(trio.socket.from_stdlib_socket(ours)), patience, ended)

    async def run(self, hello: FetcherHello) -> None:
        """Speak with it until it is lost, then see that it ends. Sets `greeted` when it is ready, or lost."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send_all)
                nursery.start_soon(self._read_all)
                await self._greet(hello)
                self.greeted.set()
                await self._look_after()
                nursery.cancel_scope.cancel()
        finally:
            self.lose("it is not wanted any more")
            self.greeted.set()
            await self._end()  # noqa: ASYNC102  # bounded in there

    async def _greet(self, hello: FetcherHello) -> None:
        try:
            with trio.fail_after(self.patience.start_seconds):
                welcome = parse_message(await self._ask("hello", hello), FetcherWelcome)
            if welcome.package != __version__:
                problem = f"is of pylightnix {welcome.package}, the daemon of {__version__}; restart the daemon"
                self.failure = FetchUnavailable([], [("the fetcher", problem)])
        except trio.TooSlowError:
            self.lose(f"it did not say hello within {self.patience.start_seconds:g} s")
        except FetcherLost:
            pass
        except PylightnixException as error:
            self.failure = error
        if self.failure is not None:
            self.lose(str(self.failure))

    async def _look_after(self) -> None:
        """Lose it when it has something to do and does not answer, or nothing to do for long; return then."""
        while not self.lost.is_set():
            with trio.move_on_after(self.patience.idle_seconds) as idle:
                await self._used.wait()
            if idle.cancelled_caught and not self.fetches:
                self.lose("it had nothing to do")
            with trio.move_on_after(self.patience.answer_seconds) as patience:
                await self._ping()
            if patience.cancelled_caught:
                self.process.kill()  # one that is stopped, or stuck, does not see that its socket is closed
                self.lose(f"it did not answer within {self.patience.answer_seconds:g} s")
            with trio.move_on_after(self.patience.ping_seconds):
                await self.lost.wait()

    async def _ping(self) -> None:
        try:
            await self._ask("ping", {})
        except FetcherLost:
            pass

    def lose(self, why: str) -> None:
        """Have it end; what it is at can be tried elsewhere."""
        if self.lost.is_set():
            return
        self.lost.set()
        self.why_lost = why
        for answer in self._answers.values():
            answer.arrived.set()
        for event in (self._used, self._more_to_send):
            event.set()
        self.stream.socket.close()

    async def _end(self) -> None:
        with trio.CancelScope(shield=True):
            # At most twice `end_seconds`.
            with trio.move_on_after(self.patience.end_seconds):
                await self.ended.wait()
            if not self.ended.is_set():
                self.process.kill()
                with trio.move_on_after(self.patience.end_seconds):
                    await self.ended.wait()
        if not self.ended.is_set():
            _log.error("the fetcher %d cannot be killed, and is left alone", self.process.pid)

    # --- what it is asked -------------------------------------------------------------------------------

    @asynccontextmanager
    async def lent(self, order: Order, progress: Callable[[FetchProgress], object]) -> AsyncIterator[Fetched]:
        """Have a file fetched, and lent for the block.

        Raises:
            FetcherLost: it cannot be had from this process.
            PylightnixException: it cannot be had.
        """
        number = next(self._numbers)
        self.fetches += 1
        self._used.set()
        # Its own limit ends a fetch first, but it is not taken at its word there either.
        seconds = (order.total_seconds or FetchLimits().total_seconds) + self.patience.answer_seconds
        try:
            with trio.move_on_after(seconds) as in_all:
                answer = await self._ask("fetch", order, progress, number)
            if in_all.cancelled_caught:
                self.process.kill()
                self.lose(f"it did not end a fetch within {seconds:g} s")
                raise FetcherLost(self.why_lost)
            yield parse_message(answer, Fetched)
        except ProtocolError as error:
            self.lose(_nonsense(error))
            raise FetcherLost(self.why_lost) from error
        finally:
            self.fetches -= 1
            if not self.fetches and not self.lost.is_set():
                self._used = trio.Event()
            self._say(encode_notification("release", Release(fetch=number)))

    async def _ask(
        self,
        method: str,
        params: Message | Mapping[str, Any],
        progress: Callable[[FetchProgress], object] = _untold,
        number: Optional[int] = None,
    ) -> Mapping[str, Any]:
        number = next(self._numbers) if number is None else number
        answer = self._answers[number] = _Answer(progress)
        try:
            self._say(encode_request(number, method, params))
            if not self.lost.is_set():
                await answer.arrived.wait()
        finally:
            del self._answers[number]
        if answer.error is not None:
            raise _failure(answer.error)
        if answer.result is None:
            raise FetcherLost(self.why_lost)
        return answer.result

    def _say(self, message: bytes) -> None:
        # Queued, for who lets a file go must not wait; what is queued is an order or two of each fetch.
        self._to_send.append(message)
        self._more_to_send.set()

    async def _send_all(self) -> None:
        while not self.lost.is_set():
            await self._more_to_send.wait()
            self._more_to_send = trio.Event()
            while self._to_send and not self.lost.is_set():
                try:
                    await self.stream.send_all(self._to_send.popleft())
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    self.lose("it ended")

    async def _read_all(self) -> None:
        decoder = Decoder(FROM_FETCHER)
        try:
            while data := await self.stream.receive_some(_READ_BYTES):
                decoder.receive_data(data)
                while (message := decoder.next_message()) is not None:
                    self._take(message)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        except ProtocolError as error:
            self.lose(_nonsense(error))
        self.lose("it ended")

    def _take(self, message: Envelope) -> None:
        if isinstance(message, Response):
            answer = self._answers.get(message.id)
            if answer is not None and not answer.arrived.is_set():
                answer.error, answer.result = message.error, message.result
                answer.arrived.set()
        elif isinstance(message, Notification) and message.method == "told":
            told = parse_message(message.params, Told)
            answer = self._answers.get(told.fetch)
            if answer is not None and not answer.arrived.is_set():
                try:
                    answer.progress(told.progress())
                except Exception:  # noqa: BLE001  # one asker's bug is not to harm the others
                    _log.exception("BUG: telling how far a fetch is")
                    answer.progress = _untold


def _nonsense(error: ProtocolError) -> str:
    return f"it does not keep to the protocol: {error}"


def _failure(error: Mapping[str, Any]) -> Exception:
    failure = error_from_wire(parse_message(error, WireError))
    if isinstance(failure, FetchFailed):  # pairs are lists on the wire, and too many of them do not travel
        pairs = getattr(failure, "failures", ())
        failure.failures = [(str(pair[0]), str(pair[1])) for pair in pairs if isinstance(pair, (list, tuple)) and len(pair) == 2]
    return failure


def own_environment() -> dict[str, str]:
    """Return what a fetcher gets of this process's environment variables."""
    return {name: value for name, value in os.environ.items() if name in _KEPT_VARIABLES or name.startswith(("LC_", "PYTHON"))}


async def _started(
    command: Sequence[str], end: socket.socket, log_path: str, pids: set[int], seconds: float
) -> tuple[subprocess.Popen[bytes], trio.Event]:
    """Start a process in a thread of its own, which reaps it; its number is among `pids` until then.

    Its own: the kernel kills the process when the *thread* that started it ends, and trio's end when they have nothing to do.

    Raises:
        OSError: it cannot be started, or not in time.
    """
    token, ended, started = trio.lowlevel.current_trio_token(), trio.Event(), trio.Event()
    found: list[subprocess.Popen[bytes] | Exception] = []
    end = end.dup()  # the thread may be at work when nobody waits for it any more

    def begun(process: subprocess.Popen[bytes] | Exception) -> None:
        if isinstance(process, subprocess.Popen):
            pids.add(process.pid)
        found.append(process)
        started.set()

    def reaped(pid: int) -> None:
        pids.discard(pid)
        ended.set()

    def run() -> None:
        with contextlib.suppress(trio.RunFinishedError):
            try:
                with end:
                    process = _opened(command, end, log_path)
            except Exception as error:  # noqa: BLE001  # raised by who waits
                token.run_sync_soon(begun, error)
                return
            token.run_sync_soon(begun, process)
            process.wait()
            token.run_sync_soon(reaped, process.pid)

    try:
        start_thread(threading.Thread(target=run, name="pylightnixd-fetcher", daemon=True))
    except OSError:
        end.close()
        raise
    with trio.move_on_after(seconds):
        await started.wait()
    # One that begins later finds its socket closed, and ends.
    [process] = found or [OSError(errno.ETIMEDOUT, f"it did not begin within {seconds:g} s")]
    if isinstance(process, Exception):
        raise process
    return process, ended


def _opened(command: Sequence[str], end: socket.socket, log_path: str) -> subprocess.Popen[bytes]:
    with open(os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "wb") as log:
        if os.fstat(log.fileno()).st_size > _LOG_BYTES_MAX:
            log.truncate(0)
        return subprocess.Popen(
            [*command, str(end.fileno()), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(end.fileno(),),
            env=own_environment(),
            cwd="/",
            process_group=0,  # no session: in one of its own it waits for a CPU twice as long, where the kernel groups by sessions
        )
