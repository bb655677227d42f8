"""Reading and writing small files in one call, with what to do when that fails. Text is UTF-8."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Optional, TypeVar

__all__ = [
    "maybereadjson",
    "maybereadstr",
    "readjson",
    "readstr",
    "trycatch",
    "tryread",
    "tryread_def",
    "tryreadjson",
    "tryreadjson_def",
    "tryreadstr",
    "tryreadstr_def",
    "trywrite",
    "writejson",
    "writestr",
]

T = TypeVar("T")
A = TypeVar("A")


def readstr(path: str) -> str:
    """Return the text of a file."""
    with open(path, encoding="utf-8") as file:
        return file.read()


def writestr(path: str, data: str) -> None:
    """Write text to a file, in place of what was in it."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(data)


def readjson(json_path: str) -> Any:
    """Return what the JSON in a file stands for."""
    with open(json_path, "rb") as file:
        return json.load(file)


def writejson(path: str, data: Any, indent: Optional[int] = None) -> None:
    """Write a value to a file as JSON. The file stays as it was if the value cannot be written so."""
    writestr(path, json.dumps(data, indent=indent))


def trycatch(f: Callable[[], A], default: A, mp: Callable[[A], T]) -> T:
    """Return `mp` of what `f` returns; `mp` of `default` where either raises."""
    try:
        return mp(f())
    except Exception:  # noqa: BLE001  # whatever it is: that is what it is for
        return mp(default)


def _or_none(read: Callable[[str], T], path: str) -> Optional[T]:
    try:
        return read(path)
    except Exception:  # noqa: BLE001  # None on any error is the promise
        return None


def tryread(path: str) -> Optional[str]:
    """Return the text of a file, None where it cannot be read."""
    return _or_none(readstr, path)


def tryreadstr(path: str) -> Optional[str]:
    """Return the text of a file, None where it cannot be read."""
    return _or_none(readstr, path)


def tryreadjson(json_path: str) -> Optional[Any]:
    """Return what the JSON in a file stands for, None where it cannot be read (or is ``null``)."""
    return _or_none(readjson, json_path)


def tryread_def(path: str, default: str) -> str:
    """Return the text of a file, `default` where it cannot be read."""
    found = tryread(path)
    return default if found is None else found


def tryreadstr_def(path: str, default: str) -> str:
    """Return the text of a file, `default` where it cannot be read."""
    found = tryreadstr(path)
    return default if found is None else found


def tryreadjson_def(json_path: str, default: Any) -> Any:
    """Return what the JSON in a file stands for, `default` where it cannot be read (or is ``null``)."""
    found = tryreadjson(json_path)
    return default if found is None else found


def trywrite(path: str, data: str) -> bool:
    """Write text to a file, in place of what was in it; tell whether that worked."""
    try:
        writestr(path, data)
    except Exception:  # noqa: BLE001  # False on any error is the promise
        return False
    return True


def maybereadstr(path: str, default: str, mp: Callable[[str], T]) -> T:
    """Return `mp` of the text of a file; `mp` of `default` where it cannot be read, or `mp` raises on it."""
    return trycatch(lambda: readstr(path), default, mp)


def maybereadjson(path: str, default: Any, mp: Callable[[Any], T]) -> T:
    """Return `mp` of what the JSON in a file stands for; `mp` of `default` where it cannot be read, or `mp` raises on it."""
    return trycatch(lambda: readjson(path), default, mp)
