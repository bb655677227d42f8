"""A real daemon builds: what goes well, and what a realizer or its environment can do wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Optional

import pytest
from tests.daemon import realizers, stages
from tests.daemon.conftest import Daemon
from tests.daemon.wire_client import WireClient, acknowledged, environment
from tests.stores import text_of
from tests.waiting import wait_until

import pylightnix
from pylightnix import Closure, DRef, Registry, RRef, StorageSettings, instantiate, match_all, match_some
from pylightnix._version import __version__
from pylightnix.protocol import messages as m
from pylightnix.types import Realizer
from pylightnixd.logs import BuildLog


def fails_with(client: WireClient, closure: Closure, **options: object) -> tuple[str, str]:
    """Build what fails; return the code and the message."""
    operation, result = client.build(closure, **options)  # type: ignore[arg-type]  # of `submit`
    assert (result.ok, result.failed) == (False, 1)
    (row,) = client.failed(operation)
    assert row.dref == closure.targets[0]
    return row.code, row.message


def test_cold_then_warm(daemon: Daemon, client: WireClient) -> None:
    closure = stages.layers(daemon.plans, 30, 5)
    operation, result = client.build(closure)
    assert (result.ok, result.state, result.built, result.joined, result.reused) == (True, "done", 30, 0, 0)
    matched = client.matched(operation)
    again, result = client.build(closure)
    assert (result.ok, result.built, result.joined, result.reused) == (True, 0, 0, 30)
    assert client.matched(again) == matched
    assert set(matched) == set(closure.targets)
    daemon.stop_soundly(acknowledged(matched.values()))
    for dref, (rref,) in matched.items():
        assert text_of(rref, daemon.S) == dref


def test_several_outputs_are_one_unit(daemon: Daemon, client: WireClient) -> None:
    closure = stages.one(daemon.plans, stages.several, matcher=match_all, count=7)
    operation, result = client.build(closure)
    assert (result.ok, result.built) == (True, 1)
    matched = client.matched(operation)
    assert sorted(text_of(rref, daemon.S) for rref in acknowledged(matched.values())) == list("0123456")
    daemon.stop_soundly(acknowledged(matched.values()))


def test_a_raising_realizer(daemon: Daemon, client: WireClient) -> None:
    operation, result = client.build(stages.one(daemon.plans, stages.fails))
    assert (result.ok, result.failed) == (False, 1)
    (row,) = client.failed(operation)
    assert row.code == "remote-exception"
    assert row.type.endswith("ValueError")
    assert "no more flour" in row.message
    assert "in fails" in row.traceback
    assert "stages.py" in row.traceback
    daemon.stop_soundly(set())


def test_what_a_failed_build_left_is_kept(daemon: Daemon, client: WireClient) -> None:
    operation, _ = client.build(stages.one(daemon.plans, stages.failing_stage))
    (row,) = client.failed(operation)
    assert row.code == "build-failed"
    assert row.type.endswith("ValueError")
    assert "in fails_with_output" in row.traceback
    (kept,) = row.fields["outpaths"]
    assert Path(kept, "half.txt").read_text() == "half done"
    assert kept in row.message


@pytest.mark.parametrize(
    ("realizer", "words"),
    [
        (realizers.exits, "SystemExit"),
        (realizers.exits_at_once, "exited with status 7 without a report"),
        (realizers.kills_itself, "was killed by signal 9 (SIGKILL)"),
    ],
)
def test_a_realizer_that_dies(daemon: Daemon, client: WireClient, realizer: Realizer, words: str) -> None:
    operation, _ = client.build(stages.one(daemon.plans, realizer))
    (row,) = client.failed(operation)
    assert words in f"{row.type}: {row.message}"
    assert client.build(stages.one(daemon.plans, stages.plain))[1].ok
    daemon.stop_soundly(set())


def test_a_realizer_that_closes_its_output(daemon: Daemon, client: WireClient) -> None:
    closure = stages.one(daemon.plans, realizers.closes_output)
    assert client.build(closure)[1].ok
    assert client.log(closure.targets[0]) == b"last words\n"


@pytest.mark.parametrize("realizer", [realizers.leaves_daemon, realizers.leaves_generations])
def test_what_a_realizer_leaves_running_is_dead_when_it_is_built(daemon: Daemon, client: WireClient, realizer: Realizer) -> None:
    closure = stages.one(daemon.plans, realizer)
    assert client.build(closure)[1].ok
    pids = [int(word) for word in client.log(closure.targets[0]).split() if word.isdigit()]
    assert pids
    assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]


def test_a_long_log_is_read_in_full(daemon: Daemon, client: WireClient) -> None:
    closure = stages.one(daemon.plans, stages.chatters, lines=30_000)
    assert client.build(closure)[1].ok
    expected = b"".join(b"%08d %s\n" % (i, b"x" * 90) for i in range(30_000))
    assert client.log(closure.targets[0]) == expected


def test_a_module_that_the_worker_does_not_have(daemon: Daemon, client: WireClient) -> None:
    here = str(Path(__file__).parents[2])
    env = environment(import_path=[entry for entry in environment().import_path if os.path.realpath(entry) != here])
    _, message = fails_with(client, stages.one(daemon.plans, stages.plain), env=env)
    assert "No module named 'tests'" in message


def test_an_interpreter_that_is_not_there(daemon: Daemon, client: WireClient) -> None:
    code, message = fails_with(client, stages.one(daemon.plans, stages.plain), env=environment(interpreter="/nonexistent/python3"))
    assert code == "worker-failed"
    assert "/nonexistent/python3 cannot be started (No such file or directory)" in message
    assert client.build(stages.one(daemon.plans, stages.plain))[1].ok


def test_an_interpreter_without_the_package(daemon: Daemon, client: WireClient, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    interpreter = str(tmp_path / "bare" / "bin" / "python")
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env = environment(interpreter=interpreter, variables=variables)
    code, message = fails_with(client, stages.one(daemon.plans, stages.plain), env=env)
    assert code == "worker-failed"
    assert interpreter in message
    assert "install pylightnix in that environment" in message


def of_another_version(folder: Path, protocol: int) -> m.Environment:
    """Return an environment that holds a pylightnix 9.9.9, whose workers speak that version of their protocol."""
    package = Path(pylightnix.__file__).parent
    shutil.copytree(package, folder / "pylightnix", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "pylightnix" / "_version.py").write_text('__version__ = "9.9.9"\n')
    service = folder / "pylightnix" / "worker" / "service.py"
    text = service.read_text()
    assert "VERSION: Final = 1\n" in text
    service.write_text(text.replace("VERSION: Final = 1\n", f"VERSION: Final = {protocol}\n"))
    return environment(
        import_path=[str(folder), *environment().import_path],
        variables={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
    )


def test_an_environment_with_a_version_that_does_not_understand_this_one(daemon: Daemon, client: WireClient, tmp_path: Path) -> None:
    code, message = fails_with(client, stages.one(daemon.plans, stages.plain), env=of_another_version(tmp_path / "other", 2))
    assert code == "worker-mismatch"
    assert f"the worker {sys.executable} is of pylightnix 9.9.9, which does not understand this daemon's {__version__}" in message
    assert "it speaks version 2 of the workers' protocol, and was offered [1]" in message
    assert f"install pylightnix {__version__} in that environment" in message
    assert client.build(stages.one(daemon.plans, stages.plain))[1].ok


def test_an_environment_with_a_version_that_understands_this_one(daemon: Daemon, client: WireClient, tmp_path: Path) -> None:
    assert client.build(stages.one(daemon.plans, stages.plain), of_another_version(tmp_path / "other", 1))[1].ok
    daemon.wait_said(f"is of pylightnix 9.9.9, this is {__version__}")


def test_a_program_that_is_no_python(daemon: Daemon, client: WireClient) -> None:
    code, message = fails_with(client, stages.one(daemon.plans, stages.plain), env=environment(interpreter="/bin/true"))
    assert code == "worker-failed"
    assert "ended at once (exit status 0)" in message


def test_a_lost_worker_is_replaced(daemon: Daemon, client: WireClient, tmp_path: Path) -> None:
    operation, result = client.build(stages.one(daemon.plans, stages.kills_worker, mark=str(tmp_path / "mark")))
    assert result.ok, client.failed(operation)
    assert client.status().workers == 1
    daemon.stop_soundly(acknowledged(client.matched(operation).values()))


def test_keep_going(daemon: Daemon, client: WireClient) -> None:
    def plan(r: Registry) -> list[DRef]:
        bad = stages.add(r, "bad", stages.fails)
        return [stages.add(r, "above", stages.plain, below=bad), *(stages.add(r, f"good{i}", stages.plain) for i in range(5))]

    closure = instantiate(plan, S=daemon.plans)[1]
    operation, result = client.build(closure, keep_going=True)
    assert (result.ok, result.built, result.failed, result.skipped) == (False, 5, 1, 1)
    assert len(client.rows(operation, "built")) == 5


def test_forced_builds_run_again(daemon: Daemon, client: WireClient, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    closure = stages.many(daemon.plans, 3, stages.journals, journal=str(journal))
    client.build(closure)
    forced = [str(closure.targets[1])]
    _, result = client.build(closure, forced=forced)
    assert (result.ok, result.built, result.reused) == (True, 1, 2)
    built = [line.split()[0] for line in journal.read_text().splitlines()]
    assert sorted(built) == sorted([*map(str, closure.targets), *forced])


def test_a_dry_run_builds_nothing(daemon: Daemon, client: WireClient, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    closure = stages.many(daemon.plans, 3, stages.journals, journal=str(journal))
    operation, result = client.build(closure, dry_run=True)
    assert (result.built, result.failed) == (0, 0)
    assert {row.dref for row in client.rows(operation, "steps")} == set(closure.targets)  # type: ignore[union-attr]  # all are StepRows
    assert not journal.exists()


def test_random_numbers_of_one_warm_worker_differ(daemon: Daemon, client: WireClient) -> None:
    client.build(stages.one(daemon.plans, stages.trains, name="warm"))  # after which the worker has numpy before it forks
    closure = stages.many(daemon.plans, 20, stages.trains)
    operation, result = client.build(closure)
    assert result.built == 20
    matched = client.matched(operation)
    drawn = [text_of(rref, daemon.S).split() for rref in acknowledged(matched.values())]
    assert client.status().workers == 1
    assert [len({numbers[which] for numbers in drawn}) for which in range(3)] == [20, 20, 20]
    again, _ = client.build(closure, forced=[str(closure.targets[0])])
    assert client.matched(again) != matched
    daemon.stop_soundly(acknowledged(matched.values()))


def key_of(S: Optional[StorageSettings], rref: RRef) -> int:
    return 1


def test_questions_do_not_wait_for_outputs_to_be_hashed(daemon: Daemon, client: WireClient) -> None:
    first = stages.one(daemon.plans, stages.chatters, name="first", lines=3)
    assert client.build(first)[1].built == 1
    large = stages.many(daemon.plans, max(2, os.cpu_count() or 1), stages.leaves_much, bytes=1 << 30)
    operation = client.submit(large)
    wait_until(lambda: [line.state for line in client.ps().builds] == ["placing"] * len(large.targets))
    assert client.log(first.targets[0])
    assert client.build(first)[1].built == 0
    assert [line.state for line in client.ps().builds] == ["placing"] * len(large.targets), "they are hashed still"
    assert client.wait(operation).built == len(large.targets)


def test_a_queued_build_that_others_made_needless_is_not_run(tmp_path: Path) -> None:
    gate = stages.Gate(tmp_path)
    with Daemon(tmp_path / "store", "--jobs", "1").wait_ready() as daemon, daemon.client() as client:
        in_the_way = client.submit(stages.one(daemon.plans, stages.waits, name="in-the-way", gate=gate.path))
        gate.wait_hello()
        closure = stages.one(daemon.plans, stages.plain)
        # Builds of their own, for they are to run with different umasks; but either will do for both.
        operations = [client.submit(closure, environment(umask=umask)) for umask in (0o022, 0o077)]
        wait_until(lambda: [line.state for line in client.ps().builds] == ["running", "queued", "queued"])
        gate.go()
        assert client.wait(in_the_way).built == 1
        results = [client.wait(operation) for operation in operations]
        assert sorted((result.built, result.reused + result.joined) for result in results) == [(0, 1), (1, 0)]
        one, other = (client.rows(operation, "matched") for operation in operations)
        assert one == other


def test_a_python_matcher(daemon: Daemon, client: WireClient) -> None:
    closure = stages.one(daemon.plans, stages.several, matcher=match_some(2, key_of), count=3)
    operation, result = client.build(closure)
    assert result.ok, client.failed(operation)
    assert len(acknowledged(client.matched(operation).values())) == 2


def test_a_log_on_a_full_disk_has_a_gap(caplog: pytest.LogCaptureFixture) -> None:
    log = BuildLog("/dev/full", 1000)
    log.open()
    log.write(b"first")
    log.write(b"second")
    log.finish()
    log.finish()
    assert (log.size, log.finished) == (0, True)
    assert len(caplog.records) == 1
    BuildLog("/nonexistent/log", 1000).finish()
