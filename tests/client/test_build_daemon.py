"""`build` on a store without a daemon starts one, and goes through it: what people see of that."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.client import daemons, terminals
from tests.client.conftest import Program
from tests.stores import OTHER_UID, in_child, needs_root

from pylightnix import mkSS
from pylightnix.storage import store_layout
from pylightnix.store.ownership import daemon_socket, lock_says

STAGES = r"""
import os
import signal
import subprocess
import time

from pylightnix import build_cattrs, build_outpath, build_wrapper, match_latest, mkconfig, mkdrv


def _write(b):
    print("the realizer speaks", flush=True)
    with open(os.path.join(build_outpath(b), "out.txt"), "w") as file:
        file.write("text")


def _chatter(b):
    print("\x1b[2J\x1b]0;title\x07[bold]all of it[/bold] " + "very " * 40 + "long", flush=True)
    _wait_for(b)


def _wait_for(b):
    while not os.path.exists(build_cattrs(b).until):
        time.sleep(0.02)
    _write(b)


def _fail(b):
    for i in range(25):
        print("line", i)
    print("50 %\r100 %\x1b[0m", flush=True)
    raise ValueError("no such luck")


def _fail_quietly(b):
    raise ValueError("no such luck")


def _record(b):
    folder = build_cattrs(b).folder
    mark = os.path.join(folder, str(build_cattrs(b).i))
    open(mark, "w").close()
    with open(os.path.join(build_outpath(b), "beside.txt"), "w") as file:
        file.write(str(len(os.listdir(folder))))
    time.sleep(0.1)
    os.unlink(mark)


def _fail_first(b):
    open(os.path.join(build_cattrs(b).folder, str(build_cattrs(b).i)), "w").close()
    raise ValueError("no such luck")


def _ignore_signals(b):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("it waits", flush=True)
    subprocess.run(["tail", "-f", "/dev/null"], check=True)


def _derivation(r, name, realizer, **config):
    return mkdrv(mkconfig({"name": name, **config}), match_latest(), build_wrapper(realizer), r)


def first(r, text="one"):
    return _derivation(r, "first", _write, text=text)


def main(r):
    return _derivation(r, "second", _write, dep=first(r))


def broken(r):
    return _derivation(r, "broken", _fail)


def quiet(r):
    return _derivation(r, "quiet", _fail_quietly)


def chatty(r, until):
    return [_derivation(r, f"chatty{i}", _chatter, until=until) for i in range(3)]


def recorded(r, folder):
    return [_derivation(r, f"recorded{i}", _record, folder=folder, i=i) for i in range(6)]


def failing(r, folder):
    return [_derivation(r, f"failing{i}", _fail_first, folder=folder, i=i) for i in range(6)]


def stubborn(r):
    return _derivation(r, "stubborn", _ignore_signals)
"""


@pytest.fixture
def alone() -> Iterator[Program]:
    """The program on a store without a daemon; one that it starts is ended."""
    top = Path(tempfile.mkdtemp(prefix="pyl-"))
    folder = top / "project"
    folder.mkdir()
    made = Program(folder, top / "s", daemon=True)
    made.write("stages.py", STAGES)
    yield made
    daemons.end_started_daemon(made.store)
    subprocess.run(["chmod", "-R", "u+w", top], check=True)
    shutil.rmtree(top)


def pid_of_daemon(program: Program) -> int:
    found: int = lock_says(store_layout(mkSS(str(program.store))))["pid"]
    return found


# --- starting one -------------------------------------------------------------------------------------


def test_a_daemon_is_started_shared_and_ends_with_its_store_unlocked(alone: Program) -> None:
    ran = alone("build", "stages.py")
    assert (ran.status, ran.stderr.splitlines()[-1]) == (0, "2 built"), ran.stderr
    assert "the realizer speaks" not in ran.stderr, "it built in this process"
    status = alone("status", "--json").last
    assert os.getsid(status["pid"]) == status["pid"], "Ctrl-C at this terminal would end it"
    assert alone("build", "stages.py", "--json").last["reused"] == 2
    assert alone("status", "--json").last["pid"] == status["pid"]


def test_two_builds_that_start_at_once_share_one_daemon(alone: Program) -> None:
    children = [alone.start("build", "stages.py", "--json") for _ in range(2)]
    results = []
    for child in children:
        out, errors = child.communicate(timeout=60)
        assert child.returncode == 0, errors
        results.append(json.loads(out.splitlines()[-1]))
    assert results[0]["realized"] == results[1]["realized"]
    assert sum(result["built"] for result in results) == 2


def test_a_dry_run_starts_none(alone: Program) -> None:
    assert alone("build", "stages.py", "--dry-run").status == 0
    assert daemon_socket(store_layout(mkSS(str(alone.store)))) is None


def test_no_daemon_builds_here_and_only_where_no_daemon_is(alone: Program) -> None:
    ran = alone("build", "stages.py:first", "--no-daemon")
    assert ran.status == 0
    assert "the realizer speaks" in ran.stderr
    assert daemon_socket(store_layout(mkSS(str(alone.store)))) is None
    alone("build", "stages.py:first")
    refused = alone("build", "stages.py:first", "--no-daemon", "--json")
    assert (refused.status, refused.last["code"]) == (75, "store-busy")
    assert "stop that daemon first" in refused.last["message"]
    assert alone("build", "stages.py", "--no-daemon", "-j", "2").status == 2


def test_one_that_cannot_start_says_why_and_what_to_do(alone: Program) -> None:
    alone.store.mkdir()
    (alone.store / "daemon.sock").write_text("not a socket")
    ran = alone("build", "stages.py", "--json")
    assert (ran.status, ran.last["code"]) == (69, "daemon-not-started")
    assert "no socket is there" in ran.last["message"]
    assert "--no-daemon" in ran.last["message"]
    assert alone("build", "stages.py", "--no-daemon").status == 0


@needs_root
def test_a_store_that_one_may_only_read_is_not_built_in(open_folder: Path) -> None:
    from pylightnix_client.cli import main

    store, said = open_folder / "store", open_folder / "said"
    subprocess.run([sys.executable, "-c", f"from pylightnix import fsinit, mkSS; fsinit(mkSS({str(store)!r}))"], check=True)
    (open_folder / "stages.py").write_text(STAGES)

    def build() -> int:
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT, 0o644), 1)
        return main(["--store", str(store), "build", str(open_folder / "stages.py"), "--json"])

    import pylightnix_client.commands.build
    import pylightnix_client.showing
    import pylightnix_client.starting  # noqa: F401  # whom the other user cannot import

    assert in_child(build, uid=OTHER_UID) == 77
    told = json.loads(said.read_text().splitlines()[-1])
    assert (told["kind"], told["code"]) == ("error", "store-foreign")


# --- which one ----------------------------------------------------------------------------------------


def test_a_socket_stands_for_a_store_in_every_command(alone: Program, tmp_path: Path) -> None:
    daemon = daemons.start_daemon(
        str(alone.store), "--socket", str(alone.store.parent / "elsewhere.sock"), "--state", str(tmp_path / "state")
    )
    try:
        by = ("--socket", str(alone.store.parent / "elsewhere.sock"))
        away = {"PYLIGHTNIX_ROOT": str(tmp_path / "wrong")}
        built = alone(*by, "build", "stages.py:first", "--json", env=away)
        assert built.status == 0, built.stderr + built.stdout
        rref = built.last["realized"][0]
        assert alone(*by, "cat", rref, "out.txt", env=away).stdout == "text"
        assert alone(*by, "path", rref[5:12], env=away).stdout.startswith(str(alone.store))
        assert alone(*by, "show", rref, "--json", env=away).last["state"] == "valid"
        assert alone(*by, "log", rref, env=away).stdout == "the realizer speaks\n"
        assert alone(*by, "status", "--json", env=away).last["store"] == str(tmp_path / "state")
        assert not (tmp_path / "wrong").exists()
    finally:
        daemons.end_daemon(daemon)


@pytest.mark.parametrize("command", [("status",), ("show", "0123abcd"), ("build", "stages.py")])
def test_a_socket_where_nobody_listens_is_said(alone: Program, command: tuple[str, ...]) -> None:
    ran = alone("--socket", "nowhere.sock", *command, "--json")
    assert (ran.status, ran.last["code"]) == (69, "no-daemon")


def test_a_store_and_a_socket_exclude_each_other(alone: Program) -> None:
    ran = alone("--store", "s", "--socket", "x.sock", "status")
    assert ran.status == 2
    assert "give one of them" in ran.stderr
    assert alone("--socket", "", "status").status == 2
    assert alone("--socket", "x.sock", "build", "--no-daemon", "stages.py").status == 2


# --- how many at a time -------------------------------------------------------------------------------


@pytest.mark.parametrize("there_already", [False, True])
def test_no_more_builds_at_a_time_than_were_allowed(alone: Program, tmp_path: Path, there_already: bool) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    if there_already:
        assert alone("build", "stages.py:first", "-j", "4").status == 0
    ran = alone("build", "stages.py:recorded", "-j", "2", "--json", "--arg", f'folder="{marks}"')
    assert ran.status == 0, ran.stderr
    slots = alone("status", "--json").last["slots"]  # soon, for the daemon ends by itself
    assert slots == (4 if there_already else 2)
    assert ran.last["built"] == 6
    beside = [int((Path(alone("path", rref).stdout.strip()) / "beside.txt").read_text()) for rref in ran.last["realized"]]
    assert max(beside) <= 2


def test_after_a_failure_what_was_held_back_is_not_begun(alone: Program, tmp_path: Path) -> None:
    ran = alone("build", "stages.py:failing", "-j", "1", "--json", "--arg", f'folder="{tmp_path}"')
    assert (ran.status, len(ran.last["failed"]), len(os.listdir(tmp_path))) == (1, 1, 1)
    going = alone("build", "stages.py:failing", "-j", "1", "--json", "--keep-going", "--arg", f'folder="{tmp_path}"')
    assert (len(going.last["failed"]), len(os.listdir(tmp_path))) == (6, 6)


# --- failures -----------------------------------------------------------------------------------------


def test_a_failure_shows_the_end_of_its_log_and_where_the_rest_is(alone: Program) -> None:
    ran = alone("--store", str(alone.store), "build", "stages.py:broken")
    assert ran.status == 1
    assert ran.stderr.count("broken: failed") == 1
    assert "    line 24\n    100 %\n" in ran.stderr
    assert "    line 6\n" in ran.stderr
    assert "line 5\n" not in ran.stderr
    assert "\x1b" not in ran.stderr
    command = next(line for line in ran.stderr.splitlines() if "all of it: " in line).partition("all of it: ")[2].split()
    assert command[:3] == ["pylightnix", "--store", str(alone.store)]
    daemons.end_started_daemon(alone.store)
    whole = alone(*command[1:])  # which has a daemon started, for that one is gone
    assert whole.stdout.splitlines()[:2] == ["line 0", "line 1"]


def test_programs_are_told_of_a_failure_at_once_and_of_its_log(alone: Program) -> None:
    ran = alone("build", "stages.py:broken", "--json")
    assert [item["kind"] for item in ran.objects] == ["build-started", "build-failed", "result"]
    assert ran.objects[1]["code"] == "build-failed"
    failed = ran.last["failed"][0]
    assert (len(failed["log"]), failed["log"][-1]) == (20, "100 %")
    assert failed["log_command"] == f"pylightnix log {failed['dref']}"
    assert alone("log", failed["build"]).status == 0


def test_a_failure_without_a_log_shows_none(alone: Program) -> None:
    assert "its log" not in alone("build", "stages.py:quiet").stderr
    assert "log" not in alone("build", "stages.py:quiet", "--json").last["failed"][0]


# --- Ctrl-C -------------------------------------------------------------------------------------------


def started(alone: Program, *options: str) -> subprocess.Popen[bytes]:
    child = alone.start("build", "stages.py:stubborn", "--json", *options)
    assert child.stdout is not None
    assert json.loads(child.stdout.readline())["kind"] == "build-started"
    return child


def test_ctrl_c_cancels_and_says_so_even_if_a_build_will_not_end(alone: Program) -> None:
    child = started(alone)
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=60)
    assert child.returncode == 130
    assert [json.loads(line)["kind"] for line in out.splitlines()] == ["cancelling", "error"]
    assert [item for item in alone("ps", "--json").objects if item["kind"] == "operation"] == []


def test_a_second_ctrl_c_leaves_at_once(alone: Program) -> None:
    child = started(alone)
    assert child.stdout is not None
    daemon = pid_of_daemon(alone)
    os.kill(daemon, signal.SIGSTOP)  # so that nothing is cancelled
    try:
        child.send_signal(signal.SIGINT)
        assert json.loads(child.stdout.readline())["kind"] == "cancelling"
        child.send_signal(signal.SIGINT)
        out, _ = child.communicate(timeout=10)
        assert (child.returncode, json.loads(out.splitlines()[-1])["code"]) == (130, "interrupted")
    finally:
        os.kill(daemon, signal.SIGCONT)


# --- on a terminal ------------------------------------------------------------------------------------


@pytest.fixture
def on_terminal(alone: Program) -> Callable[..., terminals.Session]:
    def start(*arguments: str, columns: int = 80, **variables: str) -> terminals.Session:
        plain = {key: value for key, value in alone.environment.items() if key not in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")}
        environment = {**plain, "TERM": "xterm", **variables}
        return terminals.Session(alone.command(*arguments), environment, columns, cwd=alone.folder)

    return start


@pytest.mark.parametrize("columns", [100, 24])
def test_a_terminal_shows_what_runs_and_is_left_clean(on_terminal: Callable[..., terminals.Session], tmp_path: Path, columns: int) -> None:
    gate = tmp_path / "gate"
    session = on_terminal("build", "stages.py:chatty", "-j", "2", "--arg", f'until="{gate}"', columns=columns)
    session.read_until("[bol")
    session.read_until("1 waiting: 1 for one")
    gate.touch()
    ended = session.end()
    assert (ended.status, ended.screen.cursor_shown) == (0, True)
    assert "title" not in ended.raw
    assert "\x1b[2J" not in ended.raw
    assert max(map(len, ended.screen.text)) <= columns
    done = [line.partition(":")[0] for line in ended.screen.text[:-1]]
    assert sorted(done) == ["chatty0", "chatty1", "chatty2"], ended.screen.text
    assert ended.screen.text[-1] == "3 built"
    assert len(ended.stdout.splitlines()) == 3


def test_ctrl_c_leaves_a_terminal_clean(on_terminal: Callable[..., terminals.Session]) -> None:
    session = on_terminal("build", "stages.py:stubborn")
    session.read_until("it waits")
    session.child.send_signal(signal.SIGINT)
    ended = session.end()
    assert (ended.status, ended.screen.cursor_shown) == (130, True)
    assert [line.partition(":")[0] for line in ended.screen.text if ":" in line] == ["interrupted", "error"], ended.screen.text


@pytest.mark.parametrize(
    ("variables", "drawn", "coloured"), [({}, True, True), ({"NO_COLOR": "1"}, True, False), ({"TERM": "dumb"}, False, False)]
)
def test_terminals_that_want_less_get_less(
    on_terminal: Callable[..., terminals.Session], variables: dict[str, str], drawn: bool, coloured: bool
) -> None:
    ended = on_terminal("build", "stages.py", **variables).end()
    assert (ended.status, ended.screen.text[-1]) == (0, "2 built")
    assert ("\x1b[?25l" in ended.raw, ended.screen.coloured) == (drawn, coloured)
    if not drawn:
        assert "\x1b" not in ended.raw


def test_attach_shows_the_same(on_terminal: Callable[..., terminals.Session], alone: Program, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    child = alone.start("build", "stages.py:chatty", "--json", "--arg", f'until="{gate}"')
    assert child.stdout is not None
    child.stdout.readline()
    operation = next(item["operation"] for item in alone("ps", "--json").objects if item["kind"] == "operation")
    session = on_terminal("attach", operation)
    session.read_until("0/3 done")
    session.read_until("all of it")
    gate.touch()
    ended = session.end()
    child.communicate(timeout=60)
    assert (ended.status, ended.screen.cursor_shown, ended.screen.text[-1]) == (0, True, "3 built")


# --- daemons that go away -------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", [signal.SIGKILL, signal.SIGTERM])
def test_it_is_said_once_that_another_daemon_is_asked(alone: Program, tmp_path: Path, ends: signal.Signals) -> None:
    gate = tmp_path / "gate"
    code, text = ("daemon-gone", "the daemon has gone") if ends == signal.SIGKILL else ("draining", "the daemon is stopping")
    daemon = daemons.start_daemon(str(alone.store), "--drain", "0.2")
    arguments = ("build", "stages.py:chatty", "--arg", f'until="{gate}"')
    people, programs = alone.start(*arguments), alone.start(*arguments, "--json")
    try:
        for child in (people, programs):
            stream = child.stderr if child is people else child.stdout
            assert stream is not None
            assert b"build" in stream.readline()
        os.kill(daemon.pid, ends)
        daemons.end_daemon(daemon)
        gate.touch()
        told = people.communicate(timeout=60)[1].decode()
        objects = [json.loads(line) for line in programs.communicate(timeout=60)[0].splitlines()]
    finally:
        for child in (people, programs):
            child.kill()
            child.wait()
    assert (people.returncode, programs.returncode) == (0, 0), told
    assert told.count("asking again") == 1, told
    assert f"{text}; asking again\n" in told
    assert [item["code"] for item in objects if item["kind"] == "asking-again"] == [code]


# --- completion ---------------------------------------------------------------------------------------


def complete(program: Program, *words: str) -> list[str]:
    environment = {"_PYLIGHTNIX_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(["pylightnix", *words]), "COMP_CWORD": str(len(words))}
    ran = program(env=environment)
    assert ran.stderr == ""
    return ran.lines


def test_what_runs_is_offered(alone: Program) -> None:
    child = started(alone)
    try:
        found: dict[str, Any] = {item["kind"]: item for item in alone("ps", "--json").objects}
        name, build = found["operation"]["operation"], found["build"]["build"]
        assert complete(alone, "attach", name[:2]) == [f"plain,{name}"]
        assert complete(alone, "cancel", "nothing") == [""]
        assert f"plain,{build}" in complete(alone, "log", build[:1])
        os.kill(pid_of_daemon(alone), signal.SIGSTOP)  # as if it had no time for us
        try:
            assert complete(alone, "attach", name[:2]) == [""]
        finally:
            os.kill(pid_of_daemon(alone), signal.SIGCONT)
    finally:
        child.send_signal(signal.SIGINT)
        child.communicate(timeout=60)


def test_a_failure_tells_its_log_at_once_while_others_go_on(alone: Program) -> None:
    waits = "\ndef both(r):\n    def fails(b):\n        build_outpath(b)\n        print('a word')\n        raise ValueError\n"
    waits += "    def waits(b):\n        build_outpath(b)\n        while not os.path.exists(GO):\n            time.sleep(0.01)\n"
    waits += "    return [mkdrv(mkconfig({'name': f.__name__}), match_latest(), build_wrapper(f), r) for f in (fails, waits)]\n"
    imports = "import os, time\nfrom pylightnix import build_outpath, build_wrapper, match_latest, mkconfig, mkdrv\n"
    alone.write("both.py", f"{imports}GO = {str(alone.folder / 'go')!r}\n{waits}")
    for way, found in (((), "    a word\n"), (("--json",), '"log": ["a word"]')):
        with alone.start("build", "--keep-going", "--force", *way, "both.py:both") as build:
            stream = build.stdout if way else build.stderr
            assert stream is not None
            said: list[str] = []
            for line in stream:
                said.append(line.decode())
                if found in said[-1]:
                    break
            assert not (alone.folder / "go").exists(), "it was told at the end only"
            (alone.folder / "go").touch()
            _, errors = build.communicate(timeout=60)
            assert build.returncode == 1
        (alone.folder / "go").unlink()
        assert "the last lines of its log" not in errors.decode(), "it was told twice"
