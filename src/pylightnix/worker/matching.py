"""The matchers of one operation, in the process that was forked for them: asked one at a time, over their own connection.

``match {dref, matcher, candidates: [[rref, started]]}`` is answered with ``{answer: [rref] | None, told: [[category, text]]}``, told being
warnings. A
matcher that never answers is ended by killing this process. Must not know the worker.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pylightnix.attempt import call_matcher
from pylightnix.errors import InvalidMatch, Misuse
from pylightnix.planner.answers import problem_of_answer
from pylightnix.planner.messages import Candidate
from pylightnix.storage import current_storage
from pylightnix.travel.failures import dump_exception
from pylightnix.travel.packing import unpack
from pylightnix.types import DRef, Matcher, Path, RRef, StorageSettings
from pylightnix.worker.channel import Channel, Gone, Request

__all__ = ["MatchOrder", "serve_matchers"]


_TOLD_MAX: Final = 20
_TEXT_MAX: Final = 2_000
_WORD_MAX: Final = 40
"""How many warnings of one call of a matcher go to who asked, and how much of each."""


@dataclass(frozen=True, slots=True)
class MatchOrder:
    """Whose matchers, and on which store."""

    operation: str
    root: str
    storage: str


def serve_matchers(order: MatchOrder, channel: Channel) -> None:
    """Answer until the other side closes the connection."""
    S = StorageSettings(Path(order.root), Path(order.storage), None)
    matchers: dict[bytes, Matcher] = {}
    with current_storage(S):  # unpickling may look there, too
        while True:
            try:
                for request in channel.receive():
                    _serve(S, channel, matchers, request)
            except Gone:
                return


def _serve(S: StorageSettings, channel: Channel, matchers: dict[bytes, Matcher], request: Request) -> None:
    try:
        if request.method != "match":
            raise Misuse(f"matchers are asked by 'match', found {request.method!r}")
        matcher = _matcher(matchers, request.params["matcher"])  # what its modules warn of as they are loaded is not its answer
        with warnings.catch_warnings(record=True) as told:
            answer = _ask(S, matcher, request.params)
    except BaseException as error:  # noqa: BLE001, ASYNC103  # a user's code: its failure is an answer
        channel.refuse(request.id, dump_exception(error))
    else:
        channel.answer(request.id, {"answer": answer, "told": [_told(warning) for warning in told[:_TOLD_MAX]]})


def _told(warning: warnings.WarningMessage) -> tuple[str, str]:
    return warning.category.__name__[:_WORD_MAX], str(warning.message).encode("utf-8", "backslashreplace").decode()[:_TEXT_MAX]


def _matcher(matchers: dict[bytes, Matcher], blob: bytes) -> Matcher:
    if blob not in matchers:
        matchers[blob] = unpack(blob)
    return matchers[blob]


def _ask(S: StorageSettings, matcher: Matcher, params: Mapping[str, Any]) -> Any:
    candidates = [Candidate(RRef(rref), started) for rref, started in params["candidates"]]
    answer = call_matcher(matcher, S, [candidate.rref for candidate in candidates])
    if answer is None:
        return None
    # The daemon checks it too, which need not believe this process; but only here are objects seen that do not travel.
    problem = problem_of_answer(answer, candidates)
    if problem:
        raise InvalidMatch(DRef(params["dref"]), problem)
    return [str(rref) for rref in answer]
