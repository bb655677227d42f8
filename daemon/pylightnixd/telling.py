"""What an operation tells those who watch it: spans of time, as typed events.

A build is one span, from its start to its outputs being in place. Within it lie its fetch, and the copy: the time in
which its processes are dead and its outputs are hashed and put in place. How many builds wait, and for what, is one
span for all of them; so is the commit that makes everything durable. Must not decide anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Optional

from pylightnix.protocol.messages import Event, EventKind, EventPhase, Fetching, Resources
from pylightnix.types import DRef

__all__ = ["Telling"]


@dataclass(slots=True, eq=False)
class Telling:
    """The spans of one operation."""

    progress: Callable[[], tuple[int, int]]
    """Returns how many derivations are done, and of how many."""
    watchers: dict[int, Callable[[Event], None]] = field(default_factory=dict)
    """Who is told; none of them may await."""
    _numbers: count[int] = field(default_factory=lambda: count(1))
    _builds: dict[DRef, int] = field(default_factory=dict)
    _inside: dict[tuple[EventKind, DRef], tuple[int, str]] = field(default_factory=dict)
    """Spans within those of builds, and the names of these."""
    _wait: Optional[int] = None

    @contextmanager
    def span(self, kind: EventKind, dref: Optional[DRef] = None) -> Iterator[None]:
        """Tell of the time that the block takes."""
        number, ok = next(self._numbers), False
        self._tell(kind, "start", number, dref=dref)
        try:
            yield
            ok = True
        finally:
            self._tell(kind, "stop", number, dref=dref, ok=ok)

    # --- builds -----------------------------------------------------------------------------------------

    def build_started(self, dref: DRef, build: str, resources: Optional[Resources]) -> None:
        """Tell that a build has begun, and what it takes."""
        span = self._builds[dref] = next(self._numbers)
        self._tell("build", "start", span, dref=dref, build=build, resources=resources)

    def build_stopped(
        self, dref: DRef, *, ok: bool, text: Optional[str] = None, code: Optional[str] = None, joined: Optional[bool] = None
    ) -> None:
        """Tell what became of a build, if its start was told."""
        span = self._builds.get(dref)
        if span is not None:
            self.copy_stopped(dref, ok=ok)
            del self._builds[dref]
            self._tell("build", "stop", span, dref=dref, ok=ok, text=text, code=code, joined=joined)

    def has_build(self, dref: DRef) -> bool:
        """Whether a build has begun and not ended."""
        return dref in self._builds

    def fetching(self, dref: DRef, build: str, fetch: Fetching, phase: EventPhase) -> None:
        """Tell how far a build is that fetches; one that was under way when it was joined begins now."""
        known = ("fetch", dref) in self._inside
        if phase == "stop" and not known:
            return
        self._tell_inside("fetch", phase if known else "start", dref, build, fetch=fetch)

    def copy_started(self, dref: DRef, build: str) -> None:
        """Tell that a build's outputs are on their way into the store."""
        self._tell_inside("copy", "start", dref, build)

    def copy_stopped(self, dref: DRef, *, ok: bool) -> None:
        """Tell that they are there, or never will be, if the start was told."""
        known = self._inside.get(("copy", dref))
        if known is not None:
            self._tell_inside("copy", "stop", dref, known[1], ok=ok)

    def _tell_inside(
        self, kind: EventKind, phase: EventPhase, dref: DRef, build: str, *, fetch: Optional[Fetching] = None, ok: Optional[bool] = None
    ) -> None:
        key = (kind, dref)
        number, _ = self._inside[key] if key in self._inside else (next(self._numbers), build)
        self._inside[key] = (number, build)
        self._tell(kind, phase, number, parent=self._builds.get(dref), dref=dref, build=build, fetch=fetch, ok=ok)
        if phase == "stop":
            del self._inside[key]

    # --- waiting ----------------------------------------------------------------------------------------

    def waiting(self, text: Optional[str], number: int) -> None:
        """Tell how many builds wait now, and what for."""
        phase: EventPhase = "start" if self._wait is None else "progress" if number else "stop"
        self._wait = next(self._numbers) if self._wait is None else self._wait
        self._tell("wait", phase, self._wait, text=text, total=number)
        if not number:
            self._wait = None

    # --------------------------------------------------------------------------------------------------

    def forget(self) -> None:
        """Let go what only an operation that runs needs."""
        self._builds.clear()
        self._inside.clear()

    def _tell(
        self,
        kind: EventKind,
        phase: EventPhase,
        span: int,
        *,
        parent: Optional[int] = None,
        dref: Optional[DRef] = None,
        build: Optional[str] = None,
        ok: Optional[bool] = None,
        text: Optional[str] = None,
        code: Optional[str] = None,
        total: Optional[int] = None,
        joined: Optional[bool] = None,
        resources: Optional[Resources] = None,
        fetch: Optional[Fetching] = None,
    ) -> None:
        if not self.watchers:
            return
        done, of = self.progress()
        event = Event(
            id=span,
            parent=parent,
            kind=kind,
            phase=phase,
            time=time.time(),
            dref=dref,
            build=build,
            ok=ok,
            text=text,
            done=done,
            total=of if total is None else total,
            code=code,
            joined=joined,
            resources=resources,
            fetch=fetch,
        )
        for watch in list(self.watchers.values()):
            watch(event)
