"""What strangers write into a netrc file or a Location header: nothing of it breaks what does not concern it."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from pylightnix.fetch.netrc_file import Login, parse_netrc
from pylightnix.fetch.redirects import RedirectRefused, redirected
from pylightnix.fetch.urls import check_url

GOOD = b"machine good.example login me password secret\n"
words = st.sampled_from(
    [
        *(b"machine", b"login", b"password", b"account", b"default", b"user", b"#", b'"', b'"a b"', b"\\", b"odd.example", b"x"),
        *(b"\xff", b"\xc3\xa9", b"method", b"\0"),
    ]
)
lines = st.lists(words, max_size=6).map(b" ".join)
odd_text = st.lists(lines, max_size=6).map(b"\n".join) | st.binary(max_size=40).filter(lambda data: b"macdef" not in data)


@example(b"machine odd.example login", b"")
@example(b'machine odd.example password "', b"\xff")
@given(odd_text, odd_text)
def test_odd_lines_never_take_or_change_the_login_of_another_host(before: bytes, after: bytes) -> None:
    logins, _ = parse_netrc(before + b"\n" + GOOD + b"machine end.example\n" + after)
    assert [login for login in logins if login.host == "good.example"] == [Login("good.example", "me", "secret")]
    assert not any("secret" in (login.user, login.password) for login in logins if login.host != "good.example")


@example(b"machine \xff login \xff password \xff\nmachine h login x")
@given(st.binary(max_size=60) | odd_text)
def test_any_bytes_are_a_netrc_file(data: bytes) -> None:
    logins, problems = parse_netrc(data)
    "".join(login.host + login.user + login.password for login in logins).encode()  # so that it can travel
    "".join(host + problem for host, problem in problems).encode()


pieces = st.sampled_from(
    [
        *(b"/", b"//", b"\\", b"http:", b"https://", b"h", b":80", b":x", b"@", b"?", b"#", b" ", b"\t", b"%", b"%2", b"%20", b"..", b"."),
        *(b"[", b"]", b"[::1]", b"\xff", b"\xc3\xa9", b"\0", b"a", b";", b"file:", b"\xe2\x84\xaa"),
    ]
)


@given(st.lists(st.lists(pieces, max_size=8).map(b"".join) | st.binary(max_size=30), max_size=3))
def test_any_location_is_a_url_or_refused(locations: list[bytes]) -> None:
    base = "http://user:pw@h/d/a?q#f"
    try:
        found = redirected([base], locations, insecure=False)
    except RedirectRefused as refused:
        str(refused).encode()
        return
    assert check_url(found) == found
    assert found.startswith(("http://", "https://"))
