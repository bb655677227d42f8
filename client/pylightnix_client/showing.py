"""Which progress is shown: objects for programs, a display on a terminal, lines everywhere else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pylightnix_client.output import Answers, on_terminal
from pylightnix_client.progress import JsonProgress, Progress, TextProgress

__all__ = ["showing"]


@contextmanager
def showing(answers: Answers, *, live: bool) -> Iterator[Progress]:
    """Show progress inside the ``with`` block. `live` says whether a display may be drawn."""
    if answers.as_json:
        yield JsonProgress(answers)
    elif live and on_terminal():
        from pylightnix_client.live import LiveProgress

        with LiveProgress() as progress:
            yield progress
    else:
        yield TextProgress()
