"""Data that code reaches, as text: equal text means equal values, in every process and on every machine.

Functions and classes inside data are left to whoever asks. Must not know how code is found or hashed.

Rules:

- Numbers, text, bytes, None, containers, dates, decimals, UUIDs, patterns, paths, arrays of numpy and
  members of enumerations count by their value; instances of a project's classes by class and attributes.
- Dictionaries and sets have no order. Lists and tuples have.
- Text and paths that lead into, or to a folder above, the folder of the module are taken from there, so
  that it does not matter where a project lies.
- What has no value of interest (loggers, locks, type aliases, objects of this package) counts by its type.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import os
import types
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, Final, Optional

from pylightnix._origins import is_project_module, package_of
from pylightnix.errors import CodeKeyError, shown

__all__ = ["DataText", "is_code", "shown_value", "snapshot", "type_text"]

_SIZE_MAX: Final = 1 << 20
"""Most bytes of text that one value may give."""
_ARRAY_BYTES_MAX: Final = 1 << 22
_DEPTH_MAX: Final = 60
_SHOWN_CHARACTERS: Final = 60
_BY_REPR: Final = {
    "datetime": ("date", "datetime", "time", "timedelta", "timezone"),
    "decimal": ("Decimal",),
    "fractions": ("Fraction",),
    "uuid": ("UUID",),
    "zoneinfo": ("ZoneInfo",),
    "builtins": ("range", "slice", "bytearray"),
    "array": ("array",),
}
_SILENT_PACKAGES: Final = frozenset(
    {"_contextvars", "_thread", "_weakref", "abc", "logging", "pylightnix", "threading", "types", "typing", "weakref"}
)
"""Instances of their classes count by their type only, and nobody need know."""
_CODE: Final = (
    *(types.FunctionType, types.BuiltinFunctionType, types.MethodType, type, functools.partial),
    *(staticmethod, classmethod, property),
)
_ATOMS: Final = (str, int, float, complex, bytes)


class _TooMuch(Exception):
    """A value is too large or too deep to count."""


def is_code(value: Any) -> bool:
    """Tell whether a value stands for code that can be looked for: functions, classes, methods, partial calls, wrappers of them."""
    if issubclass(type(value), _CODE):  # not isinstance: a proxy may raise when it is asked what it is
        return True
    return callable(value) and not is_project_module(type(value).__module__) and wrapped_of(value) is not None


def wrapped_of(value: Any) -> Any:
    """Return what a wrapper wraps, None if it is none."""
    for name in ("__wrapped__", "py_func"):
        try:
            found = getattr(value, name, None)
        except Exception:  # noqa: BLE001  # a descriptor of somebody's class
            continue
        if callable(found):
            return found
    return None


@dataclass(slots=True)
class DataText:
    """Turns one value into text."""

    code: Callable[[Any], bytes]
    """Called with functions and classes on the way; returns what stands for one in the text."""
    folder: str
    """Of the module that has the value, without a slash at its end; empty if it has none."""
    problems: list[str] = field(default_factory=list)
    """What was met that does not count as it should."""
    _size: int = 0
    _open: dict[int, int] = field(default_factory=dict)

    def of(self, value: Any) -> bytes:
        """Return the text of a value."""
        try:
            return self._text(value)
        except (_TooMuch, RecursionError) as error:
            self.problems = [f"it is {error if isinstance(error, _TooMuch) else 'nested too deeply'}"]
        except CodeKeyError:
            raise
        except Exception as error:  # noqa: BLE001  # methods of users' objects
            self.problems = [f"looking at it raises {type(error).__name__}"]
        return type_text(value)

    def of_code_in(self, value: Any) -> bytes:
        """Return the text of state: of the functions and classes right in it, and of its type."""
        if isinstance(value, Mapping):
            items = [(DataText(self.code, self.folder).of(key), item) for key, item in value.items() if is_code(item)]
        elif isinstance(value, (list, tuple, set, frozenset)):
            named = sorted((getattr(item, "__qualname__", ""), number) for number, item in enumerate(value) if is_code(item))
            every = list(value)
            items = [(name.encode("ascii", "backslashreplace"), every[number]) for name, number in named]
        else:
            items = []
        pairs = [key + b"=" + self.code(item) for key, item in sorted(items, key=lambda pair: pair[0])]
        cls = self.code(type(value)) if is_project_module(type(value).__module__) else type_text(value)
        return b"state:" + cls + b"{" + b",".join(pairs) + b"}"

    def _text(self, value: Any) -> bytes:
        if value is None or value is Ellipsis or value is NotImplemented or type(value) is bool:
            return self._sized(ascii(value).encode("ascii"))
        if issubclass(type(value), enum.Enum):
            # Flags that are set together have other names in other Pythons.
            which = self._text(value.value) if isinstance(value, enum.Flag) else ascii(value.name).encode("ascii")
            return b"member:" + which + self.code(type(value))
        if issubclass(type(value), _ATOMS):
            return self._sized(self._atom(value))
        if is_code(value):
            return self.code(value)
        known = self._open.get(id(value))
        if known is not None:
            return f"^{known}".encode("ascii")  # a value that holds itself
        if len(self._open) >= _DEPTH_MAX:
            raise _TooMuch("nested too deeply")
        self._open[id(value)] = len(self._open)
        try:
            return self._compound(value)
        finally:
            del self._open[id(value)]

    def _sized(self, text: bytes) -> bytes:
        self._size += len(text) + 1
        if self._size > _SIZE_MAX:
            raise _TooMuch(f"larger than {_SIZE_MAX} bytes")
        return text

    def _atom(self, value: Any) -> bytes:
        base = next(kind for kind in _ATOMS if isinstance(value, kind))
        if base is str:
            return b"str:" + ascii(self._placed(str.__str__(value))).encode("ascii")
        shown = f"{int(value):x}" if base is int else base.__repr__(value)
        return f"{base.__name__}:{shown}".encode("ascii", "backslashreplace")

    def _placed(self, text: str) -> str:
        """Return text with the folder of the module, or one above it, as a mark."""
        folder = self.folder
        if len(folder) < 2 or not text.startswith(os.sep):
            return text
        if text == folder or text.startswith(folder + os.sep):
            return "\0here" + text[len(folder) :]
        if len(text) > 1 and folder.startswith(text.rstrip(os.sep) + os.sep):
            return "\0above" + str(os.path.relpath(folder, text).count(os.sep))
        return text

    def _compound(self, value: Any) -> bytes:
        cls = type(value)
        if package_of(cls.__module__) == "pylightnix":
            return type_text(value)
        if isinstance(value, (dict, types.MappingProxyType)):
            keyed = sorted(((self._text(key), item) for key, item in value.items()), key=lambda pair: pair[0])
            return self._kind(cls, dict) + b"{" + b",".join(key + b"=" + self._text(item) for key, item in keyed) + b"}"
        if isinstance(value, (list, tuple)) or (cls.__module__, cls.__name__) == ("collections", "deque"):
            return self._kind(cls, list, tuple) + b"[" + b",".join(map(self._text, value)) + b"]"
        if isinstance(value, Set):
            # Code gets its number in the text as it is met; by name, for a set is walked in no order.
            named = sorted((item for item in value if is_code(item)), key=lambda item: getattr(item, "__qualname__", ""))
            texts = sorted(self._text(item) for item in value if not is_code(item)) + [self._text(item) for item in named]
            return self._kind(cls, set, frozenset) + b"{" + b",".join(texts) + b"}"
        if package_of(cls.__module__) == "pathlib" and isinstance(value, os.PathLike):
            return b"path:" + ascii(self._placed(str(value))).encode("ascii")
        if cls.__name__ in _BY_REPR.get(package_of(cls.__module__), ()):
            return self._sized(f"{cls.__name__}:{value!r}".encode("ascii", "backslashreplace"))
        if cls.__module__ == "re" and cls.__name__ == "Pattern":
            return b"pattern:" + self._text(value.pattern) + b",%d" % value.flags
        array = self._array(value)
        return array if array is not None else self._object(value)

    def _kind(self, cls: type, *plain: type) -> bytes:
        return cls.__name__.encode("ascii", "backslashreplace") if cls in plain else self.code(cls)

    def _array(self, value: Any) -> Optional[bytes]:
        """Return the text of an array or a number of numpy's, None for all else."""
        if package_of(type(value).__module__) != "numpy" or not hasattr(value, "tobytes") or value.dtype.hasobject:
            return None
        if value.nbytes > _ARRAY_BYTES_MAX:
            raise _TooMuch(f"an array of more than {_ARRAY_BYTES_MAX} bytes")
        # Little-endian and in C order, whatever it is here.
        plain = value.astype(value.dtype.newbyteorder("<"))
        digest = hashlib.sha256(plain.tobytes()).hexdigest()
        return f"array:{plain.dtype.str}{tuple(value.shape)}{digest}".encode("ascii")

    def _object(self, value: Any) -> bytes:
        cls = type(value)
        if cls is object or package_of(cls.__module__) in _SILENT_PACKAGES:
            if cls.__name__ == "SimpleNamespace":
                return b"namespace" + self._text(vars(value))
            return type_text(value)
        if is_project_module(cls.__module__) and not isinstance(value, types.ModuleType):
            return b"object" + self.code(cls) + self._text(_attributes(value))
        name = getattr(value, "__name__", None)
        if callable(value) and isinstance(name, str):  # a ufunc, for example
            return f"{package_of(cls.__module__)}:{name}".encode("ascii", "backslashreplace")
        is_module = isinstance(value, types.ModuleType)
        what = f"the module {name}, used as a value" if is_module else f"of the type {cls.__module__}.{cls.__qualname__}"
        self.problems.append(f"it is {what}" if len(self._open) == 1 else f"it holds something that is {what}")
        return type_text(value)


def _attributes(value: Any) -> dict[str, Any]:
    found = dict(getattr(value, "__dict__", {}))
    for cls in type(value).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in [slots] if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                found[name] = getattr(value, name)
    return found


def type_text(value: Any) -> bytes:
    """Return the text of a value that counts by its type only."""
    cls = type(value)
    package = package_of(cls.__module__)
    # Names of classes in `typing` differ from Python to Python.
    name = "" if package in ("typing", "types") else f".{cls.__qualname__}"
    return f"<{package if not is_project_module(cls.__module__) else ''}{name}>".encode("ascii", "backslashreplace")


def shown_value(value: Any) -> str:
    """Return a short rendering for people."""
    if type(value) in _ATOMS or value is None or type(value) in (bool, list, tuple, dict, set, frozenset):
        return shown(value, _SHOWN_CHARACTERS)
    return f"<{type(value).__qualname__}>"


def snapshot(value: Any) -> Optional[bytes]:
    """Return bytes that are equal as long as a value is, within this process; None if it holds more than plain data."""
    import marshal

    try:
        return marshal.dumps(value, 2)  # as of version 3 the bytes tell how many references there are
    except ValueError:
        return None
