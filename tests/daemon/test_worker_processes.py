"""Ends: of builds, of what they leave behind, of workers. Nothing outlives whoever is responsible for it."""

from __future__ import annotations

import ast
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.daemon import realizers
from tests.daemon.worker_driver import DEADLINE_SECONDS, Refusal, Run, Watched, Worker, arguments, is_alive
from tests.peers import Peer

from pylightnix.travel import capture_environment
from pylightnix.types import Realizer
from pylightnix.worker.linux import children_of


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    with Worker(tmp_path / "worker") as worker:
        yield worker


def daemons(run: Run) -> list[int]:
    return [int(line.split()[1]) for line in run.log.decode().splitlines() if line.startswith("daemon")]


# --- builds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("realizer", "exit_code", "killed_by"), [(realizers.exits_at_once, 7, None), (realizers.kills_itself, None, signal.SIGKILL)]
)
def test_a_lost_build_leaves_no_report(worker: Worker, realizer: Realizer, exit_code: int, killed_by: int) -> None:
    run = worker.build(realizer)
    assert run.status == b""
    assert run.ended == {"build": run.build, "pid": run.pid, "exit_code": exit_code, "signal": killed_by}
    assert worker.build(realizers.trivial).outputs


def test_a_build_that_is_killed_from_outside_is_told_of(worker: Worker) -> None:
    run = worker.start(realizers.hangs)
    assert worker.await_log(run, "ready") == str(run.pid)
    os.kill(run.pid, signal.SIGKILL)
    assert worker.finish(run).ended == {"build": run.build, "pid": run.pid, "exit_code": None, "signal": signal.SIGKILL}
    assert run.status == b""


def test_kill_ends_a_build_and_no_other(worker: Worker) -> None:
    doomed, other = worker.start(realizers.hangs), worker.start(realizers.hangs)
    for run in (doomed, other):
        worker.await_log(run, "ready")
    assert worker.ask("kill", build=doomed.build) == {}
    worker.finish(doomed)
    assert not is_alive(doomed.pid)
    assert other.ended is None
    assert is_alive(other.pid)
    assert worker.ask("kill", build=doomed.build) == {}, "asking once more does no harm"


def test_kill_right_after_the_fork(worker: Worker) -> None:
    for _ in range(20):
        run = worker.start(realizers.hangs)
        worker.ask("kill", build=run.build)
        assert worker.finish(run).ended is not None
        assert not is_alive(run.pid)


def test_kill_reaches_programs_in_sessions_of_their_own(worker: Worker) -> None:
    run = worker.start(realizers.hangs_in_program)
    program = int(worker.await_log(run, "program"))
    worker.ask("kill", build=run.build)
    worker.finish(run)
    assert not is_alive(program)


@pytest.mark.parametrize(("realizer", "left"), [(realizers.leaves_daemon, 1), (realizers.leaves_generations, 6)])
def test_what_a_build_leaves_behind_is_dead_when_it_has_ended(worker: Worker, realizer: Realizer, left: int) -> None:
    run = worker.start(realizer)
    worker.pump(lambda: run.ended is not None)
    alive = [pid for pid in daemons(run) if is_alive(pid)]
    worker.finish(run)  # the log can end only when nobody holds it any more
    assert alive == []
    assert 1 <= len(daemons(run)) <= left
    assert run.text() == "text"


def test_leftovers_of_one_build_do_not_touch_another(worker: Worker) -> None:
    other = worker.start(realizers.hangs_with_daemon)
    worker.await_log(other, "ready")
    for _ in range(5):
        assert worker.build(realizers.leaves_daemon).text() == "text"
    assert other.ended is None
    assert all(is_alive(pid) for pid in daemons(other))
    worker.ask("kill", build=other.build)
    worker.finish(other)
    assert not any(is_alive(pid) for pid in daemons(other))


def test_many_builds_at_once(worker: Worker) -> None:
    runs = [worker.start(realizers.leaves_daemon if i % 3 == 0 else realizers.trivial) for i in range(30)]
    for run in runs:
        worker.finish(run)
    assert all(len(run.outputs) == 1 for run in runs)


def test_a_build_holds_nothing_of_the_worker(worker: Worker) -> None:
    others = [worker.start(realizers.hangs) for _ in range(2)]
    for run in others:
        worker.await_log(run, "ready")
    found, programs = ast.literal_eval(worker.build(realizers.lists_fds).text())
    assert sorted(fd for fd, (_, inheritable) in found.items() if inheritable) == [0, 1, 2]
    targets = [target for target, _ in found.values()]
    assert str(worker.owner_path) not in targets
    # The log twice, the report, and the line on which imports are told of; no other build's, and not the control connection.
    assert sum(target.startswith("pipe:") for target in targets) == 3
    assert sum(target.startswith("socket:") for target in targets) == 1
    assert "socket:" not in programs


GAINS = """[line.split()[1] for text in (
    open("/proc/self/status").read(), __import__("subprocess").run(["cat", "/proc/self/status"], capture_output=True, text=True).stdout
) for line in text.splitlines() if line.startswith("NoNewPrivs")]"""


def test_neither_a_build_nor_its_programs_gain_privileges(worker: Worker) -> None:
    assert ast.literal_eval(worker.build(realizers.evaluated, args=arguments(text=" ".join(GAINS.split()))).text()) == ["1", "1"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a program set-id")
def test_a_set_id_program_gains_nothing_in_a_build(worker: Worker, tmp_path: Path) -> None:
    program = tmp_path / "program"
    shutil.copy("/usr/bin/id", program)
    os.chown(program, 65534, 65534)
    program.chmod(0o4755)
    text = f"__import__('subprocess').run(['{program}', '-u'], capture_output=True, text=True).stdout"
    assert subprocess.run([str(program), "-u"], capture_output=True, text=True, check=True).stdout == "65534\n"
    assert ast.literal_eval(worker.build(realizers.evaluated, args=arguments(text=text)).text()) == "0\n"


def test_children_are_found_without_the_kernels_list() -> None:
    with Peer(lambda line: line.hear()) as peer:
        assert peer.pid in children_of(os.getpid())
        assert os.getpid() in children_of(os.getppid())
        peer.line.say("end")
        peer.end()
        assert peer.pid not in children_of(os.getpid())


# --- workers ---------------------------------------------------------------------------------------------


def busy(worker: Worker) -> list[Watched]:
    """Let a worker have builds that hang, one of them with a daemon, one with a program; return all of them."""
    runs = [worker.start(realizer) for realizer in (realizers.hangs, realizers.hangs_with_daemon)]
    for run in runs:
        worker.await_log(run, "ready")
    with_program = worker.start(realizers.hangs_in_program)
    program = int(worker.await_log(with_program, "program"))
    return [Watched(pid) for pid in [*(run.pid for run in runs), *daemons(runs[1]), with_program.pid, program]]


def close_connection(worker: Worker) -> None:
    worker.connection.close()


def terminate(worker: Worker) -> None:
    worker.process.terminate()


@pytest.mark.parametrize("end", [close_connection, terminate])
def test_a_worker_takes_everything_with_it(worker: Worker, end: Callable[[Worker], None]) -> None:
    with ExitStack() as stack:
        watched = busy(worker)
        for process in watched:
            stack.callback(process.close)
        assert not any(process.has_ended() for process in watched)
        end(worker)
        assert worker.process.wait(DEADLINE_SECONDS) == 0
        assert all(process.has_ended() for process in watched)


def test_builds_die_with_a_worker_that_is_killed(worker: Worker) -> None:
    runs = [worker.start(realizers.hangs) for _ in range(3)]
    for run in runs:
        worker.await_log(run, "ready")
    with ExitStack() as stack:
        watched = [Watched(run.pid) for run in runs]
        for process in watched:
            stack.callback(process.close)
        worker.process.kill()
        assert all(process.has_ended(DEADLINE_SECONDS) for process in watched)


def test_a_terminal_does_not_end_a_worker(worker: Worker) -> None:
    for number in (signal.SIGINT, signal.SIGHUP):
        worker.process.send_signal(number)
    assert worker.build(realizers.trivial).outputs


def test_an_interrupt_fails_a_build_only(worker: Worker) -> None:
    run = worker.start(realizers.hangs)
    worker.await_log(run, "ready")
    os.kill(run.pid, signal.SIGINT)
    assert worker.finish(run).error["type"] == "KeyboardInterrupt"


def test_an_environment_without_the_package_says_so(tmp_path: Path) -> None:
    variables = {name: value for name, value in capture_environment().variables.items() if not name.startswith("PYTHON")}
    argv = [sys.executable, "-S", "-P", "-m", "pylightnix.worker", "0", "0"]
    ended = subprocess.run(argv, env=variables, cwd="/", capture_output=True, text=True, timeout=DEADLINE_SECONDS)
    assert ended.returncode == 1
    assert "No module named 'pylightnix'" in ended.stderr


# --- the connection --------------------------------------------------------------------------------------


def test_refusals(worker: Worker) -> None:
    def refused(method: str, **params: Any) -> str:
        with pytest.raises(Refusal) as caught:
            worker.ask(method, **params)
        return str(caught.value.code)

    assert refused("nonsense") == "unknown-method"
    assert refused("hello", versions=[2], import_path=[], umask=0) == "unsupported-version"
    assert refused("kill") == "invalid-message"
    with pytest.raises(Refusal, match="without, or with a wrong type of, dref"):
        worker.start(realizers.trivial, dref=None)
    with pytest.raises(Refusal, match="JSON"):
        worker.start(realizers.trivial, context=b"{")
    run = worker.start(realizers.hangs, build="twice")
    with pytest.raises(Refusal, match="already"):
        worker.start(realizers.hangs, build="twice")
    assert is_alive(run.pid)
    assert worker.build(realizers.trivial).outputs, "descriptors were mixed up"


def test_hello_comes_first(tmp_path: Path) -> None:
    with Worker(tmp_path / "w", greet=False) as worker, pytest.raises(Refusal, match="hello"):
        worker.start(realizers.trivial)


def test_nonsense_ends_the_worker(worker: Worker) -> None:
    worker.connection.sendall(b"\x93\x02\xa3odd\x91\x80")
    assert worker.process.wait(DEADLINE_SECONDS) == 0


@pytest.mark.parametrize("data", [b"\xc1", b"\x01", b"\x94\x00\x01\xa5hello\x90", b"\xff" * 100])
def test_what_is_no_message_ends_the_worker(worker: Worker, data: bytes) -> None:
    run = worker.start(realizers.hangs)
    worker.await_log(run, "ready")
    worker.connection.sendall(data)
    assert worker.process.wait(DEADLINE_SECONDS) == 0
    assert not is_alive(run.pid)
