"""Where a redirect may lead, and what may be sent there. Decides only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import quote_from_bytes, urldefrag, urljoin

from pylightnix.errors import InvalidURL
from pylightnix.fetch.urls import check_url, origin_of, shown_text, shown_url

__all__ = ["REDIRECTS_MAX", "REDIRECT_STATUSES", "RedirectRefused", "is_same_party", "redirected"]

REDIRECTS_MAX: Final = 10
REDIRECT_STATUSES: Final = frozenset({301, 302, 303, 307, 308})
_PRINTABLE: Final = "".join(map(chr, range(0x21, 0x7F)))
_WHITESPACE: Final = bytes(range(0x21))
_AUTHORITY: Final = re.compile(rb"(?:[A-Za-z][A-Za-z0-9+.-]*:)?//[^/?#]*")


class RedirectRefused(Exception):
    """A redirect that is not followed. Its text says why, after "it"."""


def redirected(visited: Sequence[str], locations: Sequence[bytes], *, insecure: bool) -> str:
    """Return the URL that a redirect leads to.

    Args:
        visited: every URL asked so far, the last one being that which answered.
        locations: the headers of the name ``Location``, as they came. The first that is not empty counts, as for browsers and curl.
        insecure: whether it may lead from https to http.

    Raises:
        RedirectRefused: it leads nowhere, in a circle, from https to http, or there were too many.
    """
    location = next((stripped for each in locations if (stripped := each.strip(_WHITESPACE))), None)
    if location is None:
        raise RedirectRefused("redirects without saying where to")
    try:
        url = check_url(urldefrag(urljoin(visited[-1], _as_url(location))).url)
    except (InvalidURL, ValueError) as error:
        shown = shown_text(location.decode("utf-8", "backslashreplace"))
        raise RedirectRefused(f"redirects to something that is no URL ({shown!r})") from error
    scheme = origin_of(url).scheme
    if scheme == "file":
        raise RedirectRefused("redirects to a local file")
    if scheme == "http" and origin_of(visited[-1]).scheme == "https" and not insecure:
        raise RedirectRefused(f"redirects from https to {shown_url(url)}; allow that with insecure_redirects=True")
    if url in visited:
        raise RedirectRefused(f"redirects in a circle, to {shown_url(url)} again")
    if len(visited) > REDIRECTS_MAX:
        raise RedirectRefused(f"redirects more than {REDIRECTS_MAX} times")
    return url


def _as_url(location: bytes) -> str:
    """Return the URL reference that a ``Location`` means, as browsers read it.

    Bytes that are no ASCII and spaces are escaped as they are, be they UTF-8 or Latin-1; in a host's name, only UTF-8 makes sense.
    A backslash in the path is a slash; tabs and line ends count for nothing.
    """
    path, mark, rest = re.sub(rb"[\t\r\n]", b"", location).partition(b"?")
    path, hash_mark, fragment = path.partition(b"#")
    path = path.replace(b"\\", b"/")
    rest = hash_mark + fragment + mark + rest
    found = _AUTHORITY.match(path)
    authority = found[0] if found is not None else b""
    return authority.decode("utf-8") + quote_from_bytes(path[len(authority) :] + rest, _PRINTABLE)


def is_same_party(url: str, other: str) -> bool:
    """Tell whether what was given for `url` may be sent to `other`: the same origin, or its step up from http to https."""
    first, second = origin_of(url), origin_of(other)
    if first == second:
        return True
    return first.host == second.host and (first.scheme, first.port, second.scheme, second.port) == ("http", 80, "https", 443)
