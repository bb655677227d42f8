"""What is to be fetched, within which limits, and how far it is. Values only."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Optional

from pylightnix.errors import Misuse
from pylightnix.fetch.checksums import Checksum

__all__ = ["FetchLimits", "FetchProgress", "FetchSpec", "Headers", "OnProgress", "Speedometer", "checked_headers"]

_TOKEN: Final = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_OWN_HEADERS: Final = frozenset(
    {
        *("accept-encoding", "connection", "content-length", "host", "if-range", "proxy-authorization", "range"),
        *("te", "trailer", "transfer-encoding", "upgrade"),
    }
)


class Headers:
    """Headers to send, whose values nobody gets to see: they may be secrets.

    They stand in no text of this object, and in no hash of code. A pickle of it has them, for the process that fetches needs them.
    """

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, str] = {}) -> None:
        self._items = tuple(sorted(items.items()))

    def items(self) -> tuple[tuple[str, str], ...]:
        return self._items

    def __reduce__(self) -> tuple[type[Headers], tuple[dict[str, str]]]:
        return Headers, (dict(self._items),)

    def __bool__(self) -> bool:
        return bool(self._items)

    def __eq__(self, other: object) -> bool:
        return self._items == other._items if isinstance(other, Headers) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._items)

    def __repr__(self) -> str:
        return f"<Headers {', '.join(name for name, _ in self._items) or 'none'}>"


def checked_headers(headers: Mapping[str, str], what: str) -> Headers:
    """Return headers that may be sent; `what` takes them.

    Raises:
        Misuse: one is not spelt as headers are, or is not for users to set. The error shows names, and no values.
    """
    for name, value in headers.items():
        if not isinstance(name, str) or not name or not set(name) <= _TOKEN:
            raise Misuse(f"{what}: expected the name of a header, found {str(name)[:40]!r}")
        if name.lower() in _OWN_HEADERS:
            raise Misuse(f"{what}: the header {name} is set by the transfer itself; leave it out")
        if not isinstance(value, str) or not value.isascii() or value != value.strip() or not value.isprintable():
            raise Misuse(f"{what}: expected one line of ASCII text for the header {name}, found something else, not shown here")
    return Headers(headers)


@dataclass(frozen=True, slots=True)
class FetchSpec:
    """One file to fetch."""

    urls: tuple[str, ...]
    """Mirrors of it, to be asked in order; http and https."""
    checksums: tuple[Checksum, ...] = ()
    """What it must have, all of them."""
    headers: Headers = field(default_factory=Headers)
    """Sent to the servers of `urls`, and to no other that they redirect to."""
    max_bytes: Optional[int] = None
    """Refuse a larger file."""
    insecure_redirects: bool = False
    """Follow redirects from https to http."""
    total_seconds: Optional[float] = None
    """Give up after this time, waits and retries included; None for the fetcher's own limit."""
    is_fresh: bool = False
    """Use nothing that was fetched before, be it a part or the whole."""
    algorithms: tuple[str, ...] = ()
    """What to compute besides the `checksums`; SHA-256 if there are none of either."""

    @property
    def all_algorithms(self) -> tuple[str, ...]:
        """What is computed."""
        return tuple(dict.fromkeys([*(each.algorithm for each in self.checksums), *self.algorithms])) or ("sha256",)

    def disk_key(self, owner: str, routes: Sequence[Optional[str]] = ()) -> str:
        """Return the name that its files have on disk.

        Args:
            owner: whose it is, empty if it may be anybody's.
            routes: the ways by which servers are reached, None for the usual one.
        """
        # Mirrors are a set: in which order they are asked makes no other file.
        parts = [sorted(set(self.urls)), [[each.algorithm, each.hex] for each in self.checksums], owner]
        parts += [sorted({route for route in routes if route is not None})]
        parts += [[name for name, _ in self.headers.items()], self.max_bytes, self.insecure_redirects, self.all_algorithms, self.is_fresh]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """What a fetcher allows itself."""

    transfers: int = 32
    """At a time, in all."""
    transfers_per_host: int = 8
    connect_seconds: float = 20.0
    stall_seconds: float = 60.0
    """Break off where fewer than `stall_bytes` came in this time."""
    stall_bytes: int = 1024
    total_seconds: float = 24 * 3600.0
    """For one fetch, waits and retries included."""
    max_bytes: int = 1 << 42
    part_days: float = 14.0
    """How long files stay that nobody asks for: parts of files, files that prefetch kept, files with a wrong hash."""
    part_bytes: int = 32 << 30
    """How much room these may take; the oldest go first."""
    sweep_seconds: float = 3600.0
    """How often it is looked for what is to go."""


@dataclass(frozen=True, slots=True)
class FetchProgress:
    """How far a fetch is."""

    bytes: int
    """Of the file, what was there before this fetch included."""
    total: Optional[int]
    """Of the file, None where the server does not say."""
    bytes_per_second: float
    """Over the last seconds."""
    mirror: str
    """The URL that is asked, without secrets; empty before there is one."""
    attempt: int
    """From 1, over all mirrors."""
    waiting: str = ""
    """What for, if nothing comes at the moment; else empty."""


OnProgress = Callable[[FetchProgress], object]
"""Called from the fetcher's loop: it must return soon, and may be called often. One that raises is not called again."""


@dataclass(slots=True)
class Speedometer:
    """How fast bytes come, over a window of the last seconds."""

    window_seconds: float = 5.0
    _samples: deque[tuple[float, int]] = field(default_factory=deque)

    def note(self, bytes_so_far: int, now: float) -> float:
        """Take note of a reading and return bytes per second."""
        if self._samples and bytes_so_far < self._samples[-1][1]:
            self._samples.clear()  # it started over
        self._samples.append((now, bytes_so_far))
        while len(self._samples) > 2 and self._samples[1][0] <= now - self.window_seconds:
            self._samples.popleft()
        (begun, had), (last, has) = self._samples[0], self._samples[-1]
        return (has - had) / (last - begun) if last > begun else 0.0
