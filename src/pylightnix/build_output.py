"""What builds print, for the program that has them built: copied from the daemon, line by line, as it is printed.

A realizer that runs in the program's own process prints to the program's streams by itself. One that runs in a daemon
prints to its build's log; this shows that log. Must not know how an event comes about.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Final, Optional, TextIO

from pylightnix.errors import Misuse
from pylightnix.events import BuildFailed, BuildFinished, BuildLogged, Event, Observer, ignore
from pylightnix.types import DRef

__all__ = ["VARIABLE", "LogCopier", "usual_observer"]

VARIABLE: Final = "PYLIGHTNIX_BUILD_OUTPUT"
"""Where the output of builds goes if a program does not say: ``stderr``, ``stdout`` or ``none``."""


class LogCopier:
    """An observer that writes what builds print, whole lines of each, to standard error or standard output of now."""

    def __init__(self, stream: str = "stderr") -> None:
        self._stream = stream
        self._begun: dict[DRef, bytes] = {}

    def __call__(self, event: Event) -> None:
        if isinstance(event, BuildLogged):
            whole, newline, rest = (self._begun.pop(event.dref, b"") + event.data).rpartition(b"\n")
            self._write(whole + newline)
            if rest:
                self._begun[event.dref] = rest
        elif isinstance(event, (BuildFinished, BuildFailed)):
            self._write(self._begun.pop(event.dref, b""))

    def end(self) -> None:
        """Write lines that were begun and have no end."""
        for rest in self._begun.values():
            self._write(rest)
        self._begun.clear()

    def _write(self, data: bytes) -> None:
        stream: Optional[TextIO] = getattr(sys, self._stream)  # of now: notebooks and tests put others in their place
        if not data or stream is None:
            return
        text = data.decode("utf-8", "backslashreplace")
        encoding = getattr(stream, "encoding", None) or "utf-8"
        try:
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            stream.flush()
        except (OSError, ValueError):
            pass  # nobody reads it, or it was closed; the log has it


def usual_observer(environ: Optional[Mapping[str, str]] = None) -> Observer:
    """Return how builds are watched by a program that does not say how.

    Raises:
        Misuse: the variable has another value than the three.
    """
    stream = (os.environ if environ is None else environ).get(VARIABLE) or "stderr"
    if stream not in ("stderr", "stdout", "none"):
        raise Misuse(f"expected stderr, stdout or none in {VARIABLE}, found {stream!r:.100}")
    return ignore if stream == "none" else LogCopier(stream)
