"""For how long hostile servers and clients hold the daemon's loop, and with it everybody else: the longest stall under each, printed.

Run with ``make bench``. A probe inside the daemon measures (see `tests/stalls.py`); time in which the kernel gave it no CPU is not
counted, so the figures hold on a busy machine too. Each scenario goes on for some seconds. What is asserted is what is promised: no
stall above 50 ms.
"""

from __future__ import annotations

import array
import contextlib
import hashlib
import json
import os
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final, TypeAlias

import msgpack  # type: ignore[import-untyped]  # it ships no type information
import pytest
import trustme
from tests.daemon.conftest import Daemon
from tests.daemon.wire_client import environment
from tests.fetch.servers import running_nginx, scripted
from tests.stalls import Stall, longest, wrapper

from pylightnix import fetchurl2, instantiate
from pylightnix.protocol import messages as m
from pylightnix.protocol.errors import ProtocolError

pytestmark = pytest.mark.slow

SECONDS: Final = 4.0
STALL_SECONDS_MAX: Final = 0.05
MEBI: Final = 1 << 20

Talk: TypeAlias = Callable[[socket.socket], None]
Scenario: TypeAlias = Callable[[Daemon, Path], AbstractContextManager[None]]
"""Hostile as long as its block runs; a block ends `SECONDS` after it began."""


# --- servers ----------------------------------------------------------------------------------------------


@contextmanager
def serving(talk: Talk) -> Iterator[str]:
    """Serve with a function that is given each connection, until that is broken off; give the URL."""
    with scripted(lambda request: talk(request.connection)) as server:
        yield server.url


@contextmanager
def fetching(daemon: Daemon, url: str, count: int = 8, sha256: str = "0" * 63) -> Iterator[None]:
    """Have `count` files fetched, and give that up at the end."""
    with daemon.client() as client:
        operations = []
        for number in range(count):
            digest = (sha256 + f"{number:x}")[:64]
            closure = instantiate(
                lambda r, digest=digest, number=number: fetchurl2(f"{url}/f{number}", sha256=digest, r=r), S=daemon.plans
            )[1]
            operations.append(client.submit(closure))
        yield
        for operation in operations:
            client.call("cancel", m.Cancel(operation=operation), m.Done)


def chunks(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"1\r\nx\r\n" * 20_000)


def headers(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        connection.sendall(b"X: y\r\n" * 10_000)


def long_header(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: " + b"y" * MEBI + b"\r\nContent-Length: 5\r\n\r\nhello")


def redirects(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: /" + os.urandom(30_000).hex().encode() + b"\r\nContent-Length: 0\r\n\r\n")


def from_server(talk: Talk, count: int = 8) -> Scenario:
    @contextmanager
    def scenario(daemon: Daemon, folder: Path) -> Iterator[None]:
        with serving(talk) as url, fetching(daemon, url, count):
            yield

    return scenario


@contextmanager
def dripping_tls(daemon: Daemon, folder: Path) -> Iterator[None]:
    """Send the handshake byte by byte, with a certificate of ten thousand names in it, whose authority stands among thousands."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", *(f"host{number}.example.org" for number in range(3000))).configure_cert(context)
    bundle = folder / "bundle.pem"
    bundle.write_bytes(b"".join(trustme.CA().cert_pem.bytes() for _ in range(20)) * 250 + authority.cert_pem.bytes())

    def drip(raw: socket.socket) -> None:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        received, to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(received, to_send, server_side=True)
        with raw, contextlib.suppress(OSError):
            while True:
                try:
                    tls.do_handshake()
                    return
                except ssl.SSLWantReadError:
                    for byte in to_send.read():
                        raw.sendall(bytes([byte]))
                    received.write(raw.recv(65536) or b"")

    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=drip, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch, listener:
        patch.setenv("SSL_CERT_FILE", str(bundle))
        with fetching(daemon, f"https://127.0.0.1:{listener.getsockname()[1]}"):
            yield
        listener.shutdown(socket.SHUT_RDWR)


@contextmanager
def large_file(daemon: Daemon, folder: Path) -> Iterator[None]:
    """Fetch files of 256 MiB, which are hashed at their ends; go on until that is done."""
    with running_nginx(folder / "nginx") as nginx, daemon.client() as client:
        digest = hashlib.sha256()
        with open(nginx.www / "large", "wb") as file:
            for _ in range(256):
                file.write(bytes(MEBI))
                digest.update(bytes(MEBI))
        closure = instantiate(lambda r: fetchurl2(f"{nginx.url}/large", sha256=digest.hexdigest(), r=r), S=daemon.plans)[1]
        yield
        assert client.build(closure)[1].ok


# --- clients ----------------------------------------------------------------------------------------------


def connected(daemon: Daemon) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(10)
    connection.connect(daemon.socket_path)
    connection.sendall(msgpack.packb([0, 1, "hello", [{"versions": [1], "features": [], "client": "flood"}]]))
    connection.recv(65536)
    return connection


def flooding(flood: Callable[[Daemon], None]) -> Scenario:
    """Flood from four threads, again and again."""

    @contextmanager
    def scenario(daemon: Daemon, folder: Path) -> Iterator[None]:
        over = threading.Event()

        def run() -> None:
            while not over.is_set():
                with contextlib.suppress(OSError, ProtocolError):
                    flood(daemon)

        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        yield
        over.set()
        for thread in threads:
            thread.join()

    return scenario


def empty_arrays(daemon: Daemon) -> None:
    with connected(daemon) as connection:
        connection.sendall(b"\x94\x00\x02\xa6status\x91\x81\xa1x\xdd\x00\x06\xff\xff" + b"\x90" * 458_751)
        connection.recv(65536)


def deep(daemon: Daemon) -> None:
    with connected(daemon) as connection:
        connection.sendall(b"\x94\x00\x02\xa6status\x91\x81\xa1x" + b"\x91" * 100_000)
        connection.recv(65536)


def large_configs(daemon: Daemon) -> None:
    """Send a thousand derivations with configs of eight kilobytes, in one message."""
    with daemon.client() as client:
        operation = client.call("submit.open", m.SubmitOpen(targets=[], environment=environment()), m.Submitted).operation
        configs = [json.dumps({"a": ["x"] * 1900, "name": f"n{number}"}, separators=(",", ":")).encode() for number in range(1000)]
        specs = [
            m.DerivationSpec(config=config, matcher=m.MatcherSpec(kind="latest"), realizer=m.RealizerSpec(kind="command"))
            for config in configs
        ]
        with contextlib.suppress(ProtocolError):
            client.call("submit.add", m.SubmitAdd(operation=operation, derivations=specs), m.Done)


def unread_answers(daemon: Daemon) -> None:
    with connected(daemon) as connection:
        connection.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            for number in range(2, 4000):
                connection.send(msgpack.packb([0, number, "ps", [{}]]))
        time.sleep(0.2)


def passed_descriptors(daemon: Daemon) -> None:
    """Pass sockets that linger: whoever closes the last descriptor of one waits for a peer who reads nothing."""
    with (
        connected(daemon) as connection,
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as lingering,
        listener.accept()[0],
    ):
        lingering.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 2))
        lingering.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                lingering.send(bytes(MEBI))
        rights = array.array("i", [lingering.fileno()])
        connection.sendmsg([msgpack.packb([0, 2, "status", [{}]])], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        lingering.close()  # the last descriptor is the daemon's now, if it took it
        connection.recv(65536)


@contextmanager
def nothing(daemon: Daemon, folder: Path) -> Iterator[None]:
    yield


SCENARIOS: Final[dict[str, Scenario]] = {
    "nothing": nothing,
    "1 server of one-byte chunks": from_server(chunks, 1),
    "8 servers of one-byte chunks": from_server(chunks),
    "8 servers of endless headers": from_server(headers),
    "8 servers of a header of 1 MiB": from_server(long_header),
    "8 servers of long redirects without end": from_server(redirects),
    "8 TLS servers that drip, 3,000 names, 5,000 authorities": dripping_tls,
    "a file of 256 MiB, hashed at its end": large_file,
    "clients: 458,751 empty arrays": flooding(empty_arrays),
    "clients: arrays 100,000 deep": flooding(deep),
    "clients: 1,000 configs of 8 KiB": flooding(large_configs),
    "clients: answers that nobody reads": flooding(unread_answers),
    "clients: passed sockets that linger": flooding(passed_descriptors),
}


@pytest.fixture(scope="module")
def rows() -> Iterator[list[tuple[str, Stall]]]:
    found: list[tuple[str, Stall]] = []
    yield found
    print("\n\nlongest stall of the daemon's loop, ms")
    for name, stall in found:
        print(f"{f'{1000 * stall.seconds:.1f}' if stall.seconds else '< 5':>8}  {name:56} {stall.culprit if stall.seconds else ''}")


@pytest.mark.parametrize("name", SCENARIOS)
def test_longest_stall(tmp_path: Path, rows: list[tuple[str, Stall]], name: str) -> None:
    measured = tmp_path / "stalls"
    with Daemon(tmp_path / "store", "--log-size", "0", wrapper=wrapper(measured)) as daemon:
        with daemon.wait_ready().client() as client:
            client.status()
        begun = time.monotonic()
        with SCENARIOS[name](daemon, tmp_path):
            time.sleep(SECONDS)
        stall = longest(measured, begun)
        assert measured.exists()
    rows.append((name, stall))
    assert stall.seconds <= STALL_SECONDS_MAX, stall
