"""Removing from a store that a daemon builds in: what is at work stays, all else goes, and no build notices."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from tests.daemon import stages
from tests.daemon.conftest import Daemon
from tests.daemon.wire_client import WireClient, acknowledged
from tests.soundness import check_sound
from tests.waiting import wait_until

from pylightnix import (
    DRef,
    InUse,
    MissingDerivation,
    MissingRealization,
    RRef,
    StorageSettings,
    alldrefs,
    allrrefs,
    catref,
    du,
    find,
    instantiate,
    linkrref,
    lsref,
    realize1,
    rmref,
    rref2dref,
    store_gc,
)
from pylightnix.garb import gc
from pylightnix.protocol import messages as m
from pylightnix.protocol.errors import MessageInvalid

SECONDS = 60


def wait_trash(S: StorageSettings) -> None:
    """Wait until the daemon has unlinked what was removed."""
    wait_until(lambda: not os.listdir(f"{S.root}/trash"))


def built(client: WireClient, S: StorageSettings, name: str = "stage") -> RRef:
    operation, result = client.build(stages.one(S, stages.plain, name))
    assert result.ok
    [[rref]] = client.matched(operation).values()
    return rref


def test_a_store_is_looked_at_and_swept_through_its_daemon(daemon: Daemon, tmp_path: Path) -> None:
    S = daemon.S
    below, above = (realize1(instantiate(lambda r, n=n: _chain(r, n), S=S)) for n in (1, 2))
    assert lsref(above, S) == ["context.json", "out.txt"]
    assert catref(above, ["out.txt"], S) == [rref2dref(above)]
    assert set(du(S)) == {rref2dref(below), rref2dref(above)}
    assert find("link1", newer=-3600, S=S) == [below]
    with pytest.raises(InUse) as caught:
        rmref(below, S)
    assert caught.value.users == {below: [above]}
    assert str(above) in str(caught.value)
    keep = tmp_path / "keep"
    keep.mkdir()
    linkrref(below, str(keep), S=S)
    assert store_gc([], [below], S) == ({rref2dref(above)}, {above})
    gc([str(keep)], interactive=False, S=S)
    assert (list(alldrefs(S)), list(allrrefs(S))) == ([rref2dref(below)], [below])
    rmref(rref2dref(below), S)
    assert (list(alldrefs(S)), list(allrrefs(S))) == ([], [])
    for gone, error in ((below, MissingRealization), (rref2dref(below), MissingDerivation)):
        with pytest.raises(error):
            rmref(gone, S)
    wait_trash(S)
    daemon.stop_soundly(set())


def _chain(r: object, length: int) -> DRef:
    dref = stages.add(r, "link1", stages.plain)  # type: ignore[arg-type]  # a registry
    return dref if length == 1 else stages.add(r, "link2", stages.plain, dep=dref)  # type: ignore[arg-type]  # the same


def test_what_an_operation_works_with_stays(daemon: Daemon, client: WireClient, tmp_path: Path) -> None:
    gate = stages.Gate(tmp_path)

    def stage(r: object) -> DRef:
        low = stages.add(r, "low", stages.plain)  # type: ignore[arg-type]  # a registry
        return stages.add(r, "high", stages.waits, gate=gate.path, dep=low)  # type: ignore[arg-type]  # the same

    other = built(client, daemon.plans, "other")
    closure = instantiate(stage, S=daemon.plans)[1]
    operation = client.submit(closure)
    gate.wait_hello()
    low = next(dref for dref in alldrefs(daemon.S) if dref.endswith("-low"))
    wait_until(lambda: bool(find("low", S=daemon.S)))
    [rref] = find("low", S=daemon.S)
    for ref in (low, rref, closure.targets[0]):
        with pytest.raises(InUse, match=f"operation {operation} of "):
            rmref(ref, daemon.S)
    removed = client.call("remove", m.Remove(drefs=[low], rrefs=[rref, other], only_unused=True), m.Removed)
    assert removed.rrefs == [other], "beside the build, which goes on"
    assert removed.drefs == []
    assert {row.ref for row in removed.kept} == {low, rref}
    gate.go()
    assert client.wait(operation).ok
    told = acknowledged(client.matched(operation).values())
    rmref(closure.targets[0], daemon.S)
    rmref(low, daemon.S)
    assert not told & set(allrrefs(daemon.S))
    wait_trash(daemon.S)
    client.close()
    daemon.stop_soundly(set())


def test_what_a_build_works_with_stays_when_its_operation_is_gone(daemon: Daemon, client: WireClient, tmp_path: Path) -> None:
    gate = stages.Gate(tmp_path)
    closure = stages.one(daemon.plans, stages.waits, gate=gate.path)
    operation = client.submit(closure)
    gate.wait_hello()
    client.call("cancel", m.Cancel(operation=operation), m.Done)
    client.wait(operation)
    [line] = client.ps().builds
    with pytest.raises(InUse, match=f"build {line.build}"):  # for the grace, in which somebody may want it again
        rmref(closure.targets[0], daemon.S)
    wait_until(lambda: not client.ps().builds)
    rmref(closure.targets[0], daemon.S)
    assert list(alldrefs(daemon.S)) == []


def test_a_refused_removal_changes_nothing(daemon: Daemon, client: WireClient) -> None:
    rrefs = [built(client, daemon.plans, f"s{i}") for i in range(3)]
    unknown = RRef(f"rref:{'0' * 32}-{rref2dref(rrefs[0])[5:]}")
    with pytest.raises(MissingRealization):
        client.call("remove", m.Remove(rrefs=[*rrefs, unknown]), m.Removed)
    assert set(allrrefs(daemon.S)) == set(rrefs)
    with pytest.raises(MessageInvalid):
        client.call("remove", m.Remove(rrefs=["rref:x"]), m.Removed)
    assert client.call("remove", m.Remove(), m.Removed) == m.Removed(drefs=[], rrefs=[])
    removed = client.call("remove", m.Remove(rrefs=[*rrefs, unknown], only_unused=True), m.Removed)
    assert removed == m.Removed(drefs=[], rrefs=sorted(rrefs))


def test_killed_right_after_a_removal_nothing_comes_back(tmp_path: Path) -> None:
    with Daemon(tmp_path / "store").wait_ready() as daemon:
        with daemon.client() as client:
            kept = built(client, daemon.plans, "kept")
            gone = [built(client, daemon.plans, f"s{i}") for i in range(5)]
            client.call("remove", m.Remove(drefs=[rref2dref(rref) for rref in gone]), m.Removed)
        daemon.kill()
    assert list(allrrefs(daemon.S)) == [kept]
    check_sound(daemon.S, [kept])


@pytest.mark.parametrize("rounds", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_builds_and_removals_of_the_same_things_at_once(tmp_path: Path, rounds: int) -> None:
    """However they meet, every operation succeeds, and the store is sound."""
    with Daemon(tmp_path / "store", "--jobs", "2").wait_ready() as daemon:
        closure = stages.layers(daemon.plans, 12, 4)
        done = threading.Event()
        removed: list[int] = []

        def remove_all() -> None:
            with daemon.client() as client:
                while not done.is_set():
                    drefs, rrefs = list(map(str, alldrefs(daemon.S))), list(map(str, allrrefs(daemon.S)))
                    answer = client.call("remove", m.Remove(drefs=drefs, rrefs=rrefs, only_unused=True), m.Removed)
                    removed.append(len(answer.rrefs))

        remover = threading.Thread(target=remove_all)
        remover.start()
        try:
            with daemon.client() as client:
                for _ in range(rounds):
                    operation, result = client.build(closure)
                    assert result.ok, client.failed(operation)
                    assert len(client.matched(operation)) == 12
        finally:
            done.set()
            remover.join(SECONDS)
        assert not remover.is_alive()
        assert sum(removed) > 0, "it has removed something"
        wait_trash(daemon.S)
        daemon.stop_soundly(set())
