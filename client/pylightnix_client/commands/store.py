"""The commands `store verify` and `store reindex`: is a store what it should be, and making it so."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Optional

import click

from pylightnix_client.output import note, on_terminal
from pylightnix_client.parameters import ReferenceType, json_option
from pylightnix_client.session import Session

if TYPE_CHECKING:
    from pylightnix.store.mending import Mended
    from pylightnix.store.reindex import Reindexed
    from pylightnix.types import RRef, StorageSettings
    from pylightnix.verification import Verified

__all__ = ["store_command"]

EXIT_DAMAGED: Final = 65
_TELL_SECONDS: Final = 1.0
_SHOWN_MAX: Final = 5

_state_option = click.option(
    "--state", metavar="DIR", type=click.Path(file_okay=False), help="Where the index is, if the daemon was given --state DIR."
)
_jobs_option = click.option(
    "--jobs", "-j", type=click.IntRange(1, 256), help="How many trees to hash at a time.  [default: the number of CPUs]"
)


@click.group("store")
def store_command() -> None:
    """Verify a store, repair what is damaged in it, and reindex it."""


# --- verify -------------------------------------------------------------------------------------------


@store_command.command("verify")
@click.argument("refs", metavar="[REF]...", nargs=-1, type=ReferenceType("dref", "rref"))
@_jobs_option
@click.option("--repair", is_flag=True, help="Mend what is damaged; what cannot be mended is moved to the store's quarantine.")
@click.option("--anew", is_flag=True, help="Do not go on where an earlier run was interrupted.")
@json_option
@click.pass_obj
def verify_command(session: Session, refs: tuple[str, ...], jobs: Optional[int], repair: bool, anew: bool) -> int:
    """Hash what is in the store and compare it with what it should be.

    Without REF, everything is checked; with it, these realizations (of a derivation, all) and what they were made from. Builds go on
    meanwhile. A run that is interrupted is gone on with by the next.

    With --repair, what was merely changed beside the files is put right. A realization whose files are damaged is moved to
    quarantine/ in the store, and made again if its config says how, as that of a fetched file does. What else is needed is printed.
    """
    from pylightnix.verification import verify
    from pylightnix_client.references import resolve_reference

    S = session.settings()
    found = [resolve_reference(ref, S, whole=True) for ref in refs]
    with _Progress("verified") as told:
        report = verify(found, S, jobs=jobs or _cpus(), anew=anew, told=told)
    _print_findings(session, report, S)
    others = len(report.configs) + len(report.incomplete) + len(report.rows)
    left = others + (_repair(session, report, S) if repair and report.damaged else len(report.damaged))
    _print_verified(session, report, repair, left)
    return EXIT_DAMAGED if left else 0


def _print_findings(session: Session, report: Verified, S: StorageSettings) -> None:
    answers = session.answers
    for rref, finding in report.damaged.items():
        if answers.as_json:
            needed_by = list(finding.needed_by)
            answers.object(
                "damaged",
                rref=rref,
                damage=finding.damage.value,
                problem=finding.problem,
                needed_by=needed_by,
                remedy=_remedy(rref, finding, S),
            )
            continue
        answers.text(f"{rref} is damaged ({finding.damage.value}): {finding.problem}")
        if finding.needed_by:
            answers.text(f"  made from it: {_some(finding.needed_by)}")
        answers.text(f"  {_REMEDIES[_remedy(rref, finding, S)]}")
    for dref, problem in report.configs.items():
        if answers.as_json:
            answers.object("config", dref=dref, problem=problem)
        else:
            answers.text(f"{dref} is damaged (config): {problem}")
    for rref, problem in report.rows.items():
        if answers.as_json:
            answers.object("row", rref=rref, problem=problem)
        else:
            answers.text(f"{rref} is whole, and {problem}: pylightnix store reindex")
    for rref, lost in report.incomplete.items():
        if answers.as_json:
            answers.object("incomplete", rref=rref, lost=lost)
        else:
            answers.text(f"{rref} is whole, and made from what is not in the store: {_some(lost)}")
    _print_notes(session, report)


def _print_notes(session: Session, report: Verified) -> None:
    for rref in report.unlisted:
        if session.answers.as_json:
            session.answers.object("unlisted", rref=rref)
    if report.unlisted and not session.answers.as_json:
        note(f"{len(report.unlisted)} whole, and not in the index: being built just now, or see: pylightnix store reindex")
    for path in report.strays:
        if session.answers.as_json:
            session.answers.object("stray", path=path)
        else:
            note(f"{path} is nothing of the store's, and no harm")


_REMEDIES: Final = {
    "mend": "--repair puts it right where it is",
    "rebuild": "--repair moves it aside, and makes it again as its config says",
    "by-hand": "--repair moves it aside; then build it again: pylightnix build FILE.py:STAGE",
}


def _remedy(rref: RRef, finding: Any, S: StorageSettings) -> str:
    """Return which of `_REMEDIES` helps."""
    from pylightnix.rebuilding import can_rebuild
    from pylightnix.store.inspection import Damage

    if finding.damage in (Damage.mode, Damage.provenance, Damage.context):
        return "mend"
    return "rebuild" if can_rebuild(rref, S) else "by-hand"


def _repair(session: Session, report: Verified, S: StorageSettings) -> int:
    """Mend what is damaged, what others were made from first; return how much is left."""
    from pylightnix.rebuilding import rebuild
    from pylightnix.remote import mend
    from pylightnix.store.mending import Outcome

    left = 0
    for rref in sorted(report.damaged, key=lambda rref: -len(report.damaged[rref].needed_by)):
        (mended,) = mend([rref], S)
        failure: Optional[str] = None
        is_lost = mended.outcome in (Outcome.quarantined, Outcome.dropped)
        if is_lost:
            failure = rebuild(rref, S, mended.moved_to)
        left += failure is not None or mended.outcome is Outcome.busy
        _print_mended(session, mended, is_lost and failure is None, failure, report.damaged[rref].needed_by)
    return left


def _print_mended(session: Session, mended: Mended, is_rebuilt: bool, failure: Optional[str], needed_by: tuple[RRef, ...]) -> None:
    answers, outcome = session.answers, mended.outcome.value
    if answers.as_json:
        answers.object(
            "mended",
            rref=mended.rref,
            outcome=outcome,
            detail=mended.detail,
            moved_to=mended.moved_to,
            rebuilt=is_rebuilt,
            failure=failure,
            needed_by=list(needed_by) if failure is not None else [],
        )
        return
    words = {
        "whole": "is whole",
        "mended": "is whole again",
        "quarantined": f"was moved to {mended.moved_to}",
        "dropped": "was gone, and the index does not name it any more",
        "busy": f"is being worked with by {mended.detail}; run this again later",
    }
    answers.text(f"{mended.rref} {words[outcome]}{', and was made again' if is_rebuilt else ''}")
    if failure is not None:
        answers.text(f"  it could not be made again: {failure}; build it: pylightnix build FILE.py:STAGE")
        if needed_by:
            answers.text(f"  made from it, and kept: {_some(needed_by)}; they count again when the same is built")


def _print_verified(session: Session, report: Verified, repair: bool, left: int) -> None:
    damaged = len(report.damaged)
    if session.answers.as_json:
        session.answers.object("verified", whole=report.whole, resumed=report.resumed, damaged=damaged, left=left, sound=not left)
        return
    before = f", {report.resumed} of them by an earlier run" if report.resumed else ""
    session.answers.text(f"{report.whole} whole{before}; {damaged} damaged{'' if not repair or not damaged else f', {left} left to mend'}")


# --- reindex ------------------------------------------------------------------------------------------


@store_command.command("reindex")
@_jobs_option
@_state_option
@json_option
@click.pass_obj
def reindex_command(session: Session, jobs: Optional[int], state: Optional[str]) -> int:
    """Make the index of the store anew from the realizations that are there.

    For an index that is lost or damaged; one that is right stays as it is. Every realization is hashed, and one that is not what
    its name says is left out and named. Nobody else can work in the store meanwhile. A run that is interrupted is gone on with by the next.
    The old index is kept beside the new one.
    """
    from pylightnix.storage import store_layout
    from pylightnix.store.reindex import reindex

    layout = store_layout(session.settings())
    if state is not None:
        layout = replace(layout, state=os.path.abspath(state))
    with _Progress("hashed") as told:
        report = reindex(layout, jobs or _cpus(), told)
    _print_reindexed(session, report, layout.index)
    return EXIT_DAMAGED if report.left_out else 0


def _print_reindexed(session: Session, report: Reindexed, index: str) -> None:
    if session.answers.as_json:
        session.answers.object(
            "reindexed",
            index=index,
            changed=report.changed,
            entered=len(report.entered),
            resumed=report.resumed,
            left_out=report.left_out,
            incomplete=report.incomplete,
            dropped=report.dropped,
            unknown=report.unknown,
            old_index=report.old_index,
        )
        return
    answers = session.answers
    for rref, problem in report.left_out.items():
        answers.text(f"{rref} is left out: {problem}")
    for rref, lost in report.incomplete.items():
        answers.text(f"{rref} was made from what is not in the store: {_some(lost)}")
    for rref in report.dropped:
        answers.text(f"{rref} is dropped: its folder is gone")
    if report.unknown:
        answers.text(f"of {len(report.unknown)} nobody knows who built them, and when")
    if not report.changed:
        answers.text(f"{len(report.entered)} realizations; the index was right, and stays as it was")
        return
    kept = f"; the old one is kept as {report.old_index}" if report.old_index else ""
    answers.text(f"{len(report.entered)} realizations are in the new index {index}{kept}")


# --- shared -------------------------------------------------------------------------------------------


def _cpus() -> int:
    return len(os.sched_getaffinity(0))


def _some(rrefs: tuple[RRef, ...] | list[RRef]) -> str:
    more = f" and {len(rrefs) - _SHOWN_MAX} more" if len(rrefs) > _SHOWN_MAX else ""
    return ", ".join(rrefs[:_SHOWN_MAX]) + more


class _Progress:
    """Says on a terminal how far a long run is."""

    def __init__(self, word: str) -> None:
        self._word = word
        self._next = time.monotonic() + _TELL_SECONDS
        self._shown = False

    def __enter__(self) -> _Progress:
        return self

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() >= self._next and on_terminal():
            self._next = time.monotonic() + _TELL_SECONDS
            self._shown = True
            sys.stderr.write(f"\r{done} of {total} {self._word}")
            sys.stderr.flush()

    def __exit__(self, *error: object) -> None:
        if self._shown:
            sys.stderr.write("\n")
