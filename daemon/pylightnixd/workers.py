"""Warm workers: one process per environment, which forks for every build.

A worker is the client's own interpreter. This module starts it, gives it to who needs one, and sees to its end, which is
bounded: see `processes`. Must not know what is built, nor for whom.
"""

from __future__ import annotations

import logging
import os
import resource
import socket
import subprocess
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Final, Optional

import trio

from pylightnix._version import __version__
from pylightnix.protocol.errors import ProtocolError, WorkerFailed, WorkerMismatch
from pylightnix.protocol.vocabulary import parse_message
from pylightnix.protocol.worker_messages import WorkerWelcome
from pylightnix.store.owner import Owner, remember_undead
from pylightnix.system_errors import is_refusal, refusal
from pylightnix.travel import Environment, worker_key
from pylightnixd.boundary import SharedNursery
from pylightnixd.descriptors import refuse_descriptors
from pylightnixd.limits import Limits
from pylightnixd.patience import Debts
from pylightnixd.processes import Processes
from pylightnixd.worker import Worker, WorkerLost

__all__ = ["Worker", "WorkerLost", "WorkerPool"]

_log = logging.getLogger("pylightnixd")

IDLE_WORKERS_MAX: Final = 8


@dataclass(slots=True, eq=False)
class WorkerPool:
    """All workers of one daemon. `nursery` holds the task of each, and must outlive every build."""

    nursery: SharedNursery
    owner: Owner
    """Its descriptor holds the daemon's lock on its folder; while a worker lives, so does the lock."""
    log_folder: str
    open_files: Optional[tuple[int, int]] = None
    """The soft and the hard limit on open files that workers have, where those of this process are others."""
    answer_seconds: float = Limits().worker_seconds
    """How long those may owe an answer that are started from now on."""
    workers: dict[str, Worker] = field(default_factory=dict)
    processes: Processes = field(init=False)
    _starting: dict[str, trio.Lock] = field(default_factory=dict)
    _all: list[Worker] = field(default_factory=list)
    """Every worker that is not gone, retired ones too."""
    _numbers: count[int] = field(default_factory=lambda: count(1))

    def __post_init__(self) -> None:
        self.processes = Processes(self.nursery, partial(remember_undead, self.owner))

    @property
    def spared(self) -> set[int]:
        """Children of this process that are no strays."""
        return self.processes.spared

    @property
    def forking(self) -> trio.Lock:
        """Held while a child of ours may be there that `spared` does not know yet."""
        return self.processes.forking

    async def worker_for(self, environment: Environment) -> Worker:
        """Return a worker of that environment, started if there is none.

        Raises:
            WorkerFailed: it does not start.
        """
        key = worker_key(environment)
        starting = self._starting.setdefault(key, trio.Lock())
        try:
            async with starting:
                worker = self.workers.get(key)
                if worker is None or worker.lost or worker.retired:
                    worker = await self._start(key, environment)
                    self._retire_idle(keep=key)
                    self.workers[key] = worker
                return worker
        finally:
            if not starting.locked() and self._starting.get(key) is starting:
                del self._starting[key]  # whoever waits for it would hold it by now

    async def fresh_worker(self, environment: Environment) -> Worker:
        """Return a worker that nobody else is given; whoever asked for it retires it.

        Raises:
            WorkerFailed: it does not start.
        """
        return await self._start(worker_key(environment), environment)

    def _retire_idle(self, keep: str) -> None:
        idle = [key for key, worker in self.workers.items() if not worker.has_work and key != keep]
        for key in idle[: max(0, len(self.workers) - IDLE_WORKERS_MAX)]:
            self.workers.pop(key).retire()

    async def _start(self, key: str, environment: Environment) -> Worker:
        ours, theirs = socket.socketpair()
        refuse_descriptors(ours)  # a build speaks on it, too, if it wants
        interpreter = environment.interpreter
        try:
            log_path = os.path.join(self.log_folder, f"worker-{next(self._numbers)}.log")
            log_fd = os.open(log_path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            process = await self._spawn(environment, theirs, log_fd)
        except (OSError, ValueError) as error:
            ours.close()
            theirs.close()  # if it is still ours
            if is_refusal(error) and not isinstance(error, PermissionError) and isinstance(error, OSError):
                raise refusal(error, f"starting the worker {interpreter}", self.log_folder) from error
            why = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise WorkerFailed(interpreter, f"cannot be started ({why})", "") from error
        except BaseException:
            ours.close()
            raise
        worker = Worker(key, interpreter, process, trio.socket.from_stdlib_socket(ours), Debts(self.answer_seconds))
        self._all.append(worker)
        self.nursery.start_soon(f"worker {worker.pid}", partial(self._attend, worker, log_path))
        try:
            await self._greet(worker, environment, log_path)
        except BaseException:
            worker.retire()  # nobody will know of it
            raise
        return worker

    async def _spawn(self, environment: Environment, theirs: socket.socket, log_fd: int) -> trio.Process:
        theirs_fd = theirs.detach()
        process = await self.processes.start(
            [environment.interpreter, "-P", "-m", "pylightnix.worker", str(theirs_fd), str(self.owner.fd)],
            owned_fds=(theirs_fd, log_fd),
            stdin=subprocess.DEVNULL,
            stdout=log_fd,
            stderr=log_fd,
            pass_fds=(theirs_fd, self.owner.fd),
            env=dict(environment.variables),
            cwd="/",
            start_new_session=True,
        )
        if self.open_files is not None:  # before it says hello, so before any build
            try:
                resource.prlimit(process.pid, resource.RLIMIT_NOFILE, self.open_files)
            except OSError:
                pass  # it has ended at once
        return process

    async def _greet(self, worker: Worker, environment: Environment, log_path: str) -> None:
        hello = {"versions": [1], "import_path": list(environment.import_path), "umask": environment.umask}
        try:
            welcome = parse_message(await worker.call("hello", hello), WorkerWelcome)
        except ProtocolError as error:
            raise WorkerMismatch(environment.interpreter, "(another version)", __version__, str(error)) from error
        except WorkerLost as error:
            await worker.gone.wait()  # noqa: ASYNC120  # cancelled, nobody wants to know
            status = worker.process.poll()
            how = worker.fault if worker.is_silent else f"ended at once (exit status {status})"
            raise WorkerFailed(environment.interpreter, how, _tail(log_path)) from error
        if welcome.package != __version__:
            _log.info("the worker %s is of pylightnix %s, this is %s", environment.interpreter, welcome.package, __version__)

    async def _attend(self, worker: Worker, log_path: str) -> None:
        """Serve a worker until it is gone, and see that it is, or give it up."""
        try:
            await worker.serve()
        finally:
            worker.hang_up()
            # Bounded: every step of the end is.
            with trio.CancelScope(shield=True):
                try:
                    worker.undead = await self.processes.end(worker.process, worker.hang_up, f"worker {worker.interpreter}")  # noqa: ASYNC102
                finally:
                    worker.gone.set()
                    self._all.remove(worker)
            if self.workers.get(worker.key) is worker:
                del self.workers[worker.key]
            _remove_if_empty(log_path)

    def hang_up(self) -> None:
        """Have every worker end: each kills its builds and exits when its connection closes, or is made to within a few seconds."""
        for worker in self._all:
            worker.hang_up()

    async def close(self) -> None:
        """End every worker. Takes a few seconds at most.

        What waits for processes that were given up still does.
        """
        self.hang_up()
        for worker in list(self._all):
            await worker.gone.wait()


def _remove_if_empty(path: str) -> None:
    try:
        if os.stat(path).st_size == 0:
            os.unlink(path)
    except OSError:
        pass  # it is a log, and may have been cleared away


def _tail(path: str, limit: int = 4000) -> str:
    """Return the end of what a worker said outside of any build."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - limit))
            return file.read().decode("utf-8", "replace").strip()
    except OSError:
        return ""
