"""The names of builds and operations: never given twice, and not to be guessed. Whoever types one types how it begins."""

from __future__ import annotations

import secrets
from typing import Final

__all__ = ["new_name"]

_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
"""Digits and letters without those that people mix up (Crockford's base 32)."""
_LENGTH: Final = 26
"""130 random bits."""


def new_name(kind: str) -> str:
    """Return a name such as ``b-7f3k2m9x4tq0wz5r8v1hc6yepd``, that no other daemon of the store gives or gave."""
    return f"{kind}-{''.join(secrets.choice(_ALPHABET) for _ in range(_LENGTH))}"
