"""What the daemon holds for its clients: each thing once, and no longer than somebody may ask for it."""

from __future__ import annotations

import gc
import hashlib
import os
from pathlib import Path
from typing import Any

from tests.daemon import stages
from tests.daemon.conftest import Daemon
from tests.daemon.test_daemon_limits import resident_kib
from tests.waiting import wait_until

from pylightnix.protocol import messages as m
from pylightnix.types import DRef
from pylightnixd.blobs import Blobs, checked

BLOB_BYTES = 3 << 20


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
