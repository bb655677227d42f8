"""Starting a daemon on a store that has none, for as long as somebody needs it.

It is a program of its own, in a session of its own, and ends by itself. Several commands may start one at a
time: one daemon gets the store, and all go to that. While others work in the store without a daemon, it is waited for
them, however long that takes: they make progress. Must not know what is asked of the daemon.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, Optional

from pylightnix.errors import StoreBusy
from pylightnix.sanitize import escaped
from pylightnix.storage import fsroot, fsstorage, fstmpdir, store_layout
from pylightnix.store.layout import StoreLayout
from pylightnix.store.locks import LOCK_WAIT_SECONDS, command_of, holding_pids, is_stopped
from pylightnix.store.ownership import DAEMON_ROLE, daemon_socket, lock_says
from pylightnix.types import StorageSettings
from pylightnix_client.errors import DaemonNotStarted

__all__ = ["daemon_at", "start_daemon"]

IDLE_SECONDS: Final = 5
"""How long such a daemon stays when nobody wants anything of it."""
_START_SECONDS: Final = 60.0
"""How long it may take until it listens."""
_END_SECONDS: Final = 5.0
"""How long a process may take to end that was killed."""
_GATE_SECONDS: Final = 2
"""How long it may keep newcomers out of the store, waiting for those who are in there."""
_PAUSE_SECONDS: Final = 0.05
_PATIENCE_SECONDS: Final = 8.0
"""How long to let those in the store alone until it is tried again."""
_SILENCE_SECONDS: Final = 0.5
"""How long to wait without a word."""

Waiting = Callable[[str], None]


def _nobody(who: str) -> None:
    """Tell nobody who is waited for."""


def daemon_at(S: StorageSettings, jobs: Optional[int] = None, waiting: Waiting = _nobody) -> str:
    """Return the socket of the daemon that owns a store, and start one if there is none.

    Args:
        S: which store; absolute.
        jobs: how many builds a daemon runs at a time that is started here.
        waiting: is called with whom it is waited for, once that takes a while, and again when it is for others.

    Raises:
        DaemonNotStarted: there is none and none comes up, or whoever holds the store is stopped. Nothing of it is left.
    """
    layout = store_layout(S)
    patience = _Patience(layout, waiting)
    while True:
        socket = daemon_socket(layout)
        if socket is not None:
            return socket
        trouble = _start(S, jobs, patience)
        if trouble is not None and trouble.status == StoreBusy.exit_status:
            # Others work in it; or another daemon has just got it and does not listen yet, or is about to leave it.
            patience.let_others(trouble)
        elif trouble is not None:
            raise trouble
        elif daemon_socket(layout) is None and patience.is_over():
            raise DaemonNotStarted(layout.state, "it started and is gone again", _log_of(layout.state))


def start_daemon(S: Optional[StorageSettings] = None, jobs: Optional[int] = None) -> str:
    """See to it that a daemon owns a store, so that what this program realizes there is built side by side; return its socket.

    One that is started here ends when nobody has wanted anything of it for five seconds. Programs that hold the store are
    waited for, and named on standard error.

    Args:
        S: the store.
        jobs: how many builds run at a time if a daemon is started; as many as there are CPUs if not given.

    Raises:
        DaemonNotStarted: there is none and none comes up.
    """

    def waiting(who: str) -> None:
        print(escaped(f"waiting for {who}, which holds the store"), file=sys.stderr)

    return daemon_at(StorageSettings(fsroot(S), fsstorage(S), fstmpdir(S)), jobs, waiting)


class _Patience:
    """Waiting for those who hold a store."""

    def __init__(self, layout: StoreLayout, waiting: Waiting) -> None:
        self._layout, self._waiting = layout, waiting
        self._begun = self._moved = time.monotonic()
        self._told: Sequence[int] = ()

    def is_over(self) -> bool:
        """Tell whether it is long since anybody was seen in the store who makes progress."""
        return time.monotonic() - self._moved >= LOCK_WAIT_SECONDS

    def look(self) -> list[int]:
        """Return who holds the store now, and say so if it takes a while."""
        pids = holding_pids(self._layout)
        now = time.monotonic()
        if any(not is_stopped(pid) for pid in pids):
            self._moved = now
        said = lock_says(self._layout)
        if said.get("role") == DAEMON_ROLE and said.get("pid") in pids and not said.get("ending"):
            return pids  # a daemon that will listen in a moment
        if pids and pids != self._told and now - self._begun >= _SILENCE_SECONDS:
            self._told = pids
            self._waiting(", ".join(f"{command_of(pid) or 'a program'}, process {pid}" for pid in pids))
        return pids

    def let_others(self, trouble: DaemonNotStarted) -> None:
        """Wait until others hold the store than now, or a daemon does, but not for long: it is to be tried again.

        Raises:
            DaemonNotStarted: they were waited for in vain.
        """
        pids, until = self.look(), time.monotonic() + _PATIENCE_SECONDS
        while daemon_socket(self._layout) is None:
            if self.is_over():
                raise self._stopped() or trouble
            time.sleep(_PAUSE_SECONDS)
            if not pids or self.look() != pids or time.monotonic() >= until:
                return

    def _stopped(self) -> Optional[DaemonNotStarted]:
        pid = next((pid for pid in holding_pids(self._layout) if is_stopped(pid)), None)
        if pid is None:
            return None
        waited = f"{time.monotonic() - self._begun:.0f} s"
        who = f"{command_of(pid) or 'a program'}, process {pid}, holds the store and is stopped"
        return DaemonNotStarted(self._layout.state, f"{who}; waited {waited}; let it go on with kill -CONT {pid}, or end it")


def _start(S: StorageSettings, jobs: Optional[int], patience: _Patience) -> Optional[DaemonNotStarted]:
    """Start a daemon; return when it listens, or what it says of why it does not."""
    state = store_layout(S).state
    # -P: the folder that this was called from is not for the daemon to import from.
    command = [sys.executable, "-P", "-m", "pylightnixd", "--exit-when-idle", str(IDLE_SECONDS), "--wait", str(_GATE_SECONDS)]
    command += ["--jobs", str(jobs)] if jobs is not None else []
    variables = {"PYLIGHTNIX_ROOT": fsroot(S), "PYLIGHTNIX_STORAGE": fsstorage(S), "PYLIGHTNIX_TMP": fstmpdir(S)}
    if S.storage is None and S.tmpdir is None:
        command += ["--store", fsroot(S)]  # where everything is in its usual place, `ps` shows which store it is
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, **variables},
        )
    except OSError as error:
        return DaemonNotStarted(state, f"cannot run {sys.executable}: {error.strerror or error}")
    try:
        said = _words_of(child, patience)
    finally:  # Ctrl-C comes this way, too
        _leave(child)
    if said is None:
        return DaemonNotStarted(state, f"it did not listen within {_START_SECONDS:g} s", _log_of(state))
    if child.returncode == 0:
        return None
    text = said.decode("utf-8", "replace").strip().removeprefix("pylightnixd: ")
    return DaemonNotStarted(state, text or f"it ended with status {child.returncode}", _log_of(state), child.returncode)


def _words_of(child: subprocess.Popen[bytes], patience: _Patience) -> Optional[bytes]:
    """Return what a process that ends soon has said; None if it does not end."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        try:
            out, errors = child.communicate(timeout=_SILENCE_SECONDS)
        except subprocess.TimeoutExpired:
            patience.look()
        else:
            return errors or out
    return None


def _leave(child: subprocess.Popen[bytes], seconds: float = _END_SECONDS) -> None:
    """End a process that has not ended; if it cannot be ended it is left alone."""
    if child.poll() is None:
        child.kill()
        with suppress(subprocess.TimeoutExpired):
            child.wait(seconds)
    for pipe in (child.stdout, child.stderr):
        if pipe is not None:
            pipe.close()


def _log_of(state: str) -> Optional[str]:
    path = os.path.join(state, "logs", "pylightnixd.log")
    return path if os.path.exists(path) else None
