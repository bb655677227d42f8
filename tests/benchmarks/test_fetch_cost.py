"""What fetching costs, printed beside ``wget && sha256sum`` and ``curl | sha256sum``, one file after the other, in the same run.

Run with ``make bench``. The server is nginx on the loopback; for latency, a small server that waits 50 ms before each answer. Each
way leaves the files on the disk with their SHA-256 compared. What is asserted is what was promised: not slower than wget, five times
faster than it with latency, and memory that does not grow with the file. Ways take turns, and the best of the rounds counts, so
that a neighbour's load hits all of them. Stages, which also put what they fetch into a store, durably, are printed beside wget, and
nothing is asserted of them: without a daemon they are built one after the other.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.client.daemons import served_store, short_store
from tests.fetch.servers import Nginx, running_nginx, scripted
from tests.fetch.servers import Request as AskedFor

from pylightnix import DRef, Registry, fetchurl2, instantiate, mknode, realize1

pytestmark = pytest.mark.slow

MEBI = 1 << 20
ROUNDS = 3

# In a process of its own, so that its start counts, and its memory can be told.
OURS = """
import json, re, sys
import trio
from pylightnix.fetch import Checksum, FetchEnvironment, FetchSpec
from pylightnix.fetch.fetcher import running_fetcher

files, folder = json.load(sys.stdin), sys.argv[1]

async def main():
    async with running_fetcher(f"{folder}/fetch") as fetcher, trio.open_nursery() as nursery:
        for url, sha256, target in files:
            nursery.start_soon(one, fetcher, FetchSpec((url,), (Checksum("sha256", sha256),)), target)

async def one(fetcher, spec, target):
    async with fetcher.fetched(spec, FetchEnvironment()) as file:
        await trio.to_thread.run_sync(file.place, target)

trio.run(main)
# Not getrusage: that begins with what the process had that started this one.
print(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
"""

Files = list[tuple[str, str, str]]
"""(URL, SHA-256, where to)"""


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    for program in ("wget", "curl", "sha256sum"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    with running_nginx(tmp_path_factory.mktemp("nginx")) as server:
        yield server


def with_ours(files: Files, folder: Path) -> int:
    """Return the peak of its memory in KiB."""
    import json

    child = subprocess.run([sys.executable, "-c", OURS, str(folder)], input=json.dumps(files), capture_output=True, text=True, check=True)
    return int(child.stdout)


def with_program(command: str) -> Callable[[Files, Path], int]:
    def run(files: Files, folder: Path) -> int:
        script = "set -e; while read -r url sha target; do " + command + '; echo "$sha  $target" | sha256sum --quiet --check; done'
        lines = "".join(f"{url} {sha} {target}\n" for url, sha, target in files)
        subprocess.run(["bash", "-c", script], input=lines, text=True, check=True)
        return 0

    return run


WAYS = {
    "pylightnix": with_ours,
    "wget": with_program('wget -q -O "$target" "$url"'),
    "curl": with_program('curl -sf -o "$target" "$url"'),
}


def compare(what: str, files: Callable[[Path], Files], folder: Path, rounds: int = ROUNDS) -> dict[str, float]:
    """Run all ways in turns and return the seconds of the best round of each."""
    best: dict[str, float] = {}
    peak = 0
    for number in range(rounds):
        for way, fetch in WAYS.items():
            target = folder / f"{way}{number}"
            target.mkdir()
            wanted = files(target)
            began = time.perf_counter()
            used = fetch(wanted, target)
            seconds = time.perf_counter() - began
            peak = max(peak, used)
            best[way] = min(seconds, best.get(way, seconds))
            assert len(os.listdir(target)) >= len(wanted)
            shutil.rmtree(target)
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    figures = ", ".join(f"{way} {seconds:.2f} s" for way, seconds in best.items())
    print(f"\n{what}: {figures} (best of {rounds}); peak memory of pylightnix {peak // 1024} MiB; load {load} on {os.cpu_count()} cores")
    return best


def compare_stages(what: str, url: str, sums: dict[str, str]) -> None:
    """Print what the same files cost as stages, each in a fresh store, beside wget."""

    def files(salt: str, r: Registry) -> DRef:
        return mknode(r, {"files": [fetchurl2(f"{url}/{name}", sha, salt=salt, r=r) for name, sha in sums.items()]})

    figures: dict[str, float] = {}
    for way, store in (("stages embedded", short_store), ("stages through a daemon", served_store)):
        with store() as S:
            began = time.perf_counter()
            realize1(instantiate(files, "", S=S))
            figures[way] = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        WAYS["wget"]([(f"{url}/{name}", sha, f"{folder}/{name}") for name, sha in sums.items()], Path(folder))
        figures["wget"] = time.perf_counter() - began
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"\n{what}: {', '.join(f'{way} {seconds:.2f} s' for way, seconds in figures.items())}; load {load} on {os.cpu_count()} cores")


def small_files(root: Path) -> list[tuple[str, str]]:
    found = []
    for number in range(200):
        content = secrets.token_bytes(MEBI)
        (root / f"small{number}").write_bytes(content)
        found.append((f"small{number}", hashlib.sha256(content).hexdigest()))
    return found


def test_many_small_files(nginx: Nginx, tmp_path: Path) -> None:
    names = small_files(nginx.www)
    best = compare("200 files of 1 MiB", lambda to: [(f"{nginx.url}/{name}", sha, f"{to}/{name}") for name, sha in names], tmp_path)
    assert best["pylightnix"] <= best["wget"]
    compare_stages("200 files of 1 MiB", nginx.url, dict(names))


def test_many_small_files_with_latency(tmp_path: Path) -> None:
    contents = {f"/small{number}": secrets.token_bytes(MEBI) for number in range(200)}
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}

    def handler(request: AskedFor) -> None:
        server.done.wait(0.05)
        request.answer(200, contents[request.target])

    with scripted(handler) as server:
        compare_stages("200 files of 1 MiB, 50 ms before each", server.url, {name[1:]: sha for name, sha in sums.items()})
        files = [(f"{server.url}{name}", sha, name) for name, sha in sums.items()]
        best = compare(
            "200 files of 1 MiB, 50 ms before each", lambda to: [(url, sha, f"{to}{name}") for url, sha, name in files], tmp_path
        )
    assert best["pylightnix"] * 5 <= best["wget"]


def test_one_large_file(nginx: Nginx, tmp_path: Path) -> None:
    block = secrets.token_bytes(MEBI)
    digest = hashlib.sha256()
    with open(nginx.www / "large", "wb") as file:
        for number in range(1024):
            piece = number.to_bytes(4, "big") + block[4:]
            file.write(piece)
            digest.update(piece)
    sha = digest.hexdigest()
    best = compare("one file of 1 GiB", lambda to: [(f"{nginx.url}/large", sha, f"{to}/large")], tmp_path, rounds=2)
    os.unlink(nginx.www / "large")
    assert best["pylightnix"] <= best["wget"]


def test_memory_does_not_grow_with_the_file(nginx: Nginx, tmp_path: Path) -> None:
    peaks = []
    for mebibytes in (1, 512):
        block = secrets.token_bytes(MEBI)
        (nginx.www / "grown").write_bytes(block * mebibytes)
        sha = hashlib.sha256(block * mebibytes).hexdigest()
        peaks.append(with_ours([(f"{nginx.url}/grown", sha, f"{tmp_path}/grown{mebibytes}")], tmp_path) / 1024)
    print(f"\npeak memory: {peaks[0]:.1f} MiB for 1 MiB, {peaks[1]:.1f} MiB for 512 MiB")
    assert peaks[1] < peaks[0] + 16
