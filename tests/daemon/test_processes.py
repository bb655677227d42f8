"""Starting and ending the daemon's own processes: what hangs holds nobody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Optional

import pytest
import trio
import trio.testing
from tests.daemon.conftest import is_alive
from tests.daemon.frozen import frozen
from tests.waiting import wait_until

from pylightnix.worker.linux import become_subreaper
from pylightnix_client.starting import _leave
from pylightnixd.boundary import SharedNursery
from pylightnixd.main import wait_status, words_from
from pylightnixd.processes import START_SECONDS, GivenUp, Processes, wait_dead

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


def with_processes(script: Callable[[Processes], Awaitable[None]], clock: Optional[trio.abc.Clock] = None) -> list[list[int]]:
    """Run a script; return what was remembered, in order."""
    remembered: list[list[int]] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await script(Processes(SharedNursery(nursery), lambda pids: remembered.append(list(pids))))
            nursery.cancel_scope.cancel()

    trio.run(main, clock=clock)
    return remembered


def test_a_program_is_started_and_ended_and_its_descriptors_are_closed() -> None:
    reading, writing = os.pipe()

    async def script(processes: Processes) -> None:
        process = await processes.start(
            [sys.executable, "-c", f"import os; os.write({writing}, b'x'); input()"], [writing], pass_fds=[writing]
        )
        assert process.pid in processes.spared
        assert await trio.to_thread.run_sync(os.read, reading, 1) == b"x"
        assert await processes.end(process, lambda: None, "a program") == []
        assert process.pid not in processes.spared
        assert processes.given_up == []
        assert os.read(reading, 1) == b"", "nobody has the other end any more"
        os.close(reading)

    assert with_processes(script) == []


@pytest.mark.parametrize(("command", "error"), [(["/nonexistent/program"], FileNotFoundError), (["a\0b"], ValueError)])
def test_what_cannot_be_started_is_an_error_of_whoever_wants_it(command: Sequence[str], error: type[Exception]) -> None:
    async def script(processes: Processes) -> None:
        with pytest.raises(error):
            await processes.start(command, [])
        assert processes.spared == set()
        assert not processes.forking.locked()

    with_processes(script)


@pytest.mark.parametrize("leaves", ["when it is too late", "when it likes"])
def test_a_program_that_begins_too_late_is_ended_and_nobody_waits_for_it(leaves: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel takes its time to begin a program on a disk that does not answer."""
    began: list[FakeProcess] = []

    async def slow(command: Sequence[str], **options: Any) -> FakeProcess:
        await trio.sleep(10 * START_SECONDS)
        began.append(FakeProcess())
        return began[0]

    monkeypatch.setattr(trio.lowlevel, "open_process", slow)
    reading, writing = os.pipe()

    async def script(processes: Processes) -> None:
        if leaves == "when it likes":
            with trio.move_on_after(1):
                await processes.start(SLEEP, [writing])
        else:
            with pytest.raises(OSError, match="did not begin within 10 s"):
                await processes.start(SLEEP, [writing])
        assert trio.current_time() < 2 * START_SECONDS
        assert not processes.forking.locked(), "others can be started"
        os.fstat(writing)  # which it may still hand on
        await trio.sleep(20 * START_SECONDS)
        assert began[0].ended
        assert processes.spared == set()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(writing)

    with_processes(script, trio.testing.MockClock(autojump_threshold=0.01))
    os.close(reading)


class FakeProcess:
    """A child that ends as soon as somebody waits for its end."""

    pid = 1 << 30
    ended = False

    def poll(self) -> Optional[int]:
        return -9 if self.ended else None

    async def wait(self) -> int:
        await trio.lowlevel.checkpoint()
        self.ended = True
        return -9


def test_a_process_that_is_deaf_is_given_up_and_remembered_until_it_is_dead() -> None:
    async def script(processes: Processes) -> None:
        process = await processes.start(SLEEP, [])
        begun = time.monotonic()
        with frozen(process.pid):
            assert await processes.end(process, lambda: None, "a program") == [process.pid]
            assert time.monotonic() - begun < 8
            [entry] = processes.given_up
            assert (entry.pid, entry.what) == (process.pid, "a program")
            assert process.pid in processes.spared, "it is no stray"
        with trio.fail_after(30):
            await wait_dead(process.pid)
            while processes.given_up or process.pid in processes.spared:
                await trio.testing.wait_all_tasks_blocked(0.01)

    remembered = with_processes(script)
    assert [len(pids) for pids in remembered] == [1, 0]


def test_strays_are_killed_and_known_children_are_not() -> None:
    code = f"import subprocess; print(subprocess.Popen({SLEEP!r}, start_new_session=True).pid)"

    def main() -> None:  # in a process of its own, which has no other children
        become_subreaper()
        earlier = subprocess.Popen(SLEEP)  # as a shell has them that puts a daemon in its own place

        async def script(processes: Processes) -> None:
            other = await processes.start(SLEEP, [])
            lost = await trio.lowlevel.open_process([sys.executable, "-c", code], stdout=subprocess.PIPE)
            assert lost.stdout is not None
            stray = int(await lost.stdout.receive_some())
            await lost.wait()
            assert is_alive(stray)
            assert await processes.end(lost, lambda: None, "what was lost") == []
            assert not is_alive(stray)
            assert is_alive(other.pid)
            assert is_alive(earlier.pid)
            await processes.end(other, lambda: None, "the other")

        with_processes(script)
        earlier.kill()
        earlier.wait()

    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            main()
            status = 0
        finally:
            os._exit(status)
    assert wait_status(pid, 60) == 0


def test_an_entry_that_is_settled_twice_is_no_error() -> None:
    async def script(processes: Processes) -> None:
        entry = processes.give_up(os.getpid(), "this one", "/folder")
        assert isinstance(entry, GivenUp)
        processes.settle(entry)
        processes.settle(entry)
        assert processes.given_up == []
        await trio.lowlevel.checkpoint()

    assert with_processes(script) == [[os.getpid()], []]


# --- those who start a daemon -------------------------------------------------------------------------------


def test_words_that_do_not_come_are_not_waited_for() -> None:
    reading, writing = os.pipe()
    assert words_from(reading, 0.05) is None
    os.write(writing, b"rea")
    assert words_from(reading, 0.05) is None
    os.write(writing, b"dy")
    os.close(writing)
    assert words_from(reading, 60) == b"dy"
    os.close(reading)


def test_a_daemon_that_does_not_end_is_left_alone() -> None:
    with subprocess.Popen(SLEEP) as child:
        assert wait_status(child.pid, 0.05) is None
        child.kill()
        assert wait_status(child.pid, 60) == -signal.SIGKILL
        child.returncode = -signal.SIGKILL


def test_who_started_a_daemon_does_not_wait_for_a_deaf_one() -> None:
    child = subprocess.Popen(SLEEP, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with frozen(child.pid):
        begun = time.monotonic()
        _leave(child, 0.2)
        assert time.monotonic() - begun < 10
        assert child.returncode is None
    wait_until(lambda: child.poll() is not None)
