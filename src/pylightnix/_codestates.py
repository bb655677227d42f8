"""What objects count by: a kind, and the plain values and code that make up their state.

There is no list of types to be complete. What is not plain counts by its class and by its state: that of a project's own
object is the value of the built-in type below its class, its attributes and slots, without running its code; that of
all others is what `copyreg` would restore them from. A few types say less or more than that, and are named here.
Must not know how states are hashed, nor what code is.
"""

from __future__ import annotations

import copyreg
import enum
import functools
import gc
import os
import sys
import types
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Optional

from pylightnix._codenumpy import array_value, is_array, numpy_value
from pylightnix._codetyping import typing_value
from pylightnix._names import CHANGING_METHODS
from pylightnix._origins import is_project_class, is_project_module, package_of
from pylightnix._wrappers import bound_object, instance_attributes, is_code, slot_attributes

__all__ = ["Changed", "CodeIn", "Silent", "State", "Unseen", "Used", "code_in", "state_of"]

_PROTOCOL: Final = 4
_SILENT_PACKAGES: Final = frozenset({"_thread", "logging", "pylightnix", "threading"})
"""Instances of their classes count by their type only, and nobody need know."""
_UNSEEN_MODULES: Final = frozenset({"_io", "socket", "ssl", "unittest.mock", "mock", "mock.mock"})
"""Instances of their classes have no state that says what they do."""
_USED_CLASSES: Final = (
    ("random", "Random"),
    ("numpy.random", "Generator"),
    ("numpy.random", "BitGenerator"),
    ("numpy.random", "RandomState"),
)
_HASHES: Final = ("_hashlib", "_blake2", "_md5", "_sha1", "_sha2", "_sha256", "_sha512", "_sha3")
_BY_REPR: Final = frozenset(
    {
        *("datetime.date", "datetime.time", "datetime.timedelta", "datetime.timezone", "decimal.Decimal", "fractions.Fraction"),
        *("uuid.UUID", "zoneinfo.ZoneInfo", "ipaddress.IPv4Address", "ipaddress.IPv6Address", "ipaddress.IPv4Network"),
        *("ipaddress.IPv6Network", "builtins.range"),
    }
)
"""Their state differs from Python to Python, their text does not."""


@dataclass(frozen=True, slots=True)
class State:
    """What a value counts by."""

    kind: str
    children: list[Any]
    is_ordered: bool = True


@dataclass(frozen=True, slots=True)
class Silent:
    """A value counts by its type only, and nobody need know."""


@dataclass(frozen=True, slots=True)
class Used:
    """A value changes as it is used: an iterator, a generator of numbers. What binds it counts."""


@dataclass(frozen=True, slots=True)
class Unseen:
    """A value counts by its type only, for it has no state that can be looked at."""

    problem: str


@dataclass(frozen=True, slots=True)
class CodeIn:
    """Stands in a state for the code in a value that code changes: nothing else of it counts."""

    value: Any


Changed = Callable[[type, str], str]
"""Tells whether code changes an attribute of instances of a class after they were made: ``in`` if it changes what is there,
``to`` if it puts something else there, else nothing."""


def state_of(value: Any, is_changed: Changed) -> State | Silent | Used | Unseen:
    """Return what a value that is not plain counts by."""
    cls = type(value)
    known = _builtin(value, cls) or _of_libraries(value, cls)
    if known is not None:
        return known
    if is_project_class(cls):
        return _own_object(value, is_changed)
    return _foreign_object(value, cls)


# --- types that say less or more ------------------------------------------------------------------------


def _builtin(value: Any, cls: type) -> Optional[State | Silent | Used | Unseen]:
    """Return what a value of a built-in type, or one near it, counts by."""
    if cls.__module__ == "logging" and cls.__name__ in ("Logger", "LoggerAdapter"):
        # Names of modules do not count, and many a logger has one.
        name = getattr(value, "name", "")
        return State("logger", [None if name == "__main__" or (name in sys.modules and is_project_module(name)) else name])
    if cls is object or package_of(cls.__module__) in _SILENT_PACKAGES:
        return Silent()
    if issubclass(cls, functools.partial) and cls.__module__ == "functools":
        return State("partial", [value.func, list(value.args), value.keywords, instance_attributes(value)])
    if cls is functools.partialmethod:
        return State("partialmethod", [value.func, list(value.args), value.keywords])
    if bound_object(value) is not None:
        function = getattr(value, "__func__", None)
        if function is None and value.__name__ in CHANGING_METHODS:
            return State("method", [value.__name__, CodeIn(value.__self__)])
        return State("method", [function if function is not None else value.__name__, value.__self__])
    if cls is types.MappingProxyType:
        return State("proxy", [dict(value)])
    if cls is types.SimpleNamespace:
        return State("namespace", [vars(value)])
    if cls is types.CellType:
        return State("cell", [value.cell_contents])
    if cls is slice:
        return State("slice", [value.start, value.stop, value.step])
    if cls is memoryview:
        return State("memoryview", [bytes(value), value.format, list(value.shape or ())])
    if f"{cls.__module__}.{cls.__name__}" in _BY_REPR:
        return State(cls.__name__, [repr(value)])
    if cls.__module__ == "builtins" and cls.__name__ in ("dict_keys", "dict_items", "dict_values"):
        return State(cls.__name__, list(value))
    if cls.__module__ == "re" and cls.__name__ == "Pattern":
        return State("pattern", [value.pattern, value.flags])
    if issubclass(cls, os.PathLike) and package_of(cls.__module__) == "pathlib":
        return State("path", [cls.__name__.startswith("Pure"), str(value)])
    if cls.__module__ == "_contextvars" or cls.__module__ == "contextvars":
        return _context_variable(value, cls)
    return _weak(value, cls)


def _context_variable(value: Any, cls: type) -> State | Silent:
    import contextvars

    if cls is not contextvars.ContextVar:
        return Silent()  # a context or a token: where it stands, not what it is

    def default() -> list[Any]:
        try:
            return [value.get()]
        except LookupError:
            return []

    return State("variable", [value.name, contextvars.Context().run(default), default()])


def _weak(value: Any, cls: type) -> Optional[State]:
    if cls.__module__ not in ("weakref", "_weakrefset") and not issubclass(cls, weakref.ref):
        return None
    if cls.__name__ == "WeakSet":
        return State("weak set", list(value), is_ordered=False)
    if cls.__name__ in ("WeakValueDictionary", "WeakKeyDictionary"):
        return State("weak", [list(map(list, value.items()))])
    return State("reference", [value() if issubclass(cls, weakref.ref) else None])


def _of_libraries(value: Any, cls: type) -> Optional[State | Used | Unseen]:
    """Return what a value of a library that is known here counts by."""
    if cls.__module__ in _UNSEEN_MODULES and cls.__name__ not in ("BytesIO", "StringIO"):
        return Unseen(_of_type(cls))
    if hasattr(cls, "__next__") or cls.__name__ in ("BytesIO", "StringIO") or cls.__module__ in _HASHES:
        return Used()
    if any(issubclass(cls, known) for module, name in _USED_CLASSES if (known := getattr(sys.modules.get(module), name, None))):
        return Used()
    found = typing_value(value) or numpy_value(value) or _of_standard(value, cls)
    return State("library", found) if found is not None else None


def _of_standard(value: Any, cls: type) -> Optional[list[Any]]:
    name = f"{cls.__module__}.{cls.__name__}"
    if name == "functools.KeyWrapper":  # of cmp_to_key, which shows its function to nobody
        return [name, gc.get_referents(value)]
    if name == "_struct.Struct":
        return [name, value.format]
    if name in ("decimal.Context", "_pydecimal.Context"):  # without the signals that were given while it was used
        trapped = sorted(signal.__name__ for signal, is_trapped in value.traps.items() if is_trapped)
        return ["decimal.Context", value.prec, value.rounding, value.Emin, value.Emax, value.capitals, value.clamp, trapped]
    return None


def _of_type(cls: type) -> str:
    return f"of the type {cls.__module__}.{cls.__qualname__}"


# --- objects --------------------------------------------------------------------------------------------


def _own_object(value: Any, is_changed: Changed) -> State:
    """Return what an instance of a project's class counts by. No method of that class runs."""
    cls = type(value)
    below, slotted, derived = _shape(cls)  # type: ignore[arg-type]  # a class can be hashed
    held = instance_attributes(value)
    if slotted:
        held = {**held, **dict(slot_attributes(value, is_project_class))}
    if derived:
        held = {name: item for name, item in held.items() if name not in derived}
    changed = {name: how for name in held if (how := is_changed(cls, name))}
    kept = [[name, held[name]] for name in sorted(held.keys() - changed.keys(), key=str)]
    code = [held[name] for name in sorted(changed) if changed[name] == "in"]
    return State("object", [cls, _value_below(value, below), kept, *([CodeIn(code)] if changed else [])])


@functools.lru_cache(maxsize=1024)
def _shape(cls: type) -> tuple[type, bool, frozenset[str]]:
    """Return what a project's class is built on, whether it has slots, and the names of attributes that follow from others."""
    below = next(base for base in cls.__mro__ if not is_project_class(base))
    slotted = any("__slots__" in vars(base) for base in cls.__mro__ if is_project_class(base))
    cached = (name for base in cls.__mro__ for name, member in vars(base).items() if "cached_property" in type(member).__name__)
    return below, slotted, frozenset(cached)


def _value_below(value: Any, below: Any) -> Any:
    """Return the value of the installed class that a project's class is built on, None of `object`."""
    if below in _PLAIN:
        return [below.__name__, _PLAIN[below](value)]
    if is_array(value):
        return array_value(value)
    if package_of(below.__module__) == "pathlib":
        return [below.__name__.startswith("Pure"), below.__str__(value)]
    if below is object or below.__module__ in ("abc", "typing"):
        return None
    # Not by asking the object, whose own class may say something else.
    if below.__reduce_ex__ is not object.__reduce_ex__:
        return [below, _reduced(below.__reduce_ex__(value, _PROTOCOL), instance_attributes(value))]
    if below.__reduce__ is not object.__reduce__:
        return [below, _reduced(below.__reduce__(value), instance_attributes(value))]
    # If it has no value of a plain type, then all that it has are attributes and slots.
    plain = [taken(value) for plain, taken in _PLAIN.items() if issubclass(below, plain)]
    return [below, *plain, dict(slot_attributes(value, lambda cls: not is_project_class(cls)))]


_PLAIN: Final[dict[type, Callable[[Any], Any]]] = {
    str: str.__str__,
    int: int.__int__,
    float: float.__float__,
    complex: complex.__complex__,
    bytes: lambda value: bytes(memoryview(value)),
    bytearray: lambda value: bytes(memoryview(value)),
    list: lambda value: list(list.__iter__(value)),
    tuple: lambda value: list(tuple.__iter__(value)),
    dict: lambda value: dict(dict.items(value)),
    set: lambda value: set(set.__iter__(value)),
    frozenset: lambda value: frozenset(frozenset.__iter__(value)),
}


def _foreign_object(value: Any, cls: Any) -> State | Unseen:
    """Return what an instance of an installed class counts by: what `copyreg` would restore it from."""
    if is_array(value):
        attributes = instance_attributes(value) if cls.__module__.partition(".")[0] != "numpy" else {}
        return State("object", [cls, array_value(value), attributes])
    try:
        restore = copyreg.dispatch_table.get(cls)
        reduced = restore(value) if restore is not None else cls.__reduce_ex__(value, _PROTOCOL)
    except Exception as error:  # noqa: BLE001  # code of other people's classes
        if isinstance(error, TypeError):  # what Python says of all that holds more than it can tell
            return Unseen(_of_type(cls))
        return Unseen(f"{_of_type(cls)}, and looking at it raises {type(error).__name__}")
    return State("object", [cls, _reduced(reduced, None)])


def _reduced(reduced: Any, attributes: Optional[dict[str, Any]]) -> Any:
    """Return what `__reduce_ex__` says, as plain values; without the state that is told as attributes."""
    if isinstance(reduced, str):
        return reduced
    made, arguments, state, items, pairs = (*reduced, None, None, None, None)[:5]
    if attributes is not None and isinstance(state, dict) and state.keys() == attributes.keys():
        state = None
    found: list[Any] = [made if getattr(made, "__module__", "") not in ("copyreg", "copy_reg") else None, list(arguments or ()), state]
    return [*found, _listed(items), [list(pair) for pair in _listed(pairs)]]


def _listed(items: Optional[Iterable[Any]]) -> list[Any]:
    return [] if items is None else list(items)


def code_in(value: Any) -> list[Any]:
    """Return the functions and classes in a value, in containers however deep, and in instances right in them."""
    found: list[Any] = []
    seen: set[int] = set()
    stack = [value]
    while stack:
        item = stack.pop()
        if id(item) in seen or type(item) in (str, int, float, bool, bytes, type(None)):
            continue
        seen.add(id(item))
        if is_code(item):
            found.append(item)
        elif issubclass(type(item), dict):
            stack += [*dict.keys(item), *dict.values(item)]
        elif type(item) is types.MappingProxyType:
            stack.append(dict(item))
        elif type(item) in (list, tuple, set, frozenset):
            stack += list(item)
        elif bound_object(item) is not None or type(item) is functools.partial:
            stack += [getattr(item, "__func__", None) or getattr(item, "func", None)]
        elif is_project_class(type(item)) and not issubclass(type(item), (types.ModuleType, enum.Enum)):
            found.append(type(item))
    return found
