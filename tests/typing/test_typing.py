"""What a type checker says of users' programs, with no settings but its own: nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.docs.test_examples import PAGES, REPOSITORY, SCRIPTS, blocks
from tests.typing import program

UNTYPED = ["--check-untyped-defs", "--ignore-missing-imports", "--warn-unused-ignores", "--no-implicit-reexport"]
"""For programs without annotations, as most examples are: what they call is checked all the same."""


OTHERS = "[mypy]\n[mypy-matplotlib.*]\nfollow_imports = skip\nfollow_imports_for_stubs = True\n"
"""What other packages say of themselves is their business."""


def mypy(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "MYPYPATH": os.pathsep.join(str(REPOSITORY / part) for part in ("src", "client", "daemon"))}
    command = [sys.executable, "-m", "mypy", "--config-file", str(folder / "mypy.ini"), "--cache-dir", str(folder / "cache"), *arguments]
    (folder / "mypy.ini").write_text(OTHERS)
    checked = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert checked.returncode in (0, 1), checked.stderr
    return "" if checked.returncode == 0 else checked.stdout


def test_the_program_runs(tmp_path: Path) -> None:
    contents, name, start = program.main(str(tmp_path / "store"))
    assert (contents, name) == ("0\n1\n2", "total")
    assert start


@pytest.mark.slow
def test_a_program_with_annotations_is_strictly_well_typed(tmp_path: Path) -> None:
    copy = tmp_path / "program.py"
    copy.write_text(Path(program.__file__).read_text())
    assert mypy(tmp_path, "--strict", str(copy)) == ""
    copy.write_text(copy.read_text() + "\n\nevaluate(pair_of_one).no_such_method()\n")
    assert '"RRef" has no attribute "no_such_method"' in mypy(tmp_path, "--strict", str(copy)), "the annotations are seen"


@pytest.mark.slow
def test_the_examples_of_the_documents_are_well_typed(tmp_path: Path) -> None:
    files = [str(path) for path in SCRIPTS]
    for number, document in enumerate(PAGES):
        found = [block for block in blocks(document.read_text()) if block.language == "python"]
        if found:
            path = tmp_path / f"document{number}_{document.stem.lower().replace('-', '_')}.py"
            path.write_text("\n".join(block.text for block in found))
            files.append(str(path))
    assert len(files) > len(SCRIPTS)
    assert mypy(tmp_path, *UNTYPED, *files) == ""
