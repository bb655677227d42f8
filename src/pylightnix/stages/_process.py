"""One program, run to its end in a process group of its own, with nothing of it left afterwards.

Must not know stages, configs or stores.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, Optional

from pylightnix.errors import CommandFailed

if TYPE_CHECKING:
    import subprocess

__all__ = ["run_program"]

_TAIL_LINES: Final = 25
_TAIL_BYTES: Final = 1 << 16
_KILL_SECONDS: Final = 10.0
"""How long to wait for killed processes to be gone; one can hang in the kernel, on a dead file server for example."""


def run_program(argv: Sequence[str], *, env: Mapping[str, str], cwd: str, log: str) -> None:
    """Run a program and wait for it. Blocks; when interrupted, the program and its group are killed first.

    Args:
        argv: the program and its arguments. Without a slash it is looked for in the `PATH` of `env`.
        env: its whole environment.
        cwd: its working directory.
        log: the file that what it prints is appended to, as it comes.

    Raises:
        CommandFailed: it could not be started, or did not exit with status 0.
    """
    import subprocess

    program = _find(argv[0], env, cwd)
    if program is None:
        raise CommandFailed(argv, "program not found", "")
    process: Optional[subprocess.Popen[bytes]] = None
    try:
        with open(log, "ab") as output, _InterruptHeld():
            process = subprocess.Popen(
                argv,
                executable=program,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=dict(env),
                start_new_session=True,
            )
        # Without reaping: as long as the leader is a zombie, no other process can get its number.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    except OSError as error:
        if process is not None:
            raise
        # Not there (it, or the interpreter it names), not executable, of another machine, too many arguments.
        status_text = "program not found" if isinstance(error, FileNotFoundError) else f"no start: {error.strerror}"
        raise CommandFailed(argv, status_text, "") from error
    finally:
        status = _end(process) if process is not None else 0
    if status != 0:
        raise CommandFailed(argv, _status_text(status), _tail(log))


class _InterruptHeld:
    """Puts an interrupt (Ctrl-C) off to the end of the block.

    Else it could hit between the start of a process and the moment when this one knows of it. Blocking the
    signal would not do: the process would inherit that. Handlers are the main thread's, as interrupts are.
    """

    def __enter__(self) -> None:
        import signal
        import threading

        self._noted = False
        previous = signal.getsignal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else None
        # An ignored signal stays ignored in the process, a handled one does not; so an ignored one is left alone.
        self._previous = None if previous is signal.SIG_IGN else previous
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._note)

    def _note(self, number: int, frame: object) -> None:
        self._noted = True

    def __exit__(self, *error: object) -> None:
        import signal

        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
        if self._noted:
            signal.raise_signal(signal.SIGINT)


def _find(program: str, env: Mapping[str, str], cwd: str) -> Optional[str]:
    if "/" in program:
        return program
    for folder in env.get("PATH", os.defpath).split(os.pathsep):
        path = os.path.join(cwd, folder, program)  # an empty or relative folder is one of the program's own working directory
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


def _end(process: subprocess.Popen[bytes]) -> int:
    """Kill what there is of the process's group, wait until it is gone, and return the process's status."""
    import signal

    try:
        os.killpg(process.pid, signal.SIGKILL)
    except PermissionError:
        pass  # all that is left runs as another user, as set-id programs do; those are waited for
    status = process.wait()
    # Orphans are reaped by init, some time. Until they are dead they may still write into the output.
    _await_end_of_group(process.pid)
    return status


def _await_end_of_group(group: int) -> None:
    import time

    deadline = time.monotonic() + _KILL_SECONDS
    pause_seconds = 0.0005
    while _has_living(group) and time.monotonic() < deadline:
        time.sleep(pause_seconds)
        pause_seconds = min(2 * pause_seconds, 0.05)


def _has_living(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False  # the usual case: nothing was left over
    except PermissionError:
        pass
    # Zombies count as members as well, and some inits never reap them.
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                with open(f"/proc/{entry}/stat", "rb") as file:
                    state, _, pgrp = file.read().rpartition(b")")[2].split()[:3]
            except (OSError, ValueError):
                continue  # it ended meanwhile
            if int(pgrp) == group and state not in (b"Z", b"X"):
                return True
    return False


def _status_text(status: int) -> str:
    import signal

    if status >= 0:
        return f"exit status {status}"
    try:
        return f"signal {-status} ({signal.Signals(-status).name})"
    except ValueError:  # a real-time signal
        return f"signal {-status}"


def _tail(log: str) -> str:
    """Return the last lines of what a program printed."""
    with open(log, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - _TAIL_BYTES))
        text = file.read().decode("utf-8", "replace")
    return "\n".join(text.splitlines()[-_TAIL_LINES:])
