"""Work that only the caller can do: builds that it claims, and questions to its matchers.

A `Caller` is one session, as far as it works for its own operations. It has one claim and one question at
a time: its program may be stopped in a debugger, and what waits for its turn can be built by another
session that wants it too. A claim belongs to its session; no other may answer it.

A claim is *dropped* when nobody waits for it any more. Its folder stays until the caller has answered, or
is gone: the program may still be writing there. Must not know sockets, nor who else wants the build.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final, Optional, Union

import msgspec
import trio

from pylightnix.config import canonical_bytes
from pylightnix.planner.messages import Candidate
from pylightnix.protocol import messages as m
from pylightnix.protocol.errors import CannotTravel, NoSuchClaim, TooMany
from pylightnix.protocol.framing import encode_value
from pylightnix.protocol.limits import CONFIG_BYTES_MAX
from pylightnix.protocol.messages import FailedRow
from pylightnix.types import DRef
from pylightnixd.report import FailedBuild, failed_row
from pylightnixd.session import Session

__all__ = ["Abandoned", "Caller", "Claim", "Delivery", "HUNG_UP", "claim_row", "left_names"]

HUNG_UP: Final = "the program that has it hung up"
CANDIDATES_MAX: Final = 10_000
"""How many realizations are offered to a matcher of the caller's: as many as surely fit into one message."""
_FIELDS_BYTES_MAX: Final = 1 << 18


class Abandoned(Exception):
    """A claim ended without an answer: its operation or its session did. Nothing was built, nothing failed."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """What a caller has built."""

    outputs: list[str]
    started: float
    stopped: float


@dataclass(slots=True, eq=False)
class Claim:
    """One build in a caller's hands. It is `over` when the caller has answered, or is gone."""

    id: str
    dref: DRef
    claimed: float = field(default_factory=time.time)
    """UTC seconds since the epoch."""
    answer: Optional[Union[Delivery, FailedRow]] = None
    dropped: bool = False
    over: trio.Event = field(default_factory=trio.Event)


@dataclass(slots=True, eq=False)
class _Question:
    id: str
    dref: DRef
    answer: Optional[list[str]] = None
    error: Optional[FailedBuild] = None
    answered: trio.Event = field(default_factory=trio.Event)


@dataclass(slots=True, eq=False)
class Caller:
    """One session that builds and matches for itself."""

    session: Session
    gone: bool = False
    claim: Optional[Claim] = None
    queue: dict[str, None] = field(default_factory=dict)
    """Builds that wait for its turn, first come first."""
    _question: Optional[_Question] = None
    _turn: trio.Lock = field(default_factory=trio.Lock)
    _numbers: count[int] = field(default_factory=lambda: count(1))

    @property
    def is_free(self) -> bool:
        """Whether it can take a claim."""
        return self.claim is None and not self.gone

    # --- building -------------------------------------------------------------------------------------

    def take(self, build: str, dref: DRef) -> Claim:
        """Give it a claim on a build, of which it hears with `offer`."""
        if not self.is_free:
            raise AssertionError("BUG: a second claim for one caller")
        self.claim = Claim(f"{build}-c{next(self._numbers)}", dref)
        return self.claim

    def offer(self, claim: Claim, operation: str, context: Mapping[Any, Sequence[Any]], folder: str) -> None:
        """Ask it to build. Everything in `context` is durable.

        Raises:
            Abandoned: it is gone.
            TooMany: the context does not fit into a message.
        """
        if self.gone:
            raise Abandoned
        packed = canonical_bytes({str(dref): sorted(map(str, rrefs)) for dref, rrefs in context.items()})
        if len(packed) > CONFIG_BYTES_MAX:
            raise TooMany("bytes of a context for a realizer that cannot travel", CONFIG_BYTES_MAX)
        self.session.notify("claim", m.Claim(operation=operation, claim=claim.id, dref=claim.dref, context=packed, folder=folder))

    def end_claim(self, claim: Claim) -> None:
        """Make it free for another claim."""
        claim.over.set()
        if self.claim is claim:
            self.claim = None

    def deliver(self, params: m.Deliver) -> None:
        """Take its answer to a claim.

        Raises:
            NoSuchClaim: it has no such claim, or nobody waits for it any more.
        """
        now = time.time()
        # Within the time of the claim: a matcher may rank by it, and a false one would stay ahead for ever.
        started = min(max(params.started, self._claim(params.claim).claimed), now)
        self._answer(params.claim, Delivery(list(params.outputs), started, now))

    def abandon(self, params: m.Abandon) -> None:
        """Take its word that it has not built. Raises as `deliver`."""
        self._answer(params.claim, params.error)

    def _claim(self, name: str) -> Claim:
        if self.claim is None or self.claim.id != name or self.claim.over.is_set():
            raise NoSuchClaim(name)
        return self.claim

    def _answer(self, name: str, answer: Union[Delivery, FailedRow]) -> None:
        claim = self._claim(name)
        if claim.dropped:
            claim.over.set()
            if isinstance(answer, Delivery):
                raise NoSuchClaim(name)
            return
        claim.answer = answer
        claim.over.set()

    # --- matching -------------------------------------------------------------------------------------

    async def ask(self, operation: str, dref: DRef, candidates: Sequence[Candidate]) -> Optional[list[str]]:
        """Have its matcher choose among candidates, which are all durable; return what it answered.

        Raises:
            FailedBuild: the matcher raised, or the caller is gone.
        """
        if len(candidates) > CANDIDATES_MAX:
            raise FailedBuild(failed_row(dref, TooMany("realizations to match in the caller", CANDIDATES_MAX)))
        async with self._turn:
            question = self._question = _Question(f"{operation}-m{next(self._numbers)}", dref)
            try:
                if self.gone:
                    raise _no_matcher(dref)
                rows = [m.Candidate(str(candidate.rref), candidate.started) for candidate in candidates]
                self.session.notify("match", m.Match(operation=operation, match=question.id, dref=dref, candidates=rows))
                await question.answered.wait()
            finally:
                self._question = None
        if question.error is not None:
            raise question.error
        return question.answer

    def answer_match(self, params: m.MatchAnswer) -> None:
        """Take its answer to a question.

        Raises:
            NoSuchClaim: it was not asked that, or has answered it, or its operation has ended.
        """
        question = self._question
        if question is None or question.id != params.match or question.answered.is_set():
            raise NoSuchClaim(params.match)
        question.answer = None if params.answer is None else list(params.answer)
        question.error = FailedBuild(claim_row(params.error, question.dref)) if params.error is not None else None
        question.answered.set()

    # --- the end --------------------------------------------------------------------------------------

    def end(self) -> None:
        """Enter that the session is over: what it was asked is not answered any more."""
        self.gone = True
        if self.claim is not None:
            self.claim.over.set()
        if self._question is not None and not self._question.answered.is_set():
            self._question.error = _no_matcher(self._question.dref)
            self._question.answered.set()


def _no_matcher(dref: DRef) -> FailedBuild:
    return FailedBuild(failed_row(dref, CannotTravel(dref, "matcher", f"it cannot be pickled, and {HUNG_UP}")))


def left_names(row: FailedRow, folder: str) -> list[str]:
    """Return which folders of a build folder a caller's error says are worth a look."""
    found = row.fields.get("outpaths")
    names = found if isinstance(found, list) else []
    plain = [name for name in names if isinstance(name, str) and "/" not in name and name not in ("", ".", "..")]
    return [name for name in plain if "\0" not in name and os.path.isdir(os.path.join(folder, name))]


def claim_row(row: FailedRow, dref: DRef, outpaths: Sequence[str] = ()) -> FailedRow:
    """Return what clients are told of a caller's failure: its own words, as far as they are of a reasonable size."""
    fields = {**row.fields}
    if len(encode_value(fields)) > _FIELDS_BYTES_MAX:
        fields = {}
    if outpaths or "outpaths" in fields:
        fields["outpaths"] = list(outpaths)
    return msgspec.structs.replace(row, dref=str(dref), fields=fields, uid=msgspec.UNSET)  # whose it is, the daemon says
