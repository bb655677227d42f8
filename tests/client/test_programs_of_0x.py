"""Programs as they were written for 0.x run unchanged, in one process and through a daemon. They stand in ``tests/programs``."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.client import daemons
from tests.stores import in_child

from pylightnix import StorageSettings

PROGRAMS = sorted((Path(__file__).resolve().parents[1] / "programs").glob("*.py"))


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_in_one_process(program: Path, tmp_path: Path) -> None:
    def run() -> None:
        os.environ["PYLIGHTNIX_ROOT"] = str(tmp_path / "store")
        warnings.simplefilter("error")
        runpy.run_path(str(program), run_name="__main__")

    in_child(run)


@pytest.fixture(scope="module")
def served() -> Iterator[StorageSettings]:
    with daemons.served_store() as S:
        yield S


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_through_a_daemon(program: Path, served: StorageSettings, tmp_path: Path) -> None:
    env = {**daemons.environment(), "PYLIGHTNIX_ROOT": str(served.root)}
    command = [sys.executable, "-W", "error", str(program)]
    ran = subprocess.run(
        command, env=env, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=daemons.SECONDS
    )
    assert ran.returncode == 0, ran.stdout
    assert os.listdir(tmp_path) == [], "nothing is left in the working folder"
