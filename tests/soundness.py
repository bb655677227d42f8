"""What must be true of a store whenever nobody is at work in it and the dead were cleaned up after."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import stat
from collections.abc import Iterable
from dataclasses import dataclass

from pylightnix import DRef, RRef, StorageSettings, mkrref, rref2dref, unrref
from pylightnix.context import context_key, parse_context, realization_hash
from pylightnix.nar import tree_hash
from pylightnix.storage import store_layout
from pylightnix.store.derivations import read_config
from pylightnix.store.index import VALID
from pylightnix.store.layout import CONFIG_FILE, CONTEXT_FILE, METADATA_NAMES, StoreLayout
from pylightnix.store.owner import is_dead, is_owner_name
from pylightnix.store.set_aside import retry_set_aside
from pylightnix.store.trash import empty_trash

UNIT_FILE = "unit.txt"
"""In an output of an attempt that leaves several: `<name of the attempt> <number of its outputs>`."""


@dataclass(frozen=True)
class Row:
    state: int
    owner: str
    dref: DRef
    key: str
    tree_hash: str
    references: frozenset[RRef]


def rows(S: StorageSettings) -> dict[RRef, Row]:
    """Return the index, read without any of the store's own code and without recovery."""
    path = store_layout(S).index
    if not os.path.exists(path) or os.path.getsize(path) == 0:
        return {}
    db = sqlite3.connect(path)
    try:
        references: dict[int, set[RRef]] = {}
        for referrer, referred in db.execute("SELECT referrer, referred FROM reference"):
            references.setdefault(referrer, set()).add(RRef(referred))
        found = {}
        query = "SELECT id, rref, state, owner, dref, context_key, tree_hash FROM realization"
        for row_id, rref, state, owner, dref, key, digest in db.execute(query):
            found[RRef(rref)] = Row(state, owner, DRef(dref), key, digest, frozenset(references.get(row_id, ())))
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
        return found
    finally:
        db.close()


def check_sound(S: StorageSettings, acknowledged: Iterable[RRef] = ()) -> None:
    """Check everything in a store; `acknowledged` is what anybody was ever told about."""
    layout = store_layout(S)
    found = rows(S)
    in_flight = {rref: row.state for rref, row in found.items() if row.state != VALID}
    assert not in_flight, f"rows in flight: {in_flight}"
    lost = set(acknowledged) - set(found)
    assert not lost, f"acknowledged and lost: {lost}"
    for rref, row in found.items():
        dangling = row.references - set(found)
        assert not dangling, f"{rref} refers to {dangling}"
        _check_realization(layout, rref, row)
    _check_units(layout, found)
    _check_storage(layout, set(found))
    _check_tmp(layout)
    # It is unlinked by and by, in small steps after calls; what matters is that all of it can be.
    empty_trash(layout)
    trash = os.listdir(layout.trash) if os.path.isdir(layout.trash) else []
    assert not trash, trash
    assert not retry_set_aside(layout)


def _check_realization(layout: StoreLayout, rref: RRef, row: Row) -> None:
    folder = layout.realization(rref)
    assert os.path.isdir(folder), f"{rref} is valid and its folder is gone"
    rhash, dhash, name = unrref(rref)
    with open(f"{folder}/{CONTEXT_FILE}", encoding="utf-8") as file:
        deps, dynamic = parse_context(json.load(file))
    found = tree_hash(folder, exclude_top=METADATA_NAMES).sha256
    assert found == row.tree_hash, rref
    assert realization_hash(found, deps, dynamic) == rhash, rref
    assert row.dref == rref2dref(rref)
    assert row.key == context_key(deps)
    assert row.references == {item for part in (deps, dynamic) for rrefs in part.values() for item in rrefs}
    assert rref == mkrref(rhash, dhash, name)
    for path, _, files in os.walk(folder):
        assert stat.S_IMODE(os.lstat(path).st_mode) == 0o555, path
        for file_name in files:
            entry = os.lstat(os.path.join(path, file_name))
            assert stat.S_ISLNK(entry.st_mode) or stat.S_IMODE(entry.st_mode) in (0o444, 0o555), (path, file_name)


def _check_units(layout: StoreLayout, found: Iterable[RRef]) -> None:
    """All outputs of one attempt, or none."""
    counts: dict[tuple[DRef, str], set[RRef]] = {}
    for rref in found:
        path = f"{layout.realization(rref)}/{UNIT_FILE}"
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                counts.setdefault((rref2dref(rref), file.read()), set()).add(rref)
    for (dref, unit), rrefs in counts.items():
        # A deterministic attempt comes out whole in every context it was made in.
        assert len(rrefs) % int(unit.split()[1]) == 0, f"split: {dref} {unit}: {rrefs}"


def _check_storage(layout: StoreLayout, valid: set[RRef]) -> None:
    there = set()
    for entry in os.listdir(layout.storage):
        assert re.fullmatch(r"[0-9a-f]{32}-[a-zA-Z0-9_-]+", entry), entry
        dref = DRef(f"dref:{entry}")
        read_config(layout, dref)  # raises unless its content has this very name
        assert stat.S_IMODE(os.lstat(layout.config(dref)).st_mode) == 0o444
        for name in os.listdir(f"{layout.storage}/{entry}"):
            if name != CONFIG_FILE:
                assert os.path.isdir(f"{layout.storage}/{entry}/{name}"), name
                there.add(mkrref(name, entry[:32], entry[33:]))
    assert there == valid, f"without a row: {there - valid}; without a folder: {valid - there}"


def _check_tmp(layout: StoreLayout) -> None:
    dead = []
    for name in os.listdir(layout.tmp):
        path = f"{layout.tmp}/{name}"
        assert is_owner_name(name), name
        assert not os.listdir(path), f"{path}: {os.listdir(path)}"
        if not name.startswith(f"{os.getpid()}-") and is_dead(layout, name):
            dead.append(name)
    # A forked child ends without exit handlers, so the last one's folder is there until the next one comes.
    assert len(dead) <= 1, dead
