"""What a daemon cannot remove: it serves, builds and collects, says so once, and goes on after a restart."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.daemon import stages
from tests.daemon.conftest import Daemon
from tests.soundness import check_sound
from tests.stores import needs_root, new_store
from tests.waiting import wait_until

from pylightnix import allrrefs, mkSS, realize1
from pylightnix.garb import gc
from pylightnix.storage import store_layout
from pylightnix.store.set_aside import all_set_aside, retry_set_aside


def immutable(*paths: str) -> None:
    for path in paths:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8"):
            pass
        subprocess.run(["chattr", "+i", path], check=True)


def lines_of(daemon: Daemon) -> list[str]:
    return [line for line in daemon.lines if "to be rid of it" in line]


@needs_root
def test_leftovers_keep_no_daemon_from_its_work(tmp_path: Path) -> None:
    root = tmp_path / "store"
    layout = store_layout(new_store(root))
    owner = f"{layout.tmp}/1-0123456789ab"
    try:
        immutable(f"{layout.trash}/zz/d/f", f"{owner}/0/out/f")
        os.makedirs(f"{layout.trash}/plain/folder")
        for life in range(2):
            with Daemon(root) as daemon:
                S = daemon.wait_ready().S
                rref = realize1(stages.one(S, stages.leaves_immutable if life == 0 else stages.plain))
                gc([], interactive=False, verbose=False, S=S)
                assert list(allrrefs(S)) == []
                wait_until(lambda: not os.listdir(layout.trash))
                wait_until(lambda: len(all_set_aside(layout)) == 3)
                assert not os.path.exists(owner)
                if life == 0:
                    (log,) = [log for log in os.scandir(f"{layout.state}/logs") if "-b-" in log.name]
                    assert "pylightnixd: cannot remove " in Path(log.path).read_text(encoding="utf-8"), rref
                command = [sys.executable, "-m", "pylightnix_client", "--store", str(root), "status"]
                said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                assert len(re.findall("cannot be removed .*; run: sudo chattr", said)) == 3, said
                daemon.stop()
                assert len(lines_of(daemon)) == (0 if life else 3), daemon.lines
    finally:
        subprocess.run(["chattr", "-R", "-f", "-i", str(root)], check=False)
    assert retry_set_aside(layout) == []
    check_sound(mkSS(root))
