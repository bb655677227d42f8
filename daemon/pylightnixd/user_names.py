"""Login names, looked up off the loop: a user database that is asked over a network answers in seconds, or never.

Names are for people to read. Who may do what is decided by numbers, which the kernel tells.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Final

import trio

from pylightnix.store.access import user_name
from pylightnixd.boundary import SharedNursery
from pylightnixd.threads import run_in_thread

__all__ = ["UserNames"]

WAIT_SECONDS: Final = 1.0
"""How long a name is waited for; the number does till then."""
AT_ONCE: Final = 4


@dataclass(slots=True, eq=False)
class UserNames:
    """The names that are known, and those that are being looked up."""

    nursery: SharedNursery
    _known: dict[int, str] = field(default_factory=dict)
    _looking: dict[int, trio.Event] = field(default_factory=dict)
    _limiter: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(AT_ONCE))

    async def name_of(self, uid: int) -> str:
        """Return the login name of a user, or the number where there is none, or none yet."""
        if uid not in self._known:
            if uid not in self._looking:
                self._looking[uid] = trio.Event()
                self.nursery.start_soon(f"looking up the name of user {uid}", partial(self._look_up, uid))
            with trio.move_on_after(WAIT_SECONDS):
                await self._looking[uid].wait()
        return self._known.get(uid, f"uid {uid}")

    async def _look_up(self, uid: int) -> None:
        try:
            # Abandoned at the daemon's end: it only reads.
            self._known[uid] = await run_in_thread(user_name, uid, abandon_on_cancel=True, limiter=self._limiter)
        finally:
            self._looking.pop(uid).set()
