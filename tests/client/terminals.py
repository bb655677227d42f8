"""A terminal for tests: a real pseudo terminal for the program, and a small model of what its screen shows."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from dataclasses import dataclass, field
from typing import Any

from tests.waiting import is_readable

SECONDS = 30
_PIECES = re.compile(r"\x1b\[(?P<arguments>[?0-9;]*)(?P<letter>[A-Za-z])|(?P<plain>[^\x1b])", re.DOTALL)


@dataclass
class Screen:
    """What stands on a terminal that is so many columns wide, as far as the sequences go that rich uses."""

    columns: int
    lines: list[list[str]] = field(default_factory=lambda: [[]])
    row: int = 0
    column: int = 0
    cursor_shown: bool = True
    coloured: bool = False

    def feed(self, text: str) -> None:
        at = 0
        while at < len(text):
            piece = _PIECES.match(text, at)
            assert piece is not None, f"an unexpected sequence: {text[at : at + 20]!r}"
            at = piece.end()
            if piece["plain"] is not None:
                self._write(piece["plain"])
            else:
                self._act(piece["letter"], piece["arguments"])

    def _write(self, char: str) -> None:
        if char == "\r":
            self.column = 0
        elif char == "\n":
            self._down()
        else:
            if self.column >= self.columns:
                self._down()
                self.column = 0
            line = self.lines[self.row]
            line.extend(" " * (self.column - len(line) + 1))
            line[self.column] = char
            self.column += 1

    def _down(self) -> None:
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append([])

    def _act(self, letter: str, arguments: str) -> None:
        if letter == "A":
            self.row = max(0, self.row - int(arguments or 1))
        elif letter == "K":
            self.lines[self.row] = []
        elif letter in "hl" and arguments == "?25":
            self.cursor_shown = letter == "h"
        elif letter == "m":
            self.coloured = self.coloured or bool(re.search(r"(^|;)(3|4|9)\d", arguments))
        else:
            raise AssertionError(f"an unexpected sequence: {arguments}{letter}")

    @property
    def text(self) -> list[str]:
        """What is to be read on it."""
        shown = ["".join(line).rstrip() for line in self.lines]
        while shown and not shown[-1]:
            shown.pop()
        return shown


@dataclass
class OnTerminal:
    """How a program ended whose standard input and error were a terminal."""

    status: int
    stdout: str
    raw: str
    screen: Screen


class Session:
    """A program on a terminal of its own."""

    def __init__(self, command: list[str], env: dict[str, str], columns: int = 80, **options: Any) -> None:
        self.columns = columns
        self.seen = b""
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.child = subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, env=env, text=True, **options)
        os.close(theirs)

    def read_until(self, text: str) -> None:
        """Wait until the program has written `text`."""
        while text.encode() not in self.seen:
            assert self._read(), f"ended without {text!r}: {self.seen!r}"

    def _read(self) -> bool:
        ready = is_readable(self._ours, SECONDS)
        assert ready, f"nothing more for {SECONDS} s: {self.seen[-2000:]!r}"
        try:
            data = os.read(self._ours, 1 << 16)
        except OSError:  # how Linux tells that nobody has the other end any more
            return False
        self.seen += data
        return bool(data)

    def end(self) -> OnTerminal:
        """Wait for the end."""
        while self._read():
            pass
        stdout, _ = self.child.communicate(timeout=60)
        os.close(self._ours)
        raw = self.seen.decode()
        screen = Screen(self.columns)
        screen.feed(raw)
        return OnTerminal(self.child.returncode, stdout, raw, screen)
