"""The commands that look at a daemon and what it does: `ps`, `status`, `log`, `attach`, `cancel`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import click

from pylightnix_client.parameters import json_option
from pylightnix_client.session import Session

if TYPE_CHECKING:
    from pylightnix.protocol import messages as m
    from pylightnix_client.client import Client
    from pylightnix_client.operation import Operation
    from pylightnix_client.output import Answers

__all__ = ["attach_command", "cancel_command", "log_command", "ps_command", "status_command"]

_FOLLOW_SECONDS: Final = 0.2
"""How often a log that is still written is read again."""


def _connect(session: Session) -> Client:
    from pylightnix.storage import store_layout
    from pylightnix_client.client import Client

    return Client.connect(store_layout(session.settings()))


def _fields(message: m.Message) -> dict[str, object]:
    import msgspec

    found: dict[str, object] = msgspec.structs.asdict(message)
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
    with _connect(session) as client:
        found = client.ps()
    answers = session.answers
    if answers.as_json:
        for operation in found.operations:
            answers.object("operation", **_fields(operation))
        for build in found.builds:
            answers.object("build", **_fields(build))
        return
    for line in _ps_lines(found):
        answers.text(line)


def _ps_lines(found: m.Processes) -> Iterator[str]:
    for operation in found.operations:
        done = f"{operation.done}/{operation.total}"
        yield f"operation {operation.operation}  {operation.state}  {done}  {operation.user}  {_shown(operation.targets)}"
    for build in found.builds:
        what = f"process {build.pid} since {_clock(build.started)}" if build.pid else build.waiting_for
        yield f"build     {build.build}  {build.state}  {build.dref}  {what}"


# --- status -------------------------------------------------------------------------------------------


@click.command("status")
@json_option
@click.pass_obj
def status_command(session: Session) -> None:
    """Tell how the store's daemon is: what runs, what waits, how long it is up."""
    from pylightnix_client.progress import human_seconds

    with _connect(session) as client:
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
@click.argument("ref", metavar="REF")
@click.option("--follow", "-f", is_flag=True, help="Go on until the build ends.")
@json_option
@click.pass_obj
def log_command(session: Session, ref: str, follow: bool) -> None:
    """Print what the build REF wrote: a build's name, or the derivation or realization that it built."""
    import time

    from pylightnix.refs import isdref, isrref
    from pylightnix_client.references import resolve_reference

    with _connect(session) as client:
        # A build's name is never a path; the beginning of a reference may be given with its kind.
        if ref.startswith(("dref:", "rref:")) and not (isdref(ref) or isrref(ref)):
            ref = str(resolve_reference(ref, session.settings()))
        offset = 0
        while True:
            found = client.log(ref, offset)
            ref = found.build  # a later build of the same must not be mixed into this log
            offset = found.next
            if found.data:
                _tell_log(session.answers, found.build, found.data)
            elif found.finished or not follow:
                return
            else:
                time.sleep(_FOLLOW_SECONDS)


def _tell_log(answers: Answers, build: str, data: bytes) -> None:
    if answers.as_json:
        answers.object("log", build=build, text=data.decode("utf-8", "surrogateescape"))
    else:
        answers.raw(data)


# --- attach and cancel --------------------------------------------------------------------------------


@click.command("attach")
@click.argument("operation", metavar="OP")
@json_option
@click.pass_obj
def attach_command(session: Session, operation: str) -> int:
    """Watch the operation OP until it ends, as if it had been started here. Ctrl-C leaves it alone.

    The exit status is 1 if something in it failed.
    """
    from pylightnix_client.failures import EXIT_BUILD_FAILED

    with _connect(session) as client:
        found = client.attach(operation)
        _watch(session.answers, found)
        result = found.wait()
        failed = [] if result.ok else _failures(client, operation)
    if session.answers.as_json:
        session.answers.object("ended", operation=operation, **_fields(result))
    else:
        _tell_ended(result, failed)
    return 0 if result.ok else EXIT_BUILD_FAILED


def _watch(answers: Answers, operation: Operation) -> None:
    from pylightnix.protocol import messages as m
    from pylightnix_client.progress import JsonProgress, TextProgress
    from pylightnix_client.realizing import Spans

    observe = JsonProgress(answers) if answers.as_json else TextProgress()
    spans = Spans()
    for happening in operation.events():
        event = spans.event(happening) if isinstance(happening, m.Event) else None
        if event is not None:
            observe(event)


def _failures(client: Client, operation: str) -> list[str]:
    from pylightnix.protocol import messages as m
    from pylightnix_client.outcomes import parts

    rows = client.carry(parts(operation, "failed"))
    return [row.message for row in rows if isinstance(row, m.FailedRow)]


def _tell_ended(result: m.WaitResult, failed: list[str]) -> None:
    from pylightnix_client.output import note

    for message in failed:
        note(message, "error: ", "red")
    counts = {what: getattr(result, what) for what in ("failed", "skipped", "built", "joined", "reused")}
    note(", ".join(f"{count} {what}" for what, count in counts.items() if count) or "nothing was to be done")


@click.command("cancel")
@click.argument("operation", metavar="OP")
@json_option
@click.pass_obj
def cancel_command(session: Session, operation: str) -> None:
    """End the operation OP. What it had built is kept, and builds that others want go on."""
    with _connect(session) as client:
        client.cancel(operation)
    if session.answers.as_json:
        session.answers.object("cancelled", operation=operation)
