"""Servers that redirect to what is hardly a URL, and servers that answer a question for the rest of a file in odd ways."""

from __future__ import annotations

import gzip
import secrets
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.fetch.servers import Request, scripted
from tests.fetch.test_fetcher import failure, fetch, spec_of

from pylightnix import FetchUnavailable

CONTENT = secrets.token_bytes(400_000)
BROKEN_AT = 250_000
ETAG = '"1"'

# --- redirects --------------------------------------------------------------------------------------------

LOCATIONS = [
    (b"/my file.bin", "/my%20file.bin"),
    (b"my file.bin", "/d/my%20file.bin"),
    (b"/a\tb", "/ab"),
    ("/Zürich.bin".encode(), "/Z%C3%BCrich.bin"),
    ("/Zürich.bin".encode("latin-1"), "/Z%FCrich.bin"),
    ("/f?name=ü x".encode(), "/f?name=%C3%BC%20x"),
    (b"/already%20there%2Fx", "/already%20there%2Fx"),
    (b"../up", "/up"),
    (b"?x=1", "/d/a?x=1"),
    (b"/g#part two", "/g"),
    (b"\\d\\back", "/d/back"),
    (b"/q?path=c:\\x", "/q?path=c:\\x"),
    (b"//127.0.0.1:PORT/relative", "/relative"),
    (b"\\\\127.0.0.1:PORT\\relative", "/relative"),
    (b"http://127.0.0.1:PORT/an absolute one", "/an%20absolute%20one"),
    (b"HTTP://127.0.0.1:PORT/loud", "/loud"),
    (b"http:/one/slash", "/one/slash"),
    (b"  /padded  ", "/padded"),
    (b"/first\r\nLocation: /second", "/first"),
    (b"\r\nLocation: /second", "/second"),
    (b"/comma,and,more", "/comma,and,more"),
]


def test_locations_are_read_as_browsers_read_them(folder: str) -> None:
    location = b""

    def handler(request: Request) -> None:
        if request.target == "/d/a":
            request.send(b"HTTP/1.1 302 Found\r\nLocation: %b\r\nContent-Length: 0\r\n\r\n" % location)
        else:
            request.answer(200, b"hi")

    with scripted(handler) as server:
        for each, target in LOCATIONS:
            location = each.replace(b"PORT", str(server.port).encode())
            assert fetch(folder, spec_of(f"{server.url}/d/a", content=b"hi", is_fresh=True)) == b"hi", each
            assert server.requests[-1].target == target, each


@pytest.mark.parametrize("location", [b"", b"   ", b"http://[::1/x", b"http://h:port/", b"http://\xfc.example/", b"file:///etc/passwd"])
def test_locations_that_lead_nowhere_are_told(folder: str, location: bytes) -> None:
    with scripted(lambda request: request.send(b"HTTP/1.1 302 Found\r\nLocation: %b\r\nContent-Length: 0\r\n\r\n" % location)) as server:
        assert " redirects " in str(failure(folder, spec_of(f"{server.url}/a")))
    assert len(server.requests) == 1


# --- the rest of a file -----------------------------------------------------------------------------------

Answer = Callable[[Request], None]


def rest(request: Request) -> bytes:
    return CONTENT[request.offset :]


def range_of(request: Request) -> str:
    return f"bytes {request.offset}-{len(CONTENT) - 1}/{len(CONTENT)}"


def chunked(request: Request, status: int, body: bytes, *headers: str) -> None:
    lines = [f"HTTP/1.1 {status} X", "Transfer-Encoding: chunked", *headers]
    request.send("\r\n".join([*lines, "", ""]).encode() + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))


def until_closed(request: Request, status: int, body: bytes, *headers: str) -> None:
    request.send("\r\n".join([f"HTTP/1.1 {status} X", "Connection: close", *headers, "", ""]).encode() + body)
    raise ConnectionAbortedError


def multipart(request: Request) -> None:
    part = f"--x\r\nContent-Range: {range_of(request)}\r\n\r\n".encode() + rest(request) + b"\r\n--x--\r\n"
    request.answer(206, part, {"Content-Type": "multipart/byteranges; boundary=x", "ETag": ETAG})


ODD_ANSWERS: dict[str, Answer] = {
    "200, a part, and says so": lambda r: r.answer(200, rest(r), {"Content-Range": range_of(r), "ETag": ETAG}),
    "200, a part, and names another": lambda r: r.answer(200, rest(r), {"Content-Range": "bytes 7-9/20"}),
    "200, a part, and says nonsense": lambda r: r.answer(200, rest(r), {"Content-Range": "most of it"}),
    "200, a part, and does not say so": lambda r: r.answer(200, rest(r), {"ETag": ETAG}),
    "200, a part, without validators": lambda r: r.answer(200, rest(r)),
    "200, a part, chunked": lambda r: chunked(r, 200, rest(r), f"ETag: {ETAG}"),
    "200, a part, until it closes": lambda r: until_closed(r, 200, rest(r)),
    "200, all, and names it all": lambda r: r.answer(200, CONTENT, {"Content-Range": f"bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}"}),
    "200, all, and names a part": lambda r: r.answer(200, CONTENT, {"Content-Range": range_of(r)}),
    "203, all": lambda r: r.answer(203, CONTENT),
    "206, without a range": lambda r: r.answer(206, rest(r), {"ETag": ETAG}),
    "206, another range": lambda r: r.answer(206, rest(r), {"Content-Range": f"bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}"}),
    "206, a range that is not what comes": lambda r: chunked(r, 206, rest(r)[::-1], f"Content-Range: {range_of(r)}"),
    "206, all of it under the right range": lambda r: until_closed(r, 206, CONTENT, f"Content-Range: {range_of(r)}"),
    "206, multipart": multipart,
    "206, the length of the whole": lambda r: r.answer(206, rest(r), {"Content-Range": range_of(r)}, length=len(CONTENT)),
    "206, another ETag": lambda r: r.answer(206, rest(r), {"Content-Range": range_of(r), "ETag": '"2"'}),
    "206, compressed": lambda r: r.answer(
        206, gzip.compress(rest(r)), {"Content-Range": range_of(r), "Content-Encoding": "gzip", "ETag": ETAG}
    ),
    "200, another ETag": lambda r: r.answer(200, CONTENT, {"ETag": '"2"'}),
    "416, without a size": lambda r: r.answer(416),
    "416, another size": lambda r: r.answer(416, headers={"Content-Range": "bytes */5"}),
    "400": lambda r: r.answer(400),
    "412": lambda r: r.answer(412),
    "501": lambda r: r.answer(501),
}


def breaks_off(request: Request, headers: dict[str, str]) -> None:
    request.answer(200, CONTENT[:BROKEN_AT], headers, length=len(CONTENT))
    raise ConnectionAbortedError


@pytest.mark.parametrize("validators", [{"ETag": ETAG}, {"ETag": f"W/{ETAG}"}, {"Last-Modified": "Thu, 26 Nov 2026 12:00:00 GMT"}, {}])
def test_odd_answers_to_a_range_end_with_the_right_file(tmp_path: Path, validators: dict[str, str]) -> None:
    for number, (title, odd) in enumerate(ODD_ANSWERS.items()):

        def handler(request: Request, odd: Answer = odd) -> None:
            if request.number == 1:
                breaks_off(request, validators)
            elif "range" in request.headers:
                odd(request)
            else:
                request.answer(200, CONTENT, validators)

        with scripted(handler) as server:
            assert fetch(str(tmp_path / str(number)), spec_of(f"{server.url}/f", content=CONTENT)) == CONTENT, title
        assert len(server.requests) <= 5, title


def test_server_that_always_breaks_off_and_answers_ranges_oddly_is_given_up(tmp_path: Path) -> None:
    for number, (title, odd) in enumerate(ODD_ANSWERS.items()):
        if ", all" in title or title in ("200, a part, and says so", "200, another ETag", "206, all of it under the right range"):
            continue  # the file can be had from these

        def handler(request: Request, odd: Answer = odd) -> None:
            if "range" in request.headers:
                odd(request)
            else:
                breaks_off(request, {"ETag": ETAG})

        with scripted(handler) as server:
            failure(str(tmp_path / str(number)), spec_of(f"{server.url}/f", content=CONTENT), FetchUnavailable)
        assert len(server.requests) <= 20, title


def test_nothing_is_spliced_where_no_checksum_would_tell(tmp_path: Path) -> None:
    for number, (title, odd) in enumerate(ODD_ANSWERS.items()):
        if title in ("206, a range that is not what comes", "206, all of it under the right range", "200, a part, until it closes"):
            continue  # lies that nothing tells
        if title in ("200, a part, without validators", "200, a part, chunked"):
            continue  # for another file, as far as anyone knows

        def handler(request: Request, odd: Answer = odd) -> None:
            if request.number == 1:
                breaks_off(request, {"ETag": ETAG})
            elif "range" in request.headers:
                odd(request)
            else:
                request.answer(200, CONTENT, {"ETag": ETAG})

        with scripted(handler) as server:
            assert fetch(str(tmp_path / str(number)), spec_of(f"{server.url}/f", content=None)) == CONTENT, title


def test_server_that_answers_200_to_ranges_is_resumed(folder: str) -> None:
    def handler(request: Request) -> None:
        start, end = request.offset, min(request.offset + 150_000, len(CONTENT))
        headers = {"ETag": ETAG, **({"Content-Range": range_of(request)} if start else {})}
        request.answer(200, CONTENT[start:end], headers, length=len(CONTENT) - start)
        raise ConnectionAbortedError

    with scripted(handler) as server:
        assert fetch(folder, spec_of(f"{server.url}/f", content=CONTENT)) == CONTENT
    assert [request.offset for request in server.requests] == [0, 150_000, 300_000]


def test_whole_file_that_is_shorter_than_announced(folder: str) -> None:
    """The checksum says that nothing is missing."""
    with scripted(lambda request: until_closed(request, 200, CONTENT, f"Content-Length: {len(CONTENT) + 7}")) as server:
        assert fetch(folder, spec_of(f"{server.url}/f", content=CONTENT)) == CONTENT
    assert len(server.requests) == 1


def test_206_that_nobody_asked_for(folder: str) -> None:
    def all_of_it(request: Request) -> None:
        request.answer(206, CONTENT, {"Content-Range": f"bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}"})

    def by_and_by(request: Request) -> None:
        end = min(request.offset + 150_000, len(CONTENT))
        request.answer(206, CONTENT[request.offset : end], {"Content-Range": f"bytes {request.offset}-{end - 1}/{len(CONTENT)}"})

    for handler in (all_of_it, by_and_by):
        with scripted(handler) as server:
            assert fetch(folder, spec_of(f"{server.url}/f", content=CONTENT, is_fresh=True)) == CONTENT
    with scripted(
        lambda request: request.answer(206, CONTENT[5:], {"Content-Range": f"bytes 5-{len(CONTENT) - 1}/{len(CONTENT)}"})
    ) as server:
        failure(folder, replace(spec_of(f"{server.url}/f", content=CONTENT), is_fresh=True))


ODD_HEADS = [
    b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nhi",
    b"HTTP/1.0 200 OK\r\n\r\nhi",
    b"HTTP/1.1 200 OK\nContent-Length: 2\n\nhi",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nhi",
    b"HTTP/1.1 200 OK\r\nContent-Length: 77\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nhi\r\n0\r\nX: trailer\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
    b"HTTP/1.1 200 OK\r\nETag: W/weak, \xff\xfe\r\nLast-Modified: never\r\nContent-Length: 2\r\n\r\nhi",
    b"HTTP/1.1 200 OK\r\nContent-Range: bytes 5-6/7\r\nContent-Length: 2\r\n\r\nhi",
    b"HTTP/1.1 203 Changed\r\nContent-Encoding: identity\r\nContent-Length: 2\r\n\r\nhi",
]


@pytest.mark.parametrize("checked", [True, False])
def test_odd_heads_of_answers(folder: str, checked: bool) -> None:
    for head in ODD_HEADS:

        def handler(request: Request, head: bytes = head) -> None:
            request.send(head)
            raise ConnectionAbortedError

        with scripted(handler) as server:
            assert fetch(folder, spec_of(f"{server.url}/f", content=b"hi" if checked else None, is_fresh=True)) == b"hi", head
        assert len(server.requests) == 1
