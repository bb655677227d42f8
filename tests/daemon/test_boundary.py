"""Nothing that a task raises leaves a nursery that others share."""

from __future__ import annotations

import logging

import pytest
import trio
import trio.testing

from pylightnix.errors import StoreFull
from pylightnixd.boundary import guarded

ERRORS = (OSError(30, "read-only"), StoreFull("/s", "writing"), KeyError("greeted"), UnicodeEncodeError("utf-8", "\udce9", 0, 1, "no"))


async def fails(error: Exception) -> None:
    await trio.lowlevel.checkpoint()
    raise error


async def fails_deep() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        nursery.start_soon(fails, KeyError("deep"))


def test_what_a_task_raises_is_logged_and_ends_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> bool:
        async with trio.open_nursery() as nursery:
            for error in ERRORS:
                nursery.start_soon(guarded, f"task {error!r}", lambda error=error: fails(error))
            nursery.start_soon(guarded, "task deep", fails_deep)
            await trio.testing.wait_all_tasks_blocked()
            cancelled = nursery.cancel_scope.cancel_called
        return not cancelled

    with caplog.at_level(logging.WARNING, "pylightnixd"):
        assert trio.run(main)
    assert sorted(record.levelname for record in caplog.records) == ["ERROR"] * 3 + ["WARNING"] * 2


def test_cancelling_passes() -> None:
    async def main() -> bool:
        with trio.move_on_after(0) as scope:
            await guarded("sleeping", trio.sleep_forever)
        return scope.cancelled_caught

    assert trio.run(main)
