"""Points in time as text, in the form that stands in start and stop files and in link names.

Always UTC with a four-digit year: such texts sort by time and mean the same on every host. The older
form (two-digit year, local time with its zone) is still read, never written. Must not know what the
stamps are of.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Final, Optional

from pylightnix.errors import Misuse

__all__ = ["PYLIGHTNIX_TIME", "parsetime", "timestring", "tzlocal"]

PYLIGHTNIX_TIME: Final = "%Y%m%d-%H:%M:%S:%f%z"
"""The form of a timestamp, as `strftime` spells it: ``20261122-21:30:00:123456+0000``."""

# Own pattern rather than strptime, which costs a slow import and accepts blanks and other digits than ASCII ones.
_STAMP: Final = re.compile(
    r"(?P<year>[0-9]{4}|[0-9]{2})(?P<month>[0-9]{2})(?P<day>[0-9]{2})"
    r"-(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2}):(?P<fraction>[0-9]{1,6})"
    r"(?P<sign>[+-])(?P<zone_hours>[0-9]{2}):?(?P<zone_minutes>[0-5][0-9])"
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def timestring(sec: Optional[float] = None) -> str:
    """Return a point in time as text, to the microsecond.

    Args:
        sec: seconds since 1970-01-01 UTC; now, if None.

    Raises:
        Misuse: the year would not lie between 1 and 9999.
    """
    try:
        moment = datetime.now(UTC) if sec is None else datetime.fromtimestamp(sec, UTC)
    except (OverflowError, ValueError, OSError) as error:
        raise Misuse(f"timestring expects seconds since 1970 that lie in the years 1 to 9999, found {sec!r}") from error
    # The year apart, because some C libraries do not pad %Y with zeros.
    return f"{moment.year:04}{moment:%m%d-%H:%M:%S:%f%z}"


def parsetime(time: object) -> Optional[float]:
    """Return the seconds since 1970-01-01 UTC that a timestamp means, or None if it is malformed.

    The inverse of `timestring`. A two-digit year is read as POSIX has it: 69 to 99 lie before 2000.
    """
    found = _STAMP.fullmatch(time) if isinstance(time, str) else None
    if found is None:
        return None
    part = found.groupdict()
    year = int(part["year"])
    if len(part["year"]) == 2:
        year += 2000 if year < 69 else 1900
    offset = timedelta(hours=int(part["zone_hours"]), minutes=int(part["zone_minutes"]))
    try:
        moment = datetime(
            *(year, int(part["month"]), int(part["day"])),
            *(int(part["hour"]), int(part["minute"]), int(part["second"]), int(part["fraction"].ljust(6, "0"))),
            tzinfo=timezone(-offset if part["sign"] == "-" else offset),
        )
        return (moment - _EPOCH).total_seconds()
    except (ValueError, OverflowError):  # no such day or hour, or a zone of more than a day
        return None


class tzlocal(tzinfo):  # noqa: N801  # the name that programs use
    """The time zone of this computer, for `datetime`: ``datetime.now(tzlocal())``. All of them are equal."""

    def utcoffset(self, dt: Optional[datetime]) -> timedelta:
        """Return how far local time is ahead of UTC at the local time `dt` (now, if None)."""
        return _local(dt).utcoffset() or timedelta()

    def dst(self, dt: Optional[datetime]) -> timedelta:
        """Return how much of that is daylight saving time."""
        import time

        moment = _local(dt)
        saving = time.localtime(moment.timestamp()).tm_isdst > 0
        return self.utcoffset(dt) + timedelta(seconds=time.timezone) if saving else timedelta()

    def tzname(self, dt: Optional[datetime]) -> Optional[str]:
        """Return the name of the zone, such as ``CET``."""
        return _local(dt).tzname()

    def __repr__(self) -> str:
        return "tzlocal()"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, tzlocal)

    def __hash__(self) -> int:
        return hash(tzlocal)


def _local(dt: Optional[datetime]) -> datetime:
    return datetime.now().astimezone() if dt is None else dt.replace(tzinfo=None).astimezone()
