"""The command `show`: what a derivation says, or where a realization comes from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import click

from pylightnix_client.parameters import ReferenceType, json_option
from pylightnix_client.session import Session

__all__ = ["show_command"]


@click.command("show")
@click.argument("ref", type=ReferenceType("dref", "rref"))
@json_option
@click.pass_obj
def show_command(session: Session, ref: str) -> None:
    """Show what there is to know of the derivation or realization REF.

    Of a derivation: its config, its direct dependencies, its realizations with the latest first. Of a realization: its tree hash, when
    and by whom it was built, and the realizations it was built from.
    """
    from pylightnix.refs import isrref
    from pylightnix.types import DRef, RRef
    from pylightnix_client.description import describe_derivation, describe_realization
    from pylightnix_client.references import resolve_reference

    S = session.settings()
    found = resolve_reference(ref, S)
    if isrref(found):
        fields = describe_realization(RRef(found), S)
        kind, lines = "realization", _realization_lines(fields)
    else:
        fields = describe_derivation(DRef(found), S)
        kind, lines = "derivation", _derivation_lines(fields)
    if session.answers.as_json:
        session.answers.object(kind, **fields)
        return
    for line in lines:
        session.answers.text(line)


def _labelled(label: str, values: list[str]) -> Iterator[str]:
    for i, value in enumerate(values or ["none"]):
        yield f"{label if i == 0 else '':<13} {value}"


def _derivation_lines(fields: dict[str, Any]) -> Iterator[str]:
    yield from _labelled("derivation", [fields["dref"]])
    yield from _labelled("folder", [fields["path"]])
    yield from _labelled("depends on", fields["deps"])
    yield from _labelled("realizations", fields["realizations"])
    config = json.dumps(fields["config"], sort_keys=True, indent=2, ensure_ascii=False)
    yield from _labelled("config", config.split("\n"))


def _realization_lines(fields: dict[str, Any]) -> Iterator[str]:
    from pylightnix_client.progress import human_seconds

    yield from _labelled("realization", [fields["rref"]])
    yield from _labelled("derivation", [fields["dref"]])
    yield from _labelled("folder", [fields["path"]])
    yield from _labelled("built from", [rref for rrefs in fields["context"].values() for rref in rrefs])
    if fields["state"] != "valid":
        yield from _labelled("state", ["unknown to the store's index: it does not count as realized"])
        return
    yield from _labelled("state", [fields["state"]])
    yield from _labelled("tree hash", [fields["tree_hash"]])
    yield from _labelled("size", [f"{fields['nar_bytes']} bytes as an archive"])
    took = "" if fields["seconds"] is None else f", took {human_seconds(fields['seconds'])}"
    started = datetime.fromtimestamp(fields["started"], UTC)
    yield from _labelled("built", [f"{started:%Y-%m-%d %H:%M:%S} UTC{took}"])
    yield from _labelled("by", [f"{fields['builder']} on {fields['host']}"])
