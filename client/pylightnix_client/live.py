"""Progress on a terminal: a few lines at its end that change, below those that stay.

The lines are drawn by rich, which is imported here only, and this only where there is a terminal.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar, Final

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from pylightnix.display import called
from pylightnix.errors import PylightnixException
from pylightnix.events import BuildFailed, BuildFinished, BuildJoined, Event
from pylightnix.protocol import messages as m
from pylightnix.protocol.errors import TooMany
from pylightnix.sanitize import escaped
from pylightnix_client.board import Board, Row
from pylightnix_client.log_ends import log_end_lines
from pylightnix_client.operation import Happening
from pylightnix_client.progress import INTERRUPTED, Progress, human_seconds, told_again, told_missed, told_waits
from pylightnix_client.session import waiting_text

__all__ = ["LiveProgress"]

_REFRESHES_PER_SECOND: Final = 8
_ROWS_MAX: Final = 16


class _Terminal:
    """Standard error, as rich needs it. One that is gone stops no build."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.encoding = getattr(sys.stderr, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        try:
            return sys.stderr.write(text)
        except (OSError, ValueError):
            return len(text)

    def flush(self) -> None:
        try:
            sys.stderr.flush()
        except (OSError, ValueError):
            pass

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return sys.stderr.fileno()


class LiveProgress(Progress):
    """Shows what runs now. A context manager: inside, the end of the terminal is the display's."""

    wants_log: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self._board, self._lock = Board(), threading.Lock()
        # Names and logs are others' words: nothing in them is markup, an emoji or worth a colour of its own.
        self._console = Console(file=_Terminal(), force_terminal=True, markup=False, emoji=False, highlight=False)  # type: ignore[arg-type]  # what it uses of a file is there
        self._live = Live(
            console=self._console,
            get_renderable=self._render,
            refresh_per_second=_REFRESHES_PER_SECOND,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="crop",
        )

    def __enter__(self) -> LiveProgress:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def __call__(self, event: Event) -> None:
        """Write the line that stays of an event."""
        name = called(event.dref)
        if isinstance(event, BuildFinished):
            self._say(f"{name}: done in {human_seconds(event.seconds)}", "cyan")
        elif isinstance(event, BuildJoined):
            self._say(f"{name}: another process has built it", "cyan")
        elif isinstance(event, BuildFailed):
            self._say(f"{name}: failed", "bold red")
            log = self.log_end(event.dref)
            for line in log_end_lines(name, log) if log is not None else ():
                self._say(line)

    def hear(self, happening: Happening) -> None:
        """Take in what the daemon says."""
        super().hear(happening)
        with self._lock:
            self._board.hear(happening)

    def begin(self, attached: m.Attached, builds: Sequence[m.BuildLine]) -> None:
        """Take in where an operation is that others began."""
        super().begin(attached, builds)
        with self._lock:
            self._board.begin(attached.done, attached.total, builds)

    def waits(self, who: str) -> None:
        """Say who holds the store."""
        self._say(told_waits(who), "bold")

    def asks_again(self, error: PylightnixException) -> None:
        """Say that the same is asked again, and forget what ran."""
        with self._lock:
            self._board = Board()
        self._say(told_again(error), "bold")

    def missed(self, events: int) -> None:
        """Say how many events were left out."""
        self._say(told_missed(events), "bold")

    def queued(self, refusal: TooMany) -> None:
        """Say that a free connection is waited for."""
        self._say(waiting_text(refusal), "bold")

    def interrupted(self) -> None:
        """Say that the operation is being cancelled."""
        self._say(INTERRUPTED, "bold")

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Leave the terminal to others meanwhile."""
        self._live.stop()
        try:
            yield
        finally:
            self._live.start()

    def _say(self, text: str, style: str = "") -> None:
        if self._live.is_started:
            self._live.refresh()  # else what it was about would be drawn once more below
        self._console.print(Text(escaped(text), style=style), soft_wrap=True)

    def _render(self) -> Group:
        with self._lock:
            board, now = self._board, time.time()
            if not board.rows and not board.waiting and not board.total:
                return Group()
            # Three lines for what waits, other work and the totals, one for what is left out, one that stays above.
            most = max(1, min(_ROWS_MAX, self._console.size.height - 5))
            lines = [_line(_of_row(row, now)) for row in board.shown(most)]
            if len(board.rows) > most:
                lines.append(_line(Text(f"  … and {len(board.rows) - most} more")))
            if board.waiting:
                lines.append(_line(Text(f"{board.waiting} waiting: {escaped(board.waiting_for)}", style="dim")))
            if work := board.work():
                lines.append(_line(Text(work, style="dim")))
            lines.append(_line(Text(board.totals(), style="bold")))
            return Group(*lines)


def _of_row(row: Row, now: float) -> Text:
    elapsed = "" if row.started is None else human_seconds(max(0.0, now - row.started))
    return Text.assemble("  ", (row.name, "cyan"), f"  {elapsed}  ", (row.line, "dim"))


def _line(text: Text) -> Text:
    text.no_wrap, text.overflow = True, "ellipsis"
    return text
