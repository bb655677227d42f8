"""Whether what matchers and callers answer can settle a derivation. Their code is anybody's, so anything may come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

from pylightnix.errors import shown
from pylightnix.planner.messages import Candidate
from pylightnix.refs import isrref, rref2dref
from pylightnix.types import DRef

__all__ = ["problem_of_answer", "problem_of_given"]


def problem_of_given(rrefs: Any, dref: DRef) -> Optional[str]:
    """Return what is wrong with what a caller settles `dref` with, or None."""
    if isinstance(rrefs, (list, tuple)) and rrefs and all(isrref(rref) and rref2dref(rref) == dref for rref in rrefs):
        return None
    return f"is to be settled with {shown(rrefs, 200)}; expected a non-empty list of its realizations, or None to run its realizer"


def problem_of_answer(answer: Any, candidates: Sequence[Candidate]) -> Optional[str]:
    """Return what is wrong with the answer of a matcher that was offered `candidates`, or None."""
    if not isinstance(answer, (list, tuple)):
        return f"answered {shown(answer, 200)}"
    if not answer:
        return f"answered an empty list when offered {len(candidates)} realizations"
    offered = {candidate.rref for candidate in candidates}
    strange = [rref for rref in answer if not isinstance(rref, str) or rref not in offered]
    return f"answered {shown(strange[0], 200)}, which it was not offered" if strange else None
