"""The last lines of what failed builds wrote, asked of the daemon that ran them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pylightnix.errors import PylightnixException
from pylightnix.types import DRef
from pylightnix_client.output import note
from pylightnix_client.plain import last_lines
from pylightnix_client.session import Session

__all__ = ["LogEnd", "ends_of_logs", "log_end_lines", "tell_log_end"]

LINES: Final = 20
_BYTES: Final = 16 << 10


@dataclass(frozen=True, slots=True)
class LogEnd:
    """How the log of a build ends."""

    build: str
    lines: tuple[str, ...]
    command: str
    """What prints all of it."""

    def fields(self) -> dict[str, Any]:
        """Return what programs are told."""
        return {"build": self.build, "log": list(self.lines), "log_command": self.command}


def ends_of_logs(session: Session, failed: Iterable[DRef], builds: Mapping[DRef, str]) -> dict[DRef, LogEnd]:
    """Return how the logs of failed builds end; nothing for those that wrote nothing, or that no daemon knows.

    Args:
        session: says which daemon.
        failed: what failed.
        builds: which build was whose.
    """
    wanted = [dref for dref in failed if dref in builds]
    found: dict[DRef, LogEnd] = {}
    if not wanted:
        return found
    try:
        with session.connect() as client:
            for dref in wanted:
                answer = client.log_end(builds[dref], _BYTES)
                lines = last_lines(answer.data, LINES, whole=answer.next == len(answer.data))
                if any(line.strip() for line in lines):
                    # By what was built: that is understood by every daemon of the store that comes after this one.
                    found[dref] = LogEnd(builds[dref], tuple(lines), session.own_command("log", dref))
    except PylightnixException:
        pass  # it has gone, and with it whoever knew; the failures are told all the same
    return found


def log_end_lines(name: str, log: LogEnd) -> list[str]:
    """Return what people are shown of how the log of a build ends."""
    return [f"{name}: the last lines of its log:", *(f"    {line}" for line in log.lines), f"{name}: all of it: {log.command}"]


def tell_log_end(name: str, log: LogEnd) -> None:
    """Show people how the log of a build ends."""
    for line in log_end_lines(name, log):
        note(line)
