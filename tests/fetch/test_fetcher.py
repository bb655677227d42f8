"""The fetcher against servers that behave, and against servers that do not."""

from __future__ import annotations

import gzip
import hashlib
import os
import resource
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import pytest
import trio
from tests.fetch.conftest import LIMITS, PROMPT, within_test
from tests.fetch.servers import Nginx, Request, scripted
from tests.stores import check_error

from pylightnix import FetchFailed, FetchUnavailable, InvalidURL, Misuse, StoreError, WrongChecksum
from pylightnix.fetch import Checksum, FetchedFile, FetchEnvironment, FetchProgress, FetchSpec, checked_headers
from pylightnix.fetch.fetcher import Fetcher, running_fetcher

CONTENT = secrets.token_bytes(3_000_000)


def sha256(content: bytes) -> Checksum:
    return Checksum("sha256", hashlib.sha256(content).hexdigest())


def spec_of(*urls: str, content: Optional[bytes] = CONTENT, **more: Any) -> FetchSpec:
    return FetchSpec(tuple(urls), () if content is None else (sha256(content),), **more)


def fetch(
    folder: str,
    spec: FetchSpec,
    environment: Optional[FetchEnvironment] = None,
    *,
    progress: Optional[Callable[[FetchProgress], object]] = None,
    limits: Any = LIMITS,
    policy: Any = PROMPT,
    keep: bool = False,
    hashed_mirrors: Sequence[str] = (),
) -> bytes:
    """Fetch with a fetcher of its own, and return the file's content."""

    async def main() -> bytes:
        async with (
            running_fetcher(folder, limits=limits, policy=policy, hashed_mirrors=hashed_mirrors) as fetcher,
            fetcher.fetched(spec, environment, progress=progress, keep=keep) as file,
        ):
            content = content_of(file)
            assert len(content) == file.size
            assert set(spec.checksums) <= set(file.checksums)
            return content

    result: bytes = within_test(main)
    return result


def content_of(file: FetchedFile) -> bytes:
    return Path(file.path).read_bytes()


def left(folder: str) -> list[str]:
    """Return the files of a fetch folder, but for its locks."""
    return sorted(
        os.path.relpath(os.path.join(where, name), folder) for where, _, names in os.walk(folder) for name in names if name != "locks"
    )


def failure(folder: str, spec: FetchSpec, kind: type[FetchFailed] = FetchFailed, **more: Any) -> FetchFailed:
    with pytest.raises(FetchFailed) as raised:
        fetch(folder, spec, **more)
    assert type(raised.value) is kind, repr(raised.value)
    return raised.value


# --- nginx ------------------------------------------------------------------------------------------------


def test_file_is_fetched_and_gone_afterwards(nginx: Nginx, folder: str) -> None:
    (nginx.www / "plain").write_bytes(CONTENT)
    assert fetch(folder, spec_of(f"{nginx.url}/plain")) == CONTENT
    assert left(folder) == []


def test_all_checksums_are_compared(nginx: Nginx, folder: str) -> None:
    (nginx.www / "three").write_bytes(CONTENT)
    sums = tuple(Checksum(name, hashlib.new(name, CONTENT).hexdigest()) for name in ("sha256", "sha512", "sha1"))
    url = f"{nginx.url}/three"
    assert fetch(folder, FetchSpec((url,), sums)) == CONTENT
    for number in range(3):
        wrong = (*sums[:number], replace(sums[number], hex=sums[number].hex[::-1]), *sums[number + 1 :])
        failure(folder, FetchSpec((url,), wrong), WrongChecksum)


def test_empty_file(nginx: Nginx, folder: str) -> None:
    (nginx.www / "empty").write_bytes(b"")
    assert fetch(folder, spec_of(f"{nginx.url}/empty", content=b"")) == b""
    assert left(folder) == []


def test_redirects_are_followed(nginx: Nginx, folder: str) -> None:
    (nginx.www / "there").write_bytes(CONTENT)
    assert fetch(folder, spec_of(f"{nginx.url}/moved/there")) == CONTENT


def test_connections_are_kept(nginx: Nginx, folder: str) -> None:
    for number in range(10):
        (nginx.www / f"kept{number}").write_bytes(b"%d" % number)
    before = nginx.connections()

    async def main() -> None:
        async with running_fetcher(folder) as fetcher:
            for number in range(10):
                async with fetcher.fetched(spec_of(f"{nginx.url}/kept{number}", content=b"%d" % number)):
                    pass

    within_test(main)
    assert len(nginx.connections() - before) == 1


def test_missing_file(nginx: Nginx, folder: str) -> None:
    count = len(nginx.requests())
    error = failure(folder, spec_of(f"{nginx.url}/no-such-file"))
    check_error(error, FetchFailed, "fetch-failed", 1, f"{nginx.url}/no-such-file answers 404 (Not Found)", "check the URL")
    assert isinstance(error, AssertionError)
    assert len(nginx.requests()) == count + 1
    assert left(folder) == []


def test_part_of_an_earlier_fetch_is_taken_up(nginx: Nginx, folder: str) -> None:
    content = secrets.token_bytes(8 << 20)
    (nginx.www / "resumed").write_bytes(content)
    spec = spec_of(f"{nginx.url}/throttled/resumed", content=content)
    leave_part(folder, spec)
    [part, _] = left(folder)
    assert part.endswith(".json")
    sidecar = Path(folder, part).read_text()
    assert nginx.url not in sidecar
    had = os.path.getsize(os.path.join(folder, part.replace(".json", ".part")))
    assert had > 1 << 20
    before = len(nginx.requests())
    assert fetch(folder, spec) == content
    [(_, status, sent)] = nginx.requests()[before:][-1:]
    assert (status, sent) == (206, len(content) - had)


def leave_part(folder: str, spec: FetchSpec, at_least: int = 1 << 20) -> None:
    """Begin a fetch, and leave when so much of it is on the disk."""

    async def main() -> None:
        enough = trio.Event()

        def note(progress: FetchProgress) -> None:
            if progress.bytes > at_least + (4 << 20) or (progress.total and progress.bytes > progress.total * 0.9):
                enough.set()

        async with running_fetcher(folder, limits=LIMITS, policy=PROMPT) as fetcher, trio.open_nursery() as nursery:

            async def ask() -> None:
                async with fetcher.fetched(spec, progress=note):
                    raise AssertionError("the whole file came")

            nursery.start_soon(ask)
            await enough.wait()
            nursery.cancel_scope.cancel()

    within_test(main)


def test_changed_file_is_fetched_from_its_start(nginx: Nginx, folder: str) -> None:
    old, new = secrets.token_bytes(8 << 20), secrets.token_bytes(8 << 20)
    path = nginx.www / "changing"
    path.write_bytes(old)
    spec = spec_of(f"{nginx.url}/throttled/changing", content=new)
    leave_part(folder, spec)
    path.write_bytes(new)
    os.utime(path, (1, 1))
    assert fetch(folder, spec) == new
    assert nginx.requests()[-1][1:] == (200, len(new))


# --- servers that do not behave ---------------------------------------------------------------------------


def test_broken_connection_is_resumed(folder: str) -> None:
    def handler(request: Request) -> None:
        request.serve(CONTENT, '"1"', upto=request.number * 1_000_000)

    with scripted(handler) as server:
        seen: list[FetchProgress] = []
        assert fetch(folder, spec_of(server.url + "/f"), progress=seen.append) == CONTENT
    assert [request.offset for request in server.requests] == [0, 1_000_000, 2_000_000]
    assert all(request.headers.get("if-range") == '"1"' for request in server.requests[1:])
    assert {progress.attempt for progress in seen} == {1, 2, 3}
    assert seen[-1].total == len(CONTENT)


def test_server_without_validators_is_resumed_if_a_checksum_tells_in_the_end(folder: str) -> None:
    def handler(request: Request) -> None:
        request.serve(CONTENT, upto=1_000_000 if request.number == 1 else None)

    with scripted(handler) as server:
        assert fetch(folder, spec_of(server.url + "/f")) == CONTENT
    assert [request.offset for request in server.requests] == [0, 1_000_000]
    with scripted(handler) as server:
        assert fetch(folder, spec_of(server.url + "/f", content=None)) == CONTENT
    assert [request.offset for request in server.requests] == [0, 0]


def test_file_that_changes_between_attempts_starts_over(folder: str) -> None:
    other = secrets.token_bytes(len(CONTENT))

    def handler(request: Request) -> None:
        if request.number == 1:
            request.serve(other, '"1"', upto=1_000_000)
        else:
            request.serve(CONTENT, '"2"')

    with scripted(handler) as server:
        assert fetch(folder, spec_of(server.url + "/f")) == CONTENT
    assert [request.headers.get("range") for request in server.requests] == [None, "bytes=1000000-"]


def test_file_that_changes_unnoticed_starts_over(folder: str) -> None:
    other = secrets.token_bytes(len(CONTENT))

    def handler(request: Request) -> None:
        # The same size, and nothing that tells them apart.
        request.serve(other if request.number == 1 else CONTENT, upto=1_000_000 if request.number == 1 else None)

    with scripted(handler) as server:
        assert fetch(folder, spec_of(server.url + "/f")) == CONTENT
    assert [request.offset for request in server.requests] == [0, 1_000_000, 0]


@pytest.mark.parametrize(
    "content_range",
    ["bytes 5-{last}/{size}", "bytes 1000000-{last}/{more}", "bytes 1000000-5/{size}", "", "bytes */{size}", "lines 1-2/3"],
)
def test_part_that_is_not_what_was_asked_for_starts_over(folder: str, content_range: str) -> None:
    def handler(request: Request) -> None:
        if request.number == 1:
            request.serve(CONTENT, '"1"', upto=1_000_000)
        if request.offset:
            lie = content_range.format(last=len(CONTENT) - 1, size=len(CONTENT), more=len(CONTENT) + 1)
            request.answer(206, CONTENT[1_000_000:], {"Content-Range": lie, "ETag": '"1"'})
        else:
            request.serve(CONTENT, '"1"')

    with scripted(handler) as server:
        assert fetch(folder, spec_of(server.url + "/f")) == CONTENT
    assert [request.offset for request in server.requests] == [0, 1_000_000, 0]


def test_part_of_a_file_that_shrank_starts_over(folder: str) -> None:
    small = b"small"

    def handler(request: Request) -> None:
        if request.number == 1:
            request.serve(CONTENT, '"1"', upto=1_000_000)
        elif request.offset:
            request.answer(416, headers={"Content-Range": f"bytes */{len(small)}"})
        else:
            request.serve(small, '"2"')

    with scripted(handler) as server:
        assert fetch(folder, spec_of(server.url + "/f", content=small)) == small


def test_part_that_is_whole_needs_no_more(folder: str) -> None:
    def handler(request: Request) -> None:
        if request.offset:
            request.answer(416, headers={"Content-Range": f"bytes */{len(CONTENT)}"})
        else:
            request.send(b'HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\nETag: "1"\r\n\r\n')
            request.send(b"%x\r\n" % len(CONTENT) + CONTENT + b"\r\n")
            raise ConnectionAbortedError  # before the last chunk

    with scripted(handler) as server:
        assert fetch(folder, spec_of(server.url + "/f")) == CONTENT


@pytest.mark.parametrize("said", [len(CONTENT) + 1, len(CONTENT) - 1])
def test_lies_about_the_length(folder: str, said: int) -> None:
    """A file that is whole by its checksum is taken although the server had announced more; one that was cut short is wrong."""

    def handler(request: Request) -> None:
        request.answer(200, CONTENT, length=said)
        raise ConnectionAbortedError

    with scripted(handler) as server:
        if said > len(CONTENT):
            assert fetch(folder, spec_of(server.url + "/f")) == CONTENT
        else:
            failure(folder, spec_of(server.url + "/f"), WrongChecksum)


def test_stalled_server_is_given_up_and_asked_again(folder: str) -> None:
    def handler(request: Request) -> None:
        if request.number == 1:
            request.answer(200, CONTENT[:1_000_000], {"ETag": '"1"'}, length=len(CONTENT))
            server.done.wait()
        request.serve(CONTENT, '"1"')

    with scripted(handler) as server:
        assert fetch(folder, spec_of(server.url + "/f"), limits=replace(LIMITS, stall_seconds=0.3)) == CONTENT
    assert server.requests[1].offset == 1_000_000


def test_trickle_is_a_stall(folder: str) -> None:
    def handler(request: Request) -> None:
        request.answer(200, b"", length=1000)
        for _ in range(1000):
            request.send(b"x")
            if server.done.wait(0.05):
                return

    with scripted(handler) as server:
        limits = replace(LIMITS, stall_seconds=0.3)
        error = failure(folder, spec_of(server.url + "/f"), FetchUnavailable, limits=limits, policy=replace(PROMPT, rounds=1))
    assert "less than 1024 bytes in 0.3 s" in str(error)


def test_server_that_never_answers(folder: str) -> None:
    with scripted(lambda request: server.hold()) as server:
        limits = replace(LIMITS, connect_seconds=0.1, stall_seconds=0.2)
        error = failure(folder, spec_of(server.url + "/f"), FetchUnavailable, limits=limits, policy=replace(PROMPT, rounds=1))
    assert "does not answer within 0.3 s" in str(error)


def test_total_time_is_bounded(folder: str) -> None:
    with scripted(lambda request: server.hold()) as server:
        error = failure(folder, spec_of(server.url + "/f", total_seconds=0.2), FetchUnavailable)
    check_error(error, FetchUnavailable, "fetch-unavailable", 75, "within 0.2 s", "goes on where it stopped", retryable=True)


def test_retry_after_is_obeyed(folder: str) -> None:
    def handler(request: Request) -> None:
        if request.number == 1:
            request.answer(429, headers={"Retry-After": "1"})
        else:
            request.serve(CONTENT)

    with scripted(handler) as server:
        began = time.monotonic()
        seen: list[FetchProgress] = []
        assert fetch(folder, spec_of(server.url + "/f"), progress=seen.append) == CONTENT
        assert time.monotonic() - began > 0.9
    assert any("429" in progress.waiting for progress in seen)


def test_server_that_wants_too_much_patience_is_given_up(folder: str) -> None:
    with scripted(lambda request: request.answer(503, headers={"Retry-After": "100000"})) as server:
        error = failure(folder, spec_of(server.url + "/f"))
    assert "come back in 100000 s" in str(error)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "times"), [(408, 3), (425, 3), (429, 3), (500, 3), (503, 3), (400, 1), (401, 1), (403, 1), (410, 1), (204, 1)]
)
def test_what_is_asked_again(folder: str, status: int, times: int) -> None:
    with scripted(lambda request: request.answer(status)) as server:
        failure(folder, spec_of(server.url + "/f"), FetchUnavailable if times > 1 else FetchFailed)
    assert len(server.requests) == times


def test_redirects_in_a_circle(folder: str) -> None:
    def handler(request: Request) -> None:
        request.answer(302, headers={"Location": "/b" if request.target == "/a" else "/a"})

    with scripted(handler) as server:
        assert "in a circle" in str(failure(folder, spec_of(server.url + "/a")))
    assert len(server.requests) == 2


def test_redirects_without_end(folder: str) -> None:
    with scripted(lambda request: request.answer(302, headers={"Location": f"/{request.number}"})) as server:
        assert "more than 10 times" in str(failure(folder, spec_of(server.url + "/a")))
    assert len(server.requests) == 11


@pytest.mark.parametrize("location", ["file:///etc/passwd", "", "ftp://x/y", "http://[", "http://exa mple/"])
def test_redirects_to_nowhere(folder: str, location: str) -> None:
    with scripted(lambda request: request.answer(302, headers={"Location": location})) as server:
        assert "redirects" in str(failure(folder, spec_of(server.url + "/a")))


def test_bytes_are_those_of_the_server(folder: str) -> None:
    packed = gzip.compress(CONTENT[:10_000])

    def handler(request: Request) -> None:
        assert request.headers["accept-encoding"] == "identity"
        request.answer(200, packed, {"Content-Encoding": "gzip"})

    with scripted(handler) as server:
        assert fetch(folder, spec_of(server.url + "/f", content=packed)) == packed


@pytest.mark.parametrize("says_so", [True, False])
def test_size_limit(folder: str, says_so: bool) -> None:
    def handler(request: Request) -> None:
        if says_so:
            request.answer(200, CONTENT)
        else:
            request.send(b"HTTP/1.1 200 X\r\nConnection: close\r\n\r\n" + CONTENT)
            raise ConnectionAbortedError

    with scripted(handler) as server:
        error = failure(folder, spec_of(server.url + "/f", max_bytes=1_000_000))
    assert "1000000 bytes that are allowed" in str(error)
    assert left(folder) == []
    assert len(server.requests) == 1
    with scripted(handler) as server:
        assert fetch(folder, spec_of(server.url + "/f", max_bytes=len(CONTENT))) == CONTENT


def test_what_is_no_http(folder: str) -> None:
    def handler(request: Request) -> None:
        request.send(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
        raise ConnectionAbortedError

    with scripted(handler) as server:
        assert "does not speak HTTP" in str(failure(folder, spec_of(server.url + "/f"), FetchUnavailable))


# --- a wrong checksum -------------------------------------------------------------------------------------


def test_wrong_checksum_keeps_the_bytes_aside(folder: str) -> None:
    expected, found = sha256(b"another"), sha256(CONTENT)
    with scripted(lambda request: request.serve(CONTENT)) as server:
        error = failure(folder, spec_of(server.url + "/f?token=hidden", content=b"another"), WrongChecksum)
    facts = [expected.hex, expected.sri, found.hex, found.sri, folder, f"{server.url}/f?token=…"]
    check_error(error, WrongChecksum, "wrong-checksum", 65, *facts)
    assert isinstance(error, WrongChecksum)
    assert error.kept is not None
    assert Path(error.kept).read_bytes() == CONTENT
    assert "hidden" not in str(error)
    assert len(server.requests) == 1
    assert left(folder) == [f"wrong/sha256-{found.hex}"]


def test_d59_wrong_file_does_not_spoil_the_next_fetch(folder: str) -> None:
    with scripted(lambda request: request.serve(b"wrong" if request.number == 1 else CONTENT)) as server:
        failure(folder, spec_of(server.url + "/f"), WrongChecksum)
        assert fetch(folder, spec_of(server.url + "/f")) == CONTENT


def test_d59_equal_names_do_not_mix(folder: str) -> None:
    contents = {"/a/file": CONTENT, "/b/file": CONTENT[::-1]}

    def handler(request: Request) -> None:
        request.serve(contents[request.target], upto=1_000_000 if request.number <= 2 else None)

    with scripted(handler) as server:

        async def main() -> None:
            async with running_fetcher(folder, policy=PROMPT) as fetcher, trio.open_nursery() as nursery:
                for target, content in contents.items():
                    nursery.start_soon(check, fetcher, spec_of(server.url + target, content=content), content)

        within_test(main)


async def check(fetcher: Fetcher, spec: FetchSpec, content: bytes, environment: Optional[FetchEnvironment] = None, owner: str = "") -> None:
    async with fetcher.fetched(spec, environment, owner=owner) as file:
        assert content_of(file) == content


# --- mirrors ----------------------------------------------------------------------------------------------


def test_mirrors_are_asked_in_order(folder: str) -> None:
    def handler(request: Request) -> None:
        if request.target == "/good":
            request.serve(CONTENT)
        elif request.target == "/wrong":
            request.serve(b"wrong")
        else:
            request.answer(404)

    with scripted(handler) as server:
        urls = [f"{server.url}/{name}" for name in ("missing", "wrong", "good", "never")]
        assert fetch(folder, spec_of("http://127.0.0.1:1/refused", *urls)) == CONTENT
    assert [request.target for request in server.requests] == ["/missing", "/wrong", "/good"]


def test_mirror_goes_on_where_another_broke_off(folder: str) -> None:
    def handler(request: Request) -> None:
        if request.target == "/one":
            request.serve(CONTENT, '"1"', upto=1_000_000)
        request.serve(CONTENT, '"other"')

    with scripted(handler) as server:
        assert fetch(folder, spec_of(server.url + "/one", server.url + "/two"), policy=replace(PROMPT, rounds=1)) == CONTENT
    assert [(request.target, request.offset) for request in server.requests] == [("/one", 0), ("/two", 1_000_000)]
    assert "if-range" not in server.requests[1].headers


def test_failing_server_is_asked_last_for_a_while(folder: str) -> None:
    with scripted(lambda request: request.serve(CONTENT)) as good, scripted(lambda request: request.answer(500)) as bad:

        async def main() -> None:
            async with running_fetcher(folder, policy=PROMPT) as fetcher:
                for number in range(3):
                    await check(fetcher, spec_of(f"{bad.url}/{number}", f"{good.url}/{number}"), CONTENT)

        within_test(main)
    assert len(bad.requests) == 1
    assert len(good.requests) == 3


def test_hashed_mirrors_come_first(folder: str) -> None:
    def handler(request: Request) -> None:
        if request.target == f"/base/sha256/{sha256(CONTENT).hex}":
            request.serve(CONTENT)
        else:
            request.answer(404)

    with scripted(handler) as server:
        spec = replace(spec_of("http://127.0.0.1:1/refused"), headers=checked_headers({"X-Secret": "s3cret"}, "test"))
        assert fetch(folder, spec, hashed_mirrors=[f"{server.url}/none", f"{server.url}/base/"]) == CONTENT
        assert fetch(folder, spec, FetchEnvironment(hashed_mirrors=(f"{server.url}/base",))) == CONTENT
    assert [request.target.split("/")[1] for request in server.requests] == ["none", "base", "base"]
    assert not any("x-secret" in request.headers for request in server.requests)


# --- what cannot be asked for -----------------------------------------------------------------------------


def test_specs_that_name_nothing(folder: str) -> None:
    with pytest.raises(Misuse, match="one URL or more"):
        fetch(folder, FetchSpec(()))
    for url in ("ftp://x/y", "file:///etc/passwd", "x", "http://", "http://a b/"):
        with pytest.raises(InvalidURL):
            fetch(folder, FetchSpec((url,)))


def test_disk_that_takes_no_more(folder: str) -> None:
    def handler(request: Request) -> None:
        request.serve(CONTENT)

    with scripted(handler) as server:
        spec = spec_of(server.url + "/f")
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limit[1]))
        try:
            with pytest.raises(StoreError):
                fetch(folder, spec)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert fetch(folder, spec) == CONTENT
