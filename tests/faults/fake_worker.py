"""A worker that is a thread: it takes a worker's orders on a worker's socket, and makes outputs without forking.

What it makes follows from the derivation and its context alone, so that a test knows what is right.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any, Final

import msgpack  # type: ignore[import-untyped]  # it ships no type information
import trio

from pylightnix._version import __version__
from pylightnix.protocol.framing import Decoder, Request, encode_notification, encode_response
from pylightnix.travel.failures import dump_exception

COMMAND: Final = ["-P", "-m", "pylightnix.worker"]
MESSAGE_BYTES: Final = 1 << 16
FDS_MAX: Final = 16


_orders = count(1)
deaf_to: set[int] = set()
"""The orders to build, counted over all workers, to which there is no answer."""


def install(spare: Callable[[bool], None]) -> None:
    """Have this process's daemon get such workers; `spare` says that what the calling thread does next is not the daemon's."""
    open_process = trio.lowlevel.open_process

    async def fake(command: Any, **options: Any) -> Any:
        if command[1:4] != COMMAND:
            return await open_process(command, **options)
        # A real process of next to no size, so that it can be waited for and killed as any worker.
        options.pop("pass_fds", None)
        control = os.dup(int(command[4]))
        try:
            process = await open_process(["sleep", "600"], **options)
        except BaseException:
            os.close(control)
            raise
        worker = _Worker(socket.socket(fileno=control), process.pid, spare)
        spare(True)
        threading.Thread(target=worker.run, daemon=True).start()
        spare(False)
        return process

    trio.lowlevel.open_process = fake


class _Worker:
    def __init__(self, connection: socket.socket, pid: int, spare: Callable[[bool], None]) -> None:
        self._connection, self._pid, self._spare = connection, pid, spare
        self._fds: list[int] = []

    def run(self) -> None:
        self._spare(True)
        decoder = Decoder()
        pidfd = os.pidfd_open(self._pid)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.register(self._connection, select.POLLIN)
        try:
            while pidfd not in {fd for fd, _ in poll.poll()}:
                data, fds, _, _ = socket.recv_fds(self._connection, MESSAGE_BYTES, FDS_MAX)
                if not data:
                    break
                self._fds += fds
                decoder.receive_data(data)
                while (message := decoder.next_message()) is not None:
                    if isinstance(message, Request):
                        self._serve(message)
        except OSError:
            pass  # the daemon is gone
        finally:
            self._connection.close()
            try:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            except ProcessLookupError:
                pass
            os.close(pidfd)

    def _serve(self, request: Request) -> None:
        if request.method == "hello":
            answer = {"version": 1, "features": [], "package": __version__, "python": "3", "pid": self._pid}
            self._connection.sendall(encode_response(request.id, None, answer))
        elif request.method == "build" and next(_orders) in deaf_to:
            del self._fds[:2]  # heard, and never answered
        elif request.method == "build":
            log, status = self._fds[:2]
            del self._fds[:2]
            self._connection.sendall(encode_response(request.id, None, {"pid": self._pid}))
            self._build(request.params, log, status)
        else:
            self._connection.sendall(encode_response(request.id, None, {}))

    def _build(self, order: Mapping[str, Any], log: int, status: int) -> None:
        begun = time.time()
        error, outputs = None, []
        os.write(log, b"at work\n")
        try:
            outputs = make(order)
        except ValueError as problem:
            error = {**dump_exception(problem), "outpaths": ["half"]}
        report = {"outputs": outputs, "error": error, "manifest": None, "told": [], "started": begun, "stopped": time.time()}
        os.write(status, msgpack.packb(report))
        os.close(log)
        os.close(status)
        self._connection.sendall(encode_notification("ended", {"build": order["build"], "pid": self._pid, "exit_code": 0, "signal": None}))


def make(order: Mapping[str, Any]) -> list[str]:
    """Do what a realizer would; return the names of the outputs."""
    name, folder = order["dref"][38:], order["folder"]
    if name == "fails":
        _write(f"{folder}/half", "half.txt", b"half done")
        raise ValueError("no more flour")
    if order["kind"] == "fetch":
        with open(msgpack.unpackb(order["realizer"])["path"], "rb") as file:
            _write(f"{folder}/out", "data", file.read())
        return ["out"]
    names = ["one", "two"] if name.startswith("two") else ["one"]
    for each in names:
        text = json.dumps([order["dref"], json.loads(order["context"]), each])
        _write(f"{folder}/{each}", "text", text.encode())
        _write(f"{folder}/{each}/deep", "more", (text * 200).encode())
    return names


def _write(folder: str, name: str, data: bytes) -> None:
    os.makedirs(folder, exist_ok=True)
    with open(f"{folder}/{name}", "wb") as file:
        file.write(data)
