"""What is said between a realization that pauses and whoever makes it pause. Values only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Optional, TypeAlias

from pylightnix.types import Context, Derivation, DRef, RealizeArg, RRef, StorageSettings

__all__ = ["Answer", "Pause"]


class PausedAt(NamedTuple):
    """A derivation whose turn it is, and about which the caller is asked. No lock is held meanwhile."""

    S: StorageSettings
    """The store, its `tmpdir` a folder for this pause only, removed when the caller has answered."""
    dref: DRef
    context: Context
    derivation: Derivation
    rarg: RealizeArg


class Pause(PausedAt):
    """A pause that knows why it is one."""

    error: Optional[BaseException] = None
    """What the derivation's matcher or realizer raised just now; None when the caller wanted to be asked."""


Answer: TypeAlias = tuple[Optional[Sequence[RRef]], bool]
"""(the realizations that settle the derivation, or None to run its realizer; whether to give up instead)"""
