"""Realizers and matchers that cannot leave the program: through a daemon they do what they do without one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.client import daemons
from tests.waiting import wait_until

from pylightnix import (
    Build,
    BuildError,
    Closure,
    Context,
    DRef,
    InvalidMatch,
    InvalidOutput,
    Misuse,
    Registry,
    RRef,
    StorageSettings,
    build_outpath,
    fstmpdir,
    instantiate,
    match_latest,
    mkconfig,
    mkdrv,
    realize,
    realize1,
    rref2path,
)
from pylightnix.events import BuildFailed, BuildFinished, BuildStarted, Event
from pylightnix.protocol.errors import OperationCancelled
from pylightnix.remote import realize_closure
from pylightnix.storage import store_layout
from pylightnix_client.aio import AsyncClient
from pylightnix_client.client import Client

Realize = Callable[[Build], None]


@pytest.fixture(scope="module")
def served() -> Iterator[StorageSettings]:
    with daemons.served_store() as S:
        yield S


@pytest.fixture(autouse=True)
def _nothing_is_left(served: StorageSettings) -> Iterator[None]:
    yield
    with Client.connect(store_layout(served)) as client:
        wait_until(lambda: client.status().operations == 0)
    tmp = store_layout(served).tmp
    wait_until(lambda: not any(os.listdir(os.path.join(tmp, owner)) for owner in os.listdir(tmp)))


def write(b: Build, text: str = "") -> None:
    with open(os.path.join(build_outpath(b), "out.txt"), "w") as file:
        file.write(text)


def text_of(rref: RRef, S: StorageSettings) -> str:
    return Path(rref2path(rref, S), "out.txt").read_text()


def one(S: StorageSettings, name: str, realize: Realize, matcher: Any = None, **config: Any) -> Closure:
    return instantiate(lambda r: daemons.stage(r, name, realize, matcher, **config), S=S)[1]


# --- realizers ------------------------------------------------------------------------------------------


def test_closures_over_what_is_alive(served: StorageSettings) -> None:
    lock, calls = threading.Lock(), 0
    left, right = socket.socketpair()
    letters = (letter for letter in "abc")

    def stages(r: Registry) -> DRef:
        def locked(b: Build) -> None:
            nonlocal calls
            with lock:
                calls += 1
            assert threading.current_thread() is threading.main_thread()
            write(b, "locked")

        def sent(b: Build) -> None:
            left.sendall(b"over the wire")
            write(b, right.recv(99).decode())

        def drawn(b: Build) -> None:
            write(b, next(letters))

        deps = [daemons.stage(r, realize.__name__, realize) for realize in (locked, sent, drawn)]
        return daemons.stage(r, "all", locked, deps=deps)

    closure = instantiate(stages, S=served)[1]
    with left, right:
        _, _, context = realize(closure)
    assert sorted(text_of(rref, served) for rrefs in context.values() for rref in rrefs or []) == ["a", "locked", "locked", "over the wire"]
    assert calls == 2
    assert realize(closure)[2] == context
    assert (calls, next(letters)) == (2, "b"), "nothing ran again"


def test_it_is_the_same_as_without_a_daemon(served: StorageSettings, S: StorageSettings) -> None:
    seen: list[Any] = []

    def stages(r: Registry) -> DRef:
        lowest = daemons.stage(r, "lowest", lambda b: write(b, "lowest"))
        middle = daemons.stage(r, "middle", daemons.write_config, text="middle", dep=lowest)

        def highest(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Any]:
            folder = fstmpdir(S)
            seen.append(
                (sorted(context), len(context), os.listdir(folder) == [os.path.basename(os.getcwd())], fstmpdir(None) == folder, rarg)
            )
            os.makedirs(os.path.join(folder, "deep", "out"))
            return [os.path.join(folder, "deep", "out")]

        return mkdrv(mkconfig({"name": "highest", "dep": middle}), match_latest(), lock_in(highest), r)

    for settings in (served, S):
        closure = instantiate(stages, S=settings)[1]
        realize1(closure, realize_args={closure.targets[0]: {"word": 1}})
    assert seen[0] == seen[1]
    assert seen[0][1:] == (2, True, True, {"word": 1})


def lock_in(f: Callable[..., Any]) -> Callable[..., Any]:
    """Return `f` as something that cannot be pickled."""
    lock = threading.Lock()

    def locked(*args: Any) -> Any:
        with lock:
            return f(*args)

    return locked


def test_what_a_realizer_raises_is_that_very_object(served: StorageSettings) -> None:
    class Odd(Exception):
        def __init__(self, lock: Any, needed: int) -> None:
            self.lock = lock

    raised = Odd(threading.Lock(), 1)

    def fails(b: Build) -> None:
        write(b, "half")
        raise raised

    with pytest.raises(BuildError) as caught:
        realize(instantiate(lambda r: daemons.stage(r, "odd", fails), S=served))
    assert caught.value.exception is raised
    assert caught.value.__cause__ is raised
    (kept,) = caught.value.outpaths
    assert Path(kept, "out.txt").read_text() == "half"
    assert kept.startswith(store_layout(served).failed)

    def raises(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Any]:
        raise raised

    with pytest.raises(Odd) as raw:
        realize(instantiate(lambda r: mkdrv(mkconfig({"name": "raw"}), match_latest(), lock_in(raises), r), S=served))
    assert raw.value is raised


@pytest.mark.parametrize("answer", [["/etc"], [], None, "nonsense", [3]])
def test_bad_outputs_fail_here(served: StorageSettings, answer: Any) -> None:
    realizer = lock_in(lambda *_: answer)
    with pytest.raises(InvalidOutput):
        realize(instantiate(lambda r: mkdrv(mkconfig({"name": "bad"}), match_latest(), realizer, r), S=served))


def test_a_tree_that_cannot_be_stored_fails(served: StorageSettings) -> None:
    lock = threading.Lock()

    def fifo(b: Build) -> None:
        with lock:
            os.mkfifo(os.path.join(build_outpath(b), "pipe"))

    with pytest.raises(InvalidOutput):
        realize(instantiate(lambda r: daemons.stage(r, "fifo", fifo), S=served))


def test_arguments_that_cannot_be_pickled(served: StorageSettings) -> None:
    found: list[object] = []

    def takes(b: Build) -> None:
        found.append(b.rarg["lock"])
        write(b)

    lock = threading.Lock()
    closure = one(served, "takes", takes)
    realize(closure, realize_args={closure.targets[0]: {"lock": lock}})
    assert found[0] is lock


def test_events_tell_of_it(served: StorageSettings) -> None:
    lock = threading.Lock()

    def quick(b: Build) -> None:
        with lock:
            write(b)

    def fails(b: Build) -> None:
        with lock:
            raise ValueError("no such luck")

    seen: list[Event] = []
    outcome = realize_closure(one(served, "told", quick), observe=seen.append)
    assert [type(event) for event in seen] == [BuildStarted, BuildFinished]
    assert (len(outcome.built), outcome.joined) == (1, [])
    seen.clear()
    outcome = realize_closure(one(served, "told-of-failure", fails), observe=seen.append)
    assert [type(event) for event in seen] == [BuildStarted, BuildFailed]


def test_a_realizer_may_realize_but_not_itself(served: StorageSettings) -> None:
    lock = threading.Lock()

    def inner(b: Build) -> None:
        with lock:
            write(b, "inner")

    closures: list[Closure] = [one(served, "inner", inner)]

    def outer(b: Build) -> None:
        write(b, text_of(realize1(closures[0]), served))

    assert text_of(realize1(one(served, "outer", outer)), served) == "inner"

    def itself(b: Build) -> None:
        with lock:
            realize1(closures[-1])

    closures.append(one(served, "itself", itself))
    with pytest.raises(BuildError) as caught:
        realize1(closures[-1])
    assert isinstance(caught.value.exception, Misuse)
    assert "its own derivation" in str(caught.value.exception)


def test_an_inner_operation_builds_what_waits_for_the_outer(served: StorageSettings) -> None:
    """The program has one claim at a time: waiting for the other would be waiting for itself."""
    lock, inside = threading.Lock(), []

    def realizer(b: Build) -> None:
        with lock:
            inside.append(b.dref)
        if len(inside) == 1:
            realize(next(single for single in singles if single.targets != [b.dref]))
        write(b)

    singles = [one(served, name, realizer) for name in ("left", "right")]
    both = instantiate(lambda r: [daemons.stage(r, name, realizer) for name in ("left", "right")], S=served)[1]
    realize(both)
    assert sorted(inside) == sorted(both.targets)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_realizer_cancels_the_operation(served: StorageSettings, error: type[BaseException]) -> None:
    lock = threading.Lock()

    def interrupted(b: Build) -> None:
        with lock:
            raise error

    closure = one(served, f"interrupted-{error.__name__}", interrupted)
    with pytest.raises(error):
        realize(closure)
    with Client.connect(store_layout(served)) as client:
        operation = client.submit(closure)
        with pytest.raises(error):
            operation.wait()
        with pytest.raises(OperationCancelled):
            operation.outcome()


# --- matchers -------------------------------------------------------------------------------------------


def test_a_matcher_decides_here(served: StorageSettings) -> None:
    lock, offered = threading.Lock(), []

    def longest(S: StorageSettings, rrefs: list[RRef]) -> Any:
        with lock:
            offered.append(len(rrefs))
            assert fstmpdir(S)
            return [max(rrefs, key=lambda rref: len(text_of(rref, S)))] if len(rrefs) > 1 else None

    texts = iter(["short", "much longer"])
    for text in ("x", "xyz"):
        realize(one(served, "matched", lambda b, text=text: write(b, text)), force_rebuild=True)  # type: ignore[misc]  # a bound default
    closure = one(served, "matched", lambda b: write(b, next(texts)), longest)
    assert text_of(realize1(closure), served) == "xyz"
    assert offered == [2]


@pytest.mark.parametrize("answer", [[], "nonsense", ["nonsense"], [42], [f"rref:{'0' * 32}-{'1' * 32}-matched"]])
def test_answers_that_are_no_candidates(served: StorageSettings, answer: Any) -> None:
    lock = threading.Lock()

    def matcher(S: StorageSettings, rrefs: list[RRef]) -> Any:
        with lock:
            return answer

    with pytest.raises(InvalidMatch):
        realize(one(served, "mismatched", write, matcher))


def test_what_a_matcher_raises_is_that_very_object(served: StorageSettings) -> None:
    raised = ValueError(threading.Lock())

    def matcher(S: StorageSettings, rrefs: list[RRef]) -> Any:
        raise raised

    with pytest.raises(ValueError) as caught:  # noqa: PT011  # it is compared by identity
        realize(one(served, "unmatched", write, matcher))
    assert caught.value is raised


# --- the clients ----------------------------------------------------------------------------------------


def test_operations_of_one_connection_do_not_wait_for_each_other(served: StorageSettings) -> None:
    lock = threading.Lock()

    def quick(b: Build) -> None:
        with lock:
            write(b)

    with Client.connect(store_layout(served)) as client:
        first, second = (client.submit(one(served, "shared-connection", quick)) for _ in range(2))
        results = [second.wait(), first.wait()]
        assert sorted(result.built for result in results) == [0, 1]
        # Reused, if the daemon comes to plan the second when the first is there already.
        assert sum(result.joined + result.reused for result in results) == 1
        third = client.submit(one(served, "unwaited", quick))
        third.cancel()
        assert client.submit(one(served, "waited", quick)).wait().built == 1


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_async_client_builds_in_a_thread(served: StorageSettings, backend: str) -> None:
    lock, threads = threading.Lock(), set()
    raised = ValueError(lock)

    def quick(b: Build) -> None:
        with lock:
            threads.add(threading.current_thread())
        write(b)

    def fails(b: Build) -> None:
        raise raised

    async def main() -> None:
        with anyio.fail_after(daemons.SECONDS):
            async with await AsyncClient.connect(store_layout(served)) as client:
                operations = [await client.submit(one(served, f"{backend}-{i}", quick)) for i in range(3)]
                async with anyio.create_task_group() as tasks:
                    for operation in operations:
                        tasks.start_soon(operation.outcome)
                failed = await client.submit(one(served, f"{backend}-fails", fails))
                assert [event async for event in failed.events()]
                (_, error), *_ = (await failed.outcome()).failed
                assert isinstance(error, BuildError)
                assert error.exception is raised

    anyio.run(main, backend=backend)
    assert threads
    assert threading.main_thread() not in threads


RACER = """
import os, sys, threading
from pylightnix import StorageSettings, build_outpath, build_wrapper, instantiate, match_latest, mkconfig, mkdrv, mkSS, realize1

lock = threading.Lock()

def realizer(b):
    with lock:
        print("built", flush=True)
        if sys.argv[2] == "hold":
            sys.stdin.read()
    with open(os.path.join(build_outpath(b), "out.txt"), "w") as file:
        file.write("raced")

print("ready", flush=True)
sys.stdin.readline()
_, root, _, name = sys.argv
print(realize1(instantiate(lambda r: mkdrv(mkconfig({"name": name}), match_latest(), build_wrapper(realizer), r), S=mkSS(root))))
"""


def racer(S: StorageSettings, how: str, name: str, folder: Path) -> subprocess.Popen[str]:
    """Start a program that asks for one stage that it alone can build, once it is told to go."""
    script = folder / "racer.py"
    script.write_text(RACER)
    command = [sys.executable, str(script), str(S.root), how, name]
    return subprocess.Popen(command, env=daemons.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def line_of(program: subprocess.Popen[str]) -> str:
    assert program.stdout is not None
    return program.stdout.readline().strip()


def tell(program: subprocess.Popen[str], text: str = "go\n") -> None:
    assert program.stdin is not None
    program.stdin.write(text)
    program.stdin.flush()


def test_two_programs_that_race_build_once(served: StorageSettings, tmp_path: Path) -> None:
    programs = [racer(served, "go", "raced", tmp_path) for _ in range(2)]
    for program in programs:
        assert line_of(program) == "ready"
    for program in programs:
        tell(program)
    said = [program.communicate(timeout=daemons.SECONDS)[0].split() for program in programs]
    assert sorted(map(len, said)) == [1, 2]
    assert sum(words.count("built") for words in said) == 1
    assert said[0][-1] == said[1][-1]


def test_a_program_killed_in_the_middle_is_replaced(served: StorageSettings, tmp_path: Path) -> None:
    first, second = racer(served, "hold", "killed", tmp_path), racer(served, "go", "killed", tmp_path)
    for program in (first, second):
        assert line_of(program) == "ready"
    tell(first)
    assert line_of(first) == "built"
    tell(second)
    with Client.connect(store_layout(served)) as client:
        wait_until(lambda: any(len(line.operations) == 2 for line in client.ps().builds))
        first.send_signal(signal.SIGKILL)
        first.communicate(timeout=daemons.SECONDS)
    said = second.communicate(timeout=daemons.SECONDS)[0].split()
    assert said[0] == "built"
    assert text_of(RRef(said[1]), served) == "raced"


def test_a_daemon_killed_in_the_middle_is_survived() -> None:
    with daemons.served_store() as S:
        with Client.connect(store_layout(S)) as client:
            pid = client.status().pid
        lock, runs = threading.Lock(), []

        def kills(b: Build) -> None:
            with lock:
                runs.append(b)
            if len(runs) == 1:
                os.kill(pid, signal.SIGKILL)
            write(b, "survived")

        assert text_of(realize1(one(S, "killer", kills)), S) == "survived"
        assert len(runs) == 2
