"""The time zone of this computer, as `datetime` uses it."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import datetime, timedelta

from pylightnix import tzlocal

PRAGUE = """
from datetime import UTC, datetime
from pylightnix import tzlocal
for month in (1, 7):
    local = datetime(2026, month, 1, 12, tzinfo=UTC).astimezone(tzlocal())
    print(local, local.tzname(), local.dst(), local.utcoffset(), local.astimezone(UTC).hour)
# Twice the same hour, told apart by its fold.
for fold in (0, 1):
    print(datetime(2026, 10, 25, 2, 30, fold=fold, tzinfo=tzlocal()).utcoffset())
"""


def test_a_zone_with_daylight_saving() -> None:
    # Spelt out, for not every computer knows zones by name.
    environment = {**os.environ, "TZ": "CET-1CEST,M3.5.0,M10.5.0/3"}
    child = subprocess.run([sys.executable, "-c", PRAGUE], env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert child.stdout.splitlines() == [
        "2026-01-01 13:00:00+01:00 CET 0:00:00 1:00:00 12",
        "2026-07-01 14:00:00+02:00 CEST 1:00:00 2:00:00 12",
        "2:00:00",
        "1:00:00",
    ]


def test_all_of_them_are_equal() -> None:
    assert tzlocal() == tzlocal()
    assert len({tzlocal(), tzlocal()}) == 1
    assert tzlocal() != object()
    assert repr(tzlocal()) == "tzlocal()"


def test_without_a_moment_it_is_that_of_now() -> None:
    assert isinstance(tzlocal().utcoffset(None), timedelta)
    assert tzlocal().tzname(None) == datetime.now().astimezone().tzname()
