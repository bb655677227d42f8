"""Realizers that tests have workers run. They travel by reference, so this module imports little."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from pylightnix import Context, DRef, Path, StorageSettings, fstmpdir

Arguments = dict[str, Any]


def folder_with(S: StorageSettings, text: str, name: str = "out.txt") -> list[Path]:
    folder = tempfile.mkdtemp(dir=fstmpdir(S))
    with open(os.path.join(folder, name), "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
    return [Path(folder)]


def trivial(S: StorageSettings, dref: DRef, context: Context, rarg: Arguments) -> list[Path]:
    os.mkdir(os.path.join(fstmpdir(S), "out"))
    return [Path(os.path.join(fstmpdir(S), "out"))]


def evaluated(S: StorageSettings, dref: DRef, context: Context, rarg: Arguments) -> list[Path]:
    """Write what the expression in the argument `text` is worth."""
    return folder_with(S, repr(eval(rarg["text"])))


def draws(S: StorageSettings, dref: DRef, context: Context, rarg: Arguments) -> list[Path]:
    numpy = sys.modules.get("numpy")
    drawn = [random.random(), os.urandom(8).hex(), numpy.random.random() if numpy else "no numpy"]
    if numpy is None:
        import numpy.random  # so that later workers have it ahead
    return folder_with(S, repr(drawn))


def exits(S: StorageSettings, dref: DRef, context: Context, rarg: Arguments) -> list[Path]:
    sys.exit(3)


def exits_at_once(S: StorageSettings, dref: DRef, context: Context, rarg: Arguments) -> list[Path]:
    os._exit(7)


def kills_itself(S: StorageSettings, dref: DRef, context: Context, rarg: Arguments) -> list[Path]:
    os.kill(os.getpid(), signal.SIGKILL)
    return []


def hangs(S: StorageSettings, dref: DRef, context: Context, rarg: Arguments) -> list[Path]:
    print("ready", os.getpid())
    while True:
        signal.pause()


def hangs_in_program(S: StorageSettings, dref: DRef, context: Context, rarg: Arguments) -> list[Path]:
    with subprocess.Popen(["sh", "-c", "echo program $$; exec tail -f /dev/null"], start_new_session=True) as process:
        process.wait()
    return []


def daemonize(body: Callable[[], object]) -> None:
    """Run `body` in a process that has cut all ties: forked twice, with a session of its own."""
    read, write = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.setsid() if os.getpgrp() != os.getpid() else None
            os.write(write, b"%d" % os.getpid())
            os.close(write)
            body()
            os._exit(0)
        os._exit(0)
    os.wait()
    os.close(write)
    print("daemon", os.read(read, 20).decode())


def pause_for_ever() -> None:
    while True:
        signal.pause()


def leaves_daemon(S: StorageSettings, dref: DRef, context: Context, rarg: Arguments) -> list[Path]:
    daemonize(pause_for_ever)
    return folder_with(S, "text")


def leaves_generations(S: StorageSettings, dref: DRef, context: Context, rarg: Arguments) -> list[Path]:
    """Leave a daemon that has a daemon, and so on; each but the last waits for nothing but its end."""

    def generation(left: int) -> None:
        if left:
            daemonize(lambda: generation(left - 1))
        pause_for_ever()

    daemonize(lambda: generation(5))
    return folder_with(S, "text")


def hangs_with_daemon(S: StorageSettings, dref: DRef, context: Context, rarg: Arguments) -> list[Path]:
    daemonize(pause_for_ever)
    return hangs(S, dref, context, rarg)


def closes_output(S: StorageSettings, dref: DRef, context: Context, rarg: Arguments) -> list[Path]:
    print("last words")
    sys.stdout.close()
    sys.stderr.close()
    return folder_with(S, "text")


def prints_much(S: StorageSettings, dref: DRef, context: Context, rarg: Arguments) -> list[Path]:
    line = "x" * 9999
    for _ in range(rarg["bytes"] // 10000):
        print(line)
    return folder_with(S, "text")


def prints_in_parts(S: StorageSettings, dref: DRef, context: Context, rarg: Arguments) -> list[Path]:
    print("of Python, ", end="")
    print("and to standard error", file=sys.stderr)
    os.system("echo of a program")
    import ctypes

    ctypes.CDLL(None).printf(b"of C\n")
    return folder_with(S, "text")


class OwnError(Exception):
    pass


class AwkwardError(Exception):
    def __init__(self, left: int, right: int) -> None:
        super().__init__(f"{left} is not {right}")
        self.left, self.right = left, right


class LockedError(Exception):
    def __init__(self, text: str) -> None:
        import threading

        super().__init__(text)
        self.lock = threading.Lock()


class MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def raises(S: StorageSettings, dref: DRef, context: Context, rarg: Arguments) -> list[Path]:
    raise rarg["error"] if "error" in rarg else eval(rarg["text"])


def returns(S: StorageSettings, dref: DRef, context: Context, rarg: Arguments) -> Any:
    """Return what the expression in the argument `text` is worth, `folder` being the build folder."""
    return eval(rarg["text"], {"folder": fstmpdir(S), "os": os, "tempfile": tempfile, "S": S})


def lists_fds(S: StorageSettings, dref: DRef, context: Context, rarg: Arguments) -> list[Path]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = (os.readlink(f"/proc/self/fd/{name}"), os.get_inheritable(int(name)))
        except OSError:
            pass  # that of the listing itself
    programs = subprocess.run(["sh", "-c", "ls -l /proc/$$/fd"], close_fds=False, capture_output=True, text=True, check=True).stdout
    return folder_with(S, repr((found, programs)))
