"""The runner of tests: what fails by accident is named, what fails twice fails the run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).resolve().parents[1] / "run.py"

PASSES_SECOND = """
import pathlib
def test_{name}(tmp_path):
    mark = pathlib.Path(__file__).with_suffix(".{name}")
    seen = mark.exists()
    mark.touch()
    assert seen
"""


def run(folder: Path, *arguments: str) -> tuple[int, list[str]]:
    (folder / "pytest.ini").write_text("[pytest]\n")
    child = subprocess.run(
        [sys.executable, RUN, "-q", "-p", "no:cacheprovider", "-p", "xdist.plugin", *arguments],
        cwd=folder,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},  # each of them takes its time to load
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    return child.returncode, child.stdout.splitlines()


def test_flaky_tests_pass_and_are_named_last(tmp_path: Path) -> None:
    (tmp_path / "test_luck.py").write_text(PASSES_SECOND.format(name="one") + PASSES_SECOND.format(name="two") + "def test_fine(): pass\n")
    status, lines = run(tmp_path, "-n", "1")
    assert status == 0, lines
    assert sorted(lines[-2:]) == ["FLAKY: test_luck.py::test_one", "FLAKY: test_luck.py::test_two"]


def test_what_fails_twice_fails_the_run(tmp_path: Path) -> None:
    (tmp_path / "test_luck.py").write_text(PASSES_SECOND.format(name="one") + "def test_wrong(): assert False\n")
    status, lines = run(tmp_path)
    assert status == 1, lines
    assert sorted(lines[-2:]) == ["FAILED twice: test_luck.py::test_wrong", "FLAKY: test_luck.py::test_one"]


def test_many_failures_are_not_run_again(tmp_path: Path) -> None:
    (tmp_path / "test_many.py").write_text("".join(PASSES_SECOND.format(name=f"n{i}") for i in range(11)))
    status, lines = run(tmp_path)
    assert status == 1, lines
    assert lines[-1] == "11 tests failed: more than 10 are not run again"


@pytest.mark.parametrize("text", ["def test_a(: pass\n", "import nothing_of_that_name\n"])
def test_what_cannot_be_collected_fails_the_run(tmp_path: Path, text: str) -> None:
    (tmp_path / "test_bad.py").write_text(text)
    status, lines = run(tmp_path)
    assert status == 2, lines
    assert not [line for line in lines if "FLAKY" in line]


def test_crash_of_a_testing_process_is_run_again(tmp_path: Path) -> None:
    (tmp_path / "test_crash.py").write_text(
        "import os, pathlib\n"
        "def test_crash():\n"
        "    mark = pathlib.Path(__file__).with_suffix('.mark')\n"
        "    if not mark.exists():\n"
        "        mark.touch()\n"
        "        os._exit(3)\n"
    )
    status, lines = run(tmp_path, "-n", "1")
    assert status == 0, lines
    assert lines[-1] == "FLAKY: test_crash.py::test_crash"
