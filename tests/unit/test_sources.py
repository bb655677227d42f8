"""What is read of a source, and what a memo answers for: never more than it may."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.stores import in_child

from pylightnix.errors import InvalidSource
from pylightnix.nar import MAX_LEVELS, tree_hash
from pylightnix.sources import Memo, copy_source, source_digest

LATER_NS = 10_000_000_000
"""Long enough after now for the times of files made now to be told from others."""


class Asked:
    """A source and its memo. Its clock says how often a file was read."""

    def __init__(self, folder: Path, *, ahead_ns: int = LATER_NS) -> None:
        self.top, self.memo_folder, self.ahead_ns = folder / "top", folder / "memo", ahead_ns
        self.top.mkdir()
        self.read = 0

    def digest(self, *exclude: str, top: Path | None = None) -> str:
        self.read = 0
        return source_digest(str(top or self.top), exclude, Memo(str(self.memo_folder)), now_ns=self._now_ns)

    def _now_ns(self) -> int:
        self.read += 1  # asked before each file that is read
        return time.time_ns() + self.ahead_ns

    def memo(self) -> Path:
        [path] = self.memo_folder.iterdir()
        return path


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    asked = Asked(tmp_path)
    for name in ("a", "b", "sub/c", "sub/d/e", "z/f"):
        path = asked.top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (asked.top / "link").symlink_to("a")
    return asked


def test_digest_is_the_tree_hash_with_digests_for_contents(asked: Asked, tmp_path: Path) -> None:
    (asked.top / "b").chmod(0o755)
    (asked.top / "empty").mkdir()
    twin = tmp_path / "twin"
    subprocess.run(["cp", "-a", asked.top, twin], check=True)
    for path in twin.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.write_text(hashlib.sha256(path.read_bytes()).hexdigest())
    assert asked.digest() == tree_hash(twin).sha256
    assert asked.digest(top=asked.top / "b") == tree_hash(twin / "b").sha256


def test_nothing_is_read_twice(asked: Asked) -> None:
    first = asked.digest()
    assert asked.read == 5
    memo = asked.memo().read_bytes()
    assert asked.digest() == first
    assert asked.read == 0
    assert asked.memo().read_bytes() == memo


def test_one_file_is_not_read_twice(asked: Asked) -> None:
    first = asked.digest(top=asked.top / "a")
    assert asked.read == 1
    assert (asked.digest(top=asked.top / "a"), asked.read) == (first, 0)


CHANGES: dict[str, tuple[Callable[[Path], object], int]] = {
    "contents": (lambda top: (top / "sub" / "c").write_text("other"), 1),
    "contents of equal size": (lambda top: (top / "sub" / "c").write_text("c/bus"), 1),
    "another file in its place": (lambda top: (top / "a").rename(top / "b"), 1),
    "new": (lambda top: (top / "sub" / "new").write_text(""), 1),
    "new folder": (lambda top: (top / "a0").mkdir(), 0),
    "gone": (lambda top: (top / "sub" / "d" / "e").unlink(), 0),
    "folder gone": (lambda top: subprocess.run(["rm", "-r", top / "sub"], check=True), 0),
    "executable": (lambda top: (top / "b").chmod(0o755), 1),
    "link": (lambda top: subprocess.run(["ln", "-sfn", "b", top / "link"], check=True), 0),
}


@pytest.mark.parametrize("change", sorted(CHANGES))
def test_only_what_changed_is_read_again(asked: Asked, change: str) -> None:
    first = asked.digest()
    make, read = CHANGES[change]
    make(asked.top)
    second = asked.digest()
    assert (second != first, asked.read) == (True, read)
    assert (asked.digest(), asked.read) == (second, 0)


def test_contents_that_were_given_their_old_times_back(asked: Asked) -> None:
    first = asked.digest()
    path = asked.top / "a"
    before = path.stat()
    path.write_text("b")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)
    assert (asked.digest() != first, asked.read) == (True, 1)


def test_files_changed_a_moment_ago_are_read_again(tmp_path: Path) -> None:
    # Within the granularity of a file system's times a second change cannot be told from the first.
    asked = Asked(tmp_path, ahead_ns=0)
    (asked.top / "old").write_text("old")
    (asked.top / "new").write_text("new")
    first = asked.digest()
    assert asked.read == 2
    assert (asked.digest(), asked.read) == (first, 2)
    asked.ahead_ns = LATER_NS
    assert (asked.digest(), asked.read) == (first, 2)
    assert (asked.digest(), asked.read) == (first, 0)


def test_files_of_the_future_are_read_again(asked: Asked) -> None:
    first = asked.digest()
    future = time.time_ns() + 100 * LATER_NS
    os.utime(asked.top / "a", ns=(future, future))
    assert (asked.digest(), asked.read) == (first, 1)
    assert (asked.digest(), asked.read) == (first, 1)


def test_excluded_files_are_not_read(asked: Asked) -> None:
    asked.digest("sub/", "a")
    assert asked.read == 2
    assert asked.digest("sub/", "a") != asked.digest()


# --- memos that are not what they were ------------------------------------------------------------------


@pytest.mark.parametrize("at", range(0, 21 + 8 + 40, 3))
def test_a_flipped_bit_in_a_memo(asked: Asked, at: int) -> None:
    first = asked.digest()
    memo = asked.memo()
    data = bytearray(memo.read_bytes())
    data[at] ^= 0x10
    memo.write_bytes(bytes(data))
    assert asked.digest() == first
    assert asked.read == 5
    assert (asked.digest(), asked.read) == (first, 0)


@pytest.mark.parametrize("data", [b"", b"pylightnix-sources-1\n", b"pylightnix-sources-2\n" + bytes(100), b"\xff" * 1000, bytes(1000)])
def test_a_memo_of_other_bytes(asked: Asked, data: bytes) -> None:
    first = asked.digest()
    asked.memo().write_bytes(data)
    assert (asked.digest(), asked.read) == (first, 5)
    assert (asked.digest(), asked.read) == (first, 0)


def test_a_memo_that_ends_early(asked: Asked) -> None:
    first = asked.digest()
    data = asked.memo().read_bytes()
    for size in range(0, len(data), 7):
        asked.memo().write_bytes(data[:size])
        assert asked.digest() == first
    assert (asked.digest(), asked.read) == (first, 0)


def test_a_memo_with_more_behind(asked: Asked) -> None:
    first = asked.digest()
    asked.memo().write_bytes(asked.memo().read_bytes() + b"more")
    assert (asked.digest(), asked.read) == (first, 0)
    assert asked.memo().read_bytes()[-4:] != b"more"


@pytest.mark.parametrize("place", ["file", "folder"])
def test_memos_that_cannot_be_kept(asked: Asked, place: str) -> None:
    if place == "file":
        asked.memo_folder.write_text("in the way")
    else:
        first = asked.digest()
        memo = asked.memo()
        memo.unlink()
        memo.mkdir()
        assert asked.digest() == first
        return
    assert asked.digest() == asked.digest()
    assert asked.read == 5


def test_a_full_disk_is_no_reason_to_fail(asked: Asked) -> None:
    def within_limits() -> str:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30, 30))
        return asked.digest()

    assert in_child(within_limits) == asked.digest()
    assert len(list(asked.memo_folder.iterdir())) == 1


def test_old_memos_are_swept(asked: Asked) -> None:
    asked.digest()
    for name, days in (("old.memo", 91), ("young.memo", 89), ("draft-x", 91)):
        (asked.memo_folder / name).write_text("")
        then = time.time() - days * 86400
        os.utime(asked.memo_folder / name, (then, then))
    asked.digest("a")
    names = {path.name for path in asked.memo_folder.iterdir()}
    assert ("young.memo" in names, "old.memo" in names, "draft-x" in names, len(names)) == (True, False, False, 3)


def test_memo_lies_in_the_cache_folder(asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source_digest(str(asked.top), (), Memo())
    [memo] = (tmp_path / "cache" / "pylightnix" / "sources").iterdir()
    assert memo.stat().st_mode & 0o077 == 0


# --- what cannot be read --------------------------------------------------------------------------------


def test_depth(tmp_path: Path) -> None:
    top = tmp_path / "top"
    deep = top / "/".join(["d"] * (MAX_LEVELS - 2))
    deep.mkdir(parents=True)
    assert source_digest(str(top), (), Memo(str(tmp_path / "memo")))
    (deep / "d").mkdir()
    with pytest.raises(InvalidSource, match=f"nested deeper than {MAX_LEVELS - 1} levels"):
        source_digest(str(top), (), Memo(str(tmp_path / "memo")))
    assert not [name for name in os.listdir("/proc/self/fd") if os.path.realpath(f"/proc/self/fd/{name}").startswith(str(top))]


def test_a_file_that_changes_while_it_is_read(asked: Asked) -> None:
    path = asked.top / "large"
    with open(path, "wb") as file:
        file.truncate(1 << 29)  # long enough to be met while it is open
    done = threading.Event()

    def touch_when_open() -> None:
        while not done.is_set():
            opened = {os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")}
            if str(path) in opened:
                os.utime(path)
                return

    thread = threading.Thread(target=touch_when_open)
    thread.start()
    try:
        with pytest.raises(InvalidSource, match="large: it changed while it was read"):
            asked.digest()
    finally:
        done.set()
        thread.join()


# --- copies ---------------------------------------------------------------------------------------------


def test_a_copy_is_what_its_digest_says(asked: Asked, tmp_path: Path) -> None:
    (asked.top / "large").write_bytes(os.urandom(3 << 20))
    (asked.top / "large").chmod(0o711)
    digest = copy_source(str(asked.top), ("sub",), str(tmp_path), "copy")
    assert digest == asked.digest("sub")
    assert digest == source_digest(str(tmp_path / "copy"), (), Memo(str(tmp_path / "memo")))
    assert not (tmp_path / "copy" / "sub").exists()
    assert copy_source(str(asked.top / "large"), (), str(tmp_path), "one") == asked.digest(top=asked.top / "large")


def test_the_kernel_is_not_needed_to_copy(asked: Asked, tmp_path: Path) -> None:
    (asked.top / "large").write_bytes(os.urandom(3 << 20))
    script = f"""
import os
from pylightnix.sources import copy_source
def refuses(*args):
    if done:
        raise OSError(18, "Invalid cross-device link")
    done.append(1)
    return share(args[0], args[1], 1 << 20)
done, share = [], os.copy_file_range
os.copy_file_range = refuses
print(copy_source({str(asked.top)!r}, (), {str(tmp_path)!r}, "copy"))
"""
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == asked.digest()
    assert tree_hash(tmp_path / "copy") == tree_hash(asked.top)


def test_nothing_is_copied_into_itself(asked: Asked) -> None:
    (asked.top / "sub" / "deep").mkdir(parents=True)
    for exclude in ([], ["/deep/"]):
        with pytest.raises(InvalidSource, match="where it is to be copied to"):
            copy_source(str(asked.top), exclude, str(asked.top / "sub" / "deep"), "copy")
    assert list((asked.top / "sub" / "deep").iterdir()) == []
    copy_source(str(asked.top), ["sub/"], str(asked.top / "sub" / "deep"), "copy")
    assert not (asked.top / "sub" / "deep" / "copy" / "sub").exists()


def test_nothing_is_written_over(asked: Asked, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    with pytest.raises(FileExistsError):
        copy_source(str(asked.top), (), str(tmp_path), "copy")
