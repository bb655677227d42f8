"""The commands that say what would be built and why: `plan` and `why-rebuild`."""

from __future__ import annotations

import click

from pylightnix_client.parameters import ReferenceType, TargetType, json_option
from pylightnix_client.session import Session

__all__ = ["plan_command", "why_rebuild_command"]


@click.command("plan")
@click.argument("targets", type=TargetType(), nargs=-1, required=True, metavar="TARGET...")
@click.option("--force", is_flag=True, help="As if the targets were to be built again.")
@click.option("--arg", "arguments", multiple=True, metavar="NAME=JSON", help="An argument for the stages. Can be repeated.")
@json_option
@click.pass_obj
def plan_command(session: Session, targets: tuple[str, ...], force: bool, arguments: tuple[str, ...]) -> int:
    """Say what `build --keep-going` would build for TARGETs, dependencies first, and why. Nothing is built.

    Below what would be built stands the first thing in which it differs from the nearest older realization; at the end, how much is to be
    built, and how long that took before. What is sure to fail is told as `build` tells it, with the same exit status.
    """
    from pylightnix.remote import realize_closure
    from pylightnix_client.failures import EXIT_BUILD_FAILED
    from pylightnix_client.planned import dry_run
    from pylightnix_client.resolve import instantiate_targets
    from pylightnix_client.target import parse_arguments, parse_target
    from pylightnix_client.telling import tell_failures, tell_plan

    parsed, values = [parse_target(target) for target in targets], parse_arguments(arguments)
    S, answers = session.settings(), session.answers
    answers.divert()
    _, closure = instantiate_targets(parsed, values, S, force=force)
    outcome = dry_run(realize_closure, closure, force_rebuild=force, keep_going=True)
    tell_plan(answers, outcome, closure, S, force)
    if not answers.as_json:
        tell_failures(outcome, {})
    return EXIT_BUILD_FAILED if outcome.failed else 0


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
    from pylightnix_client.telling import why_sentence
    from pylightnix_client.why import Comparing

    S = session.settings()
    found = resolve_reference(ref, S, unbuilt=True)
    comparing = Comparing(S)
    answer = comparing.realization(RRef(found)) if isrref(found) else comparing.derivation(DRef(found))
    if session.answers.as_json:
        session.answers.object("why-rebuild", ref=answer.ref, older=answer.older, why=answer.reason)
    else:
        session.answers.text(why_sentence(answer))
