"""What a daemon hands back to the program that asked: realizers and matchers that cannot leave this process.

A notice comes in, the user's code runs, and the request that answers it goes out. Whoever carries the
notices calls this in the thread where the code is to run. What the code raises is kept, so that the
program gets that very object. Must not know sockets or event loops.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Optional, TypeAlias, Union

from pylightnix.attempt import call_matcher, call_realizer, context_below
from pylightnix.context import parse_mapping
from pylightnix.errors import InvalidMatch
from pylightnix.nesting import being_built, nesting, running_realizer
from pylightnix.planner.answers import problem_of_answer
from pylightnix.planner.messages import Candidate
from pylightnix.protocol import messages as m
from pylightnix.protocol.errors import OperationCancelled
from pylightnix.protocol.errors_on_wire import failed_row_from_dump
from pylightnix.storage import fstmpdir
from pylightnix.store.kept import left_by
from pylightnix.travel.failures import dump_exception
from pylightnix.types import Closure, DRef, Path, RealizeArg, RRef, StorageSettings
from pylightnix.worker.outputs import kept_names, output_names
from pylightnix_client.errors import DaemonForeign
from pylightnix_client.exchange import Ask
from pylightnix_client.submission import Wishes

__all__ = ["Errand", "Errands", "refusal"]

Errand: TypeAlias = Union[m.Claim, m.Match]


class Errands:
    """What one operation's closure can do in this process.

    Attributes:
        raised: what its realizers and matchers raised here, by derivation.
        wanted: whether anything is still to be done; False once the operation was given up.
        survives_interrupts: whether a `KeyboardInterrupt` is a failure like others, for the caller to decide about.
    """

    def __init__(
        self, closure: Closure, realize_args: Mapping[DRef, RealizeArg], welcome: m.DaemonWelcome, foreign: Optional[str] = None
    ) -> None:
        """Begin. `foreign` is the socket of the daemon if that is another user's, in whose folders nothing is to be written."""
        self._foreign = foreign
        self._derivations = {derivation.dref: derivation for derivation in closure.derivations}
        self._realize_args = realize_args
        self._store = StorageSettings(Path(welcome.store), Path(welcome.storage), None)
        self.raised: dict[DRef, BaseException] = {}
        self.wanted = True
        self.survives_interrupts = False

    def within(self, wishes: Wishes) -> Wishes:
        """Return the wishes as they can be met from inside a realizer of this thread's: not its own derivation."""
        around = being_built(str(self._store.storage))
        nested = [dref for dref in around if dref in self._derivations]
        self.raised.update((dref, nesting([*around[around.index(dref) :], dref])) for dref in nested if dref not in wishes.assert_realized)
        return replace(wishes, assert_realized=[*wishes.assert_realized, *nested]) if nested else wishes

    def run(self, errand: Errand) -> Ask:
        """Do what is asked, in this thread, and return the answer.

        Raises:
            BaseException: the user's code raised what is no `Exception`, such as `KeyboardInterrupt`.
        """
        if not self.wanted or DRef(errand.dref) not in self._derivations:
            return refusal(errand, OperationCancelled(errand.operation))
        try:
            return self._build(errand) if isinstance(errand, m.Claim) else self._match(errand)
        except (Exception, KeyboardInterrupt) as error:  # a user's code: its failure is an answer
            if isinstance(error, KeyboardInterrupt) and not self.survives_interrupts:
                raise
            self.raised[DRef(errand.dref)] = error
            return refusal(errand, error)

    def _build(self, claim: m.Claim) -> Ask:
        if self._foreign is not None:
            raise DaemonForeign(self._foreign, f"running the realizer of {claim.dref} in {claim.folder}")
        dref, folder = DRef(claim.dref), Path(claim.folder)
        S = StorageSettings(self._store.root, self._store.storage, folder)
        direct = parse_mapping(json.loads(claim.context))
        started = time.time()
        with running_realizer(dref, str(self._store.storage), claim.claim):
            realizer, arguments = self._derivations[dref].realizer, self._realize_args.get(dref, {})
            answer = call_realizer(realizer, S, dref, direct, lambda: context_below(direct, S), arguments)
        names = output_names(dref, folder, fstmpdir(self._store), answer)
        return Ask("deliver", m.Deliver(claim=claim.claim, outputs=names, started=started))

    def _match(self, match: m.Match) -> Ask:
        dref = DRef(match.dref)
        S = StorageSettings(self._store.root, self._store.storage, fstmpdir(self._store))
        candidates = [Candidate(RRef(row.rref), row.started) for row in match.candidates]
        answer = call_matcher(self._derivations[dref].matcher, S, [candidate.rref for candidate in candidates])
        problem = None if answer is None else problem_of_answer(answer, candidates)
        if problem is not None:
            raise InvalidMatch(dref, problem)
        rrefs = None if answer is None else sorted({str(rref) for rref in answer})
        return Ask("match.answer", m.MatchAnswer(operation=match.operation, match=match.match, answer=rrefs))


def refusal(errand: Errand, error: BaseException) -> Ask:
    """Return the answer that an errand was not done, because of `error`."""
    dref = DRef(errand.dref)
    if isinstance(errand, m.Match):
        row = failed_row_from_dump(dump_exception(error), dref)
        return Ask("match.answer", m.MatchAnswer(operation=errand.operation, match=errand.match, error=row))
    outpaths = left_by(error)
    fields = {"outpaths": kept_names(errand.folder, outpaths)} if outpaths else {}
    row = failed_row_from_dump(dump_exception(error), dref, **fields)
    return Ask("abandon", m.Abandon(claim=errand.claim, error=row))
