"""The source of code that lies in no file: what ``python -c`` and standard input gave, and what was typed at a prompt.

Text counts only if compiling it gives the very code that is asked about, so that nothing is taken for the source of
something else. Must not know what the source is for.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Final, Optional

__all__ = ["is_without_file", "program_name", "typed_lines"]

_COMMAND: Final = "<string>"
_INPUT: Final = "<stdin>"
_CONSOLE: Final = "<console>"
_INPUT_BYTES_MAX: Final = 1 << 24
_BUFFER_BYTES_MAX: Final = 1 << 20
_LINES_BEFORE_MAX: Final = 60
"""Most lines of one input before the definition that is looked for: decorators, and what it is nested in."""
_LINES_AFTER_MAX: Final = 400
_TRIES_MAX: Final = 1000
_OPTIONS_WITH_VALUE: Final = "WX"


def is_without_file(filename: str) -> bool:
    """Tell whether code of that file name was typed, or came from the command line or standard input."""
    return filename in (_COMMAND, _INPUT, _CONSOLE)


def program_name() -> Optional[str]:
    """Return the file name of the program's code if it came as one text from the command line or standard input."""
    return _COMMAND if _command() else _INPUT if _standard_input() else None


def typed_lines(filename: str, code: Optional[types.CodeType]) -> list[str]:
    """Return the lines that code was compiled from, none if they cannot be had.

    Args:
        filename: as the compiler recorded it.
        code: of a function. None asks for the program, if that is one text.
    """
    text = _command() if filename == _COMMAND else _standard_input() if filename == _INPUT else ""
    if text and (code is None or code in _codes_of(text)):
        return text.splitlines(keepends=True)
    if code is None or filename == _COMMAND:
        return []
    return _from_history(code)


# --- one text ---------------------------------------------------------------------------------------------


@functools.cache
def _command() -> str:
    """Return the text of ``python -c``, empty if the program is no such."""
    arguments = iter(sys.orig_argv[1:])
    for argument in arguments:
        if argument.startswith("--"):
            if argument == "--check-hash-based-pycs":
                next(arguments, "")
            continue
        if not argument.startswith("-") or argument == "-":
            return ""
        for place, letter in enumerate(argument[1:], start=2):
            if letter == "c":
                return argument[place:] or next(arguments, "")
            if letter in _OPTIONS_WITH_VALUE:
                _ = argument[place:] or next(arguments, "")
                break
            if letter == "m":
                return ""
    return ""


@functools.cache
def _standard_input() -> str:
    """Return the text of standard input where it can be read again: from a regular file, or from the buffer of a short pipe."""
    import stat

    try:
        found = os.fstat(0)
        if stat.S_ISREG(found.st_mode):
            return os.pread(0, min(found.st_size, _INPUT_BYTES_MAX), 0).decode("utf-8")
        return _read_buffer() if stat.S_ISFIFO(found.st_mode) or stat.S_ISSOCK(found.st_mode) else ""
    except (OSError, ValueError):
        return ""


def _read_buffer() -> str:
    """Return what the C library still holds of standard input, from which the interpreter read the program.

    A shell gives a here-document as a pipe, which cannot be read twice. Programs of more than one buffer are lost.
    """
    import ctypes

    if "glibc" not in (os.confstr("CS_GNU_LIBC_VERSION") or ""):
        return ""  # elsewhere the pointers lie in other places
    # Of its struct _IO_FILE: flags, three pointers for reading, three for writing, and the ends of the buffer.
    pointers = (ctypes.c_void_p * 9).from_address(ctypes.c_void_p.in_dll(ctypes.CDLL(None), "stdin").value or 0)
    begin, end = pointers[7] or 0, pointers[8] or 0
    if not 0 < end - begin <= _BUFFER_BYTES_MAX:
        return ""
    # After the program comes whatever lay in that memory.
    text = re.split(rb"[^\t\n\f\r -~\x80-\xff]", ctypes.string_at(begin, end - begin), maxsplit=1)[0].decode("utf-8", "replace")
    text = text.partition("\N{REPLACEMENT CHARACTER}")[0]
    return text[: text.rfind("\n") + 1]


@functools.lru_cache(maxsize=64)
def _codes_of(text: str) -> frozenset[types.CodeType]:
    """Return the code of all functions that a text compiles to; codes are equal wherever their text is the same."""
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they were shown when it ran
            whole = compile(text, _INPUT, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return frozenset()
    return frozenset(_inside(whole))


def _inside(whole: types.CodeType) -> Iterator[types.CodeType]:
    stack = [whole]
    while stack:
        codes = [item for item in stack.pop().co_consts if isinstance(item, types.CodeType)]
        yield from codes
        stack += codes


# --- a prompt ---------------------------------------------------------------------------------------------


def _from_history(code: types.CodeType) -> list[str]:
    """Return the lines of the input at a prompt that gave this code, of which the latest counts."""
    known = _found.get(code)
    if known is not None:
        return known
    for text in itertools.islice(_inputs(_history(), code), _TRIES_MAX):
        if code in _codes_of(text):
            _found[code] = text.splitlines(keepends=True)
            return _found[code]
    return []


_found: Final[dict[types.CodeType, list[str]]] = {}


def _history() -> list[str]:
    """Return what was typed, as `readline` remembers it; it is loaded wherever a prompt edits lines with it."""
    readline = sys.modules.get("readline")
    if readline is None:
        return []
    items = [readline.get_history_item(number) for number in range(1, readline.get_current_history_length() + 1)]
    return [line for item in items if item is not None for line in item.split("\n")]


def _inputs(lines: Sequence[str], code: types.CodeType) -> Iterator[str]:
    """Yield texts that may have been the input, likely ones first."""
    pattern = re.compile(r"\blambda\b" if code.co_name == "<lambda>" else rf"\bdef\s+{re.escape(code.co_name)}\b")
    places = [place for place in range(len(lines) - 1, -1, -1) if pattern.search(lines[place])]
    # The shapes in turn, for those of the first are by far the most common.
    for changed in (_as_remembered, _with_one_line_more):
        for place in places:
            end = _end_of(lines, place)
            # It is at least as far from the start of its input as its first line says.
            for start in range(place, max(place - _LINES_BEFORE_MAX, -1), -1):
                if lines[start][:1].isspace():
                    continue
                yield from changed(lines[start:end])


def _end_of(lines: Sequence[str], place: int) -> int:
    """Return where the lines end that belong to a definition on this line: before the next that begins at the margin."""
    end = place + 1
    while end < min(len(lines), place + _LINES_AFTER_MAX) and (not lines[end].strip() or lines[end][:1] in " \t)]}"):
        end += 1
    return end


def _as_remembered(lines: Sequence[str]) -> Iterator[str]:
    yield "\n".join(lines) + "\n"


def _with_one_line_more(lines: Sequence[str]) -> Iterator[str]:
    """`readline` does not remember an empty line, nor one that is the same as the line before."""
    for place in range(1, len(lines) + 1):
        for line in (lines[place - 1], ""):
            yield "\n".join([*lines[:place], line, *lines[place:]]) + "\n"
