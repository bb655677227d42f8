"""Pairs of the differential test of the code key that do not hold yet. This list must be empty in the end."""

from __future__ import annotations

from typing import Final

__all__ = ["NOT_YET"]

NOT_YET: Final = frozenset(
    {
        "class made by make_dataclass",
        "class method: global",
        "class method: partial",
        "cmp_to_key: global",
        "cmp_to_key: slots",
        "decimal context: closure",
        "decimal context: global",
        "logger: global",
        "logger: star import",
        "struct: global",
        "struct: partial",
        "subclass of pathlib.PurePosixPath, value: global",
        "subclasses found at run time",
    }
)
