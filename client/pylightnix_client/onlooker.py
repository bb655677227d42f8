"""Whoever looks on while a daemon realizes something: an observer of events that is told more than those."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from pylightnix.events import Event
    from pylightnix.protocol.errors import TooMany
    from pylightnix_client.operation import Happening

__all__ = ["Onlooker"]


class Onlooker:
    """Looks on, and does nothing about it. Called in the thread that waits for the operation."""

    wants_log: ClassVar[bool] = False
    """Whether to be told what builds write."""

    def __call__(self, event: Event) -> None:
        """Take in an event, as any observer does."""

    def hear(self, happening: Happening) -> None:
        """Take in what the daemon says, before it is turned into an event."""

    def missed(self, events: int) -> None:
        """Learn at the end how many events were left out, because this end was slow."""

    def queued(self, refusal: TooMany) -> None:
        """Learn that the daemon has as many connections of this user as it takes, and that one is waited for."""

    def interrupted(self) -> None:
        """Learn that Ctrl-C was pressed, and that the operation is being cancelled."""

    def aside(self) -> AbstractContextManager[object]:
        """Return what is entered while code of the user's runs in this process, which may print or read."""
        return nullcontext()
