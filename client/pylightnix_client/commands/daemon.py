"""The commands that look at a daemon and what it does: `ps`, `status`, `log`, `attach`, `cancel`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Optional

import click

from pylightnix_client.parameters import LogType, OperationType, json_option
from pylightnix_client.session import Session

if TYPE_CHECKING:
    from pylightnix.protocol import messages as m
    from pylightnix.types import DRef
    from pylightnix_client.client import Client
    from pylightnix_client.log_ends import LogEnd
    from pylightnix_client.operation import Operation
    from pylightnix_client.output import Answers
    from pylightnix_client.progress import Progress

__all__ = ["attach_command", "cancel_command", "log_command", "ps_command", "status_command"]

_FOLLOW_SECONDS: Final = 0.2
"""How often a log that is still written is read again."""


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
    from pylightnix_client.progress import human_seconds

    with session.connect() as client:
        found, path = client.status(), client.path
    if session.answers.as_json:
        session.answers.object("status", socket=path, **_fields(found))
        return
    for label, value in (
        ("daemon", f"{found.version}, process {found.pid}, up {human_seconds(found.uptime_seconds)}"),
        ("state", "ending, takes nothing new" if found.draining else "serving"),
        ("store", found.store),
        ("socket", path),
        ("operations", str(found.operations)),
        ("builds", f"{found.busy} running on {found.slots} slots, {found.queued} waiting"),
        ("workers", str(found.workers)),
    ):
        session.answers.text(f"{label:<11} {value}")


# --- log ----------------------------------------------------------------------------------------------


@click.command("log")
@click.argument("ref", type=LogType("dref", "rref"), metavar="REF")
@click.option("--follow", "-f", is_flag=True, help="Go on until the build ends.")
@json_option
@click.pass_obj
def log_command(session: Session, ref: str, follow: bool) -> None:
    """Print what the build REF wrote: a build's name, or the derivation or realization that it built.

    With --follow the exit status is 75 if the daemon goes away in the middle of the build.
    """
    from pylightnix.refs import isdref, isrref
    from pylightnix_client.errors import DaemonGone, DaemonLeft
    from pylightnix_client.references import resolve_reference

    with _log_keeper(session) as client:
        # A build's name is never a path; the beginning of a reference may be given with its kind.
        if ref.startswith(("dref:", "rref:")) and not (isdref(ref) or isrref(ref)):
            ref = str(resolve_reference(ref, session.settings()))
        try:
            is_whole = _print_log(client, session.answers, ref, follow)
        except DaemonGone as error:
            if not follow:
                raise
            raise DaemonLeft(client.path, f"the log of {ref}", session.own_command("ps")) from error
        if not is_whole:
            raise DaemonLeft(client.path, f"the build {ref}", session.own_command("ps"))


def _print_log(client: Client, answers: Answers, ref: str, follow: bool) -> bool:
    """Print a log to its end, or to where it is now; tell whether that was not a daemon's end in the middle of the build."""
    import time

    offset, running = 0, None
    while True:
        found = client.log(ref, offset)
        ref = found.build  # a later build of the same must not be mixed into this log
        offset = found.next
        if follow and running is None and not found.finished:
            running = next((line for line in client.ps().builds if line.build == ref), None)
        if found.data:
            _tell_log(answers, found.build, found.data)
        elif found.finished or not follow:
            return running is None or not _was_interrupted(client, running)
        else:
            time.sleep(_FOLLOW_SECONDS)


def _was_interrupted(client: Client, build: m.BuildLine) -> bool:
    """Tell whether a build that has ended did so because its daemon does, and nothing came of it."""
    import time

    from pylightnix.types import DRef

    if not client.status().draining:
        return False
    while any(line.build == build.build for line in client.ps().builds):
        time.sleep(_FOLLOW_SECONDS)  # what it made is on its way into the store
    starts = client.starts(client.rrefs("drefrrefs", DRef(build.dref)))
    return not any(started >= (build.started or 0.0) for started in starts.values())


def _log_keeper(session: Session) -> Client:
    """Connect to the store's daemon; start one for what earlier ones have left, if there is any."""
    import os

    from pylightnix.storage import store_layout
    from pylightnix_client.errors import NoDaemon
    from pylightnix_client.starting import daemon_at

    try:
        return session.connect()
    except NoDaemon:
        S = session.settings()
        if session.socket is not None or not os.path.isdir(os.path.join(store_layout(S).state, "logs")):
            raise
        daemon_at(S)
        return session.connect()


def _tell_log(answers: Answers, build: str, data: bytes) -> None:
    if answers.as_json:
        answers.object("log", build=build, text=data.decode("utf-8", "surrogateescape"))
    else:
        answers.raw(data)


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
        gone = DaemonLeft(client.path, f"the operation {operation}", session.own_command("ps"))
        found = client.attach(operation)
        try:
            with showing(session.answers, live=True) as progress:
                _watch(client, found, progress)
                result = found.wait()
            failed = [] if result.ok else _failures(client, operation)
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
        _tell_ended(result, failed, logs)
    return 0 if result.ok else EXIT_BUILD_FAILED


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
        client.cancel(operation)
    if session.answers.as_json:
        session.answers.object("cancelled", operation=operation)
