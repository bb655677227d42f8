"""What hostile clients may do to the loop: hold it for 50 ms at most, and print for how long.

A probe measures from inside of the daemon, see `tests/stalls.py`. Each attack has three tries, for what other processes do to this
one is not all taken off.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]  # it ships no type information
import pytest
from tests.daemon.conftest import Daemon
from tests.daemon.wire_client import WireClient, environment
from tests.lingering import lingering_socket, pass_on
from tests.stalls import longest, wrapper

from pylightnix.protocol import messages as m

STALL_SECONDS = 0.05
TRIES = 3
DREF = f"dref:{0:032x}-x"
HELLO = msgpack.packb([0, 1, "hello", [{"versions": [1], "features": [], "client": "hostile"}]])
LAST = 9_999


@pytest.fixture(scope="module")
def stalls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stalls") / "stalls"


@pytest.fixture(scope="module")
def daemon(stalls: Path) -> Iterator[Daemon]:
    with Daemon(stalls.parent / "store", "--jobs", "2", wrapper=wrapper(stalls)) as running:
        yield running.wait_ready()


def request(number: int, method: str, **params: Any) -> bytes:
    data: bytes = msgpack.packb([0, number, method, [params]])
    return data


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def config(number: int, **items: Any) -> bytes:
    return canonical({"name": "x", "number": number, **items})


def talk(daemon: Daemon, *messages: bytes) -> None:
    """Say all this, and wait until all is answered, or the daemon has hung up."""
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(daemon.socket_path)  # without a time-out, it waits for its turn
        line.settimeout(60)
        try:
            for message in (HELLO, *messages, request(LAST, "status")):
                line.sendall(message)
        except (BrokenPipeError, ConnectionResetError):
            pass
        wait_answered(line)


def wait_answered(line: socket.socket) -> None:
    """Wait until the last request is answered, or the daemon has hung up."""
    unpacker = msgpack.Unpacker(max_buffer_size=0)
    try:
        while piece := line.recv(1 << 16):
            unpacker.feed(piece)
            if any(answer[:2] == [1, LAST] for answer in unpacker):
                return
    except ConnectionResetError:
        pass


def opened(client: WireClient) -> str:
    found = client.call("submit.open", m.SubmitOpen(targets=[DREF], environment=environment()), m.Submitted)
    return found.operation


def specs(configs: list[bytes]) -> list[dict[str, Any]]:
    return [{"config": each, "matcher": {"kind": "latest", "n": 1}, "realizer": {"kind": "command"}} for each in configs]


def adding(configs: Callable[[], list[bytes]]) -> Callable[[Daemon], None]:
    def attack(daemon: Daemon) -> None:
        with daemon.client() as client:
            talk(daemon, request(5, "submit.add", operation=opened(client), derivations=specs(configs())))

    return attack


def saying(*messages: Callable[[], bytes]) -> Callable[[Daemon], None]:
    return lambda daemon: talk(daemon, *(message() for message in messages))


def pass_a_lingering_socket(daemon: Daemon) -> None:
    with socket.socket(socket.AF_UNIX) as line, lingering_socket(2) as passed:
        line.connect(daemon.socket_path)
        line.sendall(HELLO)
        try:
            pass_on(line, request(LAST, "status"), passed)
        except PermissionError:
            return  # the kernel refused
        wait_answered(line)


def send_a_blob(daemon: Daemon) -> None:
    data, piece = os.urandom(1 << 20) * 64, 4 << 20
    name = hashlib.sha256(data).hexdigest()
    with daemon.client() as client:
        operation = opened(client)
        for at in range(0, len(data), piece):
            said = m.SubmitBlob(operation=operation, sha256=name, size=len(data), offset=at, data=data[at : at + piece])
            client.call("submit.blob", said, m.Done)


def come_and_go(daemon: Daemon) -> None:
    for _ in range(200):
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(daemon.socket_path)
            line.send(HELLO[:9])
    talk(daemon)


def flood_from_many(daemon: Daemon) -> None:
    """Forty connections send requests as fast as they can, and read nothing."""
    flood = HELLO + b"".join(request(number, "status") for number in range(2, 4000))
    lines = []
    for _ in range(40):
        line = socket.socket(socket.AF_UNIX)
        line.connect(daemon.socket_path)
        line.setblocking(False)
        lines.append(line)
    for line in lines:
        try:
            line.send(flood)
        except BlockingIOError:
            pass
    daemon.client().close()
    for line in lines:
        line.close()


NESTED: list[Any] = [[[[]]]] * 60_000
ATTACKS: dict[str, Callable[[Daemon], None]] = {
    "200,000 values": saying(lambda: request(5, "status", x=[None] * 99_000, y=[None] * 99_000)),
    "198,000 maps": saying(lambda: request(5, "status", x=[{}] * 99_000, y=[{}] * 99_000)),
    "texts of 8 MiB": saying(lambda: request(5, "status", x="é" * 2_000_000, y="\x00" * 3_900_000)),
    "10,000 requests": saying(lambda: b"".join(request(number, "status") for number in range(2, 9_990))),
    "10,000 unknown methods": saying(lambda: b"".join(request(number, "nonsense") for number in range(2, 9_990))),
    "forty connections that flood": flood_from_many,
    "configs of many numbers": saying(lambda: request(5, "register", configs=[config(n, a=[0] * 400_000) for n in range(3)])),
    "configs of many lists": saying(lambda: request(5, "register", configs=[config(n, a=NESTED) for n in range(3)])),
    "derivations of many numbers": adding(lambda: [config(n, a=[0] * 400_000) for n in range(3)]),
    "derivations of many lists": adding(lambda: [config(n, a=NESTED) for n in range(3)]),
    "1,000 derivations": adding(lambda: [config(n, a=[0] * 3_000) for n in range(1_000)]),
    "a context of 1 MiB": saying(
        lambda: request(
            5,
            "insert",
            dref=DREF,
            context=canonical({f"dref:{n:032x}-x": [f"rref:{n:032x}-{n:032x}-x"] for n in range(7_000)}),
            output="x",
            started=0.0,
        )
    ),
    "a blob of 64 MiB": send_a_blob,
    "200 connections that come and go": come_and_go,
    "a TCP socket that lingers": pass_a_lingering_socket,
}


@pytest.mark.parametrize("name", ATTACKS)
def test_the_loop_is_held_for_a_moment_at_most(daemon: Daemon, stalls: Path, name: str) -> None:
    found = []
    for _ in range(TRIES):
        since = time.monotonic()
        ATTACKS[name](daemon)
        with daemon.client() as client:
            for _ in range(10):  # the probe has its turn, too
                assert client.status().lost_wakeups == 0
        found.append(longest(stalls, since))
        if found[-1].seconds <= STALL_SECONDS:
            break
    best = min(found, key=lambda stall: stall.seconds)
    print(f"{name}: {best.seconds * 1000:.1f} ms {best.culprit}")
    assert best.seconds <= STALL_SECONDS, found


SLOW_LOOKUPS = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pwd.h>
#include <unistd.h>
struct passwd *getpwuid(uid_t uid) { struct passwd *(*real)(uid_t) = dlsym(RTLD_NEXT, "getpwuid"); sleep(3); return real(uid); }
int getpwuid_r(uid_t uid, struct passwd *entry, char *room, size_t size, struct passwd **found) {
    int (*real)(uid_t, struct passwd *, char *, size_t, struct passwd **) = dlsym(RTLD_NEXT, "getpwuid_r");
    sleep(3);
    return real(uid, entry, room, size, found);
}
"""


def test_a_user_database_that_takes_seconds_holds_up_nobody(tmp_path: Path) -> None:
    (tmp_path / "slow.c").write_text(SLOW_LOOKUPS)
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-o", str(tmp_path / "slow.so"), str(tmp_path / "slow.c"), "-ldl"], check=True)
    except FileNotFoundError:
        pytest.skip("it takes a C compiler")
    path = tmp_path / "stalls"
    preload = ("env", f"LD_PRELOAD={tmp_path / 'slow.so'}", *wrapper(path))
    with Daemon(tmp_path / "store", "--jobs", "2", wrapper=preload) as daemon:
        daemon.wait_ready()
        since = time.monotonic()
        with daemon.client() as first, daemon.client() as second:
            connected = time.monotonic() - since
            operation = opened(first)  # its user's name is waited for, but not for long
            named = time.monotonic() - since
            begun = time.monotonic()
            second.status()
            assert time.monotonic() - begun < 1
            (line,) = second.call("ps", m.Ps(), m.Processes).operations
            assert line.operation == operation
            assert line.user == f"uid {os.getuid()}"
        assert connected < 1
        assert named < 2.5
        stall = longest(path, since)
        print(f"a user database that takes 3 s: {stall.seconds * 1000:.1f} ms {stall.culprit}")
        assert stall.seconds <= STALL_SECONDS, stall
