"""Which failures are worth another try, and when. Decides only: takes `now` and random fractions, sleeps nowhere."""

from __future__ import annotations

import email.utils
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Optional, Union

__all__ = ["Failure", "FetchPlan", "GiveUp", "Pause", "RetryPolicy", "Try", "is_worth_retrying", "parse_retry_after"]

_RETRIED_STATUSES: Final = frozenset({408, 425, 429})


def is_worth_retrying(status: int) -> bool:
    """Tell whether an answer with this status may be another one later."""
    return status in _RETRIED_STATUSES or 500 <= status <= 599


def parse_retry_after(text: Optional[str], wall_now: float) -> Optional[float]:
    """Return the seconds that a ``Retry-After`` header asks to wait, be it seconds or a date; None if it says nothing."""
    if text is None:
        return None
    text = text.strip()
    if text.isascii() and text.isdecimal():
        return float(text) if len(text) < 12 else math.inf
    try:
        when = email.utils.parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError):
        return None
    if when.tzinfo is None:  # dates of HTTP are always in UTC
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.fromtimestamp(wall_now, UTC)).total_seconds())


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long and how often to try."""

    rounds: int = 5
    """How often each mirror is tried, unless it gets further each time."""
    base_seconds: float = 0.5
    cap_seconds: float = 30.0
    retry_after_max_seconds: float = 600.0
    """A server that asks for a longer pause is given up."""

    def backoff_seconds(self, round_number: int, fraction: float) -> float:
        """Return how long to pause after a round, counted from 1: full jitter, so that many askers do not come back at once."""
        return fraction * min(self.cap_seconds, self.base_seconds * 2.0 ** min(round_number - 1, 32))


@dataclass(frozen=True, slots=True)
class Failure:
    """How an attempt ended that gave no file."""

    url: str
    problem: str
    """For people, after the shown URL; no secrets in it."""
    is_permanent: bool = False
    progressed: bool = False
    """It got further than any attempt before, so that the next one has less to do."""
    retry_after_seconds: Optional[float] = None


@dataclass(frozen=True, slots=True)
class Try:
    """Ask this mirror now."""

    url: str
    attempt: int
    """From 1, over all mirrors."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait, then ask again."""

    seconds: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """There is nothing left to try."""

    is_retryable: bool
    """Some later time may be better."""


Step = Union[Try, Pause, GiveUp]


@dataclass(slots=True)
class FetchPlan:
    """The order of attempts of one fetch.

    Mirrors are asked in order, round after round with a pause between. One whose answer will not change drops out; one
    that broke off after some progress is asked again at once, to go on where it was.
    """

    urls: Sequence[str]
    policy: RetryPolicy
    failures: list[Failure] = field(default_factory=list)
    _alive: list[str] = field(init=False)
    _queue: list[str] = field(init=False)
    _not_before: dict[str, float] = field(default_factory=dict, init=False)
    _round: int = field(default=1, init=False)
    _attempts: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._alive = list(dict.fromkeys(self.urls))
        self._queue = list(self._alive)

    def next_step(self, now: float, fraction: float) -> Step:
        """Return what to do. After a `Try`, call `failed` or be done; after a `Pause`, wait and ask again.

        Args:
            now: monotonic time.
            fraction: a random number from 0 to 1.
        """
        if self._queue:
            self._attempts += 1
            return Try(self._queue[0], self._attempts)
        if not self._alive or self._round >= self.policy.rounds:
            return GiveUp(bool(self._alive))
        waits: Mapping[str, float] = {url: max(0.0, self._not_before.get(url, now) - now) for url in self._alive}
        seconds = min(waits.values()) + self.policy.backoff_seconds(self._round, fraction)
        self._queue = [url for url in self._alive if waits[url] <= seconds]
        self._round += 1
        return Pause(seconds)

    def failed(self, failure: Failure, now: float) -> None:
        """Take note of how the last `Try` ended."""
        self.failures.append(failure)
        url = failure.url
        wait = failure.retry_after_seconds
        if failure.is_permanent or (wait is not None and wait > self.policy.retry_after_max_seconds):
            self._alive.remove(url)
        elif failure.progressed:
            return
        elif wait is not None:
            self._not_before[url] = now + wait
        self._queue.remove(url)
