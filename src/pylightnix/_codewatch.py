"""Whether what a walk found would be found again: names, functions, classes and values that stay as they are.

Each function takes a look now, and returns one that compares. Must not know graphs.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

from pylightnix._codeimports import MISSING
from pylightnix._codestates import Changed, code_in
from pylightnix._codevalues import fingerprint
from pylightnix._wrappers import instance_attributes

__all__ = ["same_code", "same_name", "same_value", "unchanged_attributes", "unchanged_class", "unchanged_function"]


def same_name(namespace: dict[str, Any], name: str, value: Any) -> Callable[[], bool]:
    return lambda: namespace.get(name, MISSING) is value


def same_value(value: Any, is_changed: Changed, is_plain: bool) -> Callable[[], bool]:
    taken = fingerprint(value, is_changed, is_plain)
    return lambda: bool(fingerprint(value, is_changed, is_plain) == taken)


def same_code(value: Any) -> Callable[[], bool]:
    taken = code_in(value)  # kept, so that no id is given anew
    ids = set(map(id, taken))
    return lambda: len(taken) >= 0 and set(map(id, code_in(value))) == ids


def unchanged_function(function: types.FunctionType) -> Callable[[], bool]:
    code, given, named = function.__code__, function.__defaults__, function.__kwdefaults__
    attributes = unchanged_attributes(function)
    return lambda: function.__code__ is code and function.__defaults__ is given and function.__kwdefaults__ is named and attributes()


def unchanged_attributes(pyobj: Any) -> Callable[[], bool]:
    taken = dict(instance_attributes(pyobj))
    return lambda: _are_same(instance_attributes(pyobj), taken)


def unchanged_class(cls: type) -> Callable[[], bool]:
    taken, bases = dict(vars(cls)), cls.__bases__
    return lambda: cls.__bases__ is bases and _are_same(vars(cls), taken)


def _are_same(now: Any, taken: dict[str, Any]) -> bool:
    return len(now) == len(taken) and all(now.get(name, MISSING) is item for name, item in taken.items())
