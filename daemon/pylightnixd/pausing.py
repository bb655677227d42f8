"""Pauses: an operation asks its client what is to become of a derivation, one question at a time.

What does not depend on the derivation goes on meanwhile. Must not know what the planner makes of an answer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Final, Optional

import trio

from pylightnix.config import canonical_bytes
from pylightnix.errors import MissingRealization, StoreError
from pylightnix.planner.messages import AskCaller, CallerAnswered, Fact, Failed
from pylightnix.protocol import messages as m
from pylightnix.protocol.errors import NoSuchClaim, TooMany
from pylightnix.protocol.limits import CONFIG_BYTES_MAX
from pylightnix.types import DRef, RRef
from pylightnixd.claims import claim_row
from pylightnixd.hold import HeldStore
from pylightnixd.report import FailedBuild, failed_row
from pylightnixd.session import Session

__all__ = ["Pauses"]

_WHAT: Final = "bytes of the context of a derivation to pause before"


@dataclass(slots=True, eq=False)
class _Question:
    id: str
    dref: DRef
    fact: Optional[Fact] = None
    answered: trio.Event = field(default_factory=trio.Event)


@dataclass(slots=True, eq=False)
class Pauses:
    """Those of one operation."""

    operation: str
    session: Session
    """Whom to ask."""
    hold: HeldStore
    post: Callable[[Fact], None]
    """Takes what was answered."""
    _waiting: deque[AskCaller] = field(default_factory=deque)
    _asking: bool = False
    _question: Optional[_Question] = None
    _numbers: count[int] = field(default_factory=lambda: count(1))

    def add(self, action: AskCaller, start: Callable[[Callable[[], Awaitable[None]]], None]) -> None:
        """Ask about a derivation when its turn comes; `start` runs a task for the operation."""
        self._waiting.append(action)
        if not self._asking:
            self._asking = True
            start(self._ask_all)

    async def _ask_all(self) -> None:
        while self._waiting:
            self.post(await self._ask(self._waiting.popleft()))
        self._asking = False

    async def _ask(self, action: AskCaller) -> Fact:
        dref = action.dref
        context = canonical_bytes({str(dep): sorted(map(str, rrefs)) for dep, rrefs in action.context.items()})
        if len(context) > CONFIG_BYTES_MAX:
            return Failed(dref, FailedBuild(failed_row(dref, TooMany(_WHAT, CONFIG_BYTES_MAX))))
        try:
            # It may last for days, so what was realized before it must stay whatever happens.
            await self.hold.wait_nameable(rref for rrefs in action.context.values() for rref in rrefs)
        except StoreError as error:
            return Failed(dref, FailedBuild(failed_row(dref, error)))
        question = self._question = _Question(f"{self.operation}-p{next(self._numbers)}", dref)
        failure = None if action.error is None else _row(dref, action.error)
        self.session.notify("pause", m.Pause(operation=self.operation, pause=question.id, dref=dref, context=context, error=failure))
        try:
            await question.answered.wait()
        finally:
            self._question = None
        if question.fact is None:
            raise AssertionError("BUG: answered without an answer")
        return question.fact

    def answer(self, params: m.PauseAnswer) -> None:
        """Take an answer.

        Raises:
            NoSuchClaim: that was not asked, or is answered already.
        """
        question = self._question
        if question is None or question.id != params.pause or question.answered.is_set():
            raise NoSuchClaim(params.pause)
        question.fact = self._fact(question.dref, params)
        question.answered.set()

    def _fact(self, dref: DRef, params: m.PauseAnswer) -> Fact:
        if params.error is not None:
            return Failed(dref, FailedBuild(claim_row(params.error, dref)).of_user(self.session.uid))
        if params.rrefs is None:
            return CallerAnswered(dref, None)
        rrefs = [RRef(rref) for rref in params.rrefs]
        try:
            for rref in sorted(self.hold.reader.lost_among(rrefs)):
                return Failed(dref, FailedBuild(failed_row(dref, MissingRealization(rref, self.hold.reader.layout.storage))))
        except StoreError as error:
            return Failed(dref, FailedBuild(failed_row(dref, error)))
        return CallerAnswered(dref, rrefs)


def _row(dref: DRef, error: BaseException) -> m.FailedRow:
    return error.row if isinstance(error, FailedBuild) else failed_row(dref, error)
