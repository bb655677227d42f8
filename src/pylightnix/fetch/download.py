"""One fetch, which any number of askers share: from the first question to a file whose checksum is right.

It runs in a task of the fetcher's, not of an asker's, and ends with the last of those. Must not know how askers are told apart.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, Optional, TypeVar

import httpx
import trio

from pylightnix.errors import FetchFailed, FetchSetupError, FetchUnavailable, PylightnixException, StoreIOError, WrongChecksum
from pylightnix.fetch.audience import Audience
from pylightnix.fetch.checksums import Checksum
from pylightnix.fetch.environment import FetchEnvironment
from pylightnix.fetch.exchange import Question, Unanswered, asked, failure_of, refusal_of
from pylightnix.fetch.files import FetchedFile, kept_path
from pylightnix.fetch.local import spellings
from pylightnix.fetch.locks import KeyLocks
from pylightnix.fetch.means import Means
from pylightnix.fetch.parts import PartFile, aside_path, digests_of, disk_errors, make_fetch_folder
from pylightnix.fetch.receiving import Receiver
from pylightnix.fetch.resuming import Append, Misled, StartOver, Whole, answered, range_headers, source_id
from pylightnix.fetch.retrying import Failure, FetchPlan, GiveUp, Pause
from pylightnix.fetch.spec import FetchSpec, Headers
from pylightnix.fetch.urls import shown_url

__all__ = ["Download"]

T = TypeVar("T")

_LOCK_POLL_SECONDS: Final = (0.02, 0.5)
_ANOTHER: Final = "another fetch of this file"


class Download:
    """One fetch and those who want it.

    Attributes:
        audience: who wants it.
        ended: set when there is a file, or a failure.
    """

    def __init__(self, means: Means, spec: FetchSpec, environment: FetchEnvironment, key: str, urls: Sequence[str]) -> None:
        self._means, self._spec, self._environment, self._key, self._urls = means, spec, environment, key, list(urls)
        self.audience = Audience()
        self.ended = trio.Event()
        self._scope = trio.CancelScope()
        self._file: Optional[FetchedFile] = None
        self._failure: Optional[Exception] = None
        self._wrong: Optional[WrongChecksum] = None
        self._setups: dict[str, FetchSetupError] = {}
        self._plan: Optional[FetchPlan] = None
        self._is_waiting = False
        self._locks: Optional[KeyLocks] = None
        self._furthest = 0
        self._is_anew = False
        self._is_whole_only = False
        """No ranges are asked for any more: one has spoilt the file."""
        self._asked_range = False
        """The last answer was to a question for a range."""
        self._may_be_cut = False

    # --- for the fetcher ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Fetch. Never raises but to be cancelled; `result` tells how it ended."""
        seconds = self._spec.total_seconds or self._means.limits.total_seconds
        try:
            with self._scope:
                with trio.move_on_after(seconds) as in_all:
                    self._file = await self._obtain()
                if in_all.cancelled_caught:
                    self._failure = self._too_late(seconds)
        except Exception as error:  # noqa: BLE001  # whatever it is, it is the askers' to hear; the fetcher goes on
            self._failure = error
        finally:
            if self._file is None:
                self.release()
            self.ended.set()

    async def result(self) -> FetchedFile:
        """Wait for the end, and return the file or raise what there is in place of one."""
        await self.ended.wait()
        if self._failure is not None:
            # A copy for each asker: they would add their tracebacks to one another's.
            raise copy.copy(self._failure) if isinstance(self._failure, PylightnixException) else self._failure
        if self._file is None:
            raise FetchUnavailable(self._shown_urls(), [(url, "is not fetched, as the fetcher ends") for url in self._shown_urls()])
        return self._file

    @property
    def has_failed(self) -> bool:
        """It is over, and there is no file."""
        return self.ended.is_set() and self._file is None

    def cancel(self) -> None:
        """Stop, as nobody wants it any more. The part stays."""
        self._scope.cancel()

    def release(self) -> None:
        """Let go of the file, which is removed unless another process uses it."""
        if self._locks is None:
            return
        locks, self._locks = self._locks, None
        # On the loop, for who leaves is to find it gone: a file that was linked elsewhere meanwhile loses a name only.
        if self._file is not None and locks.try_removing():
            with contextlib.suppress(OSError):
                os.unlink(self._file.path)
        locks.close()

    def _too_late(self, seconds: float) -> Exception:
        problem = f"is not fetched within {seconds:g} s"
        if self._is_waiting:
            problem = f"{problem}, since {_ANOTHER} did not end"
        known = self._plan.last_problems() if self._plan is not None else {}
        told = [
            (shown_url(url), f"{problem}; it {known[url]}" if url in known else problem) for url in dict.fromkeys([*known, *self._urls])
        ]
        return FetchUnavailable(self._shown_urls(), told)

    def _shown_urls(self) -> list[str]:
        return [shown_url(url) for url in self._spec.urls]

    # --- the course of a fetch --------------------------------------------------------------------------

    async def _obtain(self) -> FetchedFile:
        try:
            return await self._obtained()
        except StoreIOError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
        # Somebody removed the folder, to have its room perhaps.
        self.release()
        await self._in_thread(lambda: make_fetch_folder(self._means.folder))
        return await self._obtained()

    async def _obtained(self) -> FetchedFile:
        with disk_errors(self._means.folder, "fetching a file"):
            await self._lock()
            found = await self._in_thread(self._opened)
            if isinstance(found, PartFile):
                part = found
                try:
                    await self._try_mirrors(part)
                    found = FetchedFile(part.finish(), part.size, part.checksums())
                finally:
                    part.close()
            if self._locks is None:
                raise AssertionError("BUG: a fetch without its locks")
            is_alone = self._means.gives_away and self._locks.try_alone()
            self._locks.end_fetching()
            return replace(found, is_alone=is_alone)

    async def _lock(self) -> None:
        self._locks = KeyLocks(self._means.folder, self._key)
        pause, longest = _LOCK_POLL_SECONDS
        # The kernel tells nobody when a lock gets free, and a thread that waits for one cannot be cancelled.
        # Who must have a file that nobody else has fetched, or has no checksum to tell one from another, is alone with it.
        take = self._locks.try_using if self._spec.checksums and not self._spec.is_fresh else self._locks.try_removing
        self._is_waiting = True
        while not (take() and self._locks.try_fetching()):
            self.audience.report(0, None, "", 0, f"for {_ANOTHER}")
            await trio.sleep(pause)
            pause = min(2 * pause, longest)
        self._is_waiting = False

    def _opened(self) -> FetchedFile | PartFile:
        """Return the file if it is here already, else what there is of it."""
        present = self._present()
        if present is not None:
            return present
        part = PartFile(self._means.folder, self._key, self._spec.all_algorithms)
        if self._spec.is_fresh:
            part.start_over(None)
        return part

    def _present(self) -> Optional[FetchedFile]:
        """Return the file if another fetch has just got it, prefetch kept it, or it was put aside where another was expected."""
        path = os.path.join(self._means.folder, f"{self._key}.file")
        if not self._spec.checksums or self._spec.is_fresh:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # nothing tells what it is, or nobody wants it
            return None
        found = self._right(path)
        for expected in self._spec.checksums:
            for named in (kept_path(self._means.folder, expected), aside_path(self._means.folder, expected)):
                if found is None:
                    with contextlib.suppress(FileNotFoundError):
                        os.link(named, path)
                        found = self._right(path, (named, expected))
        return found

    def _right(self, path: str, origin: Optional[tuple[str, Checksum]] = None) -> Optional[FetchedFile]:
        """Return the file at `path` if its checksums are right; else remove it, and `origin` too if that is not what its name says."""
        try:
            found = digests_of(path, self._spec.all_algorithms)
        except FileNotFoundError:
            return None
        if self._mismatch(found) is None:
            if origin is not None:
                os.utime(origin[0])
            return FetchedFile(path, os.path.getsize(path), found)
        os.unlink(path)  # a power cut spoilt it
        if origin is not None and origin[1] not in found:
            os.unlink(origin[0])
        return None

    def _mismatch(self, found: Sequence[Checksum]) -> Optional[tuple[Checksum, Checksum]]:
        """Return (expected, found) of the first checksum that is not right."""
        by_name = {each.algorithm: each for each in found}
        return next(((want, by_name[want.algorithm]) for want in self._spec.checksums if by_name[want.algorithm] != want), None)

    async def _try_mirrors(self, part: PartFile) -> None:
        plan = self._plan = FetchPlan(self._means.memory.ordered(self._urls, trio.current_time()), self._means.policy)
        self._furthest = part.size
        while True:
            step = plan.next_step(trio.current_time(), self._means.random.random())
            if isinstance(step, GiveUp):
                if not step.is_retryable:
                    await self._in_thread(lambda: part.start_over(None))
                raise self._given_up(plan, step)
            if isinstance(step, Pause):
                last = plan.failures[-1]
                self.audience.report(part.size, None, last.url, len(plan.failures), f"{step.seconds:.1f} s, since it {last.problem}")
                await trio.sleep(step.seconds)
                continue
            self.audience.report(part.size, part.known.total if part.known else None, step.url, step.attempt)
            failure = await self._attempt(part, step.url, step.attempt)
            if failure is None:
                self._means.memory.answered(step.url)
                return
            if not failure.is_permanent:
                self._means.memory.failed(step.url, trio.current_time())
            plan.failed(failure, trio.current_time())

    def _given_up(self, plan: FetchPlan, step: GiveUp) -> Exception:
        if self._wrong is not None:
            return self._wrong
        if all(failure.problem in self._setups for failure in plan.failures):
            return self._setups[plan.failures[0].problem]
        told = [(shown_url(failure.url), failure.problem) for failure in plan.failures]
        return (FetchUnavailable if step.is_retryable else FetchFailed)(self._shown_urls(), told)

    # --- one attempt ------------------------------------------------------------------------------------

    async def _attempt(self, part: PartFile, url: str, attempt: int) -> Optional[Failure]:
        """Ask one mirror; return why there is no file with the right checksum, None if there is."""
        spec, means = self._spec, self._means
        source = source_id(url)
        ranges = {} if self._is_whole_only else range_headers(part.size, part.known, source, checked=bool(spec.checksums))
        self._asked_range = bool(ranges)
        secrets = spec.headers if url in spec.urls else Headers()
        question = Question(url, self._environment, secrets, ranges, spec.insecure_redirects)
        try:
            async with asked(means, question) as response:
                failure = await self._answer(part, url, attempt, response)
        except FetchSetupError as error:
            failure = Failure(url, f"cannot be asked: {error.where}: {error.problem}", is_permanent=True)
            self._setups[failure.problem] = error
        except (httpx.HTTPError, httpx.InvalidURL, Unanswered) as error:
            failure = failure_of(url, error)
        if failure is not None and spec.checksums and part.size > 0 and self._mismatch(part.checksums()) is None:
            failure = None  # it was all of the file, whatever length the server had announced
        if failure is None:
            # The digests are there already; only what is wrong takes time.
            return None if self._mismatch(part.checksums()) is None else await self._judged(part, url)
        gained = part.size - self._furthest
        if gained > 0 and not failure.is_permanent:
            self._furthest = part.size
            return replace(failure, gained_bytes=gained, total_bytes=part.known.total if part.known else None)
        return failure

    async def _answer(self, part: PartFile, url: str, attempt: int, response: httpx.Response) -> Optional[Failure]:
        """Take in an answer; return why that was not all of the file, None if it was."""
        headers = {name.lower(): value for name, value in response.headers.items()}
        asked = self._asked_range
        meaning = answered(response.status_code, headers, have=part.size, known=part.known, source=source_id(url), asked_range=asked)
        if meaning is None:
            return self._refusal(url, response)
        if isinstance(meaning, Whole):
            return None
        if isinstance(meaning, Misled):
            await self._in_thread(lambda: part.start_over(None))
            return Failure(url, meaning.problem, is_permanent=not asked, starts_over=asked)
        return await self._body(part, url, attempt, response, meaning)

    def _refusal(self, url: str, response: httpx.Response) -> Failure:
        failure = refusal_of(url, response)
        # Many servers say 404 to those who may not know what there is.
        trouble = self._environment.login_trouble_for(url) if response.status_code in (401, 403, 404) else ""
        return replace(failure, problem=f"{failure.problem} ({trouble})") if trouble else failure

    async def _body(
        self, part: PartFile, url: str, attempt: int, response: httpx.Response, meaning: Append | StartOver
    ) -> Optional[Failure]:
        total = meaning.known.total
        largest = min(self._means.limits.max_bytes, self._spec.max_bytes if self._spec.max_bytes is not None else 1 << 62)
        if total is not None and total > largest:
            return Failure(url, f"has {total} bytes, more than the {largest} bytes that are allowed", is_permanent=True)
        if isinstance(meaning, StartOver):
            if not part.try_begin(meaning.known):
                await self._in_thread(lambda: part.start_over(meaning.known))
        else:
            part.was_resumed = True
            await self._in_thread(lambda: part.note(meaning.known))

        def report(so_far: int) -> None:
            self.audience.report(so_far, total, url, attempt)

        receiver = Receiver(part, url, self._means.limits, largest, self._means.disk, report, response.aclose)
        framed = "content-length" in response.headers or "chunked" in response.headers.get("transfer-encoding", "").lower()
        self._may_be_cut = not framed
        # As it comes: httpx would decompress what `aiter_bytes` gives.
        failure = await receiver.receive(response.aiter_raw())
        if failure is None and total is not None and part.size < total:
            return Failure(url, f"sends {part.size} bytes of {total}")
        return failure

    async def _judged(self, part: PartFile, url: str) -> Failure:
        """Say what is wrong with a whole file, and put it aside; but if the transfer may have spoilt it, have it fetched anew, once."""
        different = self._mismatch(part.checksums())
        if different is None:
            raise AssertionError("BUG: nothing is wrong with this file")
        # A server that answers 200 to a question for a range may have sent a part nevertheless.
        is_spoilt = part.was_resumed or self._asked_range
        if is_spoilt or (self._may_be_cut and not self._is_anew):
            self._is_anew = self._is_anew or not is_spoilt
            self._is_whole_only = self._is_whole_only or is_spoilt
            spoilt = "has another file than the one whose beginning is here" if is_spoilt else "sends a file that may have been cut off"
            await self._in_thread(lambda: part.start_over(None))
            return Failure(url, spoilt, starts_over=True)
        expected, found = different
        aside = await self._in_thread(lambda: part.set_aside(found))
        await self._means.sweep()
        error = WrongChecksum(shown_url(url), spellings(expected), spellings(found), aside)
        self._wrong = self._wrong or error
        return Failure(url, f"has a file with another checksum, kept as {aside}", is_permanent=True)

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(function, limiter=self._means.disk)
