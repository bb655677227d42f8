"""The names of builds and operations: short, never given twice, and not to be guessed."""

from __future__ import annotations

import secrets
from typing import Final

__all__ = ["new_name"]

_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
"""Digits and letters without those that people mix up (Crockford's base 32)."""
_LENGTH: Final = 10
"""Fifty random bits: among a million builds of a store two share a name with a chance of 1 to 2000."""


def new_name(kind: str) -> str:
    """Return a name such as ``b-7f3k2m9x4t``, that no other daemon of the store gives or gave."""
    return f"{kind}-{''.join(secrets.choice(_ALPHABET) for _ in range(_LENGTH))}"
