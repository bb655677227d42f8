"""What is built is the code that the program has: files that change under it are noticed, and by nobody else."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.client import daemons

from pylightnix import RRef, StorageSettings, rref2path
from pylightnix.query import realization_info
from pylightnix.travel.claims import sent_values

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
import types

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

    def log(self, rref: str) -> str:
        command = [sys.executable, "-m", "pylightnix_client", "--store", str(self.S.root), "log", rref]
        return subprocess.run(command, env=daemons.environment(), stdout=subprocess.PIPE, text=True, check=True).stdout

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
    assert "the function write differs from " in said
    assert "stages_of_mine.py, which was edited meanwhile\nstart the program again" in said
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


MODULE_OF_VALUES = """
import datetime, functools, os, random, tempfile, time, uuid
from pathlib import Path

from pylightnix import build_outpath, build_wrapper

{values}

def write(b):
    Path(build_outpath(b), "out.txt").write_text(str({read}))


realizer = build_wrapper(write)
"""


@pytest.mark.parametrize(
    ("values", "read"),
    [
        ("WHO = os.getpid()", "WHO"),
        ("DATA = os.path.abspath('data.txt')", "DATA"),
        ("HERE = Path('data.txt').resolve()", "HERE"),
        ("TIMES = {'start': time.time(), 'day': datetime.datetime.now()}", "TIMES"),
        ("DRAWN = [random.random() for _ in range(3)]", "DRAWN"),
        ("ID = uuid.uuid4()\nNAMES = (ID.hex, os.getcwd())", "(ID, NAMES)"),
        ("class Box:\n    who = os.getpid()", "Box.who"),
        ("class Box:\n    def __init__(self): self.who = os.getpid()\nBOX = Box()", "BOX.who"),
        ("PART = functools.partial(max, os.getpid())", "PART(1)"),
        ("NAMES = list({'a', 'b', 'c', 'd', 'e', 'f', 'g'})", "NAMES"),
    ],
)
def test_value_that_each_process_makes_anew_is_that_of_the_program(project: Project, values: str, read: str) -> None:
    project.module.write_text(MODULE_OF_VALUES.format(values=values, read=read))
    (project.folder / "program.py").write_text(PROGRAM + f"print(str(eval({read!r}, vars(stages_of_mine))))\n")
    said = project.go(project.load(f"anew-{hash(values)}"))
    rref, _, expected = said.partition("\n")
    assert project.text(rref) == expected
    info = realization_info(RRef(rref), project.S)
    assert info is not None
    assert info.realizer_digest is not None
    log = project.log(rref)
    name = values.rpartition("\n")[2].split()[0] if "class" not in values or "BOX" in values else "Box.who"
    assert f"warning: the value stages_of_mine.{name} differs" in log
    assert " in the worker; that of the program is used; each process makes it anew, so pass it to the stage as a parameter" in log
    assert " at 0x" not in log


@pytest.mark.parametrize(
    ("values", "read", "named"),
    [
        ("def who(pid=os.getpid()): return pid", "who()", "who=pid"),
        (
            "def outer():\n    pid = os.getpid()\n    def who(): return pid\n    return who\nwho = outer()",
            "who()",
            "outer.<locals>.who.pid",
        ),
        ("TABLE = {'f': lambda: 1, 'pid': os.getpid()}", "TABLE['pid']", "TABLE"),
    ],
)
def test_value_that_cannot_be_taken_along_is_told(project: Project, values: str, read: str, named: str) -> None:
    project.module.write_text(MODULE_OF_VALUES.format(values=values, read=read))
    rref = project.go(project.load(f"left-{named}"))
    assert f"warning: the value stages_of_mine.{named} differs: " in project.log(rref)
    assert "that of the worker is used" in project.log(rref)


def test_value_that_a_program_sets_is_that_of_the_program(project: Project) -> None:
    project.module.write_text(MODULE_OF_VALUES.format(values="LEVEL = 1", read="LEVEL"))
    (project.folder / "program.py").write_text(PROGRAM.replace('print("loaded"', 'stages_of_mine.LEVEL = 5\nprint("loaded"'))
    assert project.text(project.go(project.load("set"))) == "5"


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("LEVEL = 1", "LEVEL = 2", "the value stages_of_mine.LEVEL differs: 1 here, 2 in the worker"),
        ("str(", "repr(", "the function write differs from"),
        ("NAMES = ['a']", "NAMES = ['b']", "the value stages_of_mine.NAMES differs: ['a'] here, ['b'] in the worker"),
    ],
)
def test_file_edited_after_it_was_loaded_is_named_with_what_differs(project: Project, old: str, new: str, named: str) -> None:
    project.module.write_text(MODULE_OF_VALUES.format(values="LEVEL = 1\nNAMES = ['a']", read="(LEVEL, NAMES)"))
    program = project.load(f"named-{named}")
    project.module.write_text(project.module.read_text().replace(old, new))
    said = project.go(program)
    assert said.startswith("code-changed ")
    assert named in said
    assert str(project.module) in said
    assert len(said.splitlines()) <= 3


def test_file_that_values_are_made_by_is_refused_when_it_changes(project: Project) -> None:
    project.module.write_text(MODULE_OF_VALUES.format(values="import making\nLEVEL = making.made()", read="LEVEL"))
    making = project.folder / "making.py"
    making.write_text("def made(): return 1\n")
    program = project.load("made")
    making.write_text("def made(): return 2\n")
    said = project.go(program)
    assert said.startswith("code-changed ")
    assert "the value stages_of_mine.LEVEL differs: 1 here, 2 in the worker" in said


def test_function_that_each_process_chooses_is_refused_and_named(project: Project) -> None:
    values = "if os.path.exists('here.txt'):\n    def pick(): return 1\nelse:\n    def pick(): return 2"
    project.module.write_text(MODULE_OF_VALUES.format(values=values, read="pick()"))
    (project.folder / "here.txt").write_text("")
    said = project.go(project.load("chosen"))
    assert said.startswith("code-changed ")
    assert "the function stages_of_mine.pick differs" in said
    assert "no file changed" in said


def test_command_builds_a_constant_of_the_working_folder_once(tmp_path: Path, served: StorageSettings) -> None:
    lines = [
        "import os",
        "from pylightnix import autostage, selfref",
        "DATA = os.path.abspath('data.txt')",
        "@autostage(name='job', out=[selfref, 'out.txt'])",
        "def stage(out):",
        "    open(out, 'w').write(open(DATA).read())",
    ]
    (tmp_path / "job.py").write_text("\n".join(lines) + "\n")
    (tmp_path / "data.txt").write_text("7")
    command = [sys.executable, "-m", "pylightnix_client", "--store", str(served.root), "build", "job:stage"]
    told = []
    for _ in range(2):
        ran = subprocess.run(command, cwd=tmp_path, env=daemons.environment(), capture_output=True, text=True, check=True)
        told.append(ran.stderr.strip().splitlines()[-1])
        assert (f"UserWarning: the value job.DATA differs: '{tmp_path}/"[:60] in ran.stderr) == (len(told) == 1), ran.stderr
    assert [text.rpartition(", ")[2] for text in told] == ["1 built", "1 reused"]


def test_large_values_stay() -> None:
    values = {"small": [1, 2], "large": b"x" * (1 << 17), "function": lambda: 1}
    module = types.ModuleType("module_of_large_values")
    vars(module).update(values)
    sys.modules[module.__name__] = module
    try:
        assert set(sent_values(f"{module.__name__}.{name}" for name in [*values, "nothing"])) == {f"{module.__name__}.small"}
    finally:
        del sys.modules[module.__name__]


def test_process_that_was_forked_has_the_files_of_the_first(project: Project) -> None:
    project.module.write_text(MODULE_OF_VALUES.format(values="LEVEL = 1", read="LEVEL"))
    forks = "import os, sys\nimport stages_of_mine\nprint('loaded', flush=True)\nsys.stdin.readline()\n"
    forks += "if os.fork():\n    os.wait()\n    os._exit(0)\n"
    (project.folder / "program.py").write_text(forks + PROGRAM.replace('print("loaded", flush=True)\nsys.stdin.readline()\n', ""))
    program = project.load("forked")
    project.module.write_text(project.module.read_text().replace("LEVEL = 1", "LEVEL = 2"))
    assert project.go(program).startswith("code-changed ")
