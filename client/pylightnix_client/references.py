"""References as users give them: in full, by how they begin, or by a path in the store.

Looks into the store only for what is not a reference in full.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Optional, Union

from pylightnix.errors import InvalidReference
from pylightnix.refs import isdref, isrref
from pylightnix.storage import store_layout
from pylightnix.types import DRef, RRef, StorageSettings

__all__ = ["Reference", "existing_realization", "reference_of_path", "resolve_reference", "stored_references"]

Reference = Union[DRef, RRef]

_KINDS: Final = {"dref": "a derivation (dref:…)", "rref": "a realization (rref:…)"}
_HEX_MIN: Final = 4
_BEGINNING: Final = re.compile(rf"((?P<kind>dref|rref):)?(?P<rest>[0-9a-f]{{{_HEX_MIN},32}}(-[a-zA-Z0-9_-]*)?)")


def resolve_reference(text: str, S: StorageSettings, kinds: Sequence[str] = ("dref", "rref")) -> Reference:
    """Return what `text` refers to: a reference, the beginning of just one, or a path to a folder of the store.

    A reference in full need not exist. A beginning has at least 4 hexadecimal digits; ``dref:`` or ``rref:`` may be left out.

    Raises:
        InvalidReference: it is none of these, or of another kind than `kinds`.
    """
    found: Optional[Reference]
    if isdref(text):
        found = DRef(text)
    elif isrref(text):
        found = RRef(text)
    elif (beginning := _BEGINNING.fullmatch(text)) is not None:
        found = _only(text, stored_references(text, S, [beginning["kind"]] if beginning["kind"] else kinds), kinds)
    elif text.startswith(("dref:", "rref:")) or not os.path.lexists(text):
        raise InvalidReference(text, f"{_expected(kinds)}, its first {_HEX_MIN} hexadecimal digits or more, or a path in the store")
    else:
        found, inner = reference_of_path(text, S)
        if inner:
            raise InvalidReference(text, f"{_expected(kinds)} or its folder; this path is inside {found}")
    if found[:4] not in kinds:
        raise InvalidReference(text, f"{_expected(kinds)}; this is {found}")
    return found


def _expected(kinds: Sequence[str]) -> str:
    return " or ".join(_KINDS[kind] for kind in kinds)


def stored_references(beginning: str, S: StorageSettings, kinds: Sequence[str]) -> Iterator[Reference]:
    """Yield the references in the store that begin with `beginning`, spelt with or without their kind."""
    from pylightnix.query import alldrefs, allrrefs

    sources: dict[str, Iterable[Reference]] = {"dref": alldrefs(S), "rref": allrrefs(S)}
    for kind in kinds:
        start = beginning if beginning.startswith(f"{kind}:") else f"{kind}:{beginning}"
        yield from (ref for ref in sources[kind] if ref.startswith(start))


def _only(text: str, found: Iterable[Reference], kinds: Sequence[str]) -> Reference:
    several = sorted(found)
    if not several:
        raise InvalidReference(text, f"{_expected(kinds)}; nothing in this store begins so")
    if len(several) > 1:
        shown = ", ".join(several[:4]) + (", …" if len(several) > 4 else "")
        raise InvalidReference(text, f"the beginning of one reference; {len(several)} begin so ({shown})")
    return several[0]


def reference_of_path(path: str, S: StorageSettings) -> tuple[Reference, str]:
    """Return which realization (or derivation) of the store a path lies in, and the path inside it; links are followed.

    Raises:
        InvalidReference: it lies elsewhere.
    """
    from pylightnix.query import located

    found = located(path, S)
    if found is None:
        raise InvalidReference(path, f"a path in the store {os.path.realpath(store_layout(S).storage)}")
    return found


def existing_realization(rref: RRef, S: StorageSettings) -> str:
    """Return the folder of a realization.

    Raises:
        MissingRealization: it is not there.
    """
    from pylightnix.errors import MissingRealization

    layout = store_layout(S)
    folder = layout.realization(rref)
    if not os.path.isdir(folder):
        raise MissingRealization(rref, folder)
    return folder
