"""One fetch for all who ask: in one fetcher, and between processes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from tests.fetch.conftest import LIMITS, PROMPT, within_test
from tests.fetch.servers import Proxy, Request, running_nginx, scripted
from tests.fetch.test_fetcher import CONTENT, content_of, failure, fetch, left, sha256, spec_of

from pylightnix import FetchFailed, FetchUnavailable, WrongChecksum
from pylightnix.fetch import Checksum, FetchEnvironment, FetchProgress, FetchSpec, Login, checked_headers
from pylightnix.fetch.fetcher import Fetcher, running_fetcher

ALICE = FetchEnvironment(logins=(Login("127.0.0.1", "alice", "pw"),))


async def ask(fetcher: Fetcher, spec: FetchSpec, *arguments: Any, **more: Any) -> None:
    async with fetcher.fetched(spec, *arguments, **more) as file:
        assert content_of(file) == CONTENT


def test_twenty_askers_make_one_request(folder: str) -> None:
    everybody_asked = threading.Event()

    def handler(request: Request) -> None:
        assert everybody_asked.wait(30)
        request.serve(CONTENT)

    progress: list[list[FetchProgress]] = [[] for _ in range(20)]
    with scripted(handler) as server:

        async def main() -> None:
            async with running_fetcher(folder, limits=LIMITS) as fetcher, trio.open_nursery() as nursery:
                for number in range(20):
                    nursery.start_soon(partial(ask, fetcher, spec_of(server.url + "/f"), progress=progress[number].append))
                await trio.testing.wait_all_tasks_blocked()
                everybody_asked.set()

        within_test(main)
    assert len(server.requests) == 1
    for seen in progress:
        assert seen[-1] == replace(seen[-1], bytes=len(CONTENT), total=len(CONTENT), mirror=server.url + "/f", attempt=1)
    assert left(folder) == []


def test_failure_is_everybodys(folder: str) -> None:
    with scripted(lambda request: request.serve(b"wrong")) as server:
        errors: list[WrongChecksum] = []

        async def one(fetcher: Fetcher) -> None:
            with pytest.raises(WrongChecksum) as raised:
                await ask(fetcher, spec_of(server.url + "/f"))
            errors.append(raised.value)

        async def main() -> None:
            async with running_fetcher(folder) as fetcher, trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(one, fetcher)

        within_test(main)
    assert len(server.requests) == 1
    assert len({id(error) for error in errors}) == 3
    assert len({str(error) for error in errors}) == 1


def test_cancelled_asker_leaves_the_others(folder: str) -> None:
    one_is_gone = threading.Event()

    def handler(request: Request) -> None:
        request.answer(200, CONTENT[:1000], {"ETag": '"1"'}, length=len(CONTENT))
        assert one_is_gone.wait(30)
        request.send(CONTENT[1000:])

    with scripted(handler) as server:

        async def main() -> None:
            begun = trio.Event()
            async with running_fetcher(folder, limits=LIMITS) as fetcher, trio.open_nursery() as nursery:
                nursery.start_soon(lambda: ask(fetcher, spec_of(server.url + "/f")))
                with trio.CancelScope() as scope:
                    nursery.start_soon(lambda: cancel_after(begun, scope))
                    await ask(fetcher, spec_of(server.url + "/f"), progress=lambda p: begun.set() if p.bytes else None)
                assert scope.cancelled_caught
                one_is_gone.set()

        within_test(main)
    assert len(server.requests) == 1


async def cancel_after(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def test_last_asker_stops_the_fetch_and_its_part_is_taken_up(folder: str) -> None:
    half = len(CONTENT) // 2

    def handler(request: Request) -> None:
        if request.number == 1:
            request.answer(200, CONTENT[:half], {"ETag": '"1"'}, length=len(CONTENT))
            server.done.wait(0.15)  # less than that after the last time, nobody is told
            request.send(CONTENT[half : half + 1])
            with contextlib.suppress(OSError):
                while request.connection.recv(1):  # until the client breaks off
                    pass
            raise ConnectionAbortedError
        request.serve(CONTENT, '"1"')

    with scripted(handler) as server:

        async def main() -> None:
            begun = trio.Event()
            async with running_fetcher(folder, limits=LIMITS) as fetcher, trio.open_nursery() as nursery:
                with trio.CancelScope() as scope:
                    nursery.start_soon(lambda: cancel_after(begun, scope))
                    await ask(fetcher, spec_of(server.url + "/f"), progress=lambda p: begun.set() if p.bytes > 1 << 20 else None)
                await ask(fetcher, spec_of(server.url + "/f"))

        within_test(main)
    assert [request.offset > 1 << 19 for request in server.requests] == [False, True]


def test_who_comes_after_a_failure_begins_anew(folder: str) -> None:
    with scripted(lambda request: request.answer(404) if request.number == 1 else request.serve(CONTENT)) as server:

        async def main() -> None:
            async with running_fetcher(folder, limits=LIMITS) as fetcher:
                lent = fetcher.fetched(spec_of(server.url + "/f"))
                with pytest.raises(FetchFailed):
                    await lent.__aenter__()
                await ask(fetcher, spec_of(server.url + "/f"))

        within_test(main)


def test_progress_that_raises_harms_nobody(folder: str) -> None:
    def broken(progress: FetchProgress) -> None:
        raise RuntimeError

    with scripted(lambda request: request.serve(CONTENT)) as server:
        assert fetch(folder, spec_of(server.url + "/f"), progress=broken) == CONTENT


# --- whose fetch it is ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "requests"),
    [("plain", 1), ("netrc", 2), ("header", 2), ("userinfo", 2), ("no checksum", 2)],
)
def test_what_uses_credentials_is_shared_within_one_owner_only(folder: str, how: str, requests: int) -> None:
    everybody_asked = threading.Event()

    def handler(request: Request) -> None:
        assert everybody_asked.wait(30)
        request.serve(CONTENT)

    with scripted(handler) as server:
        url = server.url + "/f"
        spec = FetchSpec((url.replace("//", "//user:pw@") if how == "userinfo" else url,), (sha256(CONTENT),))
        if how == "header":
            spec = replace(spec, headers=checked_headers({"Authorization": "Bearer s3cret"}, "test"))
        if how == "no checksum":
            spec = replace(spec, checksums=())
        environment = ALICE if how == "netrc" else FetchEnvironment()

        async def main() -> None:
            async with running_fetcher(folder, limits=LIMITS) as fetcher, trio.open_nursery() as nursery:
                for owner in ("1000", "1000", "1001"):
                    nursery.start_soon(partial(ask, fetcher, spec, environment, owner=owner))
                await trio.testing.wait_all_tasks_blocked()
                everybody_asked.set()

        within_test(main)
    assert len(server.requests) == requests


def test_proxy_that_does_not_work_is_its_users_trouble_alone(folder: str) -> None:
    bad = FetchEnvironment(proxies=(("http", "http://127.0.0.1:1"),))
    with scripted(lambda request: request.serve(CONTENT)) as server:

        async def unlucky(fetcher: Fetcher) -> None:
            with pytest.raises(FetchUnavailable):
                await ask(fetcher, spec_of(server.url + "/f"), bad)

        async def main() -> None:
            async with running_fetcher(folder, limits=LIMITS, policy=PROMPT) as fetcher, trio.open_nursery() as nursery:
                nursery.start_soon(unlucky, fetcher)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(ask, fetcher, spec_of(server.url + "/f"))

        within_test(main)


def test_proxy_that_gives_little_keeps_nobody_else_waiting(folder: str) -> None:
    asked = threading.Event()

    def trickle(request: Request) -> None:
        request.answer(200, CONTENT[:1000], {"ETag": '"1"'}, length=len(CONTENT))
        asked.set()
        between.hold()

    with scripted(trickle) as between, scripted(lambda request: request.serve(CONTENT)) as server:
        bad = FetchEnvironment(proxies=(("http", between.url),))

        async def main() -> None:
            async with running_fetcher(folder, limits=LIMITS) as fetcher, trio.open_nursery() as nursery:
                nursery.start_soon(partial(ask, fetcher, spec_of(server.url + "/f"), bad, owner="1000"))
                await trio.to_thread.run_sync(asked.wait)
                waits: list[str] = []
                await ask(fetcher, spec_of(server.url + "/f"), owner="1001", progress=lambda p: waits.append(p.waiting))
                assert set(waits) == {""}
                nursery.cancel_scope.cancel()

        within_test(main)


@pytest.mark.parametrize(("owners", "asked"), [(("1000", "1000"), 1), (("1000", "1001"), 2)])
def test_password_of_a_proxy_serves_its_owner_only(folder: str, owners: tuple[str, ...], asked: int) -> None:
    everybody_asked = threading.Event()

    def handler(request: Request) -> None:
        assert everybody_asked.wait(30)
        request.serve(CONTENT)

    proxy = Proxy("user", "password")
    with scripted(handler) as server, scripted(proxy) as between:
        environment = FetchEnvironment(proxies=(("http", between.url.replace("//", "//user:password@")),))
        wrong = FetchEnvironment(proxies=(("http", between.url.replace("//", "//user:mistaken@")),))

        async def unlucky(fetcher: Fetcher) -> None:
            with pytest.raises(FetchFailed, match="407"):
                await ask(fetcher, spec_of(server.url + "/f"), wrong, owner="1002")

        async def main() -> None:
            async with running_fetcher(folder, limits=LIMITS) as fetcher, trio.open_nursery() as nursery:
                for owner in owners:
                    nursery.start_soon(partial(ask, fetcher, spec_of(server.url + "/f"), environment, owner=owner))
                await unlucky(fetcher)
                everybody_asked.set()

        within_test(main)
    assert len(server.requests) == asked


# --- what prefetch keeps ----------------------------------------------------------------------------------


def test_kept_file_needs_no_network(folder: str) -> None:
    with scripted(lambda request: request.serve(CONTENT)) as server:
        assert fetch(folder, spec_of(server.url + "/f", content=None), keep=True) == CONTENT
    assert left(folder) == [f"kept/sha256-{sha256(CONTENT).hex}"]
    elsewhere = spec_of("http://127.0.0.1:1/elsewhere")
    assert fetch(folder, elsewhere) == CONTENT
    assert left(folder) == [f"kept/sha256-{sha256(CONTENT).hex}"]
    failure(folder, replace(elsewhere, is_fresh=True), FetchUnavailable)
    Path(folder, left(folder)[0]).write_bytes(b"spoilt")
    failure(folder, elsewhere, FetchUnavailable)


def test_placed_file_is_nobody_elses(folder: str, tmp_path: Path) -> None:
    with scripted(lambda request: request.serve(CONTENT)) as server:

        async def main() -> None:
            async with running_fetcher(folder) as fetcher:
                async with fetcher.fetched(spec_of(server.url + "/f")) as file:
                    file.place(str(tmp_path / "one"))
                    file.place(str(tmp_path / "two"))
                async with fetcher.fetched(spec_of(server.url + "/f"), keep=True) as file:
                    file.place(str(tmp_path / "three"))

        within_test(main)
    for name in ("one", "two", "three"):
        assert (tmp_path / name).stat().st_nlink == 1
        assert (tmp_path / name).read_bytes() == CONTENT
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o644


# --- processes --------------------------------------------------------------------------------------------

FETCHING = """
import sys
from pylightnix.fetch import FetchEnvironment, FetchSpec, parse_checksum
from pylightnix.fetch.blocking import fetched_file

url, checksum, folder, mark = sys.argv[1:]
def progress(p):
    if p.bytes >= int(mark) >= 0:
        print("far enough", flush=True)
        sys.stdin.read()
with fetched_file(folder, FetchSpec((url,), (parse_checksum(checksum, "sha256"),)), FetchEnvironment(), progress=progress) as file:
    print(file.size, flush=True)
"""


def child(url: str, checksum: Checksum, folder: str, mark: int = -1) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", FETCHING, url, checksum.hex, folder, str(mark)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def ended(process: subprocess.Popen[str]) -> int:
    process.communicate()
    return process.wait()


def test_processes_share_a_fetch(folder: str) -> None:
    is_asked, both_are_here = threading.Event(), threading.Event()

    def handler(request: Request) -> None:
        is_asked.set()
        assert both_are_here.wait(30)
        request.serve(CONTENT)

    waits: list[str] = []

    def note(progress: FetchProgress) -> None:
        if progress.waiting:
            waits.append(progress.waiting)
            both_are_here.set()

    with scripted(handler) as server:
        other = child(server.url + "/f", sha256(CONTENT), folder)
        assert is_asked.wait(30)
        assert fetch(folder, spec_of(server.url + "/f"), progress=note) == CONTENT
        assert said(other) == str(len(CONTENT))
        assert ended(other) == 0
    assert len(server.requests) <= 2  # the other may have been through with the file before we could use it
    assert waits[0] == "for another fetch of this file"
    assert left(folder) == []


@pytest.mark.slow
def test_killed_process_fetches_little_again(tmp_path: Path) -> None:
    size = 256 << 20
    with running_nginx(tmp_path / "nginx") as nginx:
        with open(nginx.www / "big", "wb") as file:
            block = os.urandom(1 << 20)
            for number in range(256):
                file.write(number.to_bytes(4, "big") + block[4:])
        with open(nginx.www / "big", "rb") as file:
            checksum = Checksum("sha256", hashlib.file_digest(file, "sha256").hexdigest())
        folder = str(tmp_path / "fetch")
        killed = child(nginx.url + "/big", checksum, folder, size // 2)
        assert said(killed) == "far enough"
        killed.send_signal(signal.SIGKILL)
        ended(killed)
        had = max(os.path.getsize(os.path.join(folder, name)) for name in left(folder))
        again = child(nginx.url + "/big", checksum, folder)
        assert said(again) == str(size)
        assert ended(again) == 0
        nginx.stop()
        sent = [bytes_sent for _, _, bytes_sent in nginx.requests()]
    assert len(sent) == 2
    print(f"killed with {had >> 20} MiB on disk; fetched twice: {(sum(sent) - size) / size:.1%}")
    # What was on its way, or read and not written yet.
    assert sum(sent) - size < 0.2 * size


def test_interrupt_stops_a_blocking_fetch(folder: str) -> None:
    is_asked = threading.Event()

    def handler(request: Request) -> None:
        is_asked.set()
        server.hold()

    with scripted(handler) as server:
        process = child(server.url + "/f", sha256(CONTENT), folder)
        assert is_asked.wait(30)
        process.send_signal(signal.SIGINT)
        process.communicate()
        assert process.wait() == -signal.SIGINT


def test_failures_of_blocking_fetches_are_plain(folder: str) -> None:
    from pylightnix.fetch.blocking import fetched_file

    with (
        scripted(lambda request: request.answer(404)) as server,
        pytest.raises(FetchFailed),
        fetched_file(folder, spec_of(server.url + "/f"), FetchEnvironment()),
    ):
        pass


def test_blocking_fetch_works_below_running_loops(folder: str) -> None:
    import asyncio

    from pylightnix.fetch.blocking import fetched_file

    def once() -> bytes:
        with fetched_file(folder, spec_of(server.url + "/f"), FetchEnvironment()) as file:
            return content_of(file)

    async def below() -> bytes:  # noqa: ASYNC124  # what it calls blocks
        return once()

    with scripted(lambda request: request.serve(CONTENT)) as server:
        assert asyncio.run(below()) == trio.run(below) == CONTENT
        pid = os.fork()
        if pid == 0:
            os._exit(0 if once() == CONTENT else 1)
        assert os.waitpid(pid, 0)[1] == 0


def test_error_in_the_block_is_raised_as_it_is(folder: str) -> None:
    from pylightnix.fetch.blocking import fetched_file

    with (
        scripted(lambda request: request.serve(CONTENT)) as server,
        pytest.raises(ZeroDivisionError),
        fetched_file(folder, spec_of(server.url + "/f"), FetchEnvironment()),
    ):
        raise ZeroDivisionError
    assert left(folder) == []
