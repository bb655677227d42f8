"""The planner, one story at a time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

import pytest

from pylightnix.errors import InvalidMatch, MatcherRefused, NotRealized
from pylightnix.events import PlanStep, StepKind
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
    Withdrawn,
)
from pylightnix.planner.plan import NodeState, Plan, PlanOutcome
from pylightnix.types import DRef, RRef

Answer = Callable[[list[RRef]], Any]


def dref(name: str) -> DRef:
    return DRef(f"dref:{name.encode().hex():0>32}-{name}")


def rref(name: str, number: int) -> RRef:
    return RRef(f"rref:{number:032x}-{dref(name).removeprefix('dref:')}")


A, B, C, D = map(dref, "abcd")
CHAIN: dict[str, list[str]] = {"a": [], "b": ["a"], "c": ["b"]}
DIAMOND: dict[str, list[str]] = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]}


@dataclass
class World:
    """A store, matchers and realizers; turns plans as the embedded driver does, one action at a time.

    A build of `name` makes realization number `version[name]`. Matchers take everything there is.
    """

    graph: Mapping[str, Sequence[str]]
    version: dict[str, int] = field(default_factory=dict)
    matchers: dict[str, Answer] = field(default_factory=dict)
    broken: dict[str, Exception] = field(default_factory=dict)
    delivered_by_others: dict[str, list[RRef]] = field(default_factory=dict)
    commit_error: Optional[Exception] = None
    lost: Optional[set[RRef]] = None
    store: dict[str, list[RRef]] = field(default_factory=dict)
    builds: list[str] = field(default_factory=list)
    facts: int = 0

    def plan(self, **fields: Any) -> Plan:
        order = [dref(name) for name in self.graph]
        return Plan(order, {dref(name): [dref(dep) for dep in deps] for name, deps in self.graph.items()}, **fields)

    def realize(self, **fields: Any) -> PlanOutcome:
        self.builds, self.facts = [], 0
        plan = self.plan(**fields)
        queue = plan.start()
        rank = [dref(name) for name in self.graph]
        while not isinstance(queue[0], Finish):
            queue.sort(key=lambda action: len(rank) if isinstance(action, (Commit, Finish)) else rank.index(action.dref))
            queue += plan.handle(self._act(queue.pop(0)))
            plan.check_invariants()
            self.facts += 1
        return plan.outcome()

    def _act(self, action: Action) -> Fact:
        if isinstance(action, FindCandidates):
            return CandidatesFound(action.dref, self._candidates(action))
        if isinstance(action, AskMatcher):
            rrefs = [candidate.rref for candidate in action.candidates]
            matcher = self.matchers.get(_name(action.dref), take_all)
            try:
                return MatcherAnswered(action.dref, matcher(rrefs))
            except LookupError as error:
                return Failed(action.dref, error)
        if isinstance(action, StartBuild):
            return self._build(action)
        assert isinstance(action, Commit)
        return Committed() if self.commit_error is None else CommitFailed(self.commit_error, self.lost)

    def _candidates(self, action: FindCandidates | StartBuild) -> list[Candidate]:
        return [Candidate(rref, 0.0) for rref in sorted(self.store.get(_place(action), []))]

    def _build(self, action: StartBuild) -> Fact:
        name = _name(action.dref)
        if name in self.delivered_by_others:
            self.store.setdefault(_place(action), []).extend(self.delivered_by_others.pop(name))
        if action.known is not None and self._candidates(action) != list(action.known):
            return CandidatesFound(action.dref, self._candidates(action))
        self.builds.append(name)
        if name in self.broken:
            return Failed(action.dref, self.broken[name])
        built = rref(name, self.version.get(name, 1))
        if built not in self.store.setdefault(_place(action), []):
            self.store[_place(action)].append(built)
        return Built(action.dref)


def _name(dref: DRef) -> str:
    return dref[38:]


def names(drefs: Sequence[DRef]) -> list[str]:
    return [_name(dref) for dref in drefs]


def _place(action: FindCandidates | StartBuild) -> str:
    return f"{action.dref} {sorted(action.context.items())}"


def take_all(rrefs: list[RRef]) -> Optional[list[RRef]]:
    return rrefs or None


def take_last(rrefs: list[RRef]) -> Optional[list[RRef]]:
    return rrefs[-1:] or None


# --- cold and warm ----------------------------------------------------------------------------------


def test_a_cold_chain_is_built_from_below_then_committed() -> None:
    world = World(CHAIN)
    outcome = world.realize()
    assert world.builds == ["a", "b", "c"]
    assert outcome.built == [A, B, C]
    assert (outcome.reused, outcome.joined, outcome.failed, outcome.skipped, outcome.steps) == ([], [], [], [], [])
    assert outcome.matched == {A: [rref("a", 1)], B: [rref("b", 1)], C: [rref("c", 1)]}


def test_every_message_of_one_cold_derivation() -> None:
    plan = World({"a": []}).plan()
    made = Candidate(rref("a", 1), 5.0)
    assert plan.start() == [FindCandidates(A, {})]
    assert plan.handle(CandidatesFound(A, [])) == [AskMatcher(A, [])]
    assert plan.handle(MatcherAnswered(A, None)) == [StartBuild(A, {}, [])]
    assert plan.state(A) is NodeState.building
    assert plan.handle(Built(A)) == [FindCandidates(A, {})]
    assert plan.handle(CandidatesFound(A, [made])) == [AskMatcher(A, [made])]
    assert (plan.done, plan.total) == (0, 1)
    assert plan.handle(MatcherAnswered(A, [made.rref])) == [Commit()]
    assert (plan.done, plan.total) == (1, 1)
    with pytest.raises(AssertionError, match="outcome asked while committing"):
        plan.outcome()
    assert plan.handle(Committed()) == [Finish()]
    assert plan.outcome().built == [A]


def test_a_warm_chain_builds_nothing() -> None:
    world = World(CHAIN)
    cold = world.realize()
    warm = world.realize()
    assert world.builds == []
    assert warm.reused == [A, B, C]
    assert warm.built == []
    assert warm.matched == cold.matched


def test_what_is_independent_is_started_at_once_and_in_order() -> None:
    plan = World({"a": [], "b": [], "c": ["a", "b"]}).plan()
    assert plan.start() == [FindCandidates(A, {}), FindCandidates(B, {})]


def test_contexts_name_each_direct_dependency_once_with_what_was_matched() -> None:
    plan = World({"a": [], "b": ["a", "a"], "c": ["b", "a", "b"]}).plan()
    both = [rref("a", 1), rref("a", 2)]
    plan.start()
    plan.handle(CandidatesFound(A, [Candidate(r, 0.0) for r in both]))
    assert plan.handle(MatcherAnswered(A, [both[1], both[0], both[1]])) == [FindCandidates(B, {A: both})]
    plan.handle(CandidatesFound(B, [Candidate(rref("b", 1), 0.0)]))
    assert plan.handle(MatcherAnswered(B, (rref("b", 1),))) == [FindCandidates(C, {B: [rref("b", 1)], A: both})]
    assert plan.transitive(C) == {B: [rref("b", 1)], A: both}


# --- forced -----------------------------------------------------------------------------------------


def test_a_forced_target_is_built_without_asking_its_matcher_first() -> None:
    world = World(CHAIN, version={"c": 1}, matchers={"c": take_last})
    world.realize()
    world.version["c"] = 2
    outcome = world.realize(forced=[C])
    assert world.builds == ["c"]
    assert outcome.matched[C] == [rref("c", 2)]
    assert outcome.reused == [A, B]


def test_a_forced_build_is_told_of_no_candidates_and_can_not_be_joined() -> None:
    plan = World({"a": []}).plan(forced=[A])
    assert plan.start() == [StartBuild(A, {}, None)]
    with pytest.raises(AssertionError, match="BUG: CandidatesFound"):
        plan.handle(CandidatesFound(A, []))


def test_dependents_of_a_forced_build_with_the_same_result_are_reused() -> None:
    world = World(CHAIN)
    cold = world.realize()
    outcome = world.realize(forced=[A])
    assert world.builds == ["a"]
    assert (outcome.built, outcome.reused) == ([A], [B, C])
    assert outcome.matched == cold.matched


def test_dependents_of_a_forced_build_with_a_new_result_are_rebuilt() -> None:
    world = World(CHAIN, matchers={"a": take_last})
    world.realize()
    world.version |= {"a": 2, "b": 2}  # other inputs, another hash
    outcome = world.realize(forced=[A])
    assert world.builds == names(outcome.built) == ["a", "b", "c"]
    assert (outcome.matched[A], outcome.matched[B]) == ([rref("a", 2)], [rref("b", 2)])


def test_dependents_of_a_rebuilt_derivation_with_the_same_result_are_reused() -> None:
    world = World(CHAIN, matchers={"a": take_last})
    world.realize()
    world.version["a"] = 2
    outcome = world.realize(forced=[A])
    assert names(outcome.built) == ["a", "b"]
    assert outcome.reused == [C], "c looks at its direct dependency only, and that came out the same"


def test_forcing_what_is_not_in_the_plan_does_nothing() -> None:
    assert World(CHAIN).realize(forced=[dref("stranger")], assert_realized=[dref("other")]).built == [A, B, C]


# --- matchers ---------------------------------------------------------------------------------------


def test_a_matcher_that_refuses_what_was_built_fails() -> None:
    world = World({"a": [], "b": ["a"]}, matchers={"a": lambda rrefs: None})
    outcome = world.realize()
    assert world.builds == ["a"], "it is built once, not for ever"
    [(failed, error)] = outcome.failed
    assert failed == A
    assert isinstance(error, MatcherRefused)
    assert (error.dref, error.candidates) == (A, 1)
    assert outcome.skipped == [(B, A)]
    assert outcome.matched == {}
    assert outcome.built == [], "a derivation is told of once, here as failed"


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ([], "answered an empty list when offered 1 realizations"),
        ((), "answered an empty list"),
        ([rref("a", 9)], f"answered '{rref('a', 9)}', which it was not offered"),
        ([rref("a", 1), rref("b", 1)], "which it was not offered"),
        ([A], "which it was not offered"),
        ([None], "answered None, which it was not offered"),
        ([["nested"]], r"answered \['nested'\], which it was not offered"),
        ([{}], "which it was not offered"),
        (rref("a", 1), f"answered '{rref('a', 1)}';"),
        ({rref("a", 1)}, "answered {"),
        (True, "answered True;"),
        (0, "answered 0;"),
        ("x" * 1000, "answered 'x{199}…;"),
    ],
)
def test_an_answer_that_is_no_choice_among_the_offered_fails(answer: Any, problem: str) -> None:
    world = World({"a": []})
    world.realize()
    world.matchers["a"] = lambda rrefs: answer
    outcome = world.realize()
    [(failed, error)] = outcome.failed
    assert failed == A
    assert isinstance(error, InvalidMatch)
    assert world.builds == []
    with pytest.raises(InvalidMatch, match=problem.replace("[", r"\[") if problem.startswith("answered [") else problem):
        raise error


def test_what_a_matcher_raises_is_the_failure() -> None:
    def confused(rrefs: list[RRef]) -> None:
        raise LookupError("no such metric")

    outcome = World(CHAIN, matchers={"b": confused}).realize()
    [(failed, error)] = outcome.failed
    assert failed == B
    assert str(error) == "no such metric"
    assert outcome.built == [A], "what was finished before stays"
    assert outcome.skipped == [(C, B)]


def test_a_matcher_may_ask_for_more_while_there_are_some() -> None:
    world = World({"a": []})
    world.realize()
    world.version["a"] = 2
    world.matchers["a"] = lambda rrefs: rrefs if len(rrefs) == 2 else None
    outcome = world.realize()
    assert outcome.built == [A]
    assert outcome.matched[A] == [rref("a", 1), rref("a", 2)]


# --- assert_realized and dry runs -------------------------------------------------------------------


@pytest.mark.parametrize(("forced", "why"), [([], r"\(no realization\)"), ([A], r"\(forced\)")])
def test_what_must_be_realized_is_not_built(forced: list[DRef], why: str) -> None:
    world = World(CHAIN)
    outcome = world.realize(assert_realized=[A], forced=forced)
    assert world.builds == []
    [(failed, error)] = outcome.failed
    assert failed == A
    with pytest.raises(NotRealized, match=f"a build was needed {why} where assert_realized forbids it"):
        raise error
    assert outcome.skipped == [(B, A), (C, A)]


def test_what_must_be_realized_and_is_is_reused() -> None:
    world = World(CHAIN)
    world.realize()
    assert world.realize(assert_realized=[A, B, C]).reused == [A, B, C]


def test_a_dry_run_of_a_chain() -> None:
    world = World(CHAIN)
    cold = world.realize(dry_run=True)
    assert world.builds == []
    assert cold.matched == {}
    assert cold.steps == [
        PlanStep(A, StepKind.build, "no realization"),
        PlanStep(B, StepKind.unknown, f"depends on {A}, which would be built"),
        PlanStep(C, StepKind.unknown, f"depends on {A}, which would be built"),
    ]

    world.realize()
    warm = world.realize(dry_run=True)
    assert [(step.kind, step.reason) for step in warm.steps] == [(StepKind.reuse, "1 of 1 realizations match")] * 3
    assert warm.matched == world.realize().matched


def test_a_dry_run_says_why_something_would_be_built() -> None:
    world = World(CHAIN)
    world.realize()
    forced = world.realize(dry_run=True, forced=[B])
    assert [(step.kind, step.reason) for step in forced.steps] == [
        (StepKind.reuse, "1 of 1 realizations match"),
        (StepKind.build, "forced"),
        (StepKind.unknown, f"depends on {B}, which would be built"),
    ]
    world.matchers["b"] = lambda rrefs: None
    picky = world.realize(dry_run=True)
    assert picky.steps[1] == PlanStep(B, StepKind.build, "the matcher accepts none of 1 realizations")
    assert world.builds == []


def test_a_dry_run_in_which_a_matcher_fails_skips_what_is_above() -> None:
    world = World(CHAIN)
    world.realize()
    world.matchers["b"] = lambda rrefs: []
    outcome = world.realize(dry_run=True)
    assert outcome.steps[1:] == [
        PlanStep(B, StepKind.failed, "its matcher fails"),
        PlanStep(C, StepKind.skipped, f"depends on {B}, which fails"),
    ]
    assert [failed for failed, _ in outcome.failed] == [B]


def test_a_dry_run_says_what_must_not_be_built_and_does_not_fail_for_it() -> None:
    world = World(CHAIN)
    world.realize()
    outcome = world.realize(dry_run=True, forced=[B], assert_realized=[A, B])
    assert [(step.kind, step.reason) for step in outcome.steps] == [
        (StepKind.reuse, "1 of 1 realizations match"),
        (StepKind.refused, "forced"),
        (StepKind.skipped, f"depends on {B}, which must not be built"),
    ]
    assert (outcome.failed, outcome.skipped) == ([], [(C, B)])


@pytest.mark.parametrize("graph", [{"a": [], "b": [], "c": ["a", "b"], "d": ["c"]}, {"b": [], "a": [], "c": ["a", "b"], "d": ["c"]}])
def test_what_fails_decides_what_is_above_something_that_would_be_built(graph: dict[str, list[str]]) -> None:
    world = World(graph, matchers={"b": lambda rrefs: []})
    outcome = world.realize(dry_run=True)
    kinds = {step.dref: step.kind for step in outcome.steps}
    assert kinds == {A: StepKind.build, B: StepKind.failed, C: StepKind.skipped, D: StepKind.skipped}
    assert outcome.skipped == [(C, B), (D, B)]


def test_a_dry_run_that_stops_at_a_failure_says_what_was_not_looked_at() -> None:
    world = World({"a": [], "b": [], "c": ["b"]}, matchers={"a": lambda rrefs: []})
    world.store = {_place(FindCandidates(B, {})): [rref("b", 1)]}
    assert world.realize(dry_run=True).steps[1:] == [
        PlanStep(B, StepKind.reuse, "1 of 1 realizations match"),
        PlanStep(C, StepKind.unknown, "was not looked at, because something else fails"),
    ]
    assert world.realize(dry_run=True, keep_going=True).steps[2].kind is StepKind.build


# --- failures ---------------------------------------------------------------------------------------


def test_keep_going_builds_what_does_not_depend_on_the_failure() -> None:
    error = ValueError("b is broken")
    world = World({**DIAMOND, "e": ["c"]}, broken={"b": error})
    outcome = world.realize(keep_going=True)
    assert world.builds == ["a", "b", "c", "e"]
    assert outcome.failed == [(B, error)]
    assert outcome.skipped == [(D, B)]
    assert outcome.built == [A, C, dref("e")]


def test_without_keep_going_nothing_is_started_after_a_failure() -> None:
    error = ValueError("b is broken")
    world = World(DIAMOND, broken={"b": error})
    outcome = world.realize()
    assert world.builds == ["a", "b"]
    assert outcome.failed == [(B, error)]
    assert outcome.skipped == [(D, B)]
    assert outcome.matched == {A: [rref("a", 1)]}
    assert C not in {*outcome.built, *outcome.reused, *outcome.joined}


def test_what_is_under_way_when_something_fails_is_finished_before_the_commit() -> None:
    plan = World({"a": [], "b": [], "c": ["b"]}).plan(forced=[A, B])
    assert plan.start() == [StartBuild(A, {}, None), StartBuild(B, {}, None)]
    assert plan.handle(Failed(A, OSError())) == []
    assert plan.handle(Built(B)) == [FindCandidates(B, {})]
    made = Candidate(rref("b", 1), 0.0)
    assert plan.handle(CandidatesFound(B, [made])) == [AskMatcher(B, [made])]
    assert plan.handle(MatcherAnswered(B, [made.rref])) == [Commit()], "c is not begun"
    plan.handle(Committed())
    assert plan.outcome().matched == {B: [made.rref]}


def test_the_first_of_two_failures_is_the_cause() -> None:
    first, second = ValueError("b"), ValueError("c")
    outcome = World(DIAMOND, broken={"b": first, "c": second}).realize(keep_going=True)
    assert outcome.failed == [(B, first), (C, second)]
    assert outcome.skipped == [(D, B)]


# --- joined -----------------------------------------------------------------------------------------


def test_what_others_delivered_meanwhile_is_joined() -> None:
    world = World(CHAIN, delivered_by_others={"a": [rref("a", 7)]})
    outcome = world.realize()
    assert world.builds == ["b", "c"]
    assert outcome.joined == [A]
    assert outcome.built == [B, C]
    assert outcome.matched[A] == [rref("a", 7)]


def test_what_others_delivered_may_not_do_and_is_built_after_all() -> None:
    world = World({"a": []}, delivered_by_others={"a": [rref("a", 7)]})
    world.matchers["a"] = lambda rrefs: [rref("a", 1)] if rref("a", 1) in rrefs else None
    outcome = world.realize()
    assert world.builds == ["a"]
    assert (outcome.built, outcome.joined) == ([A], [])


def test_a_build_that_others_caused_is_joined_and_no_second_one_is_asked_for() -> None:
    plan = World({"a": []}).plan(forced=[A])
    made = Candidate(rref("a", 1), 0.0)
    assert plan.start() == [StartBuild(A, {}, None)]
    assert plan.handle(Built(A, joined=True)) == [FindCandidates(A, {})]
    plan.handle(CandidatesFound(A, [made]))
    assert plan.handle(MatcherAnswered(A, [made.rref])) == [Commit()]
    plan.handle(Committed())
    assert (plan.outcome().joined, plan.outcome().built) == ([A], [])


# --- the commit -------------------------------------------------------------------------------------


def test_a_failed_commit_takes_what_was_built_and_all_on_top_of_it() -> None:
    world = World({"a": [], "b": [], "c": ["a", "b"], "d": ["c"]})
    world.realize()
    world.commit_error = OSError("disk full")
    # The same bytes as before: c and d are found in the store, yet on top of what is lost.
    outcome = world.realize(forced=[A])
    assert world.builds == ["a"]
    assert outcome.failed == [(A, world.commit_error), (C, world.commit_error), (D, world.commit_error)]
    assert outcome.matched == {B: [rref("b", 1)]}
    assert (outcome.built, outcome.reused, outcome.joined, outcome.skipped) == ([], [B], [], [])


def test_a_failed_commit_harms_nothing_that_was_there_before() -> None:
    world = World(CHAIN)
    cold = world.realize()
    world.commit_error = OSError("disk full")
    outcome = world.realize()
    assert outcome.failed == []
    assert outcome.matched == cold.matched


def test_a_failed_commit_after_a_failed_build() -> None:
    broken, full = ValueError("b"), OSError("disk full")
    world = World(DIAMOND, broken={"b": broken}, commit_error=full)
    outcome = world.realize(keep_going=True)
    assert outcome.failed == [(B, broken), (A, full), (C, full)]
    assert outcome.skipped == [(D, B)]
    assert outcome.matched == {}


def test_a_failed_commit_takes_what_the_driver_names_though_others_built_it() -> None:
    world = World({"a": [], "b": ["a"], "c": [], "d": ["c"]})
    world.realize()
    # Another thread of the process had put a in place, and it was found here before it was durable.
    world.commit_error, world.lost = OSError("disk full"), {rref("a", 1)}
    outcome = world.realize(forced=[C])
    assert outcome.failed == [(A, world.commit_error), (B, world.commit_error)]
    assert outcome.built == [C], "what was durable already is not lost"
    assert outcome.reused == [D]


# --- misuse by drivers ------------------------------------------------------------------------------


@pytest.mark.parametrize("fact", [MatcherAnswered(A, None), Built(A), Failed(A, OSError()), CandidatesFound(B, []), Committed()])
def test_a_fact_that_does_not_fit_is_a_bug_of_the_driver(fact: Fact) -> None:
    plan = World(CHAIN).plan()
    plan.start()
    with pytest.raises(AssertionError, match=f"BUG: {type(fact).__name__}"):
        plan.handle(fact)
    plan.check_invariants()
    assert plan.handle(CandidatesFound(A, [])) == [AskMatcher(A, [])]


def test_the_transitive_context_of_what_is_not_settled_is_a_bug_of_the_driver() -> None:
    plan = World(CHAIN).plan()
    plan.start()
    with pytest.raises(AssertionError, match=r"BUG: .* is finding, below"):
        plan.transitive(B)


# --- cost -------------------------------------------------------------------------------------------


def chain(size: int) -> dict[str, list[str]]:
    return {str(i): [str(i - 1)] if i else [] for i in range(size)}


def fan(size: int) -> dict[str, list[str]]:
    return {"0": [], **{str(i): ["0"] for i in range(1, size - 1)}, "top": [str(i) for i in range(size - 1)]}


def ladder(size: int) -> dict[str, list[str]]:
    """Each needs the two before it: as many paths as Fibonacci numbers."""
    return {str(i): [str(j) for j in (i - 2, i - 1) if j >= 0] for i in range(size)}


SHAPES = [chain, fan, ladder]


@pytest.mark.parametrize("shape", SHAPES)
def test_five_facts_for_what_is_built_and_two_for_what_is_reused(shape: Callable[[int], dict[str, list[str]]]) -> None:
    world = World(shape(50))
    world.realize()
    assert world.facts == 5 * 50 + 1
    world.realize()
    assert world.facts == 2 * 50 + 1
    world.realize(dry_run=True)
    assert world.facts == 2 * 50 + 1


def calls_to_turn(graph: dict[str, list[str]], **fields: Any) -> int:
    """Count the Python and C functions that the planner calls: a measure of work without a clock."""
    plan = World(graph).plan(**fields)
    made: set[DRef] = set()
    count = 0

    def on_call(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    def handle(fact: Optional[Fact]) -> list[Action]:
        sys.setprofile(on_call)
        try:
            return plan.start() if fact is None else plan.handle(fact)
        finally:
            sys.setprofile(None)

    queue = handle(None)
    while not isinstance(queue[-1], Finish):
        action = queue.pop()
        if isinstance(action, FindCandidates):
            queue += handle(CandidatesFound(action.dref, [Candidate(RRef("r"), 0.0)] if action.dref in made else []))
        elif isinstance(action, AskMatcher):
            queue += handle(MatcherAnswered(action.dref, [c.rref for c in action.candidates] or None))
        elif isinstance(action, StartBuild):
            made.add(action.dref)
            queue += handle(Failed(action.dref, OSError()) if fields.get("keep_going") else Built(action.dref))
        else:
            queue += handle(Committed())
    return count


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("fields", [{}, {"dry_run": True}, {"keep_going": True}], ids=["build", "dry", "failing"])
def test_work_grows_with_the_graph_and_no_faster(shape: Callable[[int], dict[str, list[str]]], fields: dict[str, Any]) -> None:
    small, large = calls_to_turn(shape(100), **fields), calls_to_turn(shape(400), **fields)
    assert large < 4.5 * small


def test_a_build_that_was_not_begun_is_withdrawn_after_a_failure() -> None:
    first, second = DRef("dref:" + "0" * 32 + "-first"), DRef("dref:" + "1" * 32 + "-second")
    plan = Plan([first, second], {first: (), second: ()}, forced=[first, second])
    assert [type(action).__name__ for action in plan.start()] == ["StartBuild", "StartBuild"]
    assert plan.handle(Failed(first, OSError())) == []
    assert [type(action).__name__ for action in plan.handle(Withdrawn(second))] == ["Commit"]
    plan.handle(Committed())
    outcome = plan.outcome()
    assert ([dref for dref, _ in outcome.failed], outcome.skipped, plan.state(second)) == ([first], [], NodeState.waiting)
