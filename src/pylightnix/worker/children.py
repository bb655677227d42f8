"""The worker's processes: those it forked, and the strangers that ended builds left to it.

A stranger is killed as soon as it is seen. An end is told of only when there are no strangers: as nobody
can tell whose they are, a build that ends while another's leftovers are dying waits for those too. Every
death of a child raises SIGCHLD, and orphans become children before the death of their parent can be
seen, so `settle` after each SIGCHLD misses nobody. Must not know what is built.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NoReturn, Optional

from pylightnix.worker.linux import become_subreaper, die_with_parent, flush_c_streams, own_children

__all__ = ["Children", "Ended", "how_it_ended"]


_HANDLED: Final = (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
"""The signals for which the worker has handlers of its own, which a child puts back."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A process that was forked here is dead, and so is everything that it left."""

    key: str
    pid: int
    exit_code: Optional[int]
    signal: Optional[int]
    """What killed it; then it has no exit code."""


def how_it_ended(exit_code: Optional[int], signal_number: Optional[int]) -> str:
    """Say how a process ended that was to report and has not, as the end of a sentence."""
    if signal_number is None:
        return f"exited with status {exit_code} without a report"
    try:
        name = signal.Signals(signal_number).name
    except ValueError:
        name = "unknown"
    return f"was killed by signal {signal_number} ({name})"


class Children:
    """All processes of the worker, by the keys that they were forked under."""

    def __init__(self) -> None:
        self._running: dict[int, str] = {}
        self._reaped: list[Ended] = []

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
            _kill(pid)

    def settle(self) -> list[Ended]:
        """Reap the dead, kill strangers, and return whose end is complete. Does not wait."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            self._note(pid, status)
        strangers = [pid for pid in own_children() if pid not in self._running]
        for pid in strangers:
            _kill_stranger(pid)
        if strangers:
            return []
        ended, self._reaped = self._reaped, []
        return ended

    def _note(self, pid: int, status: int) -> None:
        key = self._running.pop(pid, None)
        if key is not None:
            code = os.waitstatus_to_exitcode(status)
            self._reaped.append(Ended(key, pid, code if code >= 0 else None, -code if code < 0 else None))

    def end_all(self) -> None:
        """Kill everything and wait until nothing is left. Set-id programs, which cannot be killed, are waited for."""
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
        pass  # it runs as another user, as set-id programs do; its end is waited for


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
