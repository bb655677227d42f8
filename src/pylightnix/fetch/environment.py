"""What a fetch takes from its user's environment: proxies, credentials, certificates, mirrors.

`read_environment` opens the files that variables name, so it must be called with the rights of the user whose variables they
are: by the process that asks, never by a daemon on its behalf. All else here decides only.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Optional

from pylightnix.errors import FetchSetupError, InvalidURL
from pylightnix.fetch.urls import check_url, origin_of, shown_url, userinfo_of, without_userinfo

__all__ = ["FetchEnvironment", "Login", "read_environment"]

_CA_BYTES_MAX: Final = 8 << 20


@dataclass(frozen=True, slots=True)
class Login:
    """An entry of a netrc file."""

    host: str
    """Empty for the entry that stands for all others."""
    user: str = field(repr=False)
    password: str = field(repr=False)


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
    """(``http``, ``https``, ``all`` or ``ca``, where, problem) of settings that do not do. They harm only what would use them."""

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

    A proxy or a file of certificates that does not do is noted, for a fetch that does not use it is none the worse.

    Raises:
        FetchSetupError: a mirror does not do, or the netrc file cannot be read.
    """
    mirrors = tuple(environ.get("PYLIGHTNIX_HASHED_MIRRORS", "").split())
    for mirror in mirrors:
        _checked(mirror, "PYLIGHTNIX_HASHED_MIRRORS")
    proxies, troubles = _proxies(environ)
    ca_pem = None
    try:
        ca_pem = _certificates(environ)
    except FetchSetupError as error:
        troubles.append(("ca", error.where, error.problem))
    return FetchEnvironment(
        proxies=proxies,
        no_proxy=environ.get("no_proxy", environ.get("NO_PROXY", "")),
        logins=_logins(environ),
        ca_pem=ca_pem,
        hashed_mirrors=mirrors,
        troubles=tuple(troubles),
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


def _logins(environ: Mapping[str, str]) -> tuple[Login, ...]:
    import netrc

    named = environ.get("NETRC")
    home = environ.get("HOME")
    path = named or (os.path.join(home, ".netrc") if home else None)
    if path is None:
        return ()
    try:
        entries = netrc.netrc(path).hosts
    except netrc.NetrcParseError as error:
        # Not the error's own text: it quotes the file.
        raise FetchSetupError(path, f"line {error.lineno} is not as in a netrc file") from None
    except OSError as error:
        if named is None:
            return ()
        raise FetchSetupError(path, f"{error.strerror} (the variable NETRC names it)") from error
    except UnicodeDecodeError as error:
        raise FetchSetupError(path, "it is not UTF-8") from error
    found = [Login("" if host == "default" else host.lower(), user, password or "") for host, (user, _, password) in entries.items()]
    return tuple(sorted(found, key=lambda login: (login.host == "", login.host)))


def _certificates(environ: Mapping[str, str]) -> Optional[str]:
    file, folder = environ.get("SSL_CERT_FILE"), environ.get("SSL_CERT_DIR")
    if not file and not folder:
        return None
    where = file or folder or ""
    try:
        paths = [file] if file else sorted(entry.path for entry in os.scandir(folder) if entry.is_file())
        texts: list[str] = []
        size = 0
        for path in paths:
            with open(path, encoding="ascii", errors="replace") as opened:
                texts.append(opened.read(_CA_BYTES_MAX))
            size += len(texts[-1])
            if size >= _CA_BYTES_MAX:
                raise FetchSetupError(where, f"more than {_CA_BYTES_MAX} bytes of certificates")
    except OSError as error:
        variable = "SSL_CERT_FILE" if file else "SSL_CERT_DIR"
        raise FetchSetupError(where, f"{error.strerror} (the variable {variable} names it)") from error
    # A folder of certificates has each twice, under its name and as a link named by its hash.
    return "\n".join(dict.fromkeys(texts))
