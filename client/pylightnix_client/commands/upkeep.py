"""The commands `du`, `find`, `rm` and `gc`: what is in a store, what takes the room, and how to get rid of it."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Optional

import click

from pylightnix_client.parameters import ReferenceType, json_option
from pylightnix_client.session import Session

if TYPE_CHECKING:
    from pylightnix.store.set_aside import SetAside
    from pylightnix.types import DRef, RRef, StorageSettings

__all__ = ["du_command", "find_command", "gc_command", "print_unremovable", "rm_command"]

_LEFT: Final = {"tmp": "of builds", "trash": "of removals", "quarantine": "damaged, and moved aside by store verify --repair"}
_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


# --- du -----------------------------------------------------------------------------------------------


@click.command("du")
@json_option
@click.pass_obj
def du_command(session: Session) -> None:
    """Print how much room each derivation takes with its realizations, the largest first, then what else there is, and all in all."""
    from pylightnix.garb import diskspace_h
    from pylightnix.leftovers import failed_builds, leftovers, unremovable
    from pylightnix.searching import du

    usage = sorted(du(session.settings()).items(), key=lambda item: (-item[1][0], item[0]))
    for dref, (size, rrefs) in usage:
        if session.answers.as_json:
            session.answers.object("usage", dref=dref, bytes=size, realizations=rrefs)
        else:
            session.answers.text(f"{diskspace_h(size)}  {dref}  {len(rrefs)} realization{'s' if len(rrefs) != 1 else ''}")
    failed, others = failed_builds(session.settings()), leftovers(session.settings())
    for path, size in (failed | others).items():
        if session.answers.as_json:
            session.answers.object("leftover", path=path, bytes=size)
        else:
            session.answers.text(
                f"{diskspace_h(size)}  {path}  {'of a failed build' if path in failed else _LEFT.get(os.path.basename(path), 'of builds')}"
            )
    stuck = unremovable(session.settings())
    print_unremovable(session, stuck)
    total = sum(size for _, (size, _) in usage) + sum(failed.values()) + sum(others.values()) + sum(stuck.values())
    if session.answers.as_json:
        session.answers.object("total", bytes=total)
    else:
        session.answers.text(f"{diskspace_h(total)}  in all")


def print_unremovable(session: Session, stuck: Mapping[SetAside, int]) -> None:
    """Print what could not be removed, with the command that helps."""
    from pylightnix.garb import diskspace_h

    for entry, size in stuck.items():
        if session.answers.as_json:
            fields = {"path": entry.path, "bytes": size, "obstacle": entry.obstacle, "problem": entry.problem, "command": entry.command}
            session.answers.object("unremovable", **fields)
        else:
            session.answers.text(f"{diskspace_h(size)}  {entry.path}  cannot be removed ({entry.problem}); run: {entry.command}")


# --- find ---------------------------------------------------------------------------------------------


class _TimeType(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions of click only
    """A point in time: so long ago, or a date."""

    name = "time"

    def convert(self, value: object, param: Optional[click.Parameter], ctx: Optional[click.Context]) -> float:
        """Return it as seconds since 1970 UTC."""
        text = str(value)
        ago = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd])", text)
        if ago is not None:
            return time.time() - float(ago[1]) * _UNITS[ago[2]]
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            self.fail(f"expected a time such as 90s, 30m, 2h, 7d, or a date such as 2026-11-30 or 2026-11-30T18:00, found {text!r}")
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()


@click.command("find")
@click.argument("pattern", default="*")
@click.option("--newer", metavar="TIME", type=_TimeType(), help="Only what was built since: 90s, 30m, 2h or 7d ago, or a date in UTC.")
@json_option
@click.pass_obj
def find_command(session: Session, pattern: str, newer: Optional[float]) -> None:
    """Print the realizations whose names fit PATTERN, the newest first.

    PATTERN is what a shell takes for file names, such as 'train-*'. Without one, all realizations are printed. On a terminal, each has its
    age, its size and a reference that is as short as it may be; elsewhere its full reference, its folder, when it was built in UTC and its
    bytes, between tabs.
    """
    from pylightnix.query import realization_starts
    from pylightnix.searching import find

    S = session.settings()
    rrefs = find(pattern, newer, S)
    starts = realization_starts(rrefs, S)
    rrefs.sort(key=lambda rref: (-starts.get(rref, 0.0), rref))
    if session.answers.as_json or not session.answers.on_terminal():
        _print_found(session, rrefs, starts)
        return
    for line in _found_lines(rrefs, starts, S):
        session.answers.text(line)


def _print_found(session: Session, rrefs: list[RRef], starts: dict[RRef, float]) -> None:
    from pylightnix.query import rref2path
    from pylightnix.searching import realization_bytes

    S = session.settings()
    for rref in rrefs:
        started, size = starts.get(rref), realization_bytes(rref, S)
        if session.answers.as_json:
            session.answers.object("found", rref=rref, path=rref2path(rref, S), started=started, bytes=size)
        else:
            moment = "" if started is None else f"{datetime.fromtimestamp(started, UTC):%Y-%m-%dT%H:%M:%SZ}"
            session.answers.text(f"{rref}\t{rref2path(rref, S)}\t{moment}\t{size}")


def _found_lines(rrefs: list[RRef], starts: dict[RRef, float], S: StorageSettings) -> Iterator[str]:
    from pylightnix.garb import diskspace_h
    from pylightnix.query import allrrefs
    from pylightnix.refs import unrref
    from pylightnix.searching import realization_bytes
    from pylightnix_client.candidates import human_age, short_references

    now, short = time.time(), short_references(list(allrrefs(S)))
    width = max((len(unrref(rref)[2]) for rref in rrefs), default=0)
    for rref in rrefs:
        age = f"{human_age(now - starts[rref])} ago" if rref in starts else "-"
        yield f"{age:>10}  {diskspace_h(realization_bytes(rref, S)).strip():>6}  {unrref(rref)[2]:<{width}}  {short[rref]}"


# --- rm -----------------------------------------------------------------------------------------------


@click.command("rm")
@click.argument("refs", metavar="REF...", nargs=-1, required=True, type=ReferenceType("dref", "rref"))
@json_option
@click.pass_obj
def rm_command(session: Session, refs: tuple[str, ...]) -> None:
    """Remove realizations, and derivations with all their realizations.

    What others were made from, or depend on, is refused unless these are given as well; so is what somebody is building with. Then
    nothing is removed at all.
    """
    from pylightnix.refs import isrref
    from pylightnix.remote import remove
    from pylightnix.types import DRef, RRef
    from pylightnix_client.references import resolve_reference

    S = session.settings()
    found = [resolve_reference(ref, S, whole=True) for ref in refs]
    removal = remove([DRef(ref) for ref in found if not isrref(ref)], [RRef(ref) for ref in found if isrref(ref)], S)
    if session.answers.as_json:
        session.answers.object("removed", drefs=removal.drefs, rrefs=removal.rrefs)
        return
    for ref in (*removal.rrefs, *removal.drefs):
        session.answers.text(ref)


# --- gc -----------------------------------------------------------------------------------------------


@click.command("gc")
@click.option(
    "--keep", metavar="DIR", multiple=True, type=click.Path(), help="Keep what links in DIR lead to, at any depth. May be repeated."
)
@click.option("--dry-run", is_flag=True, help="Print what would be removed, and remove nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@click.pass_obj
def gc_command(session: Session, keep: tuple[str, ...], dry_run: bool, yes: bool) -> None:
    """Remove what nothing needs that is to be kept, and what failed builds left.

    To be kept is what symbolic links in the folders DIR lead to, such as those of `build --out-link`, and all that it was made from. What
    it lists with sizes is removed when you say so. What came to be needed meanwhile, or is being built with, stays.
    """
    from pylightnix.garb import failed_candidates, gc_candidates, gc_exceptions, sweep
    from pylightnix.leftovers import remove_failed, unremovable
    from pylightnix.searching import config_bytes, realization_bytes

    _check_can_ask(session, keep, dry_run, yes)
    S = session.settings()
    drefs, rrefs = gc_candidates(gc_exceptions(keep, S), S)
    sizes: dict[str, int] = {rref: realization_bytes(rref, S) for rref in sorted(rrefs)}
    sizes.update({dref: config_bytes(dref, S) for dref in sorted(drefs)})
    failed = failed_candidates(keep, S)
    sizes.update(failed)
    _print_candidates(session, sizes)
    gone: list[str] = []
    if sizes and not dry_run and (yes or click.confirm(f"Remove these {len(sizes)}?", err=True)):
        gone = _collected(sweep(keep, drefs, rrefs, S))
        gone += remove_failed(sorted(failed.keys() & failed_candidates(keep, S).keys()), S)
    _print_collected(session, gone, sum(sizes[ref] for ref in gone), dry_run)
    print_unremovable(session, unremovable(S, retry=not dry_run))


def _check_can_ask(session: Session, keep: tuple[str, ...], dry_run: bool, yes: bool) -> None:
    if dry_run:
        return
    if yes and not keep:
        raise click.UsageError("--yes without --keep would remove everything; give --keep an empty folder if that is what you want")
    if not yes and (session.answers.as_json or not sys.stdin.isatty()):
        raise click.UsageError("gc asks on a terminal only; give --yes to remove without being asked, or --dry-run")


def _collected(gone: tuple[list[DRef], list[RRef]]) -> list[str]:
    drefs, rrefs = gone
    return [*rrefs, *drefs]


def _print_candidates(session: Session, sizes: dict[str, int]) -> None:
    from pylightnix.garb import diskspace_h

    for ref, size in sizes.items():
        if session.answers.as_json:
            session.answers.object("candidate", **{"path" if ref.startswith("/") else "ref": ref}, bytes=size)
        else:
            session.answers.text(f"{diskspace_h(size)}  {ref}")


def _print_collected(session: Session, gone: list[str], size: int, dry_run: bool) -> None:
    from pylightnix.garb import diskspace_h

    if session.answers.as_json:
        session.answers.object("collected", removed=gone, bytes=size, dry_run=dry_run)
    elif not dry_run:
        session.answers.text(f"{len(gone)} removed, {diskspace_h(size).strip() or 0} freed")
