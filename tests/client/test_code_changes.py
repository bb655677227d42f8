"""What is built is the code that the program has: files that change under it are noticed, and by nobody else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.client import daemons

from pylightnix import RRef, StorageSettings, rref2path
from pylightnix.query import realization_info

MODULE = """
import os

from pylightnix import build_outpath, build_wrapper


def write(b):
    with open(os.path.join(build_outpath(b), "out.txt"), "w") as file:
        file.write({text!r})


realizer = build_wrapper(write)
"""

PROGRAM = """
import sys

import stages_of_mine
from pylightnix import PylightnixException, instantiate, match_latest, mkconfig, mkdrv, mkSS, realize1

print("loaded", flush=True)
sys.stdin.readline()
config = mkconfig({"name": "mine", "i": sys.argv[2]})
try:
    print(realize1(instantiate(lambda r: mkdrv(config, match_latest(), stages_of_mine.realizer, r), S=mkSS(sys.argv[1]))))
except PylightnixException as error:
    print(error.code, error)
"""


@pytest.fixture(scope="module")
def served() -> Iterator[StorageSettings]:
    with daemons.served_store() as S:
        yield S


class Project:
    def __init__(self, folder: Path, S: StorageSettings) -> None:
        self.folder, self.S = folder, S
        self.module = folder / "stages_of_mine.py"
        (folder / "program.py").write_text(PROGRAM)

    def write(self, text: str, before: str = "") -> None:
        self.module.write_text(before + MODULE.format(text=text))

    def load(self, i: object) -> subprocess.Popen[str]:
        """Start the program and wait until it has the module."""
        program = subprocess.Popen(
            [sys.executable, "program.py", str(self.S.root), str(i)],
            cwd=self.folder,
            env=daemons.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert program.stdout is not None
        assert program.stdout.readline() == "loaded\n"
        return program

    def go(self, program: subprocess.Popen[str]) -> str:
        return program.communicate("go\n", timeout=daemons.SECONDS)[0].strip()

    def text(self, rref: str) -> str:
        return Path(rref2path(RRef(rref), self.S), "out.txt").read_text()


@pytest.fixture
def project(tmp_path: Path, served: StorageSettings) -> Project:
    return Project(tmp_path, served)


def test_a_file_edited_between_two_runs_is_built_as_it_is(project: Project) -> None:
    digests = set()
    for i, text in enumerate(["old", "new", "old"]):
        project.write(text)
        rref = project.go(project.load(f"{os.getpid()}-between-{i}"))
        assert project.text(rref) == text
        info = realization_info(RRef(rref), project.S)
        assert info is not None
        digests.add(info.realizer_digest)
    assert len(digests) == 2
    assert None not in digests


@pytest.mark.parametrize("before", ["", "# one line more\n"])
def test_a_file_edited_after_it_was_loaded_is_not_built(project: Project, before: str) -> None:
    name = f"after-{len(before)}"
    project.write("old")
    program = project.load(name)
    project.write("new", before)
    said = project.go(program)
    assert said.startswith("code-changed ")
    assert "was changed meanwhile: start the program again" in said
    assert project.text(project.go(project.load(name))) == "new"


def test_a_file_touched_or_commented_after_it_was_loaded_is_built(project: Project) -> None:
    project.write("same")
    program = project.load("touched")
    project.module.write_text(project.module.read_text() + "# a last word\n")
    assert project.text(project.go(program)) == "same"


def test_what_is_realized_needs_no_code(project: Project) -> None:
    project.write("old")
    rref = project.go(project.load("realized"))
    program = project.load("realized")
    project.write("new")
    assert project.go(program) == rref


def test_data_that_is_another_in_each_process_is_not_built(project: Project) -> None:
    project.write("same")
    project.module.write_text(
        project.module.read_text().replace("import os\n", "import os\n\nWHO = os.getpid()\n").replace("'same'", "str(WHO)")
    )
    said = project.go(project.load("varying"))
    assert said.startswith("code-changed ")
    assert "pass what changes while it runs through the config" in said
