"""A scheduler in small for tests: starts a real worker, asks it, drains what its builds print, one thing at a time."""

from __future__ import annotations

import array
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Optional

import msgpack  # type: ignore[import-untyped]  # it ships no type information

from pylightnix import DRef, RRef, StorageSettings, fsroot, fsstorage
from pylightnix.config import canonical_bytes
from pylightnix.travel import Environment, capture_environment, pack_arguments, pack_realizer
from pylightnix.types import Realizer

DEADLINE_SECONDS = 60.0
A_DREF = DRef(f"dref:{'0' * 32}-sample")


class Refusal(Exception):
    """The worker refused a request."""

    def __init__(self, error: dict[str, Any]) -> None:
        self.code = error["code"]
        super().__init__(f"{error['code']}: {error['message']}")


@dataclass
class Run:
    """One build, as the scheduler sees it."""

    build: str
    folder: str
    pid: int = 0
    log: bytes = b""
    kept_log_bytes: int = 1 << 20
    log_bytes: int = 0
    status: bytes = b""
    open_fds: dict[int, str] = field(default_factory=dict)
    ended: Optional[dict[str, Any]] = None

    @property
    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = msgpack.unpackb(self.status)
        return report

    @property
    def outputs(self) -> list[str]:
        assert self.report["error"] is None, self.report["error"]
        return [os.path.join(self.folder, name) for name in self.report["outputs"]]

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.report["error"]
        assert error is not None
        assert self.report["outputs"] == []
        return error

    def text(self, name: str = "out.txt") -> str:
        return Path(self.outputs[0], name).read_text()


class Worker:
    """A real worker process and the connection to it; everything of it is gone after the ``with`` block."""

    def __init__(
        self,
        where: Path,
        *,
        interpreter: str = sys.executable,
        environment: Optional[Environment] = None,
        S: Optional[StorageSettings] = None,
        greet: bool = True,
    ) -> None:
        self.environment = environment or capture_environment()
        self._where, self._S = where, S
        where.mkdir(exist_ok=True)
        self.owner_path = where / "owner"
        mine, theirs = socket.socketpair()
        with theirs, self.owner_path.open("w") as owner, (where / "worker.log").open("wb") as log:
            self.process = subprocess.Popen(
                [interpreter, "-P", "-m", "pylightnix.worker", str(theirs.fileno()), str(owner.fileno())],
                pass_fds=[theirs.fileno(), owner.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=self.environment.variables,
                start_new_session=True,
            )
        mine.settimeout(DEADLINE_SECONDS)
        self.connection = mine
        self._unpacker = msgpack.Unpacker()
        self._next_id = 0
        self._answers: dict[int, Any] = {}
        self.runs: dict[str, Run] = {}
        self.ended: dict[str, dict[str, Any]] = {}
        if greet:
            self.hello = self.ask("hello", versions=[1], import_path=list(self.environment.import_path), umask=self.environment.umask)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        self.connection.close()
        for run in self.runs.values():
            for fd in run.open_fds:
                os.close(fd)
            run.open_fds.clear()
        self.process.wait(DEADLINE_SECONDS)

    @property
    def log(self) -> str:
        return (self._where / "worker.log").read_text()

    # --- asking -------------------------------------------------------------------------------------

    def send(self, method: str, params: Mapping[str, Any], fds: Sequence[int] = ()) -> int:
        self._next_id += 1
        data = memoryview(msgpack.packb([0, self._next_id, method, [params]]))
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sent = self.connection.sendmsg([data], ancillary)
        self.connection.sendall(data[sent:])
        return self._next_id

    def answer(self, request: int) -> Any:
        self.pump(lambda: request in self._answers)
        error, result = self._answers.pop(request)
        if error is not None:
            raise Refusal(error)
        return result

    def ask(self, method: str, fds: Sequence[int] = (), **params: Any) -> Any:
        return self.answer(self.send(method, params, fds))

    # --- building -----------------------------------------------------------------------------------

    def order(self, realizer: Optional[Realizer], **params: Any) -> dict[str, Any]:
        """Return the parameters of a build in a fresh folder; `params` win."""
        folder = tempfile.mkdtemp(prefix="build-", dir=self._where)
        packed = pack_realizer(realizer) if realizer is not None else None
        return {
            "build": os.path.basename(folder),
            "folder": folder,
            "root": str(fsroot(self._S)) if self._S else str(self._where / "store"),
            "storage": str(fsstorage(self._S)) if self._S else str(self._where / "store" / "store-v1"),
            "dref": A_DREF,
            "context": b"{}",
            "kind": packed.kind if packed else "python",
            "realizer": packed.blob if packed else None,
            "args": None,
            "digest": None,
            **params,
        }

    def start(self, realizer: Optional[Realizer], kept_log_bytes: int = 1 << 20, **params: Any) -> Run:
        order = self.order(realizer, **params)
        log_read, log_write = os.pipe()
        status_read, status_write = os.pipe()
        run = Run(order["build"], order["folder"], kept_log_bytes=kept_log_bytes, open_fds={log_read: "log", status_read: "status"})
        self.runs[run.build] = run
        try:
            request = self.send("build", order, [log_write, status_write])
        finally:
            os.close(log_write)
            os.close(status_write)
        run.pid = self.answer(request)["pid"]
        return run

    def build(self, realizer: Optional[Realizer], **params: Any) -> Run:
        """Build, and wait for the end."""
        return self.finish(self.start(realizer, **params))

    def finish(self, run: Run) -> Run:
        """Wait until the worker says that a build has ended, then take what is left in the pipes."""
        self.pump(lambda: run.ended is not None)
        self.pump(lambda: not run.open_fds)  # which nobody holds any more
        return run

    def await_log(self, run: Run, line: str) -> str:
        """Wait until a build has printed a line that starts with `line`, and return what follows on it."""

        def found() -> list[str]:
            return [
                text[len(line) :].strip()
                for text in run.log.decode().splitlines(keepends=True)
                if text.startswith(line) and text[-1] == "\n"
            ]

        self.pump(lambda: bool(found()) or run.ended is not None)
        assert found(), f"the build ended without saying {line!r}: {run.log!r}, {run.ended}"
        return found()[0]

    # --- the wire -----------------------------------------------------------------------------------

    def pump(self, enough: Callable[[], bool]) -> None:
        """Take in whatever comes until `enough`."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not enough():
            poll = select.poll()
            poll.register(self.connection, select.POLLIN)
            owners = {fd: run for run in self.runs.values() for fd in run.open_fds}
            for fd in owners:
                poll.register(fd, select.POLLIN)
            ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            assert ready, f"nothing came for {DEADLINE_SECONDS} s; the worker's log: {self.log}"
            for fd, _ in ready:
                if fd == self.connection.fileno():
                    self._take_messages()
                else:
                    self._take_output(owners[fd], fd)

    def _take_messages(self) -> None:
        data = self.connection.recv(1 << 16)
        assert data, f"the worker closed the connection; its log: {self.log}"
        self._unpacker.feed(data)
        for message in self._unpacker:
            if message[0] == 1:
                self._answers[message[1]] = message[2:]
            else:
                assert message[:2] == [2, "ended"]
                (params,) = message[2]
                self.ended[params["build"]] = params
                if params["build"] in self.runs:
                    self.runs[params["build"]].ended = params

    def _take_output(self, run: Run, fd: int) -> None:
        data = os.read(fd, 1 << 16)
        if not data:
            del run.open_fds[fd]
            os.close(fd)
        elif fd in run.open_fds and run.open_fds[fd] == "status":
            run.status += data
        else:
            run.log_bytes += len(data)
            run.log += data[: max(0, run.kept_log_bytes - len(run.log))]


def is_alive(pid: int) -> bool:
    """Tell whether there is a process of that number; a zombie counts."""
    return os.path.exists(f"/proc/{pid}")


class Watched:
    """A process that is nobody's child here: whether it has ended, without asking again and again."""

    def __init__(self, pid: int) -> None:
        self._fd = os.pidfd_open(pid)

    def has_ended(self, within_seconds: float = 0) -> bool:
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(within_seconds * 1000))

    def close(self) -> None:
        os.close(self._fd)


def context_bytes(context: Mapping[DRef, Sequence[RRef]]) -> bytes:
    return canonical_bytes({str(dref): [str(rref) for rref in rrefs] for dref, rrefs in context.items()})


def arguments(**values: Any) -> Optional[bytes]:
    return pack_arguments(values).blob
