"""Fetching for synchronous code: one thread of this process has a loop, and in it a fetcher for each folder.

So it works below a running event loop of any kind, from many threads, and connections and what is known of failing servers
outlive one file. The thread starts with the first fetch, waits without cost, and ends with the process.

Before a fork it ends, or stands still if somebody fetches just then; a child starts its own when it needs one. Loops and connections
cannot be shared with a child, and locks neither: if the thread were inside OpenSSL, the child would have its lock for ever.
"""

from __future__ import annotations

import atexit
import os
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Optional, Union

from pylightnix.fetch.environment import FetchEnvironment
from pylightnix.fetch.files import FetchedFile
from pylightnix.fetch.spec import FetchSpec, OnProgress

if TYPE_CHECKING:
    import trio

    from pylightnix.fetch.fetcher import Fetcher

__all__ = ["fetched_file"]

_FETCHERS_MAX: Final = 4
"""How many folders' fetchers stay though nobody uses them."""
_END_SECONDS: Final = 10.0
_PAUSE_SECONDS: Final = 5.0
"""How long a fork waits for the thread: only a `progress` that hangs takes so long."""

_Answer = Union[FetchedFile, BaseException]


# --- in the loop --------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Running:
    """A fetcher, and how many use it."""

    fetcher: Fetcher
    scope: trio.CancelScope
    users: int = 0


class _Fetchers:
    """The fetchers of one loop, by their folders."""

    def __init__(self, nursery: trio.Nursery) -> None:
        import trio

        self._nursery = nursery
        self._running: dict[str, _Running] = {}
        self._starting = trio.Lock()

    async def begin_use(self, folder: str) -> _Running:
        """Return the fetcher of a folder, started if it is not there. Whoever has it calls `end_use`."""
        async with self._starting:
            # Put back behind the others, so that those which nobody has used for long are the first.
            running = self._running.pop(folder, None) or await self._nursery.start(self.run_fetcher, folder)
            self._running[folder] = running
            running.users += 1
            return running

    def end_use(self, running: _Running) -> None:
        running.users -= 1
        idle = [folder for folder, each in self._running.items() if each.users == 0]
        for folder in idle[: max(0, len(self._running) - _FETCHERS_MAX)]:
            self._running.pop(folder).scope.cancel()

    @staticmethod
    async def run_fetcher(folder: str, *, task_status: trio.TaskStatus[_Running]) -> None:
        import trio

        from pylightnix.fetch.fetcher import running_fetcher

        with trio.CancelScope() as scope:
            async with running_fetcher(folder) as fetcher:
                task_status.started(_Running(fetcher, scope))
                await trio.sleep_forever()


@dataclass(slots=True, eq=False)
class _Call:
    """One file that a thread waits for."""

    folder: str
    spec: FetchSpec
    environment: FetchEnvironment
    progress: Optional[OnProgress]
    keep: bool
    scope: trio.CancelScope
    answers: queue.SimpleQueue[_Answer] = field(default_factory=queue.SimpleQueue)
    ended: threading.Event = field(default_factory=threading.Event)
    """Set when the file is let go."""

    async def serve(self, fetchers: _Fetchers) -> None:
        import trio

        try:
            with self.scope:
                running = await fetchers.begin_use(self.folder)
                try:
                    lent = running.fetcher.fetched(self.spec, self.environment, progress=self.progress, keep=self.keep)
                    async with lent as file:
                        self.answers.put(file)
                        await trio.sleep_forever()
                finally:
                    fetchers.end_use(running)
        except Exception as error:  # noqa: BLE001  # raised by the thread that waits; the loop goes on
            self.answers.put(_only(error))
        finally:
            self.ended.set()


def _only(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


# --- the thread ---------------------------------------------------------------------------------------


class _Loop:
    """The thread, as other threads see it."""

    def __init__(self) -> None:
        import trio

        self.calls: set[_Call] = set()
        """Those that are not over, as others may ask; changed under `_lock`."""
        self._scope = trio.CancelScope()
        self._token: queue.SimpleQueue[Optional[trio.lowlevel.TrioToken]] = queue.SimpleQueue()
        self._nursery: Optional[trio.Nursery] = None
        self._fetchers: Optional[_Fetchers] = None
        self._failure: Optional[BaseException] = None
        self._resumed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pylightnix-fetch", daemon=True)
        self._thread.start()
        token = self._token.get()
        if token is None:
            raise self._failure or AssertionError("BUG: a loop ended before it began")
        self.token = token

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def begin(self, call: _Call) -> None:
        self.token.run_sync_soon(self._begin, call)

    def _begin(self, call: _Call) -> None:
        if self._nursery is None or self._fetchers is None:
            raise AssertionError("BUG: a loop that does not run")
        self._nursery.start_soon(call.serve, self._fetchers)

    def stop(self, call: _Call) -> None:
        """Let go of a file, or stop fetching it, and wait until that is done."""
        import trio

        try:
            self.token.run_sync_soon(call.scope.cancel)
        except trio.RunFinishedError:
            return
        call.ended.wait()

    def end(self) -> None:
        """End the thread, and what it is at."""
        import trio

        try:
            self.token.run_sync_soon(self._scope.cancel)
        except trio.RunFinishedError:
            pass
        deadline = time.monotonic() + _END_SECONDS
        self._thread.join(_END_SECONDS)
        # Joined is not gone: the thread still runs OpenSSL's clean-up, under a lock that a child must not get.
        while os.path.exists(f"/proc/self/task/{self._thread.native_id}") and time.monotonic() < deadline:
            time.sleep(0)

    def pause(self) -> None:
        """Stop the thread between two steps of its tasks, where it is in no code that holds a lock, until `resume`."""
        import trio

        if threading.current_thread() is self._thread:
            return  # it forks by itself, in somebody's `progress`
        self._resumed = threading.Event()
        paused = threading.Event()
        try:
            self.token.run_sync_soon(_stand, paused, self._resumed)
        except trio.RunFinishedError:
            return
        paused.wait(_PAUSE_SECONDS)

    def resume(self) -> None:
        self._resumed.set()

    def _run(self) -> None:
        import trio

        try:
            trio.run(self._main)
        except BaseException as error:  # noqa: ASYNC103, BLE001  # no task: it is raised by the threads that wait
            self._failure = _only(error)
        finally:
            self._token.put(None)
            # Where the process ends, nobody is told: threads that still wait then end with it, and in silence.
            if self._failure is not None:
                for call in tuple(self.calls):
                    call.answers.put(self._failure)
                    call.ended.set()

    async def _main(self) -> None:
        import trio

        with self._scope:
            async with trio.open_nursery() as self._nursery:
                self._fetchers = _Fetchers(self._nursery)
                self._token.put(trio.lowlevel.current_trio_token())
                await trio.sleep_forever()


def _stand(paused: threading.Event, resumed: threading.Event) -> None:
    paused.set()
    resumed.wait()


_lock = threading.Lock()
"""Held while a thread is started or ended, and over a fork."""
_loop: Optional[_Loop] = None
_of_parents: list[_Loop] = []
"""Loops of processes that this one was forked from. Never let go: what they hold is not for a child to close."""


def _begun(call: _Call) -> _Loop:
    """Begin a call in the thread, started if there is none; return that."""
    global _loop  # noqa: PLW0603  # there is one for each process
    with _lock:
        if _loop is None or not _loop.is_alive:
            _loop = _Loop()
        loop = _loop
        loop.calls.add(call)
    loop.begin(call)
    return loop


def _before_fork() -> None:
    global _loop  # noqa: PLW0603  # see above
    _lock.acquire()  # until after the fork
    if _loop is not None and _loop.calls:
        _loop.pause()
    elif _loop is not None:
        _loop.end()
        _loop = None


def _after_fork() -> None:
    if _loop is not None:
        _loop.resume()
    _lock.release()


def _after_fork_in_child() -> None:
    global _lock, _loop  # the parent's thread does not exist here
    if _loop is not None:
        _of_parents.append(_loop)
    _lock, _loop = threading.Lock(), None


def _at_exit() -> None:
    if _loop is not None:
        _loop.end()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
atexit.register(_at_exit)


@contextmanager
def fetched_file(
    folder: str, spec: FetchSpec, environment: FetchEnvironment, *, progress: Optional[OnProgress] = None, keep: bool = False
) -> Iterator[FetchedFile]:
    """Fetch a file and lend it for the block. Blocks; an interrupt (Ctrl-C) stops it, and what was received stays.

    Arguments and errors as of `Fetcher.fetched`. `progress` is called in another thread.
    """
    import trio

    call = _Call(folder, spec, environment, progress, keep, trio.CancelScope())
    loop, pid = _begun(call), os.getpid()
    try:
        answer = call.answers.get()
        if isinstance(answer, BaseException):
            raise answer
        yield answer
    finally:
        if os.getpid() == pid:  # else this is a forked child, and the file its parent's
            loop.stop(call)
            with _lock:
                loop.calls.discard(call)
