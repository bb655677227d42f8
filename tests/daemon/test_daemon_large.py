"""Operations of very many derivations: nobody else is kept waiting, and nothing of them stays."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import suppress

import pytest
from tests.daemon import stages
from tests.daemon.conftest import Daemon
from tests.daemon.wire_client import WireClient, config_bytes

from pylightnix import Closure
from pylightnix.protocol import messages as m
from pylightnix.protocol.errors import MessageInvalid
from pylightnixd.bulk import FREEZE_EVERY, Bulk
from pylightnixd.overview import PS_BUILDS_MAX


def test_ps_tells_of_what_runs_first_and_of_how_much_it_leaves_out(
    daemon: Daemon, client: WireClient, tmp_path_factory: pytest.TempPathFactory
) -> None:
    gate = stages.Gate(tmp_path_factory.mktemp("gate"))
    operation = client.submit(stages.many(daemon.plans, PS_BUILDS_MAX + 50, stages.waits, gate=gate.path))
    gate.wait_hello()
    found = client.ps()
    while found.operations[0].total == 0 or len(found.builds) + found.more_builds < PS_BUILDS_MAX + 50:
        found = client.ps()
    assert (len(found.builds), found.more_builds) == (PS_BUILDS_MAX, 50)
    assert [line.state for line in found.builds[:3]] == ["running", "running", "queued"]
    assert found.operations[0].total == PS_BUILDS_MAX + 50
    client.call("cancel", m.Cancel(operation=operation), m.Done)
    assert client.wait(operation).state == "cancelled"


def test_the_pages_of_an_outcome_make_up_the_whole(daemon: Daemon, client: WireClient) -> None:
    closure = stages.many(daemon.plans, 1200)
    operation, result = client.build(closure, dry_run=True)
    assert result.ok
    steps = [row for row in client.rows(operation, "steps") if isinstance(row, m.StepRow)]
    assert sorted(step.dref for step in steps) == sorted(map(str, (d.dref for d in closure.derivations)))
    attached = client.call("attach", m.Attach(operation=operation), m.Attached)
    assert (attached.state, attached.total, attached.done) == ("ended", 1200, 1200)


def test_who_commits_while_another_connection_adds_harms_nobody(daemon: Daemon, client: WireClient) -> None:
    closure = stages.many(daemon.plans, 1000)
    with daemon.client() as other:
        for _ in range(5):
            operation = client.open(closure, dry_run=True)
            added = client.send("submit.add", m.SubmitAdd(operation=operation, derivations=specs_of(closure)))
            other.commit(operation)
            with suppress(MessageInvalid):  # that it was committed already
                client.answer(added, m.Done)
            assert other.wait(operation).ok


def specs_of(closure: Closure) -> list[m.DerivationSpec]:
    """Return the derivations of a closure as they travel, with realizers that nobody runs in a dry run."""
    latest, command = m.MatcherSpec(kind="latest"), m.RealizerSpec(kind="command")
    return [m.DerivationSpec(config=config_bytes(d), matcher=latest, realizer=command) for d in closure.derivations]


@pytest.fixture
def bulk() -> Iterator[Bulk]:
    yield Bulk()
    gc.unfreeze()


class Circle:
    def __init__(self) -> None:
        self.me = self


def test_what_is_frozen_in_a_circle_goes_when_nothing_is_under_way(bulk: Bulk) -> None:
    before, circle = gc.get_freeze_count(), Circle()
    gone = weakref.ref(circle)
    bulk.grew(FREEZE_EVERY - 1)
    assert gc.get_freeze_count() == before
    bulk.grew(1)
    assert gc.get_freeze_count() > before
    del circle
    gc.collect()
    assert gone() is not None
    bulk.shrank()
    assert gone() is None


def test_the_collector_works_again_whatever_happens(bulk: Bulk) -> None:
    with suppress(KeyError), bulk.undisturbed():
        assert not gc.isenabled()
        raise KeyError
    assert gc.isenabled()
