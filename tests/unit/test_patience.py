"""When the daemon loses patience with a process, and what it does then: every wait ends."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Optional

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from pylightnixd.patience import PACE, Debts, Ending, Step
from pylightnixd.processes import end_process, send_signal

times = st.floats(0, 20, allow_nan=False)


@given(st.floats(0, 1e6), st.lists(times, max_size=12))
def test_each_step_of_an_end_is_taken_once_and_in_order(begun: float, later: list[float]) -> None:
    ending = Ending(begun)
    taken: list[Step] = []
    for now in sorted(begun + seconds for seconds in later):
        steps = ending.due(now)
        taken += steps
        assert all(begun + PACE[step] <= now for step in steps)
        assert ending.next_at > now, "else who waits for it would not wait"
    assert taken == list(Step)[: len(taken)]
    assert len(taken) == len([step for step in Step if begun + PACE[step] <= max((begun + s for s in later), default=-math.inf)])


def test_the_end_fits_into_what_the_daemon_has_for_its_own() -> None:
    assert list(PACE) == list(Step)
    assert list(PACE.values()) == sorted(PACE.values())
    assert PACE[Step.give_up] <= 4


@dataclass
class Debtor:
    """What a worker owes, kept the slow way."""

    owed: dict[int, float] = field(default_factory=dict)
    heard: float = -math.inf

    def overdue_at(self, limit: float) -> float:
        return max(min(self.owed.values()), self.heard) + limit if self.owed else math.inf


@given(st.floats(1, 100), st.lists(st.tuples(st.sampled_from(["owe", "pay", "heard"]), st.integers(0, 5), st.floats(0, 10)), max_size=40))
def test_a_worker_is_overdue_when_it_owes_and_is_silent(limit: float, events: list[tuple[str, int, float]]) -> None:
    debts, model, now = Debts(limit), Debtor(), 0.0
    for what, number, seconds in events:
        now += seconds
        if what == "owe":
            assert debts.owe(number, now) == (not model.owed)
            model.owed.setdefault(number, now)
        elif what == "pay":
            debts.pay(number, now)
            model.owed.pop(number, None)
            model.heard = now
        else:
            debts.heard(now)
            model.heard = now
        assert debts.overdue_at == pytest.approx(model.overdue_at(limit))
        assert debts.overdue_at >= now or now - model.heard >= 0


# --- ending one -------------------------------------------------------------------------------------------


@dataclass
class FakeProcess:
    """A child that ends when one of `heeds` is done to it."""

    heeds: frozenset[object]
    pid: int = 1 << 30
    status: Optional[int] = None
    told: list[object] = field(default_factory=list)
    dead: trio.Event = field(default_factory=trio.Event)

    def do(self, what: object) -> None:
        self.told.append(what)
        if what in self.heeds:
            self.status = 0
            self.dead.set()

    def poll(self) -> Optional[int]:
        return self.status

    async def wait(self) -> int:
        await self.dead.wait()
        return 0


def end(process: FakeProcess, and_then: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint) -> tuple[bool, float]:
    """End a process; return whether that worked, and how long it took."""

    async def run() -> tuple[bool, float]:
        begun = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(and_then)
            dead = await end_process(process, lambda: process.do("ask"), lambda _, number: process.do(number))
            seconds = trio.current_time() - begun
        return dead, seconds

    return trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize(
    ("heeds", "told", "seconds"),
    [
        ("ask", ["ask"], PACE[Step.ask]),
        (signal.SIGTERM, ["ask", signal.SIGTERM], PACE[Step.terminate]),
        (signal.SIGKILL, ["ask", signal.SIGTERM, signal.SIGKILL], PACE[Step.kill]),
        (None, ["ask", signal.SIGTERM, signal.SIGKILL], PACE[Step.give_up]),
    ],
)
def test_a_process_is_asked_before_it_is_made_to_end(heeds: object, told: list[object], seconds: float) -> None:
    process = FakeProcess(frozenset({heeds}))
    dead, took = end(process)
    assert dead is (heeds is not None)
    assert took == pytest.approx(seconds)
    assert process.told == told


def test_a_process_that_ends_between_the_steps_is_left_in_peace() -> None:
    process = FakeProcess(frozenset({"itself"}))

    async def end_itself() -> None:
        await trio.sleep(PACE[Step.terminate] / 2)
        process.do("itself")

    dead, took = end(process, end_itself)
    assert dead
    assert took == pytest.approx(PACE[Step.terminate] / 2)
    assert process.told == ["ask", "itself"]


def test_a_process_of_another_user_is_no_error() -> None:
    send_signal(1 << 30, signal.SIGKILL)  # which is gone
    if os.geteuid() != 0:
        send_signal(1, signal.SIGTERM)
