"""The fetcher: one for a long-lived process, in its trio loop, for all who want files.

It owns connections, limits, the memory of failing servers, and a folder for parts of files, which it shares with the fetchers of
other processes of the same user. Whoever asks for what is being fetched already joins that fetch.

A daemon uses it like this, the fetcher living as long as the daemon::

    async with running_fetcher(f"{layout.state}/fetch", hashed_mirrors=settings.hashed_mirrors) as fetcher:
        ...
        # for each build, from its task; `environment` was made in the client, by `read_environment(os.environ)`,
        # for that opens files (netrc, certificates) which the daemon must not open for it
        async with fetcher.fetched(spec, environment, owner=str(uid), progress=report) as file:
            await trio.to_thread.run_sync(file.place, target)  # a link, or a copy if others use the file, too

- `spec` is what a `FetchRealizer` of `pylightnix.stages` gives for a config (`spec_for`). Local files are the business of who asks.
- Cancelling the task that asked leaves the fetch to the others who want it; without any it stops, and its part stays.
- `progress` is called from the loop and must not block.
- Errors are `FetchFailed` and its kin, `StoreError` for the disk's. None holds a secret.
- Parsing what servers send is httpx's and h11's work, in this process. To have it done by an unprivileged user, run all of this in a child.

Must not know stages, nor what becomes of the files.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final, Optional

import trio

from pylightnix.errors import InvalidURL, Misuse
from pylightnix.fetch.download import Download
from pylightnix.fetch.environment import FetchEnvironment
from pylightnix.fetch.files import FetchedFile, keep_file
from pylightnix.fetch.means import Means
from pylightnix.fetch.mirrors import hashed_urls
from pylightnix.fetch.parts import make_fetch_folder
from pylightnix.fetch.retrying import RetryPolicy
from pylightnix.fetch.spec import FetchLimits, FetchSpec, OnProgress
from pylightnix.fetch.urls import check_url, local_path_of, shown_url

__all__ = ["Fetcher", "running_fetcher"]

_DISK_THREADS: Final = 8
_USUAL_LIMITS: Final = FetchLimits()
_USUAL_POLICY: Final = RetryPolicy()


class Fetcher:
    """Fetches files, each once however many ask. Made by `running_fetcher`."""

    def __init__(self, nursery: trio.Nursery, means: Means, hashed_mirrors: Sequence[str]) -> None:
        self._nursery, self._means, self._hashed_mirrors = nursery, means, tuple(hashed_mirrors)
        self._downloads: dict[object, Download] = {}

    @asynccontextmanager
    async def fetched(
        self,
        spec: FetchSpec,
        environment: Optional[FetchEnvironment] = None,
        *,
        owner: str = "",
        progress: Optional[OnProgress] = None,
        keep: bool = False,
    ) -> AsyncIterator[FetchedFile]:
        """Lend a file, fetched or joined in its fetch. It is removed with the last of those who asked for it.

        Args:
            spec: what to fetch.
            environment: the settings of the user who asks.
            owner: who that is. Fetches that use credentials, a proxy or certificates of one's own, or have no checksum, are shared only
                within one owner.
            progress: is told how far it is.
            keep: keep the file for a while for later builds that name its checksum.

        Raises:
            Misuse: `spec` names nothing to fetch; `InvalidURL` among them.
            FetchSetupError: something in `environment` that is needed does not do.
            WrongChecksum: the file is another one.
            FetchUnavailable: it cannot be had now; what was received stays for the next attempt.
            FetchFailed: it cannot be had.
            StoreError: it cannot be written.
        """
        key, download = self._joined(spec, environment or FetchEnvironment(), owner)
        asker = object()
        download.audience.join(asker, progress)
        try:
            file = await download.result()
            if keep:
                await trio.to_thread.run_sync(keep_file, self._means.folder, file, limiter=self._means.disk)
            yield file
        finally:
            self._leave(key, download, asker)

    def _joined(self, spec: FetchSpec, environment: FetchEnvironment, owner: str) -> tuple[object, Download]:
        urls = self._urls(spec, environment)
        has_credentials = bool(spec.headers) or any(environment.has_credentials_for(url) for url in urls)
        # A proxy that gives out bytes by and by, or others' bytes, is its user's trouble alone: nobody else is to wait for that.
        routes = tuple(environment.route_of(url) for url in urls)
        is_somebodys = has_credentials or any(routes) or not spec.checksums
        disk_key = spec.disk_key(owner if is_somebodys else "", routes)
        passwords = tuple(environment.proxies) if any(routes) else ()
        key = (disk_key, spec.headers, frozenset(urls), passwords, environment.ca_pem, spec.total_seconds)
        download = self._downloads.get(key)
        if download is None or download.has_failed:
            download = self._downloads[key] = Download(self._means, spec, environment, disk_key, urls)
            self._nursery.start_soon(download.run)
        return key, download

    def _urls(self, spec: FetchSpec, environment: FetchEnvironment) -> list[str]:
        """Return all that may be asked, mirrors that keep files by hash first."""
        if not spec.urls:
            raise Misuse("a fetch expects one URL or more, found none")
        for url in spec.urls:
            if local_path_of(check_url(url)) is not None:
                raise InvalidURL(shown_url(url), "a local file is not fetched: who may open it copies it")
        bases = dict.fromkeys([*environment.mirrors_for(spec.checksums), *self._hashed_mirrors])
        return list(dict.fromkeys([*hashed_urls(bases, spec.checksums), *spec.urls]))

    def _leave(self, key: object, download: Download, asker: object) -> None:
        download.audience.leave(asker)
        if download.audience:
            return
        if self._downloads.get(key) is download:
            del self._downloads[key]
        if download.ended.is_set():
            download.release()
        else:
            download.cancel()


@asynccontextmanager
async def running_fetcher(
    folder: str,
    *,
    limits: FetchLimits = _USUAL_LIMITS,
    policy: RetryPolicy = _USUAL_POLICY,
    hashed_mirrors: Sequence[str] = (),
    gives_away: bool = False,
) -> AsyncIterator[Fetcher]:
    """Run a fetcher as long as the block lasts. At its end, fetches that are still at work stop, and their parts stay.

    Args:
        folder: where files are on their way, `<state>/fetch`. Made if it is not there; swept of what is too old, now and then.
        limits: what it allows itself.
        policy: how often it tries.
        hashed_mirrors: base URLs, asked for ``<base>/sha256/<hash>`` before all others.
        gives_away: who asks may move files away that are `FetchedFile.is_alone`; other processes wait while such a file is lent.

    Raises:
        StoreError: the folder cannot be made.
    """
    for mirror in hashed_mirrors:
        check_url(mirror)
    await trio.to_thread.run_sync(make_fetch_folder, folder)
    means = Means(
        folder=folder,
        limits=limits,
        policy=policy,
        slots=trio.CapacityLimiter(limits.transfers),
        disk=trio.CapacityLimiter(_DISK_THREADS),
        gives_away=gives_away,
    )
    await means.sweep()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_sweep_by_and_by, means)
            try:
                yield Fetcher(nursery, means, hashed_mirrors)
            finally:
                nursery.cancel_scope.cancel()
    finally:
        await means.transports.aclose()


async def _sweep_by_and_by(means: Means) -> None:
    while True:
        await trio.sleep(means.limits.sweep_seconds)
        await means.sweep()
