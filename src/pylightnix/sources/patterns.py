"""Patterns in the form of a ``.gitignore``, read byte for byte as Git reads them.

After `dir.c` and `wildmatch.c` of Git 2.39. Decides only. Why not `pathspec`: decision 0030.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple, Optional, TypeAlias

from pylightnix.errors import Misuse

__all__ = ["Excluded", "excluding"]

Excluded: TypeAlias = Callable[[bytes, bool], bool]
"""Tells of a path below the top, and whether it is a folder, if it is left out."""

_DIGITS: Final = b"0123456789"
_LOWER: Final = b"abcdefghijklmnopqrstuvwxyz"
_VISIBLE: Final = bytes(range(0x21, 0x7F))
_ALNUM: Final = _DIGITS + _LOWER + _LOWER.upper()
_CLASSES: Final = {
    b"alnum": _ALNUM,
    b"alpha": _LOWER + _LOWER.upper(),
    b"blank": b" \t",
    b"cntrl": bytes((*range(0x20), 0x7F)),
    b"digit": _DIGITS,
    b"graph": _VISIBLE,
    b"lower": _LOWER,
    b"print": b" " + _VISIBLE,
    b"punct": bytes(set(_VISIBLE) - set(_ALNUM)),
    b"space": b" \t\n\r",  # Git's own table knows no more
    b"upper": _LOWER.upper(),
    b"xdigit": _DIGITS + b"abcdefABCDEF",
}


class _Rule(NamedTuple):
    """One pattern."""

    matches: Callable[[bytes], object]
    by_name: bool
    """Whether it is compared with the last component only."""
    leaves_out: bool
    only_folders: bool


def excluding(patterns: Sequence[str]) -> Optional[Excluded]:
    """Return what leaves out what matches `patterns`; None if there are none.

    Each pattern is one line. A pattern that Git takes for damaged, an open bracket for example, matches nothing.

    Raises:
        Misuse: one of them cannot be compared with names.
    """
    if not patterns:
        return None
    try:
        lines = [os.fsencode(pattern) for pattern in patterns]
    except UnicodeEncodeError as error:
        raise Misuse(f"expected patterns as in a .gitignore, found {error.object!r:.100}, which no name can be") from error
    lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
    rules = [rule for line in reversed(lines) if (rule := _rule(line)) is not None]

    def excluded(path: bytes, is_folder: bool) -> bool:
        name = path[path.rfind(b"/") + 1 :]
        for rule in rules:
            if (is_folder or not rule.only_folders) and rule.matches(name if rule.by_name else path):
                return rule.leaves_out
        return False

    return excluded


def _rule(line: bytes) -> Optional[_Rule]:
    """Return what a line says; None if it says nothing."""
    # Lines that were read from a file may have their ends.
    text = _without_trailing_spaces(line.removesuffix(b"\n").removesuffix(b"\r"))
    if text.startswith(b"#"):
        return None
    leaves_out = not text.startswith(b"!")
    text = text.removeprefix(b"!")
    only_folders = text.endswith(b"/")
    text = text.removesuffix(b"/")
    by_name = b"/" not in text
    try:
        regex = _of_name(text) if by_name else _of_path(text.removeprefix(b"/"))
    except _MatchesNothing:
        return None
    return _Rule(re.compile(regex, re.DOTALL).fullmatch, by_name, leaves_out, only_folders) if text else None


def _without_trailing_spaces(line: bytes) -> bytes:
    """Cut spaces at the end, but for one that a backslash takes along. Tabs stay."""
    stripped = line.rstrip(b" ")
    backslashes = len(stripped) - len(stripped.rstrip(b"\\"))
    return line[: len(stripped) + 1] if backslashes % 2 else stripped


# --- translation to regular expressions ---------------------------------------------------------------


class _MatchesNothing(Exception):
    """The pattern is damaged."""


def _of_name(text: bytes) -> bytes:
    return b"".join(_translated(text, star=b".*", any_byte=b".", forbidden=b""))


def _of_path(text: bytes) -> bytes:
    # Git compares what comes before the first wildcard by itself, and takes the rest for a pattern: `a**/b` has `**/` at its start.
    plain = re.match(rb"[^*?\[\\]*", text)
    start = plain.end() if plain is not None else 0
    return re.escape(text[:start]) + b"".join(_translated(text[start:], star=b"[^/]*", any_byte=b"[^/]", forbidden=b"/"))


def _translated(text: bytes, *, star: bytes, any_byte: bytes, forbidden: bytes) -> Iterator[bytes]:
    """Yield the pieces of a regular expression.

    Args:
        text: the pattern.
        star: what ``*`` means.
        any_byte: what ``?`` means.
        forbidden: bytes that no bracket matches.
    """
    at = 0
    while at < len(text):
        char = text[at : at + 1]
        if char == b"*":
            end = len(text) - len(text[at:].lstrip(b"*"))
            is_deep = forbidden and end - at > 1 and (at == 0 or text[at - 1 : at] == b"/")
            if is_deep and text[end : end + 1] == b"/":
                yield b"(?:.*/)?"
                end += 1
            elif is_deep and (end == len(text) or text[end : end + 2] == b"\\/"):
                yield b".*"
            else:
                yield star
            at = end
        elif char == b"?":
            yield any_byte
            at += 1
        elif char == b"[":
            found, at = _bracket(text, at + 1)
            allowed = sorted(found - set(forbidden))
            yield b"[%b]" % b"".join(b"\\x%02x" % byte for byte in allowed) if allowed else b"(?!)"
        else:
            at += char == b"\\"
            if at == len(text):
                raise _MatchesNothing
            yield re.escape(text[at : at + 1])
            at += 1


def _bracket(text: bytes, at: int) -> tuple[set[int], int]:
    """Return the bytes that a bracket matches, and where it ends. `at` is behind its ``[``."""
    is_negated = text[at : at + 1] in (b"!", b"^")
    at += is_negated
    found: set[int] = set()
    before: Optional[int] = None
    """The byte with which a range may begin."""
    is_first = True
    while is_first or text[at : at + 1] != b"]":
        is_first = False
        name = _class_name(text, at)
        if name is not None:
            found.update(_CLASSES[name])
            before, at = None, at + len(name) + 4
        elif text[at : at + 1] == b"-" and before is not None and text[at + 1 : at + 2] not in (b"", b"]"):
            last, at = _literal(text, at + 1)
            found.update(range(before, last + 1))
            before = None
        else:
            before, at = _literal(text, at)
            found.add(before)
    return (set(range(256)) - found if is_negated else found), at + 1


def _class_name(text: bytes, at: int) -> Optional[bytes]:
    """Return the name of the class ``[:name:]`` that begins here; None if none does."""
    if text[at : at + 2] != b"[:":
        return None
    end = text.find(b"]", at + 2)
    if end < 0:
        raise _MatchesNothing
    if end == at + 2 or text[end - 1 : end] != b":":
        return None
    name = text[at + 2 : end - 1]
    if name not in _CLASSES:
        raise _MatchesNothing
    return name


def _literal(text: bytes, at: int) -> tuple[int, int]:
    """Return the byte that stands in a bracket, and where it ends."""
    at += text[at : at + 1] == b"\\"
    if at >= len(text):
        raise _MatchesNothing
    return text[at], at + 1
