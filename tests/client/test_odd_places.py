"""Programs in odd places: beside files with names of Python's modules, in folders that are gone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.client.daemons import environment

PROGRAM = """
from pylightnix import autostage, selfref
@autostage(name="a", out=[selfref, "out"])
def a(out):
    import subprocess
    with open(out, "w") as file:
        file.write(subprocess.run(["echo", "works"], capture_output=True, text=True).stdout)
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-P", "-m", "pylightnix_client", "--store", str(folder / "store"), *arguments]
    return subprocess.run(argv, env=environment(), cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("options", [(), ("--no-daemon",)])
def test_files_with_names_of_pythons_modules_do_no_harm(tmp_path: Path, options: tuple[str, ...]) -> None:
    for name in ("select", "queue", "types", "json", "random", "socket", "ctypes", "trio", "click", "httpx"):
        (tmp_path / f"{name}.py").write_text("OWN = True\n")
    (tmp_path / "subprocess").mkdir()
    (tmp_path / "subprocess/__init__.py").touch()
    (tmp_path / "calendar.py").write_text("OWN = True\n")  # nothing of Pylightnix needs it
    (tmp_path / "program.py").write_text(PROGRAM)
    ran = run(tmp_path, "build", *options, "program.py:a")
    assert ran.returncode == 0, ran.stderr
    ran = run(tmp_path, "build", *options, "program:a")
    assert ran.returncode == 0, ran.stderr


IN_A_FOLDER_THAT_IS_GONE = """
import os, runpy, sys, tempfile
folder = tempfile.mkdtemp()
os.chdir(folder)
os.rmdir(folder)
runpy.run_module("pylightnix_client", run_name="__main__")
"""


def test_commands_in_a_folder_that_was_removed(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    works = [["build", "--no-daemon", f"{tmp_path}/program.py:a"], ["build", f"{tmp_path}/program.py:a"], ["du"], ["find"]]
    refused = [["build", "program.py:a"], ["hash", "program.py"], ["import-v0", "old"], ["prefetch", "file"]]
    for arguments in works + refused:
        argv = [sys.executable, "-P", "-c", IN_A_FOLDER_THAT_IS_GONE, "--store", str(tmp_path / "s"), *arguments]
        ran = subprocess.run(argv, env=environment(), capture_output=True, text=True)
        if arguments in works:
            assert ran.returncode == 0, (arguments, ran.stderr)
        else:
            assert ran.returncode == 2, (arguments, ran.stderr)
            assert "was removed" in ran.stderr
            assert "defect" not in ran.stderr


def test_what_a_library_call_says_in_a_folder_that_was_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pylightnix import (
        Misuse,
        current_registry,
        fetchlocal,
        fsinit,
        instantiate,
        linkrref,
        mknode,
        mkregistry,
        mkSS,
        realize1,
        source,
        unpack,
    )

    S = mkSS(tmp_path / "store")
    fsinit(S, use_as_default=False)
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    os.rmdir(tmp_path / "gone")
    rref = realize1(instantiate(lambda r: mknode(r, {}, {"a": b"1"}), S=S))
    with current_registry(mkregistry(S)):
        for call in (
            lambda: mkSS("store"),
            lambda: fsinit("store", use_as_default=False),
            lambda: source("file"),
            lambda: fetchlocal("0" * 64, "file"),
            lambda: unpack("file"),
            lambda: linkrref(rref, S=S),
        ):
            with pytest.raises(Misuse, match="the folder that this program works in was removed"):
                call()
