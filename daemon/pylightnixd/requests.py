"""What each request means: from checked messages to operations, builds and the store, and back."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

import msgspec
import trio

from pylightnix._version import __version__
from pylightnix.config import Config, canonical_bytes, mkconfig
from pylightnix.context import context_key
from pylightnix.errors import InvalidConfig, MissingRealization, PylightnixException
from pylightnix.protocol import messages as m
from pylightnix.protocol.errors import Draining, MessageInvalid, MissingLog, NoSuchOperation, TooMany, UnknownMethod
from pylightnix.protocol.limits import BLOB_BYTES_MAX, OPERATIONS_PER_USER_MAX
from pylightnix.protocol.vocabulary import Message
from pylightnix.types import DRef, RRef
from pylightnixd.builds import Builds
from pylightnixd.hold import HeldStore
from pylightnixd.logs import read_log
from pylightnixd.operation import Operation, OperationState
from pylightnixd.report import FailedBuild, failed_row
from pylightnixd.session import Session
from pylightnixd.watching import Watch

__all__ = ["BEGINNING", "RETRY_AFTER_SECONDS", "Requests"]

RETRY_AFTER_SECONDS: Final = 2.0
BEGINNING: Final = frozenset({"register", "submit.open", "submit.blob", "submit.add", "submit.commit"})
"""What later requests of a connection wait for, since they may build on it, and what is refused while the daemon drains.

To cancel, and to deliver what was claimed, helps it to end.
"""
KEEP_ENDED: Final = 100
"""How many operations that have ended can still be asked about."""
BYTES_PER_ANSWER: Final = 6 << 20


@dataclass(slots=True, eq=False)
class Requests:
    """Answers requests. `nursery` holds the operations, which outlive the connections that began them."""

    hold: HeldStore
    builds: Builds
    nursery: trio.Nursery
    began: float = field(default_factory=time.monotonic)
    draining: bool = False
    operations: dict[str, Operation] = field(default_factory=dict)
    watches: dict[tuple[int, str], Watch] = field(default_factory=dict)
    quiet: trio.Event = field(default_factory=trio.Event)
    """Set whenever the last operation that runs has ended."""
    _numbers: count[int] = field(default_factory=lambda: count(1))

    async def handle(self, session: Session, method: str, params: Message) -> Message:
        """Answer one request; errors are raised."""
        if method not in _HANDLERS:
            raise UnknownMethod(method)
        handler: Callable[[Session, Any], Awaitable[Message]] = _HANDLERS[method].__get__(self)
        if self.draining and method in BEGINNING:
            raise Draining(RETRY_AFTER_SECONDS)
        return await handler(session, params)

    def hear(self, session: Session, method: str, params: Message) -> None:
        """Take a notification of a client's."""
        if isinstance(params, m.Credit):
            watch = self.watches.get((id(session), params.operation))
            if watch is not None:
                watch.add_credit(params.credit)

    @property
    def under_way(self) -> int:
        """How many operations are running. One that is still being sent has nothing to lose."""
        return sum(operation.state is OperationState.running for operation in self.operations.values())

    @property
    def active(self) -> int:
        """How many operations have not ended."""
        return sum(operation.state is not OperationState.ended for operation in self.operations.values())

    def _operation(self, name: str) -> Operation:
        operation = self.operations.get(name)
        if operation is None:
            raise NoSuchOperation(name)
        return operation

    def _open_operation(self, name: str) -> Operation:
        operation = self._operation(name)
        if operation.state is not OperationState.open:
            raise MessageInvalid(f"the operation {name} was committed already", "$.operation")
        return operation

    # --- submitting -----------------------------------------------------------------------------------

    async def register(self, session: Session, params: m.Register) -> m.Registered:
        configs = [_config(data, f"$.configs[{i}]") for i, data in enumerate(params.configs)]
        drefs = await self.hold.in_thread(lambda: self.hold.register(configs))
        return m.Registered(drefs=[str(dref) for dref in drefs])

    async def submit_open(self, session: Session, params: m.SubmitOpen) -> m.Submitted:
        mine = [o for o in self.operations.values() if o.user == session.user and o.state is not OperationState.ended]
        if len(mine) >= OPERATIONS_PER_USER_MAX:
            raise TooMany("operations of one user", OPERATIONS_PER_USER_MAX, RETRY_AFTER_SECONDS)
        operation = Operation(f"{self.builds.instance}-{next(self._numbers)}", session.user, params, self.hold, self.builds)
        self.operations[operation.id] = operation
        self._attach(session, operation)
        operation.clients -= 1  # it began with one, which is this
        return m.Submitted(operation=operation.id)

    async def submit_blob(self, session: Session, params: m.SubmitBlob) -> m.Done:
        operation = self._open_operation(params.operation)
        blob = operation.blobs.setdefault(params.sha256, bytearray())
        held = sum(map(len, operation.blobs.values()))
        if params.size > BLOB_BYTES_MAX or held + len(params.data) > 2 * BLOB_BYTES_MAX:
            raise TooMany("bytes of blobs in one operation", 2 * BLOB_BYTES_MAX)
        if params.offset != len(blob) or len(blob) + len(params.data) > params.size:
            raise MessageInvalid(f"expected the piece at {len(blob)}, found one at {params.offset}", "$.offset")
        blob += params.data
        if len(blob) == params.size:
            try:
                await self.hold.in_thread(lambda: _check_blob(params.sha256, blob))
            except MessageInvalid:
                del operation.blobs[params.sha256]
                raise
            operation.whole_blobs.add(params.sha256)
        return m.Done()

    async def submit_add(self, session: Session, params: m.SubmitAdd) -> m.Done:
        operation = self._open_operation(params.operation)
        for i, spec in enumerate(params.derivations):
            for needed, part in ((spec.matcher, "matcher"), (spec.realizer, "realizer")):
                if (needed.kind == "python" or needed.blob) and needed.blob not in operation.whole_blobs:
                    raise MessageInvalid(f"its blob {needed.blob!r} was not sent in full", f"$.derivations[{i}].{part}.blob")
            try:
                operation.add(spec)
            except PylightnixException as error:
                raise MessageInvalid(str(error), f"$.derivations[{i}].config") from error
        return m.Done()

    async def submit_commit(self, session: Session, params: m.SubmitCommit) -> m.Done:
        operation = self._open_operation(params.operation)
        operation.state = OperationState.running
        self.nursery.start_soon(self._run, operation)
        return m.Done()

    async def _run(self, operation: Operation) -> None:
        await operation.run()
        ended = [o for o in self.operations.values() if o.state is OperationState.ended]
        for old in ended[:-KEEP_ENDED]:
            del self.operations[old.id]
        if not self.under_way:
            self.quiet.set()
            self.quiet = trio.Event()

    # --- what comes of it -----------------------------------------------------------------------------

    async def wait(self, session: Session, params: m.Wait) -> m.WaitResult:
        operation = self._operation(params.operation)
        await operation.ended.wait()
        if operation.trouble is not None:
            row = _trouble_row(operation, operation.trouble)
            return m.WaitResult(ok=False, state=row.code, failed=1)
        outcome = operation.outcome
        if outcome is None:
            raise AssertionError("BUG: ended without an outcome")
        return m.WaitResult(
            ok=not outcome.failed,
            state="done",
            built=len(outcome.built),
            joined=len(outcome.joined),
            reused=len(outcome.reused),
            failed=len(outcome.failed),
            skipped=len(outcome.skipped),
            settled=len(outcome.matched),
        )

    async def outcome(self, session: Session, params: m.Outcome) -> m.Rows:
        operation = self._operation(params.operation)
        await operation.ended.wait()
        return _page(_rows(operation, params.part), params.offset, params.limit)

    async def subscribe(self, session: Session, params: m.Subscribe) -> m.Done:
        operation = self._operation(params.operation)
        key = (id(session), operation.id)
        if key in self.watches:
            raise MessageInvalid("this connection watches that operation already", "$.operation")
        watch = self.watches[key] = Watch(session, operation, params.log, params.credit)
        session.start(watch.run)

        def forget() -> None:
            self.watches.pop(key, None)

        session.on_end.append(forget)
        return m.Done()

    async def cancel(self, session: Session, params: m.Cancel) -> m.Done:
        self._cancel(self._operation(params.operation))
        return m.Done()

    def _cancel(self, operation: Operation) -> None:
        if operation.state is OperationState.open:
            operation.abandon()
            self.operations.pop(operation.id, None)
        else:
            operation.cancel_scope.cancel()

    async def attach(self, session: Session, params: m.Attach) -> m.Attached:
        operation = self._operation(params.operation)
        self._attach(session, operation)
        plan = operation.plan
        return m.Attached(
            state=operation.state.value,
            targets=operation.request.targets,
            total=plan.total if plan else 0,
            done=plan.done if plan else 0,
        )

    def _attach(self, session: Session, operation: Operation) -> None:
        operation.clients += 1

        def leave() -> None:
            operation.clients -= 1
            if operation.clients == 0 and operation.state is not OperationState.ended:
                self._cancel(operation)

        session.on_end.append(leave)

    # --- questions ------------------------------------------------------------------------------------

    async def ps(self, session: Session, params: m.Ps) -> m.Processes:
        operations = [
            m.OperationLine(
                operation=o.id,
                state=o.state.value,
                targets=o.request.targets[:100],
                user=o.user,
                started=o.created,
                done=o.plan.done if o.plan else 0,
                total=o.plan.total if o.plan else len(o.specs),
                clients=o.clients,
            )
            for o in self.operations.values()
            if o.state is not OperationState.ended
        ]
        lines = []
        for entry in self.builds.table.entries():
            running = self.builds.running.get(entry.id)
            users = sorted({self.operations[o].user for o in entry.operations if o in self.operations})
            lines.append(
                m.BuildLine(
                    build=entry.id,
                    dref=entry.key.dref,
                    state=entry.state.value,
                    operations=list(entry.operations),
                    pid=running.pid if running else None,
                    started=running.started if running else None,
                    user=", ".join(users),
                    waiting_for="" if running else f"a CPU slot ({self.builds.table.busy} of {self.builds.table.slots} are taken)",
                )
            )
        return m.Processes(operations=operations, builds=lines)

    async def status(self, session: Session, params: m.Status) -> m.DaemonStatus:
        table = self.builds.table
        return m.DaemonStatus(
            pid=os.getpid(),
            version=__version__,
            uptime_seconds=time.monotonic() - self.began,
            store=self.hold.reader.layout.state,
            slots=table.slots,
            busy=table.busy,
            queued=table.queued,
            operations=self.active,
            workers=len(self.builds.pool.workers),
            draining=self.draining,
            lost_wakeups=self.builds.lost_wakeups,
        )

    async def log(self, session: Session, params: m.Log) -> m.LogResult:
        found = self.builds.log_of(params.ref)
        if found is None:
            raise MissingLog(params.ref)
        data = await self.hold.in_thread(lambda: read_log(found.path, params.offset, params.limit))
        return m.LogResult(data=data, next=params.offset + len(data), finished=found.finished, build=found.build, path=found.path)

    async def info(self, session: Session, params: m.Info) -> m.InfoResult:
        found = self.hold.reader.index.info(RRef(params.ref))
        if found is None:
            raise MissingRealization(params.ref, self.hold.reader.layout.realization(params.ref))
        return m.InfoResult(**{name: getattr(found, name) for name in m.InfoResult.__struct_fields__})

    async def query(self, session: Session, params: m.Query) -> m.Rows:
        index = self.hold.reader.index
        dref = DRef(params.dref) if params.dref is not None else None
        if params.what in ("drefrrefs", "drefrrefsC") and dref is None:
            raise MessageInvalid(f"{params.what} needs a derivation", "$.dref")
        rows: list[Any]
        if params.what == "starts":
            rows = list(index.starts([RRef(rref) for rref in params.rrefs]).items())
        elif params.what == "rootrrefs":
            rows = sorted(set(index.valid_rrefs()) - index.referred())
        elif params.what == "drefrrefsC":
            rows = list(index.valid_rrefs(dref, context_key(_context(params.context or b"{}"))))
        else:
            rows = list(index.valid_rrefs(dref if params.what == "drefrrefs" else None))
        return _page(rows, params.offset, params.limit)


# By the names of the methods; `hello` is answered by the connection itself.
_HANDLERS: Final[dict[str, Any]] = {
    name: getattr(Requests, name.replace(".", "_")) for name in m.METHODS if hasattr(Requests, name.replace(".", "_"))
}


def _context(data: bytes) -> dict[DRef, list[RRef]]:
    try:
        # As plain text first: msgspec makes no subclasses of str, which references are.
        value = msgspec.json.decode(data, type=dict[str, list[str]])
    except (msgspec.DecodeError, RecursionError) as error:
        raise MessageInvalid(f"not a context ({error})", "$.context") from error
    return {DRef(dref): [RRef(rref) for rref in rrefs] for dref, rrefs in value.items()}


def _config(data: bytes, where: str) -> Config:
    try:
        value = json.loads(data)
        if canonical_bytes(value) != data:
            raise MessageInvalid("not in canonical form", where)
        return mkconfig(value)
    except (ValueError, RecursionError, InvalidConfig) as error:
        raise MessageInvalid(f"not a config ({error})", where) from error


def _check_blob(sha256: str, blob: bytearray) -> None:
    import hashlib

    found = hashlib.sha256(blob).hexdigest()
    if found != sha256:
        raise MessageInvalid(f"the blob has the hash {found}", "$.sha256")


def _trouble_row(operation: Operation, error: BaseException) -> m.FailedRow:
    """Return what is told of an operation that failed as a whole."""
    targets = operation.request.targets
    return msgspec.structs.replace(failed_row(DRef(""), error), dref=targets[0] if targets else None)


def _rows(operation: Operation, part: str) -> list[Any]:
    outcome = operation.outcome
    if outcome is None:
        error = operation.trouble or AssertionError("BUG: ended without an outcome")
        return [_trouble_row(operation, error)] if part == "failed" else []
    if part == "matched":
        return [m.MatchedRow(dref, list(rrefs)) for dref, rrefs in outcome.matched.items()]
    if part == "failed":
        return [error.row if isinstance(error, FailedBuild) else failed_row(dref, error) for dref, error in outcome.failed]
    if part == "skipped":
        return [m.SkippedRow(dref, because) for dref, because in outcome.skipped]
    if part == "steps":
        return [m.StepRow(step.dref, step.kind.value, step.reason) for step in outcome.steps]
    plain: list[Any] = list(getattr(outcome, part))
    return plain


def _page(rows: list[Any], offset: int, limit: int) -> m.Rows:
    """Return a page that fits into one message."""
    page: list[object] = []
    size = 0
    for row in rows[offset : offset + limit]:
        size += len(msgspec.msgpack.encode(row, enc_hook=str))
        if page and size > BYTES_PER_ANSWER:
            break
        page.append(row)
    end = offset + len(page)
    return m.Rows(rows=page, next=end if end < len(rows) else None)
