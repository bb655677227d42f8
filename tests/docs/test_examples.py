"""The examples of the README and of docs/ run, and print what they say they print.

In each document, from top to bottom:

- a ``python`` block is executed; all blocks of one document share one namespace. If its first line is ``# file: NAME``
  it is written to NAME instead, for other blocks to use; ``# add to: NAME`` puts it below what NAME has already;
- an ``output`` block right after it is what the ``python`` block prints;
- a ``console`` block holds commands after ``$ `` (continued after ``> ``), run by bash with the environment's own
  programs first on PATH. Lines that follow are the output to expect;
  commands without such lines may print what they like. Every command must succeed. ``make``, ``git clone`` and
  ``pip install`` are not run here;
- in both kinds of output ``…`` or ``...`` stands for any text;
- ``needs=a,b`` after the language leaves a block out where the packages a or b are not installed.

All of it happens in an empty working folder that shows the repository's docs as ``docs``, with a store of its own.
Anything that is not to be run is a ``text`` block.
"""

from __future__ import annotations

import importlib.util
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, Optional

import cloudpickle  # type: ignore[import-untyped]  # it ships no type information
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
# hello.py needs a server to fetch from: tests/fetch/test_hello.py runs it.
SCRIPTS = sorted(set((REPOSITORY / "docs" / "examples").glob("*.py")) - {REPOSITORY / "docs" / "examples" / "hello.py"})
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


def write_file(text: str, folder: Path) -> bool:
    """Write a block to the file that it is for; tell whether it is for one."""
    named = re.match(r"# (file|add to): ([\w./-]+)\n", text)
    if named:
        with open(folder / named[2], "w" if named[1] == "file" else "a") as file:
            file.write(text.partition("\n")[2] + "\n" if named[1] == "add to" else text + "\n")
    return named is not None


def run_python(block: Block, module: ModuleType, folder: Path) -> str:
    """Run a block and return what it printed."""
    assert module.__file__ is not None
    # The blocks gather in one real file, at the lines they have in the document: tracebacks then tell the right line, and
    # whoever reads the source of a stage finds it.
    gathered = Path(module.__file__)
    before = gathered.read_text().split("\n")[:-1] if gathered.exists() else []
    gathered.write_text("\n".join([*before, *[""] * (block.line - 1 - len(before)), block.text, ""]))
    if write_file(block.text, folder):
        return ""
    with redirect_stdout(io.StringIO()) as printed:
        exec(compile("\n" * (block.line - 1) + block.text + "\n", str(gathered), "exec"), module.__dict__)
    print(printed.getvalue(), end="")
    return printed.getvalue()


def check_output(block: Block, printed: Optional[str], document: Path) -> None:
    where = f"{document.name}:{block.line}"
    if printed is None:
        raise ValueError(f"{where}: an output block stands right after the python block that prints it")
    if not output_matches(block.text, printed):
        raise AssertionError(f"{where}\n--- expected\n{block.text}\n--- printed\n{trimmed(printed)}")


def run_document(document: Path, folder: Path) -> None:
    module = ModuleType("examples_of_" + re.sub(r"\W", "_", document.stem.lower()))
    # As at a prompt: what was written to files can be imported, what was typed cannot, and so travels by value.
    typed = folder / "typed"
    typed.mkdir(exist_ok=True)
    module.__file__ = str(typed / f"{module.__name__}.py")
    sys.modules[module.__name__] = module
    cloudpickle.register_pickle_by_value(module)
    sys.path.insert(0, str(folder))
    printed: Optional[str] = None
    for block in blocks(document.read_text()):
        if not installed(block.needs):
            continue
        if block.language == "output":
            check_output(block, printed, document)
        printed = run_python(block, module, folder) if block.language == "python" else None
        if block.language == "console":
            for command in commands(block.text):
                run_command(command, folder, f"{document.name}:{block.line}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty working folder that shows the documents."""
    (tmp_path / "docs").symlink_to(REPOSITORY / "docs")
    return tmp_path


def has_examples(document: Path) -> bool:
    return any(block.language in ("python", "console") for block in blocks(document.read_text()))


@pytest.mark.parametrize("document", [page for page in PAGES if has_examples(page)], ids=lambda path: str(path.relative_to(REPOSITORY)))
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


def run_text(text: str, folder: Path) -> None:
    document = folder / "page.md"
    document.write_text(text)
    run_command(Command(f"python -W error {__file__} {document}", ""), folder, document.name)


def test_output_is_that_of_the_block_before(folder: Path) -> None:
    run_text("```python\nprint(1, 'x')\n```\nprints\n```output\n1 …\n```\n", folder)
    with pytest.raises(AssertionError, match=r"--- expected\s+2\s+--- printed\s+1"):
        run_text("```python\nprint(1)\n```\n```output\n2\n```\n", folder)
    with pytest.raises(AssertionError, match="right after the python block"):
        run_text("```python\nprint(1)\n```\n```text\n```\n```output\n1\n```\n", folder)


def test_blocks_gather_in_named_files(folder: Path) -> None:
    run_text(
        "```python\n# file: a.py\nx = 1\n```\n```python\n# add to: a.py\n\ny = x\n```\n"
        "```console\n$ cat a.py && python -c 'import a; print(a.y)'\n# file: a.py\nx = 1\n\ny = x\n1\n```\n",
        folder,
    )


if __name__ == "__main__":
    run_document(Path(sys.argv[1]), Path.cwd())
