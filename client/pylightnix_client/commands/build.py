"""The command `build`: realizes targets, tells what happens, and says what came out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Optional

import click

from pylightnix_client.parameters import TargetType, json_option
from pylightnix_client.session import Session

if TYPE_CHECKING:
    from pylightnix.embedded import Outcome
    from pylightnix.types import Closure, DRef, RRef, StorageSettings
    from pylightnix_client.log_ends import LogEnd
    from pylightnix_client.output import Answers
    from pylightnix_client.progress import Progress

__all__ = ["build_command"]


_EPILOG = """\b
Targets:
  FILE.py               the only stage of a file, else the one called main
  FILE.py:STAGE         a stage of a file
  PACKAGE.MODULE        as of a file
  PACKAGE.MODULE:STAGE  a stage of a module
  REF                   a derivation that the store knows: dref:..., digits of its hash, its name, a path in the store
"""


@click.command("build", epilog=_EPILOG)
@click.argument("targets", type=TargetType(), nargs=-1, required=True, metavar="TARGET...")
@click.option("--dry-run", is_flag=True, help="Say what would be built and why, and build nothing.")
@click.option("--keep-going", is_flag=True, help="After a failure, go on with what does not depend on it.")
@click.option("--force", is_flag=True, help="Build the targets again even if they are realized.")
@click.option(
    "--out-link",
    metavar="PATH",
    type=click.Path(),
    help="Make PATH a link to what was realized; further realizations get PATH-2, PATH-3 and so on.",
)
@click.option(
    "--jobs",
    "-j",
    type=click.IntRange(1),
    metavar="N",
    help="How many builds of this command may go on at a time.  [default: the number of CPUs]",
)
@click.option("--no-daemon", is_flag=True, help="Build in this process, one after the other; for debuggers.")
@click.option("--arg", "arguments", multiple=True, metavar="NAME=JSON", help="An argument for the stages. Can be repeated.")
@json_option
@click.pass_obj
def build_command(
    session: Session,
    targets: tuple[str, ...],
    dry_run: bool,
    keep_going: bool,
    force: bool,
    out_link: Optional[str],
    jobs: Optional[int],
    no_daemon: bool,
    arguments: tuple[str, ...],
) -> int:
    """Realize TARGETs and print their realizations, each with its folder after a tab.

    What is realized already is not built again. The store's daemon builds; if there is none, one is started, and ends
    by itself. Progress, and whatever stages print, go to standard error.
    """
    from pylightnix_client.log_ends import ends_of_logs
    from pylightnix_client.outlink import check_out_link
    from pylightnix_client.resolve import instantiate_targets
    from pylightnix_client.showing import showing
    from pylightnix_client.target import parse_arguments, parse_target

    if dry_run and out_link is not None:
        raise click.UsageError("--out-link needs something that is built; leave out --dry-run")
    if no_daemon and session.socket is not None:
        raise click.UsageError("--socket names a daemon, and --no-daemon wants none; give one of them")
    if no_daemon and jobs is not None:
        raise click.UsageError("--no-daemon builds one after the other; leave out --jobs")
    parsed = [parse_target(target) for target in targets]
    values = parse_arguments(arguments)
    if out_link is not None:
        check_out_link(out_link)  # now, rather than after an hour of building
    S = session.settings()
    answers = session.answers
    answers.divert()
    _, closure = instantiate_targets(parsed, values, S, force=force)
    # Users' code in this process shares the terminal: a display that draws would be in its way.
    with showing(answers, live=not (no_daemon or dry_run)) as progress:
        progress.ends_of_logs = lambda failed: ends_of_logs(session, failed, progress.builds)
        wishes = {"force_rebuild": force, "keep_going": keep_going, "observe": progress}
        outcome = _realize(closure, S, jobs, no_daemon, dry_run, wishes, progress)
    logs = ends_of_logs(session, [dref for dref, _ in outcome.failed], progress.builds)
    return _conclude(answers, outcome, closure, S, logs, told=progress.told, dry_run=dry_run, force=force, out_link=out_link)


def _realize(
    closure: Closure,
    S: StorageSettings,
    jobs: Optional[int],
    no_daemon: bool,
    is_dry: bool,
    wishes: dict[str, Any],
    progress: Progress,
) -> Outcome:
    from pylightnix.remote import here_only, realize_closure
    from pylightnix_client.planned import dry_run
    from pylightnix_client.starting import daemon_at

    if no_daemon:
        from pylightnix import embedded

        with here_only("building in this process (--no-daemon)"):
            return dry_run(embedded.realize_closure, closure, **wishes) if is_dry else embedded.realize_closure(closure, **wishes)
    if is_dry:
        return dry_run(realize_closure, closure, **wishes)  # which needs no daemon, and is not worth starting one
    return realize_closure(closure, find=lambda layout: daemon_at(S, jobs, progress.waits), jobs=jobs, again=progress.again, **wishes)


def _conclude(
    answers: Answers,
    outcome: Outcome,
    closure: Closure,
    S: StorageSettings,
    logs: Mapping[DRef, LogEnd],
    *,
    told: Collection[DRef],
    dry_run: bool,
    force: bool,
    out_link: Optional[str],
) -> int:
    from pylightnix.storage import store_layout
    from pylightnix_client.failures import EXIT_BUILD_FAILED
    from pylightnix_client.outlink import put_out_links
    from pylightnix_client.telling import tell_plan

    if dry_run:
        tell_plan(answers, outcome, closure, S, force)
    realized = _realized(outcome, closure)
    folders = [store_layout(S).realization(rref) for rref in realized]
    # Links stand for a whole result: with some targets missing, the numbers would mean something else.
    links = put_out_links(out_link, folders) if out_link is not None and not outcome.failed else []
    if answers.as_json:
        answers.object("result", **_result_fields(outcome, realized, links, logs))
    else:
        if not dry_run:
            for rref, folder in zip(realized, folders, strict=True):
                answers.text(f"{rref}\t{folder}")
        _tell_end(outcome, {dref: log for dref, log in logs.items() if dref not in told}, dry_run)
    return EXIT_BUILD_FAILED if outcome.failed else 0


def _realized(outcome: Outcome, closure: Closure) -> list[RRef]:
    """Return the realizations of the targets, in their order, each once."""
    found = [rref for target in closure.targets for rref in outcome.context.get(target) or []]
    return list(dict.fromkeys(found))


def _result_fields(outcome: Outcome, realized: list[RRef], links: list[str], logs: Mapping[DRef, LogEnd]) -> dict[str, Any]:
    from pylightnix_client.failures import build_report

    def fields(dref: DRef, error: BaseException) -> dict[str, Any]:
        return {"dref": dref, **build_report(error).fields(), **(logs[dref].fields() if dref in logs else {})}

    return {
        "ok": not outcome.failed,
        "realized": realized,
        "built": len(outcome.built),
        "joined": len(outcome.joined),
        "reused": len(outcome.reused),
        "failed": [fields(dref, error) for dref, error in outcome.failed],
        "skipped": [{"dref": dref, "because": because} for dref, because in outcome.skipped],
        "links": links,
    }


def _tell_end(outcome: Outcome, logs: Mapping[DRef, LogEnd], dry_run: bool) -> None:
    from pylightnix_client.output import note
    from pylightnix_client.telling import tell_failures

    tell_failures(outcome, logs)
    if dry_run:
        return  # its steps say the rest
    for dref, because in outcome.skipped:
        note(f"skipped {dref}, because {because} failed")
    counts = {
        "failed": len(outcome.failed),
        "skipped": len(outcome.skipped),
        "built": len(outcome.built),
        "joined": len(outcome.joined),
        "reused": len(outcome.reused),
    }
    note(", ".join(f"{count} {what}" for what, count in counts.items() if count))
