"""An edit that Python itself does not notice: within the second of the one before, and of the same length."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.client.conftest import Program
from tests.client.daemons import end_started_daemon
from tests.loops import for_each

SECOND = 1_000_000_000
EDITED = 1_700_000_000 * SECOND
SAME = EDITED + SECOND // 2

STAGE = """
from pylightnix import autostage, selfref
{imports}
{constants}

@autostage(name="tea", file=[selfref, "tea.txt"])
def tea(file):
    with open(file, "w") as out:
        out.write(str({minutes}))
"""
SCRIPT = """
import tea
from pylightnix import fsinit, instantiate, mklens, realize1

fsinit()
print(open(mklens(realize1(instantiate(tea.tea))).file.syspath).read())
"""
# Where the number stands that is edited: the file, its text, and that of the stage's file if it is another one.
PLACES = {
    "the target": ("tea.py", STAGE.format(imports="", constants="MINUTES = NUMBER", minutes="MINUTES"), None),
    "inside a function": ("tea.py", STAGE.format(imports="", constants="", minutes="NUMBER"), None),
    "a module beside it": (
        "kettle.py",
        "MINUTES = NUMBER\n",
        STAGE.format(imports="import kettle", constants="", minutes="kettle.MINUTES"),
    ),
    "a module of a package": (
        "house/kitchen/__init__.py",
        "def minutes():\n    return NUMBER\n",
        STAGE.format(imports="from house import kitchen", constants="", minutes="kitchen.minutes()"),
    ),
}


class Kitchen:
    """A project whose bytecode is kept, and that is edited at chosen times."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.environment = {**program.environment, "PYTHONDONTWRITEBYTECODE": ""}

    def write(self, place: str, minutes: int, edited: int) -> Path:
        name, text, stage = PLACES[place]
        if stage is not None:
            self.program.write("tea.py", stage)
        path = self.program.write(name, text.replace("NUMBER", str(minutes)))
        os.utime(path, ns=(edited, edited))
        return path

    def built(self) -> str:
        """Build the stage in a new interpreter and return what was made."""
        child = self.program.start("build", "tea.py:tea", env=self.environment)
        out, errors = child.communicate(timeout=60)
        assert child.returncode == 0, errors
        return Path(out.decode().split("\t")[1].strip(), "tea.txt").read_text()

    def scripted(self) -> tuple[str, str]:
        """The same in a program, which prints it; and what it said besides."""
        self.program.write("drink.py", SCRIPT)
        run = subprocess.run(
            [sys.executable, "drink.py"], cwd=self.program.folder, env=self.environment, capture_output=True, text=True, timeout=60
        )
        assert run.returncode == 0, run.stderr
        return run.stdout.strip(), run.stderr


@pytest.fixture
def kitchen(program: Program) -> Kitchen:
    return Kitchen(program)


@pytest.fixture
def daemon_kitchen() -> Iterator[Kitchen]:
    top = Path(tempfile.mkdtemp(prefix="pyl-"))
    folder = top / "project"
    folder.mkdir()
    program = Program(folder, top / "s", daemon=True)
    yield Kitchen(program)
    end_started_daemon(program.store)
    subprocess.run(["chmod", "-R", "u+w", top], check=True)
    shutil.rmtree(top)


def test_an_edit_of_another_second_is_noticed(kitchen: Kitchen) -> None:
    kitchen.write("the target", 180, EDITED)
    assert kitchen.built() == "180"
    kitchen.write("the target", 240, EDITED + 2 * SECOND)
    assert kitchen.built() == "240"


@for_each("place", PLACES)
def test_an_edit_within_the_same_second_is_noticed(kitchen: Kitchen, place: str) -> None:
    kitchen.write(place, 180, EDITED)
    assert kitchen.built() == "180"
    kitchen.write(place, 240, SAME)
    assert kitchen.built() == "240"


def test_it_is_noticed_by_workers(daemon_kitchen: Kitchen) -> None:
    for place in ("inside a function", "a module of a package"):
        daemon_kitchen.write(place, 180, EDITED)
        assert daemon_kitchen.built() == "180"
        daemon_kitchen.write(place, 240, SAME)
        assert daemon_kitchen.built() == "240"


def test_bytecode_is_kept_as_ever_where_it_is_the_younger(kitchen: Kitchen) -> None:
    path = kitchen.write("a module beside it", 180, EDITED)
    assert kitchen.built() == "180"
    bytecode = Path(importlib.util.cache_from_source(str(path)))
    inode = os.stat(bytecode).st_ino
    assert kitchen.built() == "180"
    assert os.stat(bytecode).st_ino == inode
    kitchen.write("a module beside it", 240, SAME)
    assert kitchen.built() == "240"
    assert os.stat(bytecode).st_ino != inode


def test_a_program_that_has_loaded_older_bytecode_is_told_and_is_right_the_next_time(kitchen: Kitchen) -> None:
    kitchen.write("a module beside it", 180, EDITED)
    assert kitchen.scripted() == ("180", "")
    path = kitchen.write("a module beside it", 240, SAME)
    made, said = kitchen.scripted()
    assert made == "180"
    assert f"{path} was edited within a second of the edit before" in said
    assert said.count("UnseenCode") == 1
    assert kitchen.scripted() == ("240", "")
