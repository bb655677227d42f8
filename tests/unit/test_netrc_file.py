"""Odd netrc files: an odd line harms no host but its own, and no credentials reach another host."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pylightnix.fetch import FetchEnvironment, read_environment
from pylightnix.fetch.netrc_file import Login, parse_netrc

GOOD = b"machine good login me password secret\n"
ME = Login("good", "me", "secret")

ODD: dict[str, bytes] = {
    "unknown keyword": b"machine odd login a password b method interactive\n",
    "unknown keyword on a line of its own": b"machine odd\n  method interactive\n  login a\n",
    "macro": b"macdef init\ncd /pub\nmachine odd login x password y\n\n",
    "macro in an entry": b"machine odd login a password b\nmacdef init\nbin\n\n",
    "no host": b"machine\n",
    "no login": b"machine odd login\n",
    "no password": b"machine odd login a password\n",
    "misspelt": b"machine odd passwort secret2\n",
    "comment": b"# machine odd login a password b\n",
    "comment behind": b"machine odd login a password b # mine\n",
    "comment between": b"machine odd\n# the login:\nlogin a password b\n",
    "open quote": b'machine odd login a password "b\n',
    "not UTF-8": b"machine odd login a password \xfc\xff\n",
    "not UTF-8 in the host": b"machine \xfc login a password b\n",
    "carriage return alone": b"machine odd login a password b\r",
    "keywords only": b"machine login password account\n",
    "NUL": b"machine odd login \0 password b\n",
    "account": b"machine odd login a account x password b\n",
    "blank": b"\n \t\n",
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_odd_lines_harm_no_other_host(odd: bytes) -> None:
    for data in (
        b"nonsense at the top\n" + GOOD,
        odd + GOOD,
        GOOD + odd,
        odd + GOOD + odd,
        b"\xef\xbb\xbf" + odd + GOOD,
        (odd + GOOD).replace(b"\n", b"\r\n"),
    ):
        logins, problems = parse_netrc(data)
        assert [login for login in logins if login.host == "good"] == [ME]
        assert "good" not in [host for host, _ in problems]
        assert not any(secret in problem for _, problem in problems for secret in ("secret", "passwort", "interactive"))


@pytest.mark.parametrize(
    ("data", "login"),
    [
        (b'machine h login "my name" password "a \\" b"', Login("h", "my name", 'a " b')),
        (b"machine h login a\\ b password c\\\\d", Login("h", "a b", "c\\d")),
        (b"machine h\n\tlogin\n\ta\n\tpassword\n\tb", Login("h", "a", "b")),
        (b"machine H user a password #b", Login("h", "a", "#b")),
        (b"machine h login machine password password", Login("h", "machine", "password")),
        (b"machine h login TOKEN", Login("h", "TOKEN", "")),
        ("machine h login ü password 密".encode(), Login("h", "ü", "密")),
        (b"default login anonymous password x@y", Login("", "anonymous", "x@y")),
        (b"machine h method a login b password c", Login("h", "b", "c")),
    ],
)
def test_values(data: bytes, login: Login) -> None:
    assert parse_netrc(data)[0] == [login]


def test_credentials_of_one_host_never_go_to_another() -> None:
    for missing in (b"machine a login\n", b"machine a login x password\n", b"machine\n", b"machine a account\n"):
        logins, problems = parse_netrc(missing + b"machine b login y password z\n")
        assert Login("b", "y", "z") in logins
        assert all(login.password != "z" for login in logins if login.host != "b")
        assert len(problems) == (missing != b"machine\n")


def test_own_entry_comes_before_the_default_and_the_last_one_counts(tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_bytes(b"default login d password d\nmachine h login a password a\nmachine h login b password b\n")
    found = read_environment({"NETRC": str(netrc)})
    assert found.login_for("http://h/") == ("b", "b")
    assert found.login_for("http://a@h/") == ("a", "a")
    assert found.login_for("http://other/") == ("d", "d")


# --- files that cannot be read ----------------------------------------------------------------------------


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _too_large(path: Path) -> None:
    path.write_bytes(b" " * (2 << 20))


@pytest.mark.parametrize("make", [Path.mkdir, _fifo, _too_large, lambda path: path.symlink_to(path)])
@pytest.mark.parametrize("is_named", [True, False])
def test_files_that_cannot_be_read_are_told_to_whom_they_matter(tmp_path: Path, make: object, is_named: bool) -> None:
    assert callable(make)
    make(tmp_path / ".netrc")
    found = read_environment({"NETRC": str(tmp_path / ".netrc")} if is_named else {"HOME": str(tmp_path)})
    assert found.logins == ()
    assert found.login_for("http://h/") is None
    assert str(tmp_path / ".netrc") in found.login_trouble_for("http://h/")
    assert found.login_trouble_for("http://a:b@h/") == ""


def test_missing_file_and_dev_null(tmp_path: Path) -> None:
    assert read_environment({"HOME": str(tmp_path)}) == FetchEnvironment()
    assert read_environment({"NETRC": os.devnull}) == FetchEnvironment()
    assert "NETRC" in read_environment({"NETRC": str(tmp_path / "none")}).login_trouble_for("http://h/")


def test_file_that_others_may_read_is_read(tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_bytes(GOOD)
    (tmp_path / ".netrc").chmod(0o666)
    assert read_environment({"HOME": str(tmp_path)}).login_for("http://good/") == ("me", "secret")


def test_trouble_of_an_entry_is_its_hosts_alone(tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_bytes(b"machine odd login a passwort b\n" + GOOD + b"default login\n")
    found = read_environment({"HOME": str(tmp_path)})
    assert "line 1" in found.login_trouble_for("http://odd/")
    assert found.login_trouble_for("http://good/") == ""
    assert "no value" in found.login_trouble_for("http://other/")


# --- other settings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "environ",
    [
        {"http_proxy": os.fsdecode(b"http://pro\xffxy:1")},
        {"no_proxy": os.fsdecode(b"a.\xff, b")},
        {"PYLIGHTNIX_HASHED_MIRRORS": "nonsense ftp://h/"},
        {"HOME": os.fsdecode(b"/home/\xff"), "NETRC": os.fsdecode(b"/none/\xff")},
        {"SSL_CERT_DIR": os.fsdecode(b"/none/\xff")},
    ],
)
def test_reading_never_fails_and_what_was_read_can_travel(environ: dict[str, str]) -> None:
    found = read_environment(environ)
    repr(found).encode()
    assert str([*found.troubles, found.no_proxy]).encode()
    assert found.proxy_for("https://h/") is None
    assert found.mirrors_for(()) == ()


def test_certificates_never_wait_for_a_fifo_and_odd_ones_in_a_folder_count_for_nothing(tmp_path: Path) -> None:
    import trustme

    folder = tmp_path / "certs"
    folder.mkdir()
    trustme.CA().cert_pem.write_to_path(str(folder / "ca.pem"))
    (folder / "README").write_text("certificates of ours")
    (folder / "broken.pem").write_text("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
    os.mkfifo(folder / "fifo")
    (folder / "sub").mkdir()
    found = read_environment({"SSL_CERT_DIR": str(folder)})
    assert found.troubles == ()
    assert found.ca_pem == (folder / "ca.pem").read_text()
    assert read_environment({"SSL_CERT_DIR": f"/nonexistent:{folder}:"}).ca_pem == found.ca_pem
    assert [name for name, _, _ in read_environment({"SSL_CERT_DIR": "/nonexistent:/none"}).troubles] == ["ca"]
    assert [where for _, where, _ in read_environment({"SSL_CERT_FILE": str(folder / "fifo")}).troubles] == [str(folder / "fifo")]
