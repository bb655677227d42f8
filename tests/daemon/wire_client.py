"""A small blocking client for tests: the protocol's sans-IO connection on a Unix socket, and no more."""

from __future__ import annotations

import hashlib
import socket
from collections import deque
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Optional, TypeVar

from pylightnix import Closure, Derivation, DRef, RRef
from pylightnix.options import options_of
from pylightnix.protocol import messages as m
from pylightnix.protocol.client import ClientConnection
from pylightnix.protocol.connection import ConnectionEnded, NotificationReceived, ProtocolFailed, RequestFailed, ResponseReceived, Welcomed
from pylightnix.registry import RegisteredDerivation
from pylightnix.samples import samples_of
from pylightnix.travel import Packed, PackedMatcher, capture_environment, pack_matcher, pack_realizer
from pylightnix_client.submission import steering_of

DEADLINE_SECONDS = 60.0

R = TypeVar("R", bound=m.Message)


class HungUp(Exception):
    """The daemon ended the connection."""


def environment(**changes: Any) -> m.Environment:
    """Return this process's environment, as it is sent; `changes` replace parts of it."""
    e = capture_environment()
    fields = {"interpreter": e.interpreter, "import_path": list(e.import_path), "umask": e.umask, "variables": dict(e.variables)}
    return m.Environment(**{**fields, **changes})


def config_bytes(derivation: Derivation) -> bytes:
    assert isinstance(derivation, RegisteredDerivation)
    assert derivation.config is not None
    return derivation.config


class WireClient:
    """One connection. Answers may be waited for in any order; notifications are kept until they are asked for."""

    def __init__(self, path: str, *, say_hello: bool = True) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.connection = ClientConnection()
        self.notifications: deque[NotificationReceived] = deque()
        self._answers: dict[int, ResponseReceived | RequestFailed] = {}
        self._welcome: Optional[m.DaemonWelcome] = None
        self._end: Optional[BaseException] = None
        try:
            self.socket.settimeout(DEADLINE_SECONDS)
            self.socket.connect(path)
            if say_hello:
                self.welcome = self.hello()
        except BaseException:
            self.socket.close()
            raise

    def __enter__(self) -> WireClient:
        return self

    def __exit__(self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    # --- talking --------------------------------------------------------------------------------------

    def hello(self) -> m.DaemonWelcome:
        request, data = self.connection.send_hello(m.ClientHello(versions=[1], client="tests/1"))
        self.socket.sendall(data)
        while self._welcome is None:
            failed = self._answers.get(request)
            if isinstance(failed, RequestFailed):
                raise failed.error
            self._hear()
        return self._welcome

    def send(self, method: str, params: m.Message) -> int:
        request, data = self.connection.send_request(method, params)
        self.socket.sendall(data)
        return request

    def answer(self, request: int, wanted: type[R]) -> R:
        """Wait for the answer to a request, or raise the error that it was answered with."""
        while request not in self._answers:
            self._hear()
        event = self._answers.pop(request)
        if isinstance(event, RequestFailed):
            raise event.error
        assert isinstance(event.result, wanted)
        return event.result

    def call(self, method: str, params: m.Message, wanted: type[R]) -> R:
        return self.answer(self.send(method, params), wanted)

    def next_notification(self) -> NotificationReceived:
        while not self.notifications:
            self._hear()
        return self.notifications.popleft()

    def _hear(self) -> None:
        if self._end is not None:
            raise self._end
        try:
            data = self.socket.recv(1 << 16)
        except ConnectionResetError:
            data = b""
        for event in self.connection.receive_data(data) if data else self.connection.receive_eof():
            if isinstance(event, Welcomed):
                assert isinstance(event.welcome, m.DaemonWelcome)
                self._welcome = event.welcome
            elif isinstance(event, NotificationReceived):
                self.notifications.append(event)
            elif isinstance(event, ProtocolFailed):
                self._end = event.error
            elif isinstance(event, ConnectionEnded):
                self._end = HungUp(f"unanswered: {event.unanswered}")
            else:
                self._answers[event.id] = event
        if not data and self._end is None:
            self._end = HungUp("the connection was closed already")

    # --- operations -----------------------------------------------------------------------------------

    def open(self, closure: Closure, env: Optional[m.Environment] = None, digest: Optional[str] = None, **options: Any) -> str:
        """Begin an operation and send all of it; it starts with `commit`."""
        params = m.SubmitOpen(targets=list(map(str, closure.targets)), environment=env or environment(), **options)
        operation = self.call("submit.open", params, m.Submitted).operation
        self.add(operation, closure, digest)
        return operation

    def add(self, operation: str, closure: Closure, digest: Optional[str] = None) -> None:
        sent: set[str] = set()
        specs = []
        for derivation in closure.derivations:
            realizer, matcher = pack_realizer(derivation.realizer), pack_matcher(derivation.matcher)
            options = options_of(derivation.realizer)
            blobs = [self._blob(operation, packed, sent) for packed in (realizer, matcher)]
            specs.append(
                m.DerivationSpec(
                    config=config_bytes(derivation),
                    matcher=m.MatcherSpec(kind=matcher.kind, n=matcher.n, rrefs=list(matcher.rrefs), blob=blobs[1]),  # type: ignore[arg-type]  # the daemon checks
                    realizer=m.RealizerSpec(kind=realizer.kind, blob=blobs[0], reason=realizer.reason),  # type: ignore[arg-type]  # the daemon checks
                    digest=digest,
                    samples=samples_of(derivation.realizer),
                    declared=list(options.env),
                    steering=steering_of(options),
                )
            )
        for start in range(0, len(specs), 1000):
            self.call("submit.add", m.SubmitAdd(operation=operation, derivations=specs[start : start + 1000]), m.Done)

    def _blob(self, operation: str, packed: Packed | PackedMatcher, sent: set[str]) -> str:
        if packed.blob is None:
            return ""
        name = hashlib.sha256(packed.blob).hexdigest()
        if name not in sent:
            sent.add(name)
            self.call("submit.blob", m.SubmitBlob(operation=operation, sha256=name, size=len(packed.blob), data=packed.blob), m.Done)
        return name

    def commit(self, operation: str) -> None:
        self.call("submit.commit", m.SubmitCommit(operation=operation), m.Done)

    def submit(self, closure: Closure, env: Optional[m.Environment] = None, **options: Any) -> str:
        operation = self.open(closure, env, **options)
        self.commit(operation)
        return operation

    def wait(self, operation: str) -> m.WaitResult:
        return self.call("wait", m.Wait(operation=operation), m.WaitResult)

    def build(self, closure: Closure, env: Optional[m.Environment] = None, **options: Any) -> tuple[str, m.WaitResult]:
        operation = self.submit(closure, env, **options)
        return operation, self.wait(operation)

    def rows(self, operation: str, part: m.OutcomePart) -> list[m.Row]:
        found: list[m.Row] = []
        offset: Optional[int] = 0
        while offset is not None:
            page = self.call("outcome", m.Outcome(operation=operation, part=part, offset=offset), m.Rows)
            found += m.rows_of(part, page)
            offset = page.next
        return found

    def matched(self, operation: str) -> dict[DRef, list[RRef]]:
        """Return what the operation came to; all of it is acknowledged."""
        rows = [row for row in self.rows(operation, "matched") if isinstance(row, m.MatchedRow)]
        return {DRef(row.dref): list(map(RRef, row.rrefs)) for row in rows}

    def failed(self, operation: str) -> list[m.FailedRow]:
        return [row for row in self.rows(operation, "failed") if isinstance(row, m.FailedRow)]

    # --- questions ------------------------------------------------------------------------------------

    def status(self) -> m.DaemonStatus:
        return self.call("status", m.Status(), m.DaemonStatus)

    def ps(self) -> m.Processes:
        return self.call("ps", m.Ps(), m.Processes)

    def log(self, ref: str) -> bytes:
        """Return a finished build's log in full."""
        found, offset = bytearray(), 0
        while True:
            part = self.call("log", m.Log(ref=ref, offset=offset), m.LogResult)
            if not part.data:
                assert part.finished
                return bytes(found)
            found += part.data
            offset = part.next


def acknowledged(matched: Iterable[list[RRef]]) -> set[RRef]:
    return {rref for rrefs in matched for rref in rrefs}
