"""Objects that stand for other code: what they wrap, as far as it is really there.

Attributes are looked for in the object and its class, never asked for by name alone: a stand-in that has an answer to
every name would lead on without end. Must not know graphs.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from typing import Any, Final

from pylightnix._origins import is_project_class

__all__ = ["bound_object", "has_attribute", "instance_attributes", "is_bound_call", "is_code", "slot_attributes", "wrapped_of"]

_CODE: Final = (
    *(types.FunctionType, types.BuiltinFunctionType, types.MethodType, type, staticmethod, classmethod, property),
    *(types.MethodWrapperType, types.WrapperDescriptorType, types.MethodDescriptorType, types.ClassMethodDescriptorType),
    *(functools.cached_property, functools.singledispatchmethod),
)
_WRAPPED: Final = ("__wrapped__", "py_func")


def is_code(value: Any) -> bool:
    """Tell whether a value stands for code that can be looked for: functions, classes, descriptors, wrappers of them.

    Partial calls and bound methods do not: they are data, with code in it.
    """
    if issubclass(type(value), _CODE):  # not isinstance: a proxy may raise when it is asked what it is
        return not is_bound_call(value)
    return callable(value) and not is_project_class(type(value)) and wrapped_of(value) is not None


def is_bound_call(value: Any) -> bool:
    """Tell whether a value is code bound to an object, which counts with it."""
    if issubclass(type(value), (functools.partial, functools.partialmethod)):
        return True
    return bound_object(value) is not None


def bound_object(value: Any) -> Any:
    """Return the object that a method is bound to; None if it is no method, or one of a module or of a class that is not the project's."""
    if not issubclass(type(value), (types.MethodType, types.BuiltinFunctionType, types.MethodWrapperType)):
        return None
    bound = value.__self__
    if issubclass(type(bound), types.ModuleType):
        return None
    is_of_class = issubclass(type(bound), type) and isinstance(value, types.BuiltinFunctionType)
    return None if is_of_class and not is_project_class(bound) else bound


def wrapped_of(value: Any) -> Any:
    """Return what a wrapper wraps, None if it is none."""
    for name in _WRAPPED:
        try:
            found = getattr(value, name) if has_attribute(value, name) else None
        except Exception:  # noqa: BLE001  # a descriptor of somebody's class
            continue
        if callable(found):
            return found
    return None


def has_attribute(value: Any, name: str) -> bool:
    """Tell whether an object or its class has an attribute, without asking the object."""
    return name in instance_attributes(value) or any(name in vars(cls) for cls in type(value).__mro__)


def instance_attributes(value: Any) -> dict[str, Any]:
    """Return what an object holds in its `__dict__`; nothing if it has none."""
    try:
        found = object.__getattribute__(value, "__dict__")
    except Exception:  # noqa: BLE001  # an object without one, or a property of somebody's class
        return {}
    return found if type(found) is dict else {}


def slot_attributes(value: Any, counts: Callable[[type], bool]) -> Iterator[tuple[str, Any]]:
    """Yield what an object holds in slots of the classes that count, by name."""
    for cls in filter(counts, type(value).__mro__):
        slots = vars(cls).get("__slots__", ())
        for name in [slots] if isinstance(slots, str) else list(slots):
            mangled = f"_{cls.__name__.lstrip('_')}{name}" if name.startswith("__") and not name.endswith("__") else name
            member = vars(cls).get(mangled)
            if isinstance(member, types.MemberDescriptorType):
                try:
                    yield mangled, member.__get__(value)
                except AttributeError:  # a slot that was not filled
                    continue
