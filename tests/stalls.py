"""How long a daemon's loop was held: measured from inside it, the time that it had no CPU for left out.

    python tests/stalls.py FILE [any words] pylightnixd OPTIONS...

runs the program `pylightnixd` with a probe: a task of its loop that sleeps for a few milliseconds, again and again, and sees how late
it wakes. What made it late held up everybody else, too: code that ran, a call that blocked, a thread with the interpreter's lock.
Each stall of note is appended to FILE: when it ended (monotonic seconds), how long it was, and what ran longest in it.
`stalls(FILE, since)` and `longest(FILE, since)` return them; `wrapper(FILE)` is what a test's `Daemon` takes.

What the kernel says that a thread of the process waited for a CPU meanwhile, at most, is taken off: the loop's own, or the one with the
interpreter's lock. On a busy machine that is most of it, and none of the daemon's doing.
It imports nothing of `tests`, for it runs as a program too.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trio

SLEEP_SECONDS: Final = 0.005
LEAST_SECONDS: Final = 0.005
"""Shorter ones are not worth a line."""


@dataclass(frozen=True, slots=True)
class Stall:
    """One time for which the loop did nothing for others."""

    ended: float
    """Monotonic seconds."""
    seconds: float
    culprit: str
    """The task that ran longest meanwhile, and for how long: no CPU taken off."""


class Probe(trio.abc.Instrument):
    """Measures one loop."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._step_began = 0.0
        self._step = (0.0, "")
        """The longest step of a task since the probe woke last."""

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._step_began = time.monotonic()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        took = time.monotonic() - self._step_began
        if took > self._step[0]:
            self._step = (took, task.name)

    async def measure(self) -> None:
        """Look for stalls until cancelled."""
        file = os.open(
            self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )  # only now: a daemon that starts closes others'
        waited = _waited_seconds()
        while True:
            due = time.monotonic() + SLEEP_SECONDS
            await trio.sleep(SLEEP_SECONDS)
            ended, now = time.monotonic(), _waited_seconds()
            stall = ended - due - max(total - waited.get(thread, 0.0) for thread, total in now.items())
            waited = now
            if stall > LEAST_SECONDS:
                os.write(file, f"{ended:.4f} {stall:.4f} {self._step[1]} ({self._step[0]:.4f} s)\n".encode())
            self._step = (0.0, "")


def _waited_seconds() -> dict[int, float]:
    """Return how long each thread of this process has waited for a CPU so far."""
    found = {}
    for thread in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{thread}/schedstat", "rb", buffering=0) as file:
                found[int(thread)] = int(file.read().split()[1]) / 1e9
        except OSError:
            pass  # it has just ended
    return found


def stalls(path: Path, since: float) -> list[Stall]:
    """Return those that ended after `since`, monotonic seconds."""
    rows = [line.split(maxsplit=2) for line in path.read_text().splitlines()]
    found = [Stall(float(ended), float(seconds), culprit) for ended, seconds, culprit in rows]
    return [stall for stall in found if stall.ended > since]


def longest(path: Path, since: float) -> Stall:
    """Return the longest of them; one of no seconds if there is none."""
    return max(stalls(path, since), key=lambda stall: stall.seconds, default=Stall(since, 0.0, "nothing"))


def wrapper(path: Path) -> tuple[str, ...]:
    """Return what `Daemon` is given as its wrapper to run with a probe that writes to `path`."""
    return (sys.executable, os.path.abspath(__file__), str(path))


def main() -> None:
    """Run the daemon with a probe."""
    probe, options = Probe(sys.argv[1]), sys.argv[sys.argv.index("pylightnixd", 2) + 1 :]
    run = trio.run

    async def probed(serve: Callable[..., Awaitable[Any]], *args: Any) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(probe.measure)
            await serve(*args)
            nursery.cancel_scope.cancel()

    trio.run = lambda serve, *args: run(probed, serve, *args, instruments=[probe])  # type: ignore[assignment]
    from pylightnixd.main import main as serve

    sys.argv = ["pylightnixd", *options]
    serve()


if __name__ == "__main__":
    main()
