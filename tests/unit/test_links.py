"""Links that replace links, and folders of logs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pylightnix import forcelink, logdir, mklogdir, parsetime


def test_a_link_takes_the_place_of_a_link_only(tmp_path: Path) -> None:
    link = tmp_path / "link"
    for target in ("one", "two", str(tmp_path)):
        forcelink(target, str(link))
        assert os.readlink(link) == target
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    for name in ("file", "folder"):
        with pytest.raises(FileExistsError):
            forcelink("one", str(tmp_path / name))
    assert (tmp_path / "file").read_text() == "kept"
    assert sorted(os.listdir(tmp_path)) == ["file", "folder", "link"]


def test_the_longest_name_and_a_folder_descriptor(tmp_path: Path) -> None:
    name = "x" * 255
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        for target in ("one", "two"):
            forcelink(target, name, dir_fd=fd, target_is_directory=True)
    finally:
        os.close(fd)
    assert os.readlink(tmp_path / name) == "two"
    assert os.listdir(tmp_path) == [name]


def test_names_of_folders_of_logs(tmp_path: Path) -> None:
    assert logdir("train", str(tmp_path), "now") == f"{tmp_path}/train_now"
    assert logdir("", str(tmp_path), "now") == f"{tmp_path}/now"
    assert parsetime(os.path.basename(logdir("", str(tmp_path)))) is not None
    assert os.listdir(tmp_path) == []


def test_the_latest_folder_of_logs_has_a_link(tmp_path: Path) -> None:
    root = tmp_path / "logs"
    first = mklogdir("train", str(root), subdirs=["a/b", "c"], timetag="1")
    assert first == f"{root}/train_1"
    assert os.path.isdir(f"{first}/a/b")
    assert os.path.isdir(f"{first}/c")
    assert os.readlink(root / "_train_latest") == "train_1"
    assert mklogdir("train", str(root), timetag="2") == f"{root}/train_2"
    assert os.readlink(root / "_train_latest") == "train_2"
    mklogdir("", str(root), timetag="3")
    assert os.readlink(root / "_latest") == "3"
    mklogdir("quiet", str(root), symlinks=False, timetag="4")
    assert sorted(os.listdir(root)) == ["3", "_latest", "_train_latest", "quiet_4", "train_1", "train_2"]
