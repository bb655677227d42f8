"""Text that others wrote, made fit to be shown: what a terminal would act upon is spelt out instead. Pure.

Errors, logs and names may hold anything: escape sequences that move the cursor, retitle the window or write to the clipboard; the same
as C1 bytes; marks that make what follows run from right to left, and characters that nobody sees. Nothing is left out, so that it can be
seen that it was there.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["escaped", "escaped_fields"]

_ACTS: Final = re.compile(
    "["
    "\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f"  # C0 but tab and line feed, DEL, C1
    "\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"  # direction, line ends of other kinds, and what has no width
    "\ufeff\ufff9-\ufffb\\U000e0000-\\U000e0fff"  # marks of encodings, of notes, and tags
    "\\ud800-\\udfff"  # bytes that are no UTF-8
    "]"
)
"""Joiners (U+200C, U+200D) are not among them: scripts and emoji need them."""


def escaped(text: str) -> str:
    """Return `text` with every character that a terminal acts upon, or nobody sees, spelt as Python does: 1b as backslash, x, 1b."""
    return _ACTS.sub(_spelt, text)


def _spelt(found: re.Match[str]) -> str:
    if found[0] == "\r":
        return "\\r"
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def escaped_fields(value: object) -> object:
    """Return a JSON value with all texts in it escaped."""
    if isinstance(value, str):
        return escaped(value)
    if isinstance(value, dict):
        return {escaped_fields(key): escaped_fields(item) for key, item in value.items()}
    return [escaped_fields(item) for item in value] if isinstance(value, (list, tuple)) else value
