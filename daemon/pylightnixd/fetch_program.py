"""The program of the fetcher: `python -P -m pylightnixd.fetch_program SOCKET_FD PARENT_PID`, started by the daemon.

It has connections, parsers of what servers send, and the parts of files. It ends when its socket closes, or with the daemon. What
it brings is checked by the daemon; what it is told of one user's settings goes out with that user's fetches only (see
`pylightnix.fetch`). Must not know builds, nor the store.
"""

from __future__ import annotations

import math
import os
import socket
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Optional

import trio

from pylightnix._version import __version__
from pylightnix.errors import PylightnixException
from pylightnix.fetch import FetchLimits, FetchProgress
from pylightnix.fetch.fetcher import Fetcher, running_fetcher
from pylightnix.protocol.errors import InternalError, UnknownMethod
from pylightnix.protocol.errors_on_wire import error_to_wire
from pylightnix.protocol.framing import Decoder, Envelope, Notification, Request, encode_notification, encode_response
from pylightnix.protocol.vocabulary import parse_message
from pylightnix.worker.linux import die_with_parent, gain_no_privileges
from pylightnixd.fetch_words import TO_FETCHER, Fetched, FetcherHello, FetcherWelcome, Order, Release, Told

__all__ = ["main", "serve"]

TELL_SECONDS: Final = 0.1
"""How often at most it is told how far one fetch is."""
_READ_BYTES: Final = 1 << 16


@dataclass(slots=True, eq=False)
class _Fetch:
    """One order, until it is released."""

    number: int
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    told: Optional[FetchProgress] = None
    """What is to be told next; what was not told before this is not told."""
    news: trio.Event = field(default_factory=trio.Event)

    def tell(self, progress: FetchProgress) -> None:
        self.told = progress
        self.news.set()


class _Connection:
    """The daemon's end, as messages."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream, self._decoder, self._sending = stream, Decoder(TO_FETCHER), trio.Lock()

    async def receive(self) -> Optional[Envelope]:
        """Return the next message, None when the daemon is gone."""
        while (message := self._decoder.next_message()) is None:
            try:
                data = await self._stream.receive_some(_READ_BYTES)
            except trio.BrokenResourceError:
                return None
            if not data:
                return None
            self._decoder.receive_data(data)
        return message

    async def send(self, message: bytes) -> None:
        # One message at a time, whole: this process ends when its connection does, so a cut one is never followed by another.
        async with self._sending:
            with trio.CancelScope(shield=True):
                await self._stream.send_all(message)


class _Service:
    def __init__(self, fetcher: Fetcher, connection: _Connection) -> None:
        self._fetcher, self._connection = fetcher, connection
        self._fetches: dict[int, _Fetch] = {}
        self._leaving: set[_Fetch] = set()
        self._left = trio.Event()

    async def run(self) -> None:
        """Take orders until the daemon is gone."""
        async with trio.open_nursery() as nursery:
            while (message := await self._connection.receive()) is not None:
                if isinstance(message, Notification) and message.method == "release":
                    self._release(parse_message(message.params, Release))
                elif isinstance(message, Request) and message.method == "ping":
                    # Not from here: who does not read must not keep us from reading.
                    nursery.start_soon(self._connection.send, encode_response(message.id, None, {}))
                elif isinstance(message, Request) and message.method == "fetch":
                    fetch = self._fetches[message.id] = _Fetch(message.id)
                    nursery.start_soon(self._serve, fetch, message.params)
                else:
                    raise UnknownMethod(getattr(message, "method", "an answer"))
            nursery.cancel_scope.cancel()

    def _release(self, release: Release) -> None:
        fetch = self._fetches.get(release.fetch)
        if fetch is not None:
            self._leaving.add(fetch)
            fetch.scope.cancel()

    async def _serve(self, fetch: _Fetch, params: Mapping[str, Any]) -> None:
        try:
            with fetch.scope:
                # A file that is let go must be gone before its like is asked for again: it has been moved away.
                while self._leaving:
                    await self._left.wait()
                order = parse_message(params, Order)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._tell, fetch)
                    await self._lend(fetch, order)
                    nursery.cancel_scope.cancel()
        except Exception as error:  # noqa: BLE001  # it is this order's, and the daemon's to hear
            wire = error_to_wire(error, "fetcher.log")
            if wire.code == InternalError.code:
                traceback.print_exception(error)
            await self._connection.send(encode_response(fetch.number, wire, None))
        finally:
            del self._fetches[fetch.number]
            self._leaving.discard(fetch)
            self._left.set()
            self._left = trio.Event()

    async def _lend(self, fetch: _Fetch, order: Order) -> None:
        lent = self._fetcher.fetched(order.spec(), order.environment(), owner=order.owner, progress=fetch.tell)
        async with lent as file:
            if fetch.told is not None:  # the last word comes before the answer
                await self._connection.send(_told(fetch.number, fetch.told))
                fetch.told = None
            answer = Fetched(name=os.path.basename(file.path), is_alone=file.is_alone)
            await self._connection.send(encode_response(fetch.number, None, answer))
            await trio.sleep_forever()

    async def _tell(self, fetch: _Fetch) -> None:
        while True:
            await fetch.news.wait()
            fetch.news = trio.Event()
            told, fetch.told = fetch.told, None
            if told is not None:
                await self._connection.send(_told(fetch.number, told))
            await trio.sleep(TELL_SECONDS)


def _told(fetch: int, progress: FetchProgress) -> bytes:
    speed = progress.bytes_per_second if math.isfinite(progress.bytes_per_second) else 0.0
    return encode_notification("told", Told.of(fetch, replace(progress, bytes_per_second=speed)))


async def serve(end: socket.socket) -> None:
    """Fetch for the daemon at the other end of a socket until that is gone."""
    connection = _Connection(trio.SocketStream(trio.socket.from_stdlib_socket(end)))
    message = await connection.receive()
    if not isinstance(message, Request) or message.method != "hello":
        return
    hello = parse_message(message.params, FetcherHello)
    limits = replace(
        FetchLimits(),
        transfers=hello.transfers,
        transfers_per_host=hello.transfers_per_host,
        part_days=hello.parts_days,
        part_bytes=hello.parts_size,
    )
    running = running_fetcher(os.fsdecode(hello.folder), limits=limits, hashed_mirrors=hello.hashed_mirrors, gives_away=True)
    try:
        async with running as fetcher:
            await connection.send(encode_response(message.id, None, FetcherWelcome(package=__version__)))
            await _Service(fetcher, connection).run()
    except* trio.BrokenResourceError:
        pass  # the daemon is gone
    except* PylightnixException as group:  # its folder cannot be had
        await connection.send(encode_response(message.id, error_to_wire(group, "fetcher.log"), None))


def main() -> None:
    """Run until the daemon is gone."""
    if len(sys.argv) != 3 or not all(argument.isdecimal() for argument in sys.argv[1:]):
        sys.exit("usage: python -P -m pylightnixd.fetch_program SOCKET_FD PARENT_PID (started by the daemon, not by hand)")
    die_with_parent(int(sys.argv[2]))
    gain_no_privileges()
    status = 0
    try:
        trio.run(serve, socket.socket(fileno=int(sys.argv[1])))
    except BaseException:  # noqa: BLE001, ASYNC103  # said before the end, which is at once: a thread may wait for a disk or a name
        traceback.print_exc()
        status = 1
    os._exit(status)


if __name__ == "__main__":
    main()
