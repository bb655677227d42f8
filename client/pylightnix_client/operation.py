"""An operation of the daemon's, as its client sees it: watching it, waiting for it, ending it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Optional, TypeAlias, Union

from pylightnix.errors import Misuse
from pylightnix.protocol import messages as m
from pylightnix.types import Closure, DRef
from pylightnix_client.exchange import CREDIT, Ask

if TYPE_CHECKING:
    from pylightnix.embedded import Outcome
    from pylightnix_client.client import Client

__all__ = ["Happening", "Operation"]

Happening: TypeAlias = Union[m.Event, m.LogPiece]


class Operation:
    """One closure that a daemon realizes. Made by `Client.submit` and `Client.attach`.

    Attributes:
        id: its name.
        attached: where it was when it was attached to; None for one that was submitted.
        dropped: how many events were left out, because this end was slow.
    """

    def __init__(
        self,
        client: Client,
        operation: str,
        closure: Optional[Closure] = None,
        dry_run: bool = False,
        attached: Optional[m.Attached] = None,
        watched: bool = False,
        raised: Optional[Mapping[DRef, BaseException]] = None,
    ) -> None:
        self._client, self._closure, self._dry_run = client, closure, dry_run
        self.id, self.attached = operation, attached
        self.dropped = 0
        self._result: Optional[m.WaitResult] = None
        self._subscribed = watched
        self._raised: Mapping[DRef, BaseException] = {} if raised is None else raised
        self._outcome: Optional[Outcome] = None

    def __repr__(self) -> str:
        return f"<Operation {self.id} at {self._client.path}>"

    def wait(self) -> m.WaitResult:
        """Wait until it has ended, well or not, and return how.

        Realizers and matchers that cannot leave this process run meanwhile, in this thread. What they raise comes
        with `outcome`, but what is no `Exception`: that is raised here, and cancels the operation.
        """
        if self._result is None:
            self._result = self._client.wait(self.id)
        return self._result

    def events(self, log: bool = False) -> Iterator[Happening]:
        """Iterate over what happens from now on until the end; with `log`, over what builds write as well.

        Once only. Does, between two events, what `wait` does. Whoever stops reading in the middle gets no more than what was on its way.
        """
        if not self._subscribed:
            self._subscribed = True
            self._client.call(Ask("subscribe", m.Subscribe(operation=self.id, credit=CREDIT, log=log)))
        spent = 0
        while True:
            notice = self._client.next_notice(self.id)
            if isinstance(notice, (m.Events, m.Ended)):
                self.dropped += notice.dropped
            if isinstance(notice, m.Ended):
                return
            if isinstance(notice, (m.Events, m.LogPiece)):
                spent += 1
                if spent >= CREDIT // 2:
                    self._client.add_credit(self.id, spent)
                    spent = 0
            if isinstance(notice, m.Events):
                yield from notice.events
            elif isinstance(notice, m.LogPiece):
                yield notice

    def cancel(self) -> None:
        """End it. What it had built is kept, and builds that others want go on."""
        self._client.cancel(self.id)

    def outcome(self) -> Outcome:
        """Wait for the end and return what came of it, as the embedded driver would. The daemon may forget it then.

        Raises:
            Misuse: it was attached to, so its closure is not known here.
            PylightnixException: it was cancelled, or the store failed.
        """
        from pylightnix_client.outcomes import outcome_of

        if self._closure is None:
            raise Misuse("only whoever submitted an operation has its closure; ask for the parts of its outcome instead")
        if self._outcome is None:
            result = self.wait()
            self._outcome = self._client.carry(
                outcome_of(self.id, self._closure, result, self._client.trusted, self._dry_run, self._raised)
            )
            self._client.say_fetched(self.id)
        return self._outcome
