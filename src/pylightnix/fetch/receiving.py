"""Taking in the body of an answer: read, written and hashed side by side, with a bounded number of blocks between."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Optional

import httpx
import trio

from pylightnix.fetch.exchange import failure_of
from pylightnix.fetch.parts import PartFile
from pylightnix.fetch.retrying import Failure
from pylightnix.fetch.spec import FetchLimits

__all__ = ["Receiver"]

_BLOCK_BYTES: Final = 1 << 20
_BLOCKS_AHEAD: Final = 3
_CLOSE_SECONDS: Final = 5.0


@dataclass(slots=True)
class Receiver:
    """Takes in one body."""

    part: PartFile
    url: str
    limits: FetchLimits
    max_bytes: int
    disk: trio.CapacityLimiter
    report: Callable[[int], None]
    """Told how many bytes of the file there are."""
    break_off: Callable[[], Awaitable[None]]
    """Closes the connection that the body comes by."""
    _disk_error: Optional[Exception] = None

    async def receive(self, body: AsyncIterator[bytes]) -> Optional[Failure]:
        """Read a body to its end; return why that did not work, None if it did. What came is in the part either way.

        Raises:
            OSError: it cannot be written.
        """
        to_disk, blocks = trio.open_memory_channel[list[bytes]](_BLOCKS_AHEAD)
        # Errors are values in here: two tasks that fail at once would raise a group.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write, blocks)
            with to_disk:
                failure = await self._read(body, to_disk)
        if self._disk_error is not None:
            raise self._disk_error
        return failure

    async def _read(self, body: AsyncIterator[bytes], to_disk: trio.MemorySendChannel[list[bytes]]) -> Optional[Failure]:
        gathered: list[bytes] = []
        failure: Optional[Failure] = None
        with trio.CancelScope(deadline=trio.current_time() + self.limits.stall_seconds) as stall:
            try:
                failure = await self._gather(body, to_disk, gathered, stall)
            except httpx.TransportError as error:
                failure = failure_of(self.url, error)
            except trio.BrokenResourceError:
                return None  # the disk failed, which is told by the other task
            finally:
                with trio.move_on_after(_CLOSE_SECONDS, shield=True):
                    await self._finish(body)
        if stall.cancelled_caught:
            problem = f"sends less than {self.limits.stall_bytes} bytes in {self.limits.stall_seconds:g} s"
            failure = Failure(self.url, problem, is_stall=True)
        if gathered:
            try:
                await to_disk.send(gathered)
            except trio.BrokenResourceError:
                pass  # as above
        return failure

    async def _finish(self, body: AsyncIterator[bytes]) -> None:
        """Run the generators that the body comes from to their ends: httpx nests some, and closes only the outermost."""
        await self.break_off()
        try:
            async for _ in body:
                pass
        except (httpx.TransportError, httpx.StreamError):
            pass  # it was broken off

    async def _gather(
        self,
        body: AsyncIterator[bytes],
        to_disk: trio.MemorySendChannel[list[bytes]],
        gathered: list[bytes],
        stall: trio.CancelScope,
    ) -> Optional[Failure]:
        """Pass on what comes in blocks; what is in none yet is in `gathered`, also after an error."""
        total, in_block, since_mark = self.part.size, 0, 0
        async for chunk in body:
            gathered.append(chunk)
            total += len(chunk)
            in_block += len(chunk)
            since_mark += len(chunk)
            if total > self.max_bytes:
                return Failure(self.url, f"sends more than the {self.max_bytes} bytes that are allowed", is_permanent=True)
            if since_mark >= self.limits.stall_bytes:
                since_mark = 0
                stall.deadline = trio.current_time() + self.limits.stall_seconds
            if in_block >= _BLOCK_BYTES:
                stall.deadline = math.inf  # waiting for the disk is not the server's fault
                await to_disk.send(gathered.copy())
                stall.deadline = trio.current_time() + self.limits.stall_seconds
                gathered.clear()
                in_block = 0
            self.report(total)
        return None

    async def _write(self, blocks: trio.MemoryReceiveChannel[list[bytes]]) -> None:
        with blocks:
            async for block in blocks:
                try:
                    await trio.to_thread.run_sync(self.part.append, block, limiter=self.disk)
                except OSError as error:
                    self._disk_error = error
                    return
