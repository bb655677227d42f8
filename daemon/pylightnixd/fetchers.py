"""The fetchers of one daemon: a process beside it for all fetches, started at the first one, and again when it is lost.

A fetch whose process is lost is tried again. What two were lost with gets one of its own: should it be the cause, by
what its server sends, it is nobody else's trouble any more. Must not know what is fetched for what.

Here is where a fetcher would get a sandbox: it needs the network, `fetch/` for writing without `fetch/taken`, and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Optional

import trio

from pylightnix._version import __version__
from pylightnix.errors import FetchUnavailable
from pylightnix.fetch import FetchedFile, FetchEnvironment, FetchLimits, FetchProgress, FetchSpec
from pylightnix.fetch.urls import shown_url
from pylightnixd.boundary import SharedNursery
from pylightnixd.fetch_process import PROGRAM, FetcherLost, FetcherProcess, Patience, Siblings
from pylightnixd.fetch_words import FetcherHello, Order, order_of
from pylightnixd.fetched_files import FetchedFiles, FileGone

__all__ = ["FetchSettings", "Fetchers"]

LOST_TRIES: Final = 3
"""How many processes a fetch may be lost with. The last is its own."""
GONE_TRIES: Final = 10
BACKOFF_SECONDS: Final = 0.2
OWN_PROCESSES_MAX: Final = 4
_USUAL: Final = FetchLimits()


@dataclass(frozen=True, slots=True)
class FetchSettings:
    """How files are fetched."""

    transfers: int = _USUAL.transfers
    """At a time, in all."""
    transfers_per_host: int = _USUAL.transfers_per_host
    parts_days: float = _USUAL.part_days
    """How long parts of files stay that nobody asks for, and files that prefetch kept."""
    parts_size: int = _USUAL.part_bytes
    """How many bytes of these stay; the oldest go first."""
    hashed_mirrors: tuple[str, ...] = ()
    """Base URLs that are asked for ``<base>/sha256/<hash>`` before all others."""


@dataclass(slots=True, eq=False)
class Fetchers:
    """The processes, and the files that they brought. `nursery` holds the task of each process."""

    nursery: SharedNursery
    siblings: Siblings
    folder: str
    log_folder: str
    settings: FetchSettings
    patience: Patience = Patience()  # noqa: RUF009  # it is frozen
    program: Sequence[str] = PROGRAM
    _files: FetchedFiles = field(init=False)
    _shared: Optional[FetcherProcess] = None
    _has_begun: bool = False
    _starting: trio.Lock = field(default_factory=trio.Lock)
    _own: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(OWN_PROCESSES_MAX))

    def __post_init__(self) -> None:
        self._files = FetchedFiles(self.folder)

    @asynccontextmanager
    async def fetched(
        self, spec: FetchSpec, environment: FetchEnvironment, *, owner: str, progress: Callable[[FetchProgress], object]
    ) -> AsyncIterator[FetchedFile]:
        """Lend a file, its checksums found right here. Arguments and errors as of `pylightnix.fetch.fetcher.Fetcher.fetched`."""
        order = order_of(spec, environment, owner)
        problem, lost, gone = "", 0, 0
        while lost < LOST_TRIES and gone < GONE_TRIES:
            async with AsyncExitStack() as stack:
                try:
                    file = await self._lent(stack, order, spec, progress, alone=lost == LOST_TRIES - 1)
                except FetcherLost as error:
                    problem, lost = f"was being fetched when the fetcher was lost, {lost + 1} times: {error}", lost + 1
                except FileGone:
                    problem, gone = f"was fetched, and its file was gone, {gone + 1} times", gone + 1
                else:
                    yield file
                    return
            await trio.sleep(BACKOFF_SECONDS * (lost or 1))
        urls = [shown_url(url) for url in spec.urls]
        raise FetchUnavailable(urls, [(url, problem) for url in urls])

    async def _lent(
        self, stack: AsyncExitStack, order: Order, spec: FetchSpec, progress: Callable[[FetchProgress], object], *, alone: bool
    ) -> FetchedFile:
        if alone:
            await stack.enter_async_context(self._own)
            process = await self._started()
            stack.callback(process.lose, "it has done its one fetch")
        else:
            process = await self._shared_process()
        # No checkpoint between: one that has nothing to do may end at any.
        fetched = await stack.enter_async_context(process.lent(order, progress))
        return await stack.enter_async_context(self._files.lent(fetched.name, spec, is_alone=fetched.is_alone))

    async def _shared_process(self) -> FetcherProcess:
        async with self._starting:
            if not self._has_begun:
                await self._files.give_back()
                self._has_begun = True
            if self._shared is None or self._shared.lost.is_set():
                self._shared = await self._started()
            return self._shared

    async def _started(self) -> FetcherProcess:
        log_path = os.path.join(self.log_folder, "fetcher.log")
        try:
            process = await FetcherProcess.start(self.siblings, log_path, self.patience, self.program)
        except OSError as error:
            raise FetcherLost(f"it cannot be started ({error.strerror})") from error
        settings = self.settings
        hello = FetcherHello(
            package=__version__,
            folder=os.fsencode(self.folder),
            transfers=settings.transfers,
            transfers_per_host=settings.transfers_per_host,
            hashed_mirrors=list(settings.hashed_mirrors),
            parts_days=settings.parts_days,
            parts_size=settings.parts_size,
        )
        self.nursery.start_soon("a fetcher", partial(process.run, hello))
        try:
            await process.greeted.wait()
        except BaseException:  # noqa: ASYNC103  # raised again below
            process.lose("who wanted it has gone")
            raise
        if process.failure is not None:
            raise process.failure
        if process.lost.is_set():
            raise FetcherLost(f"{process.why_lost}; its log is {log_path}")
        return process
