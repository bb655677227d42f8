"""The program as a process: its start, its end, and what it does when the world goes away."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pylightnix import __version__
from pylightnix.storage import fsinit, mkSS, store_layout
from pylightnix.store.locks import exclusive_lock

WAITS = """
import signal
from pylightnix import match_latest, mkconfig, mkdrv


def _waits(S, dref, context, rarg):
    print("ready", flush=True)
    signal.pause()


def main(r):
    return mkdrv(mkconfig({"name": "waits"}), match_latest(), _waits, r)
"""


def test_version_and_help(program: Any) -> None:
    assert program("--version").stdout == f"pylightnix {__version__}\n"
    for option in ("-h", "--help"):
        ran = program(option)
        assert ran.status == 0
        assert "Exit status:" in ran.stdout
        assert all(f"  {name} " in ran.stdout for name in ("build", "cat", "completion", "hash", "ls", "path", "path2rref", "show"))
    assert program("build", "-h").status == 0


@pytest.mark.parametrize("arguments", [("--version",), ("--help",), ("build", "--help"), ("completion", "zsh")])
def test_light_commands_import_nothing_of_the_library(program: Any, arguments: tuple[str, ...]) -> None:
    source = (
        "import sys\nfrom pylightnix_client.cli import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('pylightnix', 'sqlite3', 'platformdirs')], file=sys.stderr)\n"
    )
    child = subprocess.run([sys.executable, "-c", source, *arguments], capture_output=True, text=True, env=program.environment, check=True)
    assert child.stderr == "[]\n"


@pytest.mark.parametrize("arguments", [(), ("no-such-command",), ("build",), ("build", "--no-such-option"), ("path", "a", "b")])
def test_usage_errors(program: Any, arguments: tuple[str, ...]) -> None:
    ran = program(*arguments)
    assert (ran.status, ran.stdout) == (2, "")
    assert "Usage: pylightnix" in ran.stderr
    if arguments:
        as_json = program(*arguments, "--json")
        assert as_json.status == 2
        assert (as_json.last["kind"], as_json.last["code"]) == ("error", "usage")


def test_interrupt(program: Any) -> None:
    program.write("waits.py", WAITS)
    for json_option in ([], ["--json"]):
        child = program.start("build", "waits.py", *json_option)
        assert child.stderr is not None
        while child.stderr.readline() != b"ready\n":
            assert child.poll() is None
        child.send_signal(signal.SIGINT)
        output, errors = child.communicate(timeout=60)
        assert child.returncode == 130
        assert b"Traceback" not in errors
        if json_option:
            assert b'"code": "interrupted"' in output.splitlines()[-1]
        else:
            assert b"interrupted" in errors
    assert program("build", "waits.py", "--dry-run").stdout.startswith("build ")


def closed_pipe() -> int:
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@pytest.mark.parametrize(
    "arguments", [("--help",), ("completion", "fish"), ("build", "stages.py"), ("build", "stages.py", "--json"), ("hash", ".")]
)
def test_broken_pipe_is_quiet(program: Any, arguments: tuple[str, ...]) -> None:
    pipe = closed_pipe()
    child = program.start(*arguments, stdout=pipe)
    os.close(pipe)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 141
    assert b"Error" not in errors
    assert b"Traceback" not in errors


def test_build_goes_on_when_its_reader_leaves(program: Any) -> None:
    pipe = closed_pipe()
    child = program.start("build", "stages.py", "--json", stdout=pipe)
    os.close(pipe)
    child.communicate(timeout=60)
    assert program("build", "stages.py", "--json").last["built"] == 0


def test_build_goes_on_without_standard_error(program: Any) -> None:
    pipe = closed_pipe()
    child = program.start("build", "stages.py", stderr=pipe)
    os.close(pipe)
    output, _ = child.communicate(timeout=60)
    assert (child.returncode, output[:5]) == (0, b"rref:")


def test_full_disk_at_standard_output(program: Any) -> None:
    with open("/dev/full", "wb") as full:
        child = program.start("build", "stages.py", stdout=full)
        _, errors = child.communicate(timeout=60)
    assert child.returncode == 74
    assert b"error: cannot write to standard output" in errors


def test_closed_standard_descriptors(program: Any) -> None:
    command = " ".join(program.command("build", "stages.py"))
    child = subprocess.run(["bash", "-c", f"{command} <&- >&- 2>&-"], cwd=program.folder, env=program.environment, timeout=60)
    assert child.returncode == 0
    assert program("build", "stages.py", "--json").last["reused"] == 2


@pytest.mark.parametrize(
    ("extra", "coloured"), [({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_colour_only_on_terminals_that_want_it(program: Any, extra: dict[str, str], coloured: bool) -> None:
    ours, theirs = pty.openpty()
    environment = {key: value for key, value in program.environment.items() if key not in ("NO_COLOR", "TERM")}
    child = program.start("path", "junk", stderr=theirs, env={**environment, **extra})
    os.close(theirs)
    child.communicate(timeout=60)
    printed = os.read(ours, 1 << 16)
    os.close(ours)
    assert b"error:" in printed
    assert (b"\x1b[" in printed) is coloured
    assert "\x1b" not in program("path", "junk", env=extra).stderr


def test_store_in_a_bad_place(program: Any) -> None:
    program.write("file", "")
    ran = program("--store", "file", "build", "stages.py")
    assert ran.status == 2
    assert "--store" in ran.stderr
    assert program("--store", "", "build", "stages.py").status == 2
    below = program("--store", "file/store", "build", "stages.py", "--json")
    assert below.status in (73, 74)
    assert below.last["code"].startswith("store-")


@pytest.mark.slow
def test_busy_store(program: Any) -> None:
    S = mkSS(str(program.store))
    fsinit(S, use_as_default=False)
    with exclusive_lock(store_layout(S), "a test"):
        ran = program("build", "stages.py", "--json")
    assert (ran.status, ran.last["code"]) == (75, "store-busy")


def test_odd_things_in_the_store_are_told_as_errors(program: Any) -> None:
    # A folder where the config should be is nothing that the store's code expects.
    dref = "dref:" + "0" * 32 + "-odd"
    folder = Path(program.store, "store-v1", dref[5:], "config.json")
    folder.mkdir(parents=True)
    ran = program("show", dref, "--json")
    assert ran.status in (65, 70, 74)
    assert ran.last["kind"] == "error"
