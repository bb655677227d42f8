"""Verifying and mending a store that a daemon builds in: builds go on beside it, and what they work with stays."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from tests.daemon import stages
from tests.daemon.conftest import Daemon
from tests.daemon.wire_client import WireClient
from tests.waiting import wait_until

from pylightnix import DRef, RRef, StorageSettings, allrrefs, find, instantiate, rref2path
from pylightnix.protocol import messages as m
from pylightnix.protocol.errors import MessageInvalid
from pylightnix.verification import verify

SECONDS = 60


def damage(S: StorageSettings, rref: RRef) -> None:
    path = Path(rref2path(rref, S), "out.txt")
    path.chmod(0o644)
    path.write_text("damaged")
    path.chmod(0o444)


def mended(client: WireClient, *rrefs: RRef) -> list[tuple[str, str, str]]:
    answer = client.call("mend", m.Mend(rrefs=list(rrefs)), m.Mended)
    assert [row.rref for row in answer.mended] == list(rrefs)
    assert all((row.moved_to is not None and os.path.isdir(row.moved_to)) == (row.outcome == "quarantined") for row in answer.mended)
    return [(row.outcome, row.damage, row.detail) for row in answer.mended]


def test_what_an_operation_works_with_stays(daemon: Daemon, client: WireClient, tmp_path: Path) -> None:
    gate = stages.Gate(tmp_path)

    def stage(r: object) -> DRef:
        low = stages.add(r, "low", stages.plain)  # type: ignore[arg-type]  # a registry
        return stages.add(r, "high", stages.waits, gate=gate.path, dep=low)  # type: ignore[arg-type]  # the same

    S = daemon.S
    operation, result = client.build(stages.one(daemon.plans, stages.plain, "other"))
    assert result.ok
    [[other]] = client.matched(operation).values()
    operation = client.submit(instantiate(stage, S=daemon.plans)[1])
    gate.wait_hello()
    wait_until(lambda: bool(find("low", S=S)))
    [low] = find("low", S=S)
    for rref in (low, other):
        damage(S, rref)
    report = verify([], S, jobs=2)  # while it builds
    assert sorted(report.damaged) == sorted([low, other])
    [(busy, *_, who), (moved, kind, _)] = mended(client, low, other)
    assert (busy, moved, kind) == ("busy", "quarantined", "tree")
    assert f"operation {operation} of " in who
    gate.go()
    assert client.wait(operation).ok
    [(outcome, *_)] = mended(client, low)
    assert outcome == "quarantined"
    assert not {low, other} & set(allrrefs(S))
    client.close()


def test_bad_requests(daemon: Daemon, client: WireClient) -> None:
    unknown = RRef(f"rref:{'0' * 32}-{'1' * 32}-x")
    assert mended(client, unknown)[0][:2] == ("dropped", "missing")
    assert mended(client) == []
    bad: list[list[str]] = [[f"dref:{'0' * 32}-x"], [unknown] * 101, ["rref:../../x"]]
    for rrefs in bad:
        with pytest.raises(MessageInvalid):
            client.call("mend", m.Mend(rrefs=rrefs), m.Mended)


def test_builds_damage_and_mending_at_once(tmp_path: Path) -> None:
    """However they meet, every operation succeeds, and in the end all is whole."""
    with Daemon(tmp_path / "store", "--jobs", "2").wait_ready() as daemon:
        closure = stages.layers(daemon.plans, 8, 4)
        done = threading.Event()
        moved: list[str] = []

        def mend_all() -> None:
            with daemon.client() as client:
                while not done.is_set():
                    rrefs = list(allrrefs(daemon.S))[:3]
                    for rref in rrefs:
                        try:
                            damage(daemon.S, rref)
                        except FileNotFoundError:
                            continue
                    moved.extend(outcome for outcome, *_ in mended(client, *rrefs))

        mender = threading.Thread(target=mend_all)
        mender.start()
        try:
            with daemon.client() as client:
                for _ in range(4):
                    operation, result = client.build(closure)
                    assert result.ok, client.failed(operation)
        finally:
            done.set()
            mender.join(SECONDS)
        assert not mender.is_alive()
        with daemon.client() as client:
            for rref in verify([], daemon.S, jobs=2).damaged:
                assert mended(client, rref)[0][0] in ("quarantined", "dropped")
            assert client.build(closure)[1].ok
        report = verify([], daemon.S, jobs=2)
        assert (report.damaged, report.configs) == ({}, {})
        assert "quarantined" in moved
