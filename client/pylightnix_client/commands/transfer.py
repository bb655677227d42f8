"""The commands that move realizations between stores: `export`, `import` and `import-v0`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from pylightnix_client.output import note
from pylightnix_client.parameters import ReferenceType, json_option
from pylightnix_client.session import Session

if TYPE_CHECKING:
    from pylightnix.transfer.receiving import Received
    from pylightnix.types import RRef, StorageSettings
    from pylightnix.v0 import ImportReport

__all__ = ["export_command", "import_command", "import_v0_command"]

_STANDARD = "-"


@click.command("export")
@click.argument("refs", metavar="REF...", nargs=-1, required=True, type=ReferenceType("dref", "rref"))
@click.option("-o", "--output", metavar="FILE", type=click.Path(), default=_STANDARD, help="Where to write.  [default: standard output]")
@json_option
@click.pass_obj
def export_command(session: Session, refs: tuple[str, ...], output: str) -> None:
    """Write realizations, and all that they were made from, into one archive.

    A derivation stands for all its realizations. Each derivation involved goes along with every realization it has. FILE is
    compressed if its name ends in .gz or .xz, and appears when it is whole.
    """
    from pylightnix.transfer.departure import send
    from pylightnix.transfer.selection import select
    from pylightnix.transfer.streams import written_archive

    if output == _STANDARD and session.answers.as_json:
        raise click.UsageError("with --json, standard output has the answer; say with --output where the archive goes")
    if output == _STANDARD and os.isatty(1):
        raise click.UsageError("an archive is not for a terminal to show; give --output, or a pipe")
    S = session.settings()
    selection = select(_realizations(refs, S), S, siblings=True)
    if output == _STANDARD:
        send(selection, session.answers.raw)
        return
    with written_archive(output) as write:
        send(selection, write)
    if session.answers.as_json:
        session.answers.object(
            "exported",
            path=output,
            roots=list(selection.roots),
            derivations=len(selection.derivations),
            realizations=len(selection.realizations),
            bytes=os.path.getsize(output),
        )
    else:
        note(f"{_counted(len(selection.realizations), 'realization')} of {_counted(len(selection.derivations), 'derivation')}")


def _realizations(refs: Sequence[str], S: StorageSettings) -> list[RRef]:
    """Return the realizations that references mean.

    Raises:
        InvalidReference, MissingRealization: one means none.
    """
    from pylightnix.errors import MissingRealization
    from pylightnix.query import drefrrefs
    from pylightnix.refs import isrref
    from pylightnix.storage import store_layout
    from pylightnix.types import DRef, RRef
    from pylightnix_client.references import resolve_reference

    found: list[RRef] = []
    for text in refs:
        ref = resolve_reference(text, S)
        rrefs = [RRef(ref)] if isrref(ref) else sorted(drefrrefs(DRef(ref), S))
        if not rrefs:
            raise MissingRealization(f"of {ref}", store_layout(S).derivation(ref))
        found += rrefs
    return found


@click.command("import")
@click.argument("file", metavar="[FILE]", type=click.Path(), default=_STANDARD)
@click.option(
    "--limit",
    "given",
    metavar="NAME=N",
    multiple=True,
    help="How much it may bring: total_bytes, entries, or ratio, which is how many times larger its contents may be than the archive.",
)
@json_option
@click.pass_obj
def import_command(session: Session, file: str, given: tuple[str, ...]) -> None:
    """Bring everything in an archive into the store, and print what it was made for.

    FILE is standard input if it is left out. Each tree and each reference is computed anew. What is there already stays.
    What is larger than the limits, or than the room on the disk, is refused before it is written.
    """
    from pylightnix.storage import store_layout
    from pylightnix.transfer.limits import import_limits
    from pylightnix.transfer.receiving import receive
    from pylightnix.transfer.streams import StreamSource, opened_archive

    if file == _STANDARD and os.isatty(0):
        raise click.UsageError("give the archive to import, or a pipe that it comes from")
    limits = import_limits(_limits(given), "import")
    S = _made(session.settings())
    if file == _STANDARD:
        received = receive(StreamSource(sys.stdin.buffer, "standard input", limits), store_layout(S))
    else:
        with opened_archive(file, limits) as source:
            received = receive(source, store_layout(S))
    _show_received(session, received)


def _limits(given: Sequence[str]) -> dict[str, int]:
    """Return what ``--limit NAME=N`` says."""
    found = {}
    for text in given:
        name, equals, number = text.partition("=")
        if not equals or not number.isdecimal() or not number.isascii():
            raise click.BadParameter(f"expected NAME=N with a whole number, found {text!r}", param_hint="--limit")
        found[name] = int(number)
    return found


def _made(S: StorageSettings) -> StorageSettings:
    """Make the store if there is none."""
    from pylightnix.storage import fsinit, fsstorage

    if not os.path.isdir(fsstorage(S)):
        fsinit(S, use_as_default=False)
    return S


def _show_received(session: Session, received: Received) -> None:
    if session.answers.as_json:
        session.answers.object(
            "imported",
            roots=list(received.roots),
            derivations=received.derivations,
            realizations=list(received.placed),
            present=received.present,
        )
        return
    for rref in received.roots:
        session.answers.text(rref)
    note(f"{_counted(len(received.placed), 'realization')} imported, {received.present} present before")


@click.command("import-v0")
@click.argument("path", type=click.Path())
@click.option("--dry-run", is_flag=True, help="Tell what would be imported, and import nothing.")
@json_option
@click.pass_obj
def import_v0_command(session: Session, path: str, dry_run: bool) -> int:
    """Bring the realizations of a store of Pylightnix 0.x into the store.

    PATH is the old store's root or its folder store-v0; it is only read. Old hashes are checked; what they do not fit, and
    what depends on that, is left out and reported, with status 65. Realizations get new references, printed after the old ones.
    """
    from pylightnix.v0 import import_v0

    S = session.settings() if dry_run else _made(session.settings())
    report = import_v0(path, S, dry_run=dry_run)
    _show_report(session, report, dry_run)
    return 65 if report.refused() else 0


def _show_report(session: Session, report: ImportReport, dry_run: bool) -> None:
    if session.answers.as_json:
        for remark in report.remarks:
            session.answers.object("remark", what=remark.kind.value, path=remark.path, reason=remark.reason)
        session.answers.object(
            "imported-v0",
            storage=report.storage,
            dry_run=dry_run,
            derivations=report.derivations,
            realizations=report.realizations,
            present=report.present,
            refused=len(report.refused()),
        )
        return
    for remark in report.remarks:
        note(f"{remark.path}: {remark.reason}", f"{remark.kind.value}: ", "yellow")
    for old, new in report.realizations.items():
        session.answers.text(f"{old}\t{new}")
    verb = "would be imported" if dry_run else "imported"
    count = _counted(len(report.realizations), "realization")
    note(f"{count} {verb}, {report.present} of them present before; {len(report.refused())} refused")


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
