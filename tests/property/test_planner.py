"""The planner beside a model of it: any closure, any answers, in any order.

`Run` turns a plan as a parallel driver would: several actions are outstanding at once and are answered
in any order. After every step it compares the actions and states with those of `Model`, which scans all
nodes where the planner keeps counts; at the end it checks laws over the history that need no model.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Optional, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pylightnix.errors import InvalidMatch, MatcherRefused, NotRealized
from pylightnix.events import StepKind
from pylightnix.planner.messages import (
    Action,
    AskMatcher,
    Built,
    Candidate,
    CandidatesFound,
    Commit,
    CommitFailed,
    Committed,
    Fact,
    Failed,
    FindCandidates,
    Finish,
    MatcherAnswered,
    StartBuild,
)
from pylightnix.planner.plan import NodeState, Plan, PlanOutcome
from pylightnix.types import DRef, Output, RRef

A = TypeVar("A")
Context = dict[DRef, list[RRef]]


def dref_of(number: int) -> DRef:
    return DRef(f"dref:{number:032x}-node{number}")


def rref_of(dref: DRef, number: int) -> RRef:
    return RRef(f"rref:{number:032x}-{dref.removeprefix('dref:')}")


@dataclass(frozen=True)
class Case:
    """What a plan is made of."""

    order: list[DRef]
    deps: dict[DRef, list[DRef]]
    forced: frozenset[DRef] = frozenset()
    assert_realized: frozenset[DRef] = frozenset()
    dry_run: bool = False
    keep_going: bool = False

    def plan(self, arrange: Callable[[frozenset[DRef]], Sequence[DRef]] = list) -> Plan:
        return Plan(
            self.order,
            self.deps,
            forced=arrange(self.forced),
            assert_realized=arrange(self.assert_realized),
            dry_run=self.dry_run,
            keep_going=self.keep_going,
        )

    @cached_property
    def all_below(self) -> dict[DRef, set[DRef]]:
        found: dict[DRef, set[DRef]] = {}
        for dref in self.order:
            found[dref] = set(self.deps[dref]).union(*(found[dep] for dep in self.deps[dref]))
        return found

    def below(self, dref: DRef) -> set[DRef]:
        return self.all_below[dref]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    size = draw(st.integers(0, 12))
    # Names in any order, so that the order of the plan is not that of the texts.
    order = [dref_of(number) for number in draw(st.permutations(range(size)))]
    deps = {dref: draw(st.lists(st.sampled_from(order[:i]), max_size=4)) if i else [] for i, dref in enumerate(order)}
    strangers = [*order, dref_of(99)]
    return Case(
        order,
        {dref: deps[dref] for dref in draw(st.permutations(order))},
        frozenset(draw(st.sets(st.sampled_from(strangers), max_size=3))),
        frozenset(draw(st.sets(st.sampled_from(strangers), max_size=2))),
        dry_run=draw(st.integers(0, 3)) == 0,
        keep_going=draw(st.booleans()),
    )


# --- the model --------------------------------------------------------------------------------------


def is_acceptable(answer: Any, offered: Sequence[Candidate]) -> bool:
    return isinstance(answer, (list, tuple)) and len(answer) > 0 and all(any(item == c.rref for c in offered) for item in answer)


@dataclass
class Model:
    """What the planner ought to do, found out by looking at everything every time."""

    case: Case
    state: dict[DRef, str] = field(init=False)
    matched: Context = field(default_factory=dict)
    offered: dict[DRef, Sequence[Candidate]] = field(default_factory=dict)
    begun: set[DRef] = field(default_factory=set)
    built: set[DRef] = field(default_factory=set)
    joined: set[DRef] = field(default_factory=set)
    failed: list[tuple[DRef, type[BaseException]]] = field(default_factory=list)
    cause: dict[DRef, DRef] = field(default_factory=dict)
    would_build: set[DRef] = field(default_factory=set)
    stopping: bool = False
    phase: str = "running"

    def __post_init__(self) -> None:
        self.state = dict.fromkeys(self.case.order, "waiting")

    def context(self, dref: DRef) -> Context:
        return {dep: self.matched[dep] for dep in self.case.deps[dref]}

    def start(self) -> list[Action]:
        return self._and_close(self._begin_ready())

    def take(self, fact: Fact) -> list[Action]:
        if isinstance(fact, CandidatesFound):
            if self.state[fact.dref] == "building":
                self.joined.add(fact.dref)
            self.offered[fact.dref] = fact.candidates
            self.state[fact.dref] = "matching"
            return [AskMatcher(fact.dref, fact.candidates)]
        if isinstance(fact, Built):
            self.built.add(fact.dref)
            (self.joined.add if fact.joined else self.joined.discard)(fact.dref)
            self.state[fact.dref] = "finding"
            return [FindCandidates(fact.dref, self.context(fact.dref))]
        if isinstance(fact, MatcherAnswered):
            return self._and_close(self._answered(fact.dref, fact.answer))
        if isinstance(fact, Failed):
            self._fail(fact.dref, type(fact.error))
            return self._and_close([])
        if isinstance(fact, CommitFailed):
            self._lose(fact)
        self.phase = "finished"
        return [Finish()]

    def _answered(self, dref: DRef, answer: Any) -> list[Action]:
        if answer is None and dref in self.built:
            self._fail(dref, MatcherRefused)
            return []
        if answer is None:
            return self._build(dref)
        if not is_acceptable(answer, self.offered[dref]):
            self._fail(dref, InvalidMatch)
            return []
        self.matched[dref] = sorted(set(answer))
        self.state[dref] = "settled"
        return self._begin_ready()

    def _begin_ready(self) -> list[Action]:
        actions: list[Action] = []
        for dref in self.case.order:
            ready = self.state[dref] == "waiting" and all(self.state[dep] == "settled" for dep in self.case.deps[dref])
            if not ready or self.stopping or dref in self.begun:
                continue
            self.begun.add(dref)
            if dref in self.case.forced:
                actions += self._build(dref)
            else:
                self.state[dref] = "finding"
                actions.append(FindCandidates(dref, self.context(dref)))
        return actions

    def _build(self, dref: DRef) -> list[Action]:
        if self.case.dry_run and dref in self.case.assert_realized:
            self.state[dref] = "refused"
            self._spread(dref, "skipped")
        elif self.case.dry_run:
            self.would_build.add(dref)
            self.state[dref] = "unknown"
            self._spread(dref, "unknown")
        elif dref in self.case.assert_realized:
            self._fail(dref, NotRealized)
        elif self.stopping:
            self.state[dref] = "waiting"
        else:
            self.state[dref] = "building"
            return [StartBuild(dref, self.context(dref), None if dref in self.case.forced else self.offered[dref])]
        return []

    def _fail(self, dref: DRef, error: type[BaseException]) -> None:
        self.failed.append((dref, error))
        self.state[dref] = "failed"
        self._spread(dref, "skipped")
        self.stopping = self.stopping or not self.case.keep_going

    def _spread(self, dref: DRef, state: str) -> None:
        """Settle what is above, by ways that lead over nothing decided."""
        undecided, reached = ("waiting", "unknown") if state == "skipped" else ("waiting",), {dref}
        for above in self.case.order:
            if self.state[above] in undecided and not reached.isdisjoint(self.case.deps[above]):
                reached.add(above)
                self.state[above] = state
                if state == "skipped":
                    self.cause[above] = dref

    def _lose(self, fact: CommitFailed) -> None:
        if fact.lost is None:
            gone = {dref for dref in self.matched if dref in self.built}
        else:
            gone = {dref for dref, rrefs in self.matched.items() if not set(rrefs).isdisjoint(fact.lost)}
        for dref in [dref for dref in self.case.order if dref in self.matched]:
            if dref in gone or self.case.below(dref) & gone:
                self.state[dref] = "failed"
                del self.matched[dref]
                self.failed.append((dref, type(fact.error)))
                self._spread(dref, "skipped")

    def _and_close(self, actions: list[Action]) -> list[Action]:
        at_work = any(state in ("finding", "matching", "building") for state in self.state.values())
        if at_work or not (self.stopping or "waiting" not in self.state.values()):
            return actions
        self.phase = "committing"
        return [*actions, Commit()]

    def fits(self, fact: Fact) -> bool:
        if isinstance(fact, (Committed, CommitFailed)):
            return self.phase == "committing"
        state = self.state[fact.dref]
        if isinstance(fact, CandidatesFound):
            return state == "finding" or (state == "building" and fact.dref not in self.case.forced)
        if isinstance(fact, Failed):
            return state in ("matching", "building")
        return state == ("matching" if isinstance(fact, MatcherAnswered) else "building")


# --- turning a plan ---------------------------------------------------------------------------------


class Run:
    """A plan being turned, with what it asked for and is still owed."""

    def __init__(self, case: Case) -> None:
        self.case, self.plan, self.model = case, case.plan(), Model(case)
        self.history: list[tuple[Optional[Fact], list[Action]]] = []
        self.failures = [0]
        self.outstanding: list[Action] = []
        self.intact = False
        self._take_out(None, self.plan.start(), self.model.start())

    def feed(self, action: Action, fact: Fact) -> None:
        self.intact = False
        self.outstanding.remove(action)
        expected = self.model.take(fact)
        self._take_out(fact, self.plan.handle(fact), expected)

    def _take_out(self, fact: Optional[Fact], actions: list[Action], expected: list[Action]) -> None:
        assert actions == expected
        self.plan.check_invariants()
        self.history.append((fact, actions))
        self.failures.append(sum(self.plan.state(dref) is NodeState.failed for dref in self.case.order))
        self.outstanding += actions
        self.check_states()
        self.intact = True

    def check_states(self) -> None:
        assert {dref: self.plan.state(dref).value for dref in self.case.order} == self.model.state
        assert self.plan.matched_rrefs() == {rref for rrefs in self.model.matched.values() for rref in rrefs}
        final = ("settled", "failed", "skipped", "unknown", "refused")
        assert (self.plan.done, self.plan.total) == (
            sum(state in final for state in self.model.state.values()),
            len(self.case.order),
        )

    def owed(self, kind: type[A]) -> list[A]:
        return [action for action in self.outstanding if isinstance(action, kind)]

    @property
    def finished(self) -> bool:
        return self.model.phase == "finished"

    def finish(self) -> None:
        """Answer everything that is left as if all went well."""
        while not self.finished:
            action = self.outstanding[0]
            self.feed(action, obliging_fact(action, self.model.built))
        self.check_end()

    def check_end(self) -> None:
        outcome = self.plan.outcome()
        check_history(self.case, self.history)
        check_stop(self.case, self.history, self.failures[:-1])
        check_contexts(self.case, self.history)
        check_outcome(self.case, self.model, outcome)
        check_replay(self.case, self.history, outcome)


def obliging_fact(action: Action, built: set[DRef]) -> Fact:
    if isinstance(action, FindCandidates):
        candidates = [Candidate(rref_of(action.dref, 0), 0.0)] if action.dref in built else []
        return CandidatesFound(action.dref, candidates)
    if isinstance(action, AskMatcher):
        return MatcherAnswered(action.dref, [c.rref for c in action.candidates] or None)
    if isinstance(action, StartBuild):
        return Built(action.dref)
    assert isinstance(action, Commit)
    return Committed()


# --- laws over a whole run --------------------------------------------------------------------------


def check_history(case: Case, history: list[tuple[Optional[Fact], list[Action]]]) -> None:
    """Commit once with nothing outstanding, then Finish once; builds only where and as often as allowed."""
    emitted = [action for _, actions in history for action in actions]
    assert [type(action) for action in emitted[-2:]] == [Commit, Finish]
    assert sum(isinstance(action, (Commit, Finish)) for action in emitted) == 2
    answered = len([fact for fact, _ in history if fact is not None])
    assert answered == len(emitted) - 1, "each action but Finish is answered, and nothing else"
    commits = [len(history) - i for i, (_, actions) in enumerate(history) if any(isinstance(a, Commit) for a in actions)]
    assert commits == [2], "only its own answer comes after Commit"

    open_builds: set[DRef] = set()
    built: set[DRef] = set()
    for fact, actions in history:
        if isinstance(fact, (Built, Failed, CandidatesFound)):
            if isinstance(fact, Built):
                built.add(fact.dref)
            if isinstance(fact, CandidatesFound) and fact.dref in open_builds:
                assert fact.dref not in case.forced
            open_builds.discard(fact.dref)
        for action in actions:
            if isinstance(action, StartBuild):
                assert action.dref not in built | open_builds
                assert action.dref not in case.assert_realized
                assert not case.dry_run
                assert (action.known is None) == (action.dref in case.forced)
                open_builds.add(action.dref)


def check_stop(case: Case, history: list[tuple[Optional[Fact], list[Action]]], failures: list[int]) -> None:
    """Unless it keeps going, a plan starts no build once something has failed."""
    for (_, actions), failed_before in zip(history, failures, strict=True):
        if failed_before and not case.keep_going:
            assert not any(isinstance(action, StartBuild) for action in actions)


def check_contexts(case: Case, history: list[tuple[Optional[Fact], list[Action]]]) -> None:
    """Nothing starts before its dependencies are settled, and it is told exactly what was matched for them."""
    matched: Context = {}
    offered: dict[DRef, Sequence[Candidate]] = {}
    for fact, actions in history:
        if isinstance(fact, CandidatesFound):
            offered[fact.dref] = fact.candidates
            assert actions == [AskMatcher(fact.dref, fact.candidates)]
        if isinstance(fact, MatcherAnswered) and fact.answer is not None and is_acceptable(fact.answer, offered[fact.dref]):
            assert fact.dref not in matched
            matched[fact.dref] = sorted(set(fact.answer))
        for action in actions:
            if isinstance(action, (FindCandidates, StartBuild)):
                assert action.context == {dep: matched[dep] for dep in case.deps[action.dref]}
            if isinstance(action, StartBuild) and action.known is not None:
                assert action.known == offered[action.dref]


def check_outcome(case: Case, model: Model, outcome: PlanOutcome) -> None:
    assert outcome.matched == model.matched
    assert [(dref, type(error)) for dref, error in outcome.failed] == model.failed
    assert dict(outcome.skipped) == model.cause
    causes = [dref for dref, _ in outcome.failed] + [dref for dref, state in model.state.items() if state == "refused"]
    for dref, cause in outcome.skipped:
        assert cause in causes
        assert cause in case.below(dref)
    for dref, rrefs in outcome.matched.items():
        assert rrefs == sorted(set(rrefs)) != []
        assert set(rrefs) <= {candidate.rref for candidate in model.offered[dref]}
        assert case.below(dref) <= set(outcome.matched)
    assert set(outcome.built) == (model.built - model.joined) & set(model.matched)
    assert set(outcome.joined) == model.joined & set(model.matched)
    check_partition(case, model, outcome)
    check_steps(case, model, outcome)


def check_partition(case: Case, model: Model, outcome: PlanOutcome) -> None:
    failed = [dref for dref, _ in outcome.failed]
    skipped = [dref for dref, _ in outcome.skipped]
    lists = [outcome.built, outcome.joined, outcome.reused, failed, skipped]
    told = [dref for listed in lists for dref in listed]
    assert len(told) == len(set(told)), "no derivation is told of twice"
    assert {*outcome.built, *outcome.joined, *outcome.reused} == set(outcome.matched)
    untold = set(case.order) - set(told)
    assert untold == {dref for dref, state in model.state.items() if state in ("waiting", "unknown", "refused")}
    if not case.dry_run and (case.keep_going or not failed):
        assert untold == set()
    rank = {dref: i for i, dref in enumerate(case.order)}
    for listed in [*lists[:3], skipped, list(outcome.matched)]:
        assert listed == sorted(listed, key=rank.__getitem__)
    if case.keep_going and not case.dry_run:
        for dref in case.order:
            assert (dref in outcome.matched) or dref in failed or case.below(dref) & set(failed)


def check_steps(case: Case, model: Model, outcome: PlanOutcome) -> None:
    if not case.dry_run:
        assert outcome.steps == []
        return
    assert outcome.built == outcome.joined == []
    assert [step.dref for step in outcome.steps] == case.order
    for step in outcome.steps:
        if step.dref in outcome.matched:
            assert step.kind is StepKind.reuse
        elif step.dref in model.would_build:
            assert step.kind is StepKind.build
        elif model.state[step.dref] in ("failed", "refused", "skipped"):
            assert step.kind is StepKind(model.state[step.dref])
        else:
            assert step.kind is StepKind.unknown
        assert step.reason


def check_replay(case: Case, history: list[tuple[Optional[Fact], list[Action]]], outcome: PlanOutcome) -> None:
    """The same facts in the same order give the same actions, however the sets given were iterated."""
    again = case.plan(lambda drefs: sorted(drefs, reverse=True))
    for fact, actions in history:
        assert (again.start() if fact is None else again.handle(fact)) == actions
    repeated = again.outcome()
    assert (repeated.matched, repeated.skipped, repeated.steps) == (outcome.matched, outcome.skipped, outcome.steps)
    assert [(dref, repr(error)) for dref, error in repeated.failed] == [(dref, repr(error)) for dref, error in outcome.failed]


# --- the state machine ------------------------------------------------------------------------------


def candidate_lists(dref: DRef) -> st.SearchStrategy[list[Candidate]]:
    numbers = st.sets(st.integers(0, 3), max_size=3)
    return numbers.map(lambda some: [Candidate(rref_of(dref, number), float(-number)) for number in sorted(some)])


def acceptable_answers(candidates: Sequence[Candidate]) -> st.SearchStrategy[Any]:
    rrefs = st.sampled_from([candidate.rref for candidate in candidates])
    lists = st.lists(rrefs | rrefs.map(str), min_size=1, max_size=4)
    return lists | lists.map(tuple)


def odd_answers(dref: DRef, candidates: Sequence[Candidate]) -> st.SearchStrategy[Any]:
    rrefs: list[Any] = [candidate.rref for candidate in candidates]
    strangers: list[Any] = [rref_of(dref, 77), rref_of(dref_of(98), 0), dref, "", 7, None, [], ["x"], {}, {1}, ()]
    others: list[Any] = [False, True, 0, "", "all", "rref", object(), iter(()), Output(rrefs)]
    containers: list[Any] = [[], (), {}, set(rrefs), frozenset(rrefs), dict.fromkeys(rrefs, 1)]
    mixed = st.tuples(st.integers(0, len(rrefs)), st.sampled_from(strangers)).map(lambda at: [*rrefs[: at[0]], at[1], *rrefs[at[0] :]])
    return st.sampled_from(others) | st.sampled_from(containers) | mixed


def any_end(matched: Context) -> st.SearchStrategy[Fact]:
    """How a commit ends; a driver may or may not know what is lost."""
    rrefs = [rref for matches in matched.values() for rref in matches]
    losses = st.none() | (st.frozensets(st.sampled_from(rrefs), max_size=3) if rrefs else st.just(frozenset()))
    return st.just(Committed()) | losses.map(lambda lost: CommitFailed(OSError("disk"), lost))


class PlanMachine(RuleBasedStateMachine):
    """Every rule answers one of the outstanding actions, or tries what no driver may do."""

    def __init__(self) -> None:
        super().__init__()
        self.run = Run(Case([], {}))

    @initialize(case=cases())
    def begin(self, case: Case) -> None:
        self.run = Run(case)

    @precondition(lambda self: self.run.owed(FindCandidates))
    @rule(data=st.data())
    def look_up(self, data: st.DataObject) -> None:
        action = data.draw(st.sampled_from(self.run.owed(FindCandidates)))
        self.run.feed(action, CandidatesFound(action.dref, data.draw(candidate_lists(action.dref))))

    def _offers(self) -> list[AskMatcher]:
        return [action for action in self.run.owed(AskMatcher) if action.candidates]

    @precondition(lambda self: self._offers())
    @rule(data=st.data())
    def accept(self, data: st.DataObject) -> None:
        action = data.draw(st.sampled_from(self._offers()))
        self.run.feed(action, MatcherAnswered(action.dref, data.draw(acceptable_answers(action.candidates))))

    @precondition(lambda self: self.run.owed(AskMatcher))
    @rule(data=st.data())
    def demand_build(self, data: st.DataObject) -> None:
        action = data.draw(st.sampled_from(self.run.owed(AskMatcher)))
        self.run.feed(action, MatcherAnswered(action.dref, None))

    @precondition(lambda self: self.run.owed(AskMatcher))
    @rule(data=st.data())
    def answer_oddly(self, data: st.DataObject) -> None:
        action = data.draw(st.sampled_from(self.run.owed(AskMatcher)))
        self.run.feed(action, MatcherAnswered(action.dref, data.draw(odd_answers(action.dref, action.candidates))))

    @precondition(lambda self: self.run.owed(AskMatcher))
    @rule(data=st.data())
    def raise_in_matcher(self, data: st.DataObject) -> None:
        action = data.draw(st.sampled_from(self.run.owed(AskMatcher)))
        self.run.feed(action, Failed(action.dref, LookupError("matcher")))

    @precondition(lambda self: self.run.owed(StartBuild))
    @rule(data=st.data(), joined=st.booleans())
    def build(self, data: st.DataObject, joined: bool) -> None:
        action = data.draw(st.sampled_from(self.run.owed(StartBuild)))
        self.run.feed(action, Built(action.dref, joined))

    @precondition(lambda self: self.run.owed(StartBuild))
    @rule(data=st.data())
    def fail_build(self, data: st.DataObject) -> None:
        action = data.draw(st.sampled_from(self.run.owed(StartBuild)))
        self.run.feed(action, Failed(action.dref, OSError("realizer")))

    def _unforced(self) -> list[StartBuild]:
        return [action for action in self.run.owed(StartBuild) if action.known is not None]

    @precondition(lambda self: self._unforced())
    @rule(data=st.data())
    def deliver_from_others(self, data: st.DataObject) -> None:
        action = data.draw(st.sampled_from(self._unforced()))
        self.run.feed(action, CandidatesFound(action.dref, data.draw(candidate_lists(action.dref))))

    @precondition(lambda self: self.run.owed(Commit))
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        self.run.feed(Commit(), data.draw(any_end(self.run.model.matched)))
        self.run.check_end()

    @rule(data=st.data())
    def give_misfit(self, data: st.DataObject) -> None:
        facts: list[Fact] = [Committed(), CommitFailed(OSError())]
        for dref in self.run.case.order:
            facts += [CandidatesFound(dref, []), MatcherAnswered(dref, None), Built(dref), Failed(dref, OSError())]
        misfits = [fact for fact in facts if not self.run.model.fits(fact)]
        if misfits:
            fact = data.draw(st.sampled_from(misfits))
            with pytest.raises(AssertionError, match=r"^BUG: "):
                self.run.plan.handle(fact)
        if not self.run.finished:
            with pytest.raises(AssertionError, match=r"^BUG: "):
                self.run.plan.outcome()

    @invariant()
    def agrees(self) -> None:
        self.run.plan.check_invariants()
        self.run.check_states()

    def teardown(self) -> None:
        if self.run.intact and not self.run.finished:
            self.run.finish()


class DeepPlanMachine(PlanMachine):
    """The same, longer."""


TestPlan = PlanMachine.TestCase
TestPlan.settings = settings(deadline=None, max_examples=100, stateful_step_count=30)
TestPlanDeep = pytest.mark.slow(DeepPlanMachine.TestCase)
TestPlanDeep.settings = settings(deadline=None, max_examples=50, stateful_step_count=80)


# --- whole runs -------------------------------------------------------------------------------------


def any_fact(action: Action, model: Model) -> st.SearchStrategy[Fact]:
    if isinstance(action, FindCandidates):
        return candidate_lists(action.dref).map(partial(CandidatesFound, action.dref))
    if isinstance(action, AskMatcher):
        answers = st.none() | odd_answers(action.dref, action.candidates)
        if action.candidates:
            answers = acceptable_answers(action.candidates) | acceptable_answers(action.candidates) | answers
        return answers.map(partial(MatcherAnswered, action.dref))
    if isinstance(action, StartBuild):
        broken: Fact = Failed(action.dref, OSError("realizer"))
        return st.just(broken) | any_delivery(action)
    assert isinstance(action, Commit)
    return any_end(model.matched)


def any_delivery(action: StartBuild) -> st.SearchStrategy[Fact]:
    """What ends a build well; others may deliver only where that was not forced."""
    built = st.booleans().map(partial(Built, action.dref))
    if action.known is None:
        return built
    return built | candidate_lists(action.dref).map(partial(CandidatesFound, action.dref))


def fair_fact(action: Action, model: Model) -> st.SearchStrategy[Fact]:
    """Draw what happens when no realizer, matcher or driver is at fault; only the disk may be."""
    if isinstance(action, FindCandidates):
        lists = candidate_lists(action.dref)
        return (lists.filter(bool) if action.dref in model.built else lists).map(partial(CandidatesFound, action.dref))
    if isinstance(action, AskMatcher):
        answers: st.SearchStrategy[Any] = acceptable_answers(action.candidates) if action.candidates else st.none()
        return (answers if action.dref in model.built else answers | st.none()).map(partial(MatcherAnswered, action.dref))
    return any_delivery(action) if isinstance(action, StartBuild) else any_fact(action, model)


def run_with(case: Case, data: st.DataObject, facts: Callable[[Action, Model], st.SearchStrategy[Fact]]) -> Run:
    run = Run(case)
    while not run.finished:
        action = data.draw(st.sampled_from(run.outstanding))
        # Others cannot deliver for ever.
        fact = data.draw(facts(action, run.model)) if len(run.history) < 150 else obliging_fact(action, run.model.built)
        run.feed(action, fact)
    run.check_end()
    return run


@settings(deadline=None, max_examples=50)
@given(case=cases(), data=st.data())
def test_any_run_ends_whatever_is_answered(case: Case, data: st.DataObject) -> None:
    run_with(case, data, any_fact)


@settings(deadline=None, max_examples=60)
@given(case=cases().map(lambda case: plainly(case, forced=case.forced)), data=st.data())
def test_a_run_in_which_nobody_is_at_fault_settles_everything(case: Case, data: st.DataObject) -> None:
    run = run_with(case, data, fair_fact)
    outcome = run.plan.outcome()
    assert outcome.skipped == []
    assert {*outcome.matched} | {dref for dref, _ in outcome.failed} == {*case.order}
    if all(not isinstance(fact, CommitFailed) for fact, _ in run.history):
        assert outcome.failed == []


def plainly(case: Case, **fields: Any) -> Case:
    """Return the same graph with other wishes."""
    return Case(case.order, case.deps, **fields)


@dataclass
class World:
    """A store, matchers and realizers that are functions of what they are given."""

    broken: frozenset[DRef] = frozenset()
    picky: frozenset[DRef] = frozenset()
    """Matchers of these take one realization, others all."""
    moods: dict[DRef, str] = field(default_factory=dict)
    """What other matchers do, one of `MOODS`."""
    realizations: dict[str, list[Candidate]] = field(default_factory=dict)
    builds: list[DRef] = field(default_factory=list)

    def react(self, action: Action) -> Fact:
        if isinstance(action, FindCandidates):
            return CandidatesFound(action.dref, list(self.realizations.get(self._key(action), [])))
        if isinstance(action, AskMatcher):
            return self._match(action.dref, [candidate.rref for candidate in action.candidates])
        if isinstance(action, StartBuild):
            self.builds.append(action.dref)
            if action.dref in self.broken:
                return Failed(action.dref, OSError("realizer"))
            digests = [int(hashlib.sha256(f"{self._key(action)}{i}".encode()).hexdigest()[:32], 16) for i in range(2)]
            self.realizations[self._key(action)] = [Candidate(rref, 0.0) for rref in sorted(rref_of(action.dref, d) for d in digests)]
            return Built(action.dref)
        assert isinstance(action, Commit)
        return Committed()

    def _match(self, dref: DRef, rrefs: list[RRef]) -> Fact:
        mood = self.moods.get(dref)
        if mood == "raises" or (mood == "takes only one" and len(rrefs) > 1):
            return Failed(dref, LookupError("matcher"))
        if mood in ("wants more", "wants nothing"):
            return MatcherAnswered(dref, None if mood == "wants more" else [])
        return MatcherAnswered(dref, (rrefs[:1] if dref in self.picky else rrefs) or None)

    def _key(self, action: FindCandidates | StartBuild) -> str:
        return json.dumps([action.dref, action.context], sort_keys=True)


MOODS = ("raises", "takes only one", "wants more", "wants nothing")


def turn(case: Case, world: World, choose: Callable[[list[Action]], int] = lambda outstanding: 0) -> PlanOutcome:
    plan = case.plan()
    outstanding = plan.start()
    while not isinstance(outstanding[0], Finish):
        outstanding += plan.handle(world.react(outstanding.pop(choose(outstanding))))
        plan.check_invariants()
    return plan.outcome()


def subsets(case: Case) -> st.SearchStrategy[frozenset[DRef]]:
    return st.frozensets(st.sampled_from(case.order), max_size=3) if case.order else st.just(frozenset())


@settings(deadline=None, max_examples=40)
@given(case=cases().map(plainly), data=st.data())
def test_a_second_run_builds_nothing(case: Case, data: st.DataObject) -> None:
    world = World(picky=data.draw(subsets(case)))
    cold = turn(case, world)
    assert sorted(cold.built) == sorted(world.builds) == sorted(case.order)
    warm = turn(case, world)
    assert warm.matched == cold.matched
    assert warm.reused == case.order
    assert len(world.builds) == len(case.order)
    dry = turn(plainly(case, dry_run=True), world)
    assert dry.matched == cold.matched
    assert {step.kind for step in dry.steps} <= {StepKind.reuse}


@settings(deadline=None, max_examples=40)
@given(case=cases().map(plainly), data=st.data())
def test_forced_builds_with_equal_results_rebuild_nothing_else(case: Case, data: st.DataObject) -> None:
    world = World()
    cold = turn(case, world)
    world.builds.clear()
    forced = data.draw(subsets(case))
    again = turn(plainly(case, forced=forced), world)
    assert again.matched == cold.matched
    assert set(world.builds) == set(again.built) == forced
    assert set(again.reused) == set(case.order) - forced


@settings(deadline=None, max_examples=50)
@given(case=cases(), data=st.data())
def test_the_order_of_answers_does_not_change_what_is_realized(case: Case, data: st.DataObject) -> None:
    case = plainly(case, forced=case.forced, keep_going=True)
    broken = data.draw(subsets(case))
    one_by_one, mixed = World(broken), World(broken)
    expected = turn(case, one_by_one)
    found = turn(case, mixed, lambda outstanding: data.draw(st.integers(0, len(outstanding) - 1)))
    assert found.matched == expected.matched
    assert found.built == expected.built
    assert {dref for dref, _ in found.failed} == {dref for dref, _ in expected.failed}
    assert {dref for dref, _ in found.skipped} == {dref for dref, _ in expected.skipped}
    reachable = [dref for dref in case.order if not case.below(dref) & broken]
    assert sorted(mixed.builds) == sorted(one_by_one.builds) == sorted(reachable)


@settings(deadline=None, max_examples=150)
@given(case=cases(), data=st.data())
def test_a_dry_run_tells_what_a_run_then_does(case: Case, data: st.DataObject) -> None:
    world = World(picky=data.draw(subsets(case)))
    turn(plainly(case, keep_going=True), world)
    lose_some(world, data)
    world.broken, world.builds = data.draw(subsets(case)), []
    world.moods = {dref: data.draw(st.sampled_from(MOODS)) for dref in sorted(data.draw(subsets(case)))}

    def any_of(outstanding: list[Action]) -> int:
        return data.draw(st.integers(0, len(outstanding) - 1))

    wished = partial(plainly, case, forced=case.forced, assert_realized=case.assert_realized)
    untouched = copy.deepcopy(world)
    dry = turn(wished(dry_run=True, keep_going=True), untouched, any_of)
    assert (untouched.builds, untouched.realizations) == ([], world.realizations)
    real = turn(wished(keep_going=case.keep_going), world, any_of)
    check_told(case, dry, real, world.builds)


def lose_some(world: World, data: st.DataObject) -> None:
    """Take some realizations out of a store, so that of some derivations all are there, of others one or none."""
    for key in sorted(world.realizations):
        world.realizations[key] = world.realizations[key][: data.draw(st.integers(0, 2))]


def check_told(case: Case, dry: PlanOutcome, real: PlanOutcome, begun: Sequence[DRef]) -> None:
    """What was done is what was told; and all that was told is done, but for what a failure keeps from being begun."""
    told = {step.dref: step.kind for step in dry.steps}
    assert list(told) == case.order
    failures = {dref: type(error) for dref, error in real.failed}
    skipped = {dref for dref, _ in real.skipped}
    done = {
        StepKind.reuse: set(real.reused),
        StepKind.build: set(begun),
        StepKind.failed: set(failures) - set(begun),
        StepKind.refused: {dref for dref, kind in failures.items() if kind is NotRealized},
        StepKind.skipped: skipped,
    }
    done[StepKind.failed] -= done[StepKind.refused]
    uncertain = {dref for dref in case.order if told[dref] is StepKind.unknown}
    for kind, drefs in done.items():
        expected = {dref for dref in case.order if told[dref] is kind}
        # A build may fail, which no dry run knows, and then what is above it is skipped.
        assert drefs <= expected | uncertain
        if case.keep_going or not failures:
            assert expected <= drefs
    for dref in uncertain:
        assert any(told[below] is StepKind.build for below in case.below(dref))
    for dref, error in dry.failed:
        assert failures.get(dref, type(error)) is type(error)
    for dref, rrefs in dry.matched.items():
        assert real.matched.get(dref, rrefs) == rrefs


def test_no_derivations_at_all() -> None:
    run = Run(Case([], {}))
    assert run.outstanding == [Commit()]
    run.finish()
    assert run.plan.outcome().matched == {}


def test_the_states_of_the_model_are_those_of_the_planner() -> None:
    asked_only = {NodeState.asking}  # see test_planner_asking
    assert {state.value for state in set(NodeState) - asked_only} == {
        *("waiting", "finding", "matching", "building", "settled", "failed", "skipped", "unknown", "refused")
    }
