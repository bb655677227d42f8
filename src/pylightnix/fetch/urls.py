"""What can be read off a URL: whether it will do, whose it is, what file it names, and how it may be shown.

Purely textual.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple, Optional
from urllib.parse import SplitResult, unquote_to_bytes, urlsplit, urlunsplit

from pylightnix.errors import InvalidURL, kind_of

__all__ = ["Origin", "check_url", "file_name_of", "local_path_of", "origin_of", "shown_url", "userinfo_of", "without_userinfo"]

_PORTS: Final = {"http": 80, "https": 443}
_UNFIT: Final = re.compile(r"[\x00-\x20\x7f]")


class Origin(NamedTuple):
    """Whom a URL asks."""

    scheme: str
    host: str
    port: int


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port  # a property that raises
    except ValueError as error:
        # Not the error's own text: it may quote what stands before the host, a password perhaps.
        raise InvalidURL(shown_text(url), "its host or port cannot be read") from error
    return parts


def check_url(url: object) -> str:
    """Return `url` if it can be fetched from.

    Raises:
        InvalidURL: it is no http, https or file URL, or has no host, or spaces and the like.
    """
    if not isinstance(url, str):
        raise InvalidURL(repr(url)[:100], f"it is {kind_of(url)}, not text")
    if not url.isascii() and any("\ud800" <= char <= "\udfff" for char in url):
        shown = url.encode("utf-8", "backslashreplace").decode("utf-8")
        raise InvalidURL(shown_text(shown), "it is not UTF-8; write %XX for a byte that is none")
    if _UNFIT.search(url):
        raise InvalidURL(shown_text(url), "it has a space or a control character; write %20 for a space")
    parts = _split(url)
    if parts.scheme == "file":
        local_path_of(url)
    elif parts.scheme not in _PORTS:
        raise InvalidURL(shown_text(url), "it begins with neither https://, http:// nor file://")
    elif not parts.hostname:
        raise InvalidURL(shown_text(url), "it names no host")
    return url


def origin_of(url: str) -> Origin:
    """Return whom a checked URL asks; two URLs of one origin are one party's."""
    parts = _split(url)
    return Origin(parts.scheme, (parts.hostname or "").rstrip("."), parts.port or _PORTS.get(parts.scheme, 0))


def file_name_of(url: str) -> str:
    """Return the last component of a URL's path as it stands there, empty if there is none."""
    return _split(url).path.rpartition("/")[2]


def local_path_of(url: str) -> Optional[str]:
    """Return the path that a ``file://`` URL means, None for any other URL.

    Raises:
        InvalidURL: it is on another host, or not absolute.
    """
    parts = _split(url)
    if parts.scheme != "file":
        return None
    if parts.netloc not in ("", "localhost"):
        raise InvalidURL(shown_text(url), "a file URL of another host; write file:///absolute/path")
    path = unquote_to_bytes(parts.path)
    if not path.startswith(b"/") or b"\0" in path:
        raise InvalidURL(shown_text(url), "a file URL has an absolute path; write file:///absolute/path")
    return path.decode("utf-8", "surrogateescape")


def userinfo_of(url: str) -> Optional[tuple[str, str]]:
    """Return the user name and the password that stand in a URL, decoded; None if there are none."""
    parts = _split(url)
    if parts.username is None and parts.password is None:
        return None
    user, password = (unquote_to_bytes(part or "").decode("utf-8", "replace") for part in (parts.username, parts.password))
    return user, password


def without_userinfo(url: str) -> str:
    """Return a URL without user name, password and fragment: what may be asked for."""
    parts = _split(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment=""))


def shown_url(url: str) -> str:
    """Return a URL for people to see: without user name, password, and the values of its query."""
    parts = urlsplit(without_userinfo(url))
    query = "&".join(f"{item.partition('=')[0]}=…" if "=" in item else "…" for item in parts.query.split("&")) if parts.query else ""
    return urlunsplit(parts._replace(query=query))


def shown_text(text: str) -> str:
    """Return for people to see what may be a URL or not: without all that can hold a secret in one."""
    before, slashes, after = text.partition("//")
    host = after.rpartition("@")[2] if slashes else after
    return f"{before.rpartition('@')[2]}{slashes}{host}".partition("?")[0].partition("#")[0][:200]
