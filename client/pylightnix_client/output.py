"""Where the program's answers go: standard output, as lines of text or as JSON objects, one a line.

And what keeps other output out of it: see `Answers.divert`. Must not know any command, nor import
`pylightnix` before there is a need: ``--help`` goes this way.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

__all__ = ["Answers", "coloured", "hold_standard_descriptors", "note", "on_terminal", "spelt_out"]


class Answers:
    """Standard output of this run.

    Attributes:
        as_json: whether answers are JSON objects.
    """

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self._fd = 1

    def on_terminal(self) -> bool:
        """Tell whether a person reads the answers."""
        return os.isatty(self._fd)

    def text(self, line: str) -> None:
        """Write a line for people and shell scripts.

        On a terminal, what that would act upon is spelt out. Elsewhere file names that are not UTF-8 come out as they were.
        """
        shown = spelt_out(line) if self.on_terminal() else line
        self.raw((shown + "\n").encode("utf-8", "surrogateescape"))

    def object(self, kind: str, **fields: Any) -> None:
        """Write one JSON object on a line of its own. ASCII only, so that no locale and no file name can break it."""
        self.raw((json.dumps({"kind": kind, **fields}) + "\n").encode("ascii"))

    def raw(self, content: bytes | memoryview) -> None:
        """Write bytes at once: nothing is held back that a crash could lose.

        Raises:
            BrokenPipeError: whoever read our output has gone.
            OutputLost: it cannot be written for another reason.
        """
        rest = memoryview(content)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            from pylightnix_client.errors import OutputLost

            raise OutputLost(error.strerror or str(error)) from error

    def divert(self) -> None:
        """Send what others print to standard output to standard error, from now on until the process ends.

        Users' code (imports, stages, realizers, their child processes) prints freely, and must not mix into
        our answers. The diversion is not undone: C libraries flush their buffers and exit handlers print
        when the process ends, after the last answer. Does nothing the second time.
        """
        if self._fd != 1:
            return
        # Not inherited by programs that realizers start, so that none of them can keep our reader waiting.
        self._fd = os.dup(1)
        if sys.stdout is not None:
            sys.stdout.flush()
        os.dup2(2, 1)
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(line_buffering=True)  # in order with what is printed to standard error


def hold_standard_descriptors() -> None:
    """Open the null device on those of the descriptors 0, 1 and 2 that are closed.

    Otherwise the next file opened, the store's index perhaps, would become somebody's standard error.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            # Takes the lowest free number, which is this one. Programs that we start get it as well.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def on_terminal() -> bool:
    """Tell whether notes go to a terminal that understands more than plain lines."""
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def coloured() -> bool:
    """Tell whether notes may be coloured: on a terminal, unless NO_COLOR says no."""
    return on_terminal() and not os.environ.get("NO_COLOR")


def spelt_out(text: str) -> str:
    """Return `text` as a terminal may have it, see `pylightnix.sanitize`; loads nothing where it is fit already."""
    if text.isascii() and text.replace("\n", "").isprintable():
        return text  # no need to load the library for it
    from pylightnix.sanitize import escaped

    return escaped(text)


def note(text: str, label: str = "", colour: str = "") -> None:
    """Write lines to standard error, for people: progress and errors. `label` stands first, in `colour` on a terminal.

    What a terminal would act upon in `text` is spelt out, for it may be others' words. `label` is ours.
    """
    if label and colour and coloured():
        import click

        label = click.style(label, fg=colour, bold=True)
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(f"{label}{spelt_out(text)}\n")
        sys.stderr.flush()
    except OSError:
        _lose_stderr()  # nobody listens (a closed pipe, a terminal that is gone); that must not stop a build


def _lose_stderr() -> None:
    """Point standard error at the null device, and with it whatever was diverted there.

    Else the interpreter would fail to flush it at the end, and realizers would fail on their own prints.
    """
    null = os.open(os.devnull, os.O_WRONLY)
    if os.path.sameopenfile(1, 2):
        os.dup2(null, 1)
    os.dup2(null, 2)
    os.close(null)
