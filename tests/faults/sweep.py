"""Sweeps faults over a daemon's day: every call that occurs, each with some or all of what it may fail with.

    sweep.py [--seed N] [--seconds S] [--every-error] [--mutant NAME] [FAULT…]
    sweep.py --power-cuts N [--seed N] [--seconds S] [--mutant NAME]

prints each violation with the fault that brought it about, and the figures. The same is a function, for tests.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from errno import EIO, ENOSPC, EROFS
from typing import Any, Final, Optional

from tests.faults.shim import CHANGES, FULL, KINDS, Fault, environment, library

REPOSITORY: Final = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_SHOWN: Final = 800
"""Characters of a violation."""
START_CALLS_MAX: Final = 60
JOBS: Final = len(os.sched_getaffinity(0))


@dataclass(slots=True)
class Sweep:
    """What came of many days."""

    seed: int
    injected: int = 0
    missed: int = 0
    """Faults whose call did not occur that day."""
    seconds: float = 0.0
    kinds: dict[str, int] = field(default_factory=dict)
    violations: list[tuple[str, list[str], list[str]]] = field(default_factory=list)
    """The fault, the call that failed first, and what was wrong."""

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {count}" for kind, count in self.kinds.items())
        lines = [f"{self.injected} injections ({self.missed} not met) in {self.seconds:.0f} s, seed {self.seed}; calls in a day: {kinds}"]
        alike: dict[str, list[str]] = {}
        for fault, hit, said in self.violations:
            place = hit[0].split(" ", 1)[1] if hit else "?"
            alike.setdefault("\n    ".join([_masked(place), *map(_masked, said)]), []).append(fault)
        for text, faults in sorted(alike.items(), key=lambda item: -len(item[1])):
            lines.append(f"  {len(faults)} times: {' '.join(faults[:3])}{' …' if len(faults) > 3 else ''} at {text}")
        return "\n".join([*lines, f"violations: {len(self.violations)}"])


def _masked(text: str) -> str:
    """Return a text without what differs from run to run."""
    if len(text) > _SHOWN:
        text = f"{text[: _SHOWN // 2]} … {text[-_SHOWN // 2 :]}"
    return re.sub(r"/\S*?/days/\d+/\d+|\b[0-9a-f-]{8,}\b|(?<=-b-)\w{10}|(?<=under )\w+|\d+", "#", text)


class Days:
    """A process that lives through days, one after the other."""

    def __init__(self, folder: str) -> None:
        os.mkdir(folder)
        env = environment(FAULT_LIBRARY=library(), PYTHONPATH=os.pathsep.join([REPOSITORY, *filter(None, sys.path)]))
        command = [sys.executable, "-m", "tests.faults.runner", folder]
        self._process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.right = self.live(None)
        assert not self.right["violations"], self.right["violations"]

    def live(self, fault: Optional[Fault], **more: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"fault": None if fault is None else str(fault), **more}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the runner has ended"
        report: dict[str, Any] = json.loads(answer)
        return report

    def end(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@contextmanager
def days(count: int = 1) -> Iterator[list[Days]]:
    """Have so many processes, on stores in memory where there is room."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="test-pylightnix-days-", dir=place, ignore_cleanup_errors=True) as folder:
        os.mkdir(f"{folder}/days")
        running = [Days(f"{folder}/days/{i}") for i in range(count)]
        try:
            yield running
        finally:
            for each in running:
                each.end()


def all_faults(counts: dict[str, int], every_error: bool, chance: random.Random) -> list[Fault]:
    """Return a fault for each call that occurs, with one of its errors by turns, or with each; then disks that stay bad."""
    faults = []
    for kind, errors in KINDS.items():
        turn = chance.randrange(len(errors))
        for n in range(1, counts[kind] + 1):
            chosen = errors if every_error else (errors[(turn + n) % len(errors)],)
            faults += [Fault((kind,), n, error) for error in chosen]
    total = sum(counts[kind] for kind in CHANGES)
    full = sum(counts[kind] for kind in FULL)
    faults += [Fault(FULL, n, ENOSPC, True) for n in range(1, full, 1 if every_error else 7)]
    faults += [Fault(CHANGES, n, error, True) for n in range(1, total, 1 if every_error else 9) for error in (EROFS, EIO)]
    return faults


def at_starts(chance: random.Random) -> list[tuple[Fault, int]]:
    """Return faults for daemons that start where another one was killed, each with where that was."""
    found = []
    for kind, errors in KINDS.items():
        for n in range(1, START_CALLS_MAX, 1 if kind in ("open", "stat") else 3):
            fault = Fault((kind,), n, chance.choice(errors), chance.random() < 0.3)
            found.append((fault, chance.randrange(1 << 20)))
    return found


def sweep(
    seed: int,
    seconds: Optional[float] = None,
    every_error: bool = False,
    faults: Sequence[Fault] = (),
    jobs: int = JOBS,
    mutant: Optional[str] = None,
    start_at: Optional[int] = None,
) -> Sweep:
    """Live through a day for each fault, as far as the time goes."""
    begun = time.monotonic()
    result = Sweep(seed)
    with days(jobs) as running:
        result.kinds = {kind: running[0].live(Fault((kind,), 0, errors[0]), mutant=mutant)["calls"] for kind, errors in KINDS.items()}
        chance = random.Random(seed)
        drawn: list[tuple[Fault, Optional[int]]] = [(fault, start_at) for fault in faults]
        if not faults:
            drawn = [*((fault, None) for fault in all_faults(result.kinds, every_error, chance)), *at_starts(chance)]
            chance.shuffle(drawn)
        queue = iter(drawn)
        lock = threading.Lock()

        def work(each: Days) -> None:
            while seconds is None or time.monotonic() < begun + seconds:
                with lock:
                    fault, start_at = next(queue, (None, None))
                if fault is None:
                    return
                report = each.live(fault, mutant=mutant, start_at=start_at)
                where = "" if start_at is None else f" at a start ({start_at})"
                with lock:
                    result.injected += bool(report["hit"])
                    result.missed += not report["hit"]
                    if report["violations"]:
                        result.violations.append((f"{fault}{where}", report["hit"], report["violations"]))

        _at_once(work, running)
    result.seconds = time.monotonic() - begun
    return result


@dataclass(slots=True)
class Cuts:
    """What came of power cuts."""

    seed: int
    states: int = 0
    lived: int = 0
    """In how many of them another day was lived."""
    debris: int = 0
    """In how many a tree was left that no row names."""
    changes: int = 0
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        head = f"{self.states} states after power cuts in {self.changes} changes, another day in {self.lived}, debris in {self.debris}"
        lines = [f"{head}, in {self.seconds:.0f} s, seed {self.seed}", *(f"  {text}" for text in self.violations[:20])]
        return "\n".join([*lines, f"violations: {len(self.violations)}"])


def cut_power(seed: int, states: int, jobs: int = JOBS, mutant: Optional[str] = None, seconds: Optional[float] = None) -> Cuts:
    """Look at so many states that power cuts may leave, of days recorded by each of `jobs` processes."""
    result, begun = Cuts(seed), time.monotonic()
    part = min(states, 100)
    with days(jobs) as running:
        numbers = iter(range(seed, seed + states, part))
        lock = threading.Lock()

        def work(each: Days) -> None:
            while seconds is None or time.monotonic() < begun + seconds:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                # Every other record with files synced one by one, as on a file system whose syncs are slow.
                found = each.live(None, seed=number, count=part, mutant=mutant, by_file=number // part % 2 == 1)
                with lock:
                    for name in ("states", "lived", "debris", "changes", "violations"):
                        setattr(result, name, getattr(result, name) + found[name])

        _at_once(work, running)
    result.seconds = time.monotonic() - begun
    return result


def _at_once(work: Callable[[Days], None], running: Sequence[Days]) -> None:
    threads = [threading.Thread(target=work, args=(each,)) for each in running]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main(arguments: Iterable[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--jobs", type=int, default=JOBS)
    parser.add_argument("--every-error", action="store_true")
    parser.add_argument("--power-cuts", type=int, metavar="N")
    parser.add_argument("--mutant")
    parser.add_argument("--start-at", type=int, help="the days of the faults that are named begin where another was killed")
    parser.add_argument("faults", nargs="*", type=Fault.parse)
    given = parser.parse_args(list(arguments))
    if given.power_cuts:
        cuts = cut_power(given.seed, given.power_cuts, given.jobs, given.mutant, given.seconds)
        print(cuts)
        return int(bool(cuts.violations))
    result = sweep(given.seed, given.seconds, given.every_error, given.faults, given.jobs, given.mutant, given.start_at)
    print(result)
    return int(bool(result.violations))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
