"""A real daemon for tests, and stages whose realizers its workers can import."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tests.stores import new_store
from tests.waiting import wait_until
from tests.zygote import Forked, zygote

from pylightnix import (
    Build,
    Context,
    DRef,
    Registry,
    StorageSettings,
    build_cattrs,
    build_outpath,
    build_outpaths,
    build_wrapper,
    match_latest,
    mkconfig,
    mkdrv,
    mkSS,
)
from pylightnix.storage import store_layout
from pylightnix.store.locks import exclusive_lock
from pylightnix.store.ownership import DAEMON_ROLE, lock_says, serving_daemon

REPOSITORY = Path(__file__).resolve().parents[2]
SECONDS = 60


def environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYLIGHTNIX")}
    parts = [str(REPOSITORY / part) for part in ("src", "client", "daemon", ".")]
    return {**kept, "PYTHONPATH": os.pathsep.join(parts), "PYTHONDONTWRITEBYTECODE": "1"}


class StartedDaemon:
    """A daemon that serves, and what it says."""

    def __init__(self, process: Forked | subprocess.Popen[bytes], log: IO[str]) -> None:
        self.process, self._log = process, log
        self.pid = process.pid

    @property
    def said(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def last_words(self) -> str:
        """Return what it said, once and for all."""
        with self._log:
            return self.said

    def send_signal(self, number: int) -> None:
        self.process.send_signal(number)

    def terminate(self) -> None:
        self.process.terminate()


def start_daemon(root: str, *options: str, prepared: bool = True) -> StartedDaemon:
    """Start a daemon on a store and wait until it serves. Whoever calls ends it. One that is to be measured is not `prepared`."""
    log = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  # the daemon's, for as long as it lives
    arguments = ("--store", root, "--foreground", *options)
    with open(os.devnull, "r+b") as null:
        streams = (null.fileno(), null.fileno(), log.fileno())
        process: Forked | subprocess.Popen[bytes]
        if prepared:
            process = zygote().start("pylightnixd", *arguments, environment=environment(), folder=os.getcwd(), streams=streams)
        else:
            command = [sys.executable, "-m", "pylightnixd", *arguments]
            process = subprocess.Popen(command, stdin=streams[0], stdout=streams[1], stderr=streams[2], env=environment())
    daemon = StartedDaemon(process, log)
    wait_until(lambda: ": serving " in daemon.said or process.poll() is not None, lambda: daemon.said)
    assert process.returncode is None, f"the daemon ended at once: {daemon.last_words()}"
    return daemon


def end_daemon(daemon: StartedDaemon) -> str:
    """End a daemon as a supervisor would, and return what it said."""
    daemon.terminate()
    try:
        daemon.process.wait(SECONDS)
    finally:
        daemon.process.kill()
        daemon.process.wait()
    return daemon.last_words()


@contextmanager
def short_store() -> Iterator[StorageSettings]:
    """A fresh store whose path is short, as a socket's must be."""
    with tempfile.TemporaryDirectory(prefix="pyl-", ignore_cleanup_errors=True) as folder:
        try:
            yield new_store(os.path.join(folder, "s"))
        finally:
            subprocess.run(["chmod", "-R", "u+w", folder], check=True)


def end_started_daemon(root: object) -> None:
    """End the daemon that a command started on a store, if one is there still, and wait until it has let the store go."""
    layout = store_layout(mkSS(str(root)))
    said = lock_says(layout)
    if said.get("role") == DAEMON_ROLE:
        try:
            os.kill(said["pid"], signal.SIGTERM)
        except ProcessLookupError:
            return
        wait_until(lambda: serving_daemon(layout) is None)
        with exclusive_lock(layout, "a test"):
            pass


@contextmanager
def served_store() -> Iterator[StorageSettings]:
    """A fresh store that a daemon owns."""
    with short_store() as S:
        daemon = start_daemon(str(S.root), "--drain", "1")
        try:
            yield S
        finally:
            end_daemon(daemon)


# --- stages -------------------------------------------------------------------------------------------


def write_config(b: Build) -> None:
    with open(os.path.join(build_outpath(b), "out.txt"), "w") as file:
        file.write(str(getattr(build_cattrs(b), "text", None)))


def fail(b: Build) -> None:
    with open(os.path.join(build_outpath(b), "half.txt"), "w") as file:
        file.write("half")
    raise ValueError("no such luck")


def leave_half(b: Build) -> None:
    for folder in build_outpaths(b):
        with open(os.path.join(folder, "half.txt"), "w") as file:
            file.write("half")


def raise_raw(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Any]:
    raise KeyError("raw")


def write_argument(b: Build) -> None:
    with open(os.path.join(build_outpath(b), "out.txt"), "w") as file:
        file.write(b.rarg["word"])


def wait_for_ever(b: Build) -> None:
    print("it waits", flush=True)
    subprocess.run(["tail", "-f", "/dev/null"], check=True)


def wait_for_file(b: Build) -> None:
    while not os.path.exists(build_cattrs(b).path):
        time.sleep(0.02)
    write_config(b)


def waits_at_first(b: Build) -> None:
    """Say hello in a fifo and wait for ever, for as long as somebody listens there."""
    try:
        fd = os.open(build_cattrs(b).mark, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        write_config(b)
        return
    os.write(fd, b"hello")
    os.close(fd)
    subprocess.run(["tail", "-f", "/dev/null"], check=True)


def say(b: Build) -> None:
    print("the realizer speaks", flush=True)
    write_config(b)


def stage(r: Registry, name: str, realize: Any, matcher: Any = None, **config: Any) -> DRef:
    return mkdrv(mkconfig({"name": name, **config}), matcher or match_latest(), build_wrapper(realize), r)


def chain(text: str = "one", length: int = 3, *, r: Registry) -> DRef:
    """A chain of stages, each depending on the one before."""
    dref = stage(r, "link", write_config, text=text)
    for i in range(length - 1):
        dref = stage(r, "link", write_config, text=f"{text}-{i}", dep=dref)
    return dref
