"""Modes, copies, sizes and removal of folders; links are never followed."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from pylightnix import Misuse, dirchmod, dircp, dirrm, dirro, dirrw, dirsize, filero, filerw


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with a file, a program, a deep file, and links to a file and a folder outside."""
    top = tmp_path / "tree"
    (top / "sub" / "inner").mkdir(parents=True)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("outside")
    (top / "file").write_text("12345")
    (top / "run").write_text("#!")
    (top / "run").chmod(0o755)
    (top / "sub" / "inner" / "deep").write_text("123")
    (top / "link").symlink_to("../outside/file")
    (top / "folder-link").symlink_to("../outside")
    (top / "dangling").symlink_to("nowhere")
    return top


def test_d2_all_of_a_folder_becomes_read_only_and_what_links_lead_to_stays(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path / "outside")
    dirro(str(tree))
    assert {mode(path) for path in (tree, tree / "sub", tree / "sub" / "inner")} == {0o555}
    assert {mode(path) for path in (tree / "file", tree / "sub" / "inner" / "deep")} == {0o444}
    assert mode(tree / "run") == 0o555
    assert mode(tmp_path / "outside") == 0o755
    assert mode(tmp_path / "outside" / "file") == 0o644


def test_d3_making_it_writable_again_gives_others_nothing(tree: Path) -> None:
    dirro(str(tree))
    dirrw(str(tree))
    assert {mode(path) for path in (tree, tree / "sub", tree / "run")} == {0o755}
    assert mode(tree / "file") == 0o644
    (tree / "sub").chmod(0o000)
    (tree / "file").chmod(0o400)
    dirchmod(str(tree), "rw")
    assert (mode(tree / "sub"), mode(tree / "file")) == (0o700, 0o600)


def test_other_modes_and_what_is_no_folder(tree: Path) -> None:
    for arguments in (
        (str(tree), "rx"),
        (str(tree), ""),
        (str(tree / "file"), "ro"),
        (str(tree / "absent"), "ro"),
        (str(tree / "folder-link"), "ro"),
    ):
        with pytest.raises(Misuse, match="dirchmod expects"):
            dirchmod(*arguments)
    assert mode(tree) == 0o755


def test_one_file(tree: Path, tmp_path: Path) -> None:
    filero(str(tree / "run"))
    assert mode(tree / "run") == 0o555
    filerw(str(tree / "run"))
    assert mode(tree / "run") == 0o755
    filero(str(tree / "link"))
    assert mode(tmp_path / "outside" / "file") == 0o644


def test_a_read_only_folder_is_removed_and_nothing_else(tree: Path, tmp_path: Path) -> None:
    dirro(str(tree))
    dirrm(f"{tree}/")
    assert sorted(os.listdir(tmp_path)) == ["outside"]
    assert os.listdir(tmp_path / "outside") == ["file"]
    dirrm(str(tree))
    with pytest.raises(FileNotFoundError):
        dirrm(str(tree), ignore_not_found=False)


def test_what_a_crash_left_beside_it_is_no_obstacle(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "tree.tmp").mkdir()
    (tmp_path / "tree.tmp" / "left").write_text("")
    dirrm(str(tree))
    assert not tree.exists()
    assert (tmp_path / "tree.tmp" / "left").exists()


def test_copies(tree: Path, tmp_path: Path) -> None:
    dirro(str(tree))
    same, writable = tmp_path / "same", tmp_path / "writable"
    dircp(str(tree), str(same))
    dircp(str(tree), str(writable), make_rw=True)
    assert (mode(same), mode(same / "file"), mode(same / "run")) == (0o555, 0o444, 0o555)
    assert (mode(writable), mode(writable / "file"), mode(writable / "run")) == (0o755, 0o644, 0o755)
    assert os.readlink(writable / "dangling") == "nowhere"
    assert (writable / "sub" / "inner" / "deep").read_text() == "123"
    assert mode(tree / "file") == 0o444
    with pytest.raises(FileExistsError):
        dircp(str(tree), str(same))
    assert sorted(os.listdir(tmp_path)) == ["outside", "same", "tree", "writable"]
    for made in (tree, same):
        dirrm(str(made))


def test_a_copy_that_fails_leaves_nothing(tree: Path, tmp_path: Path) -> None:
    os.mkfifo(tree / "sub" / "pipe")
    with pytest.raises(shutil.Error):
        dircp(str(tree), str(tmp_path / "copy"))
    assert sorted(os.listdir(tmp_path)) == ["outside", "tree"]


def test_the_size_is_that_of_regular_files(tree: Path) -> None:
    assert dirsize(str(tree)) == 5 + 2 + 3
    with pytest.raises(FileNotFoundError):
        dirsize(str(tree / "absent"))
