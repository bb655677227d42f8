"""The program of the test zygote: a process with everything imported, which forks commands, daemons and their workers.

Most of what the tests start is an interpreter that imports the same modules again. A fork of this process has them, and else
is what a new process would be: its own arguments, environment, working folder, descriptors, import path and main module.

Orders arrive on the socket that is standard input, as JSON with descriptors beside it:

{"do": "start", "program", "arguments", "environment", "folder", "warnings", "keep"}   answered with the pid;
    the descriptors are its standard input, output and error, and what `keep` has numbers for
{"do": "wait", "pid"}                                                                 answered with the exit status

It imports nothing of `tests`, so that its forks find the tests' modules as new processes would.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import io
import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
import traceback
import types
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn, Optional

MESSAGE_BYTES: Final = 1 << 20
FDS_MAX: Final = 16
SPARE_WORKERS: Final = 2
PROGRAMS: Final = {
    "pylightnix": ("pylightnix_client.cli", "pylightnix_client/__main__.py"),
    "pylightnixd": ("pylightnixd.main", "pylightnixd/__main__.py"),
}
WORKER: Final = ["-P", "-m", "pylightnix.worker"]
AHEAD: Final = (
    "cloudpickle",
    "pylightnix.worker.service",
    "pylightnix_client.commands.build",
    "pylightnix_client.commands.daemon",
    "pylightnix_client.commands.files",
    "pylightnix_client.commands.show",
    "pylightnix_client.commands.upkeep",
    "pylightnix_client.cli",
    "pylightnixd.main",
    "pylightnixd.server",
    "pytest",
    "sqlite3",
    "trio",
)
"""What programs, workers and the realizers of tests come to import. Nothing that starts threads."""


# --- being a new process ------------------------------------------------------------------------------


def _set_streams() -> None:
    """Open Python's streams on descriptors 0 to 2 as a starting interpreter does."""
    for fd, name, errors in ((0, "stdin", "strict"), (1, "stdout", "strict"), (2, "stderr", "backslashreplace")):
        try:
            os.fstat(fd)
        except OSError:
            stream = None
        else:
            raw: Any = io.FileIO(fd, "r" if fd == 0 else "w", closefd=False)
            buffered: Any = io.BufferedReader(raw) if fd == 0 else io.BufferedWriter(raw)
            stream = io.TextIOWrapper(buffered, "utf-8", errors, line_buffering=fd == 2 or raw.isatty())
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _settle(order: Mapping[str, Any], fds: Sequence[int], base_path: Sequence[str]) -> None:
    """Become what the order says, in every respect that a program could tell."""
    # Away from the low numbers first, lest one that is yet to be copied is overwritten.
    high = [_moved_up(fd) for fd in fds]
    targets = [0, 1, 2, *order.get("keep", [])]
    for fd, target in zip(high, targets, strict=True):
        os.dup2(fd, target, inheritable=True)
    _close_others(targets)
    os.environ.clear()
    os.environ.update(order["environment"])
    time.tzset()
    os.chdir(order["folder"])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    paths = [path for path in order["environment"].get("PYTHONPATH", "").split(os.pathsep) if path]
    first = [order["folder"]] if order.get("isolated") is None else []
    sys.path[:] = [*first, *paths, *base_path]
    sys.path_importer_cache.clear()
    _set_streams()
    warnings.resetwarnings()
    sys.warnoptions[:] = order["warnings"]
    for action in order["warnings"]:
        warnings.simplefilter(action)
    gc.unfreeze()


def _moved_up(fd: int) -> int:
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 200)


def _close_others(kept: Sequence[int]) -> None:
    bounds = sorted({0, 1, 2, *kept})
    for low, high in zip(bounds, [*bounds[1:], 1 << 20], strict=True):
        os.closerange(low + 1, high)


def _end(status: int) -> NoReturn:
    try:
        threading._shutdown()  # type: ignore[attr-defined]  # joins threads, as the end of an interpreter does
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
    except OSError:
        status = status or 120  # as an interpreter whose last words cannot be written
    finally:
        os._exit(status)


def _run_main(program: str, arguments: Sequence[str]) -> int:
    module_name, path = PROGRAMS[program]
    module = importlib.import_module(module_name)
    main_module = types.ModuleType("__main__")
    main_module.__file__ = os.path.join(os.path.dirname(os.path.dirname(str(module.__file__))), path)
    sys.modules["__main__"] = main_module
    sys.argv[:] = [main_module.__file__, *arguments]
    # What `sys.orig_argv` says is what somebody who looks for this process's program reads.
    sys.orig_argv[:] = [sys.executable, "-m", program, *arguments]
    try:
        status = module.main()
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # noqa: BLE001, ASYNC103  # as the end of an interpreter reports it
        traceback.print_exc()
        return 1  # noqa: ASYNC104
    return int(status or 0)


# --- workers that wait for a daemon to want them ------------------------------------------------------


class SpareWorker:
    """A forked process that becomes a worker when the daemon starts one: what the daemon sees of a process that it started."""

    def __init__(self, pid: int, address: str) -> None:
        self.pid, self._address = pid, address
        self.returncode: Optional[int] = None
        self._pidfd = -1

    def begin(self, order: Mapping[str, Any], fds: Sequence[int]) -> bool:
        """Have it become the worker; return whether it still lives."""
        # By name: a daemon closes the descriptors that it did not open itself.
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as orders:
            try:
                orders.connect(self._address)
                socket.send_fds(orders, [json.dumps(order).encode()], fds)
            except OSError:
                return False
        self._pidfd = os.pidfd_open(self.pid)
        return True

    def poll(self) -> Optional[int]:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
                os.close(self._pidfd)
        return self.returncode

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    async def wait(self) -> int:
        import trio

        while self.poll() is None:
            await trio.lowlevel.wait_readable(self._pidfd)
        await trio.lowlevel.checkpoint()
        assert self.returncode is not None
        return self.returncode


def _spare_worker(base_path: Sequence[str]) -> SpareWorker:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    address = f"\0pylightnix-tests-{secrets.token_hex(16)}"
    listener.bind(address)
    listener.listen(1)
    parent = os.getpid()
    pid = os.fork()
    if pid:
        listener.close()
        return SpareWorker(pid, address)
    try:
        _die_with_parent(signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(0)
        _close_others([listener.fileno()])
        for fd in range(3):
            os.dup2(os.open(os.devnull, os.O_RDWR), fd)
        orders, _ = listener.accept()
        message, fds, _, _ = socket.recv_fds(orders, MESSAGE_BYTES, FDS_MAX)
        if not message:
            os._exit(0)
        order = json.loads(message)
        orders.close()
        listener.close()
        _die_with_parent(0)
        os.setsid()
        _settle(order, fds, base_path)
        sys.argv[:] = ["worker", *order["arguments"]]
        sys.modules["__main__"] = types.ModuleType("__main__")
        from pylightnix.worker.service import serve

        serve(*map(int, order["arguments"]))
    except BaseException:  # noqa: BLE001, ASYNC103  # a fork must not go on as the zygote
        traceback.print_exc()
    os._exit(1)


def _die_with_parent(number: int) -> None:
    ctypes.CDLL(None).prctl(1, int(number))  # PR_SET_PDEATHSIG


def _finds_our_package(environment: Mapping[str, str]) -> bool:
    """Tell whether an interpreter in that environment would import the package that is imported here."""
    ours = os.path.dirname(os.path.dirname(str(sys.modules["pylightnix"].__file__)))
    folders = [folder for folder in environment.get("PYTHONPATH", "").split(os.pathsep) if os.path.isdir(f"{folder}/pylightnix")]
    return "PYTHONHASHSEED" not in environment and folders[:1] in ([], [ours])


def _prepare_workers(base_path: Sequence[str]) -> None:
    """Let this process, which is to be a daemon, find its first workers forked already."""
    import trio

    spares = [_spare_worker(base_path) for _ in range(SPARE_WORKERS)]
    open_process = trio.lowlevel.open_process

    async def prepared(command: Any, **options: Any) -> Any:
        while spares and command[:4] == [sys.executable, *WORKER] and _finds_our_package(options["env"]):
            spare = spares.pop()
            stdin = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            try:
                order = {
                    "arguments": command[4:],
                    "environment": options["env"],
                    "folder": options["cwd"],
                    "keep": list(options["pass_fds"]),
                    "warnings": [],
                    "isolated": True,
                }
                if spare.begin(order, [stdin, options["stdout"], options["stderr"], *options["pass_fds"]]):
                    return spare
            finally:
                os.close(stdin)
        return await open_process(command, **options)

    trio.lowlevel.open_process = prepared


# --- the zygote ---------------------------------------------------------------------------------------


def _start(order: Mapping[str, Any], fds: Sequence[int], base_path: Sequence[str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        if order.get("new_session"):
            os.setsid()
        _settle(order, fds, base_path)
        if order["program"] == "pylightnixd" and order.get("spare_workers", True):
            _prepare_workers(base_path)
        status = _run_main(order["program"], order["arguments"])
    except BaseException:  # noqa: BLE001, ASYNC103  # a fork must not go on as the zygote
        traceback.print_exc()
    _end(status)


def serve() -> None:
    connection = socket.socket(fileno=os.dup(0))
    extra = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    base_path = [path for path in sys.path[1:] if path not in extra]
    del sys.path[0]  # this file's own folder
    for name in AHEAD:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    while True:
        message, fds, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, FDS_MAX)
        if not message:
            return
        order = json.loads(message)
        if order["do"] == "start":
            answer = _start(order, fds, base_path)
        else:
            answer = os.waitstatus_to_exitcode(os.waitpid(order["pid"], 0)[1])
        for fd in fds:
            os.close(fd)
        connection.send(str(answer).encode())


if __name__ == "__main__":
    serve()
