"""Processes that are deaf to SIGKILL for as long as a test wants: the kernel's freezer holds them, as a dead disk does."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.missing import cannot_run
from tests.waiting import wait_until

_FREEZER: Final = Path("/sys/fs/cgroup/freezer")


@contextlib.contextmanager
def frozen(*pids: int) -> Iterator[None]:
    """Hold processes; afterwards they get the signals that they were sent."""
    group = _FREEZER / f"pylightnix-tests-{os.getpid()}-{pids[0]}"
    try:
        group.mkdir()
    except OSError as error:
        cannot_run(f"no freezer of control groups can be had ({error.strerror})")
    try:
        for pid in pids:
            (group / "cgroup.procs").write_text(f"{pid}\n")
        (group / "freezer.state").write_text("FROZEN\n")
        wait_until(lambda: (group / "freezer.state").read_text() == "FROZEN\n")
        yield
    finally:
        (group / "freezer.state").write_text("THAWED\n")
        for pid in pids:
            with contextlib.suppress(OSError):
                (_FREEZER / "cgroup.procs").write_text(f"{pid}\n")
        wait_until(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()
