"""Objects of `typing` that programs read at run time, as plain values. Never imports it: who has one has it loaded.

Must not know how values are hashed.
"""

from __future__ import annotations

import sys
import types
from typing import Any, Final, Optional

__all__ = ["typing_value"]

_PARAMETERS: Final = ("TypeVar", "ParamSpec", "TypeVarTuple")
_MODULES: Final = ("typing", "typing_extensions", "_typing")


def typing_value(value: Any) -> Optional[list[Any]]:
    """Return what an object of `typing` counts by, None if it is none."""
    cls = type(value)
    typing: Any = sys.modules.get("typing")
    if typing is None or (cls.__module__ not in _MODULES and cls not in (types.GenericAlias, types.UnionType)):
        return None
    if cls.__name__ in _PARAMETERS:
        # Others have them lazily, and may not have what they name.
        asked = ("__bound__", "__constraints__", "__covariant__", "__contravariant__", "__default__", "__infer_variance__")
        found = {name: _asked(value, name) for name in asked}
        return ["parameter", cls.__name__, value.__name__, {name: held for name, held in found.items() if held not in (None, False, ())}]
    if cls.__name__ == "NewType":
        return ["NewType", value.__name__, value.__supertype__]
    if cls.__name__ == "ForwardRef":
        return ["ForwardRef", value.__forward_arg__]
    if cls.__name__ == "TypeAliasType":
        return ["type", value.__name__, value.__value__, list(value.__type_params__)]
    if hasattr(value, "__metadata__"):
        return ["annotated", value.__origin__, list(value.__metadata__)]
    origin = typing.get_origin(value)
    if origin is None:
        return ["special", getattr(value, "_name", None) or getattr(value, "__name__", None) or cls.__name__]
    if origin is types.UnionType or origin is typing.Union:
        return ["union", *typing.get_args(value)]
    return ["alias", cls.__module__, origin, list(typing.get_args(value))]


def _asked(value: Any, name: str) -> Any:
    found = getattr(value, name, None)
    return None if type(found).__name__ in ("NoDefaultType", "_NoDefaultType") else found
