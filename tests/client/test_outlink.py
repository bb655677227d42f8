from __future__ import annotations

import os
from pathlib import Path

import pytest

from pylightnix_client.errors import LinkRefused
from pylightnix_client.outlink import check_out_link, out_link_names, put_out_link, put_out_links


def test_names_are_counted_from_two() -> None:
    assert out_link_names("r", 3) == ["r", "r-2", "r-3"]
    assert out_link_names("r", 0) == []


def test_link_is_made_and_replaced(tmp_path: Path) -> None:
    link = tmp_path / "result"
    put_out_link(str(link), "/first")
    put_out_link(str(link), "/second")
    assert os.readlink(link) == "/second"
    assert os.listdir(tmp_path) == ["result"]


def test_longest_name_works(tmp_path: Path) -> None:
    link = tmp_path / ("ä" * 127)
    put_out_link(str(link), "/first")
    assert os.readlink(link) == "/first"


def test_link_to_a_folder_is_replaced_not_entered(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    link = tmp_path / "result"
    link.symlink_to("folder")
    put_out_link(str(link), "/second")
    assert os.readlink(link) == "/second"
    assert os.listdir(tmp_path / "folder") == []


@pytest.mark.parametrize(
    ("name", "says"),
    [("file", "there is a file"), ("folder", "there is a folder"), ("absent/result", "there is no folder"), ("folder/", "names a folder")],
)
def test_anything_but_a_link_is_left_alone(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder").mkdir()
    with pytest.raises(LinkRefused, match=says):
        check_out_link(f"{tmp_path}/{name}")
    with pytest.raises(LinkRefused, match=says):
        put_out_link(f"{tmp_path}/{name}", "/target")
    assert (tmp_path / "file").read_text() == "precious"


def test_no_link_changes_when_one_cannot(tmp_path: Path) -> None:
    put_out_link(f"{tmp_path}/result", "/old")
    (tmp_path / "result-2").mkdir()
    with pytest.raises(LinkRefused, match="result-2"):
        put_out_links(f"{tmp_path}/result", ["/new", "/other"])
    assert os.readlink(tmp_path / "result") == "/old"
    (tmp_path / "result-2").rmdir()
    assert put_out_links(f"{tmp_path}/result", ["/new", "/other"]) == [f"{tmp_path}/result", f"{tmp_path}/result-2"]
    assert sorted(os.listdir(tmp_path)) == ["result", "result-2"]
