"""The language of a daemon and its fetcher: which file to fetch for whom, how far it is, and where it lies.

Orders hold secrets of users; they are for the socket pair between the two, never for a disk or a log. Must not know how
either end does its part.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Optional

import msgspec
from msgspec import Meta, field

from pylightnix.fetch import Checksum, FetchEnvironment, FetchProgress, FetchSpec, Headers, Login
from pylightnix.protocol.limits import Limits
from pylightnix.protocol.vocabulary import Message

__all__ = ["FROM_FETCHER", "TO_FETCHER", "Fetched", "FetcherHello", "FetcherWelcome", "Order", "Release", "Told", "order_of"]

_MIB: Final = 1024 * 1024
TO_FETCHER: Final = Limits(message_bytes=32 * _MIB, text_bytes=16 * _MIB)
"""A user's certificates travel in one piece."""
FROM_FETCHER: Final = Limits(message_bytes=_MIB, text_bytes=_MIB, values=10_000)
"""It reads what strangers send, so it is not taken at its word: not for long words either."""

_Count = Annotated[int, Meta(ge=0, le=1 << 62)]
_Text = Annotated[str, Meta(max_length=20_000)]


class FetcherHello(Message, frozen=True, kw_only=True):
    """What a new fetcher is told."""

    package: str
    """The version of this package; both ends must be of the same."""
    folder: bytes
    transfers: Annotated[int, Meta(ge=1)]
    transfers_per_host: Annotated[int, Meta(ge=1)]
    hashed_mirrors: list[str] = field(default_factory=list)
    parts_days: Annotated[float, Meta(ge=0)]
    parts_size: _Count


class FetcherWelcome(Message, frozen=True, kw_only=True):
    """It is ready."""

    package: str


class Order(Message, frozen=True, kw_only=True, omit_defaults=True):
    """Fetch a file, and lend it until `release`. Who it is for decides whose fetch it may join."""

    owner: str
    urls: list[str]
    checksums: list[tuple[str, str]]
    headers: dict[str, str] = field(default_factory=dict)
    max_bytes: Optional[int] = None
    insecure_redirects: bool = False
    total_seconds: Optional[float] = None
    is_fresh: bool = False
    proxies: list[tuple[str, str]] = field(default_factory=list)
    no_proxy: str = ""
    logins: list[tuple[str, str, str]] = field(default_factory=list)
    ca_pem: Optional[str] = None
    hashed_mirrors: list[str] = field(default_factory=list)
    troubles: list[tuple[str, str, str]] = field(default_factory=list)

    def spec(self) -> FetchSpec:
        """Return what to fetch."""
        return FetchSpec(
            urls=tuple(self.urls),
            checksums=tuple(Checksum(*each) for each in self.checksums),
            headers=Headers(self.headers),
            max_bytes=self.max_bytes,
            insecure_redirects=self.insecure_redirects,
            total_seconds=self.total_seconds,
            is_fresh=self.is_fresh,
        )

    def environment(self) -> FetchEnvironment:
        """Return the settings of the user whom it is for."""
        return FetchEnvironment(
            proxies=tuple(self.proxies),
            no_proxy=self.no_proxy,
            logins=tuple(Login(*each) for each in self.logins),
            ca_pem=self.ca_pem,
            hashed_mirrors=tuple(self.hashed_mirrors),
            troubles=tuple(self.troubles),
        )


def order_of(spec: FetchSpec, environment: FetchEnvironment, owner: str) -> Order:
    """Return the order whose `spec` and `environment` are these."""
    return Order(
        owner=owner,
        urls=list(spec.urls),
        checksums=[(each.algorithm, each.hex) for each in spec.checksums],
        headers=dict(spec.headers.items()),
        max_bytes=spec.max_bytes,
        insecure_redirects=spec.insecure_redirects,
        total_seconds=spec.total_seconds,
        is_fresh=spec.is_fresh,
        proxies=list(environment.proxies),
        no_proxy=environment.no_proxy,
        logins=[(login.host, login.user, login.password) for login in environment.logins],
        ca_pem=environment.ca_pem,
        hashed_mirrors=list(environment.hashed_mirrors),
        troubles=list(environment.troubles),
    )


class Fetched(Message, frozen=True, kw_only=True):
    """The answer to an order. The daemon hashes the file by itself."""

    name: Annotated[str, Meta(pattern=r"\A[0-9a-f]{32}\.file\Z")]
    """In the folder."""
    is_alone: bool
    """Whether no other process uses the file, so that it may be moved away."""


class Release(Message, frozen=True, kw_only=True):
    """The file of an order is not wanted any more, be it there or not."""

    fetch: int


class Told(Message, frozen=True, kw_only=True):
    """How far an order is, as `FetchProgress` has it."""

    fetch: int
    bytes: _Count
    total: Optional[_Count]
    bytes_per_second: float
    mirror: _Text
    attempt: _Count
    waiting: _Text

    @classmethod
    def of(cls, fetch: int, progress: FetchProgress) -> Told:
        fields: dict[str, Any] = {name: getattr(progress, name) for name in FetchProgress.__slots__}
        fields.update(mirror=progress.mirror[:20_000], waiting=progress.waiting[:20_000])
        return cls(fetch=fetch, **fields)

    def progress(self) -> FetchProgress:
        fields = msgspec.structs.asdict(self)
        del fields["fetch"]
        return FetchProgress(**fields)
