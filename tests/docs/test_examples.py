"""The examples of the README and of docs/ run, and print what they say they print.

In each document, from top to bottom:

- a ``python`` block is executed; all blocks of one document share one namespace. If its first line is ``# file: NAME``
  the block is also written to NAME, for console blocks to use;
- a ``console`` block holds commands after ``$ `` (continued after ``> ``), run by bash with the environment's own
  programs first on PATH. Lines that follow are the output to expect, where ``…`` or ``...`` stands for any text;
  commands without such lines may print what they like. Every command must succeed. ``make``, ``git clone`` and
  ``pip install`` are not run here;
- ``needs=a,b`` after the language leaves a block out where the packages a or b are not installed.

All of it happens in an empty working folder that shows the repository's docs as ``docs``, with a store of its own.
Anything that is not to be run is a ``text`` block.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENTS = [path for path in [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))] if path.is_file()]
SCRIPTS = sorted((REPOSITORY / "docs" / "examples").glob("*.py"))
NOT_RUN_HERE = re.compile(r"(make|git clone|pip install|python3 -m venv|source|\.)( |$)")
SECONDS_PER_COMMAND = 300

FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>```+)(?P<info>.*)$")


class Block(NamedTuple):
    language: str
    needs: tuple[str, ...]
    line: int
    """Number of the block's first line of text in its document, from 1."""
    text: str


class Command(NamedTuple):
    text: str
    output: str
    """What it must print; empty for anything."""


def blocks(markdown: str) -> Iterator[Block]:
    lines = markdown.split("\n")
    start: re.Match[str] | None = None
    first = 0
    for number, line in enumerate(lines, 1):
        fence = FENCE.match(line)
        if start is None:
            start, first = fence, number + 1
        elif fence and fence["info"].strip() == "" and len(fence["ticks"]) >= len(start["ticks"]):
            language, *attributes = start["info"].split() or [""]
            needs = tuple(name for item in attributes if item.startswith("needs=") for name in item[6:].split(","))
            indent = len(start["indent"])
            yield Block(language, needs, first, "\n".join(text[indent:] for text in lines[first - 1 : number - 1]))
            start = None
    if start is not None:
        raise ValueError(f"the block that opens at line {first - 1} is never closed")


def commands(text: str) -> list[Command]:
    found: list[tuple[list[str], list[str]]] = []
    for line in text.split("\n"):
        if line.startswith("$ "):
            found.append(([line[2:]], []))
        elif found and line.startswith("> ") and not found[-1][1]:
            found[-1][0].append(line[2:])
        elif found:
            found[-1][1].append(line)
        elif line.strip():
            raise ValueError(f"a console block starts with a command after '$ ', found {line!r}")
    return [Command("\n".join(command), "\n".join(output).strip()) for command, output in found]


def trimmed(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().split("\n"))


def output_matches(expected: str, printed: str) -> bool:
    pieces = re.split(r"…|\.\.\.", trimmed(expected))
    return re.fullmatch(".*".join(re.escape(piece) for piece in pieces), trimmed(printed), re.DOTALL) is not None


def installed(packages: tuple[str, ...]) -> bool:
    return all(importlib.util.find_spec(name) for name in packages)


def environment(store: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYLIGHTNIX")}
    return {
        **kept,
        "PYLIGHTNIX_ROOT": str(store),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MPLBACKEND": "agg",
        "COLUMNS": "120",
        "NO_COLOR": "1",
    }


def run_command(command: Command, folder: Path, where: str) -> None:
    if NOT_RUN_HERE.match(command.text):
        return
    child = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command.text],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env=environment(folder / "store"),
        timeout=SECONDS_PER_COMMAND,
    )
    assert child.returncode == 0, f"{where}: {command.text!r} exited with {child.returncode}:\n{child.stdout}"
    if command.output and not output_matches(command.output, child.stdout):
        raise AssertionError(f"{where}: {command.text!r}\n--- expected\n{command.output}\n--- printed\n{trimmed(child.stdout)}")


def run_python(block: Block, module: ModuleType, folder: Path) -> None:
    assert module.__file__ is not None
    # The blocks gather in one real file, at the lines they have in the document: tracebacks then tell the right line, and
    # whoever reads the source of a stage finds it.
    gathered = Path(module.__file__)
    before = gathered.read_text().split("\n")[:-1] if gathered.exists() else []
    gathered.write_text("\n".join([*before, *[""] * (block.line - 1 - len(before)), block.text, ""]))
    named = re.match(r"# file: ([\w./-]+)\n", block.text)
    if named:
        (folder / named[1]).write_text(block.text + "\n")
    exec(compile("\n" * (block.line - 1) + block.text + "\n", str(gathered), "exec"), module.__dict__)


def run_document(document: Path, folder: Path) -> None:
    module = ModuleType("examples_of_" + re.sub(r"\W", "_", document.stem.lower()))
    module.__file__ = str(folder / f"{module.__name__}.py")
    sys.modules[module.__name__] = module
    for block in blocks(document.read_text()):
        if not installed(block.needs):
            continue
        if block.language == "python":
            run_python(block, module, folder)
        elif block.language == "console":
            for command in commands(block.text):
                run_command(command, folder, f"{document.name}:{block.line}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty working folder that shows the documents."""
    (tmp_path / "docs").symlink_to(REPOSITORY / "docs")
    return tmp_path


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_document(document: Path, folder: Path) -> None:
    # In a process of its own: examples set the default store of the process, as users' programs do.
    run_command(Command(f"python -W error {__file__} {document}", ""), folder, document.name)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script(script: Path, folder: Path) -> None:
    pytest.importorskip("numpy")
    pytest.importorskip("matplotlib")
    run_command(Command(f"python -W error {script}", ""), folder, script.name)


# --- the reader itself ------------------------------------------------------------------------


def test_blocks_keep_their_lines_and_needs() -> None:
    found = list(blocks("# Title\n\n```python\nx = 1\ny = 2\n```\ntext\n  ```console needs=numpy,os\n  $ true\n  ```\n```\nplain\n```\n"))
    assert found == [
        Block("python", (), 4, "x = 1\ny = 2"),
        Block("console", ("numpy", "os"), 9, "$ true"),
        Block("", (), 12, "plain"),
    ]


def test_longer_fence_holds_shorter_ones() -> None:
    assert [block.text for block in blocks("````text\n```python\n```\n````")] == ["```python\n```"]


def test_unclosed_block_is_an_error() -> None:
    with pytest.raises(ValueError, match="line 2"):
        list(blocks("a\n```python\nx"))


def test_commands_are_told_from_output() -> None:
    assert commands("$ echo a \\\n> b\na b\n\n$ true\n") == [Command("echo a \\\nb", "a b"), Command("true", "")]
    with pytest.raises(ValueError, match="starts with a command"):
        commands("no prompt")


@pytest.mark.parametrize(
    ("expected", "printed", "matches"),
    [
        ("a", "a \n", True),
        ("a", "ab", False),
        ("built … in ...s", "built 3 stages in 0.1s", True),
        ("first\n...\nlast", "first\n1\n2\nlast\n", True),
        ("first\n...\nlast", "first\n1\n2\nother", False),
        ("a.c", "abc", False),
    ],
)
def test_ellipsis_stands_for_any_text(expected: str, printed: str, matches: bool) -> None:
    assert output_matches(expected, printed) is matches


def test_command_that_fails_or_prints_otherwise_is_reported(folder: Path) -> None:
    with pytest.raises(AssertionError, match="exited with 3"):
        run_command(Command("exit 3", ""), folder, "here")
    with pytest.raises(AssertionError, match="--- expected"):
        run_command(Command("echo a", "b"), folder, "here")


if __name__ == "__main__":
    run_document(Path(sys.argv[1]), Path.cwd())
