"""The reference of the language has every public name once, and is what its docstrings make of it."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("griffe")

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_reference", REPOSITORY / "docs" / "generate_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its named tuples look for their annotations
    spec.loader.exec_module(module)
    return module


def test_every_public_name_stands_on_one_page(generator: ModuleType) -> None:
    names = Counter(name for _, name in generator.listed())
    assert sorted(names) == (REPOSITORY / "tests" / "golden" / "public_surface.txt").read_text().split()
    assert [name for name, times in names.items() if times > 1] == []


def test_pages_are_what_the_docstrings_make(generator: ModuleType) -> None:
    folder: Path = generator.REFERENCE
    written = {path.name: path.read_text() for path in folder.glob("*.md")}
    made: dict[str, str] = generator.reference()
    stale = sorted(name for name in {*written, *made} if written.get(name) != made.get(name))
    assert stale == [], "run make docs"


def test_sections_of_a_docstring_become_lists(generator: ModuleType) -> None:
    docstring = """Do it.

    More about that.

    Args:
        a: the first,
            which goes on.
        b: the second.

    Raises:
        StoreBusy, StoreFull: it cannot.
        What `realize` raises.
    """
    assert generator.docstring_text(inspect.cleandoc(docstring)) == "\n".join(
        [
            "Do it.",
            "",
            "More about that.",
            "",
            "**Arguments**",
            "",
            "- `a`: the first, which goes on.",
            "- `b`: the second.",
            "",
            "**Raises**",
            "",
            "- `StoreBusy`, `StoreFull`: it cannot.",
            "- What `realize` raises.",
        ]
    )
