"""The commands that say what takes the room, and that get rid of it."""

from __future__ import annotations

import os
import pty
import re
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pylightnix.refs import rref2dref
from pylightnix.types import RRef
from pylightnix_client.candidates import short_references


@pytest.fixture
def second(built: Any) -> str:
    rref: str = built("stages.py:main")
    return rref


@pytest.fixture
def first(second: str, built: Any) -> str:
    """What `second` was made from."""
    rref: str = built("stages.py:first")
    return rref


def found(program: Any, *arguments: str) -> list[str]:
    return [line["rref"] for line in program("find", *arguments, "--json").objects]


def test_what_takes_the_room(program: Any, first: str, second: str) -> None:
    *usage, total = program("du", "--json").objects
    assert [line["kind"] for line in usage] == ["usage", "usage"]
    assert [line["bytes"] for line in usage] == sorted((line["bytes"] for line in usage), reverse=True)
    assert {line["dref"]: list(line["realizations"]) for line in usage} == {rref2dref(rref): [rref] for rref in (first, second)}
    assert total == {"kind": "total", "bytes": sum(line["bytes"] for line in usage)}
    lines = program("du").lines
    assert len(lines) == 3
    assert lines[0].endswith("  1 realization")
    assert lines[-1].endswith("  in all")


@pytest.mark.skipif(os.geteuid() != 0, reason="it takes root to make a file immutable")
def test_what_cannot_be_removed_is_listed_until_it_is_gone(program: Any, second: str, tmp_path: Path) -> None:
    left = Path(program.store, "trash", "left", "file")
    left.parent.mkdir(parents=True)
    left.write_bytes(b"x" * 100)
    (tmp_path / "keep").mkdir()
    subprocess.run(["chattr", "+i", str(left)], check=True)
    try:
        program("find")
        (item,) = [line for line in program("du", "--json").objects if line["kind"] == "unremovable"]
        assert (item["bytes"], item["problem"]) == (100, "Operation not permitted")
        assert item["command"] == f"sudo chattr -R -f -i -a {item['path']}"
        assert [line for line in program("du").lines if item["command"] in line]
        *_, collected, again = program("gc", "--keep", str(tmp_path / "keep"), "--yes", "--json").objects
        assert (collected["kind"], again) == ("collected", item)
    finally:
        subprocess.run(["chattr", "-R", "-f", "-i", program.store], check=False)
    assert program("gc", "--keep", str(tmp_path / "keep"), "--yes", "--json").objects[-1]["kind"] == "collected"
    assert not os.path.exists(item["path"])


def test_finding(program: Any, first: str, second: str) -> None:
    folder = program("path", first).stdout.rstrip("\n")
    [line] = program("find", "fir*").lines
    rref, path, moment, size = line.split("\t")
    assert (rref, path) == (first, folder)
    [item] = program("find", "first", "--json").objects
    started = datetime.fromtimestamp(item["started"], UTC)
    assert item == {"kind": "found", "rref": first, "path": folder, "started": item["started"], "bytes": int(size)}
    assert moment == f"{started:%Y-%m-%dT%H:%M:%SZ}"
    assert int(size) == sum(file.stat().st_size for file in Path(folder).rglob("*"))
    assert found(program) == [second, first], "the newest first"
    assert found(program, "nothing") == []
    assert found(program, "--newer", "1h", "s*") == [second]
    assert found(program, "--newer", "2000-01-01") == found(program, "--newer", "2000-01-01T00:00+01:00") == [second, first]
    assert found(program, "--newer", "9000-01-01") == []


def test_finding_on_a_terminal(program: Any, first: str, second: str) -> None:
    (program.folder / "more.py").write_text("from stages import *\nfrom stages import _derivation, _writes\n" + MORE)
    assert program("build", "more.py:many").status == 0
    ours, theirs = pty.openpty()
    child = subprocess.Popen(program.command("find"), stdin=theirs, stdout=theirs, cwd=program.folder, env=program.environment)
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # which is how a terminal's other end says that nobody writes any more
        while piece := os.read(ours, 1 << 16):
            shown += piece
    assert child.wait(60) == 0
    os.close(ours)
    lines = shown.decode().splitlines()
    assert len(lines) == 22
    assert all(re.fullmatch(r" +\d+ (s|min) ago  +\d+[BKM]?  (named|first|second) +rref:[0-9a-f]{8,}", line) for line in lines), lines
    assert max(map(len, lines)) < 80
    assert [line.split()[-2] for line in lines[-2:]] == ["second", "first"]
    assert program("path", lines[0].split()[-1]).stdout.split("/")[-2].endswith("-named")


MORE = """
def many(r):
    return [_derivation(r, "named", _writes(str(i)), i=i) for i in range(20)]
"""


def test_short_references_are_long_enough() -> None:
    tail = f"-{'0' * 32}-x"
    rrefs = [RRef(f"rref:{start:0<32}{tail}") for start in ("1", "123456789a", "123456789b", "123456789b1", "f")]
    shorts = short_references(rrefs[::-1])
    assert [shorts[rref][5:] for rref in rrefs] == ["10000000", "123456789a", "123456789b0", "123456789b1", "f0000000"]


@pytest.mark.parametrize("time", ["", "5", "h", "-5m", "5 m", "yesterday", "nand"])
def test_no_time(program: Any, time: str) -> None:
    ran = program("find", f"--newer={time}")
    assert (ran.status, ran.stdout) == (2, "")
    assert "expected a time such as" in ran.stderr


def test_removing(program: Any, first: str, second: str) -> None:
    refused = program("rm", first)
    assert (refused.status, refused.stdout) == (1, "")
    assert second in refused.stderr
    assert program("rm", rref2dref(first), "--json").last["code"] == "in-use"
    assert found(program) == [second, first]
    assert program("rm", second).lines == [second]
    assert program("rm", rref2dref(second), rref2dref(first), "--json").objects == [
        {"kind": "removed", "drefs": sorted([rref2dref(first), rref2dref(second)]), "rrefs": [first]}
    ]
    assert found(program) == []
    assert program("rm", first).status == 66
    assert program("rm").status == 2


def test_removing_both_at_once(program: Any, first: str, second: str) -> None:
    assert program("rm", first, second).lines == sorted([first, second])


def test_collecting_what_no_link_keeps(program: Any, first: str, second: str) -> None:
    keep = program.folder / "keep"
    keep.mkdir()
    assert program("build", "stages.py:first", "--out-link", "keep/first").status == 0
    dry = program("gc", "--keep", "keep", "--dry-run", "--json").objects
    assert [line["ref"] for line in dry[:-1]] == [second, rref2dref(second)]
    assert dry[-1] == {"kind": "collected", "removed": [], "bytes": 0, "dry_run": True}
    assert len(program("gc", "--keep", "keep", "--dry-run").lines) == 2
    assert found(program) == [second, first]
    gone = program("gc", "--keep", "keep", "--yes", "--json").last
    assert gone == {
        "kind": "collected",
        "removed": [second, rref2dref(second)],
        "bytes": sum(line["bytes"] for line in dry[:-1]),
        "dry_run": False,
    }
    assert found(program) == [first]
    assert program("gc", "--keep", "keep", "--yes").lines == ["0 removed, 0 freed"]
    (keep / "first").unlink()
    assert program("gc", "--keep", "keep", "--yes").lines[-1].startswith("2 removed, ")
    assert found(program) == []


def test_what_is_not_done_without_a_word(program: Any, first: str) -> None:
    for arguments in (["gc"], ["gc", "--keep", "."], ["gc", "--yes"], ["gc", "--json"], ["gc", "--yes", "--keep", "absent"]):
        ran = program(*arguments)
        assert ran.status == 2, arguments
    assert first in found(program)


@pytest.mark.parametrize(("answer", "left"), [("y", 0), ("n", 2)])
def test_the_answer_on_a_terminal(program: Any, first: str, answer: str, left: int) -> None:
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        program.command("gc"), stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=program.folder, env=program.environment
    )
    os.close(theirs)
    os.write(ours, f"{answer}\n".encode())
    said, asked = child.communicate(timeout=60)
    os.close(ours)
    assert child.returncode == 0
    assert first in said.decode()
    assert b"Remove these 4?" in asked
    assert len(found(program)) == left
