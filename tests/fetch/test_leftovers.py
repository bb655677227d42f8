"""What lies in the fetch folder after a fetch: what may be used again, what goes when, and a folder that somebody removes."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from tests.fetch.conftest import LIMITS, PROMPT, within_test
from tests.fetch.servers import Request, scripted
from tests.fetch.test_fetcher import CONTENT, check, content_of, failure, fetch, left, sha256, spec_of

from pylightnix import FetchUnavailable, WrongChecksum
from pylightnix.fetch import Checksum
from pylightnix.fetch.fetcher import running_fetcher
from pylightnix.fetch.means import Means
from pylightnix.fetch.parts import make_fetch_folder

NOWHERE = "http://127.0.0.1:1/elsewhere"
OLD = 1_000_000_000.0


def leftover(folder: str, name: str, content: bytes = b"x") -> Path:
    make_fetch_folder(folder)
    path = Path(folder, name)
    path.write_bytes(content)
    os.utime(path, (OLD, OLD))
    return path


def kept(content: bytes = CONTENT) -> str:
    return f"kept/sha256-{sha256(content).hex}"


# --- what goes when ---------------------------------------------------------------------------------------


def test_folder_is_swept_while_the_fetcher_runs(folder: str) -> None:
    async def main() -> None:
        async with running_fetcher(folder, limits=replace(LIMITS, sweep_seconds=0.05)):
            path = leftover(folder, "kept/sha256-aa")
            while path.exists():  # noqa: ASYNC110  # nobody is told of a sweep
                await trio.sleep(0.01)

    within_test(main)


def test_folder_is_swept_when_a_file_is_put_aside(folder: str) -> None:
    with scripted(lambda request: request.serve(b"wrong")) as server:

        async def main() -> None:
            async with running_fetcher(folder, policy=PROMPT) as fetcher:
                leftover(folder, "wrong/sha256-aa")
                with pytest.raises(WrongChecksum):
                    await check(fetcher, spec_of(server.url + "/f"), CONTENT)

        within_test(main)
    assert left(folder) == [f"wrong/sha256-{sha256(b'wrong').hex}"]


def test_sweeping_that_fails_harms_nobody(folder: str) -> None:
    make_fetch_folder(folder)
    os.rmdir(Path(folder, "kept"))
    Path(folder, "kept").write_text("no folder")

    async def main() -> None:
        await Means(folder, LIMITS, PROMPT, trio.CapacityLimiter(1), trio.CapacityLimiter(1)).sweep()

    within_test(main)


# --- what may be used again -------------------------------------------------------------------------------


def test_spoilt_kept_file_is_no_younger_for_it_and_goes(folder: str) -> None:
    path = leftover(folder, kept(), b"spoilt")
    os.utime(path)  # else it would be swept
    with scripted(lambda request: request.serve(CONTENT)) as server:
        assert fetch(folder, spec_of(server.url + "/f")) == CONTENT
        assert left(folder) == []
        path.write_bytes(b"spoilt")
        assert fetch(folder, spec_of(server.url + "/f", content=None), keep=True) == CONTENT
    assert path.read_bytes() == CONTENT
    assert left(folder) == [kept()]


def test_kept_file_that_is_used_stays_longer(folder: str) -> None:
    path = leftover(folder, kept(), CONTENT)
    os.utime(path, (path.stat().st_ctime - 1000,) * 2)
    before = path.stat().st_mtime
    assert fetch(folder, spec_of(NOWHERE), keep=True) == CONTENT
    assert path.stat().st_mtime > before + 500
    assert left(folder) == [kept()]


def test_kept_file_is_not_spoilt_because_another_checksum_is_wrong(folder: str) -> None:
    path = leftover(folder, kept(), CONTENT)
    os.utime(path)
    wrong = Checksum("sha1", hashlib.sha1(b"another").hexdigest())
    spec = spec_of(NOWHERE)
    failure(folder, replace(spec, checksums=(*spec.checksums, wrong)), FetchUnavailable)
    assert path.read_bytes() == CONTENT


def test_file_that_was_put_aside_is_what_a_corrected_stage_wants(folder: str) -> None:
    with scripted(lambda request: request.serve(CONTENT)) as server:
        failure(folder, spec_of(server.url + "/f", content=b"mistaken"), WrongChecksum)
        assert fetch(folder, spec_of(server.url + "/f")) == CONTENT
        assert len(server.requests) == 1
        fresh = spec_of(server.url + "/f", is_fresh=True)
        assert fetch(folder, fresh) == CONTENT
        assert len(server.requests) == 2


def test_mirrors_are_a_set(folder: str) -> None:
    """Who names the same ones in another order goes on with the same part."""

    def handler(request: Request) -> None:
        request.serve(CONTENT, '"1"', upto=1_500_000 if request.target == "/a" and request.number <= PROMPT.rounds + 2 else None)

    with scripted(handler) as server:
        failure(folder, spec_of(server.url + "/a", NOWHERE), FetchUnavailable)
        had = len(server.requests)
        assert fetch(folder, spec_of(NOWHERE, server.url + "/a")) == CONTENT
    assert server.requests[had].offset == 1_500_000


# --- force_download ---------------------------------------------------------------------------------------


def test_what_must_be_fresh_uses_nothing_that_is_here(folder: str) -> None:
    leftover(folder, kept(), CONTENT)
    with scripted(lambda request: request.serve(CONTENT)) as server:
        for _ in range(2):
            assert fetch(folder, spec_of(server.url + "/f", is_fresh=True)) == CONTENT
    assert [request.offset for request in server.requests] == [0, 0]


def test_two_who_must_have_it_fresh_take_nothing_from_each_other(folder: str) -> None:
    is_lent = threading.Event()
    asked_while_lent: list[bool] = []

    def handler(request: Request) -> None:
        asked_while_lent.append(is_lent.is_set())
        request.serve(CONTENT)

    with scripted(handler) as server:
        fresh = spec_of(server.url + "/f", is_fresh=True)

        async def main() -> None:
            async with running_fetcher(folder) as fetcher, trio.open_nursery() as nursery:
                is_on = trio.Event()

                async def second() -> None:
                    other = replace(fresh, total_seconds=50.0)  # so that it does not join the first
                    try:
                        async with fetcher.fetched(other, progress=lambda p: is_on.set() if p.waiting else None) as file:
                            assert content_of(file) == CONTENT
                    finally:
                        is_on.set()

                async with fetcher.fetched(fresh) as file:
                    is_lent.set()
                    nursery.start_soon(second)
                    await is_on.wait()
                    assert content_of(file) == CONTENT
                    is_lent.clear()

        within_test(main)
    assert asked_while_lent == [False, False]
    assert left(folder) == []


# --- a folder that is removed -----------------------------------------------------------------------------


def test_folder_that_somebody_removes_is_made_again(folder: str) -> None:
    def handler(request: Request) -> None:
        request.serve(CONTENT if request.target != "/wrong" else b"wrong")

    with scripted(handler) as server:

        async def main() -> None:
            async with running_fetcher(folder, policy=PROMPT) as fetcher:
                await check(fetcher, spec_of(server.url + "/before"), CONTENT)
                shutil.rmtree(folder)
                await check(fetcher, spec_of(server.url + "/after"), CONTENT)
                os.rmdir(Path(folder, "wrong"))
                with pytest.raises(WrongChecksum):
                    await check(fetcher, spec_of(server.url + "/wrong"), CONTENT)

        within_test(main)
    assert left(folder) == [f"wrong/sha256-{sha256(b'wrong').hex}"]
