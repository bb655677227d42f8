"""References as text: how a DRef, an RRef, a name and a refpath are spelt, taken apart and checked.

Purely textual: must not look at any store.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from pylightnix.errors import InvalidName, InvalidReference, kind_of
from pylightnix.types import DRef, Hash, HashPart, Name, RefPath, RRef

__all__ = [
    "PYLIGHTNIX_NAMEPAT",
    "PYLIGHTNIX_SELF_TAG",
    "assert_valid_dref",
    "assert_valid_hash",
    "assert_valid_hashpart",
    "assert_valid_name",
    "assert_valid_refpath",
    "assert_valid_rref",
    "isdref",
    "isrefpath",
    "isrref",
    "isselfpath",
    "mkdref",
    "mkname",
    "mkrefpath",
    "mkrref",
    "rref2dref",
    "selfref",
    "trimhash",
    "undref",
    "unrref",
]

PYLIGHTNIX_NAMEPAT: Final = "[a-zA-Z0-9_-]"
"""A regular expression for one character of a name."""

PYLIGHTNIX_SELF_TAG: Final = "__self__"
"""The text of `selfref`."""
selfref: Final = PYLIGHTNIX_SELF_TAG
"""The head of a self-path: ``[selfref, 'file']`` in a config promises the artifact ``file``."""

NAME_LENGTH_MAX: Final = 211
"""Longest name, in characters. With its hash and a dash a folder name stays under 255 bytes (Nix's limit too)."""

_HEX: Final = "[0-9a-f]{32}"
# \Z and fullmatch rather than $: a dollar sign lets a reference end in a newline.
_NAME: Final = re.compile(f"{PYLIGHTNIX_NAMEPAT}{{1,{NAME_LENGTH_MAX}}}")
_DREF: Final = re.compile(f"dref:({_HEX})-({PYLIGHTNIX_NAMEPAT}{{1,{NAME_LENGTH_MAX}}})")
_RREF: Final = re.compile(f"rref:({_HEX})-({_HEX})-({PYLIGHTNIX_NAMEPAT}{{1,{NAME_LENGTH_MAX}}})")
_HASHPART: Final = re.compile(_HEX)
_HASH: Final = re.compile("[0-9a-f]{64}")


def mkname(s: str) -> Name:
    """Return `s` as a name.

    Raises:
        InvalidName: it is empty, too long, or has other characters than ``[a-zA-Z0-9_-]``.
    """
    assert_valid_name(s)
    return Name(s)


def mkdref(dhash: HashPart | str, refname: Name | str) -> DRef:
    """Return ``dref:<dhash>-<refname>``; the inverse of `undref`."""
    assert_valid_hashpart(dhash)
    assert_valid_name(refname)
    return DRef(f"dref:{dhash}-{refname}")


def undref(r: DRef | str) -> tuple[HashPart, Name]:
    """Take a DRef apart into its hash part and its name."""
    found = _DREF.fullmatch(r) if isinstance(r, str) else None
    if found is None:
        raise InvalidReference(r, "a derivation reference dref:<32 hex digits>-<name>")
    return HashPart(found[1]), Name(found[2])


def mkrref(rhash: HashPart | str, dhash: HashPart | str, refname: Name | str) -> RRef:
    """Return ``rref:<rhash>-<dhash>-<refname>``; the inverse of `unrref`."""
    assert_valid_hashpart(rhash)
    assert_valid_hashpart(dhash)
    assert_valid_name(refname)
    return RRef(f"rref:{rhash}-{dhash}-{refname}")


def unrref(r: RRef | str) -> tuple[HashPart, HashPart, Name]:
    """Take an RRef apart into its own hash part, its derivation's and the name."""
    found = _RREF.fullmatch(r) if isinstance(r, str) else None
    if found is None:
        raise InvalidReference(r, "a realization reference rref:<32 hex digits>-<32 hex digits>-<name>")
    return HashPart(found[1]), HashPart(found[2]), Name(found[3])


def rref2dref(rref: RRef | str) -> DRef:
    """Return the derivation that a realization is one of."""
    _, dhash, name = unrref(rref)
    return DRef(f"dref:{dhash}-{name}")


def trimhash(h: Hash | str) -> HashPart:
    """Return the first 32 digits of a hash."""
    assert_valid_hash(h)
    return HashPart(h[:32])


def mkrefpath(r: DRef | str, items: Sequence[str] = []) -> RefPath:
    """Return the refpath of the artifact `items` (path components) inside the derivation `r`."""
    assert_valid_dref(r)
    return [str(r), *items]


def isdref(ref: Any) -> bool:
    """Tell whether `ref` is spelt like a derivation reference."""
    return isinstance(ref, str) and ref.startswith("dref:") and _DREF.fullmatch(ref) is not None


def isrref(ref: Any) -> bool:
    """Tell whether `ref` is spelt like a realization reference."""
    return isinstance(ref, str) and ref.startswith("rref:") and _RREF.fullmatch(ref) is not None


def isrefpath(p: Any) -> bool:
    """Tell whether `p` is a list of texts of which the first, and only that, is a DRef."""
    return isinstance(p, list) and len(p) > 0 and isdref(p[0]) and all(isinstance(item, str) and not isdref(item) for item in p[1:])


def isselfpath(p: Any) -> bool:
    """Tell whether `p` is a list of texts of which the first is `selfref`."""
    return isinstance(p, list) and len(p) > 0 and p[0] == selfref and all(isinstance(item, str) for item in p)


def assert_valid_dref(ref: Any) -> None:
    """Raise `InvalidReference` unless `ref` is a derivation reference."""
    if not isdref(ref):
        undref(ref)


def assert_valid_rref(ref: Any) -> None:
    """Raise `InvalidReference` unless `ref` is a realization reference."""
    if not isrref(ref):
        unrref(ref)


def assert_valid_hash(h: Any) -> None:
    """Raise `InvalidReference` unless `h` is 64 hexadecimal digits."""
    if not isinstance(h, str) or _HASH.fullmatch(h) is None:
        raise InvalidReference(h, "a hash of 64 lower-case hexadecimal digits")


def assert_valid_hashpart(hp: Any) -> None:
    """Raise `InvalidReference` unless `hp` is 32 hexadecimal digits."""
    if not isinstance(hp, str) or _HASHPART.fullmatch(hp) is None:
        raise InvalidReference(hp, "a hash part of 32 lower-case hexadecimal digits")


def assert_valid_name(s: Any) -> None:
    """Raise `InvalidName` unless `s` can stand at the end of a reference."""
    if not isinstance(s, str):
        raise InvalidName(s, f"it is {kind_of(s)}, not text")
    if _NAME.fullmatch(s) is None:
        bad = sorted({c for c in s if not re.fullmatch(PYLIGHTNIX_NAMEPAT, c)})
        if bad:
            problem = f"it has the characters {' '.join(map(repr, bad))}"
        else:
            problem = f"it has {len(s)} characters"
        raise InvalidName(s if len(s) <= NAME_LENGTH_MAX else s[:40] + "…", problem)


def assert_valid_refpath(refpath: Any) -> None:
    """Raise `InvalidReference` unless `refpath` is a refpath, `[dref, 'a', 'b']`."""
    if not isrefpath(refpath):
        raise InvalidReference(refpath, "a refpath [<dref>, 'folder', …, 'file']")
