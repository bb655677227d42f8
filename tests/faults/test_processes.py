"""Several real processes on one store: nothing is built twice, nobody waits for nothing, whoever is killed takes nothing along."""

from __future__ import annotations

import json
import os
import random
import selectors
import signal
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, Optional

import pytest
from tests.peers import WAIT_SECONDS, Line, Peer
from tests.soundness import UNIT_FILE, check_sound, rows
from tests.stores import in_child, new_store, output, stage

from pylightnix import DRef, Registry, RRef, StorageSettings, instantiate, match_all
from pylightnix.embedded import Outcome, realize_closure
from pylightnix.events import BuildWaiting, Event, ignore
from pylightnix.query import allrrefs
from pylightnix.storage import store_layout

SCRIPT = os.path.join(os.path.dirname(__file__), "overlapping.py")
PROCESSES = 4


# --- a crowd ------------------------------------------------------------------------------------------


class Crowd:
    """Starts processes on one store, kills some of them and starts others in their place."""

    def __init__(self, folder: Path, width: int, depth: int, seed: int) -> None:
        self.S = new_store(folder / "store")
        self.journal = str(folder / "journal")
        self.size = (str(width), str(depth))
        self.chance = random.Random(seed)
        self.acknowledged: set[RRef] = set()
        self.killed: set[int] = set()
        self.results: list[dict[DRef, list[RRef]]] = []
        self.selector = selectors.DefaultSelector()

    def start(self, seed: Optional[int] = None) -> None:
        number = self.chance.randrange(1, 1 << 30) if seed is None else seed
        argv = [sys.executable, SCRIPT, str(self.S.root), self.journal, str(number), *self.size]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        process = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE)
        assert process.stdout is not None
        self.selector.register(process.stdout, selectors.EVENT_READ, (process, bytearray()))

    def live(self) -> list[tuple[subprocess.Popen[bytes], bytearray]]:
        return [key.data for key in self.selector.get_map().values()]

    def run(self, kills: int) -> None:
        """Let them all come to an end; after any number of steps of theirs, kill one and start another."""
        for _ in range(PROCESSES):
            self.start()
        steps = self.chance.randrange(1, 60)
        while self.live():
            ready = self.selector.select(WAIT_SECONDS)
            assert ready, "nobody has done anything for long"
            for key, _ in ready:
                steps -= self.hear(key.fileobj, *key.data)
                if steps <= 0 and kills and self.live():
                    kills -= 1
                    steps = self.chance.randrange(1, 120)
                    self.kill(self.chance.choice(self.live())[0])

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        self.killed.add(process.pid)
        self.start()

    def hear(self, pipe: Any, process: subprocess.Popen[bytes], heard: bytearray) -> int:
        """Take in what a process said; return how many steps it has made."""
        data = os.read(pipe.fileno(), 1 << 16)
        heard += data
        lines = heard.split(b"\n")
        heard[:] = lines.pop()
        for line in lines:
            word, _, rest = line.decode().partition(" ")
            if word == "acknowledged":
                self.acknowledged.update(map(RRef, rest.split()))
            elif word == "done":
                self.results.append(json.loads(rest))
        if not data:
            self.selector.unregister(pipe)
            pipe.close()
            status = process.wait(WAIT_SECONDS)
            assert status == (-signal.SIGKILL if process.pid in self.killed else 0) or status == 0
        return len(lines)

    def notes(self) -> list[list[str]]:
        with open(self.journal, encoding="utf-8") as file:
            return [line.split() for line in file.read().splitlines()]

    def check(self) -> None:
        assert len(self.results) >= PROCESSES
        assert all(result == self.results[0] for result in self.results)
        notes = self.notes()
        self.start(seed=0)
        while self.live():
            for key, _ in self.selector.select(WAIT_SECONDS):
                self.hear(key.fileobj, *key.data)
        assert self.notes() == notes, "the last one had something to build"
        assert self.results[-1] == self.results[0]
        check_sound(self.S, self.acknowledged)
        assert os.listdir(store_layout(self.S).tmp) == []
        assert set(rows(self.S)) == {rref for rrefs in self.results[0].values() for rref in rrefs}
        self.check_built_once(notes)

    def check_built_once(self, notes: list[list[str]]) -> None:
        starts: dict[str, list[int]] = defaultdict(list)
        for what, dref, pid in notes:
            if what == "start":
                starts[dref].append(int(pid))
        assert len(starts) == len(self.results[0])
        for dref, pids in starts.items():
            twice = [pid for pid in pids[:-1] if pid not in self.killed]
            assert not twice, f"{dref} was built by {pids}, of whom {twice} were not killed"


def crowd(folder: Path, seed: int, *, width: int, depth: int, kills: int) -> None:
    print(f"seed {seed}")
    each = Crowd(folder, width, depth, seed)
    each.run(kills)
    each.check()


def test_four_processes_build_everything_once(tmp_path: Path) -> None:
    crowd(tmp_path, 1, width=5, depth=4, kills=0)


@pytest.mark.parametrize("number", range(3))
def test_some_are_killed(tmp_path: Path, number: int) -> None:
    crowd(tmp_path, random.SystemRandom().randrange(1 << 30), width=5, depth=4, kills=6)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(15))
def test_many_are_killed(tmp_path: Path, number: int) -> None:
    crowd(tmp_path, random.SystemRandom().randrange(1 << 30), width=8, depth=8, kills=40)


# --- two of them --------------------------------------------------------------------------------------


def told(outcome: Outcome) -> str:
    outcome.check()
    names = {kind: sorted(dref[38:] for dref in getattr(outcome, kind)) for kind in ("built", "joined", "reused")}
    return json.dumps({**names, "rrefs": sorted(rref for rrefs in outcome.context.values() for rref in rrefs or ())})


def slowly(line: Line, name: str, r: Registry, **config: Any) -> DRef:
    """Register a stage whose realizer tells when it starts, and ends when it is told."""

    def realizer(S: StorageSettings, dref: DRef, context: object, rarg: object) -> list[Any]:
        line.say(f"building {name}")
        line.hear()
        return [output(S, {"name": name})]

    return stage(r, name, realizer=realizer, **config)


def realizing(S: StorageSettings, names: str = "slow", observe: bool = False, force: bool = False) -> Peer:
    """Start a process that realizes `slow`, and with `names` = "above" what depends on `quick` and is slow itself."""

    def body(line: Line) -> None:
        def graph(r: Registry) -> DRef:
            if names == "slow":
                return slowly(line, "slow", r)
            units = [{"i": str(i), UNIT_FILE: "quick 3"} for i in range(3)]
            quick = stage(r, "quick", matcher=match_all, realizer=lambda S, *_: [output(S, unit) for unit in units])
            middle = stage(r, "middle", dep=quick)
            return middle if names == "middle" else slowly(line, "above", r, dep=middle)

        def watch(event: Event) -> None:
            if isinstance(event, BuildWaiting):
                line.say(f"waiting for {event.dref[38:]}: {', '.join(event.holders)}")

        closure = instantiate(graph, S=S)[1]
        line.say(told(realize_closure(closure, observe=watch if observe else ignore, force_rebuild=force)))

    return Peer(body)


def test_the_second_waits_and_joins(S: StorageSettings) -> None:
    with realizing(S) as first:
        first.expect("building slow")
        with realizing(S, observe=True) as second:
            heard = second.line.hear()
            assert heard.startswith("waiting for slow: ")
            assert f"process {first.pid} (" in heard
            assert second.line.is_quiet()
            first.say("end")
            one, two = json.loads(first.line.hear()), json.loads(second.line.hear())
            first.end()
            second.end()
    assert (one["built"], two["built"], two["joined"]) == (["slow"], [], ["slow"])
    assert one["rrefs"] == two["rrefs"]
    in_child(lambda: list(allrrefs(S)))
    check_sound(S, one["rrefs"])


def test_the_second_builds_when_the_first_is_killed(S: StorageSettings) -> None:
    with realizing(S) as first:
        first.expect("building slow")
        with realizing(S, observe=True) as second:
            assert second.line.hear().startswith("waiting for slow")
            first.kill()
            second.expect("building slow")
            second.say("end")
            two = json.loads(second.line.hear())
            second.end()
    assert (two["built"], two["joined"]) == (["slow"], [])
    in_child(lambda: list(allrrefs(S)))
    check_sound(S, two["rrefs"])


def test_a_forced_build_waits_and_does_not_join(S: StorageSettings) -> None:
    with realizing(S) as first:
        first.expect("building slow")
        with realizing(S, observe=True, force=True) as second:
            assert second.line.hear().startswith("waiting for slow")
            first.say("end")
            one = json.loads(first.line.hear())
            second.expect("building slow")
            second.say("end")
            two = json.loads(second.line.hear())
            first.end()
            second.end()
    assert two["built"] == ["slow"]
    assert one["rrefs"] == two["rrefs"]
    in_child(lambda: list(allrrefs(S)))
    check_sound(S, one["rrefs"])


@pytest.mark.parametrize("end", ["end", "kill"])
def test_what_is_in_place_is_adopted_without_waiting(S: StorageSettings, end: str) -> None:
    """The first has put `quick` and `middle` in place, has committed neither, and is busy with `above`."""
    with realizing(S, "above") as first:
        first.expect("building above")
        assert {row.state for row in rows(S).values()} == {0}
        with realizing(S, "middle", observe=True) as second:
            two = json.loads(second.line.hear())
            second.end()
        assert (two["built"], two["joined"]) == ([], ["middle", "quick"])
        assert {rref: row.state for rref, row in rows(S).items()} == {RRef(rref): 1 for rref in two["rrefs"]}
        if end == "kill":
            first.kill()
            told_of = two["rrefs"]
        else:
            first.say("end")
            told_of = json.loads(first.line.hear())["rrefs"]
            first.end()
    assert in_child(lambda: list(allrrefs(S))) == told_of
    assert set(two["rrefs"]) <= set(told_of)
    check_sound(S, told_of)


def test_what_is_in_place_is_told_of_by_nobody_else(S: StorageSettings) -> None:
    with realizing(S, "above") as first:
        first.expect("building above")
        assert in_child(lambda: list(allrrefs(S))) == []
        first.kill()
    assert in_child(lambda: list(allrrefs(S))) == []
    check_sound(S)
