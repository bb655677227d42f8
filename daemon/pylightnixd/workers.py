"""Warm workers: one process per environment, which forks for every build.

A worker is the client's own interpreter. This module starts it, speaks with it over a socket pair, and
notices when it is gone. What it says is checked like any client's words: it runs a user's environment,
perhaps with another version of this package. Must not know what is built, nor for whom.
"""

from __future__ import annotations

import array
import logging
import os
import resource
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any, Final, Optional

import trio

from pylightnix._version import __version__
from pylightnix.protocol.errors import ProtocolError, WorkerFailed, WorkerMismatch
from pylightnix.protocol.framing import Decoder, Notification, Request, Response, encode_request
from pylightnix.protocol.vocabulary import parse_message
from pylightnix.protocol.worker_messages import BuildEnded, WorkerWelcome
from pylightnix.travel import Environment, worker_key
from pylightnix.worker.linux import children_of
from pylightnixd.boundary import SharedNursery

__all__ = ["Worker", "WorkerLost", "WorkerPool"]

_log = logging.getLogger("pylightnixd")

START_SECONDS: Final = 60.0
"""How long a worker may take to say hello: a cold interpreter on a slow network disk."""
STOP_SECONDS: Final = 10.0
"""How long a worker that was told to end may take before it is killed."""
IDLE_WORKERS_MAX: Final = 8
RETIRE_CODES: Final = frozenset({"worker-stale", "worker-unfit"})
"""A worker's own word that another should be started in its place."""


class WorkerLost(Exception):
    """The worker's process is gone. Its builds are dead, for it takes them with it; trying again may help."""


@dataclass(slots=True, eq=False)
class _Answer:
    """The place of one answer that is awaited."""

    arrived: trio.Event = field(default_factory=trio.Event)
    error: Optional[Mapping[str, Any]] = None
    result: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Worker:
    """One worker process."""

    key: str
    interpreter: str
    process: trio.Process
    socket: trio.socket.SocketType
    retired: bool = False
    """No new builds: its code is not that of the files any more."""
    builds: dict[str, _Answer] = field(default_factory=dict)
    lost: bool = False
    gone: trio.Event = field(default_factory=trio.Event)
    """Set when it is dead, and so is everything that it had forked."""
    _answers: dict[int, _Answer] = field(default_factory=dict)
    _numbers: count[int] = field(default_factory=count)
    _sending: trio.Lock = field(default_factory=trio.Lock)

    async def call(self, method: str, params: Mapping[str, Any], fds: Sequence[int] = ()) -> Mapping[str, Any]:
        """Ask and return the answer. The descriptors are copied to the worker; ours stay open.

        Raises:
            WorkerLost: it died before it answered.
            WorkerFailed: it refused. That is a `WorkerMismatch` if it is of a version that does not understand this one.
        """
        number = next(self._numbers)
        answer = self._answers[number] = _Answer()
        try:
            await self._send(encode_request(number, method, params), fds)
            await answer.arrived.wait()
        except (OSError, trio.ClosedResourceError) as error:
            raise WorkerLost(f"worker {self.process.pid} is gone") from error
        finally:
            self._answers.pop(number, None)
        if self.lost:
            raise WorkerLost(f"worker {self.process.pid} is gone")
        if answer.error is not None:
            raise self._refusal(method, answer.error)
        return answer.result

    def _refusal(self, method: str, said: Mapping[str, Any]) -> Exception:
        code, message = said.get("code"), str(said.get("message", ""))
        if code in RETIRE_CODES:
            self.retired = True
            return WorkerLost(message or "it wants to be replaced")
        if code == "unsupported-version":
            return WorkerMismatch(self.interpreter, str(said.get("package", "(another version)")), __version__, message)
        return WorkerFailed(self.interpreter, f"refused {method!r}", message)

    async def _send(self, data: bytes, fds: Sequence[int]) -> None:
        # A message that is cut short would make the rest of the stream nonsense, so once begun it is finished.
        async with self._sending:
            with trio.CancelScope(shield=True):
                sent = 0
                if fds:
                    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
                    sent = await self.socket.sendmsg([data], rights)
                while sent < len(data):
                    sent += await self.socket.send(data[sent:])

    def expect_end(self, build: str) -> None:
        """Get ready for the end of a build, before it is asked for."""
        self.builds[build] = _Answer()

    async def wait_ended(self, build: str) -> BuildEnded:
        """Wait until every process of a build is dead.

        Raises:
            WorkerLost: the worker died, and with it the build.
        """
        answer = self.builds[build]
        try:
            await answer.arrived.wait()
        finally:
            self.forget(build)
        if not answer.result:
            raise WorkerLost(f"worker {self.process.pid} is gone")
        return parse_message(answer.result, BuildEnded)

    def forget(self, build: str) -> None:
        """Drop a build that has ended, or never began; the last one of a retired worker takes the worker with it."""
        self.builds.pop(build, None)
        if self.retired and not self.builds:
            self.socket.close()

    async def read(self) -> None:
        """Take in what the worker says until it is gone."""
        decoder = Decoder()
        try:
            while data := await self.socket.recv(1 << 16):
                decoder.receive_data(data)
                while (message := decoder.next_message()) is not None:
                    self._take(message)
        except trio.ClosedResourceError:
            pass  # we hung up, which ends it
        except (OSError, ProtocolError) as error:
            _log.warning("worker %d: %s", self.process.pid, error)
        finally:
            self.lost = True
            for answer in [*self._answers.values(), *self.builds.values()]:
                answer.arrived.set()

    def _take(self, message: Request | Response | Notification) -> None:
        if isinstance(message, Response):
            answer = self._answers.get(message.id)
            if answer is not None:
                answer.error, answer.result = message.error, message.result or {}
                answer.arrived.set()
        elif isinstance(message, Notification) and message.method == "ended":
            ended = parse_message(message.params, BuildEnded)
            answer = self.builds.get(ended.build)
            if answer is not None:
                answer.result = message.params
                answer.arrived.set()


@dataclass(slots=True, eq=False)
class WorkerPool:
    """All workers of one daemon. `nursery` holds the task of each, and must outlive every build."""

    nursery: SharedNursery
    owner_fd: int
    """Holds the daemon's lock on its folder; while a worker lives, so does the lock."""
    log_folder: str
    open_files: Optional[tuple[int, int]] = None
    """The soft and the hard limit on open files that workers have, where those of this process are others."""
    workers: dict[str, Worker] = field(default_factory=dict)
    _starting: dict[str, trio.Lock] = field(default_factory=dict)
    spared: set[int] = field(default_factory=set)
    """Children of this process that are no workers, and no strays either."""
    forking: trio.Lock = field(default_factory=trio.Lock)
    """Held while a child of ours may be there that neither `spared` nor `_all` knows yet."""
    _all: list[Worker] = field(default_factory=list)
    """Every worker whose process is not reaped, retired ones too."""
    _numbers: count[int] = field(default_factory=lambda: count(1))

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

    def retire(self, worker: Worker) -> None:
        """Give a worker no more builds, and end it when those that it has are done."""
        worker.retired = True
        if not worker.builds:
            worker.socket.close()

    def _retire_idle(self, keep: str) -> None:
        idle = [key for key, worker in self.workers.items() if not worker.builds and key != keep]
        for key in idle[: max(0, len(self.workers) - IDLE_WORKERS_MAX)]:
            self.retire(self.workers.pop(key))

    async def _start(self, key: str, environment: Environment) -> Worker:
        ours, theirs = socket.socketpair()
        log_path = os.path.join(self.log_folder, f"worker-{next(self._numbers)}.log")
        log_fd = os.open(log_path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        interpreter = environment.interpreter
        try:
            worker = await self._spawn(key, environment, ours, theirs, log_fd)
        except OSError as error:
            ours.close()
            raise WorkerFailed(interpreter, f"cannot be started ({error.strerror})", "") from error
        finally:
            theirs.close()
            os.close(log_fd)
        self.nursery.start_soon(f"worker {worker.process.pid}", partial(self._attend, worker, log_path))
        try:
            await self._greet(worker, environment, log_path)
        except BaseException:
            worker.socket.close()  # nobody will know of it
            raise
        return worker

    async def _spawn(self, key: str, environment: Environment, ours: socket.socket, theirs: socket.socket, log_fd: int) -> Worker:
        async with self.forking:
            process = await trio.lowlevel.open_process(
                [environment.interpreter, "-P", "-m", "pylightnix.worker", str(theirs.fileno()), str(self.owner_fd)],
                stdin=subprocess.DEVNULL,
                stdout=log_fd,
                stderr=log_fd,
                pass_fds=(theirs.fileno(), self.owner_fd),
                env=dict(environment.variables),
                cwd="/",
                start_new_session=True,
            )
            if self.open_files is not None:  # before it says hello, so before any build
                try:
                    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, self.open_files)
                except OSError:
                    pass  # it has ended at once
            worker = Worker(key, environment.interpreter, process, trio.socket.from_stdlib_socket(ours))
            self._all.append(worker)
            return worker

    async def _greet(self, worker: Worker, environment: Environment, log_path: str) -> None:
        problem: Exception
        hello = {"versions": [1], "import_path": list(environment.import_path), "umask": environment.umask}
        try:
            with trio.fail_after(START_SECONDS):
                welcome = parse_message(await worker.call("hello", hello), WorkerWelcome)
        except trio.TooSlowError as error:
            worker.process.kill()
            raise WorkerFailed(environment.interpreter, f"did not say hello within {START_SECONDS:g} s", _tail(log_path)) from error
        except ProtocolError as error:
            raise WorkerMismatch(environment.interpreter, "(another version)", __version__, str(error)) from error
        except WorkerLost as error:
            problem = error
        else:
            if welcome.package != __version__:
                _log.info("the worker %s is of pylightnix %s, this is %s", environment.interpreter, welcome.package, __version__)
            return
        worker.socket.close()
        status = await worker.process.wait()
        raise WorkerFailed(environment.interpreter, f"ended at once (exit status {status})", _tail(log_path)) from problem

    async def _attend(self, worker: Worker, log_path: str) -> None:
        """Read what a worker says until it is gone, and see that it is."""
        try:
            await worker.read()
        finally:
            worker.socket.close()
            with trio.move_on_after(STOP_SECONDS, shield=True):
                await worker.process.wait()
            if worker.process.returncode is None:
                worker.process.kill()
                with trio.CancelScope(shield=True):
                    await worker.process.wait()
            # Bounded: what it waits for was killed, or is being forked.
            with trio.CancelScope(shield=True):
                await self._end_strays(worker)  # noqa: ASYNC102
            worker.gone.set()
            if self.workers.get(worker.key) is worker:
                del self.workers[worker.key]
            _remove_if_empty(log_path)

    async def _end_strays(self, lost: Worker) -> None:
        """Kill what a lost worker left behind: orphans of its builds, which the kernel gave to us."""
        async with self.forking:
            self._all.remove(lost)
            known = self.spared | {worker.process.pid for worker in self._all}
            # Again and again: what a stray has forked is ours only when the stray is dead.
            while strays := [pid for pid in children_of(os.getpid()) if pid not in known]:
                for pid in strays:
                    _log.warning("killing process %d, which a lost worker left", pid)
                    os.kill(pid, signal.SIGKILL)
                for pid in strays:
                    await trio.to_thread.run_sync(os.waitpid, pid, 0)

    def close(self) -> None:
        """Tell every worker to end: each kills its builds and exits when its socket closes."""
        for worker in self._all:
            worker.socket.close()


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
