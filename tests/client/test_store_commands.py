"""`store verify` and `store reindex`, as people and scripts see them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.client.daemons import end_daemon, start_daemon

from pylightnix.refs import rref2dref


@pytest.fixture
def second(built: Any) -> str:
    rref: str = built("stages.py:main")
    return rref


@pytest.fixture
def first(second: str, built: Any) -> str:
    """What `second` was made from."""
    rref: str = built("stages.py:first")
    return rref


@contextmanager
def served(store: Path, by_daemon: bool = True) -> Iterator[None]:
    daemon = start_daemon(str(store)) if by_daemon else None
    try:
        yield
    finally:
        if daemon is not None:
            end_daemon(daemon)


def folder_of(program: Any, rref: str) -> Path:
    return Path(program("path", rref).stdout.rstrip("\n"))


def damage(folder: Path) -> None:
    (folder / "out.txt").chmod(0o644)
    (folder / "out.txt").write_text("eno")
    (folder / "out.txt").chmod(0o444)


def test_a_sound_store(program: Any, second: str) -> None:
    ran = program("store", "verify")
    assert (ran.status, ran.stdout, ran.stderr) == (0, "2 whole; 0 damaged\n", "")
    assert program("store", "verify", second, "--json").objects == [
        {"kind": "verified", "whole": 2, "resumed": 0, "damaged": 0, "left": 0, "sound": True}
    ]
    ran = program("store", "reindex")
    assert (ran.status, ran.stdout) == (0, "2 realizations; the index was right, and stays as it was\n")


def test_damage_is_named_with_what_needs_it(program: Any, first: str, second: str) -> None:
    damage(folder_of(program, first))
    ran = program("store", "verify")
    assert ran.status == 65
    assert ran.lines[0].startswith(f"{first} is damaged (tree): {folder_of(program, first)}: its tree hash is ")
    assert ran.lines[1:] == [
        f"  made from it: {second}",
        "  --repair moves it aside; then build it again: pylightnix build FILE.py:STAGE",
        "1 whole; 1 damaged",
    ]
    damaged, verified = program("store", "verify", "-j", "1", "--json").objects
    assert (damaged["rref"], damaged["damage"], damaged["needed_by"], damaged["remedy"]) == (first, "tree", [second], "by-hand")
    assert verified == {"kind": "verified", "whole": 1, "resumed": 0, "damaged": 1, "left": 1, "sound": False}
    assert program("store", "verify", rref2dref(first)).status == 65


@pytest.mark.parametrize("by_daemon", [False, True])
def test_repair_moves_it_aside_and_a_build_makes_it_again(program: Any, first: str, second: str, built: Any, by_daemon: bool) -> None:
    folder = folder_of(program, first)
    damage(folder)
    program.daemon = by_daemon
    with served(program.store, by_daemon):
        *_, mended, verified = program("store", "verify", "--repair", "--json").objects
        assert (mended["rref"], mended["outcome"], mended["rebuilt"], mended["needed_by"]) == (first, "quarantined", False, [second])
        assert verified["left"] == 1
        assert (Path(mended["moved_to"]) / "out.txt").read_text() == "eno"
        assert Path(mended["moved_to"]).parent == program.store / "quarantine"
        assert not folder.exists()
        incomplete, verified = program("store", "verify", "--json").objects
        assert (incomplete["rref"], incomplete["lost"]) == (second, [first])
        assert built("stages.py:main") == second
        assert (folder / "out.txt").read_text() == "one"
        assert program("store", "verify").status == 0


def test_what_can_be_put_right_in_place_is(program: Any, first: str) -> None:
    folder = folder_of(program, first)
    folder.chmod(0o755)
    (folder / "context.json").unlink()
    assert "--repair puts it right" in program("store", "verify").stdout
    ran = program("store", "verify", "--repair")
    assert ran.status == 0
    assert ran.lines[-2:] == [f"{first} is whole again", "1 whole; 1 damaged, 0 left to mend"]
    assert program("store", "verify").status == 0


@pytest.mark.parametrize("loss", ["absent", "empty", "short"])
def test_a_lost_index_is_refused_and_made_anew(program: Any, first: str, second: str, loss: str) -> None:
    index = program.store / "index.sqlite"
    if loss == "absent":
        index.unlink()
    else:
        os.truncate(index, 0 if loss == "empty" else 4096)
    for suffix in ("-wal", "-shm"):
        Path(f"{index}{suffix}").unlink(missing_ok=True)
    for command in (("find",), ("build", "stages.py:main"), ("store", "verify"), ("rm", first)):
        ran = program(*command)
        assert ran.status == 65, ran
        assert f"pylightnix --store {program.store} store reindex" in ran.stderr
    last = program("store", "reindex", "--json").last
    assert (last["kind"], last["changed"], last["entered"], last["left_out"]) == ("reindexed", True, 2, {})
    found = {line["rref"] for line in program("find", "--json").objects}
    assert found == {first, second}
    assert program("build", "stages.py:main", "--json").last["reused"] == 2


def test_what_does_not_fit_its_name_is_left_out(program: Any, first: str, second: str) -> None:
    damage(folder_of(program, first))
    (program.store / "index.sqlite").unlink()
    ran = program("store", "reindex")
    assert ran.status == 65
    assert ran.lines[0].startswith(f"{first} is left out: ")
    assert ran.lines[1] == f"{second} was made from what is not in the store: {first}"
    assert ran.lines[2].startswith("1 realizations are in the new index ")


def test_reindex_where_a_daemon_has_the_store(program: Any, second: str) -> None:
    with served(program.store):
        ran = program("store", "reindex")
        assert ran.status == 75
        assert "stop that daemon first" in ran.stderr
        assert program("store", "verify", "--json").last["sound"]


def test_an_index_elsewhere(program: Any, second: str, tmp_path: Path) -> None:
    ran = program("store", "reindex", "--state", str(tmp_path / "apart"))
    assert ran.status != 0
    (tmp_path / "apart").mkdir()
    assert program("store", "reindex", "--state", str(tmp_path / "apart"), "--json").last["entered"] == 2
    assert (tmp_path / "apart" / "index.sqlite").exists()


def test_completion_and_help(program: Any, first: str) -> None:
    environment = {"_PYLIGHTNIX_COMPLETE": "bash_complete", "COMP_WORDS": "pylightnix store ver", "COMP_CWORD": "2"}
    assert program(env=environment).lines == ["plain,verify"]
    digits = first[5:8]
    environment = {"_PYLIGHTNIX_COMPLETE": "bash_complete", "COMP_WORDS": f"pylightnix store verify {digits}", "COMP_CWORD": "3"}
    assert f"plain,{first[5:]}" in program(env=environment).lines
    assert "--repair" in program("store", "verify", "--help").stdout
