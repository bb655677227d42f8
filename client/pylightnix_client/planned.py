"""Dry runs for people: what fails for sure is among the failures, with the errors that a build would end with.

Must not print, nor know which command wants it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pylightnix.events import StepKind
from pylightnix.refusing import refusals
from pylightnix.types import Closure

if TYPE_CHECKING:
    from pylightnix.embedded import Outcome

__all__ = ["dry_run"]


def dry_run(realize: Callable[..., Outcome], closure: Closure, **wishes: Any) -> Outcome:
    """Return what `realize` finds in a dry run of `closure`. Failed is, too, what a realizer would refuse.

    Args:
        realize: `realize_closure`, of `pylightnix.remote` or of `pylightnix.embedded`.
        closure: as `instantiate` makes it.
        wishes: other parameters of `realize`.
    """
    refused = refusals(closure.derivations)
    outcome = realize(closure, dry_run=True, assert_realized=list(refused), **wishes)
    errors = [(step.dref, refused[step.dref]) for step in outcome.steps if step.kind is StepKind.refused]
    return replace(outcome, failed=[*outcome.failed, *errors])
