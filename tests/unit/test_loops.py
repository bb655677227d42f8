"""Tests that loop: every case is run, and each that fails is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.loops import for_each


def test_all_cases_are_run_and_failures_named() -> None:
    seen = []

    @for_each("number, word", [(1, "a"), (2, "b"), (3, "c")])
    def test(number: int, word: str) -> None:
        seen.append(word)
        assert number == 2

    with pytest.raises(ExceptionGroup, match="2 of 3 cases of number, word failed") as caught:
        test()
    assert seen == ["a", "b", "c"]
    assert [error.__notes__ for error in caught.value.exceptions] == [["case number, word = (1, 'a')"], ["case number, word = (3, 'c')"]]


@for_each("outer", [1, 2])
@for_each("inner", "ab")
def test_loops_nest_and_fixtures_remain(inner: str, outer: int, tmp_path: Path) -> None:
    (tmp_path / f"{outer}{inner}").touch(exist_ok=False)


def test_no_case_is_an_error() -> None:
    with pytest.raises(AssertionError, match="no values for x"):
        for_each("x", [])
