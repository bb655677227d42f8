from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pylightnix.errors import Misuse
from pylightnix.timestamps import PYLIGHTNIX_TIME, parsetime, timestring

microseconds = st.integers(min_value=-(2**50), max_value=2**52)
"""Between the years 1934 and 2112; there a float still tells microseconds apart."""


def test_d67_stamp_has_a_four_digit_year_in_utc() -> None:
    assert timestring(0) == "19700101-00:00:00:000000+0000"
    assert timestring(1795383000.123456) == "20261122-21:30:00:123456+0000"


def test_format_is_the_published_one() -> None:
    stamp = timestring(1795383000.5)
    assert datetime.strptime(stamp, PYLIGHTNIX_TIME).timestamp() == 1795383000.5


def test_now_is_the_default() -> None:
    before = time.time()
    parsed = parsetime(timestring())
    assert parsed is not None
    assert before - 1e-6 <= parsed <= time.time() + 1e-6


def test_zone_of_the_process_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        assert timestring(0) == "19700101-00:00:00:000000+0000"
        assert parsetime("19700101-00:00:00:000000+0000") == 0
    finally:
        monkeypatch.undo()
        time.tzset()


@given(microseconds)
@example(1)
@example(-1)
def test_round_trip_to_the_microsecond(count: int) -> None:
    seconds = count / 10**6
    assert parsetime(timestring(seconds)) == seconds


@given(st.tuples(microseconds, microseconds))
def test_stamps_sort_by_time(counts: tuple[int, int]) -> None:
    earlier, later = sorted(counts)
    assert timestring(earlier / 10**6) <= timestring(later / 10**6)


@given(
    st.datetimes(min_value=datetime(1970, 1, 1), max_value=datetime(2067, 1, 1)),
    st.integers(min_value=-14 * 60, max_value=14 * 60),
)
def test_older_form_with_two_digit_year_and_zone_is_read(local: datetime, minutes: int) -> None:
    moment = local.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    assert parsetime(moment.strftime("%y%m%d-%H:%M:%S:%f%z")) == pytest.approx(moment.timestamp(), abs=1e-6)


def test_two_digit_years_turn_at_69() -> None:
    assert timestring(parsetime("680101-00:00:00:0+0000")).startswith("2068")
    assert timestring(parsetime("690101-00:00:00:0+0000")).startswith("1969")


@pytest.mark.parametrize(
    "text",
    [
        *("", "now", "20261122", "20261122-21:30:00:123456", "20261122-21:30:00+0000", "20261122 21:30:00:123456+0000"),
        *("20261322-21:30:00:123456+0000", "20260230-21:30:00:123456+0000", "20261122-24:30:00:123456+0000"),
        *("00000101-00:00:00:000000+0000", "20261122-21:30:00:123456+0000\n", "20261122-21:30:00:1234567+0000"),
        *("20261122-21:30:00:123456+2500", "２0261122-21:30:00:123456+0000", "6261122-21:30:00:123456+0000"),
    ],
)
def test_malformed_stamp_is_none(text: str) -> None:
    assert parsetime(text) is None


@given(st.text())
def test_no_text_raises(text: str) -> None:
    parsetime(text)


@pytest.mark.parametrize("seconds", [1e18, -1e18, float("nan"), float("inf")])
def test_time_out_of_range_is_refused(seconds: float) -> None:
    with pytest.raises(Misuse, match="years 1 to 9999"):
        timestring(seconds)
