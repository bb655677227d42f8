"""Stages that tests have a daemon build. They travel by reference and take their orders from their configs."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from typing import Any

from tests.daemon import realizers

from pylightnix import (
    Build,
    Closure,
    Context,
    DRef,
    Matcher,
    Path,
    Realizer,
    Registry,
    StorageSettings,
    build_outpath,
    build_wrapper,
    cfgdict,
    drefcfg_,
    instantiate,
    match_latest,
    mkconfig,
    mkdrv,
    rref2path,
)

Arguments = dict[str, Any]


def out(S: StorageSettings, text: str, name: str = "out") -> Path:
    assert S.tmpdir is not None
    folder = os.path.join(S.tmpdir, name)
    os.mkdir(folder)
    with open(os.path.join(folder, "out.txt"), "w", encoding="utf-8") as file:
        file.write(text)
    return Path(folder)


def config(S: StorageSettings, dref: DRef) -> dict[str, Any]:
    return cfgdict(drefcfg_(dref, S))


def plain(S: StorageSettings, dref: DRef, context: Context, rarg: Arguments) -> list[Path]:
    return [out(S, dref)]


def outlives_its_input(S: StorageSettings, dref: DRef, context: Context, rarg: Arguments) -> list[Path]:
    """Read what it was made from once that is gone, and fail."""
    (rref,) = [rref for rrefs in context.values() for rref in rrefs or ()]
    while os.path.isdir(rref2path(rref, S)):
        time.sleep(0.01)
    with open(os.path.join(rref2path(rref, S), "out.txt"), encoding="utf-8") as file:
        return [out(S, file.read())]


def journals(S: StorageSettings, dref: DRef, context: Context, rarg: Arguments) -> list[Path]:
    """Leave a line in a file, so that runs can be counted."""
    fd = os.open(config(S, dref)["journal"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, f"{dref} {os.getpid()}\n".encode())
    os.close(fd)
    return [out(S, dref)]


def waits(S: StorageSettings, dref: DRef, context: Context, rarg: Arguments) -> list[Path]:
    """Say hello in one fifo and wait until somebody says go in another."""
    gate = config(S, dref)["gate"]
    with open(f"{gate}.hello", "w", encoding="utf-8") as hello:
        hello.write(f"{os.getpid()}\n")
    with open(f"{gate}.go", "rb") as go:
        go.read()
    return [out(S, dref)]


def leaves_process(S: StorageSettings, dref: DRef, context: Context, rarg: Arguments) -> list[Path]:
    """As `waits`, but who says hello is a process that stays when the build ends."""
    gate = config(S, dref)["gate"]

    def stay() -> None:
        with open(f"{gate}.hello", "w", encoding="utf-8") as hello:
            hello.write(f"{os.getpid()}\n")
        realizers.pause_for_ever()

    realizers.daemonize(stay)
    with open(f"{gate}.go", "rb") as go:
        go.read()
    return [out(S, dref)]


class Heavy:
    """A realizer that is many bytes."""

    def __init__(self, size: int) -> None:
        self.data = os.urandom(size)

    def __call__(self, S: StorageSettings, dref: DRef, context: Context, rarg: Arguments) -> list[Path]:
        return [out(S, f"{len(self.data)}")]


def takes_a_moment(S: StorageSettings, dref: DRef, context: Context, rarg: Arguments) -> list[Path]:
    time.sleep(config(S, dref)["seconds"])
    return [out(S, dref)]


def leaves_much(S: StorageSettings, dref: DRef, context: Context, rarg: Arguments) -> list[Path]:
    """Leave a file that takes no room on the disk, and a while to hash."""
    folder = out(S, dref)
    os.truncate(os.path.join(folder, "out.txt"), config(S, dref)["bytes"])
    return [folder]


def leaves_immutable(S: StorageSettings, dref: DRef, context: Context, rarg: Arguments) -> list[Path]:
    """Leave beside its output what only root can remove, and not as it is."""
    found = out(S, "output")
    left = os.path.join(os.path.dirname(found), "left", "file")
    os.mkdir(os.path.dirname(left))
    with open(left, "w", encoding="utf-8"):
        pass
    subprocess.run(["chattr", "+i", left], check=True)
    return [found]


def thinks_for_ever(S: StorageSettings, candidates: list[Any]) -> None:
    """A matcher that never comes to an end."""
    while True:
        time.sleep(1)


class Gate:
    """The test's side of `waits`."""

    def __init__(self, folder: Any) -> None:
        self.path = os.path.join(str(folder), "gate")
        os.mkfifo(f"{self.path}.hello")
        os.mkfifo(f"{self.path}.go")

    def wait_hello(self) -> int:
        """Wait until the build is there; return its process."""
        with open(f"{self.path}.hello", encoding="utf-8") as hello:
            return int(hello.readline())  # others may say it at the same time

    def go(self) -> None:
        with open(f"{self.path}.go", "wb"):
            pass


def several(S: StorageSettings, dref: DRef, context: Context, rarg: Arguments) -> list[Path]:
    count = config(S, dref)["count"]
    paths = [out(S, str(i), f"out{i}") for i in range(count)]
    for path in paths:
        with open(os.path.join(path, "unit.txt"), "w", encoding="utf-8") as file:
            file.write(f"{dref} {count}")
    return paths


def fails_with_output(b: Build) -> None:
    with open(os.path.join(build_outpath(b), "half.txt"), "w", encoding="utf-8") as file:
        file.write("half done")
    raise ValueError("no more flour")


failing_stage = build_wrapper(fails_with_output, nouts=1)


def fails(S: StorageSettings, dref: DRef, context: Context, rarg: Arguments) -> list[Path]:
    raise ValueError("no more flour")


def trains(S: StorageSettings, dref: DRef, context: Context, rarg: Arguments) -> list[Path]:
    from numpy.random import random as random_of_numpy  # that of the whole program is what must differ

    return [out(S, f"{random.random()} {random_of_numpy()} {os.urandom(8).hex()}")]


def chatters(S: StorageSettings, dref: DRef, context: Context, rarg: Arguments) -> list[Path]:
    for i in range(config(S, dref)["lines"]):
        print(f"{i:08} {'x' * 90}")
    return [out(S, dref)]


def ticks(S: StorageSettings, dref: DRef, context: Context, rarg: Arguments) -> list[Path]:
    """Say something again and again, for `seconds`, or for ever."""
    seconds = config(S, dref)["seconds"]
    begun = time.monotonic()
    while seconds is None or time.monotonic() < begun + seconds:
        print("tick", flush=True)
        time.sleep(0.05)
    return [out(S, dref)]


def burns(S: StorageSettings, dref: DRef, context: Context, rarg: Arguments) -> list[Path]:
    """Compute for ever, and talk about it: some kilobytes each millisecond."""
    while True:
        begun = time.monotonic()
        while time.monotonic() < begun + 0.001:
            pass
        print("x" * 2000, flush=True)


def kills_worker(S: StorageSettings, dref: DRef, context: Context, rarg: Arguments) -> list[Path]:
    """Kill the worker the first time."""
    mark = config(S, dref)["mark"]
    if not os.path.exists(mark):
        with open(mark, "w", encoding="utf-8"):
            pass
        os.kill(os.getppid(), signal.SIGKILL)
        signal.pause()
    return [out(S, dref)]


def add(r: Registry, name: str, realizer: Realizer, matcher: Matcher | None = None, **items: Any) -> DRef:
    return mkdrv(mkconfig({"name": name, **items}), matcher or match_latest(), realizer, r)


def one(S: StorageSettings, realizer: Realizer, name: str = "stage", matcher: Matcher | None = None, **items: Any) -> Closure:
    """Return a closure of one stage."""
    return instantiate(lambda r: add(r, name, realizer, matcher, **items), S=S)[1]


def many(S: StorageSettings, count: int, realizer: Realizer = plain, matcher: Matcher | None = None, **items: Any) -> Closure:
    """Return a closure of stages that do not depend on each other."""
    return instantiate(lambda r: [add(r, f"s{i}", realizer, matcher, **items) for i in range(count)], S=S)[1]


def layers(S: StorageSettings, count: int, width: int, realizer: Realizer = plain, **items: Any) -> Closure:
    """Return a closure of `count` stages in layers, each stage on two of the layer below."""

    def stage(r: Registry) -> list[DRef]:
        below: list[DRef] = []
        made: list[DRef] = []
        for start in range(0, count, width):
            size = min(width, count - start)
            layer = []
            for i in range(size):
                deps = sorted({below[i % len(below)], below[(i + 1) % len(below)]}) if below else []
                layer.append(add(r, f"s{start + i}", realizer, deps=deps, **items))
            below = layer
            made += layer
        return made

    return instantiate(stage, S=S)[1]
