"""The daemon's own processes: starting them, ending them within a bound, and remembering those that cannot be ended.

A process that outlives SIGKILL (it waits for a disk, or runs as another user) is *given up*: nobody waits for it any more, and
what it may still write into is left alone until it is dead. It is told of once in the log and stays in the list until then. Must
not know what any process does.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Optional, Protocol

import trio

from pylightnix.worker.linux import children_of
from pylightnixd.boundary import SharedNursery
from pylightnixd.patience import Ending, Step

__all__ = ["GivenUp", "Processes", "end_process", "send_signal", "state_of", "wait_dead"]

_log = logging.getLogger("pylightnixd")

START_SECONDS: Final = 10.0
"""How long the kernel may take to begin a program: it may lie on a disk that does not answer."""
STRAY_SECONDS: Final = 1.0
"""How long what was killed may take to be gone."""
POLL_SECONDS: Final = 1.0
_STATES: Final = {"T": "stopped", "t": "stopped by a debugger", "D": "waits for a disk or a device and cannot be interrupted"}


class Running(Protocol):
    """A child, as far as its end is concerned; a `trio.Process` for one."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> Optional[int]: ...

    async def wait(self) -> int: ...


@dataclass(frozen=True, slots=True)
class GivenUp:
    """A process that nobody waits for any more, though it may live."""

    pid: int
    what: str
    since: float
    """UTC seconds since the epoch."""
    folder: Optional[str] = None
    """What it may still write into."""


def _letter_of(pid: int) -> str:
    """Return the kernel's letter for the state of a process; that of the dead if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0].decode()
    except (OSError, IndexError):
        return "X"


def state_of(pid: int) -> str:
    """Say in which state a process is that does not do what it should, as an addition to its number; empty if there is nothing to say."""
    letter = _letter_of(pid)
    return f", {_STATES[letter]}" if letter in _STATES else ""


def is_alive(pid: int) -> bool:
    """Tell whether there is such a process that is not dead; it may wait to be reaped."""
    return _letter_of(pid) not in "ZX"


def send_signal(pid: int, number: signal.Signals) -> None:
    """Send a signal to a child that was not reaped. Its being another user's is no error: that shows in its staying."""
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


async def end_process(process: Running, ask: Callable[[], None], send: Callable[[int, signal.Signals], None] = send_signal) -> bool:
    """End a child: ask, then SIGTERM, then SIGKILL. Bounded; return whether it is dead, else it is to be given up."""
    ending = Ending(trio.current_time())
    while process.poll() is None:
        for step in ending.due(trio.current_time()):
            if step is Step.give_up:
                return process.poll() is not None
            if step is Step.ask:
                ask()
            else:
                send(process.pid, signal.SIGTERM if step is Step.terminate else signal.SIGKILL)
        with trio.move_on_at(ending.next_at):
            await process.wait()
    return True


async def wait_dead(pid: int) -> None:
    """Wait until a process, anybody's child, is dead; at once if there is none of that number."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except OSError:  # no descriptor to be had, and so nothing that tells
        while os.path.exists(f"/proc/{pid}"):  # noqa: ASYNC110, ASYNC240
            await trio.sleep(POLL_SECONDS)
        return
    try:
        await trio.lowlevel.wait_readable(fd)
    finally:
        os.close(fd)


@dataclass(slots=True, eq=False)
class _Start:
    """A program that is being started, in a task that cannot be cancelled."""

    done: trio.Event = field(default_factory=trio.Event)
    process: Optional[trio.Process] = None
    error: Optional[Exception] = None
    unwanted: bool = False
    """Nobody waits for it any more; it is killed as soon as it is there."""


@dataclass(slots=True, eq=False)
class Processes:
    """All processes that this daemon started or was left. `nursery` must outlive everything that starts one."""

    nursery: SharedNursery
    remember: Callable[[Sequence[int]], None]
    """Notes, for daemons to come, which processes may still write into this one's folder."""
    spared: set[int] = field(default_factory=set)
    """Children that were started here, and are no strays."""
    forking: trio.Lock = field(default_factory=trio.Lock)
    """Held while a child of ours may be there that `spared` does not know yet."""
    given_up: list[GivenUp] = field(default_factory=list)
    _earlier: set[int] = field(default_factory=lambda: set(children_of(os.getpid())))
    """Children that were there before: a shell that puts a daemon in its own place may have some."""

    async def start(self, command: Sequence[str], owned_fds: Sequence[int], **options: Any) -> trio.Process:
        """Start a program, and return when it has begun. The file descriptors `owned_fds`, which it inherits, are closed.

        Raises:
            OSError: it cannot be started, or does not begin in time.
        """
        start = _Start()
        async with self.forking:
            self.nursery.start_soon(f"starting {command[0]}", partial(self._open, start, command, owned_fds, options))
            try:
                with trio.move_on_after(START_SECONDS):
                    await start.done.wait()
            except BaseException:
                start.unwanted = True
                if start.process is not None:
                    self.nursery.start_soon("ending what nobody wants", partial(self._end_unwanted, start.process))
                raise
            if start.error is not None:
                raise start.error
            if start.process is None:
                start.unwanted = True
                raise OSError(errno.ETIMEDOUT, f"it did not begin within {START_SECONDS:g} s")
            return start.process

    async def _open(self, start: _Start, command: Sequence[str], owned_fds: Sequence[int], options: dict[str, Any]) -> None:
        # In a task of its own: a thread that waits for the kernel cannot be interrupted, and uses the descriptors.
        try:
            with trio.CancelScope(shield=True):
                process = await trio.lowlevel.open_process(list(command), **options)
            self.spared.add(process.pid)
            start.process = process
        except Exception as error:  # noqa: BLE001  # a path or a variable that cannot be handed on is a ValueError
            start.error = error
        finally:
            for fd in owned_fds:
                os.close(fd)
        start.done.set()
        if start.unwanted and start.process is not None:
            await self._end_unwanted(start.process)

    async def _end_unwanted(self, process: trio.Process) -> None:
        with trio.CancelScope(shield=True):
            await self.end(process, lambda: None, "a program that began too late")

    async def end(self, process: Running, ask: Callable[[], None], what: str) -> list[int]:
        """End a child, and what it leaves to us; return the processes that could not be ended, which are given up. Bounded."""
        if await end_process(process, ask):
            self.spared.discard(process.pid)
            return await self._end_strays(what)
        # Nobody else can end what it forked, which is its own as long as it is there.
        undead = [process.pid, *filter(is_alive, children_of(process.pid))]
        for pid in undead[1:]:
            send_signal(pid, signal.SIGKILL)
        for pid in undead:
            self.give_up(pid, what if pid == process.pid else f"a process of {what}")
        self.nursery.start_soon(f"waiting for the end of process {process.pid}", partial(self._forget, process, what))
        return undead

    async def _forget(self, process: Running, what: str) -> None:
        await process.wait()
        self.spared.discard(process.pid)
        await self._end_strays(what)

    async def _end_strays(self, what: str) -> list[int]:
        """Kill what a lost process left: orphans, which the kernel gave to us. Return those that stay, which are given up."""
        async with self.forking:
            deadline = trio.current_time() + STRAY_SECONDS
            # Again and again: what a stray has forked is ours only when the stray is dead.
            while strays := self._strays():
                for pid in filter(is_alive, strays):
                    _log.warning("killing process %d, which %s left", pid, what)
                    send_signal(pid, signal.SIGKILL)
                with trio.move_on_at(deadline) as scope:
                    for pid in strays:
                        await wait_dead(pid)
                for pid in strays:
                    _reap(pid)
                if scope.cancelled_caught:
                    strays = self._strays()
                    for pid in strays:
                        self.give_up(pid, f"a process that {what} left")
                    return strays
            return []

    def _strays(self) -> list[int]:
        self._earlier -= self.spared
        for pid in {pid for pid in self._earlier if not is_alive(pid)}:
            _reap(pid)
            self._earlier.discard(pid)
        known = self.spared | self._earlier | {gone.pid for gone in self.given_up}
        return [pid for pid in children_of(os.getpid()) if pid not in known]

    # --- those that cannot be ended ---------------------------------------------------------------------

    def give_up(self, pid: int, what: str, folder: Optional[str] = None) -> GivenUp:
        """Wait for a process no more, say so, and remember it until it is dead, or `settle` says that it is no matter."""
        entry = GivenUp(pid, what, time.time(), folder)
        where = f"; {folder}, into which it may write, is left alone until then" if folder else ""
        _log.warning("given up: process %d (%s%s) does not end, and is not waited for any more%s", pid, what, state_of(pid), where)
        self.given_up.append(entry)
        self._remember()
        self.nursery.start_soon(f"waiting for the end of process {pid}", partial(self._await_end, entry))
        return entry

    def settle(self, entry: GivenUp) -> None:
        """Forget a process that was given up: it is dead, or what it could do is of no matter any more."""
        if entry in self.given_up:
            self.given_up.remove(entry)
            self._remember()

    async def _await_end(self, entry: GivenUp) -> None:
        await wait_dead(entry.pid)
        if entry in self.given_up:
            _log.info("process %d (%s), which was given up, has ended", entry.pid, entry.what)
        self.settle(entry)
        if entry.pid not in self.spared:
            _reap(entry.pid)

    def _remember(self) -> None:
        self.remember([entry.pid for entry in self.given_up])


def _reap(pid: int) -> None:
    """Reap a stray, if it is dead."""
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
