"""Ranking realizations by what a user's key says of each. Must not know who asks, or what becomes of the ranking."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, Final

from pylightnix.errors import InvalidMatch, shown
from pylightnix.refs import rref2dref
from pylightnix.types import Key, RRef, StorageSettings

__all__ = ["ranked"]

_EXPECTED: Final = "expected all keys to be numbers, or all to be texts; match(key, trim) leaves out those whose key is None"
_told: Final[set[RRef]] = set()
"""Of which a warning told already that their key is not a number."""


def ranked(key: Key, S: StorageSettings, rrefs: Sequence[RRef], *, may_be_none: bool) -> list[RRef]:
    """Return the realizations by their keys, largest first and NaN last; those whose key is None are left out, if it may be.

    Ties are broken by the reference, so that the order is the same on every run.

    Raises:
        InvalidMatch: a key is neither a number nor a text, or some are numbers and others texts.
    """
    keyed = [(value, rref) for rref in rrefs if (value := key(S, rref)) is not None or not may_be_none]
    comparable = [(_comparable(value, key, rref), rref) for value, rref in keyed]
    texts = [(rank, rref) for rank, rref in comparable if isinstance(rank, str)]
    numbers = [(rank, rref) for rank, rref in comparable if not isinstance(rank, str)]
    if texts and numbers:
        (text, one), (number, other) = min(texts, key=_reference), min(numbers, key=_reference)
        raise InvalidMatch(
            rref2dref(one), f"has the key {shown(text)} for {one} and {shown(number)} for {other}, which cannot be compared", _EXPECTED
        )
    # No two kinds are left, so that all compare. What is not a number is apart from the rest: it compares with nothing.
    order = sorted((rank is not None, rank if rank is not None else 0, rref) for rank, rref in comparable)
    return [rref for _, _, rref in reversed(order)]


def _reference(ranked_one: tuple[Any, RRef]) -> RRef:
    return ranked_one[1]


def _comparable(value: Any, key: Key, rref: RRef) -> Any:
    """Return a key as something that compares exactly with all others of its kind; None for NaN."""
    plain = value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value  # numpy's and its kin
    if isinstance(plain, str):
        return str.__str__(plain)
    number = _number(plain)
    if number is None:
        raise InvalidMatch(rref2dref(rref), f"has the key {shown(value)} for {rref}", _EXPECTED)
    if number != number:
        _tell(key, rref)
        return None
    return number


def _number(value: Any) -> Any:
    from decimal import Decimal  # these here, for they take their time to load
    from fractions import Fraction
    from numbers import Integral, Rational, Real

    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Decimal):
        return math.nan if value.is_nan() else Fraction(value) if value.is_finite() else float(value)
    if isinstance(value, Rational):
        return Fraction(value)
    if isinstance(value, Real):  # a float of another precision
        return Fraction(*value.as_integer_ratio()) if math.isfinite(value) else float(value)  # type: ignore[attr-defined]
    return None


def _tell(key: Key, rref: RRef) -> None:
    if rref in _told:
        return
    _told.add(rref)
    message = f"the key of {rref} is not a number (NaN); it counts as less than all others"
    code = getattr(key, "__code__", None)
    if code is None:
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    else:  # the line to look at is that of the key
        warnings.warn_explicit(message, RuntimeWarning, code.co_filename, code.co_firstlineno)
