"""The tests find what they look for: in each mutant of the product the violation that the product does not have."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

import pytest
from tests.faults.shim import Fault
from tests.faults.sweep import Days, cut_power, days

FAILED_SYNC = Fault(("syncfs",), 1, errno.EIO)


@pytest.fixture(scope="module")
def one() -> Iterator[Days]:
    with days() as running:
        yield running[0]


def kinds(report: dict[str, Any]) -> set[str]:
    return {violation.partition(":")[0] for violation in report["violations"]}


@pytest.mark.slow
def test_a_task_without_a_boundary_takes_the_daemon_with_it(one: Days) -> None:
    assert kinds(one.live(FAILED_SYNC)) == set()
    assert "dead" in kinds(one.live(FAILED_SYNC, mutant="no-boundary"))


@pytest.mark.slow
def test_a_wait_without_a_bound_is_a_hang(one: Days) -> None:
    assert kinds(one.live(None, deaf_to=[2])) == set()
    assert "hang" in kinds(one.live(None, deaf_to=[2], patience=5.0, mutant="unbounded-wait"))


@pytest.mark.slow
@pytest.mark.parametrize("mutant", ["no-sync", "late-sync", "lazy-index"])
def test_what_was_not_flushed_is_lost_in_a_power_cut(mutant: str) -> None:
    assert cut_power(1, 100, jobs=1).violations == []
    found = cut_power(1, 300, jobs=1, mutant=mutant).violations
    assert [text for text in found if ": lost: " in text or ": wrong: " in text]
