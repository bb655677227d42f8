"""A system call that fails, whichever it is: nothing is lost or wrong, the daemon serves on, and whoever is told is told why."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import subprocess
from pathlib import Path
from typing import Final

import pytest
from tests.daemon.conftest import STOP_SECONDS, Daemon
from tests.faults import shim
from tests.faults.runner import CONTENT, opened, serve_file
from tests.faults.scenario import Day, Plans
from tests.faults.shim import KINDS, Fault
from tests.faults.store_check import problems
from tests.faults.sweep import days, sweep
from tests.stores import new_store

SECONDS: Final = float(os.environ.get("PYLIGHTNIX_FAULT_SECONDS", "50"))
"""For a sample."""


@pytest.mark.slow
def test_a_sample() -> None:
    result = sweep(random.randrange(1 << 32), seconds=SECONDS)
    print(result)
    assert result.injected > 10
    assert not result.violations, result


@pytest.mark.slow
def test_every_call_with_every_error() -> None:
    result = sweep(random.randrange(1 << 32), every_error=True)
    print(result)
    assert not result.violations, result


# --- end to end -----------------------------------------------------------------------------------------


class Remote:
    """The calls of a daemon in another process, which fail while a file is there."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def arm(self, fault: Fault) -> None:
        self.file.touch()

    def disarm(self) -> int:
        self.file.unlink(missing_ok=True)
        return 0

    def spare(self, yes: bool = True) -> None:
        pass

    def mark(self, text: str) -> None:
        pass


def live_through(
    folder: Path, plans: Plans, fault: Fault, expected: dict[str, list[str]] | None
) -> tuple[dict[str, list[str]], list[str], str]:
    """Have a real daemon, with real workers, for a day; return what was matched, what was wrong, and what failed."""
    root, calls, log = folder / "store", Remote(folder / "armed"), folder / "log"
    env = shim.environment(
        FAULT_KINDS=",".join(fault.kinds),
        FAULT_NTH=str(fault.nth),
        FAULT_ERROR=str(fault.error),
        FAULT_FOLDER=str(root),
        FAULT_ARMED_BY=str(calls.file),
        FAULT_LOG=str(log),
        **({"FAULT_ONWARDS": "1"} if fault.onwards else {}),
        **({"FAULT_ANYWHERE": "1"} if fault.error in shim.ANYWHERE else {}),
    )
    violations: list[str] = []
    with contextlib.ExitStack() as stack:
        daemon = Daemon(root, "--jobs", "2", "--drain", "5", env=env)
        stack.callback(daemon.process.kill)
        daemon.wait_ready()
        day = Day(str(root), plans, calls, fault if fault.nth else None, expected, daemon.signal)
        day.serving.set()
        day.run()
        try:
            if (status := daemon.process.wait(STOP_SECONDS)) != 0:
                violations.append(f"dead: the daemon ended with {status}")
        except subprocess.TimeoutExpired:
            violations.append("hang: the daemon does not end")
    violations += day.report.violations
    violations += [f"internal: logged {line}" for line in daemon.said.splitlines() if "BUG" in line]
    right = sorted(rref for rrefs in (expected or day.report.matched).values() for rref in rrefs)
    violations += [*problems(str(root), day.report.told, right, settled=False), *opened(str(root), day.report.told, right)]
    return day.report.matched, violations, log.read_text() if log.exists() else ""


@pytest.mark.slow
def test_a_daemon_of_its_own_with_real_workers(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    with days() as (one,):
        counts = {kind: one.live(Fault((kind,), 0, errors[0]))["calls"] for kind, errors in KINDS.items()}
    plans = Plans.of(new_store(tmp_path / "plans"), serve_file(), hashlib.sha256(CONTENT).hexdigest())
    (tmp_path / "right").mkdir()
    expected, violations, _ = live_through(tmp_path / "right", plans, Fault(("write",), 0, 5), None)
    assert not violations
    found, met = [], 0
    for number in range(20):
        kind = chance.choice([kind for kind, count in counts.items() if count])
        fault = Fault((kind,), chance.randint(1, counts[kind]), chance.choice(KINDS[kind]))
        (tmp_path / str(number)).mkdir()
        _, violations, hit = live_through(tmp_path / str(number), plans, fault, expected)
        met += bool(hit)
        found += [f"{fault} at {hit.strip() or '?'}: {text}" for text in violations]
    print(f"20 days end to end, {met} injections, seed {seed}")
    assert not found, "\n".join([f"seed {seed}", *found])
