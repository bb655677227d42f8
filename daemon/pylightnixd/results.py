"""What came of an operation that has ended, and the rows in which clients are told of it.

Holds nothing that only a running operation needs: no plan, no connection, no traceback. Must not know for how long it is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Optional

import msgspec
import trio

from pylightnix.planner.plan import PlanOutcome
from pylightnix.protocol import messages as m
from pylightnix.protocol.framing import encode_value
from pylightnix.types import DRef
from pylightnixd.report import FailedBuild, failed_row

__all__ = ["FAILURES_BYTES_MAX", "FailureRoom", "Result", "page", "row_bytes"]

ROWS_AT_ONCE: Final = 500
"""How many rows are made before others have a turn."""
BYTES_PER_ANSWER: Final = 6 << 20
FAILURES_BYTES_MAX: Final = 64 << 20
_SHORT_CHARACTERS: Final = 2000
_EACH_BYTES: Final = 2048
"""What any result takes, roughly."""
_REFERENCE_BYTES: Final = 200
_ROW_BYTES: Final = 1024


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """All that a client may ask of an operation when it has ended. Made by `of`."""

    id: str
    user: str
    targets: Sequence[str]
    created: float
    """When it was begun, UTC seconds since the epoch."""
    ended: float
    """UTC seconds since the epoch."""
    done: int
    total: int
    failed: Sequence[m.FailedRow]
    told: Sequence[tuple[DRef, str, str]]
    """Warnings that matchers and builds gave."""
    _outcome: Optional[PlanOutcome]
    """Without its failures. None if the operation failed as a whole."""

    @classmethod
    def of(cls, outcome: Optional[PlanOutcome], trouble: Optional[BaseException], *, targets: Sequence[str], **known: Any) -> Result:
        """Return the result of an operation that came to this outcome, or failed as a whole, with `known` about it."""
        if outcome is None:
            row = failed_row(DRef(""), trouble or AssertionError("BUG: ended without an outcome"))
            return cls(failed=[msgspec.structs.replace(row, dref=targets[0] if targets else None)], _outcome=None, targets=targets, **known)
        failed = [error.row if isinstance(error, FailedBuild) else failed_row(dref, error) for dref, error in outcome.failed]
        return cls(failed=failed, _outcome=replace(outcome, failed=[]), targets=targets, **known)

    def numbers(self) -> m.WaitResult:
        """Return what `wait` is answered."""
        outcome = self._outcome
        if outcome is None:
            return m.WaitResult(ok=False, state=self.failed[0].code, failed=1)
        return m.WaitResult(
            ok=not self.failed,
            state="done",
            built=len(outcome.built),
            joined=len(outcome.joined),
            reused=len(outcome.reused),
            failed=len(self.failed),
            skipped=len(outcome.skipped),
            settled=len(outcome.matched),
            told=len(self.told),
        )

    def part(self, part: m.OutcomePart) -> list[Any]:
        """Return a part of it, each to become a row; see `page`."""
        if part == "failed":
            return list(self.failed)
        if self._outcome is None:
            return []
        if part == "told":
            return list(self.told)
        return list(self._outcome.matched.items()) if part == "matched" else list(getattr(self._outcome, part))

    def size(self) -> int:
        """Return how many bytes it takes, roughly."""
        size = _EACH_BYTES + _REFERENCE_BYTES * len(self.targets) + sum(_ROW_BYTES + len(text) for _, _, text in self.told)
        size += sum(map(row_bytes, self.failed))
        if self._outcome is not None:
            found = self._outcome
            size += _REFERENCE_BYTES * (len(found.matched) + sum(map(len, found.matched.values())))
            size += _REFERENCE_BYTES * (len(found.built) + len(found.joined) + len(found.reused) + len(found.skipped))
            size += sum(_ROW_BYTES + len(step.reason) for step in found.steps)
        return size


def row_bytes(row: m.FailedRow) -> int:
    """Return how many bytes a failure takes, roughly."""
    return _ROW_BYTES + len(row.message) + len(row.traceback) + len(row.pickled or b"") + len(encode_value(row.fields))


@dataclass(slots=True)
class FailureRoom:
    """How much the failures of one operation may hold. Beyond it, errors themselves and the greater part of long texts are left out."""

    left_bytes: int = FAILURES_BYTES_MAX

    def fit(self, row: m.FailedRow) -> m.FailedRow:
        """Return a failure as it is kept."""
        if row_bytes(row) > self.left_bytes:
            row = msgspec.structs.replace(row, pickled=None, message=_begun(row.message), traceback=_ended(row.traceback))
        self.left_bytes -= row_bytes(row)
        return row


def _begun(text: str) -> str:
    return text if len(text) <= _SHORT_CHARACTERS else f"{text[:_SHORT_CHARACTERS]}[… cut …]"


def _ended(text: str) -> str:
    return text if len(text) <= _SHORT_CHARACTERS else f"[… cut …]\n{text[-_SHORT_CHARACTERS:]}"


def _as_it_is(found: Any) -> object:
    row: object = found
    return row


_ROWS: Final[dict[str, Callable[[Any], object]]] = {
    "matched": lambda found: m.MatchedRow(found[0], list(found[1])),
    "skipped": lambda found: m.SkippedRow(*found),
    "told": lambda told: m.ToldRow(*told),
    "steps": lambda step: m.StepRow(step.dref, step.kind.value, step.reason),
}


async def page(kind: str, found: list[Any], offset: int, limit: int) -> m.Rows:
    """Return a page that fits into one message; others have their turns while it is made.

    Args:
        kind: the part of an outcome that is found; anything else for rows as they are.
        found: all there is.
        offset: where the page begins.
        limit: how many rows it may have.
    """
    row_of = _ROWS.get(kind, _as_it_is)
    rows: list[object] = []
    size = 0
    for place, one in enumerate(found[offset : offset + limit], 1):
        if place % ROWS_AT_ONCE == 0:
            await trio.lowlevel.checkpoint()
        row = row_of(one)
        size += len(encode_value(row))
        if rows and size > BYTES_PER_ANSWER:
            break
        rows.append(row)
    end = offset + len(rows)
    return m.Rows(rows=rows, next=end if end < len(found) else None)
