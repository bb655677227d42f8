"""Fetching files over HTTP: resumed, checked, from mirrors, each once. The one asynchronous room of the package, on trio.

What decides is synchronous and knows neither network nor clock: `checksums`, `urls`, `redirects`, `retrying`, `mirrors`, `resuming`,
`environment` (but for `read_environment`), `spec`. What acts is `fetcher`, for a long-lived process, and around it
`download`, `audience`, `means`, `exchange`, `receiving`, `transports`; for synchronous code there are `blocking`, and `local` for local
files. `parts`, `files`, `locks` and `sweeping` have what lies on the disk.

Here are the names that load neither trio nor httpx; `Fetcher` is had from `pylightnix.fetch.fetcher`.
"""

from __future__ import annotations

from pylightnix.fetch.checksums import ALGORITHMS, Checksum, parse_checksum
from pylightnix.fetch.environment import FetchEnvironment, Login, read_environment
from pylightnix.fetch.files import FetchedFile
from pylightnix.fetch.spec import FetchLimits, FetchProgress, FetchSpec, Headers, checked_headers

__all__ = [
    "ALGORITHMS",
    "Checksum",
    "FetchEnvironment",
    "FetchLimits",
    "FetchProgress",
    "FetchSpec",
    "FetchedFile",
    "Headers",
    "Login",
    "checked_headers",
    "parse_checksum",
    "read_environment",
]
