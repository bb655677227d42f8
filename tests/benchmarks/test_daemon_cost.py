"""What a trivial stage costs through the daemon, printed beside a loop of fork, write, fsync, rename, commit.

Run with ``make bench``. Figures are printed, never asserted.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path as FsPath

import pytest
from tests.client.daemons import end_daemon, environment, start_daemon

COUNT = 1_000
PROGRAM = f"""
import os, sys, time
from pylightnix import Path, instantiate, match_latest, mkSS, mkconfig, mkdrv, realize
from tests.benchmarks.trivial import trivial

def main(r):
    return [mkdrv(mkconfig({{"name": f"stage-{{i}}", "number": i}}), match_latest(), trivial, r) for i in range({COUNT})]

begun = time.perf_counter()
realize(instantiate(main, S=mkSS(sys.argv[1])))
print(time.perf_counter() - begun)
"""

# In an interpreter of its own: a fork costs what the forking process has in memory.
LOOP = f"""
import os, sqlite3, sys, time
folder = sys.argv[1]
begun = time.perf_counter()
os.mkdir(folder)
db = sqlite3.connect(folder + "/index.sqlite", isolation_level=None)
db.execute("PRAGMA journal_mode = WAL")
db.execute("CREATE TABLE made (name TEXT PRIMARY KEY)")
for number in range({COUNT}):
    draft = f"{{folder}}/{{number}}.tmp"
    os.mkdir(draft)
    pid = os.fork()
    if pid == 0:
        with open(draft + "/artifact", "w") as file:
            file.write(str(number))
            file.flush()
            os.fsync(file.fileno())
        os._exit(0)
    os.waitpid(pid, 0)
    os.rename(draft, f"{{folder}}/{{number}}")
    db.execute("INSERT INTO made VALUES (?)", (str(number),))
print(time.perf_counter() - begun)
"""


def _run(program: str, argument: str) -> tuple[float, float]:
    """Return how long a program took by its own clock, and as a whole process."""
    begun = time.perf_counter()
    command = [sys.executable, "-c", program, argument]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    return float(done.stdout), time.perf_counter() - begun


@pytest.mark.slow
def test_trivial_stages_beside_a_fork_loop(tmp_path: FsPath) -> None:
    root = str(tmp_path / "store")
    daemon = start_daemon(root, prepared=False)
    try:
        bare, _ = _run(LOOP, str(tmp_path / "bare"))
        rows = [("cold", *_run(PROGRAM, root))] + [("warm", *_run(PROGRAM, root)) for _ in range(3)]
    finally:
        end_daemon(daemon)
    print(f"\n{COUNT} stages; fork loop {bare:.2f} s ({bare / COUNT * 1e6:.0f} µs each)")
    for what, inside, whole in rows:
        print(f"       {what} {inside:7.3f} s ({inside / bare:5.2f} × the loop), as a whole process {whole:.3f} s")
