"""What tests of fetching share: servers, and a fetcher that does not wait long."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from tests.fetch.servers import Nginx, running_nginx

from pylightnix.fetch import FetchLimits
from pylightnix.fetch.retrying import RetryPolicy

PROMPT = RetryPolicy(rounds=3, base_seconds=0.01, cap_seconds=0.02)
"""For tests on the real clock, whose servers fail on purpose."""
LIMITS = FetchLimits(connect_seconds=5.0, stall_seconds=10.0)


def within_test(function: Callable[[], Any]) -> Any:
    """Run an async function to its end; raise what it raises, out of any groups. Nothing that waits may hang a test."""

    async def bounded() -> Any:
        with trio.fail_after(60):
            return await function()

    try:
        return trio.run(bounded)
    except BaseExceptionGroup as group:
        raise innermost(group) from None


def innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


@pytest.fixture(scope="session")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    with running_nginx(tmp_path_factory.mktemp("nginx"), rate="4m") as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tmp_path / "fetch")
