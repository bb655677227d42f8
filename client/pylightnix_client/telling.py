"""What came of a closure, as `build` and `plan` tell it: the steps of a dry run, and failures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Optional

from pylightnix.errors import NotRealized
from pylightnix.refs import undref
from pylightnix_client.failures import Report, build_report
from pylightnix_client.log_ends import LogEnd, tell_log_end
from pylightnix_client.output import Answers, note

if TYPE_CHECKING:
    from pylightnix.embedded import Outcome
    from pylightnix.events import PlanStep
    from pylightnix.types import DRef
    from pylightnix_client.why import Answer

__all__ = ["tell_failures", "tell_steps", "why_sentence"]


def tell_steps(answers: Answers, outcome: Outcome, why: Callable[[PlanStep], Optional[Answer]] = lambda step: None) -> None:
    """Answer with the steps of a dry run, and below each what `why` says of it."""
    errors, causes = dict(outcome.failed), dict(outcome.skipped)
    for step in outcome.steps:
        error = errors.get(step.dref)
        report = None if error is None else build_report(error)
        reason, found = _reason(step, error, report), why(step)
        if not answers.as_json:
            answers.text(f"{step.kind.value:<7} {step.dref}  {reason}")
            if found is not None:
                answers.text(f"        {why_sentence(found)}")
            continue
        fields: dict[str, Any] = {} if report is None else report.fields()
        if step.dref in causes:
            fields["because"] = causes[step.dref]
        if found is not None:
            fields |= {"older": found.older, "why": found.reason}
        answers.object("step", dref=step.dref, action=step.kind.value, reason=reason, **fields)


def _reason(step: PlanStep, error: Optional[BaseException], report: Optional[Report]) -> str:
    if isinstance(error, NotRealized):
        return f"{step.reason}, and {error.why}"
    if report is None:
        return step.reason
    return f"{step.reason}: {report.message.partition(chr(10))[0]}"


def why_sentence(answer: Answer) -> str:
    """Return in what something differs from an older realization, as a line for people."""
    return answer.reason if answer.older is None else f"unlike {answer.older}: {answer.reason}"


def tell_failures(outcome: Outcome, logs: Mapping[DRef, LogEnd]) -> None:
    """Write to standard error what failed and why, with the ends of those logs that there are."""
    for dref, error in outcome.failed:
        found = build_report(error)
        if dref in logs:
            tell_log_end(undref(dref)[1], logs[dref])
        if found.traceback:
            note(found.traceback.rstrip("\n"))
        message = found.message if dref in found.message else f"building {dref} failed: {found.message}"
        note(message, "error: ", "red")
