"""How much an archive may hold. Values only, apart from what unpacks, so that declaring a stage loads none of that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Final, Optional

from pylightnix.errors import Misuse

__all__ = ["UnpackLimits", "checked_limits"]

_MAX: Final = 1 << 53
"""What fits into a message to a daemon."""


@dataclass(frozen=True, slots=True)
class UnpackLimits:
    """What one archive may become. The usual limits stop bombs; raise one for an archive that is to be trusted."""

    entries: int = 2_000_000
    """Files, folders and links, those too that are only named on the way to others."""
    total_bytes: int = 1 << 40
    """Contents of all files, holes included."""
    ratio: int = 250
    """How many times larger than the archive its contents may be…"""
    ratio_from_bytes: int = 1 << 30
    """…once they are larger than this."""
    memory_bytes: int = 1 << 30
    """How far back its compression may look: the dictionary of xz, LZMA and 7z. Four times what programs take at their strongest level."""
    zstd_window_bytes: int = 1 << 27
    """The same of zstd: what `zstd -d` takes without an option."""


def checked_limits(limits: object, what: str) -> Optional[UnpackLimits]:
    """Return limits that `what` was given, None for the usual ones.

    Raises:
        Misuse: they are neither `UnpackLimits` nor a dict of some of its fields, or one is no number of things.
    """
    if limits is None:
        return None
    names = [each.name for each in fields(UnpackLimits)]
    if isinstance(limits, UnpackLimits):
        given: Mapping[str, object] = asdict(limits)
    elif isinstance(limits, Mapping):
        given = limits
    else:
        raise Misuse(f"{what} expects for limits UnpackLimits(…) or a dict, found {limits!r:.100}; write limits=UnpackLimits(ratio=1000)")
    for name, value in given.items():
        if name not in names:
            raise Misuse(f"{what} has no limit {name!r:.100}; expected some of {', '.join(names)}")
        if type(value) is not int or not 0 <= value <= _MAX:
            raise Misuse(f"{what} expects for the limit {name} a number up to {_MAX}, found {value!r:.100}")
    return UnpackLimits(**{str(name): value for name, value in given.items() if type(value) is int})
