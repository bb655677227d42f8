"""The README and the tutorial, each typed snippet by snippet at one plain Python prompt, but for what goes into files."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.docs.prompt import Prompt
from tests.docs.test_examples import REPOSITORY, blocks, check_output, commands, environment, run_command, write_file

TYPED = [REPOSITORY / "README.md", REPOSITORY / "docs" / "tutorial.md"]


def run_typed(document: Path, folder: Path) -> None:
    printed = None
    with Prompt(folder, environment(folder / "store")) as prompt:
        for block in blocks(document.read_text()):
            where = f"{document.name}:{block.line}"
            if block.language == "output":
                check_output(block, printed, document)
            printed = None
            if block.language == "python" and not write_file(block.text, folder):
                printed = prompt.type(block.text)
                assert "Traceback (most recent call last)" not in printed, f"{where}:\n{printed}"
                assert "Error: " not in printed, f"{where}:\n{printed}"
            if block.language == "console":
                for command in commands(block.text):
                    run_command(command, folder, where)


@pytest.mark.parametrize("document", TYPED, ids=lambda path: path.name)
def test_document_can_be_typed(document: Path, tmp_path: Path) -> None:
    (tmp_path / "docs").symlink_to(REPOSITORY / "docs")
    run_typed(document, tmp_path)


# --- the prompt itself ------------------------------------------------------------------------


def test_an_empty_line_in_a_block_ends_it(tmp_path: Path) -> None:
    with Prompt(tmp_path, environment(tmp_path / "store")) as prompt:
        assert prompt.type("def f():\n    return 1") == ""
        assert prompt.type("f()\nprint('a\\nb')") == "1\na\nb\n"
        assert "IndentationError: unexpected indent" in prompt.type("def g():\n    x = 1\n\n    return x")
        assert "SyntaxError" in prompt.type("if True:\n    pass\nprint(1)"), "one is needed behind a block"


def test_a_page_that_cannot_be_typed_is_told(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\n# file: a.py\nx = 1\n```\n```python\nprint(x)\n```\n")
    with pytest.raises(AssertionError, match=r"page\.md:6:(.|\n)*NameError: name 'x' is not defined"):
        run_typed(page, tmp_path)
    page.write_text("```python\n# file: a.py\nx = 1\n```\n```python\nimport a\nprint(a.x)\n```\n```output\n2\n```\n")
    with pytest.raises(AssertionError, match="--- expected\n2\n--- printed\n1"):
        run_typed(page, tmp_path)
