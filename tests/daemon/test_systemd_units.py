"""The units that come with the daemon are ones that systemd accepts."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNITS = Path(__file__).resolve().parents[2] / "systemd"


@pytest.mark.parametrize("kind", ["system", "user"])
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_accepts_the_units(kind: str, tmp_path: Path) -> None:
    for source in (UNITS / kind).iterdir():
        # Verification wants the program to be there; where it is differs by machine.
        text = re.sub(r"^ExecStart=\S+", f"ExecStart={sys.executable}", source.read_text(), flags=re.MULTILINE)
        (tmp_path / source.name).write_text(text)
    paths = sorted(map(str, tmp_path.iterdir()))
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}  # which a session would have
    command = ["systemd-analyze", f"--{kind}", "--man=no", "verify", *paths]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    said = [line for line in done.stderr.splitlines() if "pylightnix" in line]
    assert (done.returncode, said) == (0, []), done.stderr


@pytest.mark.parametrize("kind", ["system", "user"])
def test_stopping_takes_no_longer_than_systemd_waits(kind: str) -> None:
    text = (UNITS / kind / "pylightnixd.service").read_text()
    drain = re.search(r"--drain (\d+)", text)
    stop = re.search(r"^TimeoutStopSec=(\d+)", text, re.MULTILINE)
    assert drain is not None
    assert stop is not None
    assert int(stop[1]) >= int(drain[1]) + 20
