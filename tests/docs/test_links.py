"""Links between the documents lead somewhere: to a file that there is, and to a heading that it has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDERS = [REPOSITORY / "docs", REPOSITORY / "systemd"]
DOCUMENTS = [
    *(REPOSITORY / name for name in ("README.md", "CHANGELOG.md")),
    *sorted(path for folder in FOLDERS for path in folder.rglob("*.md")),
]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCED = re.compile(r"^( *)(```+).*?^ *\2 *$", re.DOTALL | re.MULTILINE)
HEADING = re.compile(r"^#{1,6} +(.+?)\s*$", re.MULTILINE)


def prose(markdown: str) -> str:
    """Return a document without its blocks of code, whose brackets are no links and whose comments no headings."""
    return FENCED.sub("", markdown)


def links(markdown: str) -> Iterator[str]:
    """Yield where the links lead that do not leave the repository."""
    for target in LINK.findall(prose(markdown)):
        if not re.match(r"[a-z]+:", target):
            yield target


def anchors(markdown: str) -> list[str]:
    """Return what headings are called in links, as GitHub does it."""
    headings = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in HEADING.findall(prose(markdown)))
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def broken(document: Path) -> list[str]:
    found = []
    for target in links(document.read_text()):
        path, _, anchor = target.partition("#")
        place = (document.parent / path).resolve() if path else document
        if not place.exists():
            found.append(f"{target}: no such file")
        elif anchor and (place.suffix != ".md" or anchor not in anchors(place.read_text())):
            found.append(f"{target}: no such heading")
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_lead_somewhere(document: Path) -> None:
    assert broken(document) == []


@pytest.mark.parametrize("folder", ["how-to", "reference", "reference/language", "decisions"])
def test_index_names_every_page(folder: str) -> None:
    index = REPOSITORY / "docs" / "README.md"
    pages = sorted((REPOSITORY / "docs" / folder).glob("*.md"))
    assert pages
    reached = {
        (source.parent / target.partition("#")[0]).resolve()
        for source in [index, REPOSITORY / "docs" / "reference" / "language" / "README.md"]
        for target in links(source.read_text())
    }
    if folder == "decisions":  # which the index names as a folder
        assert (REPOSITORY / "docs" / folder) in reached
    else:
        assert [path.name for path in pages if path not in reached] == []


def test_links_and_headings_are_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# Its `name`: more\n\n```\n# no heading\n[no](link.md)\n```\n")
    document = tmp_path / "one.md"
    document.write_text(
        "# One\n[a](other.md) [b](other.md#its-name-more) [c](#one) [d](https://example.org/x)\n"
        "[e](gone.md) [f](other.md#no-heading) [g](#two) [h](../" + tmp_path.name + "/other.md)\n"
    )
    assert broken(document) == ["gone.md: no such file", "other.md#no-heading: no such heading", "#two: no such heading"]
