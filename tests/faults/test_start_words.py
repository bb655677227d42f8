"""A daemon that cannot start says what the system refused it, in one line and with an exit status, and no traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.faults import shim


@pytest.mark.parametrize("fault", ["pipe2:1+:EMFILE", "open:12+:EIO"])
def test_it_says_what_was_refused(fault: str, tmp_path: Path) -> None:
    parsed = shim.Fault.parse(fault)
    log = tmp_path / "log"
    env = shim.environment(
        FAULT_KINDS=",".join(parsed.kinds),
        FAULT_NTH=str(parsed.nth),
        FAULT_ERROR=str(parsed.error),
        FAULT_FOLDER=str(tmp_path / "store"),
        FAULT_LOG=str(log),
        **({"FAULT_ONWARDS": "1"} if parsed.onwards else {}),
        **({"FAULT_ANYWHERE": "1"} if parsed.kinds == ("pipe2",) else {}),
    )
    command = [sys.executable, "-m", "pylightnixd", "--store", str(tmp_path / "store"), "--foreground", "--exit-when-idle", "0"]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert log.exists(), "the call was not made"
    assert ended.returncode > 0, ended.stderr
    assert "Traceback" not in ended.stderr, ended.stderr
    assert "BUG" not in ended.stderr, ended.stderr
