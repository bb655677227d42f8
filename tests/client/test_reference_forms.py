"""Every command that takes a reference takes every form of one, and says what it means or why it means nothing."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.client.conftest import Ran
from tests.client.in_process import run_here

from pylightnix.refs import rref2dref, undref, unrref

STAGES = """
from pylightnix import *
print("importing prints")
def _write(b):
    with open(build_outpath(b) + "/report.md", "w") as file:
        file.write(build_cattrs(b).text)
def made(r, name, text, **more):
    return mkdrv(mkconfig({"name": name, "text": text, **more}), match_latest(), build_wrapper(_write), r)
def report(r):
    return made(r, "report", "one")
def above(r):
    return made(r, "above", "two", dep=report(r))
def reports(r, text="first"):
    return made(r, "several", text)
def never(r):
    return made(r, "never", "three")
def feed(r):
    return made(r, "feed", "four")
"""
PACKAGE = """
from pylightnix import *
from .texts import TEXT
from . import texts
@autostage(name="poured", text=TEXT, out=[selfref, "report.md"])
def main(text, out):
    with open(out, "w") as file:
        file.write(text + texts.TEXT)
"""


@dataclass(frozen=True)
class Project:
    """A folder with stages, and a store in which all but `never` are built."""

    folder: Path
    store: Path

    def run(self, *arguments: str) -> Ran:
        return run_here("--store", str(self.store), *arguments)

    def build(self, *arguments: str) -> str:
        ran = self.run("build", "--no-daemon", *arguments)
        assert ran.status == 0, ran.stderr
        return ran.stdout.split("\t")[0]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    folder = tmp_path_factory.mktemp("project")
    (folder / "stages.py").write_text(STAGES)
    (folder / "wine" / "cellar").mkdir(parents=True)
    for package in ("wine", "wine/cellar"):
        (folder / package / "__init__.py").touch()
    (folder / "wine" / "cellar" / "stages.py").write_text(PACKAGE)
    (folder / "wine" / "cellar" / "texts.py").write_text("TEXT = 'red'\n")
    cwd, path, modules = os.getcwd(), list(sys.path), dict(sys.modules)
    os.chdir(folder)
    made = Project(folder, folder / "store")
    try:
        for stage in ("above", "feed"):
            made.build(f"stages.py:{stage}")
        made.build("stages.py:report", "--out-link", "result")
        for text in ("first", "second"):
            made.build("stages.py:reports", "--arg", f'text="{text}"')
        made.build("wine/cellar/stages.py")
        yield made
    finally:
        os.chdir(cwd)
        sys.path[:] = path
        for name in set(sys.modules) - set(modules):
            del sys.modules[name]


@pytest.fixture
def rref(project: Project) -> str:
    return str(project.run("path2rref", "result").stdout.strip())


def forms(project: Project, rref: str) -> dict[str, str]:
    """Return how `rref` may be given, or its derivation: its only realization is meant then."""
    dref, (rhash, dhash, name) = rref2dref(rref), unrref(rref)
    folder = os.path.realpath("result")
    above = os.path.dirname(folder)
    realization = [rref, rhash[:8], f"rref:{rhash[:6]}", "result", "./result", str(project.folder / "result"), folder]
    inside = ["result/report.md", f"{folder}/report.md", f"{rref}/report.md"]
    derivation = [dref, dhash[:7], f"dref:{dhash[:9]}", f"{dhash}-{name}", above, f"{above}/config.json", "report", "stages.py:report"]
    return {**dict.fromkeys([*realization, *inside], rref), **dict.fromkeys(derivation, dref)}


def test_every_form_of_a_reference(project: Project, rref: str) -> None:
    folder = os.path.realpath("result") + "\n"
    for text, meant in forms(project, rref).items():
        ran = project.run("path", text)
        assert (ran.status, ran.stdout) == (0, folder), (text, ran.stderr)
        shown = project.run("show", text, "--json").last
        assert meant in (shown.get("rref"), shown["dref"]), text
        assert shown["kind"] == ("realization" if meant == rref else "derivation"), text
        for command, status in (("why-rebuild", 0), ("log", 66)):
            ran = project.run(command, text)
            assert (ran.status, "regex" in ran.stderr) == (status, False), (command, text, ran.stderr)
        assert project.run("export", text, "-o", "archive").stderr == "1 realization of 1 derivation\n"


@pytest.mark.parametrize("text", ["report", "stages.py:report", "stages:report", "result", "result/report.md", "./result/report.md"])
def test_files_of_any_form(project: Project, rref: str, text: str) -> None:
    assert "report.md" in project.run("ls", text).lines
    whole = text if text.endswith(".md") else f"{text}/report.md"
    for arguments in ([whole], [text, "report.md"] if whole != text else [rref, "report.md"]):
        ran = project.run("cat", *arguments)
        assert (ran.status, ran.stdout) == (0, "one"), ran.stderr
    assert project.run("cat", whole, "--json").last["content"] == "one"


def test_cat_wants_a_file(project: Project, rref: str) -> None:
    for text in ("result", rref, "report"):
        ran = project.run("cat", text)
        assert (ran.status, ran.stdout) == (66, "")
        assert "it is a folder; list it with: pylightnix ls rref:" in ran.stderr
    assert "no 'absent'" in project.run("cat", "result/absent").stderr


def test_targets_of_packages(project: Project) -> None:
    texts = ("wine.cellar.stages", "wine.cellar.stages:main", "wine/cellar/stages.py", "poured")
    assert len({project.run("path", text).stdout for text in texts}) == 1
    assert project.run("cat", "wine.cellar.stages/report.md").stdout == "redred"
    for target in ("wine.cellar.stages", "wine/cellar/stages.py:main", "poured"):
        assert project.run("build", "--no-daemon", target, "--json").last["reused"] == 1, target


def test_a_name_of_several_lists_them_newest_first(project: Project) -> None:
    for arguments in (("show", "several"), ("path", "several"), ("cat", "several/report.md"), ("rm", "several"), ("plan", "several")):
        ran = project.run(*arguments)
        assert (ran.status, ran.stdout) == (2, ""), arguments
        head, *lines = ran.stderr.splitlines()
        assert head == "error: 'several' may mean 2 things; give one of these, the newest first:"
        assert all(
            re.fullmatch(r"  [dr]ref:\S+-several  built \d+ s ago \(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC\)", line) for line in lines
        ), lines
        folders = [project.run("path", line.split()[0]).stdout.strip() for line in lines]
        assert [Path(folder, "report.md").read_text() for folder in folders] == ["second", "first"]
        assert project.run(*arguments, "--json").last["code"] == "ambiguous-reference"


def test_what_is_not_built_says_so(project: Project) -> None:
    for command, text, *more in (
        ("show", "stages.py:never"),
        ("path", "stages.py:never"),
        ("cat", "stages.py:never", "report.md"),
        ("cat", "stages.py:never/report.md"),
        ("ls", "stages:never"),
        ("export", "stages.py:never", "-o", "x"),
        ("rm", "stages.py:never"),
    ):
        ran = project.run(command, text, *more)
        named = text.partition("/")[0]
        assert (ran.status, ran.stdout) == (66, ""), command
        assert f"{named} is not built yet (dref:" in ran.stderr
        assert ran.stderr.endswith(f"build it with: pylightnix build {named}\n")
        assert project.run(command, text, *more, "--json").last["code"] == "not-built"


NOTHING = ["nothing", "./nothing", "0123456789abcdef", "no/such/path", "a.*b", "[x]", "stages", ".", "reprot", "no.such.module"]


@pytest.mark.parametrize("text", NOTHING)
def test_what_means_nothing_says_what_forms_there_are(project: Project, text: str) -> None:
    for command in ("show", "path", "cat", "ls", "log", "why-rebuild", "export", "rm"):
        ran = project.run(command, text)
        assert ran.status in (2, 66), (command, ran)
        assert ran.stdout == ""
        assert "regex" not in ran.stderr
        assert len(ran.stderr.splitlines()) <= 3
        if text == "stages":
            assert "stages.py has more than one stage" in ran.stderr or "more than one stage" in ran.stderr
        else:
            assert "expected dref:… or rref:…, 4 or more digits of a hash, a path in the store such as a result link" in ran.stderr
    if text == "reprot":
        assert "did you mean report?" in project.run("show", text).stderr
    if text == ".":
        assert "there is such a path, but it is not in the store" in project.run("show", text).stderr


def test_a_name_of_hexadecimal_digits_is_a_name_too(project: Project) -> None:
    assert project.run("cat", "feed/report.md").stdout == "four"


def test_removing_wants_something_whole(project: Project, rref: str) -> None:
    ran = project.run("rm", "result/report.md")
    assert (ran.status, ran.stdout) == (2, "")
    assert f"this path is inside {rref}" in ran.stderr
    project.build("stages.py:never")
    rref = project.run("find", "never", "--json").last["rref"]
    assert project.run("rm", "never").lines == [rref, rref2dref(rref)]
    assert undref(rref2dref(rref))[1] == "never"


def test_what_users_print_stays_out_of_answers(project: Project) -> None:
    del sys.modules["stages"]
    ran = project.run("show", "stages.py:report", "--json")
    assert len(ran.lines) == 1
    assert "importing prints" in ran.stderr
