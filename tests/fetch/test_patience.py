"""How long the fetcher bears with a server, how many it asks at a time, and what it says of those that it gave up."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import replace
from functools import partial

import pytest
import trio
from tests.fetch.conftest import LIMITS, PROMPT, within_test
from tests.fetch.servers import Handler, Request, Scripted, scripted
from tests.fetch.test_fetcher import CONTENT, check, failure, fetch, spec_of

from pylightnix import FetchUnavailable, WrongChecksum
from pylightnix.fetch import FetchSpec
from pylightnix.fetch.fetcher import running_fetcher
from pylightnix.fetch.retrying import RetryPolicy

SMALL = CONTENT[:200_000]


# --- servers that give little -----------------------------------------------------------------------------


def test_trickle_that_can_be_resumed_makes_way_for_the_next_mirror(folder: str) -> None:
    def handler(request: Request) -> None:
        start = request.offset
        status = "206 X" if start else "200 X"
        ranged = f"Content-Range: bytes {start}-{len(SMALL) - 1}/{len(SMALL)}\r\n" if start else ""
        request.send(f'HTTP/1.1 {status}\r\nContent-Length: {len(SMALL) - start}\r\nETag: "1"\r\n{ranged}\r\n'.encode())
        for at in range(start, len(SMALL)):
            request.send(SMALL[at : at + 1])
            if slow.done.wait(0.02):
                return

    with scripted(handler) as slow, scripted(lambda request: request.serve(SMALL)) as good:
        spec = spec_of(slow.url + "/f", good.url + "/f", content=SMALL)
        assert fetch(folder, spec, limits=replace(LIMITS, stall_seconds=0.3)) == SMALL
        assert (len(slow.requests), len(good.requests)) == (1, 1)
        # Alone, it is asked as often as any that fails.
        slow.requests.clear()
        alone = replace(spec, urls=spec.urls[:1])
        failure(folder, alone, FetchUnavailable, limits=replace(LIMITS, stall_seconds=0.1))
        assert len(slow.requests) == PROMPT.rounds


def test_few_bytes_at_a_time_are_not_asked_for_thousands_of_times(folder: str) -> None:
    def handler(request: Request) -> None:
        request.serve(SMALL, '"1"', upto=request.offset + 50)

    with scripted(handler) as server:
        failure(folder, spec_of(server.url + "/f", content=SMALL), FetchUnavailable)
        assert len(server.requests) == PROMPT.rounds


def test_there_is_a_pause_after_little_progress(folder: str) -> None:
    def handler(request: Request) -> None:
        request.serve(SMALL, '"1"', upto=request.offset + 20_000)

    with scripted(handler) as server:
        waits: set[str] = set()
        policy = RetryPolicy(rounds=2, base_seconds=0.01, cap_seconds=0.02)
        spec = spec_of(server.url + "/f", content=SMALL)
        assert fetch(folder, spec, policy=policy, progress=lambda p: waits.add(p.waiting) if p.waiting else None) == SMALL
    assert len(server.requests) == 10
    assert waits


# --- bodies that end with the connection ------------------------------------------------------------------


def unframed(content: bytes) -> Handler:
    def handler(request: Request) -> None:
        request.send(b"HTTP/1.1 200 X\r\nConnection: close\r\n\r\n" + content)
        raise ConnectionAbortedError

    return handler


def test_body_without_a_length_that_is_cut_off_is_fetched_anew(folder: str) -> None:
    def handler(request: Request) -> None:
        unframed(CONTENT[:1000] if request.number == 1 else CONTENT)(request)

    with scripted(handler) as server:
        assert fetch(folder, spec_of(server.url + "/f")) == CONTENT
    assert [request.headers.get("range") for request in server.requests] == [None, None]


def test_body_without_a_length_is_judged_the_second_time(folder: str) -> None:
    with scripted(unframed(CONTENT[:1000])) as server:
        failure(folder, spec_of(server.url + "/f"), WrongChecksum)
        assert len(server.requests) == 2
        whole = b"%x\r\n" % 1000 + CONTENT[:1000] + b"\r\n0\r\n\r\n"
        server.handler = lambda request: request.send(b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n" + whole)
        failure(folder, spec_of(server.url + "/g"), WrongChecksum)
    assert len(server.requests) == 3  # the last chunk says that it is all


# --- how many at a time -----------------------------------------------------------------------------------


class Counting:
    """A handler that counts how many requests there are at a time."""

    def __init__(self) -> None:
        self.peak = self._now = 0
        self._lock = threading.Lock()
        self._pause = threading.Event()

    def __call__(self, request: Request) -> None:
        with self._lock:
            self._now += 1
            self.peak = max(self.peak, self._now)
        self._pause.wait(0.05)
        with self._lock:
            self._now -= 1
        request.serve(SMALL)


def fetch_all(folder: str, urls: list[str], **limits: int) -> None:
    async def main() -> None:
        async with running_fetcher(folder, limits=replace(LIMITS, **limits)) as fetcher, trio.open_nursery() as nursery:
            for url in urls:
                nursery.start_soon(partial(check, fetcher, spec_of(url, content=SMALL), SMALL))

    within_test(main)


def test_limit_for_each_server(folder: str) -> None:
    counting = Counting()
    with scripted(counting) as server:
        fetch_all(folder, [f"{server.url}/{number}" for number in range(10)], transfers_per_host=3)
    assert counting.peak == 3


def test_limit_in_all(folder: str) -> None:
    counting = Counting()
    with scripted(counting) as one, scripted(counting) as two:
        fetch_all(folder, [f"{server.url}/{number}" for number in range(5) for server in (one, two)], transfers=3)
    assert counting.peak == 3


def test_limit_is_that_of_the_server_which_redirects_lead_to(folder: str) -> None:
    counting = Counting()
    servers: list[Scripted] = []

    def elsewhere(request: Request) -> None:
        request.answer(302, headers={"Location": servers[0].url + request.target})

    with scripted(counting) as last, scripted(elsewhere) as one, scripted(elsewhere) as two:
        servers.append(last)
        fetch_all(folder, [f"{server.url}/{number}" for number in range(5) for server in (one, two)], transfers_per_host=3)
    assert counting.peak == 3


def test_server_that_redirects_is_let_go(folder: str) -> None:
    """One transfer at a time for each server: a redirect to the very server needs that, too."""

    def handler(request: Request) -> None:
        if request.target == "/f":
            request.answer(302, headers={"Location": "/g"})
        else:
            request.serve(SMALL)

    with scripted(handler) as server:
        fetch_all(folder, [server.url + "/f"], transfers_per_host=1, transfers=1)


# --- time -------------------------------------------------------------------------------------------------


def test_connection_that_does_not_come_about(folder: str) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:  # until its queue is full
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", port))
        try:
            limits = replace(LIMITS, connect_seconds=0.2)
            began = time.monotonic()
            spec = spec_of(f"http://127.0.0.1:{port}/f")
            error = failure(folder, spec, FetchUnavailable, limits=limits, policy=replace(PROMPT, rounds=1))
            assert 0.2 <= time.monotonic() - began < LIMITS.connect_seconds
        finally:
            for each in waiting:
                each.close()
    assert "cannot be connected to in time" in str(error)


def test_who_gives_up_for_the_time_says_what_was_wrong(folder: str) -> None:
    with scripted(lambda request: request.answer(503)) as server, scripted(lambda request: silent.hold()) as silent:
        spec = spec_of(server.url + "/f", silent.url + "/f", total_seconds=0.3)
        error = failure(folder, spec, FetchUnavailable)
    assert f"{server.url}/f is not fetched within 0.3 s; it answers 503 (Service Unavailable)" in str(error)
    assert f"{silent.url}/f is not fetched within 0.3 s" in str(error)


def test_who_waits_for_another_fetch_says_so(folder: str) -> None:
    with scripted(lambda request: request.serve(CONTENT)) as server:
        spec = FetchSpec((server.url + "/f",), spec_of("x").checksums, is_fresh=True)

        async def main() -> None:
            async with running_fetcher(folder) as fetcher, fetcher.fetched(spec):
                late = fetcher.fetched(replace(spec, total_seconds=0.1))
                with pytest.raises(FetchUnavailable, match=r"within 0\.1 s, since another fetch of this file did not end"):
                    await late.__aenter__()

        within_test(main)
