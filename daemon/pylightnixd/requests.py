"""What each request means: from checked messages to operations, builds and the store, and back."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Awaitable, Callable, Set
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar

import msgspec
import trio

from pylightnix._version import __version__
from pylightnix.config import Config, canonical_bytes, mkconfig
from pylightnix.context import context_key
from pylightnix.errors import InvalidConfig, MissingRealization, PylightnixException
from pylightnix.protocol import messages as m
from pylightnix.protocol.errors import Draining, MessageInvalid, MissingLog, NoSuchClaim, NoSuchOperation, TooMany, UnknownMethod
from pylightnix.protocol.framing import encode_value
from pylightnix.protocol.limits import OPERATION_BYTES_MAX, OPERATIONS_BYTES_MAX, OPERATIONS_PER_USER_MAX, ROWS_PER_MESSAGE_MAX
from pylightnix.protocol.vocabulary import Message
from pylightnix.refs import isdref, isrref
from pylightnix.store.build_logs import read_log, tail_offset
from pylightnix.types import DRef, RRef
from pylightnixd.askers import Askers
from pylightnixd.blobs import Blobs, checked
from pylightnixd.boundary import SharedNursery, entered
from pylightnixd.builds import Builds
from pylightnixd.claims import Caller
from pylightnixd.hold import HeldStore
from pylightnixd.insertion import HandedOver, Insertions
from pylightnixd.names import new_name
from pylightnixd.operation import Operation, OperationState
from pylightnixd.overview import processes
from pylightnixd.results import Result, page
from pylightnixd.session import Session
from pylightnixd.user_names import UserNames
from pylightnixd.watching import Watch

T = TypeVar("T")

__all__ = ["BEGINNING", "RETRY_AFTER_SECONDS", "Requests"]

RETRY_AFTER_SECONDS: Final = 1.0
BEGINNING: Final = frozenset({"register", "remove", "mend", "submit.open", "submit.blob", "submit.add", "submit.commit"})
"""What later requests of a connection wait for, since they may build on it, and what is refused while the daemon drains.

To cancel, and to deliver what was claimed, helps it to end.
"""
SPECS_AT_ONCE: Final = 50
"""How many derivations are taken in before others have a turn: a millisecond's worth."""
BYTES_AT_ONCE: Final = 1 << 14
"""How much of configs and contexts is taken in before others have a turn. Whatever is longer is taken in by a thread."""
HELD_EACH_BYTES: Final = 1024
"""What a piece of a blob or a derivation counts beside its own bytes."""
_DETAIL_CHARACTERS_MAX: Final = 10_000


@dataclass(slots=True, eq=False)
class Requests:
    """Answers requests. `nursery` holds the operations, which outlive the connections that began them."""

    hold: HeldStore
    builds: Builds
    nursery: SharedNursery
    began: float = field(default_factory=time.monotonic)
    draining: bool = False
    operations: dict[str, Operation] = field(default_factory=dict)
    """Those that have not ended. Of others only the results are kept."""
    callers: dict[int, Caller] = field(default_factory=dict)
    """Sessions that have begun an operation."""
    watches: dict[tuple[int, str], Watch] = field(default_factory=dict)
    attached: dict[Session, list[str]] = field(default_factory=dict)
    """The operations that each connection is a client of, by name."""
    askers: Askers = field(init=False)
    insertions: Insertions = field(init=False)
    names: UserNames = field(init=False)
    blobs: Blobs = field(default_factory=Blobs)
    quiet: trio.Event = field(default_factory=trio.Event)
    """Set whenever the last operation that runs has ended."""

    def __post_init__(self) -> None:
        self.insertions = Insertions(self.hold, self.nursery)
        self.askers = Askers(self.operations)
        self.names = UserNames(self.nursery)

    async def handle(self, session: Session, method: str, params: Message) -> Message:
        """Answer one request; errors are raised."""
        if method not in _HANDLERS:
            raise UnknownMethod(method)
        handler: Callable[[Session, Any], Awaitable[Message]] = _HANDLERS[method].__get__(self)
        if self.draining and method in BEGINNING and not self._is_wanted_by_build(method, params):
            raise Draining(RETRY_AFTER_SECONDS)
        try:
            return await handler(session, params)
        except Exception as error:
            told = self.hold.in_words(f"answering {method}", error)
            if told is error:
                raise
            entered(f"answering {method}", told)
            raise told from error

    def _is_wanted_by_build(self, method: str, params: Message) -> bool:
        """Tell whether a realizer that runs may need this to end; derivations are registered without saying for what."""
        if isinstance(params, m.SubmitOpen):
            return params.parent is not None
        if isinstance(params, (m.SubmitBlob, m.SubmitAdd, m.SubmitCommit)):
            operation = self.operations.get(params.operation)
            return operation is not None and operation.parent is not None
        return method == "register"

    def hear(self, session: Session, method: str, params: Message) -> None:
        """Take a notification of a client's."""
        if isinstance(params, m.Fetched):
            self.askers.knows(session, params.operation)
        if isinstance(params, m.Credit):
            watch = self.watches.get((id(session), params.operation))
            if watch is not None:
                watch.add_credit(params.credit)

    def interrupt_all(self) -> bool:
        """End every operation that runs, so that its client submits it to the next daemon; tell whether there were any."""
        running = [operation for operation in self.operations.values() if operation.state is OperationState.running]
        for operation in running:
            operation.interrupt(Draining(RETRY_AFTER_SECONDS))
        return bool(running)

    @property
    def under_way(self) -> int:
        """How many operations are running. One that is still being sent has nothing to lose."""
        return sum(operation.state is OperationState.running for operation in self.operations.values())

    @property
    def active(self) -> int:
        """How many operations have not ended."""
        return len(self.operations)

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

    # --- removing -------------------------------------------------------------------------------------

    async def _settle(self) -> None:
        await self.hold.wait_durable(self.hold.placed)

    async def remove(self, session: Session, params: m.Remove) -> m.Removed:
        removal = await self.hold.removals.remove(
            [DRef(dref) for dref in params.drefs],
            [RRef(rref) for rref in params.rrefs],
            params.only_unused,
            settle=self._settle,
            at_work=self._at_work,
        )
        self.nursery.start_soon("emptying the trash", self.hold.removals.empty_trash)
        listed = [str(rref) for rref in removal.rrefs[:ROWS_PER_MESSAGE_MAX]]
        return m.Removed(
            drefs=[str(dref) for dref in removal.drefs],
            rrefs=listed,
            more=len(removal.rrefs) - len(listed),
            kept=[m.KeptRow(ref, [str(name) for name in names[: m.NEEDED_BY_MAX]]) for ref, names in removal.kept.items()],
        )

    async def mend(self, session: Session, params: m.Mend) -> m.Mended:
        rows = []
        for rref in params.rrefs:
            mended = await self.hold.removals.mend(RRef(rref), settle=self._settle, at_work=self._at_work)
            detail = mended.detail[:_DETAIL_CHARACTERS_MAX].encode("utf-8", "backslashreplace").decode("utf-8")
            rows.append(m.MendedRow(str(rref), mended.outcome.value, mended.damage, detail, mended.moved_to))
        return m.Mended(mended=rows)

    def _at_work(self, drefs: Set[DRef]) -> dict[DRef, list[str]]:
        """Return which operations and builds work with these derivations now."""
        found: dict[DRef, list[str]] = {}
        for operation in self.operations.values():
            if operation.state is OperationState.running:
                for dref in operation.specs.keys() & drefs:
                    found.setdefault(dref, []).append(f"operation {operation.id} of {operation.user}")
        for running in self.builds.running.values():  # a build may go on for a while when its operation is gone
            for dref in drefs & {running.job.key.dref, *running.job.context, *running.realized}:
                found.setdefault(dref, []).append(f"build {running.id}")
        for dref in self.insertions.busy_with(drefs):
            found.setdefault(dref, []).append("an output that is being handed over")
        return found

    # --- submitting -----------------------------------------------------------------------------------

    async def register(self, session: Session, params: m.Register) -> m.Registered:
        def put() -> list[DRef]:
            return self.hold.register([_config(data, f"$.configs[{i}]") for i, data in enumerate(params.configs)])

        drefs = await self._made_in_thread(put)
        return m.Registered(drefs=[str(dref) for dref in drefs])

    async def submit_open(self, session: Session, params: m.SubmitOpen) -> m.Submitted:
        user = await self.names.name_of(session.uid)
        mine = [o for o in self.operations.values() if o.uid == session.uid]
        if len(mine) >= OPERATIONS_PER_USER_MAX:
            raise TooMany("operations of one user", OPERATIONS_PER_USER_MAX, RETRY_AFTER_SECONDS)
        parent = self.builds.running_of(params.parent) if params.parent is not None else None
        if params.parent is not None and parent is None:
            raise MessageInvalid("no build of this token is running", "$.parent")
        size = len(encode_value(params)) + HELD_EACH_BYTES
        self._check_room(0, size)
        operation = Operation(new_name("op"), user, params, self.hold, self.builds, self._caller(session))
        operation.held_bytes, operation.parent = size, parent
        self.operations[operation.id] = operation
        self._attach(session, operation)
        operation.clients -= 1  # it began with one, which is this
        return m.Submitted(operation=operation.id)

    async def submit_blob(self, session: Session, params: m.SubmitBlob) -> m.Done:
        operation = self._open_operation(params.operation)
        arrived = operation.arriving.get(params.sha256, bytearray())
        self._check_room(operation.held_bytes, len(params.data))
        if params.sha256 in operation.blobs:
            raise MessageInvalid("the blob was sent in full already", "$.offset")
        if params.offset != len(arrived) or len(arrived) + len(params.data) > params.size:
            raise MessageInvalid(f"expected the piece at {len(arrived)}, found one at {params.offset}", "$.offset")
        operation.arriving[params.sha256] = arrived
        operation.held_bytes += len(params.data) + HELD_EACH_BYTES
        arrived += params.data
        if len(arrived) == params.size:
            try:
                data = await self.hold.in_thread(partial(checked, params.sha256, arrived))
            except MessageInvalid:
                operation.held_bytes -= len(arrived)
                raise
            finally:
                operation.arriving.pop(params.sha256, None)  # cancelled by another connection, it is gone
            self._open_operation(params.operation).blobs[params.sha256] = self.blobs.share(params.sha256, data)
        return m.Done()

    async def submit_add(self, session: Session, params: m.SubmitAdd) -> m.Done:
        operation = self._open_operation(params.operation)
        size = sum(len(spec.config) + len(spec.args or b"") + HELD_EACH_BYTES for spec in params.derivations)
        self._check_room(operation.held_bytes, size)
        operation.held_bytes += size
        count = taken = 0
        for i, spec in enumerate(params.derivations):
            count, taken = count + 1, taken + len(spec.config)
            if count == SPECS_AT_ONCE or taken > BYTES_AT_ONCE:
                count = taken = 0
                await trio.lowlevel.checkpoint()
                self._open_operation(params.operation)  # another connection may have cancelled or committed it meanwhile
            for needed, part in ((spec.matcher, "matcher"), (spec.realizer, "realizer")):
                if (needed.kind in ("python", "fetch") or needed.blob) and needed.blob not in operation.blobs:
                    raise MessageInvalid(f"its blob {needed.blob!r} was not sent in full", f"$.derivations[{i}].{part}.blob")
            try:
                if len(spec.config) <= BYTES_AT_ONCE:
                    operation.add(spec)
                else:
                    await self._made_in_thread(partial(operation.add, spec))
            except PylightnixException as error:
                raise MessageInvalid(str(error), f"$.derivations[{i}].config") from error
        self.builds.bulk.grew(len(params.derivations))
        return m.Done()

    async def _made_in_thread(self, make: Callable[[], T]) -> T:
        """Make something large of what a client sent."""

        def undisturbed() -> T:
            with self.builds.bulk.undisturbed():
                return make()

        return await self.hold.in_thread(undisturbed)

    async def _context(self, data: bytes, where: str = "$.context") -> dict[DRef, list[RRef]]:
        if len(data) <= BYTES_AT_ONCE:
            return _context(data, where)
        return await self._made_in_thread(lambda: _context(data, where))

    def _check_room(self, held: int, more: int) -> None:
        """Refuse what would have one operation, which holds `held` bytes, or all together hold more than they may."""
        if held + more > OPERATION_BYTES_MAX:
            raise TooMany("bytes in one operation", OPERATION_BYTES_MAX)
        if more + self._held_bytes > OPERATIONS_BYTES_MAX:
            raise TooMany("bytes in all operations that have not ended", OPERATIONS_BYTES_MAX, RETRY_AFTER_SECONDS)

    @property
    def _held_bytes(self) -> int:
        return sum(operation.held_bytes for operation in self.operations.values())

    async def submit_commit(self, session: Session, params: m.SubmitCommit) -> m.Done:
        operation = self._open_operation(params.operation)
        operation.state = OperationState.running
        self.nursery.start_soon(f"the end of operation {operation.id}", partial(self._run, operation))
        return m.Done()

    async def _run(self, operation: Operation) -> None:
        try:
            await operation.run()
        finally:  # who drains waits for it
            del self.operations[operation.id]
            for result in operation.result:
                self.askers.keep(result)
            operation.result = []  # the garbage collector may leave it, with all it refers to, for a long time; see `bulk`
            if not self.under_way:
                self.quiet.set()
                self.quiet = trio.Event()

    # --- what comes of it -----------------------------------------------------------------------------

    async def _result(self, session: Session, name: str) -> Result:
        """Wait until an operation has ended, and return what came of it."""
        found = self.askers.kept.find(name)
        if found is not None:
            self.askers.asks(session, name)
            return found
        operation = self._operation(name)
        self.askers.asks(session, name)
        result = operation.result
        await operation.ended.wait()
        if not result:
            raise AssertionError("BUG: ended without a result")
        return result[0]

    async def wait(self, session: Session, params: m.Wait) -> m.WaitResult:
        return (await self._result(session, params.operation)).numbers()

    async def outcome(self, session: Session, params: m.Outcome) -> m.Rows:
        result = await self._result(session, params.operation)
        await session.wait_turn()
        return await page(params.part, result.part(params.part), params.offset, params.limit)

    async def subscribe(self, session: Session, params: m.Subscribe) -> m.Done:
        if self.askers.kept.find(params.operation) is not None:
            session.notify("ended", m.Ended(operation=params.operation))
            return m.Done()
        operation = self._operation(params.operation)
        key = (id(session), operation.id)
        if key in self.watches:
            raise MessageInvalid("this connection watches that operation already", "$.operation")
        watch = self.watches[key] = Watch(session, operation, params.log, params.credit)

        async def run() -> None:
            try:
                await watch.run()
            finally:
                self.watches.pop(key, None)

        session.start(run)
        return m.Done()

    async def cancel(self, session: Session, params: m.Cancel) -> m.Done:
        if self.askers.kept.find(params.operation) is None:  # else it has ended already
            self._cancel(self._operation(params.operation))
        return m.Done()

    def _cancel(self, operation: Operation) -> None:
        if operation.state is OperationState.open:
            operation.abandon()
            self.operations.pop(operation.id, None)
        else:
            operation.cancel_scope.cancel()
            self.builds.drop_claim(operation.id)

    async def attach(self, session: Session, params: m.Attach) -> m.Attached:
        result = self.askers.kept.find(params.operation)
        if result is not None:
            self.askers.asks(session, result.id)
            return m.Attached(state=OperationState.ended.value, targets=list(result.targets), total=result.total, done=result.done)
        operation = self._operation(params.operation)
        self._attach(session, operation)
        return m.Attached(state=operation.state.value, targets=operation.request.targets, total=operation.total, done=operation.done)

    def _attach(self, session: Session, operation: Operation) -> None:
        operation.clients += 1
        self.askers.asks(session, operation.id)
        if session not in self.attached:
            self.attached[session] = []
            session.on_end.append(lambda: self._leave(session))
        # By name: a connection may live long, and what is forgotten here is to be gone.
        known = self.attached[session] = [name for name in self.attached[session] if name in self.operations]
        known.append(operation.id)

    def _leave(self, session: Session) -> None:
        """Let go the operations of a connection that is over; one that nobody else has is cancelled."""
        for name in self.attached.pop(session):
            operation = self.operations.get(name)
            if operation is not None:
                operation.clients -= 1
                if operation.clients == 0:
                    self._cancel(operation)

    # --- work that the caller does --------------------------------------------------------------------

    def _caller(self, session: Session) -> Caller:
        """Return the session as one that may be asked to build and to match."""
        caller = self.callers.get(id(session))
        if caller is None:
            caller = self.callers[id(session)] = Caller(session)

            def leave() -> None:
                self.builds.caller_gone(self.callers.pop(id(session)))
                for operation in list(self.operations.values()):
                    if operation.caller is caller and operation.is_steered and operation.state is not OperationState.ended:
                        self._cancel(operation)

            session.on_end.append(leave)
        return caller

    def _asked(self, session: Session, name: str) -> Caller:
        caller = self.callers.get(id(session))
        if caller is None:
            raise NoSuchClaim(name)
        return caller

    async def deliver(self, session: Session, params: m.Deliver) -> m.Done:
        self._asked(session, params.claim).deliver(params)
        return m.Done()

    async def abandon(self, session: Session, params: m.Abandon) -> m.Done:
        self._asked(session, params.claim).abandon(params)
        return m.Done()

    async def match_answer(self, session: Session, params: m.MatchAnswer) -> m.Done:
        self._asked(session, params.match).answer_match(params)
        return m.Done()

    async def pause_answer(self, session: Session, params: m.PauseAnswer) -> m.Done:
        operation = self.operations.get(params.operation)
        if operation is None or operation.caller.session is not session:
            raise NoSuchClaim(params.pause)
        operation.pauses.answer(params)
        return m.Done()

    async def insert_open(self, session: Session, params: m.InsertOpen) -> m.InsertOpened:
        return m.InsertOpened(folder=self.insertions.open(session))

    async def insert(self, session: Session, params: m.Insert) -> m.Inserted:
        handed = HandedOver(
            dref=DRef(params.dref),
            context=await self._context(params.context),
            dynamic={} if params.dynamic is None else await self._context(params.dynamic, "$.dynamic"),
            output=params.output,
            started=params.started,
            stopped=params.stopped,
            host=params.host,
            expected=None if params.rref is None else RRef(params.rref),
        )
        rref = await self.insertions.insert(session, handed)
        return m.Inserted(rref=str(rref))

    # --- questions ------------------------------------------------------------------------------------

    async def ps(self, session: Session, params: m.Ps) -> m.Processes:
        await session.wait_turn()
        return processes(self.operations, self.askers.kept, self.builds)

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
            given_up=len(self.builds.pool.processes.given_up),
            held=m.Held(
                operations_bytes=self._held_bytes,
                operations_bytes_max=OPERATIONS_BYTES_MAX,
                results=len(self.askers.kept),
                results_bytes=self.askers.kept.total_bytes,
                results_bytes_max=self.askers.kept.bytes_max,
                results_seconds=self.askers.kept.seconds,
            ),
        )

    async def log(self, session: Session, params: m.Log) -> m.LogResult:
        await session.wait_turn()
        found = self.builds.log_of(params.ref)
        if found is None:
            raise MissingLog(params.ref)
        self.builds.logs.touch(found.path)

        def read() -> tuple[int, bytes]:
            begin = tail_offset(found.path, params.limit) if params.tail else params.offset
            return begin, read_log(found.path, begin, params.limit)

        begin, data = await self.hold.in_thread(read)
        return m.LogResult(data=data, next=begin + len(data), finished=found.finished, build=found.build, path=found.path)

    async def info(self, session: Session, params: m.Info) -> m.InfoResult:
        found = self.hold.reader.index.info(RRef(params.ref))
        if found is None:
            raise MissingRealization(params.ref, self.hold.reader.layout.realization(params.ref))
        return m.InfoResult(**{name: getattr(found, name) for name in m.InfoResult.__struct_fields__})

    async def code(self, session: Session, params: m.Code) -> m.CodeResult:
        return m.CodeResult(manifest=self.hold.reader.index.code(params.digest))

    async def query(self, session: Session, params: m.Query) -> m.Rows:
        await session.wait_turn()
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
            rows = list(index.valid_rrefs(dref, context_key(await self._context(params.context or b"{}"))))
        else:
            rows = list(index.valid_rrefs(dref if params.what == "drefrrefs" else None))
        return await page("", rows, params.offset, params.limit)


# By the names of the methods; `hello` is answered by the connection itself.
_HANDLERS: Final[dict[str, Any]] = {
    name: getattr(Requests, name.replace(".", "_")) for name in m.METHODS if hasattr(Requests, name.replace(".", "_"))
}


def _context(data: bytes, where: str = "$.context") -> dict[DRef, list[RRef]]:
    try:
        # As plain text first: msgspec makes no subclasses of str, which references are.
        value = msgspec.json.decode(data, type=dict[str, list[str]])
    except (msgspec.DecodeError, RecursionError) as error:
        raise MessageInvalid(f"not a context ({error})", where) from error
    if canonical_bytes({dref: sorted(set(rrefs)) for dref, rrefs in value.items()}) != data:
        raise MessageInvalid("not in canonical form, with sorted and distinct references", where)
    for ref, is_one in [*((dref, isdref) for dref in value), *((rref, isrref) for rrefs in value.values() for rref in rrefs)]:
        if not is_one(ref):
            raise MessageInvalid(f"{ref!r:.200} is no reference of the kind that belongs there", where)
    return {DRef(dref): [RRef(rref) for rref in rrefs] for dref, rrefs in value.items()}


def _config(data: bytes, where: str) -> Config:
    try:
        value = json.loads(data)
        if canonical_bytes(value) != data:
            raise MessageInvalid("not in canonical form", where)
        return mkconfig(value)
    except (ValueError, RecursionError, InvalidConfig) as error:
        raise MessageInvalid(f"not a config ({error})", where) from error
