"""Fetching for synchronous code: a fetcher of its own for one file, in a thread of its own.

So it works below a running event loop of any kind, and in a process that was forked. Whoever waits for it can be interrupted.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Optional, Union

from pylightnix.fetch.environment import FetchEnvironment
from pylightnix.fetch.files import FetchedFile
from pylightnix.fetch.spec import FetchSpec, OnProgress

if TYPE_CHECKING:
    import trio

__all__ = ["fetched_file"]

_Answer = Union[FetchedFile, BaseException]


class _Loop:
    """One fetch in its thread. What is asked of it comes from the thread that waits."""

    def __init__(self, folder: str, spec: FetchSpec, environment: FetchEnvironment, progress: Optional[OnProgress], keep: bool) -> None:
        self._folder, self._spec, self._environment, self._progress, self._keep = folder, spec, environment, progress, keep
        self.answers: queue.SimpleQueue[Optional[_Answer]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="pylightnix-fetch", daemon=True)
        self._started = threading.Event()
        self._token: Optional[trio.lowlevel.TrioToken] = None
        self._scope: Optional[trio.CancelScope] = None

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Let go of the file, or stop fetching it, and wait until that is done."""
        import trio

        self._started.wait()
        if self._token is not None and self._scope is not None:
            try:
                self._token.run_sync_soon(self._scope.cancel)
            except trio.RunFinishedError:
                pass
        self._thread.join()

    def _run(self) -> None:
        import trio

        try:
            trio.run(self._main)
        except BaseException as error:  # noqa: ASYNC103, BLE001  # no task: it is raised by the thread that waits
            self.answers.put(_only(error))
        finally:
            self.answers.put(None)
            self._started.set()

    async def _main(self) -> None:
        import trio

        from pylightnix.fetch.fetcher import running_fetcher

        self._token, self._scope = trio.lowlevel.current_trio_token(), trio.CancelScope()
        self._started.set()
        with self._scope:
            async with (
                running_fetcher(self._folder) as fetcher,
                fetcher.fetched(self._spec, self._environment, progress=self._progress, keep=self._keep) as file,
            ):
                self.answers.put(file)
                await trio.sleep_forever()


def _only(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


@contextmanager
def fetched_file(
    folder: str, spec: FetchSpec, environment: FetchEnvironment, *, progress: Optional[OnProgress] = None, keep: bool = False
) -> Iterator[FetchedFile]:
    """Fetch a file and lend it for the block. Blocks; an interrupt (Ctrl-C) stops it, and what was received stays.

    Arguments and errors as of `Fetcher.fetched`. `progress` is called in another thread.
    """
    loop = _Loop(folder, spec, environment, progress, keep)
    loop.start()
    try:
        answer = loop.answers.get()
        if answer is None:
            raise AssertionError("BUG: a fetch ended without an answer")
        if isinstance(answer, BaseException):
            raise answer
        yield answer
    finally:
        loop.end()
