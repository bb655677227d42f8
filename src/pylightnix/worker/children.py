"""The worker's processes: those it forked, and the strangers that ended builds left to it.

A stranger is killed as soon as it is seen. The end of a build is told of only when there are no strangers that it may have left,
which are those that were first seen when it was reaped, or later: orphans become children before the death of their parent can be
seen, and every death of a child raises SIGCHLD, so `settle` after each SIGCHLD misses nobody. What lives on long after it was
killed is *left*: the end is told, names it, and it is waited for no more. Must not know what is built.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NoReturn, Optional

from pylightnix.worker.linux import become_subreaper, die_with_parent, flush_c_streams, own_children

__all__ = ["Children", "Ended", "Leftovers", "how_it_ended"]


_HANDLED: Final = (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
"""The signals for which the worker has handlers of its own, which a child puts back."""
DEAF_SECONDS: Final = 10.0
"""How long a process may live after SIGKILL: the kernel may have much memory to take back from it."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A process that was forked here is dead, and so is everything that it left."""

    key: str
    pid: int
    exit_code: Optional[int]
    signal: Optional[int]
    """What killed it; then it has no exit code."""
    left: tuple[int, ...] = ()
    """Processes of it, perhaps itself, that cannot be killed."""


def how_it_ended(exit_code: Optional[int], signal_number: Optional[int]) -> str:
    """Say how a process ended that was to report and has not, as the end of a sentence."""
    if signal_number is None:
        return f"exited with status {exit_code} without a report"
    try:
        name = signal.Signals(signal_number).name
    except ValueError:
        name = "unknown"
    return f"was killed by signal {signal_number} ({name})"


@dataclass(frozen=True, slots=True)
class _Reaped:
    ended: Ended
    turn: int
    """At which `settle` it was reaped."""


@dataclass(frozen=True, slots=True)
class _Stranger:
    pid: int
    turn: int
    """At which `settle` it was first seen."""
    killed: float


@dataclass(slots=True)
class Leftovers:
    """Which ends may be told of, and which have to wait for strangers. Pure."""

    deaf_seconds: float = DEAF_SECONDS
    turn: int = 0
    deaf: set[int] = field(default_factory=set)
    """Those that are not waited for any more."""
    _reaped: list[_Reaped] = field(default_factory=list)
    _strangers: dict[int, _Stranger] = field(default_factory=dict)
    _left: list[_Stranger] = field(default_factory=list)

    def note_end(self, ended: Ended) -> None:
        """Enter that a child was reaped in this turn."""
        self._reaped.append(_Reaped(ended, self.turn))

    def settle(self, strangers: Sequence[int], now: float) -> list[Ended]:
        """Enter who is there that was not forked here, and end the turn; return the ends that may be told of.

        All ends were entered of those who died before it was looked who is there.
        """
        self._strangers = {pid: self._strangers.get(pid) or _Stranger(pid, self.turn, now) for pid in strangers if pid not in self.deaf}
        for stranger in [stranger for stranger in self._strangers.values() if stranger.killed + self.deaf_seconds <= now]:
            self._left.append(self._strangers.pop(stranger.pid))
            self.deaf.add(stranger.pid)
        told = [reaped for reaped in self._reaped if not any(_may_be_of(stranger, reaped) for stranger in self._strangers.values())]
        self._reaped = [reaped for reaped in self._reaped if reaped not in told]
        ends = [replace(reaped.ended, left=tuple(s.pid for s in self._left if _may_be_of(s, reaped))) for reaped in told]
        oldest = min((reaped.turn for reaped in self._reaped), default=self.turn)
        self._left = [stranger for stranger in self._left if stranger.turn >= oldest]
        self.turn += 1
        return ends

    @property
    def next_at(self) -> float:
        """When to settle again although nobody has died; infinite for never."""
        return min((stranger.killed + self.deaf_seconds for stranger in self._strangers.values()), default=math.inf)


def _may_be_of(stranger: _Stranger, reaped: _Reaped) -> bool:
    # One that is seen later may have been left by one that was seen before.
    return stranger.turn >= reaped.turn


class Children:
    """All processes of the worker, by the keys that they were forked under."""

    def __init__(self, deaf_seconds: float = DEAF_SECONDS) -> None:
        self._running: dict[int, str] = {}
        self._killed: dict[int, float] = {}
        self._deaf_seconds = deaf_seconds
        self._leftovers = Leftovers(deaf_seconds)

    def fork(self, key: str, body: Callable[[], None]) -> int:
        """Run `body` in a new process, a session of its own that dies with this one, and return its number.

        Raises:
            OSError: the system does not allow it.
        """
        for stream in (sys.stdout, sys.stderr):
            stream.flush()  # or the child would print it, too
        flush_c_streams()
        parent = os.getpid()
        # None of these may reach the child while it has this process's handlers and its wakeup descriptor. Others are
        # left alone: the mask comes back as a set of enum members, which are made one by one, twice for every fork.
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
        try:
            pid = os.fork()
            if pid == 0:
                _live(parent, previous, body)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)
        self._running[pid] = key
        return pid

    def has(self, key: str) -> bool:
        return key in self._running.values()

    def kill(self, key: str) -> None:
        """Kill the process of that key, if there is one, and its group. What else it has becomes a stranger when it dies."""
        for pid in [pid for pid, its in self._running.items() if its == key]:
            self._killed.setdefault(pid, time.monotonic())
            _kill(pid)

    def settle(self) -> list[Ended]:
        """Reap the dead, kill strangers, and return whose end is complete, or as complete as it will be. Does not wait."""
        now = time.monotonic()
        self._reap()
        there = own_children()
        while self._reap():  # who died before we looked is entered in this turn; see `Leftovers.settle`
            there = own_children()
        strangers = [pid for pid in there if pid not in self._running]
        for pid in strangers:
            _kill_stranger(pid)
        return self._deaf_ones(now) + self._leftovers.settle(strangers, now)

    def _reap(self) -> bool:
        """Reap the dead; tell whether there were any."""
        found = False
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return found
            if pid == 0:
                return found
            found = True
            self._note(pid, status)

    def _deaf_ones(self, now: float) -> list[Ended]:
        """Return the ends of those that were killed long ago and live: they are not waited for any more."""
        deaf = [pid for pid, killed in self._killed.items() if killed + self._deaf_seconds <= now]
        for pid in deaf:
            del self._killed[pid]
            self._leftovers.deaf.add(pid)
        return [Ended(self._running.pop(pid), pid, None, signal.SIGKILL, (pid,)) for pid in deaf]

    @property
    def next_at(self) -> float:
        """When to settle again although nobody has died, on the monotonic clock; infinite for never."""
        killed = min(self._killed.values(), default=math.inf) + self._deaf_seconds
        return min(killed, self._leftovers.next_at)

    def _note(self, pid: int, status: int) -> None:
        self._killed.pop(pid, None)
        self._leftovers.deaf.discard(pid)
        key = self._running.pop(pid, None)
        if key is not None:
            code = os.waitstatus_to_exitcode(status)
            self._leftovers.note_end(Ended(key, pid, code if code >= 0 else None, -code if code < 0 else None))

    def end_all(self) -> None:
        """Kill everything and wait until nothing is left, however long that takes.

        What cannot be killed may write into a build folder, and as long as this process holds the owner's lock, nobody sweeps that.
        A daemon does not wait for this process, but kills it.
        """
        for pid in self._running:
            _kill(pid)
        while True:
            for pid in own_children():
                _kill_stranger(pid)
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                return


def _kill(pid: int) -> None:
    """Kill a process that was not reaped yet, and its group if it has one already."""
    for kill in (os.killpg, os.kill):
        try:
            kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass  # it has not made its group yet; or all that is left of that runs as another user


def _kill_stranger(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass  # it runs as another user; its end is waited for, but not for ever


def _live(parent: int, signal_mask: set[int], body: Callable[[], None]) -> NoReturn:
    """Be the child: nothing may return or raise from here into the worker's own code."""
    status = 1
    try:
        os.setsid()
        die_with_parent(parent)
        become_subreaper()
        signal.set_wakeup_fd(-1)
        for number in _HANDLED:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, signal_mask)
        body()
        status = 0
    except BaseException:  # noqa: BLE001, ASYNC103  # whatever it is, it ends here
        traceback.print_exc()
    finally:
        # Not sys.exit: exit handlers are the worker's, and threads of the build must not be waited for.
        os._exit(status)
