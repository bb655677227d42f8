"""The planner when it is told to ask its caller: laws that compare such a run with one that asks nobody."""

from __future__ import annotations

from collections.abc import Callable
from typing import Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.property.test_planner import Case, World, cases, plainly, rref_of, subsets, turn

from pylightnix.events import StepKind
from pylightnix.planner.messages import Action, AskCaller, CallerAnswered, Fact, Finish, StartBuild
from pylightnix.planner.plan import NodeState, Plan, PlanOutcome
from pylightnix.types import DRef, RRef

Says = Callable[[AskCaller], Optional[list[RRef]]]


def turn_asking(
    case: Case, world: World, ask: frozenset[DRef], says: Says, ask_on_failure: bool = False
) -> tuple[PlanOutcome, list[AskCaller]]:
    """Turn a plan, one action at a time; return how it ended and what was asked."""
    plan = Plan(case.order, case.deps, forced=case.forced, ask=ask, ask_on_failure=ask_on_failure, dry_run=case.dry_run)
    asked = []
    outstanding = plan.start()
    while not isinstance(outstanding[0], Finish):
        action = outstanding.pop(0)
        if isinstance(action, AskCaller):
            assert plan.state(action.dref) is NodeState.asking
            asked.append(action)
        outstanding += plan.handle(_fact(action, world, says))
        plan.check_invariants()
    return plan.outcome(), asked


def _fact(action: Action, world: World, says: Says) -> Fact:
    return CallerAnswered(action.dref, says(action)) if isinstance(action, AskCaller) else world.react(action)


def run_it(asked: AskCaller) -> None:
    return None


def made_by_hand(asked: AskCaller) -> list[RRef]:
    return [rref_of(asked.dref, 7), rref_of(asked.dref, 5), rref_of(asked.dref, 7)]


@settings(deadline=None, max_examples=50)
@given(case=cases().map(plainly), data=st.data())
def test_a_caller_who_always_wants_the_realizer_forces_builds(case: Case, data: st.DataObject) -> None:
    ask = data.draw(subsets(case))
    forcing, asking = World(), World()
    for world in (forcing, asking):
        turn(case, world)
        world.builds.clear()
    expected = turn(plainly(case, forced=ask), forcing)
    found, asked = turn_asking(case, asking, ask, run_it)
    assert found == expected
    assert sorted(asking.builds) == sorted(forcing.builds)
    assert {action.dref for action in asked} == ask
    for action in asked:
        assert action.context == {dep: found.matched[dep] for dep in case.deps[action.dref]}
        assert action.error is None


@settings(deadline=None, max_examples=50)
@given(case=cases().map(plainly), data=st.data())
def test_what_a_caller_settles_is_neither_matched_nor_built(case: Case, data: st.DataObject) -> None:
    ask = data.draw(subsets(case))
    world = World()
    outcome, asked = turn_asking(case, world, ask, made_by_hand)
    assert {action.dref for action in asked} == ask
    assert sorted(world.builds) == sorted(set(case.order) - ask)
    assert set(outcome.matched) == set(case.order)
    assert set(outcome.reused) == ask
    for dref in ask:
        assert outcome.matched[dref] == [rref_of(dref, 5), rref_of(dref, 7)]


@settings(deadline=None, max_examples=50)
@given(case=cases().map(plainly), data=st.data())
def test_what_fails_is_asked_about_and_can_be_tried_again(case: Case, data: st.DataObject) -> None:
    broken = data.draw(subsets(case))
    world = World(broken)

    def mend(asked: AskCaller) -> None:
        assert isinstance(asked.error, OSError)
        world.broken -= {asked.dref}

    outcome, asked = turn_asking(case, world, frozenset(), mend, ask_on_failure=True)
    assert {action.dref for action in asked} == broken
    assert outcome == turn(case, World())
    assert sorted(world.builds) == sorted([*case.order, *broken])


@settings(deadline=None, max_examples=30)
@given(case=cases().map(lambda case: plainly(case, dry_run=True)), data=st.data())
def test_a_dry_run_asks_too_and_builds_nothing(case: Case, data: st.DataObject) -> None:
    ask = data.draw(subsets(case))
    world = World()
    outcome, asked = turn_asking(case, world, ask, run_it)
    assert world.builds == []
    assert outcome.matched == {}
    leaves = {dref for dref in case.order if not case.deps[dref]}
    assert {action.dref for action in asked} == ask & leaves
    assert {step.dref for step in outcome.steps if step.kind is StepKind.build} == leaves


@pytest.mark.parametrize("given_rrefs", [[], ["rref:no"], [rref_of(DRef(f"dref:{1:032x}-other"), 1)], "text", [None]])
def test_what_settles_nothing_fails(given_rrefs: list[RRef]) -> None:
    dref = DRef(f"dref:{0:032x}-node0")
    outcome, _ = turn_asking(Case([dref], {dref: []}), World(), frozenset({dref}), lambda asked: given_rrefs)
    ((failed, error),) = outcome.failed
    assert failed == dref
    assert "is to be settled with" in str(error)


def test_a_build_that_was_asked_for_ignores_what_others_deliver() -> None:
    dref = DRef(f"dref:{0:032x}-node0")
    plan = Plan([dref], {dref: []}, ask=[dref])
    assert plan.start() == [AskCaller(dref, {})]
    assert plan.handle(CallerAnswered(dref, None)) == [StartBuild(dref, {}, None)]
