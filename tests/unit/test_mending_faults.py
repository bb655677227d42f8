"""Mending on a disk without a free byte, and mending that is killed in the middle."""

from __future__ import annotations

import os
from pathlib import Path as FsPath

import pytest
from tests.soundness import check_sound
from tests.stores import needs_mounts, new_store, stage, writes
from tests.unit.test_full_disk import fill, on_a_small_disk

from pylightnix import DRef, Registry, RRef, StorageSettings, allrrefs, dirrm, instantiate, realize1, rref2path
from pylightnix.remote import mend
from pylightnix.storage import store_layout
from pylightnix.store.faults import set_hook
from pylightnix.store.inspection import Damage
from pylightnix.store.mending import Outcome
from pylightnix.store.mending import mend as mend_in
from pylightnix.store.store import open_store_alone
from pylightnix.verification import verify

pytestmark = pytest.mark.embedded_only("it fills a disk, or kills the process that mends")


def main(r: Registry) -> DRef:
    return stage(r, "above", of=stage(r, "below", realizer=writes({"out.txt": "text"})))


def damaged(S: StorageSettings) -> RRef:
    realize1(instantiate(main, S=S))
    [below] = [rref for rref in allrrefs(S) if rref.endswith("-below")]
    path = FsPath(rref2path(below, S), "out.txt")
    path.chmod(0o644)
    path.write_text("txet")
    path.chmod(0o444)
    return below


@needs_mounts
@pytest.mark.parametrize("what", ["bytes", "inodes"])
def test_on_a_full_disk(tmp_path: FsPath, what: str) -> None:
    def run(S: StorageSettings) -> None:
        below = damaged(S)
        fill(S, **({} if what == "bytes" else {"but_inodes": 0}))
        report = verify([], S, jobs=1)
        assert [(rref, found.damage) for rref, found in report.damaged.items()] == [(below, Damage.tree)]
        (mended,) = mend([below], S)
        assert mended.outcome is Outcome.quarantined
        assert mended.moved_to is not None
        assert os.path.isdir(mended.moved_to)
        assert below not in list(allrrefs(S))
        assert verify([], S, jobs=1).damaged == {}

    on_a_small_disk(tmp_path, run)


@needs_mounts
def test_on_a_disk_that_fills_while_the_store_is_held(tmp_path: FsPath) -> None:
    """As a daemon does: the log of the index has to grow, and there is no room for it."""

    def run(S: StorageSettings) -> None:
        below = damaged(S)
        with open_store_alone(store_layout(S), "test") as store:
            store.index.checkpoint()  # it has no room of its own in its log
            fill(S)
            (found,) = mend_in(store, [below], {})
            assert found.outcome is Outcome.quarantined
            assert store.index.valid_rrefs() != []
            assert below not in store.index.valid_rrefs()

    on_a_small_disk(tmp_path, run)


@needs_mounts
def test_what_is_mended_in_place_on_a_full_disk(tmp_path: FsPath) -> None:
    def run(S: StorageSettings) -> None:
        realize1(instantiate(main, S=S))
        for rref in allrrefs(S):
            os.chmod(rref2path(rref, S), 0o755)
            os.unlink(f"{rref2path(rref, S)}/context.json")
        fill(S)
        assert {mended.outcome for mended in mend(list(allrrefs(S)), S)} == {Outcome.mended}
        assert verify([], S, jobs=1).is_sound

    on_a_small_disk(tmp_path, run)


def test_a_kill_between_the_move_and_the_row(tmp_path: FsPath) -> None:
    S = new_store(tmp_path / "store")
    below = damaged(S)
    pid = os.fork()
    if pid == 0:
        set_hook(lambda point: os._exit(9) if point == "quarantined" else None)
        try:
            mend([below], S)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert len(os.listdir(store_layout(S).quarantine_folders[0])) == 1
    report = verify([], S, jobs=1)
    assert {rref: found.damage for rref, found in report.damaged.items()} == {below: Damage.missing}
    (mended,) = mend([below], S)
    assert mended.outcome is Outcome.dropped
    assert realize1(instantiate(main, S=S)) in list(allrrefs(S))
    assert verify([], S, jobs=1).is_sound
    check_sound(S)
    dirrm(str(S.root))
