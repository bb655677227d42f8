"""The probe of tests sees what holds a loop, names it, and takes time without a CPU for nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import trio
from tests.stalls import Probe, longest, stalls

HELD_SECONDS = 0.1


async def hold_with_a_call() -> None:  # noqa: ASYNC124  # a task
    time.sleep(HELD_SECONDS)  # noqa: ASYNC251  # what the probe is for


async def hold_with_work() -> None:  # noqa: ASYNC124  # a task
    until = time.thread_time() + HELD_SECONDS
    while time.thread_time() < until:
        pass


def test_what_holds_a_loop_is_measured_and_named(tmp_path: Path) -> None:
    path = tmp_path / "stalls"
    probe = Probe(str(path))
    begun = time.monotonic()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(probe.measure)
            await trio.sleep(0.01)
            for hold in (hold_with_a_call, hold_with_work):
                nursery.start_soon(hold)
                await trio.sleep(HELD_SECONDS)
            await trio.sleep(0.01)
            nursery.cancel_scope.cancel()

    trio.run(main, instruments=[probe])
    found = [stall for stall in stalls(path, begun) if stall.seconds > HELD_SECONDS / 2]
    assert [stall.culprit.split()[0].rpartition(".")[2] for stall in found] == ["hold_with_a_call", "hold_with_work"]
    assert longest(path, time.monotonic()).seconds == 0


def test_a_thread_that_keeps_the_interpreters_lock_holds_the_loop(tmp_path: Path) -> None:
    path = tmp_path / "stalls"

    def share_seen() -> float:
        probe, begun, used = Probe(str(path)), time.monotonic(), []

        def keep_the_lock() -> None:
            before = time.thread_time()
            sum(range(20_000_000))  # one call into C
            used.append(time.thread_time() - before)

        async def main() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(probe.measure)
                await trio.to_thread.run_sync(keep_the_lock)
                await trio.sleep(0.02)
                nursery.cancel_scope.cancel()

        trio.run(main, instruments=[probe])
        return longest(path, begun).seconds / used[0]

    # On a busy machine most of it may be what it waited for a CPU.
    assert any(share_seen() > 0.25 for _ in range(5))


def test_a_loop_that_gets_no_cpu_is_not_held(tmp_path: Path) -> None:
    path = tmp_path / "stalls"
    probe = Probe(str(path))
    begun = time.monotonic()

    async def main() -> None:
        with trio.move_on_after(0.5):
            await probe.measure()

    only = {min(os.sched_getaffinity(0))}
    burner = subprocess.Popen(
        [sys.executable, "-c", f"import os\nos.sched_setaffinity(0, {only})\nprint(flush=True)\nwhile True: pass"], stdout=-1
    )
    assert burner.stdout is not None
    burner.stdout.readline()
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, only)
    try:
        trio.run(main, instruments=[probe])
    finally:
        os.sched_setaffinity(0, before)
        burner.kill()
        burner.communicate()
    assert longest(path, begun).seconds < 0.05
