"""The program with a real daemon on its store: the same answers as without, and the commands that look at it."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.client import daemons
from tests.waiting import wait_until

from pylightnix import StorageSettings, instantiate
from pylightnix.protocol import messages as m
from pylightnix.storage import store_layout
from pylightnix_client.client import Client
from pylightnix_client.commands.daemon import amounts


class Answer(NamedTuple):
    status: int
    stdout: str
    stderr: str

    @property
    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stdout.splitlines()]


Run = Callable[..., Answer]

STAGES = """
import os
import subprocess

from pylightnix import build_outpath, build_wrapper, match_latest, mkconfig, mkdrv


def _write(b):
    print("the realizer speaks", flush=True)
    with open(os.path.join(build_outpath(b), "out.txt"), "w") as file:
        file.write("text")


def _fail(b):
    raise ValueError("no such luck")


def _wait(b):
    print("it waits", flush=True)
    subprocess.run(["tail", "-f", "/dev/null"], check=True)


def _derivation(r, name, realizer, **config):
    return mkdrv(mkconfig({"name": name, **config}), match_latest(), build_wrapper(realizer), r)


def first(r, text="one"):
    return _derivation(r, "first", _write, text=text)


def main(r, text="one"):
    return _derivation(r, "second", _write, dep=first(r, text))


def broken(r):
    return _derivation(r, "above", _write, dep=_derivation(r, "broken", _fail))


def _raise_raw(S, dref, context, rarg):
    raise KeyError("raw")


class Unpicklable(Exception):
    def __reduce__(self):
        raise TypeError("not to be pickled")


def _raise_unpicklable(S, dref, context, rarg):
    raise Unpicklable("here")


def raw(r):
    return mkdrv(mkconfig({"name": "raw"}), match_latest(), _raise_raw, r)


def unpicklable(r):
    return mkdrv(mkconfig({"name": "unpicklable"}), match_latest(), _raise_unpicklable, r)


def waits(r, i=0):
    return _derivation(r, "waits", _wait, i=i)
"""


@pytest.fixture(scope="module")
def served() -> Iterator[StorageSettings]:
    with daemons.served_store() as S:
        yield S


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "stages.py").write_text(STAGES)
    # A name that no module can be imported by.
    (tmp_path / "my-stages.py").write_text(STAGES)
    return tmp_path


def command(root: object, *arguments: str) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "pylightnix_client", "--store", str(root), *arguments]


@pytest.fixture
def run(served: StorageSettings, folder: Path) -> Run:
    def call(*arguments: str, store: object = served.root) -> Answer:
        done = subprocess.run(
            command(store, *arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd=folder,
            env=daemons.environment(),
            timeout=daemons.SECONDS,
            text=True,
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture
def waiting(served: StorageSettings, folder: Path, run: Run) -> Iterator[Callable[[int], subprocess.Popen[str]]]:
    """Starts a build that never ends, and waits until it is under way."""
    started: list[subprocess.Popen[str]] = []

    def start(i: int) -> subprocess.Popen[str]:
        arguments = command(served.root, "build", "stages.py:waits", "--arg", f"i={i}", "--json")
        child = subprocess.Popen(
            arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=folder, env=daemons.environment(), text=True
        )
        started.append(child)
        assert child.stdout is not None
        assert json.loads(child.stdout.readline())["kind"] == "build-started"
        return child

    yield start
    for child in started:
        child.kill()
        child.communicate()


# --- build --------------------------------------------------------------------------------------------


def without_history(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return answers without times, and without what other tests' builds have to do with them."""
    return [{key: value for key, value in item.items() if key not in ("seconds", "older", "why", "of_unknown_time")} for item in objects]


@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_json_answers_are_those_of_the_embedded_store(run: Run, tmp_path: Path, options: tuple[str, ...]) -> None:
    arguments = ("build", "stages.py:main", "--json", "--arg", f'text="{options}"', *options)
    through, embedded = run(*arguments), run(*arguments, store=tmp_path / "embedded")
    assert (through.status, embedded.status) == (0, 0), through.stderr
    assert without_history(through.objects) == without_history(embedded.objects)


def test_failures_are_those_of_the_embedded_store(run: Run, tmp_path: Path) -> None:
    through = run("build", "stages.py:broken", "--json").objects
    embedded = run("build", "stages.py:broken", "--json", store=tmp_path / "embedded").objects
    assert [item["kind"] for item in through] == [item["kind"] for item in embedded]
    failed, same = through[-1]["failed"][0], embedded[-1]["failed"][0]
    assert (failed["dref"], failed["code"]) == (same["dref"], same["code"])
    assert failed["message"].partition("; what it left")[0] == same["message"].partition("; what it left")[0]
    assert len(failed["kept"]) == len(same["kept"]) == 1
    assert 'raise ValueError("no such luck")' in failed["traceback"]


@pytest.mark.parametrize(("stage", "said"), [("raw", "KeyError: 'raw'"), ("unpicklable", "Unpicklable: here")])
def test_any_exception_of_a_realizer_has_one_code(run: Run, tmp_path: Path, stage: str, said: str) -> None:
    arguments = ("build", f"stages.py:{stage}", "--json")
    through, embedded = run(*arguments).objects, run(*arguments, store=tmp_path / "embedded").objects
    for objects in (through, embedded):
        assert [item["code"] for item in objects if item["kind"] == "build-failed"] == ["build-failed"]
        (failed,) = objects[-1]["failed"]
        assert failed["code"] == "build-failed"
        assert failed["message"].endswith(said)
        assert "raise " in failed["traceback"]


def test_people_see_the_same_lines(run: Run) -> None:
    ran = run("build", "stages.py:main", "--arg", 'text="people"')
    assert ran.status == 0
    lines = [line.partition(" in ")[0] for line in ran.stderr.splitlines()]
    assert lines == ["[1/2] building first …", "[1/2] first: done", "[2/2] building second …", "[2/2] second: done", "2 built"]
    assert run("build", "stages.py:main", "--arg", 'text="people"').stderr == "2 reused\n"


def test_a_file_that_no_other_process_can_import_travels_whole(run: Run) -> None:
    ran = run("build", "my-stages.py:first", "--arg", 'text="by value"')
    assert (ran.status, ran.stderr.splitlines()[-1]) == (0, "1 built"), ran.stderr


def test_what_was_built_is_shown_and_read(run: Run) -> None:
    rref = run("build", "stages.py:first").stdout.split("\t")[0]
    assert run("cat", rref, "out.txt").stdout == "text"
    shown = run("show", rref, "--json")
    assert (shown.status, shown.objects[0]["state"]) == (0, "valid")


# --- looking on ---------------------------------------------------------------------------------------


def test_nothing_to_list_is_said_aside(run: Run) -> None:
    assert run("ps") == (0, "", "nothing is going on\n")
    assert run("ps", "--json") == (0, "", "")


def test_status_tells_of_the_daemon(run: Run, served: StorageSettings) -> None:
    (found,) = run("status", "--json").objects
    assert (found["kind"], found["store"], found["draining"]) == ("status", str(served.root), False)
    shown = run("status").stdout
    assert f"store       {served.root}" in shown
    assert re.search(r"^held        0 of 1G for operations that have not ended$", shown, re.M)
    assert re.search(r"^results     \d+ not fetched, .* of 256M, each for up to 1 h 0 min$", shown, re.M)


def test_d3_what_has_ended_is_attached_to_by_how_its_name_begins_until_it_was_fetched(run: Run, served: StorageSettings) -> None:
    with Client.connect(store_layout(served)) as client:
        operation = client.submit(instantiate(daemons.chain, "ended", S=served)[1])
        assert operation.wait().ok
        found = run("attach", operation.id[:9], "--json").objects[-1]
        assert (found["kind"], found["operation"], found["built"]) == ("ended", operation.id, 3)
        assert len(operation.outcome().built) == 3, "the other's having it takes nothing away"
        assert operation.outcome() is operation.outcome()
        gone = run("attach", operation.id)
    assert gone.status == 66
    assert "UTC, its result was fetched by its client" in gone.stderr


def test_the_log_of_a_build_is_printed(run: Run) -> None:
    rref = run("build", "stages.py:first", "--arg", 'text="logged"').stdout.split("\t")[0]
    assert run("log", rref).stdout == "the realizer speaks\n"
    (found,) = run("log", rref, "--json", "-f").objects
    assert (found["kind"], found["text"]) == ("log", "the realizer speaks\n")
    assert run("log", f"dref:{rref.split('-')[1][:12]}").stdout == "the realizer speaks\n"


def test_what_is_not_there_is_said(run: Run) -> None:
    for arguments in (("log", "b-nothing"), ("cancel", "nothing"), ("attach", "nothing")):
        ran = run(*arguments)
        assert (ran.status, ran.stdout) == (66, "") or ran.status == 1, ran
        assert "there is no" in ran.stderr


@pytest.mark.parametrize("arguments", [("ps",), ("status",), ("attach", "x"), ("cancel", "x")])
def test_without_a_daemon_each_says_so(run: Run, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    ran = run(*arguments, "--json", store=tmp_path)
    assert (ran.status, ran.objects[-1]["code"]) == (69, "no-daemon")


def test_an_operation_is_listed_attached_to_and_cancelled(
    run: Run, waiting: Callable[[int], subprocess.Popen[str]], served: StorageSettings, folder: Path
) -> None:
    child = waiting(1)
    found = {item["kind"]: item for item in run("ps", "--json").objects}
    name, build = found["operation"]["operation"], found["build"]
    assert build["operations"] == [name]
    assert build["resources"] == {"cpus": 1}
    assert {line.split()[0] for line in run("ps").stdout.splitlines()} == {"operation", "build"}
    assert run("cancel", "stages.py:waits").stderr.startswith("error: there is no operation that is to build stages.py:waits;")
    attached = subprocess.Popen(
        command(served.root, "attach", "waits", "--json"), stdout=subprocess.PIPE, cwd=folder, env=daemons.environment(), text=True
    )
    followed = subprocess.Popen(
        command(served.root, "log", build["build"], "-f"), stdout=subprocess.PIPE, cwd=folder, env=daemons.environment(), text=True
    )
    assert followed.stdout is not None
    assert attached.stdout is not None
    assert followed.stdout.readline() == "it waits\n"
    attached.stdout.readline()  # it is attached
    assert run("cancel", build["dref"], "--json").objects == [{"kind": "cancelled", "operation": name}]
    told = json.loads(attached.communicate(timeout=daemons.SECONDS)[0].splitlines()[-1])
    assert (told["kind"], told["ok"], attached.returncode) == ("ended", False, 1)
    followed.communicate(timeout=daemons.SECONDS)
    assert followed.returncode == 0
    out, _ = child.communicate(timeout=daemons.SECONDS)
    assert child.returncode != 0
    assert "cancelled" in out


def test_ctrl_c_in_attach_leaves_the_operation_alone(
    run: Run, waiting: Callable[[int], subprocess.Popen[str]], served: StorageSettings, folder: Path
) -> None:
    waiting(3)
    name = next(item["operation"] for item in run("ps", "--json").objects if item["kind"] == "operation")
    attached = subprocess.Popen(
        command(served.root, "attach", name[:8]),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
        env=daemons.environment(),
        text=True,
    )
    assert attached.stderr is not None
    where = attached.stderr.readline()
    assert where.startswith("0/1 done, building waits for "), where
    attached.send_signal(signal.SIGINT)
    _, said = attached.communicate(timeout=daemons.SECONDS)
    assert attached.returncode == 130
    assert f"the operation {name} goes on" in said
    ending = shlex.split(said.strip().rpartition("to end it: ")[2])
    assert name in [item.get("operation") for item in run("ps", "--json").objects]
    assert run(*ending[3:]).status == 0, ending


@pytest.mark.parametrize("ends", [signal.SIGTERM, signal.SIGKILL])
def test_who_looks_on_is_told_that_the_daemon_went_away(folder: Path, ends: signal.Signals) -> None:
    with daemons.short_store() as S:
        daemon = daemons.start_daemon(str(S.root), "--drain", "0.2")
        closure = instantiate(lambda r: daemons.stage(r, "waits", daemons.wait_for_ever), S=S)[1]
        with Client.connect(store_layout(S)) as client:
            name = client.submit(closure).id
            looking = [
                subprocess.Popen(
                    command(S.root, *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=daemons.environment(), text=True
                )
                for arguments in (("attach", name), ("log", "-f", closure.targets[0]), ("attach", name, "--json"))
            ]
            wait_until(lambda: any(line.pid for line in client.ps().builds))
            assert looking[0].stderr is not None
            assert looking[1].stdout is not None
            assert looking[2].stdout is not None
            assert looking[0].stderr.readline().startswith("0/1 done")
            assert looking[1].stdout.readline() == "it waits\n"
            assert json.loads(looking[2].stdout.readline()) == {"kind": "attached", "done": 0, "total": 1}
            daemon.send_signal(ends)
            ended = [child.communicate(timeout=daemons.SECONDS) for child in looking]
        daemons.end_daemon(daemon)
        assert [child.returncode for child in looking] == [75, 75, 75], ended
        assert f"went away in the middle of the operation {name}" in ended[0][1]
        assert "went away in the middle of the" in ended[1][1]
        assert "pylightnix --store" in ended[1][1]
        assert json.loads(ended[2][0].splitlines()[-1])["code"] == "daemon-left"


@pytest.mark.parametrize(
    ("resources", "text"),
    [
        (m.Resources(cpus=3), "3 slots"),
        (m.Resources(cpus=1, memory=5 << 20, tags={"gpu": 2, "port": 1}, devices={"gpu": [0, 2]}), "1 slot, 5M of memory, gpu 0,2, 1 port"),
    ],
)
def test_what_a_build_takes_in_words(resources: m.Resources, text: str) -> None:
    assert amounts(resources) == text


def test_ctrl_c_cancels_the_operation(run: Run, waiting: Callable[[int], subprocess.Popen[str]]) -> None:
    child = waiting(2)
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=daemons.SECONDS)
    assert (child.returncode, json.loads(out.splitlines()[-1])["code"]) == (130, "interrupted")
    assert [item for item in run("ps", "--json").objects if item["kind"] == "operation"] == []
