"""Going to whoever may work in a store: the daemon that owns it, else this process itself.

This is the one place of the library that knows the client, and imports it only where a daemon is met.
A daemon may come up or go away at any moment, also in the middle of a call: what it had not answered
is asked again, of its successor or of this process, for as long as one waits for a lock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Optional, TypeVar, Union

from pylightnix.errors import PylightnixException
from pylightnix.events import Observer, ignore
from pylightnix.storage import store_layout
from pylightnix.store.layout import StoreLayout
from pylightnix.store.locks import LOCK_WAIT_SECONDS, StoreOwned
from pylightnix.store.ownership import daemon_socket
from pylightnix.types import Closure, DRef, RealizeArg, StorageSettings

if TYPE_CHECKING:
    from pylightnix.embedded import Outcome
    from pylightnix.store.store import Store

__all__ = ["ask_store", "realize_closure", "register"]

T = TypeVar("T")

_PAUSE_SECONDS: Final = 0.05


def realize_closure(
    closure: Closure,
    *,
    force_rebuild: Union[Sequence[DRef], bool] = (),
    assert_realized: Sequence[DRef] = (),
    realize_args: Optional[Mapping[DRef, RealizeArg]] = None,
    dry_run: bool = False,
    keep_going: bool = False,
    observe: Observer = ignore,
) -> Outcome:
    """Realize what the targets of `closure` need, through the daemon if one owns the store.

    Arguments, result and errors are those of `pylightnix.embedded.realize_closure`. Through a daemon,
    realizers run in its workers: they see no globals that were changed here.

    Raises:
        DaemonGone: the daemon ended in the middle, and no other came.
    """
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

        return realize_through(socket, closure, **arguments)

    def here() -> Outcome:
        from pylightnix import embedded

        return embedded.realize_closure(closure, **arguments)

    return _wherever(store_layout(closure.S), through, here)


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
        from pylightnix.store.store import open_store

        with open_store(layout) as store:
            if flush:
                store.flush()
            with translated_errors(layout, "asking the index"):
                return question(store)

    return _wherever(layout, through, here)


def _wherever(layout: StoreLayout, through: Callable[[str], T], here: Callable[[], T]) -> T:
    """Call `through` with a daemon's socket if one owns the store, else `here`; again where that has changed meanwhile."""
    last: Optional[float] = None
    while True:
        socket = daemon_socket(layout)
        begun = time.monotonic()
        try:
            return here() if socket is None else through(socket)
        except PylightnixException as error:
            if not _has_moved(error, layout, socket):
                raise
            now = time.monotonic()
            if last is None or now - begun > LOCK_WAIT_SECONDS:
                last = now + LOCK_WAIT_SECONDS  # a build of hours does not use up the time to find another daemon
            if now >= last:
                raise
        time.sleep(_PAUSE_SECONDS)


def _has_moved(error: PylightnixException, layout: StoreLayout, socket: Optional[str]) -> bool:
    """Tell whether an error says that the store has another owner than when the call began."""
    if socket is None:
        return isinstance(error, StoreOwned) and error.root == layout.state
    from pylightnix.protocol.errors import Draining
    from pylightnix_client.errors import DaemonGone, NoDaemon

    return isinstance(error, (DaemonGone, NoDaemon, Draining))
