"""A plain Python prompt on a terminal of its own, at which one types line by line."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from types import TracebackType

from tests.waiting import is_readable

__all__ = ["Prompt"]

SECONDS = 120
"""How long a line may take."""
_AT_PROMPT = re.compile(rb"(?:^|\n)(>>> |\.\.\. )$")


class Prompt:
    """``python``, as somebody starts it in a folder who knows nothing of what is to be typed."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self._ours, theirs = pty.openpty()
        # No line of a document is longer, so that what is echoed is what was typed.
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 500, 0, 0))
        # The prompt that Python has had until 3.12: an empty line ends a block, and the terminal is not painted on.
        plain = {**env, "TERM": "dumb", "PYTHON_BASIC_REPL": "1", "PYTHONSTARTUP": ""}
        self._child = subprocess.Popen(
            [sys.executable, "-q"], stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, env=plain, start_new_session=True
        )
        os.close(theirs)
        self._seen = b""
        self._read()

    def __enter__(self) -> Prompt:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._ours)  # a hangup, as when a terminal is closed
        self._child.wait(SECONDS)

    def _read(self) -> tuple[str, bool]:
        """Return what came up to the next prompt, without that, and whether it asks for the rest of a block."""
        while not (at := _AT_PROMPT.search(self._seen)):
            ready = is_readable(self._ours, SECONDS)
            assert ready, f"no prompt for {SECONDS} s: {self._seen!r}"
            try:
                self._seen += os.read(self._ours, 1 << 16).replace(b"\r\n", b"\n")
            except OSError as error:  # how Linux tells that nobody has the other end any more
                raise AssertionError(f"Python ended: {self._seen.decode()}") from error
        text, self._seen = self._seen[: at.start(1)].decode(), b""
        return text, at[1] == b"... "

    def type(self, text: str) -> str:
        """Type some lines, and an empty one if a block is open in the end; return what was printed meanwhile."""
        printed, lines = "", text.split("\n")
        while lines:
            os.write(self._ours, lines.pop(0).encode() + b"\n")
            answer, is_open = self._read()
            printed += answer.partition("\n")[2]  # below the line itself, which the terminal shows
            if is_open and not lines:
                lines = [""]
        return printed
