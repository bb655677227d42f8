"""Realizers that refuse whatever they are called with: how they do it, and how that is known beforehand.

Must not know why one is put in the place of another.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, NoReturn, Optional

from pylightnix.errors import NotRealized, PylightnixException, SandboxUnavailable
from pylightnix.options import options_of, without_options
from pylightnix.types import Context, Derivation, DRef, RealizeArg, StorageSettings

__all__ = ["Refusing", "refusals"]


class Refusing:
    """A realizer that builds nothing, because it must not or cannot. Classes of such say why."""

    __slots__ = ()
    why: ClassVar[str]

    def __call__(self, S: StorageSettings, dref: DRef, context: Context, rarg: RealizeArg) -> NoReturn:
        """Raise `NotRealized`, always."""
        raise NotRealized(dref, self.why)


def refusals(derivations: Iterable[Derivation]) -> dict[DRef, PylightnixException]:
    """Return, of the derivations that are refused if ever they are to be built, the errors that say so."""
    found = ((derivation.dref, _refusal(derivation)) for derivation in derivations)
    return {dref: error for dref, error in found if error is not None}


def _refusal(derivation: Derivation) -> Optional[PylightnixException]:
    sandbox = options_of(derivation.realizer).sandbox
    if sandbox is not None:
        return SandboxUnavailable(sandbox, derivation.dref)
    realizer = without_options(derivation.realizer)
    return NotRealized(derivation.dref, realizer.why) if isinstance(realizer, Refusing) else None
