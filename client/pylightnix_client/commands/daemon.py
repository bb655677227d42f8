"""The commands that look at a daemon and what it does: `ps`, `status`, `attach`, `cancel`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Optional

import click

from pylightnix_client.parameters import OperationType, json_option
from pylightnix_client.session import Session

if TYPE_CHECKING:
    from pylightnix.protocol import messages as m
    from pylightnix.types import DRef
    from pylightnix_client.client import Client
    from pylightnix_client.log_ends import LogEnd
    from pylightnix_client.operation import Operation
    from pylightnix_client.progress import Progress

__all__ = ["attach_command", "cancel_command", "ps_command", "status_command"]


_OPERATION: Final = re.compile(r"op-[0-9a-z]+|[0-9a-f]{12,20}-[0-9]+", re.ASCII)
"""The names of operations. The second kind is that of earlier versions."""


def _fields(message: m.Message) -> dict[str, object]:
    import msgspec

    found: dict[str, object] = msgspec.to_builtins(message)
    return found


def _clock(seconds: float | None) -> str:
    return "-" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _shown(drefs: list[str]) -> str:
    return " ".join(drefs[:3]) + (f" and {len(drefs) - 3} more" if len(drefs) > 3 else "")


# --- ps -----------------------------------------------------------------------------------------------


@click.command("ps")
@json_option
@click.pass_obj
def ps_command(session: Session) -> None:
    """List the operations that the store's daemon is at, and the builds that run or wait."""
    from pylightnix_client.output import note

    with session.connect() as client:
        found = client.ps()
    answers = session.answers
    if answers.as_json:
        for operation in found.operations:
            answers.object("operation", **_fields(operation))
        for build in found.builds:
            answers.object("build", **_fields(build))
        if found.more_builds:
            answers.object("more-builds", count=found.more_builds)
        for gone in found.given_up:
            answers.object("given-up", **_fields(gone))
        return
    lines = list(_ps_lines(found))
    for line in lines:
        answers.text(line)
    if not lines:
        note("nothing is going on")


def _ps_lines(found: m.Processes) -> Iterator[str]:
    from pylightnix.protocol import messages as m

    for operation in found.operations:
        done = f"{operation.done}/{operation.total}"
        yield f"operation {operation.operation}  {operation.state}  {done}  {operation.user}  {_shown(operation.targets)}"
    for build in found.builds:
        said = [f"process {build.pid} since {_clock(build.started)}"] if build.pid else []
        said += [f"waits for {build.waiting_for}"] if build.waiting_for else []
        said += [f"takes {amounts(build.resources)}"] if build.resources and build.resources != m.Resources(cpus=1) else []
        yield f"build     {build.build}  {build.state}  {build.dref}  {', '.join(said) or 'starts'}"
    if found.more_builds:
        yield f"… and {found.more_builds} more builds that wait"
    for gone in found.given_up:
        where = f"; may write into {gone.folder}" if gone.folder else ""
        yield f"given up  process {gone.pid} since {_clock(gone.since)}: {gone.what}, cannot be ended{where}"


def amounts(resources: m.Resources) -> str:
    """Return what a build takes, as part of a sentence."""
    from pylightnix.garb import diskspace_h

    found = [f"{resources.cpus} {'slot' if resources.cpus == 1 else 'slots'}"]
    found += [f"{diskspace_h(resources.memory).strip()} of memory"] if resources.memory else []
    for tag, number in resources.tags.items():
        devices = resources.devices.get(tag)
        found.append(f"{tag} {','.join(map(str, devices))}" if devices else f"{number} {tag}")
    return ", ".join(found)


# --- status -------------------------------------------------------------------------------------------


@click.command("status")
@json_option
@click.pass_obj
def status_command(session: Session) -> None:
    """Tell how the store's daemon is: what runs, what waits, how long it is up."""
    from pylightnix.leftovers import unremovable
    from pylightnix_client.commands.upkeep import print_unremovable
    from pylightnix_client.progress import human_seconds

    with session.connect() as client:
        found, path = client.status(), client.path
    if session.answers.as_json:
        session.answers.object("status", socket=path, **_fields(found))
        print_unremovable(session, unremovable(session.settings()))
        return
    for label, value in (
        ("daemon", f"{found.version}, process {found.pid}, up {human_seconds(found.uptime_seconds)}"),
        ("state", "ending, takes nothing new" if found.draining else "serving"),
        ("store", found.store),
        ("socket", path),
        ("operations", str(found.operations)),
        ("builds", f"{found.busy} running on {found.slots} slots, {found.queued} waiting"),
        ("workers", str(found.workers)),
        *([("given up", f"{found.given_up} processes that cannot be ended; see pylightnix ps")] if found.given_up else []),
        *_held(found.held),
    ):
        session.answers.text(f"{label:<11} {value}")
    print_unremovable(session, unremovable(session.settings()))


def _held(held: Optional[m.Held]) -> list[tuple[str, str]]:
    from pylightnix_client.progress import human_seconds

    if held is None:
        return []  # an older daemon does not say
    size = _share(held.results_bytes, held.results_bytes_max)
    return [
        ("held", f"{_share(held.operations_bytes, held.operations_bytes_max)} for operations that have not ended"),
        ("results", f"{held.results} not fetched, {size}, each for up to {human_seconds(held.results_seconds)}"),
    ]


def _share(size: int, of: int) -> str:
    from pylightnix.garb import diskspace_h

    return f"{diskspace_h(size).strip()} of {diskspace_h(of).strip()}"


# --- attach and cancel --------------------------------------------------------------------------------


@click.command("attach")
@click.argument("operation", type=OperationType(), metavar="OP")
@json_option
@click.pass_obj
def attach_command(session: Session, operation: str) -> int:
    """Watch the operation OP until it ends, as if it had been started here. Ctrl-C leaves it alone.

    The exit status is 1 if something in it failed, and 75 if the daemon goes away before its end.
    """
    from pylightnix.protocol.errors import Draining
    from pylightnix.types import DRef
    from pylightnix_client.errors import DaemonGone, DaemonLeft, LeftAlone
    from pylightnix_client.failures import EXIT_BUILD_FAILED
    from pylightnix_client.log_ends import ends_of_logs
    from pylightnix_client.showing import showing

    with session.connect() as client:
        operation = _operation_of(session, client, operation)
        gone = DaemonLeft(client.path, f"the operation {operation}", session.own_command("ps"))
        found = client.attach(operation)
        try:
            with showing(session.answers, live=True) as progress:
                progress.ends_of_logs = lambda failed: ends_of_logs(session, failed, progress.builds)
                _watch(client, found, progress)
                result = found.wait()
            failed = [] if result.ok else _failures(client, operation)
            client.say_fetched(operation)
        except DaemonGone as error:
            raise gone from error
        except KeyboardInterrupt as error:
            raise LeftAlone(operation, session.own_command("cancel", operation)) from error
    if any(row.code == Draining.code for row in failed):
        raise gone
    logs = ends_of_logs(session, [DRef(row.dref) for row in failed if row.dref is not None], progress.builds)
    if session.answers.as_json:
        rows = [_failure_fields(row, _log_of(row, logs)) for row in failed]
        session.answers.object("ended", operation=operation, **_fields(result), failures=rows)
    else:
        _tell_ended(result, failed, {dref: log for dref, log in logs.items() if dref not in progress.told})
    return 0 if result.ok else EXIT_BUILD_FAILED


def _operation_of(session: Session, client: Client, text: str) -> str:
    """Return the name of the operation that `text` names: by that, by how it begins, or by what it is to build."""
    from pylightnix.protocol.errors import NoSuchOperation
    from pylightnix.refs import isrref, rref2dref, undref
    from pylightnix_client.errors import AmbiguousReference, NoSuchReference
    from pylightnix_client.references import resolve_reference

    listed = client.ps()
    lines = listed.operations
    found = [line for part in (lines, listed.ended) for line in part if line.operation.startswith(text)]
    if not found and _OPERATION.fullmatch(text):
        return text  # it has ended, and may be known still
    if not found:
        found = [line for line in lines if any(undref(target)[1] == text for target in line.targets)]
    if not found:
        try:
            ref = resolve_reference(text, session.settings(), unbuilt=True)
        except NoSuchReference as error:
            raise NoSuchOperation(text) from error
        dref = rref2dref(ref) if isrref(ref) else ref
        found = [line for line in lines if dref in line.targets]
    if not found:
        raise NoSuchOperation(f"that is to build {text}")
    if len(found) > 1:
        found.sort(key=lambda line: -(line.started or 0.0))
        raise AmbiguousReference(
            text, [f"{line.operation}  {line.state} since {_clock(line.started)}  {_shown(line.targets)}" for line in found]
        )
    return found[0].operation


def _watch(client: Client, operation: Operation, progress: Progress) -> None:
    from pylightnix.types import DRef
    from pylightnix_client.realizing import Spans, watch

    running = [line for line in client.ps().builds if operation.id in line.operations]
    if operation.attached is not None:
        progress.begin(operation.attached, running)
    watch(operation, Spans({DRef(line.dref): line.started for line in running if line.started is not None}), progress)


def _failures(client: Client, operation: str) -> list[m.FailedRow]:
    from pylightnix.protocol import messages as m
    from pylightnix_client.outcomes import parts

    return [row for row in client.carry(parts(operation, "failed")) if isinstance(row, m.FailedRow)]


def _log_of(row: m.FailedRow, logs: Mapping[DRef, LogEnd]) -> Optional[LogEnd]:
    return next((log for dref, log in logs.items() if dref == row.dref), None)


def _failure_fields(row: m.FailedRow, log: Optional[LogEnd]) -> dict[str, object]:
    from pylightnix.protocol.errors_on_wire import error_from_failed_row
    from pylightnix_client.failures import failure_code

    code = failure_code(error_from_failed_row(row)) if row.dref is not None else row.code
    return {"dref": row.dref, "code": code, "message": row.message, **(log.fields() if log else {})}


def _tell_ended(result: m.WaitResult, failed: list[m.FailedRow], logs: Mapping[DRef, LogEnd]) -> None:
    from pylightnix.refs import undref
    from pylightnix_client.log_ends import tell_log_end
    from pylightnix_client.output import note

    for row in failed:
        log = _log_of(row, logs)
        if log is not None and row.dref is not None:
            tell_log_end(undref(row.dref)[1], log)
        note(row.message, "error: ", "red")
    counts = {what: getattr(result, what) for what in ("failed", "skipped", "built", "joined", "reused")}
    note(", ".join(f"{count} {what}" for what, count in counts.items() if count) or "nothing was to be done")


@click.command("cancel")
@click.argument("operation", type=OperationType(), metavar="OP")
@json_option
@click.pass_obj
def cancel_command(session: Session, operation: str) -> None:
    """End the operation OP. What it had built is kept, and builds that others want go on."""
    with session.connect() as client:
        operation = _operation_of(session, client, operation)
        client.cancel(operation)
    if session.answers.as_json:
        session.answers.object("cancelled", operation=operation)
