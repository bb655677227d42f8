"""Dry runs for people: what a build would do with each derivation, as surely as the store lets one know it, and how long it may take.

What fails for sure is among the failures, with the errors that a build would end with. Must not print, nor know which command
wants it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Optional

from pylightnix.events import PlanStep, StepKind
from pylightnix.query import allrrefs, direct_context, realization_info, realization_starts
from pylightnix.refs import rref2dref, undref
from pylightnix.refusing import refusals
from pylightnix.registry import closure_deps
from pylightnix.storage import store_layout
from pylightnix.types import Closure, DRef, RRef, StorageSettings

if TYPE_CHECKING:
    from pylightnix.codekey import CodeManifest
    from pylightnix.embedded import Outcome
    from pylightnix_client.why import Answer

__all__ = ["Expectation", "dry_run", "expectation", "reasons"]

REASONS_MAX: Final = 100
"""For how many builds a plan says why."""
_FAILS = frozenset({StepKind.failed, StepKind.refused, StepKind.skipped})
_WILL_BE_THERE = frozenset({StepKind.reuse, StepKind.build})


def dry_run(realize: Callable[..., Outcome], closure: Closure, **wishes: Any) -> Outcome:
    """Return what `realize` finds in a dry run of `closure`. Failed is, too, what a realizer would refuse.

    Args:
        realize: `realize_closure`, of `pylightnix.remote` or of `pylightnix.embedded`.
        closure: as `instantiate` makes it.
        wishes: other parameters of `realize`.
    """
    from pylightnix.embedded import forced_drefs

    refused = refusals(closure.derivations)
    outcome = realize(closure, dry_run=True, assert_realized=list(refused), **wishes)
    if any(step.kind is StepKind.unknown for step in outcome.steps):
        outcome = _decided(outcome, closure, refused.keys(), forced_drefs(closure, wishes.get("force_rebuild", False)))
    errors = [(step.dref, refused[step.dref]) for step in outcome.steps if step.kind is StepKind.refused]
    return replace(outcome, failed=[*outcome.failed, *errors])


# --- what is above something that would be built ----------------------------------------------------------


def _decided(outcome: Outcome, closure: Closure, refused: Iterable[DRef], forced: Iterable[DRef]) -> Outcome:
    realizations: dict[DRef, list[RRef]] = {}
    for rref in allrrefs(closure.S):
        realizations.setdefault(rref2dref(rref), []).append(rref)
    layout = store_layout(closure.S)

    def contexts(dref: DRef) -> list[Mapping[DRef, Sequence[RRef]]]:
        return [direct_context(layout, rref)[0] for rref in realizations.get(dref, ())]

    deps = closure_deps(closure.derivations, closure.S)
    steps = decided_steps(outcome.steps, deps, outcome.context, contexts, frozenset(refused), frozenset(forced))
    causes, fails = dict(outcome.skipped), {step.dref for step in steps if step.kind in _FAILS}
    for step in steps:
        if step.kind is StepKind.skipped and step.dref not in causes:
            failing = next(dep for dep in deps[step.dref] if dep in fails)
            causes[step.dref] = causes.get(failing, failing)
    skipped = [(step.dref, causes[step.dref]) for step in steps if step.dref in causes]
    return replace(outcome, steps=steps, skipped=skipped)


def decided_steps(
    steps: Sequence[PlanStep],
    deps: Mapping[DRef, Sequence[DRef]],
    matched: Mapping[DRef, Optional[Sequence[RRef]]],
    contexts: Callable[[DRef], Sequence[Mapping[DRef, Sequence[RRef]]]],
    refused: frozenset[DRef] = frozenset(),
    forced: frozenset[DRef] = frozenset(),
) -> list[PlanStep]:
    """Return the steps of a dry run, with those decided that depend on something that would be built.

    Such a derivation is built, too, unless it has a realization that could fit: one made from the realizations that are
    matched now, and from any others of what would be built. Then it is for the bytes that come out to decide.

    Args:
        steps: what the planner said, dependencies first.
        deps: direct dependencies.
        matched: what stands for each derivation that is settled.
        contexts: gives, for each realization of a derivation, what it was made from.
        refused: what must not be built.
        forced: what is built whatever there is.
    """
    kinds: dict[DRef, StepKind] = {}
    maybe: set[DRef] = set()
    found = []
    for step in steps:
        below = deps.get(step.dref, ())
        to_come = [dep for dep in below if kinds[dep] is StepKind.build or dep in maybe]
        failing = next((dep for dep in below if kinds[dep] in _FAILS), None)
        decided = step
        if step.kind is StepKind.unknown and failing is not None:
            decided = PlanStep(step.dref, StepKind.skipped, f"depends on {failing}, which must not be built")
        elif step.kind is StepKind.unknown and to_come and all(kinds[dep] in _WILL_BE_THERE or dep in maybe for dep in below):
            settled = {dep: sorted(matched[dep] or ()) for dep in below if kinds[dep] is StepKind.reuse}
            known = contexts(step.dref)
            if step.dref in forced:
                decided = PlanStep(step.dref, StepKind.build, "forced")
            elif any(all(sorted(context.get(dep, ())) == rrefs for dep, rrefs in settled.items()) for context in known):
                decided = PlanStep(step.dref, StepKind.unknown, f"is built unless {to_come[0]} comes out as it was before")
                if step.dref not in refused:  # else what depends on it may be skipped
                    maybe.add(step.dref)
            else:
                reason = f"none of {len(known)} realizations fits what it depends on" if known else "no realization"
                decided = PlanStep(step.dref, StepKind.build, reason)
            if decided.kind is StepKind.build and step.dref in refused:
                decided = replace(decided, kind=StepKind.refused)
        kinds[step.dref] = decided.kind
        found.append(decided)
    return found


# --- why, and how long -------------------------------------------------------------------------------------


def reasons(closure: Closure, outcome: Outcome, S: StorageSettings, force: bool) -> Callable[[PlanStep], Optional[Answer]]:
    """Return what says of a step, if it is a build, in what it differs from the nearest older realization."""
    from pylightnix.attempt import realizer_manifest
    from pylightnix_client.why import Comparing

    stand_ins = refusals(closure.derivations)
    realizers = {derivation.dref: derivation.realizer for derivation in closure.derivations if derivation.dref not in stand_ins}

    def manifest_of(dref: DRef) -> Optional[CodeManifest]:
        return realizer_manifest(realizers[dref]) if dref in realizers else None

    comparing = Comparing(S, manifest_of)
    builds = [step.dref for step in outcome.steps if step.kind in (StepKind.build, StepKind.refused)]
    # What comes first decides about what comes after it; and each is compared with all of its name.
    wanted = set(builds[:REASONS_MAX]) - (set(closure.targets) if force else set())

    def why(step: PlanStep) -> Optional[Answer]:
        return comparing.derivation(step.dref, outcome.context) if step.dref in wanted else None

    return why


@dataclass(frozen=True, slots=True)
class Expectation:
    """How long the builds of a dry run may take, judged by the latest ones of the same derivation, or else of its name."""

    seconds: Mapping[DRef, float]
    """What is to be built, as far as anything is known."""
    unknown: int
    """How many builds nothing is known of."""


def expectation(steps: Sequence[PlanStep], S: StorageSettings) -> Expectation:
    """Return how long the builds of a dry run may take."""
    drefs = [step.dref for step in steps if step.kind is StepKind.build]
    names = {undref(dref)[1] for dref in drefs}
    before = [rref for rref in allrrefs(S) if undref(rref2dref(rref))[1] in names] if names else []
    starts = realization_starts(before, S)
    latest: dict[str, RRef] = {}
    for rref in sorted(before, key=lambda rref: starts.get(rref, 0.0)):
        latest[rref2dref(rref)] = latest[undref(rref2dref(rref))[1]] = rref
    seconds: dict[DRef, float] = {}
    of_rref: dict[RRef, Optional[float]] = {}
    for dref in drefs:
        nearest = latest.get(dref, latest.get(undref(dref)[1]))
        if nearest is None:
            continue
        if nearest not in of_rref:
            of_rref[nearest] = _seconds(nearest, S)
        took = of_rref[nearest]
        if took is not None:
            seconds[dref] = took
    return Expectation(seconds, len(drefs) - len(seconds))


def _seconds(rref: RRef, S: StorageSettings) -> Optional[float]:
    from pylightnix_client.description import build_seconds

    info = realization_info(rref, S)
    return None if info is None else build_seconds(rref, S, info.stopped - info.started)
