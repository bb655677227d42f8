"""Text that others wrote, made fit for a terminal. Pure.

A log may hold anything: escape sequences, carriage returns of progress bars, bytes that are no text, and marks that
make what follows run from right to left. None of it may move a cursor, set a colour or hide what is shown.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from typing import Final

from pylightnix.sanitize import escaped

__all__ = ["ShownBytes", "last_lines", "plain_line"]

_ESCAPES: Final = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # control sequences: colours, cursor
    r"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?"  # strings: titles, links
    r"|\x1b[ -/]*[0-~]?"
)
_UNSEEN: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Categories of characters that are not shown as one, or do something."""


def plain_line(text: str) -> str:
    """Return one line as a terminal would leave it standing, without anything that a terminal acts upon."""
    written = _ESCAPES.sub("", text).rstrip("\r\n").expandtabs()
    shown = next((part for part in reversed(written.split("\r")) if part.strip()), "")  # what overwrote the rest
    return "".join("\ufffd" if unicodedata.category(char) in _UNSEEN else char for char in shown)


def last_lines(data: bytes, most: int, *, whole: bool) -> list[str]:
    """Return the last lines of a log, at most so many.

    Args:
        data: the end of the log.
        most: how many lines.
        whole: whether `data` is all of it; else it may begin in the middle of a line, which is left out.
    """
    lines = data.decode("utf-8", "replace").split("\n")
    if lines and not lines[-1]:
        lines.pop()
    if not whole and len(lines) > 1:
        del lines[0]
    return [plain_line(line) for line in lines[-most:]]


class ShownBytes:
    """Bytes that come in pieces, as a terminal may have them: nothing is left out, and what it would act upon is spelt out.

    A carriage return ends a line: what a progress bar wrote over stands below it.
    """

    def __init__(self) -> None:
        self._text = codecs.getincrementaldecoder("utf-8")("backslashreplace")  # a piece may end within a character
        self._returned = False

    def take(self, data: bytes, *, is_last: bool = False) -> bytes:
        """Return what to show of the next piece."""
        text = self._text.decode(data, is_last)
        if self._returned and text.startswith("\n"):
            text = text[1:]  # the line was ended already
        if text:
            self._returned = text.endswith("\r")
        return escaped(text.replace("\r\n", "\n").replace("\r", "\n")).encode()
