from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pylightnix.errors import TargetNotFound
from pylightnix_client.errors import InvalidArgument, TargetFailed
from pylightnix_client.loading import choose_stage, load_file, load_module

pytestmark = pytest.mark.usefixtures("fresh_imports")


def load(folder: Path, text: str, name: str = "the_stages.py") -> ModuleType:
    path = folder / name
    path.write_text(text)
    return load_file(str(path))


def test_file_is_a_module_of_its_name_and_imports_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("import the_stages\nvalue = 3\n")
    module = load(tmp_path, "import neighbour\nvalue = neighbour.value\ndef main(r): return value\n")
    assert module.__name__ == "the_stages"
    assert module.value == 3
    assert module.neighbour.the_stages is module
    assert inspect.getsource(module.main) == "def main(r): return value\n"
    assert load_file(str(tmp_path / "the_stages.py")) is module


def test_names_that_are_taken_get_another_that_stays_the_same(tmp_path: Path) -> None:
    random = load(tmp_path, "x = 1\n", "random.py")
    assert random.x == 1
    assert random.__name__.startswith("random_")
    other = tmp_path / "other"
    other.mkdir()
    first, second = load(tmp_path, "x = 1\n"), load(other, "x = 2\n")
    assert (first.x, second.x) == (1, 2)
    assert load_file(str(other / "the_stages.py")) is second
    source = "import sys; from pylightnix_client.loading import load_file; print(load_file(sys.argv[1]).__name__)"
    child = subprocess.run([sys.executable, "-c", source, str(tmp_path / "random.py")], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == random.__name__
    assert load(tmp_path, "x = 3\n", "my-stages.v2.py").x == 3


def test_file_that_fails_leaves_no_module(tmp_path: Path) -> None:
    with pytest.raises(TargetFailed, match="importing it raised ZeroDivisionError: division by zero"):
        load(tmp_path, "1/0\n")
    assert "the_stages" not in sys.modules


@pytest.mark.parametrize("text", ["raise SystemExit('bye')", "def broken(:", "import no_such_module_at_all"])
def test_whatever_a_file_raises_is_told(tmp_path: Path, text: str) -> None:
    with pytest.raises(TargetFailed):
        load(tmp_path, text)


def test_a_file_in_a_package_is_a_part_of_it(tmp_path: Path) -> None:
    for folder, text in (("outer", "X = 1\n"), ("outer/inner", "")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text(text)
    (tmp_path / "outer" / "inner" / "neighbour_of_it.py").write_text("value = 3\n")
    text = "from .. import X\nfrom . import neighbour_of_it as one\nimport neighbour_of_it as other\n"
    text += "def main(r): return X, one.value, other.value\n"
    module = load(tmp_path / "outer" / "inner", text)
    assert module.__name__ == "outer.inner.the_stages"
    assert module.main(None) == (1, 3, 3)
    assert load_file(str(tmp_path / "outer" / "__init__.py")).X == 1
    assert load_module("outer.inner.the_stages") is module


def test_a_package_whose_name_is_taken_is_left_aside(tmp_path: Path) -> None:
    for package in ("random", "my-package"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
        module = load(tmp_path / package, f"x = {package!r}\n", f"alone_{package[:2]}.py")
        assert (module.x, module.__name__) == (package, f"alone_{package[:2]}")


def test_relative_imports_without_a_package_say_how_to_name_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wine" / "red").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wine" / "red" / "other.py").write_text("value = 3\n")
    with pytest.raises(TargetFailed, match=r"name it wine\.red\.the_stages:STAGE, or make wine/red/__init__\.py"):
        load(Path("wine") / "red", "from .other import value\n")
    assert load_module("wine.red.the_stages").value == 3
    with pytest.raises(TargetFailed, match=r"make __init__\.py, so that it is part of a package"):
        load(Path(), "from .wine import red\n", "at_the_top.py")


def test_missing_file_and_module(tmp_path: Path) -> None:
    with pytest.raises(TargetNotFound, match="there is no file"):
        load_file(str(tmp_path / "absent.py"))
    with pytest.raises(TargetNotFound, match=r"no module no_such_package\.module"):
        load_module("no_such_package.module")


def test_module_that_lacks_another_is_there_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_a_package").mkdir()
    (tmp_path / "half_a_package" / "stages.py").write_text("import no_such_module_at_all\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TargetFailed, match="no_such_module_at_all"):
        load_module("half_a_package.stages")
    with pytest.raises(TargetNotFound, match=r"half_a_package\.other"):
        load_module("half_a_package.other")


def test_only_stage_is_chosen(tmp_path: Path) -> None:
    module = load(
        tmp_path,
        """
import os
from os.path import join
def _private(r): ...
def helper(x): ...
def part(r, x): ...
class Thing:
    def __init__(self, r): ...
def train(r, steps=3, *, rate=0.1): ...
alias = train
""",
    )
    stage = choose_stage(module, "f.py", None, [])
    assert (stage.name, stage.required, stage.optional, stage.takes_any) == ("train", (), ("steps", "rate"), False)
    assert stage.takes("steps")
    assert not stage.takes("x")
    assert choose_stage(module, "f.py", "_private", []).name == "_private"


def test_main_is_chosen_of_several(tmp_path: Path) -> None:
    assert choose_stage(load(tmp_path, "def a(r): ...\ndef main(r): ...\n"), "f.py", None, []).name == "main"


def test_several_stages_are_listed(tmp_path: Path) -> None:
    module = load(tmp_path, "def a(r): ...\ndef b(r, **config): ...\n")
    with pytest.raises(TargetNotFound, match=r"its stages: a, b; say which, for example f\.py:a"):
        choose_stage(module, "f.py", None, [])
    with pytest.raises(TargetNotFound, match=r"no stage 'c'; its stages: a, b"):
        choose_stage(module, "f.py", "c", [])
    assert choose_stage(module, "f.py", "b", []).takes("anything")


def test_file_without_stages_says_what_one_is(tmp_path: Path) -> None:
    with pytest.raises(TargetNotFound, match="a stage is a function"):
        choose_stage(load(tmp_path, "x = 1\n"), "f.py", None, [])


def test_what_is_no_stage_says_why(tmp_path: Path) -> None:
    module = load(tmp_path, "x = 1\ndef f(y): ...\n")
    with pytest.raises(TargetNotFound, match="it is of type int, without a parameter named r"):
        choose_stage(module, "f.py", "x", [])
    with pytest.raises(TargetNotFound, match="it is of type function, without a parameter named r"):
        choose_stage(module, "f.py", "f", [])


def test_needed_arguments_are_asked_for(tmp_path: Path) -> None:
    module = load(tmp_path, "def train(r, data, steps): ...\n")
    with pytest.raises(InvalidArgument, match="needs arguments: give --arg steps=…"):
        choose_stage(module, "f.py", None, ["data"])
    assert choose_stage(module, "f.py", "train", ["data", "steps"]).required == ("data", "steps")
