"""Calls to the system that fail: the build fails, with the system's word, the file and what to do; the daemon and all others go on."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.daemon import stages
from tests.daemon.conftest import Daemon
from tests.daemon.wire_client import WireClient
from tests.failing import NUMBERS, fail, recover, wrapper
from tests.stores import AS_ROOT
from tests.waiting import wait_until

from pylightnix import DRef, Registry, instantiate
from pylightnix.protocol import messages as m

CODES = {
    errno.ENOSPC: "store-full",
    errno.EDQUOT: "store-full",
    errno.EROFS: "store-read-only",
    errno.EIO: "store-io",
    errno.ESTALE: "store-io",
    errno.EMFILE: "store-io",
}
WORDS = {number: "no space left" if number == errno.ENOSPC else os.strerror(number) for number in CODES} | {errno.EDQUOT: "quota exceeded"}
ADVICE = {
    errno.ENOSPC: "free some room",
    errno.EDQUOT: "free some room",
    errno.EROFS: "dmesg",
    errno.EIO: "store verify",
    errno.ESTALE: "mount that file system again",
    errno.EMFILE: "ulimit -n",
}
MUST_FAIL = ("open .log", "mkdir tmp", "rename store-v1", "pipe2", "sync", "commit")
"""What a build cannot do without."""
MAY_FAIL = ("unlink", "rmdir", "utime .log", "write", "close", "stat .log", "lstat", "fchmod", "listdir")
"""What a build, or its log, may do without: whatever comes of it, the daemon goes on, and no word of a bug."""


@pytest.fixture(scope="module")
def switch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("failing") / "order"


@pytest.fixture(scope="module")
def daemon(switch: Path) -> Iterator[Daemon]:
    with Daemon(switch.parent / "store", "--jobs", "2", wrapper=wrapper(switch)) as running:
        running.wait_ready()
        with running.client() as client:
            assert client.build(stages.many(running.plans, 2))[1].ok
        yield running
        running.stop()
    with Daemon(switch.parent / "store") as following:  # which removes what could not be removed
        following.wait_ready().stop_soundly(set())


@pytest.fixture(scope="module")
def bystander(daemon: Daemon) -> Iterator[WireClient]:
    with daemon.client() as connected:
        yield connected


def failure_of_build(daemon: Daemon, salt: str) -> m.FailedRow | None:
    """Return why a new derivation could not be built; None if it could."""
    closure = stages.many(daemon.plans, 1, salt=salt)
    with daemon.client() as client:
        operation, result = client.build(closure)
        if result.ok:
            return None
        return client.failed(operation)[0]


def check_goes_on(daemon: Daemon, bystander: WireClient, salt: str) -> None:
    assert bystander.status().lost_wakeups == 0
    assert failure_of_build(daemon, f"after {salt}") is None


def some(calls: tuple[str, ...]) -> list[Any]:
    """Return each call with each error; the fast tests have one for each call."""
    return [
        pytest.param(call, number, marks=[pytest.mark.slow] if (i + j) % len(NUMBERS) else [], id=f"{call} {errno.errorcode[number]}")
        for i, call in enumerate(calls)
        for j, number in enumerate(NUMBERS)
    ]


@pytest.mark.parametrize(("call", "number"), some(MUST_FAIL))
def test_a_build_fails_with_the_systems_word(daemon: Daemon, switch: Path, bystander: WireClient, call: str, number: int) -> None:
    function, _, text = call.partition(" ")
    fail(switch, function, number, text)
    row = failure_of_build(daemon, f"{call} {number}")
    assert bystander.status().pid == daemon.process.pid  # while it fails, too
    recover(switch)
    assert row is not None
    assert row.code == CODES[number], row
    assert WORDS[number] in row.message
    assert ADVICE[number] in row.message
    assert f"{os.sep}" in row.message
    check_goes_on(daemon, bystander, f"{call} {number}")


@pytest.mark.parametrize(("call", "number"), some(MAY_FAIL))
def test_nobody_else_is_harmed(daemon: Daemon, switch: Path, bystander: WireClient, call: str, number: int) -> None:
    function, _, text = call.partition(" ")
    fail(switch, function, number, text)
    row = failure_of_build(daemon, f"{call} {number}")
    assert bystander.status().pid == daemon.process.pid
    recover(switch)
    assert row is None or row.code == CODES[number], row
    check_goes_on(daemon, bystander, f"{call} {number}")


def test_after_a_failed_commit_its_error_is_told_whatever_else_fails_for_it(daemon: Daemon, switch: Path) -> None:
    """What reads a realization that the commit has lost fails in its own way; why is the commit's."""

    def two(r: Registry) -> DRef:
        return stages.add(r, "above", stages.outlives_its_input, below=stages.add(r, "below", stages.plain, salt="commit"))

    closure = instantiate(two, S=daemon.plans)[1]
    fail(switch, "sync", errno.EIO)
    with daemon.client() as client:
        operation, result = client.build(closure)
        recover(switch)
        assert not result.ok
        rows = client.failed(operation)
    assert [row.code for row in rows] == ["store-io"] * len(rows)
    assert all("Input/output error" in row.message and "making realizations durable" in row.message for row in rows)
    assert closure.targets[0] in [row.dref for row in rows]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with a file system of its own, which can go read-only as one does on an error of its disk."""
    image, folder = tmp_path / "image", tmp_path / "store"
    folder.mkdir()
    with open(image, "wb") as file:
        file.truncate(32 << 20)
    made = subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=False, capture_output=True)
    if made.returncode or subprocess.run(["mount", "-o", "loop", str(image), str(folder)], check=False, capture_output=True).returncode:
        pytest.skip("no file system can be mounted from a file here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.skipif(not AS_ROOT or shutil.which("mkfs.ext4") is None, reason="it takes root and mkfs.ext4")
def test_on_a_disk_that_has_become_read_only_builds_fail_and_questions_are_answered(small_disk: Path) -> None:
    with Daemon(small_disk, "--jobs", "1") as served, served.wait_ready().client() as client:
        first = stages.many(served.plans, 1, salt="before")
        operation, _ = client.build(first)
        (rref,) = client.matched(operation)[first.targets[0]]
        subprocess.run(["mount", "-o", "remount,abort", str(small_disk)], check=False, capture_output=True)  # as after an error
        for attempt in range(2):
            row = failure_of_build(served, f"while {attempt}")
            assert row is not None
            assert row.code == "store-read-only"
            assert "read-only" in row.message.lower()
        assert client.status().pid == served.process.pid
        assert client.ps().builds == []
        assert client.call("info", m.Info(ref=rref), m.InfoResult).rref == rref
        assert client.call("query", m.Query(what="allrrefs"), m.Rows).rows == [rref]
        assert client.call("log", m.Log(ref=first.targets[0]), m.LogResult).finished
        _, result = client.build(first)
        assert (result.ok, result.reused) == (True, 1)
        served.stop()


def descriptors(daemon: Daemon) -> int:
    return len(os.listdir(f"/proc/{daemon.process.pid}/fd"))


def test_whoever_finds_no_descriptor_left_is_let_in_later(tmp_path: Path) -> None:
    with Daemon(tmp_path / "store", "--jobs", "1") as daemon, daemon.wait_ready().client() as client:
        pid, usual = daemon.process.pid, resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, usual[1]))
        with socket.socket(socket.AF_UNIX) as waiting:
            waiting.connect(daemon.socket_path)
            daemon.wait_said("accepting connections: ")
            assert client.status().pid == pid  # who was there before is served
            resource.prlimit(pid, resource.RLIMIT_NOFILE, usual)
            with daemon.client() as another:
                assert another.status().pid == pid
        assert daemon.said.count("accepting connections: ") == 1


def test_few_descriptors_are_told_of_and_none_is_lost(tmp_path: Path) -> None:
    """With ever more descriptors to have, a build gets ever further; at no point it keeps any."""
    with Daemon(tmp_path / "store", "--jobs", "1") as daemon, daemon.wait_ready().client() as client:

        def failures(salt: str) -> list[m.FailedRow]:
            return client.failed(client.build(stages.many(daemon.plans, 1, salt=salt))[0])

        assert failures("warm") == []
        pid, usual = daemon.process.pid, resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE)
        before, told = descriptors(daemon), []
        for spare in range(12):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (before + spare, usual[1]))
            told += failures(f"{spare} to have")
            assert client.status().pid == pid
            resource.prlimit(pid, resource.RLIMIT_NOFILE, usual)
            wait_until(lambda: descriptors(daemon) <= before)
        assert told
        for row in told:
            assert row.code == "store-io"
            assert "Too many open files" in row.message
            assert "ulimit -n" in row.message
        assert failures("after") == []
