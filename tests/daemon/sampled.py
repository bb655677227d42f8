"""Stages of several samples that tests have a daemon build. They travel by reference."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

from pylightnix import Build, Closure, StorageSettings, autostage, instantiate, match_all, match_only, realize1, selfref
from pylightnix.autostage import AutoStage
from pylightnix.options import Options

MEETING_SECONDS = 60

sampled = autostage(nouts=2, matcher=match_all, out=[selfref, "out.txt"])


def write(out: str, text: Any) -> None:
    Path(out).write_text(str(text))


@sampled
def meets(gate: str, rindex: int, out: str) -> None:
    """Wait for the other sample: a fifo cannot be opened at one end only."""
    signal.alarm(MEETING_SECONDS)
    for end in range(2):
        with open(f"{gate}.{end}", "w" if end == rindex else "r", encoding="utf-8"):
            pass
    write(out, rindex)


@autostage(nouts=2, matcher=match_all, options=Options(version="1"), out=[selfref, "out.txt"])
def draws(out: str) -> None:
    from numpy.random import random as random_of_numpy  # that of the whole program is what must differ

    write(out, f"{random.random()} {random_of_numpy()} {os.urandom(8).hex()}")


@sampled
def plain(rindex: int, out: str) -> None:
    write(out, rindex)


@sampled
def tells_process(rindex: int, out: str) -> None:
    write(out, f"{rindex} {os.getpid()}")


@sampled
def gets_build(build: Build, rindex: int, out: str) -> None:
    write(out, f"{rindex} {os.getpid()}")


@sampled
def breaks_promise(rindex: int, out: str) -> None:
    if rindex != 1:
        write(out, rindex)


def hangs_at(gate: str) -> None:
    print("process", os.getpid())
    with open(f"{gate}.hello", "w", encoding="utf-8") as hello:
        hello.write(f"{os.getpid()}\n")
    while True:
        signal.pause()


@sampled
def one_fails(gate: str, rindex: int, out: str) -> None:
    """Sample 1 fails when sample 0 hangs."""
    if rindex == 0:
        hangs_at(gate)
    with open(f"{gate}.hello", encoding="utf-8") as hello:
        print("process", hello.read())
    raise ValueError("no more flour")


@sampled
def one_is_killed(rindex: int, out: str) -> None:
    write(out, rindex)
    if rindex == 1:
        os.kill(os.getpid(), signal.SIGKILL)


@sampled
def one_exits(rindex: int, out: str) -> None:
    write(out, rindex)
    if rindex == 0:
        os._exit(0)


@sampled
def all_hang(out: str) -> None:
    print("process", os.getpid(), flush=True)
    while True:
        signal.pause()


@sampled
def one_waits(gate: str, rindex: int, out: str) -> None:
    if rindex == 1:
        with open(f"{gate}.hello", "w", encoding="utf-8") as hello:
            hello.write(f"{os.getpid()}\n")
        with open(f"{gate}.go", "rb") as go:
            go.read()
    write(out, rindex)


@sampled
def forks_and_comes_back(rindex: int, out: str) -> None:
    if os.fork() == 0:
        return
    os.wait()
    write(out, rindex)


@sampled
def realizes_another(rindex: int, out: str) -> None:
    write(out, realize1(instantiate(lambda r: plain(r=r, name=f"inner{rindex % 2}", nouts=1, matcher=match_only()))))


def closure_of(S: StorageSettings, stage: AutoStage, **items: Any) -> Closure:
    return instantiate(lambda r: stage(**{"r": r, "name": "sampled", **items}), S=S)[1]
