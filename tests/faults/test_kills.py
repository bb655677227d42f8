"""`kill -9` of everything, again and again, under load: none lost, none wrong, nothing left over, nobody waits for ever."""

from __future__ import annotations

import random

import pytest
from tests.faults.kills import kill_many
from tests.faults.test_injected import SECONDS


@pytest.mark.slow
def test_a_minute_of_kills() -> None:
    result = kill_many(random.randrange(1 << 32), 10_000, SECONDS)
    print(result)
    assert not result.violations, result


@pytest.mark.slow
def test_five_hundred_kills() -> None:
    result = kill_many(random.randrange(1 << 32), 500)
    print(result)
    assert sum(result.killed.values()) == 500
    assert not result.violations, result
