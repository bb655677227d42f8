"""One warm worker, as the daemon sees it: what it is asked, what it says, what it owes.

What is sent waits in a queue, so that whoever asks can leave at any time, and one message is never cut short for another. What
a worker says is checked like any client's words: it runs a user's environment, perhaps with another version of this package. One
that is silent too long while it owes an answer is at its end. Must not know how workers are started or ended.
"""

from __future__ import annotations

import array
import logging
import math
import os
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final, Optional

import trio

from pylightnix._version import __version__
from pylightnix.errors import StoreError
from pylightnix.protocol.errors import ProtocolError, WorkerFailed, WorkerMismatch
from pylightnix.protocol.framing import Decoder, Notification, Request, Response, encode_request
from pylightnix.protocol.vocabulary import parse_message
from pylightnix.protocol.worker_messages import BuildEnded
from pylightnix.system_errors import refusal
from pylightnixd.patience import Debts

__all__ = ["End", "Question", "Worker", "WorkerLost"]

_log = logging.getLogger("pylightnixd")

RETIRE_CODES: Final = frozenset({"worker-stale", "worker-unfit"})
"""A worker's own word that another should be started in its place."""


class WorkerLost(Exception):
    """The worker's process is gone, or given up. Its builds are dead, or given up with it; trying again may help."""


@dataclass(slots=True, eq=False)
class Question:
    """Something that a worker is asked, until it has answered."""

    number: int
    method: str
    data: bytes
    fds: Sequence[int]
    begun: bool = False
    """Whether the worker may have read some of it; before that it can be taken back."""
    arrived: trio.Event = field(default_factory=trio.Event)
    error: Optional[Mapping[str, Any]] = None
    failure: Optional[StoreError] = None
    """Why it could not be asked."""
    result: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class End:
    """The end of a build, or of a child that runs matchers."""

    arrived: trio.Event = field(default_factory=trio.Event)
    told: Optional[BuildEnded] = None
    """What the worker says of it; None if it has not, and will not if it is lost."""


@dataclass(slots=True, eq=False)
class Worker:
    """One worker process."""

    key: str
    interpreter: str
    process: trio.Process
    socket: trio.socket.SocketType
    debts: Debts
    retired: bool = False
    """It gets nothing new to do: its code is not that of the files any more, or it does not do what it is told."""
    lost: bool = False
    fault: str = "is gone"
    """What is wrong with it when it is lost."""
    is_silent: bool = False
    """Whether it is lost because it was silent too long."""
    gone: trio.Event = field(default_factory=trio.Event)
    """Set when it is dead, and so is everything that it had forked, but for `undead`."""
    undead: Sequence[int] = ()
    """Processes of it that could not be ended."""
    _work: dict[str, End] = field(default_factory=dict)
    """Builds, and children that run matchers."""
    _abandoned: dict[str, End] = field(default_factory=dict)
    """What nobody waits for any more, though it may still run."""
    _questions: dict[int, Question] = field(default_factory=dict)
    _queue: deque[Question] = field(default_factory=deque)
    _queued: trio.Event = field(default_factory=trio.Event)
    _indebted: trio.Event = field(default_factory=trio.Event)
    _numbers: count[int] = field(default_factory=count)

    @property
    def pid(self) -> int:
        """Its process."""
        return self.process.pid

    @property
    def has_work(self) -> bool:
        """Whether somebody would miss it."""
        return bool(self._work)

    # --- asking ---------------------------------------------------------------------------------------

    def post(self, method: str, params: Mapping[str, Any], fds: Sequence[int] = ()) -> Question:
        """Put a question in the queue, and return it. The descriptors must stay open until it has begun, or is taken back."""
        number = next(self._numbers)
        question = Question(number, method, encode_request(number, method, params), fds)
        if self.lost:
            question.arrived.set()
            return question
        self._questions[question.number] = question
        self._queue.append(question)
        self._queued.set()
        if self.debts.owe(question.number, trio.current_time()):
            self._indebted.set()
        return question

    async def call(self, method: str, params: Mapping[str, Any], fds: Sequence[int] = ()) -> Mapping[str, Any]:
        """Ask and return the answer. The descriptors are copied to the worker; ours stay open.

        Cancelled, it may be that the worker does what it was asked nevertheless.

        Raises:
            WorkerLost: it died, or was given up, before it answered.
            WorkerFailed: it refused. That is a `WorkerMismatch` if it is of a version that does not understand this one.
            StoreError: it could not be asked, for want of descriptors.
        """
        return await self.answer_to(self.post(method, params, fds))

    async def answer_to(self, question: Question) -> Mapping[str, Any]:
        """Wait for an answer; cancelled, take the question back if it has not begun. Raises as `call`."""
        try:
            await question.arrived.wait()
        finally:
            if not question.begun and question in self._queue:
                self._queue.remove(question)
                self._questions.pop(question.number, None)
                self.debts.pay(question.number, trio.current_time())
        if question.failure is not None:
            raise question.failure
        if question.error is not None:
            raise self._refusal(question.method, question.error)
        if self.lost:
            raise self.loss()
        return question.result

    def loss(self) -> WorkerLost:
        """Return the error of whoever needs it when it is lost."""
        return WorkerLost(f"process {self.pid} {self.fault}")

    def _refusal(self, method: str, said: Mapping[str, Any]) -> Exception:
        code, message = said.get("code"), str(said.get("message", ""))
        if code in RETIRE_CODES:
            self.retired = True
            return WorkerLost(message or "it wants to be replaced")
        if code == "unsupported-version":
            return WorkerMismatch(self.interpreter, str(said.get("package", "(another version)")), __version__, message)
        return WorkerFailed(self.interpreter, f"refused {method!r}", message)

    # --- what it has to do ----------------------------------------------------------------------------

    def expect_end(self, name: str) -> End:
        """Get ready for the end of a build, or of a child that runs matchers, before it is asked for.

        It arrives when every process of that is dead that can be ended, or the worker is lost.
        """
        end = self._work[name] = End()
        return end

    def forget(self, name: str) -> None:
        """Drop what has ended, or never began; the last one of a retired worker takes the worker with it."""
        self._work.pop(name, None)
        self._end_if_useless()

    def abandon(self, name: str) -> None:
        """Have something killed, and wait for its end no more. Its worker gets nothing new to do: it may be deaf."""
        end = self._work.pop(name, None)
        if end is not None:
            self._abandoned[name] = end
            self.post("kill", {"build": name})
            self.retire()

    def retire(self) -> None:
        """Give it nothing new to do, and end it when nobody would miss it."""
        self.retired = True
        self._end_if_useless()

    def _end_if_useless(self) -> None:
        if self.retired and not self._work:
            self.hang_up()

    def hang_up(self) -> None:
        """Ask it to end: it kills what it has and exits when its connection closes."""
        self.socket.close()

    # --- the connection -------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Send what it is asked and take in what it says until it is gone, hung up on, or silent too long. Never fails."""
        try:
            async with trio.open_nursery() as nursery:
                for task in (self._read, self._write, self._watch):
                    nursery.start_soon(self._until_over, task, nursery.cancel_scope)
        finally:
            self.lost = True
            self._queue.clear()
            waiting: list[Question | End] = [*self._questions.values(), *self._work.values(), *self._abandoned.values()]
            for one in waiting:
                one.arrived.set()

    async def _until_over(self, task: Any, scope: trio.CancelScope) -> None:
        try:
            await task()
        except trio.ClosedResourceError:
            pass  # we hung up, which ends it
        except (OSError, ProtocolError) as error:
            _log.warning("worker %d: %s", self.pid, error)
        except Exception:  # noqa: BLE001  # one worker's trouble must not end the daemon
            _log.exception("BUG: the connection of worker %d", self.pid)
        scope.cancel()

    async def _write(self) -> None:
        while True:
            await self._queued.wait()
            self._queued = trio.Event()
            while self._queue:
                await self._begin(self._queue.popleft())

    async def _begin(self, question: Question) -> None:
        fds: list[int] = []
        try:
            try:
                # Of our own from here on: who asks may leave, and close its own, before all is sent.
                fds.extend(os.dup(fd) for fd in question.fds)
            except OSError as error:  # as long as nothing was sent, that is the question's trouble alone
                self._refuse(question, refusal(error, f"asking the worker {self.interpreter}", "the daemon"))
                return
            question.begun = True
            await self._send(memoryview(question.data), fds)
        finally:
            for fd in fds:
                os.close(fd)
            question.data = b""

    def _refuse(self, question: Question, failure: StoreError) -> None:
        """Answer a question that could not be asked."""
        question.failure = failure
        self._questions.pop(question.number, None)
        self.debts.pay(question.number, trio.current_time())
        question.arrived.set()

    async def _send(self, data: memoryview, fds: Sequence[int]) -> None:
        sent = 0
        if fds:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
            sent = await self.socket.sendmsg([data], rights)
        while sent < len(data):
            self.debts.heard(trio.current_time())
            sent += await self.socket.send(data[sent:])

    async def _read(self) -> None:
        decoder = Decoder()
        while data := await self.socket.recv(1 << 16):
            self.debts.heard(trio.current_time())
            decoder.receive_data(data)
            while (message := decoder.next_message()) is not None:
                self._take(message)

    async def _watch(self) -> None:
        """Wait until it is silent too long."""
        while trio.current_time() < (overdue_at := self.debts.overdue_at):
            if overdue_at == math.inf:
                self._indebted = trio.Event()
                await self._indebted.wait()
            else:
                await trio.sleep_until(overdue_at)
        self.is_silent = True
        self.fault = f"did not answer for {self.debts.limit_seconds:g} s"
        _log.warning("worker %d %s; it is ended", self.pid, self.fault)

    def _take(self, message: Request | Response | Notification) -> None:
        if isinstance(message, Response):
            self.debts.pay(message.id, trio.current_time())
            question = self._questions.pop(message.id, None)
            if question is not None:
                question.error, question.result = message.error, message.result or {}
                question.arrived.set()
        elif isinstance(message, Notification) and message.method == "ended":
            ended = parse_message(message.params, BuildEnded)
            end = self._work.get(ended.build) or self._abandoned.pop(ended.build, None)
            if end is not None:
                end.told = ended
                end.arrived.set()
