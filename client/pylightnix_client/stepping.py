"""Realizing through a daemon with pauses, as the embedded driver's `realize_in_steps` does it.

While a pause lasts the connection stays open, and the daemon keeps what was matched by then.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Optional

from pylightnix.attempt import context_below
from pylightnix.context import LazyContext, parse_mapping
from pylightnix.errors import Misuse
from pylightnix.pause import Answer, Pause
from pylightnix.planner.answers import problem_of_given
from pylightnix.protocol import messages as m
from pylightnix.protocol.errors_on_wire import failed_row_from_dump
from pylightnix.storage import store_layout
from pylightnix.store.access import translated_errors
from pylightnix.store.layout import StoreLayout
from pylightnix.store.owner import process_owner
from pylightnix.store.set_aside import discard
from pylightnix.travel.failures import dump_exception
from pylightnix.types import Closure, Derivation, DRef, Path, RealizeArg, StorageSettings
from pylightnix_client.client import Client
from pylightnix_client.errors import DaemonForeign
from pylightnix_client.exchange import Ask
from pylightnix_client.outcomes import failure

if TYPE_CHECKING:
    from pylightnix.embedded import Outcome

__all__ = ["realize_in_steps_through"]


def realize_in_steps_through(
    socket: str, closure: Closure, ask: Sequence[DRef], *, ask_on_failure: bool = False, **wishes: Any
) -> Generator[Pause, Answer, Optional[Outcome]]:
    """Realize through the daemon at `socket`, pausing as `pylightnix.embedded.realize_in_steps` does.

    Ctrl-C ends it, unless a realizer that runs here was interrupted, which is a failure like others then.

    Args:
        socket: its path.
        closure: as `instantiate` makes it.
        ask: pause before each of these.
        ask_on_failure: pause at what failed, too.
        wishes: the other parameters of `pylightnix.embedded.realize_in_steps`.

    Raises:
        NoDaemon, DaemonGone: it is not there, or not any more.
    """
    with Client.connect(socket) as client:
        operation = client.submit(closure, ask=ask, ask_on_failure=ask_on_failure, **wishes)
        steps = _Steps(client, closure, wishes.get("realize_args") or {})
        while (asked := client.next_pause(operation.id)) is not None:
            folder = steps.make_folder(asked)
            try:
                rrefs, abort = yield steps.pause(asked, folder)
            finally:
                discard(steps.layout, folder)
            if abort:
                operation.cancel()
                operation.wait()
                return None
            client.call(steps.answer(asked, rrefs))
        return operation.outcome()


class _Steps:
    """One realization, as far as its pauses are concerned."""

    def __init__(self, client: Client, closure: Closure, realize_args: dict[DRef, RealizeArg]) -> None:
        self._client, self._realize_args = client, realize_args
        self._derivations: dict[DRef, Derivation] = {derivation.dref: derivation for derivation in closure.derivations}
        # The daemon may keep its state elsewhere: only it knows where.
        self.layout: StoreLayout = replace(store_layout(closure.S), state=client.welcome.store)
        self._root = Path(client.welcome.store)

    def make_folder(self, asked: m.Pause) -> str:
        if not self._client.trusted:
            raise DaemonForeign(self._client.path, f"making a folder for {asked.dref}")
        # This process's own and not the daemon's: what is made by hand in it must outlive that.
        with translated_errors(self.layout, f"making a folder for {asked.dref}"):
            return process_owner(self.layout).make_folder()

    def pause(self, asked: m.Pause, folder: str) -> Pause:
        dref, direct = DRef(asked.dref), parse_mapping(json.loads(asked.context))
        S = StorageSettings(self._root, Path(self.layout.storage), Path(folder))
        context = LazyContext(direct, lambda: context_below(direct, S))
        pause = Pause(S, dref, context, self._derivations[dref], self._realize_args.get(dref, {}))
        if asked.error is not None:
            pause.error = failure(asked.error, self._client.trusted, self._client.take_raised(asked.operation, dref))
        return pause

    def answer(self, asked: m.Pause, rrefs: Any) -> Ask:
        problem = None if rrefs is None else problem_of_given(rrefs, DRef(asked.dref))
        if problem is None:
            told = None if rrefs is None else [str(rref) for rref in rrefs]
            return Ask("pause.answer", m.PauseAnswer(operation=asked.operation, pause=asked.pause, rrefs=told))
        row = failed_row_from_dump(dump_exception(Misuse(f"{asked.dref} {problem}")), DRef(asked.dref))
        return Ask("pause.answer", m.PauseAnswer(operation=asked.operation, pause=asked.pause, error=row))
