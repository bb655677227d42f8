"""`kill -9` of daemons, workers, build children and clients, under the load of eight clients, fetches and collections.

    kills.py [--seed N] [--kills N] [--seconds S]

Whenever a daemon was killed, and at the end: all that a client was told of is there, and right; nothing is left over.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Optional

from tests.client.daemons import environment as plain_environment
from tests.daemon.conftest import is_alive
from tests.faults.load import content
from tests.faults.store_check import problems
from tests.faults.sweep import REPOSITORY
from tests.stores import new_store
from tests.waiting import wait_until
from tests.zygote import Forked, said, zygote

from pylightnix.worker.linux import children_of

CLIENTS: Final = 8
KINDS: Final = ("daemon", "worker", "child", "client")
END_SECONDS: Final = 90.0


@dataclass(slots=True)
class Kills:
    """What came of it."""

    seed: int
    killed: Counter[str] = field(default_factory=Counter)
    told: int = 0
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        kinds = ", ".join(f"{self.killed[kind]} {kind}" for kind in KINDS)
        head = f"{sum(self.killed.values())} kills ({kinds}), {self.told} realizations told of, in {self.seconds:.0f} s, seed {self.seed}"
        return "\n".join([head, *(f"  {text}" for text in self.violations[:20]), f"violations: {len(self.violations)}"])


class _Load:
    """A daemon and its clients, all of which can be killed and come again."""

    def __init__(self, folder: str, url: str, result: Kills, chance: random.Random) -> None:
        self.root, self.notes, self.logs = f"{folder}/store", f"{folder}/notes", f"{folder}/logs"
        self.result, self.chance = result, chance
        new_store(self.root)
        os.mkdir(self.notes)
        os.mkdir(self.logs)
        self.seen: set[int] = set()
        self.daemon = self._serve()
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([REPOSITORY, *filter(None, sys.path)])}
        command = [sys.executable, "-m", "tests.faults.load", self.root, f"{folder}/plans", self.notes, url]
        self.forker = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.clients = {number: self._client(number) for number in range(CLIENTS)}

    def _serve(self) -> Forked:
        return zygote().serve(self.root, f"{self.logs}/{len(os.listdir(self.logs))}", plain_environment())

    def _client(self, number: int) -> int:
        assert self.forker.stdin is not None
        assert self.forker.stdout is not None
        self.forker.stdin.write(f"{number} {self.chance.randrange(1 << 32)}\n")
        self.forker.stdin.flush()
        return int(self.forker.stdout.readline())

    def noted(self) -> tuple[set[str], list[str]]:
        """Return what clients were told of and did not have removed, and the violations that they met."""
        told, bad = set(), []
        for name in os.listdir(self.notes):
            gone: set[str] = set()
            with open(f"{self.notes}/{name}", encoding="utf-8") as file:
                for line in file:
                    word, _, rest = line.partition(" ")
                    if word == "told":
                        told |= set(rest.split())
                    elif word == "removing":
                        gone |= set(rest.split())
                    else:
                        bad.append(f"client {name}: {rest.strip()}")
            told -= gone
        return told, bad

    # --- killing -------------------------------------------------------------------------------------

    def _victim(self, kind: str) -> Optional[int]:
        if kind == "daemon":
            return self.daemon.pid
        if kind == "client":
            return self.chance.choice(list(self.clients.values()))
        workers = children_of(self.daemon.pid)
        self.seen |= set(workers)
        found = workers if kind == "worker" else [pid for worker in workers for pid in children_of(worker)]
        self.seen |= set(found)
        return self.chance.choice(found) if found else None

    def kill(self, kind: str) -> bool:
        victim = self._victim(kind)
        if victim is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        self.result.killed[kind] += 1
        if kind == "client":
            number = next(number for number, pid in self.clients.items() if pid == victim)
            self.clients[number] = self._client(number)
        elif kind == "daemon":
            self.daemon.wait(END_SECONDS)
            self._check(settled=False, hashed=False)
            self.daemon = self._serve()
        elif self.daemon.poll() is not None:
            self.result.violations.append(f"dead: the daemon ended with {self.daemon.returncode} when a {kind} was killed")
            self.daemon = self._serve()
        return True

    def _check(self, *, settled: bool, hashed: bool) -> None:
        told, bad = self.noted()
        self.result.told = len(told)
        kills = sum(self.result.killed.values())
        found = [*bad, *problems(self.root, sorted(told), settled=settled, hashed=hashed)]
        self.result.violations += list(dict.fromkeys(f"after {kills} kills: {text}" for text in found))[:20]

    # --- the end -------------------------------------------------------------------------------------

    def end(self) -> None:
        with open(f"{self.notes}-stop", "w", encoding="utf-8"):
            pass
        os.rename(f"{self.notes}-stop", f"{self.notes}/stop")
        try:
            wait_until(lambda: not any(map(is_alive, self.clients.values())), seconds=END_SECONDS)
        except AssertionError:
            self.result.violations.append("hang: clients have not stopped")
        os.unlink(f"{self.notes}/stop")
        assert self.forker.stdin is not None
        assert self.forker.stdout is not None
        self.forker.stdin.close()
        self.forker.wait()
        self.forker.stdout.close()
        for pid in self.clients.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._end_daemon()
        self.daemon = self._serve()  # a start sweeps what the last one that was killed has left
        self._end_daemon()
        self._check(settled=True, hashed=True)
        self.result.violations += [f"left over: process {pid}" for pid in self.seen if is_alive(pid)]
        logs = [said(f"{self.logs}/{name}") for name in os.listdir(self.logs)]
        self.result.violations += [f"log: {log[log.index(word) :][:4000]}" for log in logs for word in ("BUG", "Traceback") if word in log][
            :5
        ]

    def _end_daemon(self) -> None:
        self.daemon.terminate()
        try:
            status = self.daemon.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.result.violations.append("hang: the daemon does not end")
            self.daemon.kill()
            self.daemon.wait()
            return
        if status != 0:
            self.result.violations.append(f"dead: the daemon ended with {status}")


@contextlib.contextmanager
def serving_files() -> Iterator[str]:
    """Serve `content` of every name; yields the URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = content(self.path.rpartition("/")[2])
            with contextlib.suppress(OSError):  # who asked may have been killed
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base's name
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def kill_many(seed: int, kills: int, seconds: float = float("inf"), folder: Optional[str] = None) -> Kills:
    """Kill so many, or as many as the time allows."""
    result, begun = Kills(seed), time.monotonic()
    chance = random.Random(seed)
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(serving_files())
        if folder is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="test-pylightnix-kills-", ignore_cleanup_errors=True))
        load = _Load(folder, url, result, chance)
        try:
            while sum(result.killed.values()) < kills and time.monotonic() < begun + seconds and not result.violations:
                time.sleep(chance.uniform(0.0, 0.25))  # a moment that nobody knows is what is wanted
                kind = chance.choice(KINDS)
                deadline = time.monotonic() + 1.0
                while not load.kill(kind) and time.monotonic() < deadline:
                    time.sleep(0.002)
        finally:
            load.end()
    result.seconds = time.monotonic() - begun
    return result


def main(arguments: Iterable[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    given = parser.parse_args(list(arguments))
    result = kill_many(given.seed, given.kills, given.seconds)
    print(result)
    return int(bool(result.violations))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
