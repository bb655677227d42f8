"""What a fetch decides, as tables: checksums, URLs, redirects, retries, environment, leftovers."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import subprocess
from datetime import UTC, datetime
from email.utils import formatdate
from pathlib import Path
from typing import Any, Optional

import pytest

from pylightnix import FetchSetupError, InvalidChecksum, InvalidURL
from pylightnix.fetch import ALGORITHMS, Checksum, FetchEnvironment, Login, parse_checksum, read_environment
from pylightnix.fetch.locks import KeyLocks
from pylightnix.fetch.mirrors import FailureMemory, hashed_urls
from pylightnix.fetch.parts import make_fetch_folder
from pylightnix.fetch.redirects import RedirectRefused, is_same_party, redirected
from pylightnix.fetch.retrying import Failure, FetchPlan, GiveUp, Pause, RetryPolicy, Try, is_worth_retrying, parse_retry_after
from pylightnix.fetch.spec import FetchSpec, Speedometer
from pylightnix.fetch.sweeping import Leftover, expired, sweep
from pylightnix.fetch.urls import check_url, file_name_of, local_path_of, shown_text, shown_url, userinfo_of, without_userinfo

HELLO_HEX = "31e066137a962676e89f69d1b65382de95a7ef7d914b8cb956f41ea72e0f516b"
HELLO_NIX32 = "0ssi1wpaf7plaswqqjwigppsg5fyh99vdlb9kzl7c9lng89ndq1i"
HELLO_SRI = "sha256-MeBmE3qWJnbon2nRtlOC3pWn732RS4y5VvQepy4PUWs="


# --- checksums --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [HELLO_HEX, HELLO_HEX.upper(), HELLO_NIX32, HELLO_SRI, f"sha256:{HELLO_HEX}", f"sha256:{HELLO_NIX32}"])
def test_spellings_of_one_checksum(text: str) -> None:
    found = parse_checksum(text, "sha256")
    assert (found.hex, found.nix32, found.sri) == (HELLO_HEX, HELLO_NIX32, HELLO_SRI)


@pytest.mark.parametrize(
    ("text", "algorithm", "problem"),
    [
        ("", "sha256", "0 hexadecimal digits, not 64"),
        (HELLO_HEX[:-1], "sha256", "63 hexadecimal digits, not 64"),
        (HELLO_HEX, "sha1", "64 hexadecimal digits, not 40"),
        (HELLO_HEX[:-1] + "g", "sha256", "neither 64 hexadecimal digits"),
        (HELLO_NIX32[:-1] + "e", "sha256", "52 of Nix's base 32"),
        ("z" * 52, "sha256", "neither"),  # more than 256 bits
        (HELLO_SRI[:-1], "sha256", "neither"),
        (HELLO_SRI[:-2] + "t=", "sha256", "neither"),  # spare bits
        (HELLO_SRI.replace("sha256", "sha512"), "sha256", "says that it is of sha512"),
        (HELLO_SRI, "sha512", "says that it is of sha256"),
        (f" {HELLO_HEX}", "sha256", "neither"),
        (None, "sha256", "NoneType"),
        (b"x", "sha256", "bytes"),
    ],
)
def test_what_is_no_checksum(text: Any, algorithm: str, problem: str) -> None:
    with pytest.raises(InvalidChecksum, match=problem) as raised:
        parse_checksum(text, algorithm)
    assert isinstance(raised.value, AssertionError)


@pytest.mark.skipif(shutil.which("nix-hash") is None, reason="nix-hash, the reference, is not installed")
@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_base32_is_that_of_nix(algorithm: str) -> None:
    found = Checksum(algorithm, hashlib.new(algorithm, b"x").hexdigest())
    said = subprocess.run(["nix-hash", "--type", algorithm, "--to-base32", found.hex], capture_output=True, text=True, check=True)
    assert found.nix32 == said.stdout.strip()


# --- URLs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://h/a/b.tar.gz?x=/y#z", "b.tar.gz"),
        ("https://h", ""),
        ("https://h/a/", ""),
        ("https://h/a%2Fb", "a%2Fb"),
        ("file:///x/y", "y"),
    ],
)
def test_file_names(url: str, name: str) -> None:
    assert file_name_of(check_url(url)) == name


@pytest.mark.parametrize(
    "url",
    [
        *("", "x", "/x", "ftp://h/x", "http://", "http:///x", "http://h:port/x", "http://h:99999/", "http://[::1", "http://a b/"),
        *("http://h/\n", "file://other/x", "file:x", "data:,x", "javascript:x", 3, None, b"http://h/"),
    ],
)
def test_what_is_no_url(url: Any) -> None:
    with pytest.raises(InvalidURL):
        check_url(url)


def test_no_password_in_what_is_said_of_a_url() -> None:
    for url in ("http://u:s3cret@h:port/x", "http://u:s3cret@h\n/", "ftp://u:s3cret@h/?k=s3cret", "http://u:s3cret@/x", "u:s3cret@h"):
        with pytest.raises(InvalidURL) as raised:
            check_url(url)
        assert "s3cret" not in str(raised.value)
        assert "s3cret" not in repr(vars(raised.value))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://u:p@h:1/a?b=c&d&e=#f", "http://h:1/a?b=…&…&e=…"),
        ("http://h/a", "http://h/a"),
        ("http://u@h/a", "http://h/a"),
        ("http://u:a@b@h/a", "http://h/a"),
    ],
)
def test_shown_urls(url: str, shown: str) -> None:
    assert shown_url(url) == shown
    assert shown_text("https://u:p@h/a?b#c") == "https://h/a"


def test_parts_of_urls() -> None:
    assert userinfo_of("http://a%40b:c%3Ad@h/") == ("a@b", "c:d")
    assert userinfo_of("http://h/") is None
    assert without_userinfo("http://a:b@h:1/c?d#e") == "http://h:1/c?d"
    assert local_path_of("file:///a%20b") == "/a b"
    assert local_path_of("file://localhost/a") == "/a"
    assert local_path_of("http://h/a") is None


# --- redirects --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "location", "url"),
    [
        ("http://h/a/b", "c", "http://h/a/c"),
        ("http://h/a/b", "/c", "http://h/c"),
        ("http://h/a/b", "//g/c", "http://g/c"),
        ("http://h/a", "https://h/a", "https://h/a"),
        ("https://h/a", " https://g/ ", "https://g/"),
    ],
)
def test_redirects(base: str, location: str, url: str) -> None:
    assert redirected([base], [location.encode()], insecure=False) == url


@pytest.mark.parametrize(
    ("visited", "location"),
    [
        (["https://h/a"], "http://h/a"),
        (["http://h/a"], "http://h/a"),
        (["http://h/a", "http://h/b"], "/a"),
        ([f"http://h/{n}" for n in range(11)], "/next"),
        (["http://h/a"], "file:///etc/passwd"),
        (["http://h/a"], "ftp://h/"),
        (["http://h/a"], ""),
        (["http://h/a"], "http://h:x/"),
    ],
)
def test_redirects_that_are_not_followed(visited: list[str], location: str) -> None:
    with pytest.raises(RedirectRefused):
        redirected(visited, [location.encode()], insecure=False)


def test_redirect_to_http_on_request() -> None:
    assert redirected(["https://h/a"], [b"http://h/a"], insecure=True) == "http://h/a"


@pytest.mark.parametrize(
    ("url", "other", "same"),
    [
        ("http://h/a", "http://h:80/b", True),
        ("http://h/a", "https://h/b", True),
        ("https://h/a", "http://h/b", False),
        ("http://h/a", "http://h:81/b", False),
        ("http://h/a", "http://sub.h/b", False),
        ("http://h:81/a", "https://h/b", False),
        ("http://H/a", "http://h./b", True),
    ],
)
def test_parties(url: str, other: str, same: bool) -> None:
    assert is_same_party(url, other) == same


# --- retries ----------------------------------------------------------------------------------------------

NOW = datetime(2026, 11, 26, 12, 0, 0, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        (" 120 ", 120.0),
        ("9" * 30, math.inf),
        (formatdate(NOW + 90, usegmt=True), 90.0),
        (formatdate(NOW - 90, usegmt=True), 0.0),
        ("Thursday, 26-Nov-26 12:00:05 GMT", 5.0),
        ("Thu Nov 26 12:00:05 2026", 5.0),
        ("-5", None),
        ("soon", None),
        ("", None),
        ("1.5", None),
    ],
)
def test_retry_after(text: Optional[str], seconds: Optional[float]) -> None:
    assert parse_retry_after(text, NOW) == seconds


def test_statuses() -> None:
    assert [status for status in range(400, 600) if is_worth_retrying(status)] == [408, 425, 429, *range(500, 600)]


def walk(plan: FetchPlan, outcomes: dict[str, list[Optional[Failure]]], fraction: float = 0.5) -> list[str]:
    """Follow a plan in a simulated clock; return what it did, as text."""
    now, story = 0.0, []
    while True:
        step = plan.next_step(now, fraction)
        if isinstance(step, Try):
            story.append(step.url)
            outcome = outcomes[step.url].pop(0)
            if outcome is None:
                return story
            plan.failed(outcome, now)
        elif isinstance(step, Pause):
            story.append(f"{step.seconds:g}")
            now += step.seconds
        else:
            return [*story, f"give up, {step.is_retryable}"]


def test_plan_of_mirrors() -> None:
    a, b = Failure("a", "x"), Failure("b", "x", is_permanent=True)
    plan = FetchPlan(["a", "b"], RetryPolicy(rounds=3, base_seconds=1.0))
    assert walk(plan, {"a": [a, a, a], "b": [b]}) == ["a", "b", "0.5", "a", "1", "a", "give up, True"]
    assert len(plan.failures) == 4


def test_plan_where_nothing_will_change() -> None:
    plan = FetchPlan(["a"], RetryPolicy())
    assert walk(plan, {"a": [Failure("a", "x", is_permanent=True)]}) == ["a", "give up, False"]


MEBI = 1 << 20


def test_plan_goes_on_as_long_as_there_is_much_progress() -> None:
    further = Failure("a", "x", gained_bytes=MEBI)
    plan = FetchPlan(["a", "b"], RetryPolicy(rounds=1))
    assert walk(plan, {"a": [further] * 20 + [None]}) == ["a"] * 21


def test_what_is_much_progress() -> None:
    policy = RetryPolicy()
    assert policy.is_much(Failure("a", "x", gained_bytes=MEBI))
    assert not policy.is_much(Failure("a", "x", gained_bytes=MEBI - 1))
    assert policy.is_much(Failure("a", "x", gained_bytes=2 * MEBI, total_bytes=200 * MEBI))
    assert not policy.is_much(Failure("a", "x", gained_bytes=2 * MEBI, total_bytes=201 * MEBI))


def test_plan_pauses_after_little_progress_and_takes_others_first() -> None:
    little, none = Failure("a", "x", gained_bytes=50), Failure("b", "x")
    policy = RetryPolicy(rounds=3, base_seconds=1.0)
    story = walk(FetchPlan(["a", "b"], policy), {"a": [little] * 3, "b": [none] * 3})
    assert story == ["a", "b", "0.5", "a", "b", "1", "a", "b", "give up, True"]
    # What is worth mentioning is not given up, but the pauses grow.
    some = Failure("a", "x", gained_bytes=policy.some_bytes)
    assert walk(FetchPlan(["a"], policy), {"a": [some] * 5 + [None]}) == ["a", "0.5", "a", "1", "a", "2", "a", "4", "a", "8", "a"]
    # After much, the pauses are short again.
    much = Failure("a", "x", gained_bytes=MEBI)
    assert walk(FetchPlan(["a"], policy), {"a": [some, some, much, some, None]}) == ["a", "0.5", "a", "1", "a", "a", "0.5", "a"]


def test_plan_takes_no_stall_for_progress_while_there_is_another_mirror() -> None:
    stall = Failure("a", "x", gained_bytes=50 * MEBI, is_stall=True)
    policy = RetryPolicy(rounds=3, base_seconds=1.0)
    assert walk(FetchPlan(["a", "b"], policy), {"a": [stall], "b": [None]}) == ["a", "b"]
    assert walk(FetchPlan(["a"], policy), {"a": [stall, None]}) == ["a", "a"]
    gone = Failure("b", "x", is_permanent=True)
    assert walk(FetchPlan(["b", "a"], policy), {"a": [stall, None], "b": [gone]}) == ["b", "a", "a"]


def test_plan_asks_again_at_once_for_what_starts_over() -> None:
    assert walk(FetchPlan(["a", "b"], RetryPolicy(rounds=1)), {"a": [Failure("a", "x", starts_over=True), None]}) == ["a", "a"]


def test_plan_obeys_retry_after() -> None:
    wait = Failure("a", "x", retry_after_seconds=7.0)
    plan = FetchPlan(["a", "b"], RetryPolicy(rounds=3, base_seconds=1.0))
    # b may be asked at once again, a only when it wants.
    assert walk(plan, {"a": [wait, None], "b": [Failure("b", "x"), Failure("b", "x"), Failure("b", "x")]}, 0.0)[:4] == ["a", "b", "0", "b"]
    alone = FetchPlan(["a"], RetryPolicy(rounds=3, base_seconds=1.0))
    assert walk(alone, {"a": [wait, None]}) == ["a", "7.5", "a"]
    patient = FetchPlan(["a"], RetryPolicy(retry_after_max_seconds=6.0))
    assert walk(patient, {"a": [wait]}) == ["a", "give up, False"]


def test_backoff_is_full_jitter_under_a_cap() -> None:
    policy = RetryPolicy(base_seconds=0.5, cap_seconds=30.0)
    assert [policy.backoff_seconds(number, 1.0) for number in (1, 2, 3, 7, 8, 100)] == [0.5, 1.0, 2.0, 30.0, 30.0, 30.0]
    assert policy.backoff_seconds(5, 0.0) == 0.0


# --- mirrors ----------------------------------------------------------------------------------------------


def test_failing_servers_are_asked_last_for_a_while() -> None:
    memory = FailureMemory(seconds=10.0)
    urls = ["http://a/1", "http://b/1", "http://c/1"]
    memory.failed("http://a/0", 0.0)
    assert memory.ordered(urls, 9.0) == ["http://b/1", "http://c/1", "http://a/1"]
    assert memory.ordered(urls, 10.0) == urls
    memory.failed("http://b/0", 20.0)
    memory.answered("http://b/7")
    assert memory.ordered(urls, 21.0) == urls


def test_memory_of_failures_is_bounded() -> None:
    memory = FailureMemory()
    for number in range(3000):
        memory.failed(f"http://h{number}/", float(number))
    assert len(memory._until) <= 1000


def test_hashed_urls() -> None:
    sums = [Checksum("sha256", "aa"), Checksum("sha1", "bb")]
    assert hashed_urls(["http://m/x/", "http://n"], sums) == [
        "http://m/x/sha256/aa",
        "http://m/x/sha1/bb",
        "http://n/sha256/aa",
        "http://n/sha1/bb",
    ]


# --- environment ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("no_proxy", "url", "exempt"),
    [
        ("", "http://h/", False),
        ("*", "http://h/", True),
        ("h", "http://h/", True),
        ("h", "http://sub.h/", True),
        (".h", "http://sub.h/", True),
        (".h", "http://h/", True),
        ("*.h", "http://sub.h/", True),
        ("h", "http://xh/", False),
        ("a, h ,b", "http://h/", True),
        ("h:8080", "http://h:8080/", True),
        ("h:8080", "http://h/", False),
        ("10.0.0.0/8", "http://10.1.2.3/", True),
        ("10.0.0.0/8", "http://11.1.2.3/", False),
        ("::1", "http://[::1]/", True),
        ("[::1]:80", "http://[::1]/", True),
        ("[::1]:80", "http://[::1]:81/", False),
        ("H.Example", "http://h.example/", True),
    ],
)
def test_no_proxy(no_proxy: str, url: str, exempt: bool) -> None:
    environment = FetchEnvironment(proxies=(("all", "http://proxy"),), no_proxy=no_proxy)
    assert environment.proxy_for(url) == (None if exempt else "http://proxy")


def test_proxies_of_schemes() -> None:
    environment = read_environment({"http_proxy": "p:1", "HTTPS_PROXY": "http://q", "ALL_PROXY": "http://r", "https_proxy": ""})
    assert environment.proxy_for("http://h/") == "http://p:1"
    assert environment.proxy_for("https://h/") == "http://r"
    # What does not do is told only to whom it would serve.
    environment = read_environment({"http_proxy": "p:1", "all_proxy": "socks5://q"})
    assert environment.proxy_for("http://h/") == "http://p:1"
    with pytest.raises(FetchSetupError, match="all_proxy"):
        environment.proxy_for("https://h/")
    # What a client of a web server says is not the server's setting.
    assert read_environment({"HTTP_PROXY": "http://evil", "REQUEST_METHOD": "GET"}).proxies == ()


def test_logins() -> None:
    environment = FetchEnvironment(logins=(Login("h", "alice", "1"), Login("", "any", "2")))
    assert environment.login_for("http://h/") == ("alice", "1")
    assert environment.login_for("http://g/") == ("any", "2")
    assert environment.login_for("http://bob:3@h/") == ("bob", "3")
    assert environment.login_for("http://bob@h/") == ("bob", "")
    assert FetchEnvironment().login_for("http://h/") is None
    assert FetchEnvironment(proxies=(("http", "http://u:p@proxy"),)).has_credentials_for("http://h/")
    assert not FetchEnvironment(proxies=(("http", "http://u:p@proxy"),)).has_credentials_for("https://h/")


def test_who_shares_files_on_the_disk() -> None:
    one, two = (FetchSpec(("http://a/", "http://b/")[::step], (Checksum("sha256", "aa"),)) for step in (1, -1))
    assert one.disk_key("") == two.disk_key("") != one.disk_key("1000")
    assert one.disk_key("", [None, None]) == one.disk_key("") != one.disk_key("", ["p", None])

    def route(url: str, **more: Any) -> Optional[str]:
        return FetchEnvironment(**more).route_of(url)

    assert route("http://h/") is route("https://h/") is route("http://h/", ca_pem="x") is None
    ways = [
        route("https://h/", ca_pem="x"),
        route("https://h/", ca_pem="y"),
        route("http://h/", proxies=(("http", "http://p"),)),
        route("http://h/", proxies=(("http", "http://q"),)),
        route("http://h/", troubles=(("http", "http_proxy", "x"),)),
    ]
    assert len({*ways, None}) == 6
    assert "s3cret" not in str(route("http://h/", proxies=(("http", "http://u:s3cret@p"),)))


# --- speed, and what is left over -------------------------------------------------------------------------


def test_speed_is_that_of_the_last_seconds() -> None:
    meter = Speedometer(window_seconds=5.0)
    assert meter.note(0, 0.0) == 0.0
    assert meter.note(100, 1.0) == 100.0
    for second in range(2, 20):
        speed = meter.note(100 + 10 * second, float(second))
    assert speed == 10.0
    assert meter.note(0, 20.0) == 0.0  # it started over
    assert meter.note(50, 21.0) == 50.0


def test_what_is_expired() -> None:
    found = [Leftover("new", 10, 100.0), Leftover("middle", 10, 50.0), Leftover("old", 10, 0.0)]

    def names(age: float, size: int) -> list[str]:
        return [each.path for each in expired(found, 100.0, max_age_seconds=age, max_bytes=size)]

    assert names(1000, 1000) == []
    assert names(99, 1000) == ["old"]
    assert names(1000, 20) == ["old"]
    assert names(1000, 19) == ["middle", "old"]
    assert names(1000, 0) == ["new", "middle", "old"]


def test_sweep_leaves_what_somebody_is_at(tmp_path: Path) -> None:
    folder = str(tmp_path / "fetch")
    make_fetch_folder(folder)
    busy, used, idle = ("%032x" % (number << 100) for number in (1, 2, 3))
    for name in (
        f"{busy}.part",
        f"{busy}.json",
        f"{used}.file",
        f"{idle}.part",
        f"{idle}.json",
        "kept/sha256-aa",
        "wrong/sha256-bb",
        "foreign",
    ):
        Path(folder, name).write_bytes(b"x")
        os.utime(Path(folder, name), (1, 1))
    fetching, using = KeyLocks(folder, busy), KeyLocks(folder, used)
    try:
        assert fetching.try_fetching()
        assert using.try_using()
        assert sweep(folder, 1e9, max_age_seconds=10.0, max_bytes=1 << 30) == 4
    finally:
        fetching.close()
        using.close()
    left = {entry.name for entry in os.scandir(folder) if entry.is_file()}
    assert left == {f"{busy}.part", f"{busy}.json", f"{used}.file", "foreign", "locks"}


def test_locks_of_a_key(tmp_path: Path) -> None:
    key = "ab" * 16
    one, two = KeyLocks(str(tmp_path), key), KeyLocks(str(tmp_path), key)
    try:
        assert one.try_using()
        assert two.try_using()
        assert one.try_fetching()
        assert not two.try_fetching()
        one.end_fetching()
        assert two.try_fetching()
        assert not two.try_removing()
        assert one.try_removing()
        assert not two.try_using()
    finally:
        one.close()
        two.close()
    assert GiveUp(True) != GiveUp(False)
