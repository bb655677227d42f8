"""The daemon as a whole: what lives for how long, and how it ends.

Three nurseries, one inside the other: workers outlive builds and operations, and those outlive accepting.
Told to end, the daemon takes in nothing new and lets what is under way go on until the deadline. Meanwhile it
listens still: who connects is greeted, gets answers, and is told when to submit again. Leaving the inner one stops that.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, Optional

import trio

from pylightnix._version import __version__
from pylightnix.errors import PylightnixException
from pylightnix.protocol.errors import NotYours, TooMany
from pylightnix.protocol.errors_on_wire import WireError, error_to_wire
from pylightnix.protocol.limits import CONNECTIONS_PER_USER_MAX, UNGREETED_PER_USER_MAX
from pylightnix.protocol.messages import DaemonWelcome, DrainingNotice
from pylightnix.protocol.server import ServerConnection
from pylightnix.store.build_logs import logs_folder
from pylightnix.store.kept import KeepFailed
from pylightnix.store.layout import StoreLayout
from pylightnix.store.locks import LOCK_WAIT_SECONDS, say_ending
from pylightnix.store.ownership import DAEMON_ROLE
from pylightnix.store.room import RESERVE_BYTES, with_room
from pylightnix.store.store import another_view, open_store_alone
from pylightnix.worker.linux import become_subreaper, gain_no_privileges
from pylightnixd.allocation import return_large_blocks
from pylightnixd.boundary import SharedNursery, contained, entered
from pylightnixd.builds import Builds
from pylightnixd.descriptors import Closer, WaryStream, refuse_descriptors
from pylightnixd.durations import Durations
from pylightnixd.fetch_process import Siblings
from pylightnixd.fetchers import Fetchers, FetchSettings
from pylightnixd.hold import HeldStore
from pylightnixd.limits import Limits
from pylightnixd.listening import LINK_NAME, Peer, listener_of, peer_of
from pylightnixd.logfolder import Keep, LogFolder, remove_logs
from pylightnixd.names import new_name
from pylightnixd.notify import Notifier
from pylightnixd.requests import BEGINNING, RETRY_AFTER_SECONDS, Requests
from pylightnixd.resources import Budget
from pylightnixd.session import Session
from pylightnixd.snapshot import Snapshots
from pylightnixd.table import BuildTable
from pylightnixd.workers import WorkerPool

__all__ = ["Settings", "serve"]

_log = logging.getLogger("pylightnixd")

END_SECONDS: Final = 9.5
"""How long after the drain the daemon is there at most, whatever does not end: a thread on a disk, too."""
QUIET_SECONDS: Final = 5.0
"""How long builds that were told to end, and the last commit, may take. Workers take as long again to be ended."""
LINGER_SECONDS: Final = 2.0
"""How long clients of what ended in the drain may stay to ask about it."""
CLEAR_SECONDS: Final = 1.0
"""How long, at the end, folders of builds that have just ended may take to be removed."""
TIDY_SECONDS: Final = 60.0
DRAIN_SECONDS: Final = 30.0
ACCEPT_AGAIN_SECONDS: Final = 0.1
"""How long after the system refused a connection the next is accepted."""
AT_ONCE_SECONDS: Final = 5.0
"""How long threads that hash outputs hold up the end of a daemon that is to end at once."""
FEATURES: Final[tuple[str, ...]] = ()
FIXED: Final = ("layout", "socket_path", "socket_is_ours", "grace_seconds", "fetch", "open_files", "wait_seconds")
"""Settings that hold for a daemon's whole life."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How a daemon is to run."""

    layout: StoreLayout
    socket_path: str
    budget: Budget
    limits: Limits
    keep_logs: Keep = field(default_factory=Keep)
    keep_failed: KeepFailed = field(default_factory=KeepFailed)
    reserve_bytes: int = RESERVE_BYTES
    """How much of the disk is kept for removals when it is full."""
    fetch: FetchSettings = field(default_factory=FetchSettings)
    socket_is_ours: bool = True
    """Whether the socket is removed at the end; a supervisor's is not."""
    grace_seconds: float = 2.0
    """How long a running build outlives the last operation that wanted it."""
    drain_seconds: float = DRAIN_SECONDS
    """How long what is under way may go on after the daemon was told to end."""
    wait_seconds: float = LOCK_WAIT_SECONDS
    """How long to wait for others that work in the store."""
    open_files: Optional[tuple[int, int]] = None
    """The soft and the hard limit on open files of the processes of builds; None for this process's."""
    exit_when_idle_seconds: Optional[float] = None
    """End after so long without connection or operation; None for never."""


async def serve(
    settings: Settings,
    listen: Callable[[], socket.socket],
    notifier: Notifier,
    ready: Callable[[], None],
    reread: Optional[Callable[[], Settings]] = None,
) -> None:
    """Own a store and serve it until told to end.

    Args:
        settings: how.
        listen: makes the listening socket; called when the store is held.
        notifier: the line to the supervisor.
        ready: called when connections are accepted.
        reread: returns the settings as they are now, or raises; called on SIGHUP.

    Raises:
        StoreError: the store cannot be had, or the socket cannot be made.
    """
    return_large_blocks()
    become_subreaper()
    gain_no_privileges()  # before any thread: workers inherit it, and run users' code before their own first line (sitecustomize)
    with ExitStack() as stack:
        layout, path, seconds = settings.layout, settings.socket_path, settings.wait_seconds
        store = with_room(layout, lambda: stack.enter_context(open_store_alone(layout, DAEMON_ROLE, path, seconds)), early=True)
        server = _Server(settings, HeldStore.of(store), notifier, reread or (lambda: settings))
        await server.run(listen(), ready)


class _Server:
    def __init__(self, settings: Settings, hold: HeldStore, notifier: Notifier, reread: Callable[[], Settings]) -> None:
        self.settings, self.hold, self.notifier, self.reread = settings, hold, notifier, reread
        self.snapshots = Snapshots(another_view(hold.reader))
        self.sessions: dict[int, Session] = {}
        self.greeted: dict[int, set[int]] = {}
        """The connections of each user that have said hello."""
        self.ungreeted: dict[int, dict[int, Session]] = {}
        """Those of each user that have not, oldest first."""
        self.hearing = trio.Lock()
        """Held by the session that decodes."""
        self.stop = trio.Event()
        self.stop_now = trio.Event()
        self.changed = trio.Event()
        self.told = trio.Event()
        """Set, and replaced, when the settings were read again."""

    async def run(self, listening: socket.socket, ready: Callable[[], None]) -> None:
        logs = LogFolder.of(logs_folder(self.settings.layout.state))
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:  # before anybody is told that we serve
            async with trio.open_nursery() as worker_nursery:
                pool = WorkerPool(SharedNursery(worker_nursery), self.hold.reader.owner, logs.path, self.settings.open_files)
                async with trio.open_nursery() as work_nursery:
                    work = SharedNursery(work_nursery)
                    siblings = Siblings(pool.forking, pool.spared)
                    fetchers = Fetchers(work, siblings, self.settings.layout.fetch, logs.path, self.settings.fetch)
                    table = BuildTable(self.settings.budget, self.settings.grace_seconds, lambda _: new_name("b"))
                    durations = Durations.of(self.hold.reader.index)
                    builds = Builds(self.hold, table, pool, self.settings.limits, logs, durations, work, fetchers)
                    builds.bulk.begin()
                    requests = Requests(self.hold, builds, work)
                    work.keep("making realizations durable", self.hold.run_committer)
                    work.keep("starting builds", builds.run)
                    work.keep("dropping results", partial(requests.askers.run, self.hold.in_thread))
                    work.keep("taking signals", partial(self._signals, signals, builds))
                    work.start_soon("emptying the trash", self.hold.removals.empty_trash)
                    self._take_room()
                    work.keep("keeping room on the disk", self.hold.room.run)
                    work.keep("tidying", partial(self._tidy, logs, requests))
                    work.keep("telling the supervisor", partial(self._tell_supervisor, requests, work))
                    work.keep("waiting for idleness", partial(self._end_when_idle, requests))
                    await self._serve(listening, ready, requests, builds, work)
                    work_nursery.cancel_scope.cancel()
                await pool.close()
                # What waits for processes that were given up would have no end.
                worker_nursery.cancel_scope.deadline = trio.current_time() + CLEAR_SECONDS
        self._unlink()

    async def _serve(
        self, listening: socket.socket, ready: Callable[[], None], requests: Requests, builds: Builds, work: SharedNursery
    ) -> None:
        """Accept connections until told to end, and then for as long as what is under way may go on."""
        async with trio.open_nursery() as accepting:
            SharedNursery(accepting).keep("accepting connections", partial(self._accept, listener_of(listening), requests, work))
            self._link()
            ready()
            self.notifier.tell("READY=1", f"STATUS=serving {self.settings.layout.state}")
            await self.stop.wait()
            with contained("ending"):
                await self._drain(requests, builds)
            accepting.cancel_scope.cancel()
        listening.close()

    # --- connections ----------------------------------------------------------------------------------

    async def _accept(self, listener: trio.SocketListener, requests: Requests, work: SharedNursery) -> None:
        closer, told = Closer(work), False
        while True:
            try:
                stream = await listener.accept()
            except OSError as error:  # too many files are open, say: whoever waits to be let in is let in later
                if not told:  # it may be so for hours
                    entered("accepting connections", error)
                told = True
                await trio.sleep(ACCEPT_AGAIN_SECONDS)
                continue
            told = False
            line = stream if refuse_descriptors(stream.socket) else WaryStream(stream.socket, closer.close)
            work.start_soon("a session", partial(self._session, line, requests))

    async def _session(self, stream: trio.SocketStream | WaryStream, requests: Requests) -> None:
        try:
            peer = peer_of(stream)
        except OSError:
            await trio.aclose_forcefully(stream)
            return
        welcome = DaemonWelcome(
            daemon=f"pylightnixd/{__version__}",
            store=self.settings.layout.state,
            storage=self.settings.layout.storage,
            caller="root" if peer.uid == 0 and os.geteuid() != 0 else "owner",
            pid=os.getpid(),
        )
        connection = ServerConnection(welcome, FEATURES, partial(self._refusal, peer))
        session = Session(stream, connection, peer.uid, requests.handle, requests.hear, BEGINNING | {"cancel"}, self.hearing)
        session.on_greeted = partial(self._greet, session, peer)
        self.sessions[id(session)] = session
        self._let_in(session, peer)
        try:
            await session.run()
        finally:
            del self.sessions[id(session)]
            self._let_out(session, peer)
            self._wake()

    def _let_in(self, session: Session, peer: Peer) -> None:
        """Count a connection among those that say nothing yet. Who has too many loses the oldest, so that silence keeps nobody out."""
        silent = self.ungreeted.setdefault(peer.uid, {})
        if len(silent) >= UNGREETED_PER_USER_MAX:
            silent.pop(next(iter(silent))).hang_up()
        silent[id(session)] = session

    def _greet(self, session: Session, peer: Peer) -> None:
        self.ungreeted[peer.uid].pop(id(session), None)  # it may have been hung up on in this very moment
        self.greeted.setdefault(peer.uid, set()).add(id(session))

    def _let_out(self, session: Session, peer: Peer) -> None:
        """Forget a connection, however far it came."""
        # By name, not by counting: one that failed while it was greeted stands in neither, or in both.
        self.ungreeted[peer.uid].pop(id(session), None)
        self.greeted.get(peer.uid, set()).discard(id(session))

    def _refusal(self, peer: Peer) -> Optional[WireError]:
        if peer.uid not in (0, os.geteuid()):
            return error_to_wire(NotYours(f"the store {self.settings.layout.state}"), "")
        if len(self.greeted.get(peer.uid, ())) >= CONNECTIONS_PER_USER_MAX:
            return error_to_wire(TooMany("connections of one user", CONNECTIONS_PER_USER_MAX, RETRY_AFTER_SECONDS), "")
        return None

    def _wake(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    # --- the end --------------------------------------------------------------------------------------

    async def _signals(self, signals: AsyncIterator[int], builds: Builds) -> None:
        async for number in signals:
            if number == signal.SIGHUP:
                with contained("reading the settings again"):
                    self._take_settings(builds)
                continue
            if self.stop.is_set() and not self.stop_now.is_set():
                self.stop_now.set()
                _exit_within(AT_ONCE_SECONDS, lambda: bool(builds.running))
            _log.info("told to end by %s", signal.Signals(number).name)
            self.stop.set()

    def _take_settings(self, builds: Builds) -> None:
        """Read the settings again, and say what became of that."""
        old = self.settings
        try:
            new = self.reread()
        except (PylightnixException, OSError) as error:
            _log.error("the settings stay as they are: %s", error)
            return
        for name in FIXED:
            if getattr(old, name) != getattr(new, name):
                _log.warning("%s cannot change while the daemon runs; start it again to have %s", name, getattr(new, name))
        self.settings = replace(new, **{name: getattr(old, name) for name in FIXED})
        builds.take_settings(self.settings.budget, self.settings.limits)
        self._take_room()
        self.told.set()
        self.told = trio.Event()
        _log.info("settings read again")

    def _take_room(self) -> None:
        self.hold.room.keep_failed, self.hold.room.reserve_bytes = self.settings.keep_failed, self.settings.reserve_bytes
        self.hold.room.look()

    async def _tidy(self, logs: LogFolder, requests: Requests) -> None:
        """Remove old logs once in a while, and look for garbage when nobody is kept waiting by that."""
        while True:
            with contained("tidying"):
                if not requests.active:
                    requests.builds.bulk.shrank()
                paths = logs.excess(self.settings.keep_logs)
                if paths:
                    logs.forget(paths)
                    await self.hold.in_thread(partial(remove_logs, paths))
            with trio.move_on_after(TIDY_SECONDS):
                await self.told.wait()
            if not requests.active:
                await self.snapshots.take_if_due()

    async def _drain(self, requests: Requests, builds: Builds) -> None:
        """Let what is under way end, up to the deadline or a second signal."""
        requests.draining = True
        with contained("saying in the lock file that it ends"):
            say_ending(self.settings.layout, DAEMON_ROLE, self.settings.socket_path)
        self.notifier.tell("STOPPING=1", f"STATUS=ending; {requests.under_way} operations are under way")
        for session in list(self.sessions.values()):
            session.notify("draining", DrainingNotice(retry_after=RETRY_AFTER_SECONDS))
        with trio.move_on_after(self.settings.drain_seconds):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_at, self.stop_now, nursery.cancel_scope)
                if requests.under_way:
                    while requests.under_way:
                        await requests.quiet.wait()
                    await self._linger()
                nursery.cancel_scope.cancel()
        # Operations first: what they hear of is that the daemon ends, not that their builds failed.
        interrupted = requests.interrupt_all()
        builds.interrupt_all()
        _exit_within(END_SECONDS, lambda: bool(builds.running))
        with trio.move_on_after(QUIET_SECONDS):
            await builds.wait_quiet()
            await self.hold.wait_durable(self.hold.placed)  # what nobody waits for any more is worth keeping, too
        builds.pool.hang_up()  # so that those that do not end by themselves are ended while clients hear of it
        if interrupted and not self.stop_now.is_set():
            await self._linger()

    async def _linger(self) -> None:
        """Let those whose operations have just ended hear of it, and ask what came of them."""
        with trio.move_on_after(LINGER_SECONDS):
            while self.sessions:
                await self.changed.wait()

    async def _end_when_idle(self, requests: Requests) -> None:
        while True:
            seconds = self.settings.exit_when_idle_seconds
            with trio.move_on_after(float("inf") if seconds is None else seconds) as scope:
                await self._something(requests)
            if scope.cancelled_caught and not self.sessions and not requests.active:
                await self.snapshots.take_if_due()
                if not self.sessions and not requests.active:  # still
                    self.stop.set()
                    return

    async def _something(self, requests: Requests) -> None:
        """Wait until a connection or the last operation ends, or the settings change."""
        async with trio.open_nursery() as nursery:
            for event in (self.changed, self.told, requests.quiet):
                nursery.start_soon(_cancel_at, event, nursery.cancel_scope)

    async def _tell_supervisor(self, requests: Requests, work: SharedNursery) -> None:
        seconds = self.notifier.watchdog_seconds
        if seconds is None:
            return
        while True:
            # From the loop itself: a loop that hangs says nothing, and is restarted. So is one that turns and gets nowhere.
            table, ailing = requests.builds.table, work.ailing()
            if ailing:
                self.notifier.tell(f"STATUS=failing again and again: {', '.join(ailing)}; see the log")
            else:
                self.notifier.tell("WATCHDOG=1", f"STATUS={table.busy} of {table.slots} slots busy, {table.queued} builds queued")
            await trio.sleep(seconds / 3)

    # --- the link -------------------------------------------------------------------------------------

    def _link(self) -> None:
        """Put `daemon.sock` in the store, by which clients find the socket wherever it is."""
        link = os.path.join(self.settings.layout.state, LINK_NAME)
        if os.path.abspath(link) == os.path.abspath(self.settings.socket_path):
            return
        draft = f"{link}.{new_name('new')}"
        os.symlink(self.settings.socket_path, draft)
        os.replace(draft, link)

    def _unlink(self) -> None:
        link, path = os.path.join(self.settings.layout.state, LINK_NAME), self.settings.socket_path
        for ours in {link, path} if self.settings.socket_is_ours else {link} - {path}:
            try:
                os.unlink(ours)
            except OSError:
                pass  # somebody has tidied up


def _exit_within(seconds: float, in_flight: Callable[[], bool]) -> None:
    """End this process even if a thread is in the midst of something: as after a power cut, what was acknowledged is there."""

    def end() -> None:
        if not in_flight():
            _log.warning("something on a disk does not end; it is left to the next start")
            logging.shutdown()
            os._exit(0)
        _log.warning("outputs were still on their way into the store; they are given up, and were not told to anybody")
        logging.shutdown()
        os._exit(75)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


async def _cancel_at(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
