"""What it costs to confirm that a folder of 10,000 files has not changed, beside `git status` and `find` in the same run.

Run with ``make bench``. Times are printed, never asserted; what is asserted is that no file is read, which no load on the
machine can change.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Optional

import pytest

from pylightnix.sources import Memo, source_digest

FOLDERS, FILES = 100, 100
ROUNDS = 5
LATER_NS = 10_000_000_000
"""Past the time in which files count as changed just now."""


@pytest.mark.slow
def test_unchanged_folder(tmp_path: Path) -> None:
    top = tmp_path / "top"
    for number in range(FOLDERS):
        (top / f"d{number}").mkdir(parents=True)
        for inner in range(FILES):
            (top / f"d{number}" / f"f{inner}").write_text(f"{number} {inner}\n" * 20)
    memo = Memo(str(tmp_path / "memo"))
    read = 0

    def clock() -> int:
        nonlocal read
        read += 1  # it is asked before each file that is read
        return time.time_ns() + LATER_NS

    def ask() -> None:
        source_digest(str(top), ("/.git/",), memo, now_ns=clock)

    print(f"\n{FOLDERS * FILES} files in {FOLDERS} folders, load {os.getloadavg()[0]:.1f}")
    print(f"  read for the first time       {_seconds(ask) * 1000:7.1f} ms")
    assert read == FOLDERS * FILES
    print(f"  unchanged                     {min(_seconds(ask) for _ in range(ROUNDS)) * 1000:7.1f} ms")
    assert read == FOLDERS * FILES
    for name, command in _others(top).items():
        found = min(_seconds(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)) for _ in range(ROUNDS))  # noqa: B023  # called at once
        print(f"  {name:<30}{found * 1000:7.1f} ms")
    (top / "d5" / "f5").write_text("other")
    print(f"  one file changed              {_seconds(ask) * 1000:7.1f} ms")
    assert read == FOLDERS * FILES + 1


def _others(top: Path) -> dict[str, list[str]]:
    found = {"find -printf": ["find", str(top), "-printf", "%s %T@ %i %p\n"]}
    git: Optional[str] = shutil.which("git")
    if git is not None:
        subprocess.run([git, "init", "-q", top], check=True)
        subprocess.run([git, "-C", top, "add", "--all"], check=True)
        found["git status"] = [git, "-C", str(top), "status", "--porcelain"]
    return found


def _seconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun
