"""What docs/coming-from-0.x.md says of names is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import pylightnix
from pylightnix._formerly import FORMERLY

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "coming-from-0.x.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the tables below a heading, heads of columns left out."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    tables = re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for table in tables for line in table.splitlines()[2:]]


def names(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell)


def test_names_that_are_gone_cannot_be_imported() -> None:
    gone = [name for cells in rows("Names that are gone") for name in names(cells[0])]
    assert len(gone) > 10
    assert [name for name in gone if hasattr(pylightnix, name)] == []


def test_what_to_write_instead_is_there() -> None:
    linked = re.findall(r"\[`([\w.]+)`\]", " ".join(cells[1] for cells in rows("Names that are gone")))
    assert linked
    assert [name for name in linked if "." not in name and name not in pylightnix.__all__] == []


def test_names_of_others_are_told_with_their_modules() -> None:
    told = {name: modules(cells[1])[0] for cells in rows("Names that were never ours") for name in names(cells[0])}
    assert told == {name: place.rpartition(".")[0] for name, place in FORMERLY.items() if not place.startswith("pylightnix.")}
    for name, place in FORMERLY.items():
        assert f"`{name}`" in PAGE
        assert place.endswith((f".{name}", f"._relics.{name}")) or f"`{name}` is `{place}`" in PAGE


def modules(cell: str) -> list[str]:
    return re.findall(r"`([\w.]+)`", cell)


@pytest.mark.parametrize("cells", rows("Errors that were bare assertions"), ids=lambda cells: cells[0])
def test_errors_are_assertions_still(cells: list[str]) -> None:
    error = getattr(pylightnix, names(cells[1])[0])
    assert issubclass(error, AssertionError)
