"""What a fetch takes from its user's environment: proxies, credentials, certificates, mirrors.

A setting that is broken fails only the fetches that use it, so reading notes what is wrong and never fails.

`read_environment` opens the files that variables name, so it must be called with the rights of the user whose variables they
are: by the process that asks, never by a daemon on its behalf. All else here decides only.
"""

from __future__ import annotations

import errno
import hashlib
import ipaddress
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Optional

from pylightnix.errors import FetchSetupError, InvalidURL
from pylightnix.fetch.checksums import Checksum
from pylightnix.fetch.netrc_file import Login, parse_netrc, read_regular
from pylightnix.fetch.urls import check_url, origin_of, shown_url, userinfo_of, without_userinfo

__all__ = ["FetchEnvironment", "Login", "read_environment"]

_CA_BYTES_MAX: Final = 8 << 20
_NETRC_BYTES_MAX: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class FetchEnvironment:
    """A user's settings. Plain values, so that they can be sent to whoever fetches; what may be secret is in no repr."""

    proxies: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """(``http``, ``https`` or ``all``, URL of the proxy)"""
    no_proxy: str = ""
    logins: tuple[Login, ...] = field(default=(), repr=False)
    ca_pem: Optional[str] = field(default=None, repr=False)
    """Certificates of authorities to trust, in place of the usual ones."""
    hashed_mirrors: tuple[str, ...] = ()
    """Base URLs of mirrors that keep files by hash."""
    troubles: tuple[tuple[str, str, str], ...] = ()
    """(setting, where, problem) of settings that are broken.

    Settings are ``http``, ``https``, ``all``, ``ca``, ``mirrors``; ``login`` for the whole netrc file, ``login HOST`` for an entry.
    """

    def proxy_for(self, url: str) -> Optional[str]:
        """Return the proxy to ask for `url`, None to ask the server itself.

        Raises:
            FetchSetupError: it is not one that can be asked.
        """
        origin = origin_of(url)
        if _is_exempt(origin.host, origin.port, self.no_proxy):
            return None
        known = dict(self.proxies)
        for scheme in (origin.scheme, "all"):
            self._raise_trouble(scheme)
            if known.get(scheme):
                return known[scheme]
        return None

    def ca_for(self, url: str, proxy: Optional[str]) -> Optional[str]:
        """Return the certificates to trust when `url` is asked by way of `proxy`; None for the usual ones, or if none are needed.

        Raises:
            FetchSetupError: they cannot be read.
        """
        if not any(each is not None and origin_of(each).scheme == "https" for each in (url, proxy)):
            return None
        self._raise_trouble("ca")
        return self.ca_pem

    def mirrors_for(self, checksums: Sequence[Checksum]) -> tuple[str, ...]:
        """Return the base URLs to ask for a file with these checksums.

        Raises:
            FetchSetupError: one of them is broken.
        """
        if not checksums:
            return ()
        self._raise_trouble("mirrors")
        return self.hashed_mirrors

    def login_trouble_for(self, url: str) -> str:
        """Return what is wrong with netrc's login for the server of `url`; empty if nothing is, or none is looked up.

        It fails no fetch by itself: most servers want no login. It is told where a server wants one.
        """
        given = userinfo_of(url)
        if given is not None and given[1]:
            return ""
        host = origin_of(url).host
        has_own = any(login.host == host for login in self.logins)
        wanted = ("login", f"login {host}", *(() if has_own else ("login ",)))
        return next((f"{where}: {problem}" for name in wanted for setting, where, problem in self.troubles if setting == name), "")

    def _raise_trouble(self, setting: str) -> None:
        for name, where, problem in self.troubles:
            if name == setting:
                raise FetchSetupError(where, problem)

    def route_of(self, url: str) -> Optional[str]:
        """Return a text that tells the ways apart by which servers can be reached; None for the usual way. No secret is in it."""
        try:
            proxy = self.proxy_for(url)
            ca_pem = self.ca_for(url, proxy)
        except FetchSetupError as error:
            return f"{error.where}: {error.problem}"
        if proxy is None and ca_pem is None:
            return None
        return f"{without_userinfo(proxy) if proxy else ''} {hashlib.sha256((ca_pem or '').encode()).hexdigest()}"

    def login_for(self, url: str) -> Optional[tuple[str, str]]:
        """Return user and password for the server of `url`: those in the URL, else netrc's; None if there are none."""
        given = userinfo_of(url)
        if given is not None and given[1]:
            return given
        host = origin_of(url).host
        wanted = given[0] if given is not None else None
        for login in self.logins:
            if login.host in ("", host) and wanted in (None, login.user):
                return login.user, login.password
        return given

    def has_credentials_for(self, url: str) -> bool:
        """Tell whether a password goes out with a request for `url`, to the server or to a proxy."""
        try:
            proxy = self.proxy_for(url)
        except FetchSetupError:
            return True  # nothing goes out, and nobody is to share that
        return self.login_for(url) is not None or (proxy is not None and userinfo_of(proxy) is not None)


def read_environment(environ: Mapping[str, str]) -> FetchEnvironment:
    """Return the settings in a user's environment variables, and in the files that they name.

    Read are ``http_proxy``, ``https_proxy``, ``all_proxy`` and ``no_proxy`` (in capitals too), ``NETRC`` or ``~/.netrc``,
    ``SSL_CERT_FILE`` and ``SSL_CERT_DIR``, and ``PYLIGHTNIX_HASHED_MIRRORS``, base URLs with spaces between.

    Never fails and never waits: what is broken is among `FetchEnvironment.troubles`.
    """
    proxies, troubles = _proxies(environ)
    mirrors = tuple(environ.get("PYLIGHTNIX_HASHED_MIRRORS", "").split())
    try:
        for mirror in mirrors:
            _checked(mirror, "PYLIGHTNIX_HASHED_MIRRORS")
    except FetchSetupError as error:
        mirrors = ()
        troubles.append(("mirrors", error.where, error.problem))
    ca_pem = None
    try:
        ca_pem = _certificates(environ)
    except FetchSetupError as error:
        troubles.append(("ca", error.where, error.problem))
    logins, login_troubles = _logins(environ)
    return FetchEnvironment(
        proxies=proxies,
        no_proxy=_text(environ.get("no_proxy", environ.get("NO_PROXY", ""))),
        logins=logins,
        ca_pem=ca_pem,
        hashed_mirrors=mirrors,
        troubles=(*troubles, *login_troubles),
    )


def _checked(url: str, variable: str) -> None:
    try:
        is_fit = origin_of(check_url(url)).scheme != "file"
    except InvalidURL as error:
        raise FetchSetupError(f"the variable {variable}", str(error)) from error
    if not is_fit:
        raise FetchSetupError(f"the variable {variable}", f"expected a URL of http or https, found {shown_url(url)}")


def _proxies(environ: Mapping[str, str]) -> tuple[tuple[tuple[str, str], ...], list[tuple[str, str, str]]]:
    """Return the proxies, and what is wrong with those that cannot be asked."""
    found: list[tuple[str, str]] = []
    troubles: list[tuple[str, str, str]] = []
    for scheme in ("http", "https", "all"):
        name = f"{scheme}_proxy"
        url = environ.get(name)
        # A web server sets HTTP_PROXY to what a request's header of the name Proxy says.
        if url is None and not (scheme == "http" and "REQUEST_METHOD" in environ):
            name = name.upper()
            url = environ.get(name)
        if url:
            url = url if "://" in url else f"http://{url}"
            try:
                _checked(url, name)
            except FetchSetupError as error:
                troubles.append((scheme, error.where, error.problem))
            else:
                found.append((scheme, url))
    return tuple(found), troubles


def _is_exempt(host: str, port: int, no_proxy: str) -> bool:
    for entry in no_proxy.replace(",", " ").split():
        name, digits = _host_and_port(entry.lower())
        if digits and digits != str(port):
            continue
        name = name.removeprefix("*").lstrip(".")
        if entry == "*" or host == name or _is_in_network(host, name) or (name and host.endswith(f".{name}")):
            return True
    return False


def _host_and_port(entry: str) -> tuple[str, str]:
    if entry.startswith("["):
        host, _, rest = entry[1:].partition("]")
        return host, rest.removeprefix(":")
    if entry.count(":") == 1:
        host, _, port = entry.partition(":")
        return host, port
    return entry, ""  # an address of IPv6 has colons of its own


def _is_in_network(host: str, name: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(name, strict=False)
    except ValueError:
        return False


def _text(value: str) -> str:
    """Return a variable's value as text that can travel. Bytes that are not UTF-8 are shown as escapes, and match nothing."""
    return os.fsencode(value).decode("utf-8", "backslashreplace")


def _logins(environ: Mapping[str, str]) -> tuple[tuple[Login, ...], list[tuple[str, str, str]]]:
    """Return the logins of the netrc file, own entries of hosts first, and what is wrong with it."""
    named = environ.get("NETRC")
    home = environ.get("HOME")
    path = named or (os.path.join(home, ".netrc") if home else None)
    if path is None:
        return (), []
    try:
        data = read_regular(path, _NETRC_BYTES_MAX)
    except FileNotFoundError as error:
        return (), [("login", _text(path), f"{error.strerror} (the variable NETRC names it)")] if named else []
    except (OSError, ValueError) as error:
        return (), [("login", _text(path), (error.strerror if isinstance(error, OSError) else None) or str(error))]
    found, problems = parse_netrc(data)
    found.reverse()  # the last entry of a host counts, as in Python's netrc
    logins = sorted(found, key=lambda login: login.host == "")
    return tuple(logins), [(f"login {_text(host)}", _text(path), problem) for host, problem in problems]


def _certificates(environ: Mapping[str, str]) -> Optional[str]:
    file, folder = environ.get("SSL_CERT_FILE"), environ.get("SSL_CERT_DIR")
    if not file and not folder:
        return None
    try:
        return _pem(file) if file else _pems(folder or "")
    except (OSError, ValueError) as error:
        variable = "SSL_CERT_FILE" if file else "SSL_CERT_DIR"
        problem = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise FetchSetupError(_text(file or folder or ""), f"{problem} (the variable {variable} names it)") from error


def _pem(path: str) -> str:
    return read_regular(path, _CA_BYTES_MAX).decode("ascii", "replace")


def _pems(folders: str) -> str:
    """Return the certificates of folders, with colons between. A file in them that has none counts for nothing, as for OpenSSL."""
    import ssl

    found: dict[str, None] = {}  # a folder has each certificate twice, under its name and as a link named by its hash
    size = 0
    for path in _files_of(folders):
        try:
            text = _pem(path)
            if text not in found:
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
        except (OSError, ValueError):  # SSLError is an OSError
            continue
        size += 0 if text in found else len(text)
        if size > _CA_BYTES_MAX:
            raise OSError(errno.EFBIG, f"it has more than {_CA_BYTES_MAX} bytes of certificates")
        found[text] = None
    return "\n".join(found)


def _files_of(folders: str) -> list[str]:
    """Return the entries of folders, with colons between. Raises `OSError` if none of these can be read."""
    found: list[str] = []
    failures: list[OSError] = []
    named = [folder for folder in folders.split(os.pathsep) if folder]
    for folder in named:
        try:
            found += sorted(entry.path for entry in os.scandir(folder))
        except OSError as error:
            failures.append(error)
    if failures and len(failures) == len(named):
        raise failures[0]
    return found
