"""A real daemon for tests, and stages whose realizers its workers can import."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.stores import new_store

from pylightnix import (
    Build,
    Context,
    DRef,
    Registry,
    StorageSettings,
    build_cattrs,
    build_outpath,
    build_wrapper,
    match_latest,
    mkconfig,
    mkdrv,
)

REPOSITORY = Path(__file__).resolve().parents[2]
SECONDS = 60


def environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYLIGHTNIX")}
    parts = [str(REPOSITORY / part) for part in ("src", "client", "daemon", ".")]
    return {**kept, "PYTHONPATH": os.pathsep.join(parts), "PYTHONDONTWRITEBYTECODE": "1"}


def start_daemon(root: str, *options: str) -> subprocess.Popen[str]:
    """Start a daemon on a store and wait until it serves. Whoever calls ends it."""
    daemon = subprocess.Popen(
        [sys.executable, "-m", "pylightnixd", "--store", root, "--foreground", *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment(),
        text=True,
    )
    assert daemon.stderr is not None
    said = []
    for line in daemon.stderr:
        said.append(line)
        if ": serving " in line:
            return daemon
    daemon.wait()
    raise AssertionError(f"the daemon ended at once: {said}")


def end_daemon(daemon: subprocess.Popen[str]) -> str:
    """End a daemon as a supervisor would, and return what else it said."""
    daemon.terminate()
    try:
        return daemon.communicate(timeout=SECONDS)[1]
    finally:
        daemon.kill()
        daemon.wait()


@contextmanager
def served_store() -> Iterator[StorageSettings]:
    """A fresh store that a daemon owns. Its path is short, as a socket's must be."""
    with tempfile.TemporaryDirectory(prefix="pyl-", ignore_cleanup_errors=True) as folder:
        S = new_store(os.path.join(folder, "s"))
        daemon = start_daemon(str(S.root), "--drain", "1")
        try:
            yield S
        finally:
            end_daemon(daemon)
            subprocess.run(["chmod", "-R", "u+w", folder], check=True)


# --- stages -------------------------------------------------------------------------------------------


def write_config(b: Build) -> None:
    with open(os.path.join(build_outpath(b), "out.txt"), "w") as file:
        file.write(str(getattr(build_cattrs(b), "text", None)))


def fail(b: Build) -> None:
    with open(os.path.join(build_outpath(b), "half.txt"), "w") as file:
        file.write("half")
    raise ValueError("no such luck")


def raise_raw(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Any]:
    raise KeyError("raw")


def write_argument(b: Build) -> None:
    with open(os.path.join(build_outpath(b), "out.txt"), "w") as file:
        file.write(b.rarg["word"])


def wait_for_ever(b: Build) -> None:
    print("it waits", flush=True)
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
