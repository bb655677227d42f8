"""From the rows of an operation's outcome to what `realize` returns and raises. See `exchange`."""

from __future__ import annotations

import builtins
import os
import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Optional, Union, cast

import msgspec

from pylightnix.embedded import Outcome
from pylightnix.errors import BuildError, PylightnixException
from pylightnix.events import PlanStep, StepKind
from pylightnix.missing_files import advise
from pylightnix.protocol import messages as m
from pylightnix.protocol.errors_on_wire import error_from_failed_row
from pylightnix.sanitize import escaped, escaped_fields
from pylightnix.store.kept import point_to
from pylightnix.travel import load_exception
from pylightnix.types import Closure, Context, DRef, Path, RRef
from pylightnix_client.exchange import Ask, Exchange

__all__ = ["failure", "outcome_of", "parts"]

_PAGE_ROWS: Final = 10_000
_COUNTED: Final = ("built", "joined", "reused", "failed", "skipped")
_warned: Final[dict[Union[str, tuple[str, type[Warning], int]], int]] = {}
"""Where Python notes what was told, as it does for each module: equal warnings are told once, unless filters say otherwise."""
DONE: Final = "done"
"""How an operation ends that has an outcome, with failures or without."""


def parts(operation: str, part: m.OutcomePart) -> Exchange[list[m.Row]]:
    """Ask for all pages of one part of an outcome."""
    rows: list[m.Row] = []
    offset: Optional[int] = 0
    while offset is not None:
        page = yield Ask("outcome", m.Outcome(operation=operation, part=part, offset=offset, limit=_PAGE_ROWS))
        rows += m.rows_of(part, page)
        offset = page.next
    return rows


def failure(row: m.FailedRow, trusted: bool, raised: Optional[BaseException] = None) -> BaseException:
    """Return the exception that a row tells of.

    Args:
        row: the failure.
        trusted: whether the daemon is this user's or root's. What is pickled is opened only if it is of this user's build, too.
        raised: the exception itself, if it was raised in this process.
    """
    may_open = trusted and row.uid == os.geteuid()
    if not may_open:  # others' words, and whoever shows them may be Python itself
        texts = {name: escaped(getattr(row, name)) for name in ("message", "type", "traceback")}
        row = msgspec.structs.replace(row, fields=escaped_fields(row.fields), **texts)
    if raised is None and row.pickled is None and not row.traceback:
        return error_from_failed_row(row)
    error = raised or load_exception(cast(Mapping[str, object], msgspec.structs.asdict(row)), may_open)
    kept = row.fields.get("outpaths")
    if isinstance(kept, list):
        # It names the build folder; the daemon has moved what was left in it since.
        places = {os.path.basename(path): path for path in kept if isinstance(path, str)}
        point_to(error, lambda path: places.get(os.path.basename(path), path))
        if isinstance(error, BuildError):
            error.outpaths = [Path(path) for path in places.values()]
    advise(error)
    return error


def outcome_of(
    operation: str,
    closure: Closure,
    result: m.WaitResult,
    trusted: bool,
    dry_run: bool = False,
    raised: Mapping[DRef, BaseException] = MappingProxyType({}),
) -> Exchange[Outcome]:
    """Ask for what came of an operation that has ended.

    Args:
        operation: its name.
        closure: what was submitted.
        result: how it ended.
        trusted: as of `failure`.
        dry_run: whether it was one.
        raised: what realizers and matchers raised in this process, by derivation.

    Raises:
        StoreError, PylightnixException: it has no outcome, because the store failed or it was cancelled.
    """
    if result.state != DONE:
        rows = yield from parts(operation, "failed")
        raise failure(cast(m.FailedRow, rows[0]), trusted) if rows else PylightnixException(f"{operation} ended: {result.state}")
    found: dict[str, list[m.Row]] = {}
    for part in _COUNTED:
        found[part] = (yield from parts(operation, part)) if getattr(result, part) else []
    for told in cast("list[m.ToldRow]", (yield from parts(operation, "told")) if result.told else []):
        _warn(told)
    matched = cast("list[m.MatchedRow]", (yield from parts(operation, "matched")))
    steps = cast("list[m.StepRow]", (yield from parts(operation, "steps")) if dry_run else [])
    known: Context = {DRef(row.dref): [RRef(rref) for rref in row.rrefs] for row in matched}
    unknown: Context = {DRef(step.dref): None for step in steps}
    failed = cast("list[m.FailedRow]", found["failed"])
    skipped = cast("list[m.SkippedRow]", found["skipped"])
    return Outcome(
        result=closure.result,
        closure=closure,
        context=dict(sorted({**unknown, **known}.items())),
        built=_drefs(found["built"]),
        joined=_drefs(found["joined"]),
        reused=_drefs(found["reused"]),
        failed=[(dref, failure(row, trusted, raised.get(dref))) for row in failed for dref in [DRef(row.dref or closure.targets[0])]],
        skipped=[(DRef(row.dref), DRef(row.because)) for row in skipped],
        steps=[PlanStep(DRef(step.dref), _step_kind(step.kind), step.reason) for step in steps],
    )


def _warn(told: m.ToldRow) -> None:
    """Give a warning here that a matcher or a build gave in a process of the daemon's."""
    category = getattr(builtins, told.category, UserWarning)
    known = isinstance(category, type) and issubclass(category, Warning)
    text = escaped(told.text)
    # What it names in place of a line of this process is what the warning is about.
    where = f"<{told.dref}>"
    warnings.warn_explicit(text, category if known else UserWarning, where, 1, registry=_warned)


def _step_kind(text: str) -> StepKind:
    try:
        return StepKind(text)
    except ValueError:
        return StepKind.unknown  # a newer daemon knows more


def _drefs(rows: list[m.Row]) -> list[DRef]:
    return [DRef(row) for row in rows if isinstance(row, str)]
