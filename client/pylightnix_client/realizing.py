"""The remote driver: realizes a closure through a daemon, with the events and the outcome of the embedded one."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Optional

from pylightnix.embedded import Outcome
from pylightnix.errors import PylightnixException
from pylightnix.events import BuildFailed, BuildFinished, BuildJoined, BuildSkipped, BuildStarted, Event, Observer, ignore
from pylightnix.protocol import messages as m
from pylightnix.protocol.errors_on_wire import error_from_failed_row
from pylightnix.types import Closure, DRef
from pylightnix_client.client import Client
from pylightnix_client.onlooker import Onlooker
from pylightnix_client.operation import Operation

__all__ = ["Spans", "realize_through", "watch"]


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
        log = onlooker is not None and onlooker.wants_log
        operation = client.submit(closure, watch=observe is not ignore, log=log, **wishes)
        spans = Spans()
        try:
            if observe is not ignore:
                watch(operation, spans, observe)
            outcome = operation.outcome()
        except KeyboardInterrupt:
            if onlooker is not None:
                onlooker.interrupted()
            _cancel(operation)
            raise
    for event in spans.remaining(outcome):
        observe(event)
    return outcome


def watch(operation: Operation, spans: Spans, observe: Observer) -> None:
    """Tell `observe` what happens in an operation until it has ended."""
    onlooker = observe if isinstance(observe, Onlooker) else None
    for happening in operation.events(log=onlooker is not None and onlooker.wants_log):
        if onlooker is not None:
            onlooker.hear(happening)
        event = spans.event(happening) if isinstance(happening, m.Event) else None
        if event is not None:
            observe(event)
    if onlooker is not None and operation.dropped:
        onlooker.missed(operation.dropped)


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

    def event(self, event: m.Event) -> Optional[Event]:
        """Return what a change of a span means; None for what the library has no event for."""
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
