"""What came of a closure, as `build` and `plan` tell it: the steps of a dry run, and failures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Optional

from pylightnix.display import called
from pylightnix.errors import NotRealized
from pylightnix.events import StepKind
from pylightnix_client.failures import Report, build_report
from pylightnix_client.log_ends import LogEnd, tell_log_end
from pylightnix_client.output import Answers, note

if TYPE_CHECKING:
    from pylightnix.embedded import Outcome
    from pylightnix.events import PlanStep
    from pylightnix.types import Closure, DRef, StorageSettings
    from pylightnix_client.planned import Expectation
    from pylightnix_client.why import Answer

__all__ = ["tell_failures", "tell_plan", "why_sentence"]


_ORDER_OF_KINDS: Final = (StepKind.build, StepKind.unknown, StepKind.reuse, StepKind.failed, StepKind.refused, StepKind.skipped)


def tell_plan(answers: Answers, outcome: Outcome, closure: Closure, S: StorageSettings, force: bool) -> None:
    """Answer with the steps of a dry run, what is to be built with the reason below it, and say how much that is in all."""
    from pylightnix_client.planned import expectation, reasons

    expected = expectation(outcome.steps, S)
    _tell_steps(answers, outcome, reasons(closure, outcome, S, force), expected)
    counts = {kind: sum(step.kind is kind for step in outcome.steps) for kind in _ORDER_OF_KINDS}
    if answers.as_json:
        named = {kind.value: count for kind, count in counts.items()}
        answers.object("planned", **named, seconds=sum(expected.seconds.values()), of_unknown_time=expected.unknown)
    else:
        note(_totals(counts, expected))


def _totals(counts: Mapping[StepKind, int], expected: Expectation) -> str:
    from pylightnix_client.progress import human_seconds

    words = {StepKind.build: "to build", StepKind.unknown: "perhaps to build", StepKind.reuse: "to reuse"}
    said = ", ".join(f"{count} {words.get(kind, kind.value)}" for kind, count in counts.items() if count) or "nothing to do"
    if not expected.seconds:
        return said
    builds = f"{expected.unknown} build{'' if expected.unknown == 1 else 's'}"
    rest = f", and {builds} of unknown time" if expected.unknown else ""
    total = sum(expected.seconds.values())
    return f"{said}; expected: {human_seconds(total) if total >= 1 else 'less than a second'} of building{rest}"


def _tell_steps(answers: Answers, outcome: Outcome, why: Callable[[PlanStep], Optional[Answer]], expected: Expectation) -> None:
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
        if step.dref in expected.seconds:
            fields["seconds"] = expected.seconds[step.dref]
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
    """Write to standard error what failed and why, with the ends of logs that were not told yet."""
    for dref, error in outcome.failed:
        found = build_report(error)
        if dref in logs:
            tell_log_end(called(dref), logs[dref])
        if found.traceback:
            note(found.traceback.rstrip("\n"))
        message = found.message if dref in found.message else f"building {dref} failed: {found.message}"
        note(message, "error: ", "red")
