"""Descriptors that a client passes cost the loop nothing, whether the kernel refuses them or a thread closes them."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest
import trio
import trio.testing
from tests.lingering import lingering_socket, pass_on
from tests.stalls import Probe, longest

from pylightnixd.boundary import SharedNursery
from pylightnixd.descriptors import Closer, WaryStream, refuse_descriptors
from pylightnixd.listening import listener_of

LINGER_SECONDS = 2
STALL_SECONDS = 0.05


def kernel_refuses() -> bool:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        return refuse_descriptors(ours)


def is_slow(tmp_path: Path, receive: bool) -> float:
    """Return the longest stall while a client passes a socket that lingers; it is received, or still on its way when the line is closed."""
    path, begun = tmp_path / "stalls", time.monotonic()
    probe = Probe(str(path))

    async def main() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(probe.measure)
            await trio.testing.wait_all_tasks_blocked()
            line = WaryStream(trio.socket.from_stdlib_socket(ours), Closer(SharedNursery(nursery)).close)
            with lingering_socket(LINGER_SECONDS) as passed:
                pass_on(theirs, b"hello", passed)
                if receive:
                    with pytest.raises(trio.BrokenResourceError):
                        await line.receive_some(100)
                await trio.aclose_forcefully(line)
                await trio.sleep(0.2)
            theirs.close()
            nursery.cancel_scope.cancel()

    trio.run(main, instruments=[probe])
    return longest(path, begun).seconds


@pytest.mark.parametrize("receive", [True, False], ids=["received", "on-its-way"])
def test_a_thread_closes_what_is_passed(tmp_path: Path, receive: bool) -> None:
    assert is_slow(tmp_path, receive) < STALL_SECONDS


def test_a_line_without_descriptors_is_as_any_other() -> None:
    async def main() -> list[bytes]:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        other = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
        async with trio.open_nursery() as nursery:
            line = WaryStream(trio.socket.from_stdlib_socket(ours), Closer(SharedNursery(nursery)).close)
            nursery.start_soon(line.send_all, bytes(1 << 20))
            got = 0
            while got < 1 << 20:
                got += len(await other.receive_some(1 << 16))
            await other.send_all(b"one")
            found = [await line.receive_some(100)]
            await other.aclose()
            found.append(await line.receive_some(100))
            await line.aclose()
            with pytest.raises(trio.BrokenResourceError):
                await line.receive_some(100)
        return found

    assert trio.run(main) == [b"one", b""]


def test_what_a_client_passes_is_closed_here() -> None:
    async def main() -> bytes:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        kept, passed = socket.socketpair()
        async with trio.open_nursery() as nursery:
            line = WaryStream(trio.socket.from_stdlib_socket(ours), Closer(SharedNursery(nursery)).close)
            pass_on(theirs, b"hello", passed)
            with pytest.raises(trio.BrokenResourceError):
                await line.receive_some(100)
            await line.aclose()
        with kept, theirs:  # the end of the one tells that nobody has the other
            return await trio.to_thread.run_sync(kept.recv, 1)

    assert trio.run(main) == b""


@pytest.mark.skipif(not kernel_refuses(), reason="the kernel cannot refuse descriptors before Linux 6.16")
def test_whoever_connects_can_pass_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client, open(os.devnull, "rb") as null:
        listener.bind(path)
        listener.listen()
        listener_of(listener)
        client.connect(path)
        with pytest.raises(PermissionError):  # before it is accepted even
            socket.send_fds(client, [b"x"], [null.fileno()])
        accepted, _ = listener.accept()
        with accepted, pytest.raises(PermissionError):
            socket.send_fds(client, [b"x"], [null.fileno()])
