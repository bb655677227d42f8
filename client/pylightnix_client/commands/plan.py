"""The commands that say what would be built and why: `plan` and `why-rebuild`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

import click

from pylightnix_client.parameters import ReferenceType, TargetType, json_option
from pylightnix_client.session import Session

if TYPE_CHECKING:
    from pylightnix.codekey import CodeManifest
    from pylightnix.types import DRef
    from pylightnix_client.why import Answer

__all__ = ["plan_command", "why_rebuild_command"]


@click.command("plan")
@click.argument("targets", type=TargetType(), nargs=-1, required=True, metavar="TARGET...")
@click.option("--force", is_flag=True, help="As if the targets were to be built again.")
@click.option("--arg", "arguments", multiple=True, metavar="NAME=JSON", help="An argument for the stages. Can be repeated.")
@json_option
@click.pass_obj
def plan_command(session: Session, targets: tuple[str, ...], force: bool, arguments: tuple[str, ...]) -> None:
    """Say what `build` would build for TARGETs, in its order, and why. Nothing is built.

    Below what would be built stands the first thing in which it differs from the nearest older realization.
    """
    from pylightnix.attempt import realizer_manifest
    from pylightnix.events import StepKind
    from pylightnix.remote import realize_closure
    from pylightnix_client.resolve import instantiate_targets
    from pylightnix_client.target import parse_arguments, parse_target
    from pylightnix_client.why import Comparing

    parsed, values = [parse_target(target) for target in targets], parse_arguments(arguments)
    S, answers = session.settings(), session.answers
    answers.divert()
    _, closure = instantiate_targets(parsed, values, S, force=force)
    outcome = realize_closure(closure, force_rebuild=force, dry_run=True)
    realizers = {derivation.dref: derivation.realizer for derivation in closure.derivations}

    def manifest_of(dref: DRef) -> Optional[CodeManifest]:
        return realizer_manifest(realizers[dref]) if dref in realizers else None

    comparing = Comparing(S, manifest_of)
    for step in outcome.steps:
        found = None
        if step.kind is StepKind.build and not (force and step.dref in closure.targets):
            found = comparing.derivation(step.dref, outcome.context)
        if answers.as_json:
            why = {} if found is None else {"older": found.older, "why": found.reason}
            answers.object("step", dref=step.dref, action=step.kind.value, reason=step.reason, **why)
            continue
        answers.text(f"{step.kind.value:<7} {step.dref}  {step.reason}")
        if found is not None:
            answers.text(f"        {_sentence(found)}")


@click.command("why-rebuild")
@click.argument("ref", type=ReferenceType("dref", "rref"))
@json_option
@click.pass_obj
def why_rebuild_command(session: Session, ref: str) -> None:
    """Say in what the realization or derivation REF differs from the nearest older realization of its name.

    Named is the first thing that differs: a value of the config, a function or other thing that its code reaches, or a dependency, and then
    what differs there.
    """
    from pylightnix.refs import isrref
    from pylightnix.types import DRef, RRef
    from pylightnix_client.references import resolve_reference
    from pylightnix_client.why import Comparing

    S = session.settings()
    found = resolve_reference(ref, S)
    comparing = Comparing(S)
    answer = comparing.realization(RRef(found)) if isrref(found) else comparing.derivation(DRef(found))
    if session.answers.as_json:
        session.answers.object("why-rebuild", ref=answer.ref, older=answer.older, why=answer.reason)
    else:
        session.answers.text(_sentence(answer))


def _sentence(answer: Answer) -> str:
    return answer.reason if answer.older is None else f"unlike {answer.older}: {answer.reason}"
