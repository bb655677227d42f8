"""What stages return: a DRef, or lists, tuples and dicts of any nesting that hold some. Must not know what they refer to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pylightnix.refs import isdref
from pylightnix.types import DRef, StageResult

__all__ = ["map_drefs", "result_drefs"]


def result_drefs(result: StageResult) -> list[DRef]:
    """Return the DRefs in a stage's result (any nesting of lists, tuples and dicts), in traversal order."""
    found: list[DRef] = []
    stack: list[Any] = [result]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            if isdref(item):
                found.append(DRef(item))
        elif isinstance(item, dict):
            stack.extend(reversed(item.values()))
        elif isinstance(item, (list, tuple)):
            stack.extend(reversed(item))
    return found


def map_drefs(result: StageResult, replace: Callable[[DRef], Any]) -> Any:
    """Return a stage's result with ``replace(dref)`` in place of each DRef, its lists, tuples and dicts anew."""
    if isinstance(result, str):
        return replace(DRef(result)) if isdref(result) else result
    if isinstance(result, dict):
        return {key: map_drefs(value, replace) for key, value in result.items()}
    if isinstance(result, (list, tuple)):
        items = [map_drefs(item, replace) for item in result]
        return type(result)(*items) if hasattr(result, "_fields") else type(result)(items)
    return result
