"""What a type checker says of users' programs and of the examples in the documents, as strict as it can be: nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
from tests.docs.test_examples import PAGES, REPOSITORY, Block, blocks
from tests.typing import program

SCRIPTS: Final = sorted((REPOSITORY / "docs" / "examples").glob("*.py"))

MEANT: Final = {
    "docs/coming-from-0.x.md": ['Module "pylightnix" has no attribute "deepcopy"'],  # a name of 0.x, which works and is told
    "tests/typing/program.py": ['"RRef" has no attribute "no_such_method"'],  # put there by the test: that errors are found
}
"""What is to be said all the same, by file, in order."""

OTHERS: Final = """\
[mypy]
[mypy-matplotlib.*]
follow_imports = skip
follow_imports_for_stubs = True
[mypy-msgpack.*]
ignore_missing_imports = True
"""
"""What other packages say of themselves is their business."""


def test_the_program_runs(tmp_path: Path) -> None:
    contents, name, start = program.main(str(tmp_path / "store"))
    assert (contents, name) == ("0\n1\n2", "total")
    assert start


def test_programs_and_examples_are_strictly_well_typed(tmp_path: Path) -> None:
    for package in ("mypy", "numpy", "matplotlib"):
        pytest.importorskip(package)
    files = {path.name: path for path in SCRIPTS}
    modules: list[str] = []
    for page in PAGES:
        for name, text in _written(page).items():
            assert name not in files, f"{name} stands in {page} and in {files[name]}"
            (tmp_path / name).write_text(text)
            files[name] = page
            modules += [] if name == _typed_in(page) else [name.removesuffix(".py")]
    files["program.py"] = Path(program.__file__)
    (tmp_path / "program.py").write_text(files["program.py"].read_text() + "\n\nevaluate(pair_of_one).no_such_method()\n")
    assert {"prices", "letters", "words"} <= set(modules)
    found: dict[str, list[str]] = {}
    for name, _, message in _strictly(tmp_path, [str(path) if path in SCRIPTS else name for name, path in files.items()]):
        found.setdefault(str(files[Path(name).name].relative_to(REPOSITORY)), []).append(message)
    assert found == MEANT


def _typed_in(page: Path) -> str:
    return re.sub(r"\W", "_", str(page.relative_to(REPOSITORY)).lower()) + ".py"


def _written(page: Path) -> dict[str, str]:
    """Return the Python files of a page: those that it names, and what is typed. Each line is where it is on the page."""
    found: dict[str, list[str]] = {}
    for block in blocks(page.read_text()):
        if block.language == "python":
            named = re.match(r"# (?:file|add to): (\S+)\n", block.text)
            _put(found.setdefault(named[1] if named else _typed_in(page), []), block)
    return {name: "\n".join([*lines, ""]) for name, lines in found.items()}


def _put(lines: list[str], block: Block) -> None:
    lines += [""] * (block.line - 1 - len(lines))
    lines += block.text.split("\n")


def _strictly(folder: Path, files: list[str]) -> list[tuple[str, int, str]]:
    """Return what mypy says: file, line and message, in order."""
    (folder / "mypy.ini").write_text(OTHERS)
    environment = {**os.environ, "MYPYPATH": os.pathsep.join(str(REPOSITORY / part) for part in ("src", "client", "daemon"))}
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--cache-dir", "cache", "--strict", "--no-error-summary"]
    checked = subprocess.run([*command, *files], cwd=folder, capture_output=True, text=True, env=environment)
    assert checked.returncode in (0, 1), checked.stdout + checked.stderr
    print(checked.stdout)
    errors = re.findall(r"^(.+?):(\d+): error: (.*?)  \[[\w-]+\]$", checked.stdout, re.MULTILINE)
    assert len(errors) == checked.stdout.count(": error: "), checked.stdout
    return [(file, int(line), message) for file, line, message in errors]
