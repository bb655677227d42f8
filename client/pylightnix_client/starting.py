"""Starting a daemon on a store that has none, for as long as somebody needs it.

It is a program of its own, in a session of its own, and ends by itself. Several commands may start one at a
time: one daemon gets the store, and all go to that. Must not know what is asked of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Final, Optional

from pylightnix.errors import StoreBusy
from pylightnix.storage import fsroot, fsstorage, fstmpdir, store_layout
from pylightnix.store.locks import LOCK_WAIT_SECONDS
from pylightnix.store.ownership import daemon_socket
from pylightnix.types import StorageSettings
from pylightnix_client.errors import DaemonNotStarted

__all__ = ["daemon_at"]

IDLE_SECONDS: Final = 5
"""How long such a daemon stays when nobody wants anything of it."""
_START_SECONDS: Final = 60.0
"""How long it may take until it listens."""
_PAUSE_SECONDS: Final = 0.05


def daemon_at(S: StorageSettings, jobs: Optional[int] = None) -> str:
    """Return the socket of the daemon that owns a store, and start one if there is none.

    Args:
        S: which store; absolute.
        jobs: how many builds a daemon runs at a time that is started here.

    Raises:
        DaemonNotStarted: there is none and none comes up. Nothing of it is left.
    """
    layout = store_layout(S)
    deadline = time.monotonic() + LOCK_WAIT_SECONDS
    while True:
        socket = daemon_socket(layout)
        if socket is not None:
            return socket
        trouble = _start(S, jobs)
        if trouble is not None and (trouble.status != StoreBusy.exit_status or time.monotonic() >= deadline):
            raise trouble
        if trouble is not None:
            # Another one has just got the store and does not listen yet, or is about to leave it.
            time.sleep(_PAUSE_SECONDS)
        elif daemon_socket(layout) is None and time.monotonic() >= deadline:
            raise DaemonNotStarted(layout.state, "it started and is gone again", _log_of(layout.state))


def _start(S: StorageSettings, jobs: Optional[int]) -> Optional[DaemonNotStarted]:
    """Start a daemon; return when it listens, or what it says of why it does not."""
    state = store_layout(S).state
    # -P: the folder that this was called from is not for the daemon to import from.
    command = [sys.executable, "-P", "-m", "pylightnixd", "--exit-when-idle", str(IDLE_SECONDS)]
    command += ["--jobs", str(jobs)] if jobs is not None else []
    variables = {"PYLIGHTNIX_ROOT": fsroot(S), "PYLIGHTNIX_STORAGE": fsstorage(S), "PYLIGHTNIX_TMP": fstmpdir(S)}
    if S.storage is None and S.tmpdir is None:
        command += ["--store", fsroot(S)]  # where everything is in its usual place, `ps` shows which store it is
    try:
        ended = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=_START_SECONDS,
            start_new_session=True,
            env={**os.environ, **variables},
        )
    except subprocess.TimeoutExpired:
        return DaemonNotStarted(state, f"it did not listen within {_START_SECONDS:g} s", _log_of(state))
    except OSError as error:
        return DaemonNotStarted(state, f"cannot run {sys.executable}: {error.strerror or error}")
    if ended.returncode == 0:
        return None
    said = (ended.stderr or ended.stdout).decode("utf-8", "replace").strip().removeprefix("pylightnixd: ")
    return DaemonNotStarted(state, said or f"it ended with status {ended.returncode}", _log_of(state), ended.returncode)


def _log_of(state: str) -> Optional[str]:
    path = os.path.join(state, "logs", "pylightnixd.log")
    return path if os.path.exists(path) else None
