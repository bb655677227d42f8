"""The checker of the tests of faults finds each kind of damage, and nothing in a store that is sound."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.faults.store_check import problems
from tests.stores import stage

from pylightnix import StorageSettings, allrrefs, instantiate, realize1
from pylightnix.storage import store_layout


def change_a_file(tree: Path, index: sqlite3.Connection) -> None:
    (tree / "out.txt").chmod(0o644)
    (tree / "out.txt").write_text("other")
    (tree / "out.txt").chmod(0o444)


def change_the_context(tree: Path, index: sqlite3.Connection) -> None:
    text = (tree / "context.json").read_text()
    (tree / "context.json").chmod(0o644)
    (tree / "context.json").write_text(text.replace('"deps": {', '"deps": {"dref:0": [],'))
    (tree / "context.json").chmod(0o444)


def unlock_a_file(tree: Path, index: sqlite3.Connection) -> None:
    (tree / "out.txt").chmod(0o644)


def move_the_tree(tree: Path, index: sqlite3.Connection) -> None:
    tree.chmod(0o755)
    tree.rename(tree.with_name("0" * 32))


def forget_the_row(tree: Path, index: sqlite3.Connection) -> None:
    index.execute("DELETE FROM realization WHERE rref LIKE '%-above'")


def forget_what_is_needed(tree: Path, index: sqlite3.Connection) -> None:
    index.execute("DELETE FROM realization WHERE rref LIKE '%-below'")


def leave_a_row_in_flight(tree: Path, index: sqlite3.Connection) -> None:
    index.execute("UPDATE realization SET state = 0 WHERE rref LIKE '%-above'")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (change_a_file, {"wrong"}),
        (change_the_context, {"wrong"}),
        (unlock_a_file, {"wrong"}),
        (move_the_tree, {"lost", "left over"}),
        (forget_the_row, {"lost", "left over"}),
        (forget_what_is_needed, {"lost", "dangling", "left over"}),
        (leave_a_row_in_flight, {"lost", "in flight"}),
    ],
)
def test_damage_is_found(damage: Callable[[Path, sqlite3.Connection], None], words: set[str], S: StorageSettings) -> None:
    rref = realize1(instantiate(lambda r: stage(r, "above", dep=stage(r, "below")), S=S))
    told, root = list(allrrefs(S)), str(S.root)
    assert problems(root, told, told) == []
    with sqlite3.connect(store_layout(S).index) as index:
        damage(Path(store_layout(S).realization(rref)), index)
    index.close()
    assert {problem.partition(":")[0] for problem in problems(root, told, told)} == words


def test_what_nobody_made_is_found(S: StorageSettings) -> None:
    rref = realize1(instantiate(stage, S=S))
    other = rref.replace(rref[5:37], "0" * 32)
    assert problems(str(S.root), [], [other]) == [f"wrong: nobody made {rref}"]
    os.makedirs(f"{S.root}/tmp/1-2/3")
    assert "left over: tmp/1-2/3" in problems(str(S.root), [], [rref])
