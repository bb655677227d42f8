"""A fetch over a simulated server that breaks off, changes its file and lies: it ends with the right bytes or says that it did not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

from hypothesis import given
from hypothesis import strategies as st

from pylightnix.fetch import ALGORITHMS, Checksum, parse_checksum
from pylightnix.fetch.resuming import Append, Misled, Resumable, StartOver, Whole, answered, range_headers, source_id
from pylightnix.fetch.retrying import Failure, FetchPlan, GiveUp, Pause, RetryPolicy, Try
from pylightnix.fetch.urls import shown_url

# --- checksums and URLs -----------------------------------------------------------------------------------


@given(st.sampled_from(sorted(ALGORITHMS)), st.data())
def test_every_spelling_is_read_back(algorithm: str, data: st.DataObject) -> None:
    size = ALGORITHMS[algorithm]
    found = Checksum(algorithm, data.draw(st.binary(min_size=size, max_size=size)).hex())
    for text in (found.hex, found.hex.upper(), found.nix32, found.sri, f"{algorithm}:{found.nix32}"):
        assert parse_checksum(text, algorithm) == found


SECRETS = st.text("abcdefghijklmnopqrstuvwxyz", min_size=12, max_size=20)


@given(SECRETS, SECRETS, SECRETS)
def test_shown_url_has_no_secret(user: str, password: str, value: str) -> None:
    shown = shown_url(f"https://{user}:{password}@host.example:8443/path?key={value}#{value}")
    assert shown == "https://host.example:8443/path?key=…"


# --- resuming ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Served:
    """What a server has at the moment of one request, and how far the transfer gets."""

    content: bytes
    etag: Optional[str]
    last_modified: Optional[str]
    honours_range: bool
    breaks_at: int
    says_length: bool


def serve(served: Served, asked: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
    """Answer as RFC 9110 has it, for a server with these traits; the body may be cut."""
    headers = {}
    if served.etag:
        headers["etag"] = served.etag
    if served.last_modified:
        headers["last-modified"] = served.last_modified
    condition = asked.get("If-Range")
    holds = condition is None or condition in (served.etag, served.last_modified)
    if "Range" in asked and served.honours_range and holds:
        start = int(asked["Range"].removeprefix("bytes=").removesuffix("-"))
        if start >= len(served.content):
            return 416, {"content-range": f"bytes */{len(served.content)}"}, b""
        headers["content-range"] = f"bytes {start}-{len(served.content) - 1}/{len(served.content)}"
        return 206, headers, served.content[start:][: served.breaks_at]
    if served.says_length:
        headers["content-length"] = str(len(served.content))
    return 200, headers, served.content[: served.breaks_at]


CONTENT = st.binary(min_size=1, max_size=24)
SERVED = st.builds(
    Served,
    content=CONTENT,
    etag=st.sampled_from([None, '"1"', '"2"', 'W/"1"']),
    last_modified=st.sampled_from([None, "Thu, 26 Nov 2026 12:00:00 GMT"]),
    honours_range=st.booleans(),
    breaks_at=st.integers(0, 24),
    says_length=st.booleans(),
)


@given(CONTENT, st.lists(st.tuples(st.sampled_from("ab"), SERVED), max_size=8), st.booleans())
def test_bytes_are_right_or_found_out(wanted: bytes, requests: list[tuple[str, Served]], checked: bool) -> None:
    """Equal validators mean equal content. Whatever else happens, bytes of two files are mixed only if a checksum tells."""
    honest: dict[tuple[str, str], bytes] = {}
    have, known = b"", None
    parts: list[bytes] = []  # the files that bytes at hand are of
    for server, served in requests:
        content = wanted if served.etag is None and served.last_modified is None else served.content
        validator = served.etag if served.etag and not served.etag.startswith("W/") else served.last_modified
        if validator:
            content = honest.setdefault((server, validator), content)
        served = Served(
            content,
            served.etag if validator == served.etag else None,
            served.last_modified if validator == served.last_modified else None,
            served.honours_range,
            served.breaks_at,
            served.says_length,
        )
        source = source_id(f"http://{server}/")
        asked = range_headers(len(have), known, source, checked=checked)
        status, headers, body = serve(served, asked)
        meaning = answered(status, headers, have=len(have), known=known, source=source, asked_range="Range" in asked)
        if isinstance(meaning, StartOver):
            have, known, parts = body, meaning.known, [served.content]
        elif isinstance(meaning, Append):
            assert meaning.end == len(served.content)
            have, known, parts = have + body, meaning.known, [*parts, served.content]
        elif isinstance(meaning, Misled):
            have, known, parts = b"", None, []
        elif isinstance(meaning, Whole):
            assert len(have) == len(served.content)
        if len(set(parts)) > 1:
            assert checked, "bytes of two files, and nothing to find that out"
        elif parts:
            assert parts[0].startswith(have)


@given(st.integers(0, 50), st.integers(0, 60), st.integers(0, 60), st.one_of(st.none(), st.integers(0, 80)), st.text(max_size=30))
def test_answers_of_any_kind_are_judged(have: int, first: int, last: int, total: Optional[int], noise: str) -> None:
    known = Resumable("s", '"1"', None, total)
    for text in (f"bytes {first}-{last}/{'*' if total is None else total}", noise):
        found = answered(206, {"content-range": text}, have=have, known=known, source="s", asked_range=True)
        assert isinstance(found, (Append, Misled))
        if isinstance(found, Append):
            assert first == have <= last
            assert found.end == last + 1


# --- the plan ---------------------------------------------------------------------------------------------

OUTCOMES = st.fixed_dictionaries(
    {
        "is_permanent": st.booleans(),
        "starts_over": st.booleans(),
        "is_stall": st.booleans(),
        "gained_bytes": st.sampled_from([0, 50, 1 << 14, 1 << 20]),
        "retry_after_seconds": st.one_of(st.none(), st.floats(0, 1000)),
    }
)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=3), st.lists(OUTCOMES, max_size=60), st.floats(0, 1))
def test_plan_ends_and_is_patient(urls: list[str], outcomes: list[dict[str, Any]], fraction: float) -> None:
    policy = RetryPolicy(rounds=3)
    plan = FetchPlan(urls, policy)
    now, tries = 0.0, 0
    not_before: dict[str, float] = {}
    gone: set[str] = set()
    at_once = useful = 0
    for _ in range(1000):
        step = plan.next_step(now, fraction)
        if isinstance(step, GiveUp):
            assert step.is_retryable == bool(set(urls) - gone)
            break
        if isinstance(step, Pause):
            assert 0 <= step.seconds <= policy.retry_after_max_seconds + policy.cap_seconds
            now += step.seconds
            continue
        assert isinstance(step, Try)
        tries += 1
        assert step.attempt == tries
        assert step.url not in gone
        assert not_before.get(step.url, 0.0) <= now + 1e-6
        failure = Failure(step.url, "x", **(outcomes.pop() if outcomes else {}))
        plan.failed(failure, now)
        wait = failure.retry_after_seconds
        if failure.is_permanent or (wait is not None and wait > policy.retry_after_max_seconds):
            gone.add(step.url)
        elif failure.starts_over or policy.is_much(failure):
            at_once += 1
        elif wait is not None:
            not_before[step.url] = now + wait
        useful += failure.gained_bytes >= policy.some_bytes
    else:
        raise AssertionError("the plan never ends")
    assert tries <= policy.rounds * len(set(urls)) * (useful + 1) + at_once
