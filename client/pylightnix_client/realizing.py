"""The remote driver: realizes a closure through a daemon, with the events and the outcome of the embedded one."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Optional

from pylightnix.build_output import LogCopier
from pylightnix.embedded import Outcome
from pylightnix.errors import PylightnixException
from pylightnix.events import BuildFailed, BuildFinished, BuildJoined, BuildLogged, BuildSkipped, BuildStarted, Event, Observer, ignore
from pylightnix.protocol import messages as m
from pylightnix.protocol.errors_on_wire import error_from_failed_row
from pylightnix.types import Closure, DRef
from pylightnix_client.client import Client
from pylightnix_client.exchange import CREDIT
from pylightnix_client.onlooker import Onlooker
from pylightnix_client.operation import Happening, Operation

if TYPE_CHECKING:
    from pylightnix_client.aio import AsyncClient, AsyncOperation

__all__ = ["Spans", "realize_through", "watch", "watch_async"]


def realize_through(socket: str, closure: Closure, *, observe: Observer = ignore, **wishes: Any) -> Outcome:
    """Realize what the targets of `closure` need through the daemon at `socket`.

    Ctrl-C cancels the operation and waits for its end; a second one leaves at once, and the daemon cancels.

    Args:
        socket: its path.
        closure: as `instantiate` makes it.
        observe: is called with every event as it arrives; an `Onlooker` is told more.
        wishes: the other parameters of `pylightnix.embedded.realize_closure`.

    Raises:
        NoDaemon, DaemonGone: it is not there, or not any more.
        PylightnixException: the operation was cancelled, or the store failed.
    """
    onlooker = observe if isinstance(observe, Onlooker) else None
    with Client.connect(socket, waiting=None if onlooker is None else onlooker.queued) as client:
        if onlooker is not None:
            client.aside = onlooker.aside
        log = onlooker.wants_log if onlooker is not None else observe is not ignore
        operation = client.submit(closure, watch=observe is not ignore, log=log, **wishes)
        spans = Spans()
        try:
            if observe is not ignore:
                logs = watch(operation, spans, observe)
                for build, offset in logs.perhaps_cut() if onlooker is None else ():
                    observe(BuildLogged(logs.drefs[build], client.log(build, offset).data))
            outcome = operation.outcome()
        except KeyboardInterrupt:
            if onlooker is not None:
                onlooker.interrupted()
            _cancel(operation)
            raise
    _conclude(spans, outcome, observe)
    return outcome


def _conclude(spans: Spans, outcome: Outcome, observe: Observer) -> None:
    for event in spans.remaining(outcome):
        observe(event)
    if isinstance(observe, LogCopier):
        observe.end()


async def watch_async(client: AsyncClient, operation: AsyncOperation, observe: Observer) -> Outcome:
    """Tell `observe` what happens in an operation until it has ended, and return what came of it."""
    spans, logs = Spans(), _Logs()
    async for happening in operation.events():
        logs.hear(happening)
        event = spans.event(happening)
        if event is not None:
            observe(event)
    for build, offset in logs.perhaps_cut():
        found = await client.log(build, offset)
        observe(BuildLogged(logs.drefs[build], found.data))
    outcome = await operation.outcome()
    _conclude(spans, outcome, observe)
    return outcome


class _Logs:
    """How much was heard of the log of each build. What has no credit when an operation ends is left out of its notices."""

    def __init__(self) -> None:
        self.drefs: dict[str, DRef] = {}
        self._offsets: dict[str, int] = {}
        self._heard = 0

    def hear(self, happening: Happening) -> None:
        """Take in what the daemon says."""
        self._heard += 1
        if happening.build is not None and happening.dref is not None and happening.build not in self.drefs:
            self.drefs[happening.build], self._offsets[happening.build] = DRef(happening.dref), 0
        if isinstance(happening, m.LogPiece):
            self._offsets[happening.build] += len(happening.data)

    def perhaps_cut(self) -> list[tuple[str, int]]:
        """Return each build whose log may be longer than was heard, and how much that was."""
        return list(self._offsets.items()) if self._heard >= CREDIT else []


def watch(operation: Operation, spans: Spans, observe: Observer) -> _Logs:
    """Tell `observe` what happens in an operation until it has ended."""
    logs = _Logs()
    onlooker = observe if isinstance(observe, Onlooker) else None
    for happening in operation.events(log=onlooker is None or onlooker.wants_log):
        logs.hear(happening)
        if onlooker is not None:
            onlooker.hear(happening)
        if isinstance(happening, m.LogPiece) and onlooker is not None:
            continue  # it was told already
        event = spans.event(happening)
        if event is not None:
            observe(event)
    if onlooker is not None and operation.dropped:
        onlooker.missed(operation.dropped)
    return logs


def _cancel(operation: Operation) -> None:
    try:
        operation.cancel()
        operation.wait()
    except PylightnixException:
        pass  # it has ended meanwhile, or the daemon has: either way there is nothing left to cancel


class Spans:
    """Turns the daemon's spans into the events of the library.

    Args:
        begun: when builds began whose beginning was not heard of, in UTC seconds since the epoch.
    """

    def __init__(self, begun: Mapping[DRef, float] = MappingProxyType({})) -> None:
        self._begun = begun
        self._started: dict[int, float] = {}
        self._ended: set[DRef] = set()
        self._failed: set[DRef] = set()

    def event(self, event: Happening) -> Optional[Event]:
        """Return what a change of a span, or a piece of a log, means; None for what the library has no event for."""
        if isinstance(event, m.LogPiece):
            return BuildLogged(DRef(event.dref), event.data)
        if event.kind != "build" or event.dref is None:
            return None
        dref = DRef(event.dref)
        if event.phase == "start":
            self._started[event.id] = event.time
            return BuildStarted(dref, event.done or 0, event.total or 0)
        if event.phase != "stop":
            return None
        started = self._started.pop(event.id, self._begun.get(dref, event.time))
        if event.ok:
            self._ended.add(dref)
            return BuildFinished(dref, max(0.0, event.time - started))
        if event.code is None:
            return None  # nobody failed: whoever was building it went away, and it will be built again
        self._failed.add(dref)
        return BuildFailed(dref, error_from_failed_row(m.FailedRow(dref=dref, code=event.code, message=event.text or "")))

    def remaining(self, outcome: Outcome) -> list[Event]:
        """Return the events that only the outcome can tell."""
        joined = [BuildJoined(dref) for dref in outcome.joined if dref not in self._ended]
        failed = [BuildFailed(dref, error) for dref, error in outcome.failed if dref not in self._failed]
        return [*joined, *failed, *(BuildSkipped(dref, because) for dref, because in outcome.skipped)]
