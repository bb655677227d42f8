"""What a build waits for before it has begun ends when the build is to end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import cast

import pytest
import trio
import trio.testing

from pylightnixd.jobs import RunningBuild
from pylightnixd.worker_builds import unless_killed


@dataclass
class Build:
    kill: trio.Event = field(default_factory=trio.Event)


def outcome(task: Callable[[], Awaitable[str]], kill_after: float, grace_seconds: float) -> tuple[str, float]:
    """Return what came of a task, as its value or the name of its error, and when."""

    async def main() -> tuple[str, float]:
        build, begun = Build(), trio.current_time()
        async with trio.open_nursery() as nursery:

            async def kill() -> None:
                await trio.sleep(kill_after)
                build.kill.set()

            nursery.start_soon(kill)
            try:
                said = await unless_killed(cast("RunningBuild", build), task, grace_seconds)
            except Exception as error:  # noqa: BLE001
                said = type(error).__name__
            nursery.cancel_scope.cancel()
            seconds = trio.current_time() - begun
        return said, seconds

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def answers_after_three() -> str:
    await trio.sleep(3)
    return "answer"


async def fails_after_three() -> str:
    await trio.sleep(3)
    raise LookupError("no group around it")


@pytest.mark.parametrize(
    ("task", "kill_after", "grace", "said", "at"),
    [
        (answers_after_three, 10, 0, "answer", 3),
        (fails_after_three, 10, 0, "LookupError", 3),
        (answers_after_three, 1, 0, "_Killed", 1),
        (answers_after_three, 1, 1.5, "_Killed", 2.5),
        (answers_after_three, 1, 5, "answer", 3),
        (fails_after_three, 1, 5, "LookupError", 3),
        (answers_after_three, 0, 0, "_Killed", 0),
    ],
)
def test_a_task_ends_with_its_build(task: Callable[[], Awaitable[str]], kill_after: float, grace: float, said: str, at: float) -> None:
    found, when = outcome(task, kill_after, grace)
    assert found == said
    assert when == pytest.approx(at)
