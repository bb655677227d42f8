"""Where what goes wrong in one task ends.

A task that raises ends every other task of its nursery. `SharedNursery` is the only way to start a task in a nursery that
builds, sessions and other strangers share: whatever a task raises is an entry in the log, with an id, and ends that task alone.
A test finds tasks that are started in any other way. Must not know any task.
"""

from __future__ import annotations

import logging
import secrets
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Optional

import trio

from pylightnix.errors import PylightnixException

__all__ = ["SharedNursery", "contained", "entered", "guarded"]

_log = logging.getLogger("pylightnixd")

AGAIN_SECONDS: Final = 0.1
"""How long after its first failure a task that is kept starts again; each further failure doubles it."""
AGAIN_SECONDS_MAX: Final = 5.0
WELL_SECONDS: Final = 60.0
"""What has run for so long is well again."""
FAILURES_MAX: Final = 10
"""After so many failures in a row a task counts as ailing: some half a minute."""


def entered(what: str, error: BaseException) -> str:
    """Enter in the log what an error did to; return the id of the entry."""
    incident = secrets.token_hex(6)
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if isinstance(error, (OSError, sqlite3.Error, PylightnixException)):
        _log.warning("%s: %s [incident %s]", what, error, incident)
    else:
        _log.error("BUG: incident %s in %s", incident, what, exc_info=error)
    return incident


@dataclass(frozen=True, slots=True)
class contained:  # noqa: N801  # used as a function is, as contextlib's are
    """End what the block raises here: it is logged, and what follows goes on. Cancelling passes."""

    what: str

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]) -> bool:
        if isinstance(error, Exception):
            entered(self.what, error)
            return True
        if isinstance(error, BaseExceptionGroup):  # of a nursery that was cancelled while something in it went wrong
            ours, others = error.split(Exception)
            if ours is not None:
                entered(self.what, ours)
            if others is not None:
                raise others
        return False


async def guarded(what: str, task: Callable[[], Awaitable[object]]) -> None:
    """Run a task; log what it raises."""
    with contained(what):
        await task()


@dataclass(slots=True, eq=False)
class SharedNursery:
    """A nursery in which no task can end another."""

    nursery: trio.Nursery
    """Open for as long as any task may be started. Only its owner, who closes it, uses it otherwise."""
    _failures: dict[str, int] = field(default_factory=dict)
    """Kept task -> how often in a row it has failed."""

    def start_soon(self, what: str, task: Callable[[], Awaitable[object]]) -> None:
        """Run a task that ends by itself; what it raises is logged as what went wrong in `what`."""
        self.nursery.start_soon(guarded, what, task)

    def keep(self, what: str, task: Callable[[], Awaitable[object]]) -> None:
        """Run a task that others rely on for as long as the nursery is open: whenever it fails it is started again, ever later."""
        self.nursery.start_soon(self._keep, what, task)

    def ailing(self) -> list[str]:
        """Return which of the kept tasks have failed again and again. While there are any, the daemon makes no progress."""
        return [what for what, failures in self._failures.items() if failures >= FAILURES_MAX]

    async def _keep(self, what: str, task: Callable[[], Awaitable[object]]) -> None:
        pause = AGAIN_SECONDS
        while True:
            begun = trio.current_time()
            with contained(what):
                await task()
                return
            if trio.current_time() - begun >= WELL_SECONDS:
                pause = AGAIN_SECONDS
                self._failures.pop(what, None)
            self._failures[what] = self._failures.get(what, 0) + 1
            await trio.sleep(pause)
            pause = min(2 * pause, AGAIN_SECONDS_MAX)
