"""The connections of a fetcher: one pool for each proxy and each set of trusted certificates.

Pools of httpx, below its client: a client would keep cookies, follow redirects and add credentials on its own account.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple, Optional

import httpx
import trio

from pylightnix.errors import FetchSetupError
from pylightnix.fetch.urls import shown_url, userinfo_of, without_userinfo

__all__ = ["Route", "Transports"]

_IDLE_MAX: Final = 32
_CLOSE_SECONDS: Final = 5.0


class Route(NamedTuple):
    """How a server is reached. Holds secrets; shown nowhere."""

    proxy: Optional[str]
    ca_pem: Optional[str]
    is_tls: bool


@dataclass(slots=True)
class _Pool:
    transport: httpx.AsyncHTTPTransport
    users: int = 0


class Transports:
    """Pools of connections, made when they are needed and kept."""

    def __init__(self) -> None:
        self._pools: dict[Route, _Pool] = {}

    @asynccontextmanager
    async def lent(self, route: Route) -> AsyncIterator[httpx.AsyncHTTPTransport]:
        """Lend the pool of a route.

        Raises:
            FetchSetupError: the route cannot be taken.
        """
        pool = self._pools.get(route)
        if pool is None:
            if len(self._pools) >= _IDLE_MAX:
                await self._close_idle()
            pool = self._pools[route] = _Pool(_made(route))
        pool.users += 1
        try:
            yield pool.transport
        finally:
            pool.users -= 1

    async def _close_idle(self) -> None:
        for route, pool in list(self._pools.items()):
            if pool.users == 0:
                del self._pools[route]
                with trio.move_on_after(_CLOSE_SECONDS, shield=True):
                    await pool.transport.aclose()

    async def aclose(self) -> None:
        """Close all connections. Whoever still uses one gets an error."""
        with trio.move_on_after(_CLOSE_SECONDS, shield=True):
            for pool in self._pools.values():
                await pool.transport.aclose()
        self._pools.clear()


def _made(route: Route) -> httpx.AsyncHTTPTransport:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=16, keepalive_expiry=15.0)
    try:
        return httpx.AsyncHTTPTransport(verify=_tls(route), trust_env=False, http1=True, http2=False, limits=limits, proxy=_proxy(route))
    except ssl.SSLError as error:
        raise FetchSetupError("the certificates to trust", "they are not in the PEM format") from error
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        where = f"the proxy {shown_url(route.proxy or '')}"
        raise FetchSetupError(where, "it is of a kind that this installation does not know") from error


def _tls(route: Route) -> ssl.SSLContext:
    if not route.is_tls:
        # Trusts nobody, as nobody is asked for a certificate; reading all authorities takes longer than a small file.
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if route.ca_pem is None:
        return httpx.create_ssl_context(trust_env=False)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=route.ca_pem)
    return context


def _proxy(route: Route) -> Optional[httpx.Proxy]:
    if route.proxy is None:
        return None
    context = _tls(route._replace(is_tls=True)) if route.proxy.startswith("https:") else None
    return httpx.Proxy(without_userinfo(route.proxy), auth=userinfo_of(route.proxy), ssl_context=context)
