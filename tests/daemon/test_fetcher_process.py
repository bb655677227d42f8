"""The fetcher beside the daemon: it dies, stops, lies and talks nonsense, and what comes of that is its own fetches' delay at most."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from tests.daemon.conftest import Daemon
from tests.fetch.conftest import within_test
from tests.fetch.servers import Request, Scripted, scripted
from tests.fetch.test_fetcher import CONTENT, content_of, left, sha256
from tests.stalls import Probe, longest
from tests.waiting import wait_until

from pylightnix import FetchUnavailable, WrongChecksum, fetchurl2, instantiate
from pylightnix.errors import StoreError
from pylightnix.fetch import Checksum, FetchEnvironment, FetchProgress, FetchSpec, Headers, Login
from pylightnix.worker.linux import children_of
from pylightnixd.boundary import SharedNursery
from pylightnixd.fetch_process import PROGRAM, Patience, Siblings, own_environment
from pylightnixd.fetch_words import order_of
from pylightnixd.fetchers import Fetchers, FetchSettings

BIG = CONTENT * (1 + (4 << 20) // len(CONTENT))
"""More than a fetcher keeps in memory before it writes."""
HALF = len(BIG) // 2
USUAL = FetchEnvironment()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another process does; the test's own limit bounds it."""
    while not condition():  # noqa: ASYNC110  # nobody tells
        await trio.sleep(0.01)


def silent(_: FetchProgress) -> None:
    pass


@asynccontextmanager
async def running_fetchers(folder: Path, **more: Any) -> AsyncIterator[Fetchers]:
    (folder / "logs").mkdir()
    async with trio.open_nursery() as nursery:
        siblings = Siblings(trio.Lock(), set())
        fetchers = Fetchers(SharedNursery(nursery), siblings, str(folder / "fetch"), str(folder / "logs"), FetchSettings(), **more)
        yield fetchers
        nursery.cancel_scope.cancel()
    assert siblings.pids == set()  # reaped, each of them


def pid_of(fetchers: Fetchers) -> int:
    (pid,) = fetchers.siblings.pids
    return pid


async def fetched(fetchers: Fetchers, url: str, content: bytes = CONTENT, **more: Any) -> bytes:
    spec = FetchSpec((url,), (sha256(content),), **more)
    async with fetchers.fetched(spec, USUAL, owner="ann", progress=silent) as file:
        return content_of(file)


def half_then_all(server_holds: Callable[[], Scripted], asked: threading.Event) -> Callable[[Request], None]:
    """Return what gives half of the file to who asks first, and falls silent; what is asked for to all others."""

    def handler(request: Request) -> None:
        if request.number == 1:
            request.answer(200, BIG[:HALF], {"ETag": '"1"'}, length=len(BIG))
            asked.set()
            server_holds().hold()
        else:
            request.serve(BIG, etag='"1"')

    return handler


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGSEGV])
def test_one_that_dies_or_stops_costs_a_delay(tmp_path: Path, number: signal.Signals) -> None:
    asked = threading.Event()
    patience = Patience(ping_seconds=0.05, answer_seconds=1.0)

    async def main() -> None:
        async with running_fetchers(tmp_path, patience=patience) as fetchers:
            pids = []

            async def harm() -> None:
                await trio.to_thread.run_sync(asked.wait)
                await until(lambda: any(path.stat().st_size for path in (tmp_path / "fetch").glob("*.part")))
                pids.append(pid_of(fetchers))
                os.kill(pids[0], number)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(harm)
                assert await fetched(fetchers, f"{server.url}/f", BIG) == BIG
            assert pid_of(fetchers) != pids[0]

    with scripted(half_then_all(lambda: server, asked)) as server:
        within_test(main)
    assert "range" in server.requests[1].headers  # what was there was not fetched again
    assert left(str(tmp_path / "fetch")) == []


def test_cancelling_does_not_wait_for_one_that_is_stopped(tmp_path: Path) -> None:
    asked = threading.Event()

    async def main() -> None:
        async with running_fetchers(tmp_path, patience=Patience(end_seconds=0.2)) as fetchers:
            with trio.CancelScope() as scope:

                async def stop() -> None:
                    await trio.to_thread.run_sync(asked.wait)
                    os.kill(pid_of(fetchers), signal.SIGSTOP)
                    scope.cancel()

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(stop)
                    await fetched(fetchers, f"{server.url}/f", BIG)
            assert scope.cancelled_caught

    with scripted(half_then_all(lambda: server, asked)) as server:
        within_test(main)


def test_one_ends_when_idle_and_another_begins(tmp_path: Path) -> None:
    async def main() -> None:
        async with running_fetchers(tmp_path, patience=Patience(idle_seconds=0.1, ping_seconds=0.05)) as fetchers:
            for number in range(3):
                assert await fetched(fetchers, f"{server.url}/{number}") == CONTENT
                await until(lambda: not fetchers.siblings.pids)

    with scripted(lambda request: request.serve(CONTENT)) as server:
        within_test(main)
    assert len(server.requests) == 3


def test_it_does_not_end_in_a_long_fetch(tmp_path: Path) -> None:
    go = threading.Event()

    def handler(request: Request) -> None:
        assert go.wait(30)
        request.serve(CONTENT)

    async def main() -> None:
        async with running_fetchers(tmp_path, patience=Patience(idle_seconds=0.05, ping_seconds=0.05)) as fetchers:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fetched, fetchers, f"{server.url}/f")
                await until(lambda: bool(server.requests))
                pid = pid_of(fetchers)
                await trio.sleep(0.5)
                go.set()
            assert fetchers.siblings.pids in ({pid}, set())

    with scripted(handler) as server:
        within_test(main)
    assert len(server.requests) == 1


# --- programs that are worse than the real one ------------------------------------------------------------


def program(folder: Path, text: str) -> tuple[str, ...]:
    path = folder / "program.py"
    path.write_text(
        "import os, socket, sys, trio\nfrom pylightnixd import fetch_program\nfrom pylightnixd.fetch_program import *\n"
        "from pylightnixd.fetch_words import Fetched\nService = fetch_program._Service\n" + textwrap.dedent(text) + "\nmain()\n"
    )
    return (str(path),)


DIES_OF = """
    serve_order = Service._serve
    async def evil(self, fetch, params):
        if "evil" in params["urls"][0]:
            await trio.sleep(0.2)  # others are at work meanwhile
            os.kill(os.getpid(), 9)
        await serve_order(self, fetch, params)
    Service._serve = evil
"""


def test_a_server_that_kills_fetchers_harms_no_other_fetch(tmp_path: Path) -> None:
    async def main() -> list[str]:
        failures = []

        async def one(path: str) -> None:
            try:
                assert await fetched(fetchers, f"{server.url}/{path}") == CONTENT
            except FetchUnavailable as error:
                failures.append(f"{path} {error}")

        async with running_fetchers(tmp_path, program=program(tmp_path, DIES_OF)) as fetchers:
            async with trio.open_nursery() as nursery:
                for path in ("evil", "good1", "good2", "good3"):
                    nursery.start_soon(one, path)
            assert await fetched(fetchers, f"{server.url}/later") == CONTENT
        return failures

    def slow(request: Request) -> None:
        time.sleep(0.5)  # not done when the evil one strikes
        request.serve(CONTENT)

    with scripted(slow) as server:
        (failure,) = within_test(main)
    assert failure.startswith("evil ")
    assert "the fetcher was lost, 3 times" in failure


NONSENSE = {
    "garbage": "fetch_program.encode_response = lambda *_: b'\\xc1' * 100",
    "ends at once": "os._exit(3)",
    "a name elsewhere": """
        async def lend(self, fetch, order):
            await self._connection.send(fetch_program.encode_response(fetch.number, None, {"name": "../../x", "is_alone": True}))
            await trio.sleep_forever()
        Service._lend = lend
    """,
    "too long": "fetch_program.encode_response = lambda *_: b'\\x94\\x01\\x01\\xc0\\x81\\xa1x\\xc6\\x7f\\xff\\xff\\xff'",
}


@pytest.mark.parametrize("text", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_is_a_failure_of_its_fetches(tmp_path: Path, text: str) -> None:
    async def main() -> None:
        async with running_fetchers(tmp_path, program=program(tmp_path, text)) as fetchers:
            await fetched(fetchers, f"{server.url}/f")

    with scripted(lambda request: request.serve(CONTENT)) as server, pytest.raises(FetchUnavailable, match="the fetcher was lost, 3 times"):
        within_test(main)


def test_one_that_never_says_hello_is_given_up(tmp_path: Path) -> None:
    async def main() -> None:
        patience = Patience(start_seconds=0.2, end_seconds=0.1)
        async with running_fetchers(tmp_path, program=program(tmp_path, "import time\ntime.sleep(600)"), patience=patience) as fetchers:
            await fetched(fetchers, "http://127.0.0.1:1/f")

    with pytest.raises(FetchUnavailable, match=r"did not say hello within 0\.2 s"):
        within_test(main)


FAILS = """
    from pylightnix.errors import FetchUnavailable
    async def lend(self, fetch, order):
        raise FetchUnavailable(["u"], [("u", "is not there")] * count)
    Service._lend = lend
"""


@pytest.mark.parametrize("count", [2, 100_000])
def test_failures_are_those_that_it_met(tmp_path: Path, count: int) -> None:
    async def main() -> None:
        async with running_fetchers(tmp_path, program=program(tmp_path, f"count = {count}" + textwrap.dedent(FAILS))) as fetchers:
            await fetched(fetchers, "http://127.0.0.1:1/f")

    with pytest.raises(FetchUnavailable, match="u is not there") as found:
        within_test(main)
    assert found.value.failures == [("u", "is not there")] * (2 if count == 2 else 0)


NEVER_ENDS = """
    async def lend(self, fetch, order):
        await trio.sleep_forever()
    Service._lend = lend
"""


def test_a_fetch_that_never_ends_is_given_up(tmp_path: Path) -> None:
    async def main() -> None:
        patience = Patience(answer_seconds=0.5, ping_seconds=0.1)
        async with running_fetchers(tmp_path, program=program(tmp_path, NEVER_ENDS), patience=patience) as fetchers:
            await fetched(fetchers, "http://127.0.0.1:1/f", total_seconds=0.1)

    with pytest.raises(FetchUnavailable, match=r"did not end a fetch within 0\.6 s"):
        within_test(main)


FLOODS = """
    from pylightnixd.fetch_words import Told
    async def lend(self, fetch, order):
        async with trio.open_nursery() as nursery:
            for number in range(1_000_000):
                told = Told(fetch=fetch.number, bytes=number, total=None, bytes_per_second=0.0, mirror="m" * 20_000, attempt=1, waiting="")
                await self._connection.send(fetch_program.encode_notification("told", told) * 20)
    Service._lend = lend
"""


def test_one_that_says_too_much_does_not_hold_the_loop(tmp_path: Path) -> None:
    probe, told = Probe(str(tmp_path / "stalls")), []
    begun = time.monotonic()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(probe.measure)
            async with running_fetchers(tmp_path, program=program(tmp_path, FLOODS)) as fetchers:
                enough = trio.Event()

                def tell(progress: FetchProgress) -> None:
                    told.append(progress.bytes)
                    if len(told) == 20_000:
                        enough.set()

                async def fetch() -> None:
                    spec = FetchSpec(("http://127.0.0.1:1/f",), (sha256(CONTENT),))
                    async with fetchers.fetched(spec, USUAL, owner="ann", progress=tell):
                        pass

                nursery.start_soon(fetch)
                with trio.fail_after(60):
                    await enough.wait()
                nursery.cancel_scope.cancel()

    trio.run(main, instruments=[probe])
    assert longest(tmp_path / "stalls", begun).seconds <= 0.05


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    async def main() -> None:
        async with running_fetchers(tmp_path) as fetchers:
            await fetched(fetchers, "http://127.0.0.1:1/f")

    (tmp_path / "fetch").write_text("no folder")
    with pytest.raises(StoreError, match=str(tmp_path / "fetch")):
        within_test(main)


LIES = """
    async def lend(self, fetch, order):
        name = "0" * 32 + ".file"
        path = os.path.join(self._fetcher._means.folder, name)
        make(path)
        await self._connection.send(fetch_program.encode_response(fetch.number, None, Fetched(name=name, is_alone=True)))
        await trio.sleep_forever()
    Service._lend = lend
    def make(path):
"""
WHAT = {
    "other bytes": "    open(path, 'wb').write(b'evil')",
    "a link": "    os.path.lexists(path) or os.symlink('/etc/hostname', path)",
    "a pipe": "    os.path.exists(path) or os.mkfifo(path)",
    "a folder": "    os.makedirs(path, exist_ok=True)",
}


@pytest.mark.parametrize("text", WHAT.values(), ids=WHAT)
def test_what_it_brings_is_checked(tmp_path: Path, text: str) -> None:
    async def main() -> None:
        async with running_fetchers(tmp_path, program=program(tmp_path, LIES + "    " + text)) as fetchers:
            await fetched(fetchers, "http://127.0.0.1:1/f")

    with pytest.raises((WrongChecksum, StoreError)):
        within_test(main)


HOLDS_ON = """
        import shutil
        shutil.copyfile(sys.prefix + "/pyvenv.cfg", path)
        os.open(path, os.O_RDWR)
"""


def test_a_file_that_it_has_open_still_is_copied(tmp_path: Path) -> None:
    async def main() -> None:
        async with running_fetchers(tmp_path, program=program(tmp_path, LIES + HOLDS_ON)) as fetchers:
            spec = FetchSpec(("http://127.0.0.1:1/f",), (sha256(content),))
            async with fetchers.fetched(spec, USUAL, owner="ann", progress=silent) as file:
                held = f"/proc/{pid_of(fetchers)}/fd"
                (theirs,) = [info for fd in os.listdir(held) if (info := os.stat(f"{held}/{fd}")).st_size == len(content)]
                assert os.stat(file.path).st_ino != theirs.st_ino
                assert content_of(file) == content

    content = Path(sys.prefix, "pyvenv.cfg").read_bytes()
    within_test(main)


# --- secrets and rights -----------------------------------------------------------------------------------


def test_it_has_no_secret_of_the_daemon_and_gains_no_rights(tmp_path: Path) -> None:
    secrets = {
        "HTTP_PROXY": "http://u:s3cret@h",
        "NETRC": "/s3cret",
        "GITHUB_TOKEN": "s3cret",
        "AWS_SECRET": "s3cret",
        "OF_A_USER": "s3cret",
    }

    async def main() -> tuple[bytes, str]:
        async with running_fetchers(tmp_path) as fetchers:
            assert await fetched(fetchers, f"{server.url}/f") == CONTENT
            proc = Path(f"/proc/{pid_of(fetchers)}")
            return (proc / "environ").read_bytes(), (proc / "status").read_text()

    with pytest.MonkeyPatch.context() as patch, scripted(lambda request: request.serve(CONTENT)) as server:
        for name, value in secrets.items():
            patch.setenv(name, value)
        environ, status = within_test(main)
        assert not secrets.keys() & own_environment().keys()
    assert b"s3cret" not in environ
    assert "NoNewPrivs:\t1" in status


def test_settings_of_one_user_go_out_with_no_other_users_fetch(tmp_path: Path) -> None:
    async def main() -> None:
        async with running_fetchers(tmp_path) as fetchers, trio.open_nursery() as nursery:
            for user, login in (("ann", (Login("127.0.0.1", "ann", "s3cret"),)), ("bob", ())):

                async def ask(user: str = user, login: tuple[Login, ...] = login) -> None:
                    spec = FetchSpec((f"{server.url}/f",), (sha256(CONTENT),), headers=Headers({"X-User": user}))
                    async with fetchers.fetched(spec, FetchEnvironment(logins=login), owner=user, progress=silent) as file:
                        assert content_of(file) == CONTENT

                nursery.start_soon(ask)

    with scripted(lambda request: request.serve(CONTENT)) as server:
        within_test(main)
    assert sorted((r.headers["x-user"], "authorization" in r.headers) for r in server.requests) == [("ann", True), ("bob", False)]


TEXTS = st.text(max_size=20)
PAIRS = st.lists(st.tuples(TEXTS, TEXTS), max_size=3).map(tuple)


@given(
    st.builds(
        FetchSpec,
        urls=st.lists(TEXTS).map(tuple),
        checksums=st.lists(st.builds(Checksum, st.sampled_from(["sha256", "sha1"]), st.just("0" * 40))).map(tuple),
        headers=st.dictionaries(TEXTS, TEXTS).map(Headers),
        max_bytes=st.none() | st.integers(0, 2**53),
        insecure_redirects=st.booleans(),
        total_seconds=st.none() | st.floats(0.1, 1e12),
        is_fresh=st.booleans(),
    ),
    st.builds(
        FetchEnvironment,
        proxies=PAIRS,
        no_proxy=TEXTS,
        logins=st.lists(st.builds(Login, TEXTS, TEXTS, TEXTS)).map(tuple),
        ca_pem=st.none() | TEXTS,
        hashed_mirrors=st.lists(TEXTS).map(tuple),
        troubles=st.lists(st.tuples(TEXTS, TEXTS, TEXTS)).map(tuple),
    ),
)
def test_orders_say_all_of_a_fetch(spec: FetchSpec, environment: FetchEnvironment) -> None:
    order = order_of(spec, environment, "ann")
    assert (order.spec(), order.environment(), order.owner) == (spec, environment, "ann")


# --- beside a daemon --------------------------------------------------------------------------------------


def fetcher_of(daemon: Daemon) -> int:
    def found() -> list[int]:
        lines = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children_of(daemon.process.pid)}
        return [pid for pid, line in lines.items() if PROGRAM[-1].encode() in line]

    wait_until(lambda: bool(found()))
    return found()[0]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("is_stopped", [False, True])
def test_kill_9_of_the_daemon_ends_it(tmp_path: Path, is_stopped: bool) -> None:
    with scripted(lambda request: server.hold()) as server, Daemon(tmp_path / "store") as daemon, daemon.wait_ready().client() as client:
        client.submit(instantiate(lambda r: fetchurl2(f"{server.url}/f", sha256=sha256(CONTENT).hex, r=r), S=daemon.plans)[1])
        pid = fetcher_of(daemon)
        wait_until(lambda: bool(server.requests))
        if is_stopped:
            os.kill(pid, signal.SIGSTOP)
        daemon.kill()
        try:
            wait_until(lambda: not is_alive(pid))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_a_daemon_that_ends_is_not_held_up_by_one_that_is_stopped(tmp_path: Path) -> None:
    with scripted(lambda request: server.hold()) as server:
        with Daemon(tmp_path / "store", "--drain", "0.1") as daemon, daemon.wait_ready().client() as client:
            client.submit(instantiate(lambda r: fetchurl2(f"{server.url}/f", sha256=sha256(CONTENT).hex, r=r), S=daemon.plans)[1])
            pid = fetcher_of(daemon)
            wait_until(lambda: bool(server.requests))
            os.kill(pid, signal.SIGSTOP)
            begun = time.monotonic()
            daemon.stop()
            assert time.monotonic() - begun < 10
        assert not is_alive(pid)


def test_a_worker_that_is_lost_does_not_take_it_along(tmp_path: Path) -> None:
    go = threading.Event()

    def handler(request: Request) -> None:
        assert go.wait(30)
        request.serve(CONTENT)

    with scripted(handler) as server, Daemon(tmp_path / "store") as daemon, daemon.wait_ready().client() as client:

        def closure(name: str) -> Any:
            return instantiate(lambda r: fetchurl2(f"{server.url}/{name}", sha256=sha256(CONTENT).hex, name=name, r=r), S=daemon.plans)[1]

        go.set()
        assert client.build(closure("first"))[1].built == 1  # there is a worker now
        go.clear()
        operation = client.submit(closure("second"))
        pid = fetcher_of(daemon)
        workers = set(children_of(daemon.process.pid)) - {pid}
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        wait_until(lambda: not workers & set(children_of(daemon.process.pid)))
        go.set()
        assert client.wait(operation).built == 1
        assert is_alive(pid)


FETCHING = """
import sys, trio
from pathlib import Path
from pylightnix.fetch import Checksum, FetchEnvironment, FetchSpec
from pylightnixd.boundary import SharedNursery
from pylightnixd import server
from pylightnixd.fetch_process import Siblings
from pylightnixd.fetchers import Fetchers, FetchSettings

async def main(folder, url, digest):
    async with trio.open_nursery() as nursery:
        fetchers = Fetchers(SharedNursery(nursery), Siblings(trio.Lock(), set()), folder + "/fetch", folder, FetchSettings())
        spec = FetchSpec((url,), (Checksum("sha256", digest),))
        async with fetchers.fetched(spec, FetchEnvironment(), owner="", progress=print):
            print(sorted({name.partition(".")[0] for name in sys.modules} & {"httpx", "httpcore", "h11", "ssl", "certifi"}))
        nursery.cancel_scope.cancel()

trio.run(main, *sys.argv[1:])
"""


def test_a_daemon_loads_no_http(tmp_path: Path) -> None:
    with scripted(lambda request: request.serve(CONTENT)) as server:
        command = [sys.executable, "-c", FETCHING, str(tmp_path), server.url, sha256(CONTENT).hex]
        child = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert child.stderr == ""
    assert child.stdout.splitlines()[-1] == "['ssl']"  # of trio


def test_chunks_of_one_byte_are_told_of_now_and_then(tmp_path: Path) -> None:
    told: list[FetchProgress] = []

    def handler(request: Request) -> None:
        request.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(100):
            request.send(b"1\r\nx\r\n" * 1000)
        request.send(b"0\r\n\r\n")

    async def main() -> float:
        async with running_fetchers(tmp_path) as fetchers:
            begun = trio.current_time()
            spec = FetchSpec((f"{server.url}/f",), (sha256(b"x" * 100_000),))
            async with fetchers.fetched(spec, USUAL, owner="ann", progress=told.append):
                return trio.current_time() - begun

    with scripted(handler) as server:
        seconds = within_test(main)
    assert len(told) <= 4 + seconds / 0.1
    assert (told[-1].total, told[-1].mirror, told[-1].attempt) == (None, f"{server.url}/f", 1)
