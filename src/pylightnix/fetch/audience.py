"""Those who want one file, and what they are told of how far it is. Must not know how it is fetched."""

from __future__ import annotations

from typing import Final, Optional

import trio

from pylightnix.fetch.spec import FetchProgress, OnProgress, Speedometer
from pylightnix.fetch.urls import shown_url

__all__ = ["Audience"]

_REPORT_SECONDS: Final = 0.1


class Audience:
    """The askers of one fetch. What a late-comer has missed it is told at once."""

    def __init__(self) -> None:
        self._askers: dict[object, Optional[OnProgress]] = {}
        self._speed = Speedometer()
        self._said: Optional[FetchProgress] = None
        self._said_at = 0.0

    def __bool__(self) -> bool:
        return bool(self._askers)

    def join(self, asker: object, on_progress: Optional[OnProgress]) -> None:
        self._askers[asker] = on_progress
        self._tell(asker)

    def leave(self, asker: object) -> None:
        del self._askers[asker]

    def report(self, so_far: int, total: Optional[int], url: str, attempt: int, waiting: str = "") -> None:
        """Tell all how far it is, unless they were told the like a moment ago."""
        now = trio.current_time()
        last = self._said
        is_news = last is None or (last.attempt, last.waiting, last.total) != (attempt, waiting, total) or so_far == total
        if not is_news and now - self._said_at < _REPORT_SECONDS:
            return
        self._said_at = now
        self._said = FetchProgress(so_far, total, self._speed.note(so_far, now), shown_url(url) if url else "", attempt, waiting)
        for asker in list(self._askers):
            self._tell(asker)

    def _tell(self, asker: object) -> None:
        on_progress = self._askers[asker]
        if on_progress is None or self._said is None:
            return
        try:
            on_progress(self._said)
        except Exception:  # noqa: BLE001  # one asker's bug is not to harm the others
            self._askers[asker] = None
