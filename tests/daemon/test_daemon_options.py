"""What stages ask for with `Options`: budgets, devices, limits, interpreters, priorities, variables, sandboxes."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from tests.daemon import stages
from tests.daemon.conftest import Daemon
from tests.daemon.wire_client import WireClient, environment
from tests.waiting import wait_until

from pylightnix import Closure, Context, DRef, Options, StorageSettings, instantiate, rref2path, with_options
from pylightnix.protocol import messages as m


def surroundings(S: StorageSettings, dref: DRef, context: Context, rarg: stages.Arguments) -> list[Any]:
    """Write down the environment and the worker's process."""
    return [stages.out(S, json.dumps({"env": dict(os.environ), "parent": os.getppid()}))]


def one(daemon: Daemon, realizer: Any, name: str = "stage", *, options: Options, **items: Any) -> Closure:
    return stages.one(daemon.plans, with_options(realizer, options), name, **items)


def found(daemon: Daemon, client: WireClient, operation: str) -> dict[str, Any]:
    ((rref,),) = client.matched(operation).values()
    value: dict[str, Any] = json.loads(Path(rref2path(rref, daemon.S), "out.txt").read_text())
    return value


def lines(client: WireClient) -> dict[str, m.BuildLine]:
    return {line.dref: line for line in client.ps().builds}


@pytest.mark.parametrize(
    ("options", "option", "wanted", "there_is"),
    [
        (Options(cpus=3), "cpus", 3, 2),
        (Options(memory=(1 << 20) + 1), "memory", (1 << 20) + 1, 1 << 20),
        (Options(tags={"gpu": 3}), "tags.gpu", 3, 2),
        (Options(tags={"license": 1}), "tags.license", 1, 0),
    ],
)
def test_what_no_budget_can_give_is_refused_at_once(tmp_path: Path, options: Options, option: str, wanted: int, there_is: int) -> None:
    with Daemon(tmp_path / "store", "--jobs", "2", "--memory", "1M", "--tag", "gpu=2") as daemon, daemon.wait_ready().client() as client:
        closure = one(daemon, stages.plain, options=options)
        operation, result = client.build(closure)
        assert result.failed == 1
        (row,) = client.failed(operation)
        assert row.code == "beyond-budget"
        assert row.fields == {"dref": closure.targets[0], "option": option, "wanted": wanted, "available": there_is}
        assert (client.status().busy, client.status().queued) == (0, 0)


def test_builds_wait_for_what_others_have(tmp_path: Path) -> None:
    gate = stages.Gate(tmp_path)
    with Daemon(tmp_path / "store", "--jobs", "4", "--memory", "1000") as daemon, daemon.wait_ready().client() as client:
        large = one(daemon, stages.waits, "large", options=Options(memory=600), gate=gate.path)
        second = one(daemon, stages.plain, "second", options=Options(memory=600))
        first = client.submit(large)
        gate.wait_hello()
        waiting = client.submit(second)
        assert client.build(stages.one(daemon.plans, stages.plain, "small"))[1].ok, "it takes nothing of what the other waits for"
        line = lines(client)[second.targets[0]]
        assert (line.state, line.waiting_for) == ("queued", "memory")
        assert lines(client)[large.targets[0]].resources == m.Resources(cpus=1, memory=600)
        gate.go()
        assert client.wait(first).ok
        assert client.wait(waiting).ok


def test_each_build_is_given_devices_of_its_own(tmp_path: Path) -> None:
    with Daemon(tmp_path / "store", "--jobs", "4", "--tag", "gpu=3", "--tag", "port=1") as daemon, daemon.wait_ready().client() as client:
        gate = stages.Gate(tmp_path)
        holder = one(daemon, stages.waits, "holder", options=Options(tags={"gpu": 1}), gate=gate.path)
        held = client.submit(holder)
        gate.wait_hello()
        operation, result = client.build(one(daemon, surroundings, options=Options(tags={"gpu": 2, "port": 1})))
        assert result.ok
        variables = found(daemon, client, operation)["env"]
        assert (variables["PYLIGHTNIX_TAG_GPU"], variables["CUDA_VISIBLE_DEVICES"], variables["PYLIGHTNIX_TAG_PORT"]) == ("1,2", "1,2", "0")
        assert lines(client)[holder.targets[0]].resources == m.Resources(cpus=1, tags={"gpu": 1}, devices={"gpu": [0]})
        gate.go()
        assert client.wait(held).ok
        operation, _ = client.build(stages.one(daemon.plans, surroundings, "untagged"))
        assert "PYLIGHTNIX_TAG_GPU" not in found(daemon, client, operation)["env"], "what was one build's is not the next one's"


def test_a_build_tells_in_its_event_what_it_takes(tmp_path: Path) -> None:
    with Daemon(tmp_path / "store", "--jobs", "4", "--tag", "gpu=1") as daemon, daemon.wait_ready().client() as client:
        operation = client.open(one(daemon, stages.plain, options=Options(cpus=2.5, memory=7, tags={"gpu": 1})))
        client.call("subscribe", m.Subscribe(operation=operation, credit=100), m.Done)
        client.commit(operation)
        assert client.wait(operation).ok
        events = [event for said in client.notifications if isinstance(said.params, m.Events) for event in said.params.events]
        (began,) = [event for event in events if (event.kind, event.phase) == ("build", "start")]
        assert began.resources == m.Resources(cpus=3, memory=7, tags={"gpu": 1}, devices={"gpu": [0]})


def test_a_stage_has_limits_of_its_own(tmp_path: Path) -> None:
    limits = ["--timeout", "0.5", "--silent-timeout-max", "1"]
    with Daemon(tmp_path / "store", "--jobs", "4", *limits) as daemon, daemon.wait_ready().client() as client:
        gate = stages.Gate(tmp_path)
        longer = client.submit(one(daemon, stages.ticks, "longer", options=Options(timeout_seconds=60), seconds=1))
        shorter = client.submit(one(daemon, stages.ticks, "shorter", options=Options(timeout_seconds=0.2), seconds=None))
        silent_options = Options(timeout_seconds=50, silent_timeout_seconds=40)
        silent = client.submit(one(daemon, stages.waits, "silent", options=silent_options, gate=gate.path))
        gate.wait_hello()
        assert client.wait(longer).ok
        for operation, why in [
            (shorter, "took longer than its stage's timeout_seconds of 0.2 s"),
            (silent, "said nothing for the daemon's silent-timeout-max of 1 s"),
        ]:
            assert client.wait(operation).failed == 1
            (row,) = client.failed(operation)
            assert (row.code, row.fields["how"]) == ("build-died", why)


def test_a_fresh_worker_is_nobody_elses(tmp_path: Path) -> None:
    with Daemon(tmp_path / "store", "--jobs", "2") as daemon, daemon.wait_ready().client() as client:
        parents = []
        for name, options in [("a", Options()), ("b", Options(worker="fresh")), ("c", Options(worker="fresh")), ("d", Options())]:
            operation, result = client.build(one(daemon, surroundings, name, options=options))
            assert result.ok
            parents.append(found(daemon, client, operation)["parent"])
        assert parents[0] == parents[3]
        assert len(set(parents)) == 3
        assert client.status().workers == 1


def test_what_has_a_higher_priority_goes_first(tmp_path: Path) -> None:
    gate, journal = stages.Gate(tmp_path), str(tmp_path / "journal")
    with Daemon(tmp_path / "store", "--jobs", "1") as daemon, daemon.wait_ready().client() as client:
        holds = client.submit(stages.one(daemon.plans, stages.waits, "holds", gate=gate.path))
        gate.wait_hello()

        def stage(priority: int) -> Closure:
            return one(daemon, stages.journals, f"p{priority}".replace("-", "m"), options=Options(priority=priority), journal=journal)

        waiting = [client.submit(stage(priority)) for priority in (0, -1000, 7, 1000, -3)]
        gate.go()
        assert client.wait(holds).ok
        assert all(client.wait(operation).ok for operation in waiting)
        names = [line.split()[0].split("-")[1] for line in Path(journal).read_text().splitlines()]
        assert names == ["p1000", "p7", "p0", "pm3", "pm1000"]


def test_the_longest_way_goes_first(tmp_path: Path) -> None:
    """Once a daemon has seen how long stages take, even before it was started again."""
    journal = str(tmp_path / "journal")

    def closure(daemon: Daemon, round_: int) -> Closure:
        def stage(r: Any) -> list[DRef]:
            brief = [stages.add(r, f"brief{i}", stages.journals, journal=journal, round=round_) for i in range(3)]
            return [*brief, stages.add(r, "slow", slow, journal=journal, round=round_, seconds=0.3)]

        return instantiate(stage, S=daemon.plans)[1]

    with Daemon(tmp_path / "store", "--jobs", "1") as daemon, daemon.wait_ready().client() as client:
        assert client.build(closure(daemon, 1))[1].built == 4
    with Daemon(tmp_path / "store", "--jobs", "1") as daemon, daemon.wait_ready().client() as client:
        assert client.build(closure(daemon, 2))[1].built == 4
    names = [line.split()[0].split("-")[1] for line in Path(journal).read_text().splitlines()]
    assert sorted(names[:4]) == sorted(names[4:])
    assert names[4] == "slow"


def slow(S: StorageSettings, dref: DRef, context: Context, rarg: stages.Arguments) -> list[Any]:
    made = stages.journals(S, dref, context, rarg)
    time.sleep(stages.config(S, dref)["seconds"])
    return list(made)


def test_declared_variables_tell_builds_apart(tmp_path: Path) -> None:
    gate = stages.Gate(tmp_path)
    with Daemon(tmp_path / "store", "--jobs", "1") as daemon, daemon.wait_ready().client() as client, daemon.client() as other:
        holds = client.submit(stages.one(daemon.plans, stages.waits, "holds", gate=gate.path))
        gate.wait_hello()
        variables = dict(environment().variables)
        closure = one(daemon, stages.plain, options=Options(env=["MODE"]))

        def submit(where: WireClient, **changes: str) -> str:
            return where.submit(closure, environment(variables={**variables, **changes}), forced=[str(closure.targets[0])])

        operations = [submit(client, MODE="a"), submit(other, MODE="a", NOISE="1"), submit(other, MODE="b")]
        wait_until(lambda: len([line for line in client.ps().builds if line.state == "queued"]) == 2)
        wait_until(lambda: max(len(line.operations) for line in client.ps().builds) == 2)
        gate.go()
        assert client.wait(holds).ok
        results = [where.wait(operation) for where, operation in zip([client, other, other], operations, strict=True)]
        assert [(r.built, r.joined) for r in results] == [(1, 0), (0, 1), (1, 0)]


def test_there_is_no_sandbox_so_nothing_runs(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    with Daemon(tmp_path / "store") as daemon, daemon.wait_ready().client() as client:
        operation, result = client.build(one(daemon, stages.journals, options=Options(sandbox="bwrap"), journal=str(journal)))
        assert result.failed == 1
        assert client.failed(operation)[0].code == "no-sandbox"
        assert not journal.exists()


def test_budgets_change_while_builds_wait(tmp_path: Path) -> None:
    settings, gate = tmp_path / "settings.toml", stages.Gate(tmp_path)
    settings.write_text("jobs = 2\ntags = { gpu = 1 }\n")
    with Daemon(tmp_path / "store", "--config", str(settings)) as daemon, daemon.wait_ready().client() as client:
        holds = client.submit(one(daemon, stages.waits, "holds", options=Options(tags={"gpu": 1}), gate=gate.path))
        gate.wait_hello()
        waiting = client.submit(one(daemon, stages.plain, "waits", options=Options(tags={"gpu": 1})))
        settings.write_text("jobs = 2\n")
        daemon.hang_up()
        assert client.wait(waiting).failed == 1
        assert client.failed(waiting)[0].code == "beyond-budget"
        gate.go()
        assert client.wait(holds).ok, "what runs goes on"
