"""Who may work in a store: the store lock, its gate, owners' folders and build locks.

- `lock`: held shared by an embedded process for one public call, exclusively by whoever must be
  alone. It says in it who holds it exclusively.
- `lock.gate`: a waiting exclusive taker holds it and newcomers pass it first, so that a stream of
  short shared holders cannot starve one that wants to be alone.
- `lock.builds`: one byte of it stands for one (derivation, context). Open-file-description locks on
  byte ranges need no file per lock, so there is nothing to clean up after a crash; two keys that
  share a byte (one in 2^62) merely wait for each other.

All of them are bound to open file descriptions: the kernel frees them when the process dies, however
it dies. A forked child inherits the descriptors, so it closes them at once: closing a copy frees
nothing, and the child would else keep its parent's locks alive.

Must not know what the locks are for.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final, Optional

from pylightnix._version import __version__
from pylightnix.errors import StoreBusy
from pylightnix.sanitize import escaped
from pylightnix.store.layout import StoreLayout
from pylightnix.store.ownership import DAEMON_ROLE, daemon_socket, lock_says, serving_daemon
from pylightnix.system_errors import refusal
from pylightnix.types import DRef

__all__ = [
    "LOCK_WAIT_SECONDS",
    "StoreOwned",
    "build_key",
    "build_lock",
    "close_lock_file",
    "command_of",
    "exclusive_lock",
    "forget_after_fork",
    "holders",
    "holding_pids",
    "is_stopped",
    "open_lock_file",
    "say_ending",
    "shared_lock",
    "try_build_lock",
    "try_flock",
]


class StoreOwned(StoreBusy):
    """A daemon owns the store: there is no waiting for it, but it can be asked at `socket`."""

    def __init__(self, root: str, holders: Sequence[str], socket: str, doing: str = "") -> None:
        super().__init__(root, holders, 0)
        self.socket = socket
        if doing:
            # What cannot go through a daemon: naming it is no use without saying what else to do.
            who = ", ".join(self.holders) or "a daemon"
            advice = "stop that daemon first (it ends on SIGTERM), or work in a store of your own, see fsinit"
            self.args = (f"{doing} works only in a store that no daemon owns, and {root} is owned by {who} (socket {socket}); {advice}",)


LOCK_WAIT_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.02
_SAID_BYTES: Final = 1024
"""How long what a lock file says is with the spaces after it."""
_SERVED_SECONDS: Final = 0.5
"""How long a daemon that was told to end may take to say so to the next one."""

_mutex = threading.Condition()
"""Notified whenever this process lets go of a lock that it held shared."""
_shared: dict[str, tuple[int, list[int]]] = {}
"""Path of a lock that this process holds shared -> (descriptor, the thread of each call that holds it)."""
_open_fds: set[int] = set()
"""Every descriptor that carries a lock, for a forked child to close."""


def forget_after_fork() -> None:
    """Let go, in a forked child, of all that the parent holds."""
    global _mutex  # noqa: PLW0603  # the parent's may be held by a thread that does not exist here
    _mutex = threading.Condition()
    _shared.clear()
    for fd in _open_fds:
        try:
            os.close(fd)
        except OSError:
            pass  # a child of a child that closed it already
    _open_fds.clear()


os.register_at_fork(after_in_child=forget_after_fork)


def open_lock_file(path: str) -> int:
    """Open (and make, 0600) a lock file; the descriptor is closed in forked children."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise refusal(error, "opening a lock", path, os.path.dirname(path)) from error
    _open_fds.add(fd)
    return fd


def close_lock_file(fd: int) -> None:
    """Close a descriptor of `open_lock_file`, which frees its lock."""
    _open_fds.discard(fd)
    os.close(fd)


def try_flock(fd: int, operation: int) -> bool:
    """Take a lock without waiting; tell whether that worked."""
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True


def _flock_until(layout: StoreLayout, fd: int, operation: int, started: float, wait_seconds: float, role: str = "") -> None:
    # flock has no timeout of its own and an alarm signal belongs to the program, hence the polling.
    while not try_flock(fd, operation):
        if operation == fcntl.LOCK_SH and (socket := daemon_socket(layout)) is not None:
            raise StoreOwned(layout.state, holders(layout), socket)
        waited = time.monotonic() - started
        if operation == fcntl.LOCK_EX and waited >= _SERVED_SECONDS and (serving := serving_daemon(layout)) is not None:
            raise _served_already(layout, *serving) if role == DAEMON_ROLE else StoreOwned(layout.state, holders(layout), serving[1])
        if waited >= wait_seconds:
            raise StoreBusy(layout.state, holders(layout), wait_seconds)
        time.sleep(min(_POLL_SECONDS, wait_seconds - waited))


def _served_already(layout: StoreLayout, pid: int, socket: str) -> StoreOwned:
    error = StoreOwned(layout.state, holders(layout), socket)
    who = ", ".join(error.holders) or f"process {pid}"
    error.args = (f"the store {layout.state} has a daemon already: {who}, at {socket}; use that one, or end it first: kill {pid}",)
    return error


def _acquire(layout: StoreLayout, operation: int, wait_seconds: float, started: float, role: str = "") -> int:
    gate = open_lock_file(layout.gate)
    try:
        _flock_until(layout, gate, operation, started, wait_seconds, role)
        fd = open_lock_file(layout.lock)
        try:
            _flock_until(layout, fd, operation, started, wait_seconds, role)
        except BaseException:
            close_lock_file(fd)
            raise
        return fd
    finally:
        close_lock_file(gate)


def _wait_at_gate(layout: StoreLayout, wait_seconds: float) -> None:
    """Wait until nobody waits to be alone, at most so long. Not under the mutex: calls of this process must be able to end."""
    gate = open_lock_file(layout.gate)
    try:
        _flock_until(layout, gate, fcntl.LOCK_SH, time.monotonic(), wait_seconds)
    except StoreBusy:
        pass
    finally:
        close_lock_file(gate)


@contextmanager
def shared_lock(layout: StoreLayout, wait_seconds: float = LOCK_WAIT_SECONDS) -> Iterator[bool]:
    """Hold the store's lock shared; yields whether this call is the process's outermost one.

    A call inside another of the same thread does not pass the gate again: it would wait for a taker that waits for
    the outer call. Calls of other threads wait there first, lest they keep the process inside for ever; but not in
    vain, for the outer call may be waiting for them.

    Raises:
        StoreOwned: a daemon holds it and listens; raised at once.
        StoreBusy: somebody held it exclusively for all of `wait_seconds`.
    """
    with _mutex:
        is_newcomer = layout.lock in _shared and threading.get_ident() not in _shared[layout.lock][1]
    if is_newcomer:
        _wait_at_gate(layout, wait_seconds)
    with _mutex:
        held = _shared.get(layout.lock)
        outermost = held is None
        if held is None:
            held = _shared[layout.lock] = (_acquire(layout, fcntl.LOCK_SH, wait_seconds, time.monotonic()), [])
        fd, threads = held
        threads.append(threading.get_ident())
    pid = os.getpid()
    try:
        yield outermost
    finally:
        if os.getpid() == pid:  # else this is a forked child, which let go already
            with _mutex:
                threads.remove(threading.get_ident())
                if not threads:
                    del _shared[layout.lock]
                    close_lock_file(fd)
                    _mutex.notify_all()


@contextmanager
def exclusive_lock(layout: StoreLayout, role: str, wait_seconds: float = LOCK_WAIT_SECONDS, socket: Optional[str] = None) -> Iterator[None]:
    """Be alone in the store. The lock file then says who is: role, process id, version, and where to connect.

    Raises:
        StoreOwned: a daemon has it and keeps it. Raised when that is certain, after half a second.
        StoreBusy: others held it for all of `wait_seconds`, or this process itself holds it shared.
    """
    with _mutex:
        started = time.monotonic()
        _wait_for_own_calls(layout, wait_seconds)
        fd = _acquire(layout, fcntl.LOCK_EX, wait_seconds, started, role)
        try:
            _say(layout, fd, _said(role, socket))
            yield
        finally:
            with suppress(OSError):  # a disk that cannot be written any more; whoever looks tries the lock, too
                _write_padded(fd, b"")
            close_lock_file(fd)


def _say(layout: StoreLayout, fd: int, said: bytes) -> None:
    try:
        _write_padded(fd, said)
    except OSError as error:
        raise refusal(error, "saying who holds it", layout.lock, layout.state) from error


def _write_padded(fd: int, said: bytes) -> None:
    # Never shorter: on a disk that has become full, what has its block already can still be written.
    os.pwrite(fd, said.ljust(_SAID_BYTES), 0)


def _said(role: str, socket: Optional[str], **more: object) -> bytes:
    return json.dumps({"role": role, "pid": os.getpid(), "socket": socket, "version": __version__, **more}).encode()


def say_ending(layout: StoreLayout, role: str, socket: Optional[str]) -> None:
    """Say in the lock file, which this process holds exclusively, that it will let go: who wants it next waits for that."""
    fd = os.open(layout.lock, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        _write_padded(fd, _said(role, socket, ending=True))
    finally:
        os.close(fd)


def _wait_for_own_calls(layout: StoreLayout, wait_seconds: float) -> None:
    """Wait until no call of another thread of this process holds the lock shared."""
    own = layout.lock in _shared and threading.get_ident() in _shared[layout.lock][1]
    if own or not _mutex.wait_for(lambda: layout.lock not in _shared, wait_seconds):
        raise StoreBusy(layout.state, ["this process, in a call that is not finished"], 0 if own else wait_seconds)


def holders(layout: StoreLayout) -> list[str]:
    """Name the processes that hold the store's lock, as far as the kernel tells."""
    alone = _exclusive_holder(layout)
    return [f"{alone.get(pid, '')}{_describe(pid)}" for pid in holding_pids(layout)]


def holding_pids(layout: StoreLayout) -> list[int]:
    """Return the other processes that hold the store's lock, as far as the kernel tells."""
    try:
        info = os.stat(layout.lock)
        with open("/proc/locks", encoding="ascii") as file:
            lines = [line.split() for line in file]
    except OSError:
        return []
    device = f"{os.major(info.st_dev):02x}:{os.minor(info.st_dev):02x}:{info.st_ino}"
    pids = {int(words[4]) for words in lines if len(words) > 5 and words[1] == "FLOCK" and words[5] == device}
    return sorted(pids - {0, os.getpid()})


def _exclusive_holder(layout: StoreLayout) -> dict[int, str]:
    """Return what the lock file says of whoever holds it exclusively: {process id: its role, in brackets}."""
    try:
        said = lock_says(layout)
        return {int(said["pid"]): f"{said['role']}, "}
    except (ValueError, KeyError, TypeError):
        return {}  # nobody does, or it died while it wrote this


def command_of(pid: int) -> str:
    """Return the command line of a process, or how it begins; empty if it has none."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return escaped(file.read(200).rstrip(b"\0").replace(b"\0", b" ").decode("utf-8", "replace"))
    except OSError:
        return ""


def is_stopped(pid: int) -> bool:
    """Tell whether a process was stopped, by Ctrl-Z for example, and so makes no progress."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[:1] in ([b"T"], [b"t"])
    except OSError:
        return False


def _describe(pid: int) -> str:
    command = command_of(pid)
    return f"process {pid} ({command})" if command else f"process {pid}"


# --- build locks ------------------------------------------------------------------------------------


def build_key(dref: DRef, context_key: str) -> str:
    """Return the key of the lock that a (derivation, context) is built under."""
    return hashlib.sha256(f"{dref}\0{context_key}".encode()).hexdigest()


_FLOCK = "hhqqi4x"  # struct flock of 64-bit Linux: type, whence, start, length, pid (0 for these locks)


@contextmanager
def build_lock(layout: StoreLayout, key: str, on_wait: Callable[[], None]) -> Iterator[bool]:
    """Hold the lock of one (derivation, context); yields whether it had to be waited for.

    Args:
        layout: the store.
        key: hexadecimal, at least 16 digits, evenly distributed.
        on_wait: called once if another holds it. Builds may take days, so the wait has no end but
            the other's, and Ctrl-C.
    """
    start = int(key[:16], 16) >> 2
    request = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, start, 1, 0)
    fd = open_lock_file(layout.build_locks)
    pid = os.getpid()
    waited = False
    try:
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, request)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise refusal(error, "taking a build lock", layout.build_locks) from error
            waited = True
            on_wait()
            fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, request)
        yield waited
    finally:
        if os.getpid() == pid:
            close_lock_file(fd)


def try_build_lock(layout: StoreLayout, key: str) -> Optional[int]:
    """Take the lock of one (derivation, context) if it is free; free it with `close_lock_file`."""
    fd = open_lock_file(layout.build_locks)
    request = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, int(key[:16], 16) >> 2, 1, 0)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, request)
    except OSError:
        close_lock_file(fd)
        return None
    return fd
