"""What a dry run says for people: all that is certain is said, and what is said is done."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.property.test_planner import MOODS, Case, World, cases, lose_some, plainly, subsets, turn

from pylightnix import DRef, RRef
from pylightnix.errors import NotRealized
from pylightnix.events import PlanStep, StepKind
from pylightnix.planner.plan import PlanOutcome
from pylightnix_client.planned import decided_steps


def told(case: Case, world: World, dry: PlanOutcome) -> dict[DRef, StepKind]:
    made_from: dict[DRef, list[Mapping[DRef, Sequence[RRef]]]] = {}
    for key, candidates in world.realizations.items():
        dref, context = json.loads(key)
        made_from.setdefault(dref, []).extend([context] * len(candidates))
    steps = decided_steps(dry.steps, case.deps, dry.matched, lambda dref: made_from.get(dref, []), case.assert_realized, case.forced)
    assert [step.dref for step in steps] == case.order
    assert all(step.reason for step in steps)
    return {step.dref: step.kind for step in steps}


def drawn_world(case: Case, data: st.DataObject, *, moody: bool) -> World:
    """Return a store in which some is built, and some of that is gone again."""
    world = World(picky=data.draw(subsets(case)))
    turn(plainly(case, keep_going=True), world)
    lose_some(world, data)
    world.builds = []
    if moody:
        world.broken = data.draw(subsets(case))
        world.moods = {dref: data.draw(st.sampled_from(MOODS)) for dref in sorted(data.draw(subsets(case)))}
    return world


@settings(deadline=None, max_examples=150)
@given(case=cases(), data=st.data())
def test_what_is_said_is_done_where_nobody_is_at_fault(case: Case, data: st.DataObject) -> None:
    world = drawn_world(case, data, moody=False)
    wished = partial(plainly, case, forced=case.forced, assert_realized=case.assert_realized, keep_going=True)
    kinds = told(case, world, turn(wished(dry_run=True), world))
    real = turn(wished(), world)
    refused = {dref for dref, error in real.failed if isinstance(error, NotRealized)}
    skipped = {dref for dref, _ in real.skipped}
    for dref, kind in kinds.items():
        if kind is StepKind.build:
            assert dref in world.builds
        elif kind is StepKind.reuse:
            assert dref in real.reused
        elif kind is StepKind.refused:
            assert dref in refused
        elif kind is StepKind.skipped:
            assert dref in skipped
        else:
            assert kind is StepKind.unknown
            assert any(kinds[below] is StepKind.build for below in case.below(dref))


@settings(deadline=None, max_examples=100)
@given(case=cases(), data=st.data())
def test_what_is_said_is_done_or_fails(case: Case, data: st.DataObject) -> None:
    world = drawn_world(case, data, moody=True)
    wished = partial(plainly, case, forced=case.forced, assert_realized=case.assert_realized, keep_going=True)
    kinds = told(case, world, turn(wished(dry_run=True), world))
    real = turn(wished(), world)
    fails = {dref for dref, _ in [*real.failed, *real.skipped]}
    for dref, kind in kinds.items():
        assert kind is not StepKind.build or dref in world.builds or dref in fails
        assert kind is not StepKind.reuse or dref in real.reused
        assert kind not in (StepKind.failed, StepKind.refused, StepKind.skipped) or dref in fails


@settings(deadline=None, max_examples=50)
@given(case=cases())
def test_in_an_empty_store_all_is_built(case: Case) -> None:
    kinds = told(plainly(case), World(), turn(plainly(case, dry_run=True), World()))
    assert set(kinds.values()) <= {StepKind.build}


A, B, C, D = (DRef(f"dref:{digit * 32}-{digit}") for digit in "abcd")


def rref(dref: DRef, digit: str) -> RRef:
    return RRef(f"rref:{digit * 32}-{dref[5:]}")


def test_what_could_fit_is_left_open_and_the_rest_is_not() -> None:
    steps = [
        PlanStep(A, StepKind.build, "forced"),
        PlanStep(B, StepKind.reuse, "1 of 1 realizations match"),
        PlanStep(C, StepKind.unknown, f"depends on {A}, which would be built"),
        PlanStep(D, StepKind.unknown, f"depends on {A}, which would be built"),
    ]
    deps: dict[DRef, list[DRef]] = {A: [], B: [], C: [A, B], D: [C]}
    matched = {B: [rref(B, "1")]}

    def decided(*of_c: Mapping[DRef, Sequence[RRef]], of_d: Sequence[Mapping[DRef, Sequence[RRef]]] = ()) -> list[tuple[StepKind, str]]:
        found = decided_steps(steps, deps, matched, lambda dref: {C: of_c, D: of_d}.get(dref, ()))
        return [(step.kind, step.reason) for step in found[2:]]

    fits, other = {A: [rref(A, "7")], B: [rref(B, "1")]}, {A: [rref(A, "7")], B: [rref(B, "2")]}
    built = (StepKind.build, "no realization")
    assert decided() == [built, built]
    assert decided(other) == [(StepKind.build, "none of 1 realizations fits what it depends on"), built]
    assert decided(other, fits) == [(StepKind.unknown, f"is built unless {A} comes out as it was before"), built]
    assert decided(fits, of_d=[{C: [rref(C, "1")]}]) == [
        (StepKind.unknown, f"is built unless {A} comes out as it was before"),
        (StepKind.unknown, f"is built unless {C} comes out as it was before"),
    ]


def test_what_was_not_looked_at_stays_so() -> None:
    steps = [
        PlanStep(A, StepKind.failed, "its matcher fails"),
        PlanStep(B, StepKind.reuse, "1 of 1 realizations match"),
        PlanStep(C, StepKind.unknown, "was not looked at, because something else fails"),
    ]
    assert decided_steps(steps, {A: [], B: [], C: [B]}, {B: [rref(B, "1")]}, lambda dref: []) == steps
