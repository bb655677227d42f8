"""Taking over an output folder: what is sealed, what is refused, and what outside of it stays as it was."""

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

from pylightnix.errors import InvalidOutput, StoreIOError
from pylightnix.nar import TreeDigest, tree_hash
from pylightnix.store.layout import METADATA_NAMES
from pylightnix.store.takeover import take_over
from pylightnix.types import DRef

DREF = DRef("dref:0123456789abcdef0123456789abcdef-stage")
OTHER = 65534
PRELUDE = f"""
import os, secrets, stat, sys
from pylightnix.errors import InvalidOutput, StoreFull, StoreIOError
from pylightnix.store.takeover import take_over
def take(name):
    return take_over(os.open(".", os.O_RDONLY), name, dref={DREF!r}, shown=name)
def mode(path):
    return stat.S_IMODE(os.lstat(path).st_mode)
os.chdir(sys.argv[1])
"""
# An interpreter below /root cannot be started by another user, but it can become one.
BECOME_OTHER = f"""
if os.geteuid() == 0:
    os.setgroups([]); os.setresgid({OTHER}, {OTHER}, {OTHER}); os.setresuid({OTHER}, {OTHER}, {OTHER})
"""


def run(script: str, folder: Path) -> None:
    """Run a script in `folder` as a user that is not root."""
    finish([sys.executable, "-c", PRELUDE + BECOME_OTHER + script, str(folder)])


def finish(argv: list[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60)
    assert child.returncode == 0, child.stdout + child.stderr


@pytest.fixture
def theirs() -> Iterator[Path]:
    """A folder of the user that `run` runs as. (No other user can enter `tmp_path`.)"""
    folder = Path(tempfile.mkdtemp(prefix="test-takeover-"))
    if os.geteuid() == 0:
        os.chown(folder, OTHER, OTHER)
    yield folder
    subprocess.run(["chmod", "-R", "u+rwx", folder], check=True)
    shutil.rmtree(folder)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "build/out"
    folder.mkdir(parents=True)
    return folder


def take(out: Path) -> TreeDigest:
    before = len(os.listdir("/proc/self/fd"))
    parent_fd = os.open(out.parent, os.O_RDONLY)
    try:
        return take_over(parent_fd, out.name, dref=DREF, shown="build/out")
    finally:
        os.close(parent_fd)
        assert len(os.listdir("/proc/self/fd")) == before


def refusal(out: Path) -> InvalidOutput:
    with pytest.raises(InvalidOutput) as caught:
        take(out)
    assert caught.value.dref == DREF
    return caught.value


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


# --- what is sealed -------------------------------------------------------------------------------


def test_d1_everything_becomes_read_only_and_the_hash_is_that_of_the_tree(out: Path) -> None:
    (out / "sub/inner").mkdir(parents=True)
    (out / "sub").chmod(0o2775)
    (out / "file").write_bytes(b"12345")
    (out / "file").chmod(0o666)
    (out / "sub/tool").write_bytes(b"#!")
    (out / "sub/tool").chmod(0o700)
    (out / "sub/almost").write_bytes(b"")
    (out / "sub/almost").chmod(0o677)
    (out / "link").symlink_to("/nothing")
    expected = tree_hash(out)
    assert take(out) == expected
    assert expected.files == 3
    assert expected.file_bytes == 7
    modes = {path: mode(out / path) for path in (".", "sub", "sub/inner", "file", "sub/tool", "sub/almost")}
    assert modes == {
        ".": 0o755,
        "sub": 0o555,
        "sub/inner": 0o555,
        "file": 0o444,
        "sub/tool": 0o555,
        "sub/almost": 0o444,
    }
    assert os.readlink(out / "link") == "/nothing"
    assert tree_hash(out) == expected


def test_taking_over_again_gives_the_same(out: Path) -> None:
    (out / "sub").mkdir()
    (out / "sub/file").write_bytes(b"1")
    assert take(out) == take(out)
    assert mode(out) == 0o755


def test_nothing_is_copied_that_needs_no_copy(out: Path) -> None:
    (out / "file").write_bytes(b"1")
    inode = (out / "file").stat().st_ino
    take(out)
    assert (out / "file").stat().st_ino == inode


def test_links_stay_and_what_they_point_to_is_not_touched(out: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir(mode=0o700)
    (tmp_path / "outside/file").write_bytes(b"1")
    (tmp_path / "outside/file").chmod(0o640)
    (out / "folder").symlink_to(tmp_path / "outside")
    (out / "file").symlink_to(tmp_path / "outside/file")
    take(out)
    assert (mode(tmp_path / "outside"), mode(tmp_path / "outside/file")) == (0o700, 0o640)
    assert (out / "folder").is_symlink()
    assert (out / "file").is_symlink()


def test_hard_links_are_replaced_by_copies(out: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"x" * 100_000)
    outside.chmod(0o750)
    (out / "sub").mkdir()
    os.link(outside, out / "sub/linked")
    os.link(outside, out / "sub/again")
    (out / "sub").chmod(0o555)
    expected = tree_hash(out)
    assert take(out) == expected
    assert sorted(os.listdir(out / "sub")) == ["again", "linked"]
    assert (mode(outside), outside.stat().st_nlink) == (0o750, 1)
    assert mode(out / "sub/linked") == mode(out / "sub/again") == 0o555
    outside.write_bytes(b"changed later")
    assert tree_hash(out) == expected


def test_hard_links_within_the_output_become_files_of_their_own(out: Path) -> None:
    (out / "a").write_bytes(b"same")
    os.link(out / "a", out / "b")
    expected = tree_hash(out)
    assert take(out) == expected
    assert (out / "a").stat().st_nlink == (out / "b").stat().st_nlink == 1
    assert (out / "a").stat().st_ino != (out / "b").stat().st_ino


def test_names_that_are_not_utf8_are_taken_over(out: Path) -> None:
    odd = os.fsencode(out) + b"/\xff\n"
    os.mkdir(odd)
    os.close(os.open(odd + b"/\xfe", os.O_CREAT | os.O_WRONLY, 0o600))
    os.link(odd + b"/\xfe", odd + b"/\xfd")
    expected = tree_hash(out)
    assert take(out) == expected
    assert stat.S_IMODE(os.stat(odd + b"/\xfd").st_mode) == 0o444


# --- reserved names -------------------------------------------------------------------------------


def test_build_times_are_sealed_but_not_hashed(out: Path, tmp_path: Path) -> None:
    (out / "sub").mkdir()
    (out / "sub/context.json").write_bytes(b"an artifact like any other")
    expected = tree_hash(out)
    outside = tmp_path / "outside"
    outside.write_bytes(b"2024")
    outside.chmod(0o600)
    (out / "__buildstart__.txt").write_bytes(b"2023")
    os.link(outside, out / "__buildstop__.txt")
    assert take(out) == expected == tree_hash(out, exclude_top=METADATA_NAMES)
    assert mode(out / "__buildstart__.txt") == mode(out / "__buildstop__.txt") == 0o444
    assert mode(outside) == 0o600


@pytest.mark.parametrize("kind", ["file", "folder", "link", "fifo"])
@pytest.mark.parametrize("name", ["context.json", "__buildstart__.txt", "__buildstop__.txt"])
def test_reserved_names_are_refused(out: Path, name: str, kind: str) -> None:
    if kind == "file":
        (out / name).write_bytes(b"{}")
        if name != "context.json":
            take(out)
            return
    elif kind == "folder":
        (out / name).mkdir()
    elif kind == "link":
        (out / name).symlink_to("/etc/hostname")
    else:
        os.mkfifo(out / name)
    error = refusal(out)
    assert error.where == f"build/out/{name}"
    assert "has a reserved name" in error.problem


# --- what is refused ------------------------------------------------------------------------------


def test_special_files_are_refused(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (out / "sub").mkdir()
    os.mkfifo(out / "sub/fifo")
    error = refusal(out)
    assert (error.where, error.problem) == ("build/out/sub/fifo", "is a FIFO")
    (out / "sub/fifo").unlink()
    monkeypatch.chdir(out)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("sub/socket")
        assert refusal(out).problem == "is a socket"


def test_devices_are_refused(out: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root makes devices")
    os.mknod(out / "disk", 0o600 | stat.S_IFBLK, os.makedev(7, 0))
    assert refusal(out).problem == "is a block device"


@pytest.mark.parametrize("bits", [0o4755, 0o2755, 0o6644])
def test_set_id_programs_are_refused_even_when_linked(out: Path, tmp_path: Path, bits: int) -> None:
    (tmp_path / "outside").write_bytes(b"")
    (tmp_path / "outside").chmod(bits)
    os.link(tmp_path / "outside", out / "su")
    error = refusal(out)
    assert (error.where, error.problem) == ("build/out/su", "is a set-id program")
    assert mode(tmp_path / "outside") == bits
    (tmp_path / "outside").unlink()
    assert refusal(out).problem == "is a set-id program"


@pytest.mark.parametrize("kind", ["link", "file", "fifo", "nothing"])
def test_the_output_itself_must_be_a_folder(out: Path, tmp_path: Path, kind: str) -> None:
    out.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    if kind == "link":
        out.symlink_to(tmp_path / "elsewhere")
    elif kind == "file":
        out.write_bytes(b"")
    elif kind == "fifo":
        os.mkfifo(out)
    error = refusal(out)
    assert error.where == "build/out"
    assert error.problem == ("does not exist" if kind == "nothing" else "is not a folder")
    assert mode(tmp_path / "elsewhere") == 0o700


@pytest.mark.parametrize("name", ["", ".", "..", "../build/out", "out/", "/", "o\0ut"])
def test_the_output_is_named_by_one_component(out: Path, name: str) -> None:
    parent_fd = os.open(out.parent, os.O_RDONLY)
    try:
        with pytest.raises(InvalidOutput, match="not by one path component"):
            take_over(parent_fd, name, dref=DREF, shown="build/out")
    finally:
        os.close(parent_fd)


def test_nesting_is_bounded(out: Path) -> None:
    (out / "/".join("d" * 256)).mkdir(parents=True)
    assert "nested deeper than 256 levels" in refusal(out).problem


def test_refusals_show_names_that_are_not_utf8_escaped(out: Path) -> None:
    os.mkfifo(os.fsencode(out) + b"/\xff")
    assert refusal(out).where == "build/out/\\xff"


def test_what_the_system_refuses_is_the_stores_error(out: Path) -> None:
    with pytest.raises(StoreIOError, match=r"^build/out: Bad file descriptor while taking over"):
        take_over(-1, "out", dref=DREF, shown="build/out")


# --- other users ----------------------------------------------------------------------------------


def test_root_makes_others_files_its_own(out: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can take what is another's")
    (out / "sub").mkdir()
    (out / "sub/file").write_bytes(b"1")
    (tmp_path / "outside").write_bytes(b"2")
    os.link(tmp_path / "outside", out / "linked")
    for path in (out, out / "sub", out / "sub/file", out / "linked"):
        os.chown(path, OTHER, OTHER)
    take(out)
    assert {path.lstat().st_uid for path in (out, out / "sub", out / "sub/file", out / "linked")} == {0}
    assert (tmp_path / "outside").stat().st_uid == OTHER


def test_an_owner_who_is_not_root_seals_what_it_may_not_read(theirs: Path) -> None:
    run(
        """
os.makedirs("out/sub/inner")
for path in ("out/file", "out/sub/tool", "out/sub/inner/file"):
    open(path, "w").close()
os.chmod("out/file", 0); os.chmod("out/sub/tool", 0o100); os.chmod("out/sub/inner/file", 0o200)
os.chmod("out/sub/inner", 0); os.chmod("out/sub", 0o444); os.chmod("out", 0)
assert take("out").files == 3
found = [mode("out" + path) for path in ("", "/file", "/sub", "/sub/tool", "/sub/inner", "/sub/inner/file")]
assert found == [0o755, 0o444, 0o555, 0o555, 0o555, 0o444], found
""",
        theirs,
    )


def test_hard_links_that_may_not_be_read_are_refused_untouched(theirs: Path) -> None:
    run(
        """
os.mkdir("out"); open("outside", "w").close(); os.link("outside", "out/linked"); os.chmod("outside", 0)
try:
    take("out")
except InvalidOutput as error:
    assert (error.where, error.problem) == ("out/linked", "is a hard link to a file that may not be read"), error
else:
    raise SystemExit("taken")
assert mode("outside") == 0
""",
        theirs,
    )


@pytest.mark.parametrize("mode_of_theirs", [0o644, 0o600])
@pytest.mark.parametrize("path", ["out", "out/sub", "out/sub/file"])
def test_others_files_are_refused_by_an_owner_who_is_not_root(theirs: Path, path: str, mode_of_theirs: int) -> None:
    if os.geteuid() != 0:
        pytest.skip("it takes root to make another's files")
    (theirs / "out/sub").mkdir(parents=True)
    (theirs / "out/sub/file").write_bytes(b"1")
    for made in ("out", "out/sub", "out/sub/file"):
        os.chown(theirs / made, OTHER, OTHER)
    os.chown(theirs / path, 0, 0)
    os.chmod(theirs / path, mode_of_theirs | (0o111 if path != "out/sub/file" and mode_of_theirs & 0o044 else 0))
    run(
        f"""
try:
    take("out")
except InvalidOutput as error:
    assert (error.where, error.problem) == ({path!r}, "belongs to another user (uid 0)"), error
else:
    raise SystemExit("taken")
""",
        theirs,
    )


def test_a_full_disk_is_told_apart(theirs: Path) -> None:
    unshare = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
    mount = 'mount -t tmpfs -o size=256k,mode=777 tmpfs "$1" && cd "$1"'
    try:
        subprocess.run([*unshare, "sh", "-c", mount, "sh", theirs], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system can be mounted here")
    script = """
os.mkdir("out")
with open("outside", "wb") as file:
    file.write(bytes(200_000))
os.link("outside", "out/linked")
try:
    take("out")
except StoreFull as error:
    assert error.where == "out/linked", error
else:
    raise SystemExit("taken")
assert os.listdir("out") == ["linked"]
"""
    start = f'{mount} && exec "$2" -c "$3" "$1"'
    finish([*unshare, "sh", "-c", start, "sh", str(theirs), sys.executable, PRELUDE + script])
