"""What it costs to instantiate, plan and confirm closures of 10,000 and 100,000 derivations, three dependencies each.

Run with ``make bench``. Seconds are printed, never asserted. Beside those on the wall stand those of the processor,
which tell more on a busy machine, and how each step grew with ten times the derivations: 10 is linear, 100 quadratic.
Asserted is what no load on the machine can change: memory, and that the growth in CPU time is nearer to linear.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path as FsPath
from typing import Any

import pytest
from tests.client.daemons import end_daemon, environment, start_daemon

FEW, MANY = 10_000, 100_000
MEBIBYTES_MAX = 600
GROWTH_MAX = 30
"""Most that a step may take of the processor for ten times the derivations, times what it took for the fewer."""
PROGRAM = FsPath(__file__).with_name("large_closure.py")


def _measured(count: int, root: FsPath, *options: str) -> dict[str, Any]:
    command = [sys.executable, str(PROGRAM), str(count), str(root), *options]
    done = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, text=True, check=True)
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


@pytest.mark.slow
def test_large_closure(tmp_path: FsPath) -> None:
    few, many = (_measured(count, tmp_path / str(count)) for count in (FEW, MANY))
    small, large = few["seconds"], many["seconds"]
    print(f"\n{MANY} derivations, load {os.getloadavg()[0]:.1f}, {many['mebibytes']:.0f} MiB at most")
    growth = {what: large[what][1] / small[what][1] for what in large}
    for what, grown in growth.items():
        print(f"       {what:<20} {large[what][0]:7.2f} s, {large[what][1]:7.2f} s of CPU, {grown:5.1f} × that of {FEW}")
    for first in ("instantiate, first", "instantiate, again"):
        wall, cpu = (sum(large[what][i] for what in (first, "plan", "confirm")) for i in (0, 1))
        print(f"       {first}, plan, confirm: {wall:.1f} s, {cpu:.1f} s of CPU")
    assert many["mebibytes"] < MEBIBYTES_MAX
    assert {what: grown for what, grown in growth.items() if grown >= GROWTH_MAX} == {}


@pytest.mark.slow
def test_large_closure_through_a_daemon(tmp_path: FsPath) -> None:
    _measured(FEW, tmp_path)
    daemon = start_daemon(str(tmp_path), prepared=False)
    try:
        with open(f"/proc/{daemon.pid}/stat", "rb") as stat:
            begun = _cpu_seconds(stat.read())
        wall = time.perf_counter()
        measured = _measured(FEW, tmp_path, "--confirm")
        wall = time.perf_counter() - wall
        with open(f"/proc/{daemon.pid}/stat", "rb") as stat:
            daemon_cpu = _cpu_seconds(stat.read()) - begun
    finally:
        end_daemon(daemon)
    print(f"\n{FEW} derivations through a daemon, load {os.getloadavg()[0]:.1f}")
    for what, (took, cpu) in measured["seconds"].items():
        print(f"       {what:<20} {took:7.2f} s, {cpu:7.2f} s of the client's CPU")
    print(f"       the whole process    {wall:7.2f} s, {daemon_cpu:7.2f} s of the daemon's CPU")


def _cpu_seconds(stat: bytes) -> float:
    fields = stat.rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
