"""Stores that lie where others can exchange them: warned of where they are one's own, refused where they are another's."""

from __future__ import annotations

import logging
import os
import signal
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn, Optional

import pytest
from tests.stores import AS_ROOT, OTHER_UID, in_child, new_store

from pylightnix import StorageSettings, StoreForeign, allrrefs, fsinit, mkSS
from pylightnix.storage import store_layout
from pylightnix.store import exposure
from pylightnix.store.access import check_access
from pylightnix.store.exposure import ExposedFolder, FolderFacts, check_folders, exposure_of
from pylightnix.store.locks import exclusive_lock
from pylightnix.store.ownership import DAEMON_ROLE, daemon_socket

as_root = pytest.mark.skipif(not AS_ROOT, reason="needs another user")
OF_WHERE_IT_LIES = pytest.mark.embedded_only("where a store lies does not depend on who serves it; a daemon's is looked at here, too")
ME, OTHER, MY_GROUP, LAB = 1000, 1001, 1000, 500


@pytest.fixture(autouse=True)
def _nothing_was_seen() -> Iterator[None]:
    exposure._seen.clear()
    exposure._told.clear()
    yield
    exposure._seen.clear()
    exposure._told.clear()


@pytest.fixture
def everybodys() -> Iterator[Path]:
    """A folder that every user may reach and write to, with the sticky bit; the usual ones of tests are closed to others."""
    with tempfile.TemporaryDirectory(prefix="pyl-") as folder:
        os.chmod(folder, 0o1777)
        yield Path(folder)


@pytest.mark.parametrize(
    ("uid", "gid", "mode", "who"),
    [
        (0, 0, 0o755, None),
        (0, 0, 0o1777, None),  # /tmp
        (0, 0, 0o775, None),
        (ME, MY_GROUP, 0o775, None),  # umask 002, private groups
        (ME, MY_GROUP, 0o700, None),
        (0, LAB, 0o3775, None),  # a project's, with the sticky bit
        (0, LAB, 0o2775, "group"),
        (ME, LAB, 0o770, "group"),
        (0, 0, 0o777, "anybody"),
        (ME, MY_GROUP, 0o757, "anybody"),
        (OTHER, OTHER, 0o755, "owner"),
        (OTHER, OTHER, 0o1777, "owner"),  # whose folder it is may do all
        (OTHER, LAB, 0o777, "anybody"),
    ],
)
def test_who_could_exchange_what_lies_in_a_folder(uid: int, gid: int, mode: int, who: Optional[str]) -> None:
    found = exposure_of(FolderFacts("/x", uid, gid, stat.S_IFDIR | mode), frozenset({0, ME}), lambda group: group == MY_GROUP)
    if who is None:
        assert found is None
    else:
        assert found is not None
        assert who in found.who
        assert "/x" in found.advice


@contextmanager
def open_to_all(folder: Path, mode: int = 0o777) -> Iterator[None]:
    before = stat.S_IMODE(folder.stat().st_mode)
    folder.chmod(mode)
    try:
        yield
    finally:
        folder.chmod(before)


@OF_WHERE_IT_LIES
def test_ones_own_store_is_warned_of_once_and_works(S: StorageSettings, caplog: pytest.LogCaptureFixture) -> None:
    above = Path(S.root or "").parent
    with open_to_all(above), caplog.at_level(logging.WARNING, "pylightnix"):
        assert list(allrrefs(S)) == []
        assert list(allrrefs(S)) == []
    [warned] = [record.getMessage() for record in caplog.records]
    assert f"{S.root} lies in {above}, where anybody (mode 0777) could put something else in its place; " in warned
    assert f"chmod o-w {above}" in warned


@OF_WHERE_IT_LIES
def test_folders_for_temporary_files_are_fine(S: StorageSettings, caplog: pytest.LogCaptureFixture) -> None:
    with open_to_all(Path(S.root or "").parent, 0o1777), caplog.at_level(logging.WARNING, "pylightnix"):
        assert list(allrrefs(S)) == []
    assert caplog.records == []


@OF_WHERE_IT_LIES
def test_links_lead_through_folders_that_count(S: StorageSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    others = tmp_path / "others"
    others.mkdir()
    (others / "link").symlink_to(S.root or "")
    with open_to_all(others), caplog.at_level(logging.WARNING, "pylightnix"):
        assert list(allrrefs(mkSS(str(others / "link")))) == []
    assert [str(others) in record.getMessage() for record in caplog.records] == [True]


def test_it_is_looked_once_in_a_process(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    layout = store_layout(new_store(tmp_path / "store"))
    check_access(layout)
    with open_to_all(tmp_path), caplog.at_level(logging.WARNING, "pylightnix"):
        check_access(layout)
    assert caplog.records == []


@as_root
def test_another_users_store_that_others_can_exchange_is_refused(tmp_path: Path) -> None:
    layout = store_layout(new_store(tmp_path / "store"))
    os.chown(layout.state, OTHER_UID, OTHER_UID)
    check_folders(layout.state)
    exposure._seen.clear()
    with (
        open_to_all(tmp_path),
        pytest.raises(ExposedFolder, match=r"(?s)belongs to another user.*anybody \(mode 0777\).*chmod o-w") as caught,
    ):
        check_folders(layout.state)
    assert (caught.value.code, caught.value.exit_status) == ("exposed-folder", 77)
    os.chown(tmp_path, OTHER_UID + 1, 0)
    with pytest.raises(ExposedFolder, match=f"its owner .uid {OTHER_UID + 1}."):
        check_folders(layout.state)
    os.chown(tmp_path, OTHER_UID, 0)
    check_folders(layout.state)  # whose store it is may do with it as he likes
    os.chown(tmp_path, 0, 0)


def _listen_as(uid: int, path: str, writing: int) -> NoReturn:
    """Listen at `path` as another user, in a forked child, until it is killed."""
    try:
        os.setresuid(uid, uid, uid)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        os.chmod(path, 0o777)
        listener.listen()
        os.write(writing, b"!")
        signal.pause()
    finally:
        os._exit(1)


@as_root
def test_a_socket_at_a_dead_daemons_path_is_not_its_successor(everybodys: Path) -> None:
    layout = store_layout(new_store(everybodys / "store"))
    path = str(everybodys / "d.sock")
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        _listen_as(OTHER_UID, path, writing)
    os.close(writing)
    try:
        assert os.read(reading, 1) == b"!"
        with exclusive_lock(layout, DAEMON_ROLE, socket=path):
            assert daemon_socket(layout) is None
            os.chown(layout.state, OTHER_UID, OTHER_UID)
            assert daemon_socket(layout) == path, "it is that user's store now"
            os.chown(layout.state, 0, 0)
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(reading)


@as_root
def test_a_folder_of_realizations_that_was_exchanged_is_refused(tmp_path: Path) -> None:
    S = mkSS(str(tmp_path / "root"), str(tmp_path / "apart"))
    fsinit(S)
    check_access(store_layout(S))
    os.chown(tmp_path / "apart", OTHER_UID, OTHER_UID)
    with pytest.raises(StoreForeign):
        check_access(store_layout(S))


@as_root
def test_private_groups_are_known_by_their_user(tmp_path: Path) -> None:
    import grp
    import pwd

    def private(gid: int) -> bool:
        return in_child(lambda: exposure._is_private(gid))

    ordinary = [user for user in pwd.getpwall() if user.pw_uid and user.pw_gid]
    for user in ordinary:
        group = next((each for each in grp.getgrall() if each.gr_gid == user.pw_gid), None)
        expected = group is not None and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}
        if group is not None and group.gr_name in {each.pw_name for each in ordinary}:
            assert private(user.pw_gid) == expected
    assert not private(0x7FFFFFFE)
