"""Asking matchers that are users' code: one child per operation answers for all of that operation's.

The child is forked by the operation's worker, which has it as work until we let go of it. It ends with our end of its socket,
or is killed if it is at work then. A matcher that takes too long costs the child: the next question gets a new one. A child that
is lost with its worker is replaced once.
"""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final, Optional

import msgspec
import trio

from pylightnix.planner.messages import Candidate
from pylightnix.protocol._values import Text, Word
from pylightnix.protocol.errors import MatcherLost, ProtocolError, WorkerFailed
from pylightnix.protocol.framing import Decoder, Response, encode_request
from pylightnix.store.layout import StoreLayout
from pylightnix.travel import Environment
from pylightnix.types import DRef
from pylightnixd.descriptors import refuse_descriptors
from pylightnixd.report import FailedBuild, failed_row
from pylightnixd.worker import Worker, WorkerLost
from pylightnixd.workers import WorkerPool

__all__ = ["MatcherChild"]

_log = logging.getLogger("pylightnixd")

_TOLD_MAX: Final = 100
"""How many warnings of one operation's matchers are kept for who asked for it."""


@dataclass(slots=True, eq=False)
class MatcherChild:
    """The process that runs one operation's matchers, started when it is first needed."""

    operation: str
    pool: WorkerPool
    layout: StoreLayout
    environment: Environment
    seconds: float
    """How long a matcher may think; zero is for ever. How long its process may take to start says the worker's own bound."""
    told: list[tuple[DRef, str, str]] = field(default_factory=list)
    """Warnings that matchers gave: of which derivation, their category and text."""
    _line: Optional[trio.SocketStream] = None
    _worker: Optional[Worker] = None
    """Which has forked the child, by the name `_name`."""
    _name: str = ""
    _asking: bool = False
    _decoder: Decoder = field(default_factory=Decoder)
    _turn: trio.Lock = field(default_factory=trio.Lock)
    _numbers: count[int] = field(default_factory=count)

    async def ask(self, dref: DRef, matcher: bytes, candidates: Sequence[Candidate]) -> Any:
        """Return what the matcher answers: anything.

        Raises:
            FailedBuild: it raised, took too long, or its process was lost.
        """
        async with self._turn:
            try:
                return await self._ask_twice(dref, matcher, candidates)
            except trio.TooSlowError as error:
                self.close()
                raise self._failure(dref, f"took longer than the daemon's matcher-timeout of {self.seconds:g} s") from error
            except (WorkerLost, ProtocolError, OSError, trio.BrokenResourceError) as error:
                self.close()
                raise self._failure(dref, f"was lost with its process ({error})") from error
            except WorkerFailed as error:
                self.close()
                raise FailedBuild(failed_row(dref, error)) from error

    def _failure(self, dref: DRef, what: str) -> FailedBuild:
        return FailedBuild(failed_row(dref, MatcherLost(dref, what)))

    async def _ask_twice(self, dref: DRef, matcher: bytes, candidates: Sequence[Candidate]) -> Any:
        try:
            return await self._ask(dref, matcher, candidates)
        except (WorkerLost, OSError, trio.BrokenResourceError) as error:
            _log.info("asking the matcher of %s again: its process was lost (%s)", dref, error)
            self.close()
            return await self._ask(dref, matcher, candidates)

    async def _ask(self, dref: DRef, matcher: bytes, candidates: Sequence[Candidate]) -> Any:
        line = self._line or await self._start()
        self._asking = True
        with trio.fail_after(self.seconds or math.inf):
            return await self._answer(line, dref, matcher, candidates)

    async def _answer(self, line: trio.SocketStream, dref: DRef, matcher: bytes, candidates: Sequence[Candidate]) -> Any:
        rows = [[str(candidate.rref), candidate.started] for candidate in candidates]
        await line.send_all(encode_request(next(self._numbers), "match", {"dref": str(dref), "matcher": matcher, "candidates": rows}))
        while True:
            message = self._decoder.next_message()
            if isinstance(message, Response):
                self._asking = False
                if message.error is not None:
                    raise FailedBuild(failed_row(dref, message.error))
                result = message.result or {}
                self._tell(dref, result.get("told", []))
                return result.get("answer")
            if message is None:
                data = await line.receive_some(1 << 16)
                if not data:
                    raise WorkerLost("it ended")
                self._decoder.receive_data(data)

    def _tell(self, dref: DRef, told: Any) -> None:
        try:
            found = msgspec.convert(told, list[tuple[Word, Text]])
        except msgspec.ValidationError:
            return  # a user's process may say anything
        for category, text in found:
            if (dref, category, text) not in self.told and len(self.told) < _TOLD_MAX:
                self.told.append((dref, category, text))

    async def _start(self) -> trio.SocketStream:
        worker = await self.pool.worker_for(self.environment)
        # A name of its own, for the one before may be dying.
        self._worker, self._name = worker, f"{self.operation}-m{next(self._numbers)}"
        worker.expect_end(self._name)
        ours, theirs = socket.socketpair()
        refuse_descriptors(ours)
        try:
            self._asking = True  # whatever becomes of this, it is to be killed until the child is known to listen
            order = {"operation": self._name, "root": self.layout.state, "storage": self.layout.storage}
            await worker.call("matcher", order, (theirs.fileno(),))
        except BaseException:
            ours.close()
            self.close()
            raise
        finally:
            theirs.close()
        os.set_blocking(ours.fileno(), False)
        self._decoder = Decoder()
        self._line = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        return self._line

    def close(self) -> None:
        """End the child."""
        if self._line is not None:
            self._line.socket.close()
        if self._worker is not None:
            if self._asking:
                self._worker.post("kill", {"build": self._name})
            self._worker.forget(self._name)
        self._line = self._worker = None
        self._asking = False
