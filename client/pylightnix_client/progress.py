"""Watching a build: each event becomes a line for people, or a JSON object for programs.

No line carries an RRef, for events come before results are durable; the messages of failures, which
may name some, come with the result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Optional

from pylightnix.display import called
from pylightnix.errors import PylightnixException
from pylightnix.events import (
    BuildFailed,
    BuildFinished,
    BuildJoined,
    BuildSkipped,
    BuildStarted,
    BuildWaiting,
    Event,
)
from pylightnix.protocol import messages as m
from pylightnix.protocol.errors import TooMany
from pylightnix.types import DRef
from pylightnix_client.log_ends import LogEnd, tell_log_end
from pylightnix_client.onlooker import Onlooker
from pylightnix_client.operation import Happening
from pylightnix_client.output import Answers, note
from pylightnix_client.plain import plain_line
from pylightnix_client.session import waiting_text

__all__ = [
    "INTERRUPTED",
    "JsonProgress",
    "Progress",
    "TextProgress",
    "event_fields",
    "human_seconds",
    "told_again",
    "told_missed",
    "told_waits",
]

INTERRUPTED: Final = "interrupted: cancelling what was asked for, what was finished is kept; press Ctrl-C again to leave at once"
_NAMED: Final = 3
"""How many builds are named in a line."""


def human_seconds(seconds: float) -> str:
    """Return a duration as people say it: ``1.2 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def told_again(error: PylightnixException) -> str:
    """Return what people are told when a daemon's successor is asked."""
    from pylightnix.protocol.errors import Draining

    return f"the daemon {'is stopping' if isinstance(error, Draining) else 'has gone'}; asking again"


def told_waits(who: str) -> str:
    """Return what people are told while others hold the store."""
    return f"waiting for {plain_line(who)}, which holds the store"


def told_missed(events: int) -> str:
    """Return what people are told of events that they were not."""
    return f"{events} {'event was' if events == 1 else 'events were'} left out above: they came faster than they were taken"


def event_fields(event: Event) -> dict[str, Any]:
    """Return an event as a JSON object, its kind included."""
    if isinstance(event, BuildWaiting):
        return {"kind": "build-waiting", "dref": event.dref, "holders": list(event.holders)}
    if isinstance(event, BuildStarted):
        return {"kind": "build-started", "dref": event.dref, "done": event.done, "total": event.total}
    if isinstance(event, BuildFinished):
        return {"kind": "build-finished", "dref": event.dref, "seconds": round(event.seconds, 6)}
    if isinstance(event, BuildJoined):
        return {"kind": "build-joined", "dref": event.dref}
    if isinstance(event, BuildFailed):
        from pylightnix_client.failures import failure_code

        return {"kind": "build-failed", "dref": event.dref, "code": failure_code(event.error)}
    if isinstance(event, BuildSkipped):
        return {"kind": "build-skipped", "dref": event.dref, "because": event.because}
    raise AssertionError(f"BUG: {type(event).__name__} has no form as an object; logs are told in their own way")


def _no_logs(failed: list[DRef]) -> Mapping[DRef, LogEnd]:
    """Return nothing, where nobody knows any log."""
    return {}


class Progress(Onlooker):
    """What all ways of showing progress have in common: they remember which build was whose.

    Attributes:
        builds: each derivation that a daemon began to build, with the build's name.
        ends_of_logs: asked for how the log of a build ends that has just failed, by derivation.
        told: those of which the end of the log was told when they failed.
    """

    def __init__(self) -> None:
        self.builds: dict[DRef, str] = {}
        self.ends_of_logs: Callable[[list[DRef]], Mapping[DRef, LogEnd]] = _no_logs
        self.told: set[DRef] = set()
        self._asks_again = False

    def log_end(self, dref: DRef) -> Optional[LogEnd]:
        """Return how the log of a build ends that has just failed; it is to be told now, and not again."""
        found = self.ends_of_logs([dref]).get(dref)
        if found is not None:
            self.told.add(dref)
        return found

    def begin(self, attached: m.Attached, builds: Sequence[m.BuildLine]) -> None:
        """Take in where an operation is that others began, and which builds of it run."""
        self.builds.update((DRef(line.dref), line.build) for line in builds)

    def again(self, error: PylightnixException) -> None:
        """Learn that the daemon went away, or will, and that the same is asked again; told once until something happens."""
        if not self._asks_again and not isinstance(error, TooMany):
            self._asks_again = True
            self.asks_again(error)

    def asks_again(self, error: PylightnixException) -> None:
        """Say that the same is asked again."""

    def waits(self, who: str) -> None:
        """Say who holds the store, which must let it go before a daemon can have it."""

    def hear(self, happening: Happening) -> None:
        """Take in what the daemon says."""
        self._asks_again = False
        if isinstance(happening, m.Event) and happening.phase == "start" and happening.dref is not None and happening.build is not None:
            self.builds[DRef(happening.dref)] = happening.build


class JsonProgress(Progress):
    """Writes events as JSON objects to standard output."""

    def __init__(self, answers: Answers) -> None:
        super().__init__()
        self._answers = answers
        self._heard = True

    def __call__(self, event: Event) -> None:
        log = self.log_end(event.dref) if isinstance(event, BuildFailed) else None
        self._tell({**event_fields(event), **(log.fields() if log else {})})

    def hear(self, happening: Happening) -> None:
        """Take in what the daemon says."""
        super().hear(happening)
        if isinstance(happening, m.Event) and happening.fetch is not None:
            import msgspec

            self._tell({"kind": "fetching", "dref": happening.dref, "phase": happening.phase, **msgspec.to_builtins(happening.fetch)})

    def begin(self, attached: m.Attached, builds: Sequence[m.BuildLine]) -> None:
        """Say where an operation is that others began."""
        super().begin(attached, builds)
        self._tell({"kind": "attached", "done": attached.done, "total": attached.total})

    def waits(self, who: str) -> None:
        """Say who holds the store."""
        self._tell({"kind": "waiting", "for": who})

    def asks_again(self, error: PylightnixException) -> None:
        """Say that the same is asked again."""
        self._tell({"kind": "asking-again", "code": error.code})

    def missed(self, events: int) -> None:
        """Say how many events were left out."""
        self._tell({"kind": "missed", "events": events})

    def queued(self, refusal: TooMany) -> None:
        """Say that a free connection is waited for."""
        self._tell({"kind": "queued", "code": refusal.code, "limit": refusal.limit})

    def interrupted(self) -> None:
        """Say that the operation is being cancelled."""
        self._tell({"kind": "cancelling"})

    def _tell(self, fields: dict[str, Any]) -> None:
        if not self._heard:
            return
        try:
            self._answers.object(fields.pop("kind"), **fields)
        except BrokenPipeError:
            # The reader is gone. The build goes on, for its work is kept; the result will find nobody either.
            self._heard = False


class TextProgress(Progress):
    """Writes events as lines to standard error. What was skipped is told at the end, with the reasons."""

    def __init__(self) -> None:
        super().__init__()
        self._places: dict[str, str] = {}  # through a daemon, several are built at a time
        self._fetches: dict[str, str] = {}  # what was told last of each fetch

    def __call__(self, event: Event) -> None:
        name = called(event.dref)
        if isinstance(event, BuildStarted):
            width = len(str(event.total))
            place = self._places[event.dref] = f"[{event.done + 1:>{width}}/{event.total}] "
            note(f"building {name} …", place, "cyan")
        elif isinstance(event, BuildFinished):
            note(f"{name}: done in {human_seconds(event.seconds)}", self._places.get(event.dref, ""), "cyan")
        elif isinstance(event, BuildWaiting):
            who = ", ".join(event.holders) or "another process"
            note(f"{name}: waiting, the same is being built by {who}")
        elif isinstance(event, BuildJoined):
            note(f"{name}: another process has built it")
        elif isinstance(event, BuildFailed):
            note(f"{name}: failed", self._places.get(event.dref, ""), "red")
            log = self.log_end(event.dref)
            if log is not None:
                tell_log_end(name, log)

    def hear(self, happening: Happening) -> None:
        """Take in what the daemon says. Of a fetch only its mirrors are told, and what it waits for: lines stay."""
        super().hear(happening)
        if isinstance(happening, m.Event) and happening.fetch is not None and happening.dref is not None and happening.phase != "stop":
            fetch = happening.fetch
            told = plain_line(fetch.waiting or (f"fetching {fetch.mirror}" if fetch.mirror else ""))
            if told and self._fetches.get(happening.dref) != told:
                self._fetches[happening.dref] = told
                note(f"{called(happening.dref)}: {told}", self._places.get(happening.dref, ""))

    def begin(self, attached: m.Attached, builds: Sequence[m.BuildLine]) -> None:
        """Say where an operation is that others began."""
        super().begin(attached, builds)
        now = time.time()
        running = [f"{called(DRef(line.dref))} for {human_seconds(max(0.0, now - line.started))}" for line in builds if line.started]
        said = [f"building {', '.join(running[:_NAMED])}{' …' if len(running) > _NAMED else ''}"] if running else []
        note(", ".join([f"{attached.done}/{attached.total} done", *said]))

    def waits(self, who: str) -> None:
        """Say who holds the store."""
        note(told_waits(who))

    def asks_again(self, error: PylightnixException) -> None:
        """Say that the same is asked again."""
        note(told_again(error))

    def missed(self, events: int) -> None:
        """Say how many events were left out."""
        note(told_missed(events))

    def queued(self, refusal: TooMany) -> None:
        """Say that a free connection is waited for."""
        note(waiting_text(refusal))

    def interrupted(self) -> None:
        """Say that the operation is being cancelled."""
        note(INTERRUPTED)
