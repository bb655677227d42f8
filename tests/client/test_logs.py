"""Logs are found by names that are never given twice: by the daemon that ran a build, by the next one, and by none."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import anyio
import pytest
from tests.client import daemons
from tests.client.conftest import Ran
from tests.client.in_process import run_here
from tests.waiting import wait_until

from pylightnix import Build, DRef, RRef, StorageSettings, build_cattrs, build_outpath, instantiate
from pylightnix.storage import store_layout
from pylightnix_client.aio import AsyncClient
from pylightnix_client.client import Client

LINES = 60_000
PIECE = 1 << 20


def text_of(name: str) -> str:
    """Return what a build prints: more than one answer holds, with characters of two bytes at any place."""
    return "".join(f"{name}: é{'ü' * (i % 7)} {i}\n" for i in range(LINES))


def print_much(b: Build) -> None:
    print(text_of(build_cattrs(b).text), end="", flush=True)
    daemons.write_config(b)


def print_differently(b: Build) -> None:
    print(f"process {os.getpid()}", flush=True)
    with open(os.path.join(build_outpath(b), "out.txt"), "w") as file:
        file.write(str(os.getpid()))


def build(S: StorageSettings, realize: Callable[[Build], None], text: str, force: bool = False) -> tuple[DRef, RRef]:
    _, closure = instantiate(lambda r: daemons.stage(r, text, realize, text=text), S=S)
    with Client.connect(store_layout(S)) as client:
        outcome = client.realize(closure, force_rebuild=force)
    outcome.check()
    dref = closure.targets[0]
    return dref, (outcome.context[dref] or [])[-1]


@dataclass
class Built:
    S: StorageSettings
    logs: dict[str, str]
    """Reference or name of a build -> what it wrote."""

    def run(self, *arguments: str) -> Ran:
        return run_here("--store", str(self.S.root), *arguments)


@pytest.fixture(scope="module")
def built() -> Iterator[Built]:
    """A store with logs, whose daemon has ended."""
    with daemons.short_store() as S:
        daemon = daemons.start_daemon(str(S.root), "--drain", "1")
        logs = {}
        try:
            for text, realize, wrote in [
                ("speaks", daemons.say, "the realizer speaks\n"),
                ("silent", daemons.write_config, ""),
                ("long", print_much, text_of("long")),
            ]:
                logs.update(dict.fromkeys(build(S, realize, text), wrote))
            with Client.connect(store_layout(S)) as client:
                logs.update({client.log(ref).build: wrote for ref, wrote in logs.items()})
        finally:
            daemons.end_daemon(daemon)
        assert len(logs) == 9
        yield Built(S, logs)


def check_every_route(built: Built, refs: dict[str, str]) -> None:
    for ref, wrote in refs.items():
        ran = built.run("log", ref)
        assert (ran.status, ran.stdout == wrote, ran.stderr) == (0, True, ""), ref
        objects = built.run("log", ref, "--json").objects
        assert {line["kind"] for line in objects} == {"log"}
        assert len({line["build"] for line in objects}) == 1
        assert "".join(line["text"] for line in objects) == wrote
        assert all(line["text"].isprintable() or "\n" in line["text"] for line in objects if wrote), "no character is cut in two"
    assert built.run("log", "b-nosuch").status != 0


def test_with_no_daemon_at_all(built: Built) -> None:
    check_every_route(built, built.logs)
    beginning = next(ref for ref in built.logs if ref.startswith("b-"))
    assert built.run("log", beginning[:7]).stdout == built.logs[beginning]


def test_through_the_next_daemon_while_it_runs_builds_of_its_own(built: Built) -> None:
    daemon = daemons.start_daemon(str(built.S.root), "--drain", "0.2")
    try:
        own = dict.fromkeys(build(built.S, daemons.say, "another"), "the realizer speaks\n")
        _, waits = instantiate(lambda r: daemons.stage(r, "waits", daemons.wait_for_ever), S=built.S)
        with Client.connect(store_layout(built.S)) as client:
            client.submit(waits)
            wait_until(lambda: client.log(waits.targets[0]).data == b"it waits\n" if client.ps().builds else False)
            running = client.log(waits.targets[0])
            assert not running.finished
            check_every_route(built, {**built.logs, **own, running.build: "it waits\n"})
            for ref, wrote in built.logs.items():
                found = client.log(ref)
                assert (found.data.decode(), found.next, found.finished) == (wrote, len(wrote.encode()), True)
                assert client.log(ref, 3, 5).data == wrote.encode()[3:8]
                assert client.log(ref, found.next - 7 if wrote else 0).data == wrote.encode()[-7:]

            async def all_logs() -> dict[str, bytes]:
                async with await AsyncClient.connect(client.path) as other:
                    return {ref: (await other.log(ref)).data for ref in built.logs}

            assert anyio.run(all_logs) == {ref: wrote.encode() for ref, wrote in built.logs.items()}
    finally:
        daemons.end_daemon(daemon)
    check_every_route(built, {**built.logs, **own})


def print_much_and_wait(b: Build) -> None:
    print_much(b)
    daemons.wait_for_ever(b)


def test_a_long_log_is_read_whole_while_it_is_written(built: Built) -> None:
    daemon = daemons.start_daemon(str(built.S.root), "--drain", "0.2")
    try:
        _, closure = instantiate(lambda r: daemons.stage(r, "goes-on", print_much_and_wait, text="goes on"), S=built.S)
        wrote = text_of("goes on") + "it waits\n"
        assert len(wrote) > PIECE
        with Client.connect(store_layout(built.S)) as client:
            operation = client.submit(closure)
            wait_until(lambda: client.ps().builds != [] and client.log(closure.targets[0]).data.endswith(b"it waits\n"))
            found = client.log(closure.targets[0])
            assert (found.data == wrote.encode(), found.finished) == (True, False)
            check_every_route(built, {closure.targets[0]: wrote, found.build: wrote})
            client.cancel(operation.id)
            wait_until(lambda: client.log(found.build).finished)
            check_every_route(built, {closure.targets[0]: wrote, found.build: wrote})
    finally:
        daemons.end_daemon(daemon)
    check_every_route(built, {found.build: wrote})


def test_a_realization_has_the_log_of_the_build_that_made_it(built: Built) -> None:
    daemon = daemons.start_daemon(str(built.S.root), "--drain", "1")
    try:
        made = [build(built.S, print_differently, "differs", force=True) for _ in range(3)]
        layout = store_layout(built.S)
        wrote: dict[str, str] = {}
        with Client.connect(layout) as client:
            rrefs = client.rrefs("drefrrefs", made[0][0])
            for rref in rrefs:
                with open(os.path.join(layout.realization(rref), "out.txt")) as file:
                    wrote[rref] = f"process {file.read()}\n"
                assert client.log(rref).data.decode() == wrote[rref]
            starts = client.starts(rrefs)
    finally:
        daemons.end_daemon(daemon)
    assert len(set(wrote.values())) == 3
    check_every_route(built, wrote)
    assert built.run("log", made[0][0]).stdout == wrote[max(starts, key=starts.__getitem__)]


def test_what_has_no_log_says_why(built: Built) -> None:
    from pylightnix import realize1

    S = built.S
    rref = realize1(instantiate(lambda r: daemons.stage(r, "embedded", daemons.write_config), S=S))
    ran = built.run("log", rref)
    assert (ran.status, ran.stdout) == (66, "")
    assert "a build without a daemon writes to its terminal" in ran.stderr


def test_a_log_is_json_objects_of_one_build(built: Built) -> None:
    ref = next(ref for ref, wrote in built.logs.items() if not wrote)
    found: list[dict[str, Any]] = [json.loads(line) for line in built.run("log", ref, "--json").stdout.splitlines()]
    assert [(line["kind"], line["text"]) for line in found] == [("log", "")]
