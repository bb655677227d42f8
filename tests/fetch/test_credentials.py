"""What a fetch takes from its user's environment, over real proxies and TLS; and that secrets stay where they belong."""

from __future__ import annotations

import base64
import ssl
from dataclasses import replace
from pathlib import Path

import pytest
import trustme
from tests.fetch.servers import Proxy, Request, Scripted, scripted
from tests.fetch.test_fetcher import CONTENT, failure, fetch, left, spec_of

from pylightnix import FetchSetupError, FetchUnavailable, Misuse
from pylightnix.fetch import FetchEnvironment, FetchProgress, Headers, checked_headers, read_environment

SECRET = "s3cr3t-s3cr3t"


def good(request: Request) -> None:
    request.serve(CONTENT)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


def basic(user: str, password: str) -> str:
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


# --- TLS --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_private_authority(folder: str, tmp_path: Path, authority: trustme.CA, tls: ssl.SSLContext, variable: str) -> None:
    (tmp_path / "certs").mkdir()
    authority.cert_pem.write_to_path(str(tmp_path / "certs" / "ca.pem"))
    where = tmp_path / "certs" / ("ca.pem" if variable == "SSL_CERT_FILE" else "")
    with scripted(good, tls) as server:
        assert fetch(folder, spec_of(server.url + "/f"), read_environment({variable: str(where)})) == CONTENT


def test_certificate_that_is_not_trusted(folder: str, tls: ssl.SSLContext) -> None:
    with scripted(good, tls) as server:
        assert "certificate that is not trusted" in str(failure(folder, spec_of(server.url + "/f")))
        assert server.requests == []


def test_redirect_from_https_to_http(folder: str, authority: trustme.CA, tls: ssl.SSLContext) -> None:
    environment = FetchEnvironment(ca_pem=authority.cert_pem.bytes().decode())
    with scripted(good) as plain, scripted(lambda request: request.answer(302, headers={"Location": plain.url + "/f"}), tls) as secure:
        spec = spec_of(secure.url + "/f")
        assert "from https to" in str(failure(folder, spec, environment=environment))
        assert plain.requests == []
        assert fetch(folder, replace(spec, insecure_redirects=True), environment) == CONTENT


def test_certificates_that_are_none(folder: str, tmp_path: Path, tls: ssl.SSLContext) -> None:
    (tmp_path / "ca.pem").write_text("nonsense")
    with scripted(good, tls) as server, pytest.raises(FetchSetupError, match="PEM"):
        fetch(folder, spec_of(server.url + "/f"), read_environment({"SSL_CERT_FILE": str(tmp_path / "ca.pem")}))


# --- proxies ----------------------------------------------------------------------------------------------


def test_proxy_with_a_password(folder: str) -> None:
    proxy = Proxy("user", SECRET)
    with scripted(good) as server, scripted(proxy) as between:
        address = between.url.removeprefix("http://")
        environment = read_environment({"http_proxy": f"http://user:{SECRET}@{address}"})
        assert fetch(folder, spec_of(server.url + "/f"), environment) == CONTENT
        assert proxy.asked == [f"GET {server.url}/f"]
        assert not any("proxy-authorization" in request.headers for request in server.requests)
        without = read_environment({"HTTP_PROXY": address, "no_proxy": "127.0.0.1"})
        assert fetch(folder, spec_of(server.url + "/f"), without) == CONTENT
        assert len(proxy.asked) == 1
        wrong = failure(
            folder, spec_of(server.url + "/f"), environment=read_environment({"http_proxy": f"http://user:{SECRET}x@{address}"})
        )
        assert "answers 407" in str(wrong)
        assert SECRET not in str(wrong)


def test_tls_through_a_proxy(folder: str, authority: trustme.CA, tls: ssl.SSLContext) -> None:
    proxy = Proxy("user", SECRET)
    pem = authority.cert_pem.bytes().decode()
    with scripted(good, tls) as server, scripted(proxy) as between:
        address = between.url.removeprefix("http://")
        environment = replace(read_environment({"https_proxy": f"http://user:{SECRET}@{address}"}), ca_pem=pem)
        assert fetch(folder, spec_of(server.url + "/f"), environment) == CONTENT
        assert proxy.asked == [f"CONNECT 127.0.0.1:{server.port}"]
        nobody = replace(read_environment({"https_proxy": address}), ca_pem=pem)
        assert "407" in str(failure(folder, spec_of(server.url + "/f"), environment=nobody))


def test_proxy_that_is_not_there(folder: str) -> None:
    with scripted(good) as server:
        failure(folder, spec_of(server.url + "/f"), FetchUnavailable, environment=read_environment({"all_proxy": "http://127.0.0.1:1"}))


@pytest.mark.parametrize("url", ["socks5h://127.0.0.1:1", "http://proxy:port"])
def test_proxy_that_does_not_do(folder: str, url: str) -> None:
    with scripted(good) as server, pytest.raises(FetchSetupError, match="http_proxy"):
        fetch(folder, spec_of(server.url + "/f"), read_environment({"http_proxy": url}))


@pytest.mark.parametrize(
    "environ",
    [
        {"ALL_PROXY": "socks5h://127.0.0.1:1", "http_proxy": "{proxy}"},
        {"https_proxy": "http://proxy:port"},
        {"https_proxy": "socks5://127.0.0.1:1", "SSL_CERT_DIR": "/nonexistent"},
        {"SSL_CERT_FILE": "/nonexistent"},
        {"all_proxy": "socks5h://127.0.0.1:1", "no_proxy": "127.0.0.1"},
    ],
)
def test_settings_that_are_not_used_do_no_harm(folder: str, environ: dict[str, str]) -> None:
    with scripted(good) as server, scripted(Proxy()) as between:
        environment = read_environment({name: value.format(proxy=between.url) for name, value in environ.items()})
        assert fetch(folder, spec_of(server.url + "/f"), environment) == CONTENT
        # A mirror that needs them is none, and no other suffers for it.
        spec = spec_of("https://127.0.0.1:1/f", server.url + "/f")
        assert fetch(folder, spec, environment) == CONTENT


def test_settings_that_a_redirect_needs(folder: str) -> None:
    environment = read_environment({"https_proxy": "socks5://127.0.0.1:1"})
    with scripted(lambda request: request.answer(302, headers={"Location": "https://127.0.0.1:1/f"})) as server:
        with pytest.raises(FetchSetupError, match="https_proxy"):
            fetch(folder, spec_of(server.url + "/f"), environment)
        server.handler = lambda request: request.answer(404)
        error = failure(folder, spec_of("https://127.0.0.1:1/f", server.url + "/f"), environment=environment)
    assert "https_proxy" in str(error)
    assert "answers 404" in str(error)


def test_certificates_that_cannot_be_read(folder: str, tls: ssl.SSLContext) -> None:
    with scripted(good, tls) as server, pytest.raises(FetchSetupError, match="SSL_CERT_FILE"):
        fetch(folder, spec_of(server.url + "/f"), read_environment({"SSL_CERT_FILE": "/nonexistent"}))


# --- credentials ------------------------------------------------------------------------------------------


def test_netrc(folder: str, tmp_path: Path) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text(f"machine 127.0.0.1 login alice password {SECRET}\nmachine other login bob password x\n")
    for environ in ({"NETRC": str(netrc)}, {"HOME": str(tmp_path)}):
        with scripted(good) as server:
            assert fetch(folder, spec_of(server.url + "/f"), read_environment(environ)) == CONTENT
        assert server.requests[0].headers["authorization"] == basic("alice", SECRET)


@pytest.mark.parametrize(
    "text",
    [
        "machine elsewhere login me password x method interactive\n",
        f"machine 127.0.0.1 login alice password {SECRET} method interactive\n",
        "machine elsewhere login\n",
        "default login\n",
        "macdef x\n",
    ],
)
def test_odd_netrc_breaks_no_fetch(folder: str, tmp_path: Path, text: str) -> None:
    (tmp_path / ".netrc").write_text(text)
    with scripted(good) as server:
        assert fetch(folder, spec_of(server.url + "/f"), read_environment({"HOME": str(tmp_path)})) == CONTENT
    assert server.requests[0].headers.get("authorization") == (basic("alice", SECRET) if "alice" in text else None)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_odd_netrc_is_told_where_a_server_wants_a_login(folder: str, tmp_path: Path, status: int) -> None:
    (tmp_path / "bad").write_text(f"machine 127.0.0.1 passwort {SECRET}\n")
    with scripted(lambda request: request.answer(status)) as server:
        for name, problem in (("bad", "line 1 has a word that is not known"), ("none", "No such file"), (".", "Is a directory")):
            path = str(tmp_path / name)
            error = str(failure(folder, spec_of(server.url + "/f"), environment=read_environment({"NETRC": path})))
            assert f"answers {status}" in error
            assert path in error
            assert problem in error
            assert SECRET not in error


def test_broken_mirror_fails_only_what_would_ask_it(folder: str) -> None:
    environment = read_environment({"PYLIGHTNIX_HASHED_MIRRORS": "nonsense"})
    with scripted(good) as server:
        assert fetch(folder, spec_of(server.url + "/f", content=None), environment) == CONTENT
        with pytest.raises(FetchSetupError, match="PYLIGHTNIX_HASHED_MIRRORS"):
            fetch(folder, spec_of(server.url + "/f"), environment)


def test_user_and_password_in_the_url(folder: str) -> None:
    def handler(request: Request) -> None:
        assert request.target == "/f"
        request.answer(500)

    with scripted(handler) as server:
        url = f"{server.url.replace('//', f'//al%40ice:{SECRET}@')}/f?key={SECRET}#x"

        def only_path(request: Request) -> None:
            request.answer(500)

        server.handler = only_path
        seen: list[FetchProgress] = []
        error = failure(folder, spec_of(url), FetchUnavailable, progress=seen.append)
    assert server.requests[0].headers["authorization"] == basic("al@ice", SECRET)
    assert server.requests[0].target == f"/f?key={SECRET}"
    assert SECRET not in f"{error}{error!r}{vars(error)}{seen}"
    assert f"{server.url}/f?key=…" in str(error)


@pytest.mark.parametrize("elsewhere", [True, False])
def test_secrets_stay_with_their_server(folder: str, elsewhere: bool) -> None:
    headers = checked_headers({"Authorization": f"Bearer {SECRET}", "X-Key": SECRET}, "test")
    servers: list[Scripted] = []

    def first(request: Request) -> None:
        target = servers[1].url if elsewhere else servers[0].url
        if request.target == "/f":
            request.answer(302, headers={"Location": f"{target}/g"})
        else:
            request.serve(CONTENT)

    with scripted(first) as one, scripted(good) as two:
        servers += [one, two]
        assert fetch(folder, spec_of(one.url + "/f", headers=headers)) == CONTENT
    last = two.requests[0] if elsewhere else one.requests[1]
    assert one.requests[0].headers["x-key"] == SECRET
    assert one.requests[0].headers["authorization"] == f"Bearer {SECRET}"
    assert ("x-key" in last.headers, "authorization" in last.headers) == (not elsewhere, not elsewhere)


def test_secrets_do_not_come_back_after_a_detour(folder: str) -> None:
    servers: list[Scripted] = []

    def first(request: Request) -> None:
        if request.target == "/f":
            request.answer(302, headers={"Location": f"{servers[1].url}/g"})
        else:
            request.serve(CONTENT)

    with scripted(first) as one, scripted(lambda request: request.answer(302, headers={"Location": f"{one.url}/h"})) as two:
        servers += [one, two]
        assert fetch(folder, spec_of(one.url + "/f", headers=checked_headers({"X-Key": SECRET}, "test"))) == CONTENT
    assert ["x-key" in request.headers for request in (*one.requests, *two.requests)] == [True, False, False]


def test_secrets_are_not_on_the_disk(folder: str) -> None:
    def handler(request: Request) -> None:
        request.serve(CONTENT, '"1"', upto=1_500_000)

    with scripted(handler) as server:
        url = f"{server.url.replace('//', f'//alice:{SECRET}@')}/f?key={SECRET}"
        failure(folder, spec_of(url, headers=checked_headers({"X-Key": SECRET}, "test")), FetchUnavailable)
    names = left(folder)
    assert len(names) == 2
    assert not any(SECRET.encode() in Path(folder, name).read_bytes() or SECRET in name for name in names)


def test_headers_show_no_values() -> None:
    headers = Headers({"X-Key": SECRET})
    spec = spec_of("http://h/f", headers=headers)
    environment = FetchEnvironment(proxies=(("http", f"http://u:{SECRET}@p"),), ca_pem=SECRET)
    assert SECRET not in f"{headers}{headers!r}{spec}{spec!r}{environment!r}"
    assert "X-Key" in repr(headers)


@pytest.mark.parametrize(
    "headers",
    [
        {"": "x"},
        {"a b": "x"},
        {"Range": "x"},
        {"host": "x"},
        {"X": f"{SECRET}\r\nY: z"},
        {"X": f" {SECRET}"},
        {"X": f"{SECRET}é"},
        {"X": f"{SECRET}\0"},
        {"X": 3},
    ],
)
def test_headers_that_cannot_be_sent(headers: dict[str, str]) -> None:
    with pytest.raises(Misuse) as raised:
        checked_headers(headers, "test")
    assert SECRET not in str(raised.value)
