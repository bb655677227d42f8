"""The power goes at any moment: what was told is there and right, what was not is right or gone, and the store opens."""

from __future__ import annotations

import random

import pytest
from tests.faults.sweep import cut_power


def cut(states: int) -> None:
    result = cut_power(random.randrange(1 << 32), states)
    print(result)
    assert result.states == states
    assert not result.violations, result


def test_a_few_power_cuts() -> None:
    cut(40)


@pytest.mark.slow
def test_many_power_cuts() -> None:
    cut(500)


@pytest.mark.slow
def test_thousands_of_power_cuts() -> None:
    cut(2500)
