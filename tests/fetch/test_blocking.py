"""Fetches of synchronous code: one thread for all of them in a process, which no fork, interrupt or exit brings out of step."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tests.fetch.servers import Nginx, Request, scripted
from tests.fetch.test_fetcher import CONTENT, content_of, left, sha256, spec_of

from pylightnix import FetchUnavailable, StoreError
from pylightnix.fetch import FetchEnvironment
from pylightnix.fetch.blocking import fetched_file


def blocking(folder: str, *urls: str, content: bytes = CONTENT) -> bytes:
    with fetched_file(folder, spec_of(*urls, content=content), FetchEnvironment()) as file:
        return content_of(file)


def loops() -> int:
    return sum(thread.name == "pylightnix-fetch" for thread in threading.enumerate())


def test_one_thread_and_one_connection_serve_all(nginx: Nginx, folder: str, tmp_path: Path) -> None:
    (nginx.www / "blocking").write_bytes(CONTENT)
    before = nginx.connections()
    for where in (folder, folder, folder):
        assert blocking(where, f"{nginx.url}/blocking") == CONTENT
    assert loops() == 1
    assert len(nginx.connections() - before) == 1
    # Folders that nobody uses any more do not pile up, and those of others are not in the way.
    for number in range(10):
        assert blocking(str(tmp_path / f"other{number}"), f"{nginx.url}/blocking") == CONTENT
    assert blocking(folder, f"{nginx.url}/blocking") == CONTENT
    assert loops() == 1


def test_failing_server_is_remembered(folder: str) -> None:
    with scripted(lambda request: request.serve(CONTENT)) as good, scripted(lambda request: request.answer(500)) as bad:
        for number in range(3):
            assert blocking(folder, f"{bad.url}/{number}", f"{good.url}/{number}") == CONTENT
    assert len(bad.requests) == 1
    assert len(good.requests) == 3


def test_many_threads_fetch_at_a_time(folder: str) -> None:
    everybody_asks = threading.Barrier(5)

    def handler(request: Request) -> None:
        everybody_asks.wait(30)
        request.serve(CONTENT)

    found: list[bytes] = []
    with scripted(handler) as server:
        threads = [
            threading.Thread(target=lambda number=number: found.append(blocking(folder, f"{server.url}/{number}"))) for number in range(5)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [CONTENT] * 5
    assert loops() == 1
    assert left(folder) == []


def test_fork_ends_an_idle_thread(folder: str) -> None:
    with scripted(lambda request: request.serve(CONTENT)) as server:
        assert blocking(folder, server.url + "/f") == CONTENT
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)  # a child that hangs is to fail the test
            os._exit(0 if loops() == 0 and blocking(folder, server.url + "/f") == CONTENT else 1)
        assert loops() == 0
        assert os.waitpid(pid, 0)[1] == 0
        assert blocking(folder, server.url + "/f") == CONTENT
    assert loops() == 1


def test_fork_in_the_middle_of_a_fetch(folder: str) -> None:
    with scripted(lambda request: request.serve(CONTENT)) as server:
        with fetched_file(folder, spec_of(server.url + "/f"), FetchEnvironment()) as file:
            pid = os.fork()
            if pid == 0:
                signal.alarm(60)  # a child that hangs is to fail the test
                ok = blocking(folder + "2", server.url + "/g") == CONTENT and content_of(file) == CONTENT
                os._exit(0 if ok else 1)
            assert os.waitpid(pid, 0)[1] == 0
            assert content_of(file) == CONTENT
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)  # a child that hangs is to fail the test
            os._exit(0 if blocking(folder, server.url + "/f") == CONTENT else 1)
        assert os.waitpid(pid, 0)[1] == 0
    assert left(folder) == []


def test_child_that_leaves_the_block_of_its_parent(folder: str) -> None:
    with scripted(lambda request: request.serve(CONTENT)) as server:
        lent = fetched_file(folder, spec_of(server.url + "/f"), FetchEnvironment())
        file = lent.__enter__()
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)  # a child that hangs is to fail the test
            lent.__exit__(None, None, None)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert content_of(file) == CONTENT
        lent.__exit__(None, None, None)
    assert left(folder) == []


FORKING = """
import os, sys, threading, traceback

def look():  # runs last of all before a fork, for it is registered first
    for thread in threads:
        frame = sys._current_frames().get(thread.ident)
        stands = frame is not None and any(each.name == "_stand" for each in traceback.extract_stack(frame))
        seen.append("stands" if stands else "runs" if os.path.exists(f"/proc/self/task/{thread.native_id}") else "gone")

threads, seen = [], []
os.register_at_fork(before=look)
from pylightnix.fetch import FetchEnvironment, FetchSpec, parse_checksum
from pylightnix.fetch.blocking import fetched_file

url, checksum, folder = sys.argv[1:]

def fetch(number):
    spec = FetchSpec((f"{url}{number}",), (parse_checksum(checksum, "sha256"),))
    with fetched_file(folder, spec, FetchEnvironment()):
        threads[:] = [thread for thread in threading.enumerate() if thread.name == "pylightnix-fetch"]
        fork(number)
    fork(number)

def fork(number):
    pid = os.fork()
    if pid == 0:
        if number % 10 == 0:
            with fetched_file(folder, FetchSpec((f"{url}of-child",), (parse_checksum(checksum, "sha256"),)), FetchEnvironment()):
                pass
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0

for number in range(40):
    fetch(number)
print(*sorted(set(seen[0::2])), *sorted(set(seen[1::2])))
"""


def test_threads_of_no_fork_are_inside_of_openssl(folder: str) -> None:
    with scripted(lambda request: request.serve(b"content")) as server:
        command = [sys.executable, "-c", FORKING, server.url + "/", sha256(b"content").hex, folder]
        child = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (child.stdout, child.stderr) == ("stands gone\n", "")


EXITING = """
import sys, threading
from pylightnix.fetch import FetchEnvironment, FetchSpec, parse_checksum
from pylightnix.fetch.blocking import fetched_file

url, checksum, folder, how = sys.argv[1:]
spec = FetchSpec((url,), (parse_checksum(checksum, "sha256"),))
asked = threading.Event()
def fetch():
    with fetched_file(folder, spec, FetchEnvironment(), progress=lambda p: asked.set() if p.bytes else None):
        asked.set()
if how == "done":
    fetch()
else:
    threading.Thread(target=fetch, daemon=True).start()
    assert asked.wait(30)
"""


@pytest.mark.parametrize("how", ["done", "in the middle"])
def test_process_ends_in_silence(folder: str, how: str) -> None:
    def handler(request: Request) -> None:
        request.answer(200, CONTENT[:1_000_000], {"ETag": '"1"'}, length=len(CONTENT))
        if how != "done":
            server.hold()
        request.send(CONTENT[1_000_000:])

    with scripted(handler) as server:
        command = [sys.executable, "-W", "error", "-c", EXITING, server.url + "/f", sha256(CONTENT).hex, folder, how]
        child = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (child.returncode, child.stdout, child.stderr) == (0, "", "")
    assert not any(name.endswith(".file") for name in left(folder))


def test_errors_do_not_end_the_thread(folder: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with scripted(lambda request: request.serve(CONTENT)) as server:
        with pytest.raises(StoreError):
            blocking(str(tmp_path / "file"), server.url + "/f")
        with pytest.raises(FetchUnavailable):
            fetched_file(folder, spec_of("http://127.0.0.1:1/f", total_seconds=0.1), FetchEnvironment()).__enter__()
        assert blocking(folder, server.url + "/f") == CONTENT
    assert loops() == 1
