"""The worker's loop: requests in, processes forked, ends told.

Methods: ``hello {versions, import_path, umask}``, ``build {…}`` with two descriptors (log, status),
``matcher {operation, root, storage}`` with one (a socket), ``kill {build}``. Notification ``ended {build,
pid, exit_code, signal, left}`` follows each fork, once nothing of it is alive but `left`, which cannot be
killed. In the last two ``build`` may name an operation, too, whose matchers are meant. Must not run users'
code in this process.
"""

from __future__ import annotations

import gc
import io
import math
import os
import select
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

from pylightnix._version import __version__
from pylightnix.bytecode import load_projects_from_source
from pylightnix.errors import PylightnixException
from pylightnix.shadowing import load_ahead_of
from pylightnix.travel.script import become_main_program
from pylightnix.worker.ahead import Ahead, settle_memory
from pylightnix.worker.building import parse_order, run_build
from pylightnix.worker.channel import Channel, Gone, Request
from pylightnix.worker.children import Children, Ended
from pylightnix.worker.linux import become_subreaper, gain_no_privileges
from pylightnix.worker.matching import MatchOrder, serve_matchers
from pylightnix.worker.surroundings import reseed, send_output_to

__all__ = ["VERSION", "serve"]

VERSION: Final = 1


class Refused(PylightnixException):
    """A request cannot be granted; `reason` is the stable code that says why."""

    def __init__(self, reason: str, message: str, **facts: Any) -> None:
        self.reason, self.facts = reason, facts
        super().__init__(message)


def serve(control_fd: int, owner_fd: int) -> NoReturn:
    """Serve the connection `control_fd` until it ends, holding `owner_fd` open; then kill everything and exit."""
    _settle_in(control_fd, owner_fd)
    worker = Worker(control_fd, owner_fd)
    try:
        worker.run()
    except Gone:
        pass  # the usual end
    finally:
        # Before anything else goes, for others take the closed owner descriptor for a sign that all is quiet.
        worker.children.end_all()
    sys.stderr.flush()
    os._exit(0)


def _settle_in(control_fd: int, owner_fd: int) -> None:
    """Leave nothing of whoever started this process in it but the two descriptors and standard output."""
    os.set_inheritable(control_fd, False)
    os.set_inheritable(owner_fd, False)
    kept = sorted({control_fd, owner_fd})
    for low, high in zip([2, *kept], [*kept, 1 << 20], strict=True):
        os.closerange(low + 1, high)
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.close(null)
    os.chdir("/")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    become_subreaper()
    gain_no_privileges()  # here too: whatever started this worker, its builds can be killed
    # Libraries have threads of their own that take no harm, and the worker sees to it that Python has none.
    warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)


class Worker:
    """The state of the worker."""

    def __init__(self, control_fd: int, owner_fd: int) -> None:
        self.channel = Channel(socket.socket(fileno=control_fd))
        self.children = Children()
        self.ahead = Ahead()
        self._owner_fd = owner_fd
        self._wakeup, self._alarm = socket.socketpair()
        self._greeted = False
        self._methods = {"hello": self._hello, "build": self._build, "matcher": self._matcher, "kill": self._kill}

    def run(self) -> NoReturn:
        """Serve until the connection ends.

        Raises:
            Gone: it has ended, or a signal asked for the end.
        """
        self._catch_signals()
        poll = select.poll()
        poll.register(self.channel.fileno(), select.POLLIN)
        poll.register(self._wakeup.fileno(), select.POLLIN)
        while True:
            due = self.children.next_at
            ready = {fd for fd, _ in poll.poll(None if due == math.inf else max(0.0, due - time.monotonic()) * 1000 + 1)}
            if self._wakeup.fileno() in ready and signal.SIGTERM in self._wakeup.recv(4096):
                raise Gone("a signal asked for the end")
            if self._wakeup.fileno() in ready or time.monotonic() >= due:
                for ended in self.children.settle():
                    self._tell_end(ended)
            if self.channel.fileno() in ready:
                for request in self.channel.receive():
                    self._serve(request)

    def _catch_signals(self) -> None:
        self._wakeup.setblocking(False)
        self._alarm.setblocking(False)
        # A full buffer loses nothing: one byte of SIGCHLD is as good as many.
        signal.set_wakeup_fd(self._alarm.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, _do_nothing)
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # a terminal's; whoever is asked to end there ends this one

    def _tell_end(self, ended: Ended) -> None:
        left = {"left": ended.left} if ended.left else {}
        self.channel.notify("ended", {"build": ended.key, "pid": ended.pid, "exit_code": ended.exit_code, "signal": ended.signal, **left})

    # --- requests -----------------------------------------------------------------------------------

    def _serve(self, request: Request) -> None:
        try:
            handle = self._methods.get(request.method)
            if handle is None:
                raise Refused("unknown-method", f"expected one of {', '.join(sorted(self._methods))}, found {request.method!r}")
            if not self._greeted and request.method != "hello":
                raise Refused("handshake-expected", "expected hello first")
            result = handle(request.params)
        except Refused as error:
            self.channel.refuse(request.id, {"code": error.reason, "message": str(error), **error.facts})
        except (PylightnixException, KeyError, TypeError, ValueError) as error:
            self.channel.refuse(request.id, {"code": "invalid-message", "message": f"{type(error).__name__}: {error}"})
        else:
            self.channel.answer(request.id, result)

    def _hello(self, params: Mapping[str, Any]) -> dict[str, Any]:
        if VERSION not in params["versions"]:
            found = f"it speaks version {VERSION} of the workers' protocol, and was offered {params['versions']}"
            raise Refused("unsupported-version", found, package=__version__)
        load_ahead_of(entry for entry in params["import_path"] if entry not in sys.path)
        sys.path[:] = params["import_path"]
        load_projects_from_source()
        os.umask(params["umask"])
        gc.disable()  # until a fork: here everything is kept anyway
        settle_memory()
        self._greeted = True
        return {"version": VERSION, "features": [], "package": __version__, "python": sys.version.split()[0], "pid": os.getpid()}

    def _build(self, params: Mapping[str, Any]) -> dict[str, Any]:
        log_fd, status_fd = self.channel.take_fds(2)
        try:
            order = parse_order(params)

            def body() -> None:
                self._let_go()
                send_output_to(log_fd)
                become_main_program()
                self.ahead.after_fork()
                run_build(order, status_fd, self.ahead.tell)

            return {"pid": self._fork(order.build, body)}
        finally:
            os.close(log_fd)
            os.close(status_fd)

    def _matcher(self, params: Mapping[str, Any]) -> dict[str, Any]:
        (fd,) = self.channel.take_fds(1)
        with socket.socket(fileno=fd) as connection:
            order = MatchOrder(params["operation"], params["root"], params["storage"])

            def body() -> None:
                self._let_go()
                become_main_program()
                self.ahead.after_fork()
                serve_matchers(order, Channel(connection))
                self.ahead.tell()

            return {"pid": self._fork(order.operation, body)}

    def _kill(self, params: Mapping[str, Any]) -> dict[str, Any]:
        self.children.kill(params["build"])
        return {}

    # --- forking --------------------------------------------------------------------------------------

    def _fork(self, key: str, body: Callable[[], None]) -> int:
        if self.children.has(key):
            raise Refused("already-running", f"there is a process for {key} already")
        if self.ahead.is_stale():
            raise Refused("worker-stale", "packages were installed or removed since this worker started; start another one")
        self.ahead.load()
        if threading.active_count() > 1:
            names = ", ".join(sorted(thread.name for thread in threading.enumerate()))
            raise Refused("worker-unfit", f"a module that was imported ahead has started threads ({names}); start another worker")
        try:
            return self.children.fork(key, body)
        except OSError as error:
            raise Refused("cannot-fork", f"the system allows no more processes: {error.strerror}") from error

    def _let_go(self) -> None:
        """Close, in a forked child, what is the worker's own, and be a process that differs from all its siblings."""
        self.channel.close()
        os.close(self._owner_fd)
        self._wakeup.close()
        self._alarm.close()
        gc.enable()
        reseed()


def _do_nothing(number: int, frame: object) -> None:
    """Let the wakeup descriptor tell of the signal."""
