"""What a stage fetches, as bytes: how to get at the file, and whose proxies and credentials to use for it.

No code travels, so who fetches need not trust who asks: all of it is checked when it is unpacked. The bytes may hold secrets; they are
for a connection, never for a disk, and no error shows them. Must not know how files are fetched.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Final, Optional

import msgspec
from msgspec import Meta, field

from pylightnix.errors import Misuse
from pylightnix.fetch.environment import FetchEnvironment, Login
from pylightnix.fetch.files import FetchedFile
from pylightnix.fetch.spec import checked_headers
from pylightnix.fetch.urls import check_url, local_path_of, shown_url
from pylightnix.stages.fetch import FetchedRealizer, FetchRealizer
from pylightnix.stages.node import problem_with_entry
from pylightnix.unpack_limits import checked_limits

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["pack_fetch", "pack_fetched", "unpack_fetch", "unpack_fetched"]

ORDER_BYTES_MAX: Final = 10 << 20
"""More than a user's certificates and logins together may be."""

_Limit = Annotated[int, Meta(ge=0, le=2**53)]
_Seconds = Annotated[float, Meta(gt=0, le=1e12)]
_Texts = Annotated[list[str], Meta(max_length=1000)]


class _Order(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    urls: _Texts = field(default_factory=list)
    filename: Optional[str] = None
    headers: dict[str, str] = field(default_factory=dict)
    max_bytes: Optional[_Limit] = None
    insecure_redirects: bool = False
    total_seconds: Optional[_Seconds] = None
    is_fresh: bool = False
    checks_promises: bool = True
    unpacks: bool = True
    limits: Optional[dict[str, int]] = None
    proxies: list[tuple[str, str]] = field(default_factory=list)
    no_proxy: str = ""
    logins: list[tuple[str, str, str]] = field(default_factory=list)
    ca_pem: Optional[str] = None
    hashed_mirrors: _Texts = field(default_factory=list)
    troubles: list[tuple[str, str, str]] = field(default_factory=list)


def pack_fetch(realizer: FetchRealizer, environment: FetchEnvironment) -> bytes:
    """Return what `realizer` fetches, in `environment`, as a MessagePack map; see `docs/protocol.md`."""
    order = _Order(
        urls=list(realizer.urls),
        filename=realizer.filename,
        headers=dict(realizer.headers.items()),
        max_bytes=realizer.max_bytes,
        insecure_redirects=realizer.insecure_redirects,
        total_seconds=realizer.total_seconds,
        is_fresh=realizer.is_fresh,
        checks_promises=realizer.checks_promises,
        unpacks=realizer.unpacks,
        limits=_packed_limits(realizer),
        proxies=list(environment.proxies),
        no_proxy=environment.no_proxy,
        logins=[(login.host, login.user, login.password) for login in environment.logins],
        ca_pem=environment.ca_pem,
        hashed_mirrors=list(environment.hashed_mirrors),
        troubles=list(environment.troubles),
    )
    return msgspec.msgpack.encode(order)


def unpack_fetch(blob: bytes) -> tuple[FetchRealizer, FetchEnvironment]:
    """Return what `pack_fetch` was given.

    Raises:
        Misuse: these are no such bytes, or they ask for what no stage asks for, a local file for example.
    """
    if len(blob) > ORDER_BYTES_MAX:
        raise Misuse(f"expected what is to be fetched in {ORDER_BYTES_MAX} bytes at most, found {len(blob)}; trust fewer certificates")
    try:
        order = msgspec.msgpack.decode(blob, type=_Order)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Misuse(f"expected what is to be fetched as a MessagePack map: {error}") from None
    problem = problem_with_entry(order.filename) if order.filename is not None else None
    if problem:
        raise Misuse(f"expected a plain file name, found {order.filename!r:.100}: {problem}")
    _check_urls([*order.urls, *order.hashed_mirrors, *(url for _, url in order.proxies)])
    realizer = FetchRealizer(
        urls=tuple(order.urls),
        filename=order.filename,
        headers=checked_headers(order.headers, "fetching"),
        max_bytes=order.max_bytes,
        insecure_redirects=order.insecure_redirects,
        total_seconds=order.total_seconds,
        is_fresh=order.is_fresh,
        checks_promises=order.checks_promises,
        unpacks=order.unpacks,
        limits=checked_limits(order.limits, "fetching"),
    )
    environment = FetchEnvironment(
        proxies=tuple(order.proxies),
        no_proxy=order.no_proxy,
        logins=tuple(Login(*login) for login in order.logins),
        ca_pem=order.ca_pem,
        hashed_mirrors=tuple(order.hashed_mirrors),
        troubles=tuple(order.troubles),
    )
    return realizer, environment


class _Fetched(msgspec.Struct, frozen=True, kw_only=True):
    filename: Optional[str]
    urls: list[str]
    checks_promises: bool
    unpacks: bool
    path: bytes
    """As the system has it; it need not be UTF-8."""
    size: int
    limits: Optional[dict[str, int]] = None


def pack_fetched(realizer: FetchRealizer, file: FetchedFile) -> bytes:
    """Return what is left of a realizer to whoever is given the file: how to call it, and where it is."""
    order = _Fetched(
        filename=realizer.filename,
        urls=[shown_url(url) for url in realizer.urls],
        checks_promises=realizer.checks_promises,
        unpacks=realizer.unpacks,
        path=os.fsencode(file.path),
        size=file.size,
        limits=_packed_limits(realizer),
    )
    return msgspec.msgpack.encode(order)


def unpack_fetched(blob: bytes) -> FetchedRealizer:
    """Return a realizer that does the rest of what `pack_fetched` was given.

    Raises:
        Misuse: these are no such bytes.
    """
    try:
        order = msgspec.msgpack.decode(blob, type=_Fetched)
    except msgspec.DecodeError as error:
        raise Misuse(f"expected a file that was fetched as a MessagePack map: {error}") from None
    realizer = FetchRealizer(
        urls=tuple(order.urls),
        filename=order.filename,
        checks_promises=order.checks_promises,
        unpacks=order.unpacks,
        limits=checked_limits(order.limits, "fetching"),
    )
    return FetchedRealizer(realizer, FetchedFile(os.fsdecode(order.path), order.size, ()))


def _packed_limits(realizer: FetchRealizer) -> Optional[dict[str, int]]:
    return None if realizer.limits is None else asdict(realizer.limits)


def _check_urls(urls: Sequence[str]) -> None:
    for url in urls:
        if local_path_of(check_url(url)) is not None:
            raise Misuse("expected a URL of http or https; a local file is taken by the program that may open it")
