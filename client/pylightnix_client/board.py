"""What a live display shows of an operation, as a value: what runs, what waits, how far it is. Pure, and knows no terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, Optional

from pylightnix.display import called
from pylightnix.protocol import messages as m
from pylightnix.types import DRef
from pylightnix_client.operation import Happening
from pylightnix_client.plain import last_lines, plain_line

__all__ = ["Board", "Row", "fetching_text"]

_TAIL_BYTES: Final = 4096
_WORK: Final = {"plan": "working out what to do", "match": "asking {} matcher{}", "commit": "making it durable"}


@dataclass(slots=True)
class Row:
    """A build that runs."""

    dref: str
    started: Optional[float]
    """UTC seconds since the epoch; None if it ran before anybody looked."""
    tail: bytes = b""
    """The end of what it wrote."""
    at: str = ""
    """What it is at other than its realizer: how far its fetch is, or that its outputs are put in place."""

    @property
    def name(self) -> str:
        """The derivation's name."""
        return called(DRef(self.dref))

    @property
    def line(self) -> str:
        """What it is at: other than its realizer, else the last line that this wrote, fit for a terminal; empty if it wrote none."""
        return self.at or next((line for line in reversed(last_lines(self.tail, 20, whole=True)) if line.strip()), "").strip()


@dataclass(slots=True)
class Board:
    """An operation as far as it was heard of."""

    rows: dict[str, Row] = field(default_factory=dict)
    """Builds that run, by their names."""
    waiting: int = 0
    waiting_for: str = ""
    done: int = 0
    total: int = 0
    built: int = 0
    joined: int = 0
    failed: int = 0
    _before: int = 0
    """How much was done when others' operation was come to; nobody knows how."""
    _ended: set[str] = field(default_factory=set)
    _spans: dict[int, str] = field(default_factory=dict)
    _at_work: dict[int, str] = field(default_factory=dict)
    """Spans other than of builds -> their kinds."""

    def begin(self, done: int, total: int, builds: Iterable[m.BuildLine]) -> None:
        """Take in how far an operation is that others began, and which builds of it run."""
        self.done, self.total, self._before = done, total, done
        for line in builds:
            if line.started is not None:
                self.rows[line.build] = Row(line.dref, line.started)

    def hear(self, happening: Happening) -> None:
        """Take in what the daemon says."""
        if isinstance(happening, m.LogPiece):
            self._wrote(happening)
        elif happening.kind == "wait":
            self.waiting = 0 if happening.phase == "stop" else happening.total or 0
            self.waiting_for = happening.text or ""
        elif happening.kind in _WORK:
            if happening.phase == "stop":
                self._at_work.pop(happening.id, None)
            else:
                self._at_work[happening.id] = happening.kind
        elif happening.kind in ("fetch", "copy") and happening.build in self.rows:
            said = fetching_text(happening.fetch) if happening.fetch else "its outputs are put in place"
            self.rows[happening.build].at = said if happening.phase != "stop" else ""
        elif happening.kind == "build":
            self.done, self.total = happening.done or self.done, happening.total or self.total
            self._changed(happening)

    def _changed(self, event: m.Event) -> None:
        if event.phase == "start" and event.build is not None and event.dref is not None:
            self._spans[event.id] = event.build
            self._ended.discard(event.build)
            self.rows[event.build] = Row(event.dref, event.time)
        elif event.phase == "stop":
            build = self._spans.pop(event.id, None) or self._build_of(event.dref)
            if build is not None:
                self._ended.add(build)
                self.rows.pop(build, None)
            self.built += event.ok is True and not event.joined
            self.joined += event.ok is True and event.joined is True
            self.failed += event.code is not None
            # What the daemon says is how far it was just before.
            self.done = max(self.done, self._before + self.built + self.joined + self.failed)

    def _build_of(self, dref: Optional[str]) -> Optional[str]:
        """Return which build that runs is a derivation's: the beginning of its span was not heard."""
        return next((build for build, row in self.rows.items() if row.dref == dref), None)

    def _wrote(self, piece: m.LogPiece) -> None:
        if piece.build in self._ended:
            return  # its log comes at its own pace, the end of it after the news
        row = self.rows.get(piece.build)
        if row is None:
            row = self.rows[piece.build] = Row(piece.dref, None)
        row.tail = (row.tail + piece.data)[-_TAIL_BYTES:]

    def work(self) -> str:
        """Return what the daemon is at other than builds, in words; empty if that is nothing."""
        counts = {kind: sum(each == kind for each in self._at_work.values()) for kind in _WORK}
        said = [_WORK[kind].format(count, "" if count == 1 else "s") for kind, count in counts.items() if count]
        return ", ".join(said)

    def totals(self) -> str:
        """Return how far it is, in words."""
        reused = max(0, self.done - self._before - self.built - self.joined - self.failed)
        counts = {"built": self.built, "joined": self.joined, "reused": reused, "failed": self.failed}
        return ", ".join([f"{self.done}/{self.total} done", *(f"{count} {what}" for what, count in counts.items() if count)])

    def shown(self, most: int) -> Iterator[Row]:
        """Yield the builds to show, those that run longest first."""
        rows = sorted(self.rows.values(), key=lambda row: row.started or 0.0)
        yield from rows[:most]


def fetching_text(fetch: m.Fetching) -> str:
    """Return how far a fetch is, in words fit for a terminal."""
    from rich.filesize import decimal

    said = decimal(fetch.bytes) + (f" of {decimal(fetch.total)}" if fetch.total is not None else "")
    said += f", {fetch.waiting}" if fetch.waiting else f", {decimal(int(fetch.bytes_per_second))}/s"
    said += f", attempt {fetch.attempt}" if fetch.attempt > 1 else ""
    return plain_line(f"{said}, {fetch.mirror}" if fetch.mirror else said)
