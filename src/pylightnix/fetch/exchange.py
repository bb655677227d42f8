"""One question to one server, redirects followed: who is asked, with which headers, and what its failures mean."""

from __future__ import annotations

import base64
import math
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Optional

import httpx
import trio

from pylightnix._version import __version__
from pylightnix.fetch.environment import FetchEnvironment
from pylightnix.fetch.means import Means
from pylightnix.fetch.redirects import REDIRECT_STATUSES, RedirectRefused, is_same_party, redirected
from pylightnix.fetch.retrying import Failure, is_worth_retrying, parse_retry_after
from pylightnix.fetch.spec import FetchLimits, Headers
from pylightnix.fetch.transports import Route
from pylightnix.fetch.urls import origin_of, userinfo_of, without_userinfo

__all__ = ["Question", "Unanswered", "asked", "failure_of", "refusal_of"]

_CLOSE_SECONDS: Final = 5.0


class Unanswered(Exception):
    """There is no answer with a body to read."""

    def __init__(self, problem: str, *, is_permanent: bool) -> None:
        super().__init__(problem)
        self.problem, self.is_permanent = problem, is_permanent


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask for."""

    url: str
    environment: FetchEnvironment
    secret_headers: Headers
    """For this URL's own server, and no other."""
    headers: Mapping[str, str]
    """For whoever answers in the end."""
    insecure_redirects: bool


@asynccontextmanager
async def asked(means: Means, question: Question) -> AsyncIterator[httpx.Response]:
    """Ask, follow redirects, and lend the answer, its body unread. Waiting for it is bounded, reading it is the caller's business.

    Each server on the way is asked by as many at a time as the limits allow, and let go before the next.

    Raises:
        FetchSetupError: the environment has a proxy or certificates for it that do not do.
        Unanswered: there is none, or not in time, or a redirect is not to be followed.
        httpx.TransportError: the connection failed.
    """
    visited = [question.url]
    with_secrets = True
    while True:
        url = visited[-1]
        with_secrets = with_secrets and is_same_party(question.url, url)
        proxy = question.environment.proxy_for(url)
        route = Route(proxy, question.environment.ca_for(url, proxy), origin_of(url).scheme == "https")
        # The host's first: who waits for a busy server is not to keep others from another one.
        async with means.host_slots(url), means.slots, means.transports.lent(route) as transport:
            response = await _response(transport, _request(question, url, with_secrets, means.limits), means.limits)
            try:
                if response.status_code not in REDIRECT_STATUSES:
                    yield response
                    return
                # The raw ones: httpx joins several with commas, and guesses how they are encoded.
                locations = [value for name, value in response.headers.raw if name.lower() == b"location"]
            finally:
                with trio.move_on_after(_CLOSE_SECONDS, shield=True):
                    await response.aclose()
        try:
            visited.append(redirected(visited, locations, insecure=question.insecure_redirects))
        except RedirectRefused as refused:
            raise Unanswered(str(refused), is_permanent=True) from None


async def _response(transport: httpx.AsyncHTTPTransport, request: httpx.Request, limits: FetchLimits) -> httpx.Response:
    with trio.move_on_after(limits.connect_seconds + limits.stall_seconds):
        return await transport.handle_async_request(request)
    raise Unanswered(f"does not answer within {limits.connect_seconds + limits.stall_seconds:g} s", is_permanent=False)


def _request(question: Question, url: str, with_secrets: bool, limits: FetchLimits) -> httpx.Request:
    # Bytes as they are: what is hashed is the file on the server, not what a server makes of it for the way.
    headers = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": f"pylightnix/{__version__}", **question.headers}
    if with_secrets:
        login = question.environment.login_for(url if userinfo_of(url) is not None else question.url)
        if login is not None:
            headers["Authorization"] = f"Basic {base64.b64encode(':'.join(login).encode()).decode()}"
        own = {name.lower() for name, _ in question.secret_headers.items()}
        headers = {name: value for name, value in headers.items() if name.lower() not in own} | dict(question.secret_headers.items())
    try:
        asked_url = httpx.URL(without_userinfo(url))
    except httpx.InvalidURL as error:
        raise Unanswered("is no URL", is_permanent=True) from error
    timeouts = {"connect": limits.connect_seconds, "read": None, "write": limits.stall_seconds, "pool": None}
    return httpx.Request("GET", asked_url, headers=headers, extensions={"timeout": timeouts})


# --- failures -----------------------------------------------------------------------------------------


def refusal_of(url: str, response: httpx.Response, wall_now: Optional[float] = None) -> Failure:
    """Return what an answer without a file means."""
    status = response.status_code
    wait = parse_retry_after(response.headers.get("retry-after"), time.time() if wall_now is None else wall_now)
    reason = httpx.codes.get_reason_phrase(status)
    asks = "" if wait is None else f", and asks to come back in {wait:.0f} s" if math.isfinite(wait) else ", and asks never to come back"
    problem = f"answers {status}{f' ({reason})' if reason else ''}{asks if is_worth_retrying(status) else ''}"
    return Failure(url, problem, is_permanent=not is_worth_retrying(status), retry_after_seconds=wait)


def failure_of(url: str, error: Exception) -> Failure:
    """Return what a failed connection means. Says nothing that stood in the request."""
    if isinstance(error, Unanswered):
        return Failure(url, error.problem, is_permanent=error.is_permanent)
    cause: Optional[BaseException] = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return Failure(url, f"has a certificate that is not trusted ({cause.verify_message})", is_permanent=True)
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpx.ProxyError):
        return _proxy_failure(url, str(error))
    if isinstance(error, httpx.ConnectTimeout):
        return Failure(url, "cannot be connected to in time")
    if isinstance(error, httpx.ConnectError):
        return Failure(url, f"cannot be connected to ({error})")
    if isinstance(error, httpx.RemoteProtocolError):
        return Failure(url, f"breaks off, or does not speak HTTP ({error})")
    if isinstance(error, (httpx.UnsupportedProtocol, httpx.LocalProtocolError)):
        return Failure(url, "cannot be asked for this", is_permanent=True)  # the error's text may quote a header
    return Failure(url, f"breaks off ({type(error).__name__})")


def _proxy_failure(url: str, text: str) -> Failure:
    status = int(text[:3]) if text[:3].isdecimal() else 502
    return Failure(url, f"is not to be had through the proxy ({text[:100]})", is_permanent=not is_worth_retrying(status))
