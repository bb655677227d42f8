"""One daemon's day in one process: builds, a fetch, a failure, a removal, a collection, for two clients and a passer-by.

The daemon is the real one; its workers are `fake_worker`'s. Everything that a client was told is noted, and every way in
which the daemon must not behave, whatever failed, is a violation.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Final, Optional, Protocol, TypeVar

import trio
from tests.daemon import stages
from tests.daemon.wire_client import HungUp, WireClient
from tests.faults import fake_fetcher, fake_worker
from tests.faults.shim import Fault

from pylightnix import Closure, DRef, Registry, StorageSettings, fetchurl2, instantiate, match_all
from pylightnix.errors import PylightnixException
from pylightnix.protocol import messages as m
from pylightnix.protocol.client import ClientConnection
from pylightnix.protocol.errors import ProtocolError
from pylightnix.storage import store_layout
from pylightnix.store.access import make_folders
from pylightnix.system_errors import is_refusal
from pylightnixd.limits import Limits
from pylightnixd.listening import listen_at
from pylightnixd.notify import Notifier
from pylightnixd.resources import Budget
from pylightnixd.server import Settings, serve

ANSWER_SECONDS: Final = 20.0
END_SECONDS: Final = 30.0
_RREF: Final = re.compile(rb"rref:[0-9a-f]{32}-[0-9a-f]{32}-[a-z0-9]+")
_LONGEST: Final = 120
_OWN_FAULT: Final = ("remote-exception", "build-failed")
"""What is told of a realizer that fails."""
R = TypeVar("R")


@dataclass(slots=True)
class Report:
    """What came of a day."""

    calls: int = 0
    told: list[str] = field(default_factory=list)
    """What clients were told of, and have not had removed since."""
    loose: list[str] = field(default_factory=list)
    """What was asked to be removed: it may be there or not."""
    matched: dict[str, list[str]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, data: bytes) -> Report:
        return cls(**json.loads(data)) if data else cls(violations=["dead: the process ended without a report"])

    def data(self) -> bytes:
        return json.dumps(asdict(self)).encode()


@dataclass(frozen=True, slots=True)
class Plans:
    """What is built. Made before anything fails."""

    first: Closure
    second: Closure
    old: Closure
    fetched: Closure
    failing: Closure

    @classmethod
    def of(cls, S: StorageSettings, url: str, sha256: str) -> Plans:
        def graph(r: Registry, top: str) -> DRef:
            below = stages.add(r, "shared", stages.plain)
            left = stages.add(r, f"left{top}", stages.plain, dep=below)
            two = stages.add(r, f"two{top}", stages.several, count=2, matcher=match_all, dep=below)
            return stages.add(r, top, stages.plain, deps=[left, two])

        def old(r: Registry) -> DRef:
            return stages.add(r, "oldtop", stages.plain, dep=stages.add(r, "oldlow", stages.plain))

        return cls(
            instantiate(partial(graph, top="a"), S=S)[1],
            instantiate(partial(graph, top="b"), S=S)[1],
            instantiate(old, S=S)[1],
            instantiate(lambda r: fetchurl2(url, sha256=sha256, filename="data", name="fetched", r=r), S=S)[1],
            instantiate(lambda r: stages.add(r, "fails", stages.fails), S=S)[1],
        )


class CallsOfDaemon(Protocol):
    """What fails a daemon's calls, in this process or in another."""

    def arm(self, fault: Fault) -> None: ...
    def disarm(self) -> int: ...
    def spare(self, yes: bool = True) -> None: ...
    def mark(self, text: str) -> None: ...


class _Tapped(ClientConnection):
    """Shows all that arrives, before anybody reads it."""

    def __init__(self, hear: Callable[[bytes], None]) -> None:
        super().__init__()
        self._tap, self._last = hear, b""

    def receive_data(self, data: bytes | bytearray | memoryview) -> Any:
        self._tap(self._last + bytes(data))
        self._last = bytes(data[-_LONGEST:])
        return super().receive_data(data)


class Day:
    """The clients' side. `expected` is what an undisturbed day came to; None for the first."""

    def __init__(
        self,
        root: str,
        plans: Plans,
        calls: CallsOfDaemon,
        fault: Optional[Fault] = None,
        expected: Optional[Mapping[str, Sequence[str]]] = None,
        stop: Callable[[], None] = lambda: os.kill(os.getpid(), signal.SIGTERM),
        patience: float = ANSWER_SECONDS,
    ) -> None:
        self.patience = patience
        self.root, self.plans, self.calls, self.fault, self.expected, self.stop = root, plans, calls, fault, expected, stop
        self.report = Report()
        self.told: set[str] = set()
        self.loose: set[str] = set()
        self.clients: dict[str, WireClient] = {}
        self.serving, self.over = threading.Event(), threading.Event()

    # --- what is heard -------------------------------------------------------------------------------

    def violation(self, text: str) -> None:
        self.report.violations.append(text)

    def _hear(self, data: bytes) -> None:
        for rref in sorted({found.decode() for found in _RREF.findall(data)} - self.told - self.loose):
            self.told.add(rref)
            self.calls.mark(f"told {rref}")

    def _connect(self, name: str) -> WireClient:
        client = WireClient(f"{self.root}/daemon.sock", say_hello=False)
        client.socket.settimeout(self.patience)
        client.connection = _Tapped(self._hear)
        client.welcome = client.hello()
        self.clients[name] = client
        return client

    def ask(self, name: str, question: Callable[[WireClient], R]) -> Optional[R]:
        """Return the answer; None if it was a refusal, which must have a name, or if something worse happened."""
        try:
            return question(self.clients.get(name) or self._connect(name))
        except ProtocolError as error:
            self._refused(name, error.code, str(error))
        except PylightnixException as error:
            self._refused(name, error.code, str(error))
        except TimeoutError:
            if name in self.clients:
                self.clients.pop(name).close()
            self.violation(f"hang: {name} waited {self.patience:g} s for an answer")
            raise
        except (HungUp, OSError) as error:
            if name in self.clients:
                self.clients.pop(name).close()
            self.violation(f"harmed: {name} lost its connection ({error!r})")
        return None

    def _refused(self, name: str, code: str, message: str) -> None:
        self.report.errors.append(f"{name}: {code}: {message}")
        if code == "internal" or "BUG" in message:
            self.violation(f"internal: {name} was told {code}: {message}")

    # --- what is done --------------------------------------------------------------------------------

    def _end(self, name: str, operation: Optional[str]) -> bool:
        if operation is None:
            return False
        result = self.ask(name, lambda client: client.wait(operation))
        for row in self.ask(name, lambda client: client.failed(operation)) or ():
            dref = row.dref or "(none)"
            if row.code not in _OWN_FAULT or not dref.endswith("-fails"):
                self._refused(name, row.code, f"{dref[38:]}: {row.message}")
        for dref, rrefs in (self.ask(name, lambda client: client.matched(operation)) or {}).items():
            self.report.matched[dref] = sorted(rrefs)
            if self.expected is not None and rrefs and sorted(rrefs) != self.expected.get(dref):
                self.violation(f"wrong: {dref} is {rrefs}, expected {self.expected.get(dref)}")
        return result is not None and result.ok

    def build(self, **closures: Closure) -> bool:
        """Have each client build its closure, all at once; return whether all did."""
        begun = {name: self._begin(name, closure) for name, closure in closures.items()}
        ended = [self._end(name, operation) for name, operation in begun.items()]
        return all(ended)

    def _begin(self, name: str, closure: Closure) -> Optional[str]:
        return self.ask(name, lambda client: client.submit(closure, keep_going=True))

    def remove(self, drefs: Sequence[str] = (), rrefs: Sequence[str] = (), only_unused: bool = False) -> None:
        going = {rref for rref in self.told if rref in rrefs or "dref:" + rref[38:] in drefs}
        self.calls.mark(f"removing {' '.join(sorted(going))}")
        self.told -= going
        self.loose |= going
        request = m.Remove(drefs=list(drefs), rrefs=list(rrefs), only_unused=only_unused)
        self.ask("a", lambda client: client.call("remove", request, m.Removed))

    def look(self, name: str) -> None:
        self.ask(name, lambda client: client.status())
        self.ask(name, lambda client: client.ps())
        self.ask(name, lambda client: client.call("query", m.Query(what="allrrefs"), m.Rows))

    def work(self) -> None:
        plans = self.plans
        old = [f"dref:{each}" for each in (derivation.dref[5:] for derivation in plans.old.derivations)]
        self.build(a=plans.first, b=plans.second)
        self.look("b")
        self.build(a=plans.old, b=plans.failing)
        self.build(a=plans.fetched)
        top, low = sorted(old, key=lambda dref: dref.endswith("low"))
        self.remove(drefs=[top])
        self.look("b")
        self.remove(rrefs=sorted(rref for rref in self.told if "dref:" + rref[38:] == low), only_unused=True)
        self.look("passer-by")
        self.loose.clear()
        self.build(b=plans.old)

    def check_all_is_well(self) -> None:
        """With nothing failing any more, and without a new start, everything can be had."""
        plans = self.plans
        self.loose.clear()
        if not all([self.build(a=plans.first, b=plans.second), self.build(a=plans.old, b=plans.fetched)]):
            self.violation(f"harmed: builds fail for ever: {self.report.errors[-1:]}")

    def run(self) -> None:
        self.calls.spare()
        try:
            while not self.serving.wait(0.05):
                if self.over.is_set():
                    return
            for name in ("a", "b"):
                self._connect(name)
            if self.fault is not None:
                self.calls.arm(self.fault)
            try:
                self.work()
            finally:
                self.report.calls = self.calls.disarm()
            self.check_all_is_well()
        except TimeoutError:
            pass  # said already
        except Exception:  # noqa: BLE001  # it is told, and the daemon ended
            self.violation(f"harness: {traceback.format_exc()}")
        finally:
            self.calls.disarm()
            self.report.told, self.report.loose = sorted(self.told), sorted(self.loose)
            for client in self.clients.values():
                client.close()
            if not self.over.is_set():
                self.stop()


class _Bugs(logging.Handler):
    def __init__(self, day: Day) -> None:
        super().__init__()
        self._day = day

    def emit(self, record: logging.LogRecord) -> None:
        if "BUG" in record.getMessage():
            error = record.exc_info[1] if record.exc_info else None
            self._day.violation(f"internal: logged {record.getMessage()[:300]} {error!r}")


def live(day: Day, fault_at_start: Optional[Fault] = None) -> Report:
    """Serve for a day, in this process, which is good for nothing else afterwards."""
    logger = logging.getLogger()
    logger.handlers[:] = [_Bugs(day)]
    fake_worker.install(day.calls.spare)
    fake_fetcher.install(day.calls.spare)
    layout = store_layout(StorageSettings(day.root, f"{day.root}/store-v1", None))  # type: ignore[arg-type]  # paths
    settings = Settings(layout, f"{day.root}/daemon.sock", Budget(2), Limits(), drain_seconds=5.0)
    clients = threading.Thread(target=day.run, daemon=True)
    clients.start()
    try:
        if fault_at_start is not None:
            day.calls.arm(fault_at_start)
        make_folders(layout)
        trio.run(serve, settings, partial(listen_at, settings.socket_path), Notifier({}), day.serving.set)
    except (PylightnixException, OSError) as error:
        # The main program puts the system's refusals into words.
        if day.serving.is_set() or not (isinstance(error, PylightnixException) or is_refusal(error)):
            day.violation(f"dead: {error!r}")
        day.report.errors.append(f"start: {error!r}")
    except BaseException:  # noqa: BLE001, ASYNC103  # it is what is looked for, and no loop runs any more
        day.violation(f"dead: {traceback.format_exc()[-3000:]}")
    finally:
        day.over.set()
    clients.join(END_SECONDS)
    return day.report
