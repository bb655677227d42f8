"""The command `log`: prints what a build wrote, whichever daemon of the store ran it."""

from __future__ import annotations

import codecs
import re
import time
from typing import TYPE_CHECKING, Final, Optional, Union

import click

from pylightnix_client.parameters import LogType, json_option
from pylightnix_client.session import Session

if TYPE_CHECKING:
    from pylightnix.protocol import messages as m
    from pylightnix_client.client import Client
    from pylightnix_client.output import Answers
    from pylightnix_client.stored_logs import StoredLogs

__all__ = ["log_command"]

_FOLLOW_SECONDS: Final = 0.2
"""How often a log that is still written is read again."""
_PIECE_BYTES: Final = 1 << 20
_BUILD: Final = re.compile(r"b-[0-9a-z]{2,}|[0-9a-f]{12,20}-b[0-9]+", re.ASCII)
"""The names of builds, and how they begin. The second kind is that of earlier versions."""


@click.command("log")
@click.argument("ref", type=LogType("dref", "rref"), metavar="REF")
@click.option("--follow", "-f", is_flag=True, help="Go on until the build ends.")
@click.option("--raw", is_flag=True, help="On a terminal, too, print every byte as it was written.")
@json_option
@click.pass_obj
def log_command(session: Session, ref: str, follow: bool, raw: bool) -> None:
    """Print what the build REF wrote.

    REF is a build's name, as `ps` has it; a realization, for the build that made it; or a derivation or a stage, for its latest build.
    A terminal gets escape sequences and the like spelt out, for they are the build's words; --raw sends them. A pipe or a file gets every
    byte as it was written.
    Logs are there while no daemon runs, too. With --follow the exit status is 75 if the daemon goes away in the middle of the build.
    """
    from pylightnix_client.errors import DaemonGone, DaemonLeft, NoDaemon

    try:
        client = session.connect()
    except NoDaemon:
        if session.socket is not None:
            raise
        _print_stored(session, ref, raw)
        return
    with client:
        printer = _Printer(client, session.answers, raw)
        try:
            ref = _subject(session, client, ref)
            running = printer.print_log(ref, follow)
            is_whole = running is None or not _was_interrupted(client, running)
        except DaemonGone as error:
            if follow:
                raise DaemonLeft(client.path, f"the log of {ref}", session.own_command("ps")) from error
            if session.socket is not None or not printer.is_empty:
                raise
            _print_stored(session, ref, raw)  # it ended just now
            return
        if not is_whole:
            raise DaemonLeft(client.path, f"the build {ref}", session.own_command("ps"))


def _print_stored(session: Session, ref: str, raw: bool) -> None:
    from pylightnix_client.stored_logs import StoredLogs

    stored = StoredLogs(session.settings())
    _Printer(stored, session.answers, raw).print_log(_subject(session, stored, ref), follow=False)


def _subject(session: Session, logs: Union[Client, StoredLogs], text: str) -> str:
    """Return the build, derivation or realization that `text` names."""
    from pylightnix.protocol.errors import MissingLog
    from pylightnix_client.errors import NoSuchReference
    from pylightnix_client.references import resolve_reference

    if not _BUILD.fullmatch(text):
        return str(resolve_reference(text, session.settings(), unbuilt=True))
    try:
        return logs.log(text, 0, 1).build
    except MissingLog as error:
        try:
            return str(resolve_reference(text, session.settings(), unbuilt=True))  # a stage, perhaps
        except NoSuchReference:
            raise error from None


class _Printer:
    """Prints one log, piece by piece.

    Attributes:
        is_empty: whether nothing of it was printed yet.
    """

    def __init__(self, logs: Union[Client, StoredLogs], answers: Answers, raw: bool) -> None:
        from pylightnix_client.plain import ShownBytes

        self._shown = ShownBytes() if answers.on_terminal() and not raw else None
        self._logs, self._answers = logs, answers
        self._text = codecs.getincrementaldecoder("utf-8")("surrogateescape")  # a piece may end within a character
        self.is_empty = True

    def print_log(self, ref: str, follow: bool) -> Optional[m.BuildLine]:
        """Print a log to its end, or to where it is now. Return the build if it was seen running."""
        offset, running = 0, None
        while True:
            found = self._logs.log(ref, offset, _PIECE_BYTES)
            ref, offset = found.build, found.next  # a later build of the same must not be mixed into this log
            if follow and running is None and not found.finished:
                running = self._running(ref)
            is_last = not found.data and (found.finished or not follow)
            self._print(found.build, found.data, is_last)
            if is_last:
                return running
            if not found.data:
                time.sleep(_FOLLOW_SECONDS)

    def _running(self, build: str) -> Optional[m.BuildLine]:
        from pylightnix_client.client import Client

        builds = self._logs.ps().builds if isinstance(self._logs, Client) else []
        return next((line for line in builds if line.build == build), None)

    def _print(self, build: str, data: bytes, is_last: bool) -> None:
        if not self._answers.as_json:
            self._answers.raw(data if self._shown is None else self._shown.take(data, is_last=is_last))
            self.is_empty = self.is_empty and not data
            return
        text = self._text.decode(data, is_last)
        if text or (is_last and self.is_empty):
            self._answers.object("log", build=build, text=text)
            self.is_empty = False


def _was_interrupted(client: Client, build: m.BuildLine) -> bool:
    """Tell whether a build that has ended did so because its daemon does, and nothing came of it."""
    from pylightnix.types import DRef

    if not client.status().draining:
        return False
    while any(line.build == build.build for line in client.ps().builds):
        time.sleep(_FOLLOW_SECONDS)  # what it made is on its way into the store
    starts = client.starts(client.rrefs("drefrrefs", DRef(build.dref)))
    return not any(started >= (build.started or 0.0) for started in starts.values())
