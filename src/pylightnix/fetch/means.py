"""What all fetches of one fetcher share: its folder, limits, connections, and what it remembers."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import Final

import trio

from pylightnix.errors import PylightnixException
from pylightnix.fetch.mirrors import FailureMemory
from pylightnix.fetch.retrying import RetryPolicy
from pylightnix.fetch.spec import FetchLimits
from pylightnix.fetch.sweeping import sweep
from pylightnix.fetch.transports import Transports
from pylightnix.fetch.urls import origin_of

__all__ = ["Means"]

_HOSTS_MAX: Final = 1000


@dataclass(slots=True)
class Means:
    """What a fetch needs, and does not own."""

    folder: str
    limits: FetchLimits
    policy: RetryPolicy
    slots: trio.CapacityLimiter
    """Transfers at a time."""
    disk: trio.CapacityLimiter
    """Threads that read and write."""
    gives_away: bool = False
    """Whether who asks may move files away, where no other process uses them."""
    transports: Transports = field(default_factory=Transports)
    memory: FailureMemory = field(default_factory=FailureMemory)
    random: random.Random = field(default_factory=random.Random)
    _hosts: dict[tuple[str, int], trio.CapacityLimiter] = field(default_factory=dict)

    def host_slots(self, url: str) -> trio.CapacityLimiter:
        """Return who may ask the server of `url` at a time."""
        origin = origin_of(url)
        if len(self._hosts) > _HOSTS_MAX:
            self._hosts = {host: slots for host, slots in self._hosts.items() if slots.statistics().borrowed_tokens}
        return self._hosts.setdefault((origin.host, origin.port), trio.CapacityLimiter(self.limits.transfers_per_host))

    async def sweep(self) -> None:
        """Remove from the folder what has had its time. That is not worth a failure: what stays is tried again the next time."""
        limits = self.limits

        def swept() -> None:
            try:
                sweep(self.folder, time.time(), max_age_seconds=limits.part_days * 86400.0, max_bytes=limits.part_bytes)
            except (OSError, PylightnixException):
                pass

        await trio.to_thread.run_sync(swept, limiter=self.disk)
