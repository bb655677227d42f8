"""Where a redirect may lead, and what may be sent there. Decides only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from urllib.parse import urljoin

from pylightnix.errors import InvalidURL
from pylightnix.fetch.urls import check_url, origin_of, shown_url

__all__ = ["REDIRECTS_MAX", "REDIRECT_STATUSES", "RedirectRefused", "is_same_party", "redirected"]

REDIRECTS_MAX: Final = 10
REDIRECT_STATUSES: Final = frozenset({301, 302, 303, 307, 308})


class RedirectRefused(Exception):
    """A redirect that is not followed. Its text says why, after "it"."""


def redirected(visited: Sequence[str], location: str, *, insecure: bool) -> str:
    """Return the URL that a redirect leads to.

    Args:
        visited: every URL asked so far, the last one being that which answered.
        location: the header of that name.
        insecure: whether it may lead from https to http.

    Raises:
        RedirectRefused: it leads nowhere, in a circle, from https to http, or there were too many.
    """
    if not location:
        raise RedirectRefused("redirects without saying where to")
    try:
        url = check_url(urljoin(visited[-1], location.strip()))
    except (InvalidURL, ValueError) as error:
        raise RedirectRefused("redirects to something that is no URL") from error
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


def is_same_party(url: str, other: str) -> bool:
    """Tell whether what was given for `url` may be sent to `other`: the same origin, or its step up from http to https."""
    first, second = origin_of(url), origin_of(other)
    if first == second:
        return True
    return first.host == second.host and (first.scheme, first.port, second.scheme, second.port) == ("http", 80, "https", 443)
