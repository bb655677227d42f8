"""Errors that leave it open what is on the disk: neither a commit in doubt nor a tree that cannot be looked at is taken for gone."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Optional

import pytest
from tests.faults import shim
from tests.faults.store_check import problems, read_index
from tests.faults.sweep import REPOSITORY
from tests.stores import new_store, refuses, stage

from pylightnix import Realizer, RRef, StorageSettings, allrrefs, instantiate, realize1
from pylightnix.errors import StoreError
from pylightnix.storage import store_layout
from pylightnix.store.store import another_view, open_store


def built(S: StorageSettings, realizer: Optional[Realizer] = None) -> RRef:
    return realize1(instantiate(lambda r: stage(r, realizer=realizer), S=S))


def preloaded(function: str, *arguments: str) -> None:
    """Call a function of this module in a process whose calls can be made to fail, which is killed when it returns."""
    code = f"import sys; from tests.faults import test_doubtful as t; t.{function}(*sys.argv[1:])"
    env = shim.environment(FAULT_LIBRARY=shim.library(), PYTHONPATH=os.pathsep.join([REPOSITORY, *filter(None, sys.path)]))
    done = subprocess.run([sys.executable, "-c", code, *arguments], env=env, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


def calls_of(root: str) -> shim.Calls:
    calls = shim.Calls(os.environ["FAULT_LIBRARY"])
    calls.begin(root)
    return calls


def remove_in_vain(root: str, cure: str) -> None:
    """Fail to remove what there is, and look at it afterwards, on one connection as a daemon has."""
    S, calls = new_store(root), calls_of(root)
    with open_store(store_layout(S)) as store:
        [rref] = store.index.valid_rrefs()
        calls.arm(shim.Fault(("fdatasync",), 1, 5, onwards=True))
        with pytest.raises(Exception, match="disk I/O error"), store.index.transaction(durable=True):
            store.index.delete([rref], store.owner.id)
        if cure:
            calls.disarm()
            assert store.index.valid_rrefs() == [rref]
        else:
            with pytest.raises(Exception, match="disk I/O error"):
                store.index.valid_rrefs()
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_removal_that_failed_does_not_come_back(S: StorageSettings) -> None:
    rref = built(S)
    preloaded("remove_in_vain", str(S.root), "cure")
    assert read_index(str(S.root))[rref].state == 1
    assert list(allrrefs(S)) == [rref]
    assert problems(str(S.root), [rref]) == []


def test_nothing_is_told_while_it_may_come_back(S: StorageSettings) -> None:
    built(S)
    preloaded("remove_in_vain", str(S.root), "")


def look_at_what_cannot_be_seen(root: str) -> None:
    """A server of files that has lost a handle, for a moment."""
    S, calls = new_store(root), calls_of(root)
    [rref] = list(allrrefs(S))
    for error in shim.KINDS["stat"]:
        calls.arm(shim.Fault(("stat",), 0, error))
        assert built(S, refuses) == rref
        for nth in range(1, calls.disarm() + 1):
            calls.arm(shim.Fault(("stat",), nth, error, onwards=True))
            try:
                assert built(S, refuses) == rref
            except StoreError:
                pass  # it is said, and not built again
            finally:
                calls.disarm()
            assert list(allrrefs(S)) == [rref]
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_tree_that_cannot_be_seen_is_not_gone(S: StorageSettings, tmp_path: Path) -> None:
    rref = built(S)
    before = os.stat(store_layout(S).realization(rref)).st_ino
    preloaded("look_at_what_cannot_be_seen", str(S.root))
    assert os.stat(store_layout(S).realization(rref)).st_ino == before
    list(allrrefs(S))
    assert problems(str(S.root), [rref]) == []


def write_when_files_open_again(root: str) -> None:
    calls = calls_of(root)
    with open_store(store_layout(new_store(root))) as store:
        for nth in range(1, 5):
            index = another_view(store).index
            calls.arm(shim.Fault(("open",), nth, errno.ENOSPC))
            with contextlib.suppress(sqlite3.Error), index.transaction(durable=True):
                index.note_code("0" * 64, str(nth))
            calls.disarm()
            with index.transaction(durable=True):
                index.note_code("0" * 64, str(nth))
        os.kill(os.getpid(), signal.SIGKILL)


def test_an_index_that_could_not_be_opened_once_can_be_written_again(S: StorageSettings) -> None:
    built(S)
    preloaded("write_when_files_open_again", str(S.root))
