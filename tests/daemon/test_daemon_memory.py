"""What the daemon holds for its clients: each thing once, and no longer than somebody may ask for it."""

from __future__ import annotations

import gc
import hashlib
import os
import re
from pathlib import Path
from typing import Any

import pytest
from tests.daemon import stages
from tests.daemon.conftest import Daemon
from tests.daemon.test_daemon_limits import resident_kib
from tests.daemon.wire_client import WireClient
from tests.waiting import wait_until

from pylightnix.protocol import messages as m
from pylightnix.protocol.errors import NoSuchOperation, ResultDropped
from pylightnix.types import DRef
from pylightnixd.blobs import Blobs, checked

BLOB_BYTES = 3 << 20
FAILURE_BYTES = 900_000


class LargeError(Exception):
    """Of a class that workers can import, so that it travels as it is."""


def fails_at_length(S: Any, dref: DRef, context: Any, rarg: Any) -> Any:
    raise LargeError("x" * FAILURE_BYTES)


def say_fetched(client: WireClient, operation: str) -> None:
    client.socket.sendall(client.connection.send_notification("fetched", m.Fetched(operation=operation)))


def test_d6_a_blob_is_there_once_however_many_have_sent_it() -> None:
    blobs, data = Blobs(), b"x" * 1000
    sha256 = hashlib.sha256(data).hexdigest()
    first = blobs.share(sha256, checked(sha256, bytearray(data)))
    second = blobs.share(sha256, checked(sha256, bytearray(data)))
    assert first is second
    assert blobs.total_bytes == len(data)
    del first, second
    gc.collect()
    assert blobs.total_bytes == 0


def test_d6_builds_that_wait_share_their_blob(tmp_path: Path) -> None:
    payload = os.urandom(BLOB_BYTES)

    def realizer(S: Any, dref: DRef, context: Any, rarg: Any) -> Any:
        return [stages.out(S, str(len(payload)))]

    gate = stages.Gate(tmp_path)
    with Daemon(tmp_path / "store", "--jobs", "1") as daemon, daemon.wait_ready().client() as client, daemon.client() as other:
        holding = client.submit(stages.one(daemon.plans, stages.waits, gate=gate.path))
        gate.wait_hello()
        before = resident_kib(daemon)
        waiting = [who.submit(stages.many(daemon.plans, 40, realizer, who=i)) for i, who in enumerate((client, other))]
        wait_until(lambda: client.status().queued == 80)
        assert resident_kib(daemon) - before < 10 * BLOB_BYTES // 1024, "it holds a blob for each build"
        for operation in waiting:
            client.call("cancel", m.Cancel(operation=operation), m.Done)
        gate.go()
        assert client.wait(holding).ok


def test_d3_a_result_waits_for_whoever_asks_late(daemon: Daemon, client: WireClient, tmp_path: Path) -> None:
    """Though many operations that began later have ended, and its own client has gone meanwhile."""
    gate = stages.Gate(tmp_path)
    quick = stages.one(daemon.plans, stages.plain)
    with daemon.client() as first:
        operation = first.submit(stages.one(daemon.plans, stages.waits, gate=gate.path))
        gate.wait_hello()
        for _ in range(120):
            client.build(quick)
        gate.go()
        assert first.wait(operation).ok
        assert client.call("attach", m.Attach(operation=operation), m.Attached).state == "ended"
    assert client.wait(operation) == m.WaitResult(ok=True, state="done", built=1, settled=1)
    assert len(client.matched(operation)) == 1
    client.call("subscribe", m.Subscribe(operation=operation, credit=1), m.Done)
    assert client.next_notification().params == m.Ended(operation=operation)
    client.call("cancel", m.Cancel(operation=operation), m.Done)
    held = client.status().held
    assert held is not None
    assert held.results == 121
    assert 121 * 1000 < held.results_bytes < held.results_bytes_max
    assert client.ps().ended[0].operation == operation


def test_d3_a_result_goes_when_all_who_asked_have_it(daemon: Daemon, client: WireClient) -> None:
    operation, result = client.build(stages.one(daemon.plans, stages.plain))
    with daemon.client() as other, daemon.client() as stranger:
        assert other.wait(operation) == result
        say_fetched(stranger, operation)  # which it has not asked for
        say_fetched(stranger, "op-never")
        assert stranger.wait(operation) == result
        say_fetched(client, operation)
        say_fetched(other, operation)
        assert len(stranger.matched(operation)) == 1
        say_fetched(stranger, operation)
        for who in (client, other, stranger):
            with pytest.raises(ResultDropped, match=r"ended at .* UTC, its result was fetched by its client"):
                who.wait(operation)
            with pytest.raises(ResultDropped):
                who.call("subscribe", m.Subscribe(operation=operation, credit=1), m.Done)
        with pytest.raises(NoSuchOperation):
            stranger.wait("op-never")
    held = client.status().held
    assert held is not None
    assert (held.results, held.results_bytes) == (0, 0)


def test_d6_failures_go_with_their_result(daemon: Daemon, client: WireClient) -> None:
    before, count = now_kib(daemon), 30
    operation, result = client.build(stages.many(daemon.plans, count, fails_at_length), keep_going=True)
    assert result.failed == count
    rows = client.failed(operation)
    assert sum(len(row.pickled or b"") for row in rows) > count * FAILURE_BYTES
    held = client.status().held
    assert held is not None
    assert held.results_bytes > count * FAILURE_BYTES
    say_fetched(client, operation)
    wait_until(lambda: now_kib(daemon) - before < count * FAILURE_BYTES // 1024 // 4, lambda: now_kib(daemon) - before)


def now_kib(daemon: Daemon) -> int:
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    (found,) = re.findall(r"VmRSS:\s+(\d+) kB", status)
    return int(found)
