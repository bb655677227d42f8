"""Samples of one build side by side: a process for each, forked from the build's own, so many at a time.

They are of the build's session and process group, and die with its process, so that whoever ends the build
ends them too. A sample tells by a file in memory how it went: nothing but its own process can keep that
open, and nobody must read it meanwhile. Must not know the worker.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

import msgpack  # type: ignore[import-untyped]  # it ships no type information

from pylightnix.protocol.errors import BuildDied
from pylightnix.travel.failures import dump_exception, load_exception
from pylightnix.types import DRef
from pylightnix.worker.children import DEAF_SECONDS, how_it_ended
from pylightnix.worker.linux import die_with_parent
from pylightnix.worker.surroundings import flush_output, print_whole_lines, reseed

__all__ = ["SideBySide"]


@dataclass(frozen=True, slots=True)
class _Sample:
    rindex: int
    pid: int
    pidfd: int
    """Ready when the process has ended."""
    said: int
    """The file in memory: a MessagePack nil if all went well, else what `dump_exception` returned; empty if it died."""


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Makes samples, `at_once` at a time. A `stagebody.RunSamples`."""

    dref: DRef
    build: str
    at_once: int
    tell_left: Callable[[int], None]
    """Is told, when fewer than `at_once` are left, how many."""
    let_go: Callable[[], None]
    """Is called first in the process of each sample."""
    before_end: Callable[[], None]
    """Is called last in the process of each sample that went well."""

    def __call__(self, count: int, make: Callable[[int], None]) -> None:
        """Make all samples, or kill those that run as soon as one has failed, and raise its error.

        Raises:
            BuildDied: a sample's process ended before it had told how it went.
            What `make` raised, with the traceback it had there.
        """
        if threading.active_count() > 1:
            # What the stage's module has started when it was imported does not live on in a forked process.
            self._in_order(count, make)
            return
        waiting = deque(range(count))
        running: dict[int, _Sample] = {}
        poll = select.poll()
        try:
            while waiting or running:
                while waiting and len(running) < self.at_once:
                    sample = self._start(waiting.popleft(), make)
                    running[sample.pidfd] = sample
                    poll.register(sample.pidfd, select.POLLIN)
                for pidfd in sorted(fd for fd, _ in poll.poll()):
                    poll.unregister(pidfd)
                    self._finish(running.pop(pidfd), count)
                if len(waiting) + len(running) < self.at_once:
                    self.tell_left(len(waiting) + len(running))
        finally:
            _end(list(running.values()))

    def _in_order(self, count: int, make: Callable[[int], None]) -> None:
        self.tell_left(1)
        for rindex in range(count):
            make(rindex)

    def _start(self, rindex: int, make: Callable[[int], None]) -> _Sample:
        flush_output()  # or the child would print it, too
        parent = os.getpid()
        said = os.memfd_create(f"sample {rindex}")
        pid = os.fork()
        if pid == 0:
            self._live(parent, said, lambda: make(rindex))
        return _Sample(rindex, pid, os.pidfd_open(pid), said)

    def _live(self, parent: int, said: int, body: Callable[[], None]) -> NoReturn:
        """Be the sample's process: nothing may return or raise from here."""
        status, pid = 1, os.getpid()
        try:
            die_with_parent(parent)
            self.let_go()
            reseed()
            print_whole_lines()
            report = _attempt(body)
            flush_output()
            if os.getpid() == pid:  # and not a process that the sample has forked and that came back
                content = memoryview(msgpack.packb(report, unicode_errors="surrogateescape"))
                while content:
                    content = content[os.write(said, content) :]
                if report is None:
                    self.before_end()
            status = 0
        except BaseException:  # noqa: BLE001, ASYNC103  # whatever it is, it ends here
            traceback.print_exc()
        finally:
            os._exit(status)

    def _finish(self, sample: _Sample, count: int) -> None:
        """Reap a sample that has ended, and raise what went wrong in it."""
        code, content = _reap(sample)
        if not content:
            how = how_it_ended(code if code >= 0 else None, -code if code < 0 else None)
            raise BuildDied(str(self.dref), f"for sample {sample.rindex + 1} of {count} {how}", self.build)
        report = msgpack.unpackb(content, unicode_errors="surrogateescape")
        if report is not None:
            raise load_exception(report, trusted=True)


def _attempt(body: Callable[[], None]) -> object:
    report = None
    try:
        body()
    except BaseException as error:  # noqa: BLE001, ASYNC103  # SystemExit and KeyboardInterrupt are failures of a sample, too
        report = dump_exception(error)
    return report


def _end(samples: Sequence[_Sample]) -> None:
    """Kill samples and reap them. Those that cannot be killed are left to whoever ends the build."""
    for sample in samples:
        with suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(sample.pidfd, signal.SIGKILL)
    deadline = time.monotonic() + DEAF_SECONDS
    for sample in samples:
        poll = select.poll()
        poll.register(sample.pidfd, select.POLLIN)
        if poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            _reap(sample)


def _reap(sample: _Sample) -> tuple[int, bytes]:
    """Wait for the end of a sample; return its exit code, or minus the signal, and what it has said."""
    _, status = os.waitpid(sample.pid, 0)
    os.close(sample.pidfd)
    with open(sample.said, "rb") as file:
        file.seek(0)
        return os.waitstatus_to_exitcode(status), file.read()
