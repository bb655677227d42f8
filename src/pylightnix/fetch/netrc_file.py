"""Logins of a netrc file, read so that an odd line harms no host but its own.

Why not `netrc` of the standard library: it refuses the whole file for one word that it does not know, and programs write such words
(Heroku's writes ``method``). Quotes, backslashes and comments are read as there. No error quotes the file: words may be passwords.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Optional

__all__ = ["Login", "parse_netrc", "read_regular"]

_VALUES: Final = {"login": "user", "user": "user", "password": "password", "account": "account"}
_KEYWORDS: Final = frozenset(("machine", "default", "macdef", *_VALUES))
_NOBODY: Final = "\0"
"""In place of a host's name that is missing: no host has it."""


@dataclass(frozen=True, slots=True)
class Login:
    """An entry of a netrc file."""

    host: str
    """Empty for the entry that stands for all others."""
    user: str = field(repr=False)
    password: str = field(repr=False)


@dataclass(slots=True)
class _Entry:
    host: str
    values: dict[str, str] = field(default_factory=dict)
    problem: Optional[str] = None

    def note(self, problem: str) -> None:
        """Note what is wrong with it. The first problem is told."""
        self.problem = self.problem or problem


def read_regular(path: str, max_bytes: int) -> bytes:
    """Return the contents of a file. Never waits: a FIFO is refused.

    Raises:
        OSError: it cannot be read, or it is larger than `max_bytes`.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        mode = os.fstat(fd).st_mode
        # /dev/null is a usual way to name no file.
        if not (stat.S_ISREG(mode) or stat.S_ISCHR(mode)):
            raise OSError(errno.EINVAL, "it is not a regular file", path)
        found = file.read(max_bytes + 1)
    if len(found) > max_bytes:
        raise OSError(errno.EFBIG, f"it is larger than {max_bytes} bytes", path)
    return found


def parse_netrc(data: bytes) -> tuple[list[Login], list[tuple[str, str]]]:
    """Return the logins in their order, and (host, problem) of entries that have one. A host has lower case.

    The rules for odd lines:

    - A word that is not known is skipped.
    - A value stands on the line of its keyword, or begins a later line. A keyword that begins a line is never a value; otherwise
      the credentials of one host would go to another.
    - A quote ends with its line. A macro ends with an empty line.
    """
    entries: list[_Entry] = []
    keyword: Optional[str] = None
    """The one whose value comes next."""
    in_macro = False
    for number, line in enumerate(_lines(data), 1):
        if in_macro:
            in_macro = bool(line.strip())
            continue
        for position, (word, is_cut) in enumerate(_words(line)):
            is_keyword = keyword is None or (position == 0 and word in _KEYWORDS)
            if word.startswith("#") and (is_keyword or position == 0):
                break
            if not is_keyword:
                _take(entries, keyword or "", word, f"line {number}", is_cut)
                keyword = None
                continue
            if keyword is not None:
                _miss(entries, keyword)
            keyword = word if word == "machine" or (word in _VALUES and entries) else None
            in_macro = word == "macdef"
            if in_macro:
                break
            if word == "default":
                entries.append(_Entry(""))
            elif entries and word not in _KEYWORDS:
                entries[-1].note(f"line {number} has a word that is not known")
    if keyword is not None:
        _miss(entries, keyword)
    problems = [(each.host, each.problem) for each in entries if each.problem is not None]
    return [_login(each) for each in entries if each.values.get("user") or each.values.get("password")], problems


def _take(entries: list[_Entry], keyword: str, value: str, where: str, is_cut: bool) -> None:
    if keyword == "machine":
        # Bytes that are not UTF-8 become escapes, which no host has.
        entries.append(_Entry(value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace").lower()))
    if is_cut:
        entries[-1].note(f"{where} has no closing quote")
    elif any("\udc80" <= char <= "\udcff" for char in value):
        entries[-1].note(f"{where} is not UTF-8")
    elif keyword != "machine":
        entries[-1].values[_VALUES[keyword]] = value


def _miss(entries: list[_Entry], keyword: str) -> None:
    """Note that the value of a keyword is missing."""
    if keyword == "machine":
        entries.append(_Entry(_NOBODY))
    else:
        entries[-1].note(f"its {keyword!r} has no value")


def _login(entry: _Entry) -> Login:
    return Login(entry.host, entry.values.get("user", ""), entry.values.get("password", ""))


def _lines(data: bytes) -> list[str]:
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _words(line: str) -> Iterator[tuple[str, bool]]:
    """Yield the words of a line, and of each whether its closing quote is missing. A backslash takes the next character as it is."""
    at = 0
    while at < len(line):
        if line[at].isspace():
            at += 1
            continue
        is_quoted = line[at] == '"'
        at += is_quoted
        word = ""
        while at < len(line) and not (line[at] == '"' if is_quoted else line[at].isspace()):
            at += line[at] == "\\" and at + 1 < len(line)
            word += line[at]
            at += 1
        yield word, is_quoted and at == len(line)
        at += 1
