"""`kill -9` of a daemon in the middle of its work: nothing that was acknowledged is lost, and nothing of the rest is left."""

from __future__ import annotations

import os
import random
import select
import threading
from pathlib import Path

import pytest
from tests.daemon import stages
from tests.daemon.conftest import Daemon, is_alive
from tests.daemon.wire_client import HungUp, acknowledged, environment

from pylightnix import RRef
from pylightnix.protocol.errors import ProtocolError
from pylightnix.worker.linux import children_of


def build_until_killed(daemon: Daemon, journal: Path, count: int, kill_after: int) -> tuple[set[RRef], list[int]]:
    """Build more and more of `count` stages; kill the daemon in the middle; return what was acknowledged, and its workers."""
    told: set[RRef] = set()
    env = environment()
    closures = [stages.layers(daemon.plans, size, 8, stages.journals, journal=str(journal)) for size in range(10, count + 1, 10)]

    def build() -> None:
        try:
            with daemon.client() as client:
                for closure in closures:
                    operation = client.submit(closure, env)
                    assert client.wait(operation).ok
                    told.update(acknowledged(client.matched(operation).values()))
        except (HungUp, OSError, ProtocolError):
            pass

    builder = threading.Thread(target=build)
    builder.start()
    fd = os.open(journal, os.O_RDWR)
    try:
        seen = 0
        while seen < kill_after:
            assert select.select([fd], [], [], 60)[0]
            seen += os.read(fd, 4096).count(b"\n")
        workers = children_of(daemon.process.pid)
        daemon.kill()
        builder.join()
    finally:
        os.close(fd)
    return told, workers


def survive(tmp_path: Path, count: int, rounds: int) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    for number in range(rounds):
        folder = tmp_path / str(number)
        folder.mkdir()
        journal = folder / "journal"
        os.mkfifo(journal)
        with Daemon(folder / "store", "--jobs", "2") as daemon:
            told, workers = build_until_killed(daemon.wait_ready(), journal, count, chance.randrange(1, count))
        with Daemon(folder / "store", "--jobs", "2") as daemon:
            daemon.wait_ready()
            assert workers
            assert not [pid for pid in workers if is_alive(pid)]
            fd = os.open(journal, os.O_RDWR | os.O_NONBLOCK)
            with daemon.client() as client:
                operation, result = client.build(stages.layers(daemon.plans, count // 10 * 10, 8, stages.journals, journal=str(journal)))
                assert result.ok
                assert result.reused >= len(told)
                matched = acknowledged(client.matched(operation).values())
                assert matched >= told
            os.close(fd)
            daemon.stop_soundly(told | matched)
            assert len(os.listdir(os.path.join(daemon.root, "tmp"))) <= 1


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    survive(tmp_path, 300, 3)


@pytest.mark.slow
def test_kill_9_again_and_again(tmp_path: Path) -> None:
    survive(tmp_path, 300, 20)
