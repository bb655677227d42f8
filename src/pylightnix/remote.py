"""Going to whoever may work in a store: the daemon that owns it, else this process itself.

This is the one place of the library that knows the client, and imports it only where a daemon is met.
A daemon may come up or go away at any moment, also in the middle of a call: what it had not answered
is asked again, of its successor or of this process, for as long as one waits for a lock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Optional, TypeAlias, TypeVar, Union, cast

from pylightnix.errors import PylightnixException, StoreForeign, StoreReadOnly
from pylightnix.events import Event, Observer, ignore
from pylightnix.nesting import being_built, refuse_while_loading
from pylightnix.storage import store_layout
from pylightnix.store.layout import StoreLayout
from pylightnix.store.locks import LOCK_WAIT_SECONDS, StoreOwned
from pylightnix.store.ownership import daemon_socket
from pylightnix.types import Closure, DRef, RealizeArg, RRef, StorageSettings

if TYPE_CHECKING:
    from pylightnix.embedded import Outcome
    from pylightnix.pause import Answer, Pause
    from pylightnix.store.collection import Removal
    from pylightnix.store.mending import Mended
    from pylightnix.store.store import Store
    from pylightnix.transfer.destination import Destination

__all__ = [
    "ask_store",
    "here_only",
    "insert",
    "mend",
    "open_for_arrivals",
    "realize_closure",
    "realize_closure_async",
    "realize_in_steps",
    "register",
    "remove",
]

T = TypeVar("T")
Find: TypeAlias = Callable[[StoreLayout], Optional[str]]
Again: TypeAlias = Callable[[PylightnixException], None]

_PAUSE_SECONDS: Final = 0.05


def _nobody(error: PylightnixException) -> None:
    """Tell nobody that another daemon is asked."""


def realize_closure(
    closure: Closure,
    *,
    force_rebuild: Union[Sequence[DRef], bool] = (),
    assert_realized: Sequence[DRef] = (),
    realize_args: Optional[Mapping[DRef, RealizeArg]] = None,
    dry_run: bool = False,
    keep_going: bool = False,
    observe: Observer = ignore,
    find: Find = daemon_socket,
    jobs: Optional[int] = None,
    again: Again = _nobody,
) -> Outcome:
    """Realize what the targets of `closure` need, through the daemon if one owns the store.

    Arguments, result and errors are those of `pylightnix.embedded.realize_closure`. Through a daemon,
    realizers run in its workers: they see no globals that were changed here. Those that
    cannot be pickled run in this thread, and what they raise is in the outcome as that very object. `find` says
    where a daemon listens; one that starts a daemon never says None. At most `jobs` builds go on at a time there; here
    it is always one. `again` is called with the reason whenever the same is asked once more, after a daemon.

    Raises:
        DaemonGone: the daemon ended in the middle, and no other came.
    """
    refuse_while_loading()
    arguments: dict[str, Any] = {
        "force_rebuild": force_rebuild,
        "assert_realized": assert_realized,
        "realize_args": realize_args,
        "dry_run": dry_run,
        "keep_going": keep_going,
        "observe": observe,
    }

    def through(socket: str) -> Outcome:
        from pylightnix_client.realizing import realize_through

        return realize_through(socket, closure, jobs=jobs, **arguments)

    def here() -> Outcome:
        from pylightnix import embedded

        return embedded.realize_closure(closure, **arguments)

    return _wherever(store_layout(closure.S), through, here, find, again)


async def realize_closure_async(closure: Closure, observe: Observer = ignore, **wishes: Any) -> Outcome:
    """Do as `realize_closure` without keeping the event loop, of trio or asyncio, from its other tasks.

    Where no daemon owns the store, realizers run in a thread, with the current registry and storage of the
    caller. Cancelling takes effect before the next build there; a daemon is told at once.
    """
    refuse_while_loading()
    import anyio
    from anyio.to_thread import run_sync

    def here() -> Outcome:
        from anyio.from_thread import check_cancelled

        from pylightnix import embedded

        def watch(event: Event) -> None:
            check_cancelled()
            observe(event)

        return embedded.realize_closure(closure, observe=watch, **wishes)

    search = _Search(store_layout(closure.S))
    while True:
        socket = await run_sync(search.socket)
        try:
            return await (run_sync(here) if socket is None else _through_async(socket, closure, observe, wishes))
        except PylightnixException as error:
            if not search.goes_on(error, socket):
                raise
            pause = search.pause_seconds(error)
        await anyio.sleep(pause)


async def _through_async(socket: str, closure: Closure, observe: Observer, wishes: Mapping[str, Any]) -> Outcome:
    from pylightnix_client.aio import AsyncClient
    from pylightnix_client.realizing import watch_async

    async with await AsyncClient.connect(socket) as client:  # hanging up cancels what is not finished
        watches = observe is not ignore
        operation = await client.submit(closure, watch=watches, log=watches, **wishes)
        if watches:
            return await watch_async(client, operation, observe)
        return await operation.outcome()


def realize_in_steps(closure: Closure, ask: Sequence[DRef], **options: Any) -> Generator[Pause, Answer, Optional[Outcome]]:
    """Realize with pauses, through the daemon if one owns the store.

    Arguments, result and errors are those of `pylightnix.embedded.realize_in_steps`. If the store has another owner when a
    pause ends, that one goes on: what was realized is used again, and what was answered is not asked again.
    """
    from pylightnix import embedded

    refuse_while_loading()
    embedded.realize_in_steps(closure, ask, **options)  # says what is wrong with the closure at the call

    def steps_of(socket: Optional[str], answers: Mapping[DRef, _Answered]) -> Generator[Pause, Answer, Optional[Outcome]]:
        given = [dref for dref, answered in answers.items() if answered.counts]
        still = [*(dref for dref in ask if dref not in answers), *given]
        if socket is None:
            return embedded.realize_in_steps(closure, still, **options)
        from pylightnix_client.stepping import realize_in_steps_through

        return realize_in_steps_through(socket, closure, still, **options)

    return _in_steps(_Search(store_layout(closure.S)), steps_of)


class _Answered(NamedTuple):
    """What was answered at a pause."""

    context: Mapping[DRef, Any]
    answer: Answer
    is_last: bool = True

    @property
    def counts(self) -> bool:
        """Whether another owner of the store must be told, too. What was built by then is there for it to find."""
        return self.is_last or self.answer[0] is not None


_Steps: TypeAlias = Callable[[Optional[str], Mapping[DRef, _Answered]], "Generator[Pause, Answer, Optional[Outcome]]"]


def _in_steps(search: _Search, steps_of: _Steps) -> Generator[Pause, Answer, Optional[Outcome]]:
    answers: dict[DRef, _Answered] = {}
    while True:
        socket = search.socket()
        try:
            return (yield from _with_answers(steps_of(socket, answers), answers))
        except PylightnixException as error:
            if not search.goes_on(error, socket):
                raise
            pause = search.pause_seconds(error)
        time.sleep(pause)


def _with_answers(
    steps: Generator[Pause, Answer, Optional[Outcome]], answers: dict[DRef, _Answered]
) -> Generator[Pause, Answer, Optional[Outcome]]:
    """Pause as `steps` does, but where it was answered before; enter in `answers` what is answered now."""
    before = {dref: answered for dref, answered in answers.items() if answered.counts}
    try:
        pause = next(steps)
        while True:
            known = before.pop(pause.dref, None)
            if known is not None and known.context == dict(pause.context):
                answer = known.answer
            else:
                context = dict(pause.context)  # while what it names is there
                answer = yield pause
                for dref, earlier in answers.items():
                    answers[dref] = earlier._replace(is_last=False)
                answers[pause.dref] = _Answered(context, answer)
            pause = steps.send(answer)
    except StopIteration as end:
        return cast("Optional[Outcome]", end.value)
    finally:
        steps.close()


def insert(dref: DRef, context: Mapping[DRef, Sequence[RRef]], path: str, started: float, S: Optional[StorageSettings]) -> RRef:
    """Make the folder at `path` a realization, through the daemon if one owns the store; return its reference, durable.

    Args:
        dref: what it is a realization of.
        context: which realizations stand for its direct dependencies.
        path: the folder. Where this fails, it is back in its place.
        started: when its making began, UTC seconds since the epoch.
        S: the store.

    Raises:
        InvalidOutput: it cannot be stored.
        StoreError: the store does not take it.
    """
    layout = store_layout(S)

    def through(socket: str) -> RRef:
        from pylightnix_client.insertion import insert_through

        return insert_through(socket, dref, context, path, started)

    def here() -> RRef:
        from pylightnix.insertion import insert_here

        return insert_here(layout, dref, context, path, started)

    return _wherever(layout, through, here)


def register(configs: Mapping[DRef, bytes], S: Optional[StorageSettings]) -> None:
    """Put derivations, given by their canonical configs, into the store.

    Raises:
        StoreError: it does not take them.
    """
    layout = store_layout(S)

    def through(socket: str) -> None:
        from pylightnix_client.client import Client

        with Client.connect(socket) as client:
            client.register(list(configs.values()))

    def here() -> None:
        import json

        from pylightnix.store.derivations import write_derivation

        for dref, canonical in configs.items():
            write_derivation(layout, dref, canonical, json.loads(canonical))

    _wherever(layout, through, here)


def remove(drefs: Sequence[DRef], rrefs: Sequence[RRef], S: Optional[StorageSettings], only_unused: bool = False) -> Removal:
    """Take derivations, with all their realizations, and realizations out of the store.

    Arguments, result and errors are those of `pylightnix.store.collection.remove`.

    Raises:
        StoreBusy: there is no daemon, and others work in the store, perhaps with what is to go.
    """
    layout = store_layout(S)

    def through(socket: str) -> Removal:
        from pylightnix_client.client import Client

        with Client.connect(socket) as client:
            return client.remove(drefs, rrefs, only_unused=only_unused)

    def here() -> Removal:
        from pylightnix.store.collection import remove_alone

        return remove_alone(layout, drefs, rrefs, only_unused=only_unused)

    return _wherever(layout, through, here)


def mend(rrefs: Sequence[RRef], S: Optional[StorageSettings]) -> list[Mended]:
    """Mend realizations that may be damaged, or move them to the store's quarantine.

    Arguments, result and errors are those of `pylightnix.store.mending.mend`.

    Raises:
        StoreBusy: there is no daemon, and others work in the store.
    """
    layout = store_layout(S)

    def through(socket: str) -> list[Mended]:
        from pylightnix_client.client import Client

        with Client.connect(socket) as client:
            return client.mend(rrefs)

    def here() -> list[Mended]:
        from pylightnix.store.mending import mend_alone

        return mend_alone(layout, rrefs)

    return _wherever(layout, through, here)


def ask_store(S: Optional[StorageSettings], question: Callable[[Store], T], request: Callable[[Any], T], flush: bool = True) -> T:
    """Ask the store's index.

    Args:
        S: the store.
        question: asks it here.
        request: asks the same of a `pylightnix_client.client.Client`.
        flush: whether everything that this process has built must be durable first.
    """
    layout = store_layout(S)

    def through(socket: str) -> T:
        from pylightnix_client.client import Client

        with Client.connect(socket) as client:
            return request(client)

    def here() -> T:
        from pylightnix.store.access import translated_errors
        from pylightnix.store.room import with_room
        from pylightnix.store.store import open_store

        with ExitStack() as stack:
            store = with_room(layout, lambda: stack.enter_context(open_store(layout)))
            if flush:
                store.flush()
            with translated_errors(layout, "asking the index"):
                return question(store)

    return _wherever(layout, through, here)


@contextmanager
def here_only(doing: str) -> Iterator[None]:
    """Refuse what is done in this process and a daemon does not do for its callers, where a daemon owns the store.

    Raises:
        StoreOwned: a daemon owns it. The error names that daemon, and says what to do.
    """
    try:
        yield
    except StoreOwned as error:
        raise StoreOwned(error.root, error.holders, error.socket, doing) from error


@contextmanager
def open_for_arrivals(layout: StoreLayout) -> Iterator[Destination]:
    """Open a store for realizations that were made elsewhere, through the daemon if one owns it, for the block.

    What that block raises is not mended: if the daemon goes in the middle, what was taken by then is there.
    """
    with ExitStack() as stack:

        def through(socket: str) -> Destination:
            from pylightnix_client.arrival import Through
            from pylightnix_client.client import Client

            return Through(stack.enter_context(Client.connect(socket)), layout)

        def here() -> Destination:
            from pylightnix.store.store import open_store
            from pylightnix.transfer.destination import Here

            return Here(stack.enter_context(open_store(layout)))

        yield _wherever(layout, through, here)


def _wherever(
    layout: StoreLayout, through: Callable[[str], T], here: Callable[[], T], find: Find = daemon_socket, again: Again = _nobody
) -> T:
    """Call `through` with a daemon's socket if one owns the store, else `here`; again where that has changed meanwhile."""
    search = _Search(layout, find)
    while True:
        socket = search.socket()
        try:
            return here() if socket is None else through(socket)
        except PylightnixException as error:
            if not search.goes_on(error, socket):
                raise
            pause = search.pause_seconds(error)
            if socket is not None:
                again(error)
        time.sleep(pause)


class _Search:
    """Who owns the store, asked again for as long as that changes under whoever wants to work there."""

    def __init__(self, layout: StoreLayout, find: Find = daemon_socket) -> None:
        self._layout, self._find = layout, find
        self._begun = 0.0
        self._last: Optional[float] = None
        self._was_served = False

    def socket(self) -> Optional[str]:
        """Return the socket of the daemon that owns the store now, if one does."""
        self._begun = time.monotonic()
        found = self._find(self._layout)
        self._was_served = self._was_served or found is not None
        return found

    def goes_on(self, error: PylightnixException, socket: Optional[str]) -> bool:
        """Tell whether to ask again after an error: only where it says that the store has changed hands, and not for ever."""
        # Who may not write the store itself waits for the next daemon where there was one.
        is_barred = socket is None and self._was_served and isinstance(error, (StoreForeign, StoreReadOnly))
        if not is_barred and not _has_moved(error, self._layout, socket):
            return False
        from pylightnix.protocol.errors import Draining, TooMany

        if isinstance(error, TooMany) and being_built(self._layout.storage):
            return False  # whoever has the connections may be waiting for the very realizer that asks
        now = time.monotonic()
        # A build of hours does not use up the time to find another daemon, nor does one that says how long it still takes.
        if self._last is None or now - self._begun > LOCK_WAIT_SECONDS or isinstance(error, (Draining, TooMany)):
            self._last = now + LOCK_WAIT_SECONDS
        return now < self._last

    def pause_seconds(self, error: PylightnixException) -> float:
        """Return how long to wait before asking again: as long as a daemon that ends asks for."""
        from pylightnix.protocol.errors import Draining

        return max(_PAUSE_SECONDS, error.retry_after) if isinstance(error, Draining) else _PAUSE_SECONDS


def _has_moved(error: PylightnixException, layout: StoreLayout, socket: Optional[str]) -> bool:
    """Tell whether an error says that the store has another owner than when the call began, or that it is not our turn yet."""
    if socket is None:
        return isinstance(error, StoreOwned) and error.root == layout.state
    from pylightnix.protocol.errors import Draining
    from pylightnix_client.errors import DaemonFull, DaemonGone, NoDaemon

    return isinstance(error, (DaemonGone, NoDaemon, Draining, DaemonFull))
