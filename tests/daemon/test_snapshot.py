"""The daemon copies its index once a day, while it is idle."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest
import trio
from tests.stores import new_store, stage

from pylightnix import instantiate, realize1
from pylightnix.storage import store_layout
from pylightnix.store.store import open_store_alone
from pylightnixd.snapshot import EVERY_SECONDS, Snapshots


def test_a_snapshot_is_made_when_it_is_due(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    S = new_store(tmp_path / "store")
    layout = store_layout(S)
    with open_store_alone(layout, "test") as store:
        trio.run(Snapshots(store).take_if_due)
    assert "index.sqlite.snapshot" not in os.listdir(layout.state)  # there is nothing to be lost
    rref = realize1(instantiate(stage, S=S))
    with open_store_alone(layout, "test") as store:
        snapshots = Snapshots(store)
        trio.run(snapshots.take_if_due)
        first = os.stat(layout.snapshot)
        with sqlite3.connect(layout.snapshot) as db:
            assert db.execute("SELECT rref, state FROM realization").fetchall() == [(rref, 1)]
        trio.run(snapshots.take_if_due)
        assert os.stat(layout.snapshot).st_ino == first.st_ino
        os.utime(layout.snapshot, (first.st_mtime - EVERY_SECONDS - 1,) * 2)
        trio.run(snapshots.take_if_due)
        assert os.stat(layout.snapshot).st_ino != first.st_ino
        os.unlink(layout.snapshot)
        os.mkdir(layout.snapshot)
        (Path(layout.snapshot) / "in").write_text("")
        os.utime(layout.snapshot, (0, 0))
        trio.run(snapshots.take_if_due)
        assert "cannot copy the index" in caplog.text
        assert not os.listdir(layout.state).count("index.sqlite.snapshot.new")
