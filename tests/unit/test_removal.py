"""Removing read-only trees: alone and with others, by their owner who is not root, however deep they are."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pylightnix.store.removal import make_movable, remove_tree

OTHER = 65534
# An interpreter below /root cannot be started by another user, but it can become one.
BECOME_OTHER = f"""
import os, resource, secrets, stat, sys
from pylightnix.errors import StoreIOError
from pylightnix.store.removal import make_movable, remove_tree
if os.geteuid() == 0:
    os.setgroups([]); os.setresgid({OTHER}, {OTHER}, {OTHER}); os.setresuid({OTHER}, {OTHER}, {OTHER})
os.chdir(sys.argv[1])
"""


def start(script: str, folder: Path) -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", BECOME_OTHER + script, str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run(script: str, folder: Path) -> None:
    """Run a script in `folder` as a user that is not root."""
    child = start(script, folder)
    output = child.communicate(timeout=60)[0]
    assert child.returncode == 0, output


@pytest.fixture
def theirs() -> Iterator[Path]:
    """A folder of the user that `run` runs as. (No other user can enter `tmp_path`.)"""
    folder = Path(tempfile.mkdtemp(prefix="test-removal-"))
    if os.geteuid() == 0:
        os.chown(folder, OTHER, OTHER)
    yield folder
    subprocess.run(["chmod", "-R", "u+rwx", folder], check=True)
    shutil.rmtree(folder)


def make_tree(top: Path, outside: Path) -> None:
    (top / "sub/inner").mkdir(parents=True)
    (top / "empty").mkdir()
    (top / "file").write_text("1")
    (top / "sub/inner/file").write_text("2")
    (top / "sub/link").symlink_to(outside)
    (top / "dangling").symlink_to("nothing")
    os.close(os.open(os.fsencode(top) + b"/sub/\xff\n", os.O_CREAT | os.O_WRONLY))
    for path in ("file", "sub/inner/file"):
        (top / path).chmod(0o444)
    for path in ("sub/inner", "sub", "empty", "."):
        (top / path).chmod(0o555)


def test_a_read_only_tree_goes_and_what_its_links_point_to_stays(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("kept")
    outside.chmod(0o555)
    make_tree(tmp_path / "top", outside)
    before = len(os.listdir("/proc/self/fd"))
    remove_tree(str(tmp_path / "top"))
    assert len(os.listdir("/proc/self/fd")) == before
    assert os.listdir(tmp_path) == ["outside"]
    assert (outside / "file").read_text() == "kept"
    assert stat.S_IMODE(outside.stat().st_mode) == 0o555


def test_removing_twice_is_as_good_as_once(tmp_path: Path) -> None:
    make_tree(tmp_path / "top", tmp_path)
    remove_tree(f"{tmp_path}/top//")
    remove_tree(f"{tmp_path}/top")
    remove_tree(f"{tmp_path}/no/parent")
    assert os.listdir(tmp_path) == []


def test_a_file_a_link_and_a_fifo_are_removed_themselves(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "file").write_text("")
    (tmp_path / "file").chmod(0)
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "file", "fifo"):
        remove_tree(str(tmp_path / name))
    assert os.listdir(tmp_path) == ["folder"]


def test_special_files_are_unlinked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "top").mkdir()
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    os.mkfifo("top/fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("top/socket")
    if os.geteuid() == 0:
        os.mknod("top/null", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    remove_tree("top")
    assert os.listdir(tmp_path) == []


def test_the_parent_may_be_reached_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "real/top").mkdir(parents=True)
    (tmp_path / "alias").symlink_to("real")
    remove_tree(str(tmp_path / "alias/top"))
    assert os.listdir(tmp_path / "real") == []
    assert (tmp_path / "alias").is_symlink()


@pytest.mark.parametrize("path", ["", "/", "//", ".", "..", "a/.."])
def test_what_is_no_name_in_a_folder_is_a_bug(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError, match="BUG"):
        remove_tree(path)


# --- by an owner who is not root ------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o555, 0o000, 0o200, 0o400, 0o100])
def test_the_owner_is_kept_out_by_no_mode_of_folders(theirs: Path, mode: int) -> None:
    run(
        f"""
for path in ("top/a/b", "top/c"):
    os.makedirs(path); open(path + "/file", "w").close(); os.chmod(path + "/file", 0)
for path in ("top/a/b", "top/a", "top/c", "top"):
    os.chmod(path, {mode})
remove_tree("top")
assert os.listdir(".") == []
""",
        theirs,
    )


def test_what_cannot_be_removed_is_named(theirs: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("it takes root to make another's folder")
    (theirs / "top/sub").mkdir(parents=True)
    (theirs / "top/sub/file").write_text("root's")
    os.chown(theirs / "top", OTHER, OTHER)
    run(
        """
try:
    remove_tree("top")
except StoreIOError as error:
    assert "(at 'top/sub/file')" in str(error), error
    assert error.where == "top", error
else:
    raise SystemExit("removed")
""",
        theirs,
    )
    assert (theirs / "top/sub/file").read_text() == "root's"


def test_depth_takes_no_more_descriptors(theirs: Path) -> None:
    run(
        """
resource.setrlimit(resource.RLIMIT_NOFILE, (160, 160))
os.mkdir("top")
fd = os.open("top", os.O_RDONLY)
for _ in range(600):
    for name in ("beside", "d"):
        os.mkdir(name, dir_fd=fd)
    inner = os.open("d", os.O_RDONLY, dir_fd=fd)
    os.fchmod(fd, 0o555)
    os.close(fd)
    fd = inner
os.close(fd)
remove_tree("top")
assert os.listdir(".") == []
""",
        theirs,
    )


def test_several_remove_the_same_tree_at_once(theirs: Path) -> None:
    run(
        """
def fill(path, levels):
    os.mkdir(path)
    for n in range(3):
        open(f"{path}/file{n}", "w").close()
        if levels:
            fill(f"{path}/{n}", levels - 1)
    os.chmod(path, 0o555)
fill("top", 5)
fill("deep", 0)
os.chmod("deep", 0o755)
os.makedirs("deep/" + "/".join("d" * 400))
""",
        theirs,
    )
    removers = [start("remove_tree('top'); remove_tree('deep')", theirs) for _ in range(4)]
    outputs = [remover.communicate(timeout=60)[0] for remover in removers]
    assert [remover.returncode for remover in removers] == [0] * 4, outputs
    assert os.listdir(theirs) == []


def test_a_read_only_folder_moves_once_it_is_movable(theirs: Path) -> None:
    run(
        """
for mode in (0o555, 0o000):
    os.makedirs("from/top"); os.mkdir("to"); os.chmod("from/top", mode)
    try:
        os.rename("from/top", "to/top")
    except PermissionError:
        pass
    else:
        raise SystemExit("moved")
    make_movable("from/top")
    os.rename("from/top", "to/top")
    remove_tree("from"); remove_tree("to")
""",
        theirs,
    )


def test_only_folders_themselves_are_made_movable(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder").chmod(0o555)
    (tmp_path / "link").symlink_to("folder")
    (tmp_path / "file").write_text("")
    (tmp_path / "file").chmod(0o444)
    for name in ("link", "file", "nothing"):
        make_movable(str(tmp_path / name))
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o555
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o444
    make_movable(str(tmp_path / "folder"))
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o755


def test_anothers_folder_cannot_be_made_movable(theirs: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("it takes root to make another's folder")
    (theirs / "roots").mkdir()
    (theirs / "roots").chmod(0o555)
    run(
        """
try:
    make_movable("roots")
except StoreIOError as error:
    assert error.where == "roots"
else:
    raise SystemExit("changed")
""",
        theirs,
    )
