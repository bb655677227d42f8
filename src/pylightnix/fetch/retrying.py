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
    """How many rounds in a row may bring nothing worth mentioning."""
    base_seconds: float = 0.5
    cap_seconds: float = 30.0
    retry_after_max_seconds: float = 600.0
    """A server that asks for a longer pause is given up."""
    some_bytes: int = 16 << 10
    """A round that brings so many does not count for that."""
    much_bytes: int = 1 << 20
    """Who breaks off after so many, and no less than `much_fraction` of the file, is asked again at once."""
    much_fraction: float = 0.01

    def is_much(self, failure: Failure) -> bool:
        """Tell whether an attempt got so far that the next one can do without a pause."""
        return failure.gained_bytes >= max(self.much_bytes, self.much_fraction * (failure.total_bytes or 0))

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
    retry_after_seconds: Optional[float] = None
    gained_bytes: int = 0
    """How much further it got than any attempt before, so that the next one has less to do."""
    total_bytes: Optional[int] = None
    """Of the whole file, if the server said so."""
    is_stall: bool = False
    """The server fell silent."""
    starts_over: bool = False
    """What was at hand is dropped, and the same server is to be asked for the whole."""


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

    Mirrors are asked in order, round after round with a pause between. One whose answer will not change drops out. One
    that broke off after much progress is asked again at once, to go on where it was; but one that fell silent only if there is no other.
    One with little progress takes its turn and its pause like the others, lest it be asked thousands of times for a few bytes each.
    """

    urls: Sequence[str]
    policy: RetryPolicy
    failures: list[Failure] = field(default_factory=list)
    _alive: list[str] = field(init=False)
    _queue: list[str] = field(init=False)
    _not_before: dict[str, float] = field(default_factory=dict, init=False)
    _round: int = field(default=1, init=False)
    """From 1; since there was much progress."""
    _futile_rounds: int = field(default=0, init=False)
    """In a row."""
    _gained_bytes: int = field(default=0, init=False)
    """In this round."""
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
        self._futile_rounds = 0 if self._gained_bytes >= self.policy.some_bytes else self._futile_rounds + 1
        self._gained_bytes = 0
        if not self._alive or self._futile_rounds >= self.policy.rounds:
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
        self._gained_bytes += failure.gained_bytes
        if failure.is_permanent or (wait is not None and wait > self.policy.retry_after_max_seconds):
            self._alive.remove(url)
        elif failure.starts_over:
            return
        elif self.policy.is_much(failure):
            self._round, self._futile_rounds = 1, 0
            if not failure.is_stall or self._alive == [url]:
                return
        elif wait is not None:
            self._not_before[url] = now + wait
        self._queue.remove(url)

    def last_problems(self) -> dict[str, str]:
        """Return why each URL that was asked had no file the last time."""
        return {failure.url: failure.problem for failure in self.failures}
