"""The program `pylightnixd`: options, detaching, and the exit status."""

from __future__ import annotations

import io
import logging
import math
import os
import select
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final, Optional

import click
import msgspec
import trio

from pylightnix._version import __version__
from pylightnix.errors import PylightnixException
from pylightnix.sanitize import escaped
from pylightnix.storage import fsroot, fsstorage, mkSS, root_in, store_layout
from pylightnix.store.access import make_folders
from pylightnix.store.exposure import check_folders
from pylightnix.store.kept import KeepFailed
from pylightnix.store.layout import StoreLayout
from pylightnix.store.room import RESERVE_BYTES
from pylightnix.system_errors import is_refusal, refusal
from pylightnix.workfolder import absolute
from pylightnixd.fetchers import FetchSettings
from pylightnixd.inheritance import renew_streams, settle
from pylightnixd.limits import Limits
from pylightnixd.listening import LINK_NAME, check_socket_path, listen_at, usual_socket_path
from pylightnixd.logfolder import Keep
from pylightnixd.notify import Notifier, listening_fds
from pylightnixd.own_log import QueuedLog
from pylightnixd.resources import Budget
from pylightnixd.server import DRAIN_SECONDS, Settings, serve
from pylightnixd.settings_file import (
    FetchTable,
    KeepFailedTable,
    SettingsFile,
    parse_bytes,
    parse_patience,
    parse_seconds,
    parse_tag,
    read_settings,
)

__all__ = ["main"]


class _Quantity(click.ParamType):  # type: ignore[type-arg]  # only new versions of click make it generic
    """A size, a time or a tag, as in the settings file."""

    def __init__(self, name: str, parse: Callable[[object], Any]) -> None:
        self.name, self._parse = name, parse

    def convert(self, value: object, param: Optional[click.Parameter], ctx: Optional[click.Context]) -> Any:
        if isinstance(value, tuple):  # click converts what it has converted already
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(f"expected {error}, found {value!r}", param, ctx)


STORE_VARIABLES: Final = ("PYLIGHTNIX_ROOT", "PYLIGHTNIX_STORAGE", "PYLIGHTNIX_TMP")
OWN_LOG_BYTES: Final = 16 << 20
"""From what size on the daemon's own log is begun anew when a daemon starts."""
READY_SECONDS: Final = 60.0
"""How long a daemon that detaches may take until it listens."""
END_SECONDS: Final = 5.0
"""How long one may take to end that has said why it does."""
SECONDS: Final = _Quantity("seconds", parse_seconds)
PATIENCE: Final = _Quantity("seconds", parse_patience)
BYTES: Final = _Quantity("bytes", parse_bytes)
TAG: Final = _Quantity("tag", parse_tag)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--config", metavar="FILE", help="Read settings from a TOML file. Options win over it. Written -FILE, it may be absent.")
@click.option("--store", metavar="ROOT", help="The store's root. Default: PYLIGHTNIX_ROOT, else the user's data folder.")
@click.option("--socket", metavar="PATH", help=f"Where to listen. Default: {LINK_NAME} in the state folder.")
@click.option("--state", metavar="DIR", help="Keep index, lock, socket and logs here rather than in the root.")
@click.option("--jobs", "-j", type=click.IntRange(1, 10_000), help="CPU slots: how many builds run at once. Default: the number of CPUs.")
@click.option("--memory", type=BYTES, metavar="BYTES", help="Memory that builds may ask for together. Default: 0, which is no bound.")
@click.option("--tag", "tags", type=TAG, multiple=True, metavar="NAME=N", help="What else builds may ask for: gpu=2. May be given again.")
@click.option("--timeout", type=SECONDS, metavar="SECONDS", help="Kill builds that take longer. Default: 0, which is never.")
@click.option(
    "--silent-timeout", type=SECONDS, metavar="SECONDS", help="Kill builds that say nothing for so long. Default: 0, which is never."
)
@click.option("--timeout-max", type=SECONDS, metavar="SECONDS", help="The most that stages may ask for with timeout_seconds.")
@click.option("--silent-timeout-max", type=SECONDS, metavar="SECONDS", help="The same with silent_timeout_seconds.")
@click.option("--matcher-timeout", type=SECONDS, metavar="SECONDS", help="Give up on matchers that think longer. Default: 60. 0 is never.")
@click.option("--worker-timeout", type=PATIENCE, metavar="SECONDS", help="End a worker that owes an answer for longer. Default: 60.")
@click.option("--log-size", type=BYTES, metavar="BYTES", help="Kill builds that say more; with K, M or G. Default: 256M. 0 is no end.")
@click.option("--exit-when-idle", type=SECONDS, metavar="SECONDS", help="End after so long without client and operation. Default: never.")
@click.option("--drain", type=SECONDS, metavar="SECONDS", help="How long builds may go on after SIGTERM. Default: 30.")
@click.option("--wait", type=SECONDS, metavar="SECONDS", help="How long to wait for a store that others work in. Default: 10.")
@click.option("--foreground", is_flag=True, help="Do not detach.")
@click.version_option(__version__, prog_name="pylightnixd")
def main(config: Optional[str], foreground: bool, wait: Optional[float], **options: Any) -> None:
    """Own a store and realize stages for many clients at once, each build once."""
    _refuse_empty({**options, "config": None if config is None else config.removeprefix("-")})
    try:
        fds = listening_fds(os.environ)
        inherited = settle(fds)
        path = absolute(config.removeprefix("-")) if config else None
        may_be_absent = config is not None and config.startswith("-")

        # Absolute now, for it is read again when this process is elsewhere.
        options.update({name: absolute(options[name]) for name in ("store", "state", "socket") if options[name]})
        if options["store"] and (root := root_in(options["store"])) != options["store"]:
            click.echo(f"pylightnixd: there is no store in {options['store']}; using the one in {root}", err=True)
            options["store"] = root
        os.environ.update({name: absolute(os.environ[name]) for name in STORE_VARIABLES if os.environ.get(name)})
        options["tags"] = dict(options["tags"]) or None

        def read() -> Settings:
            said = read_settings(path, may_be_absent=may_be_absent) if path else SettingsFile()
            given = {name: value for name, value in options.items() if value is not None}
            made = _settings(msgspec.structs.replace(said, **given), fds)
            cpus = min(made.budget.cpus, inherited.builds_max)
            if cpus < made.budget.cpus:
                click.echo(f"pylightnixd: {cpus} CPU slots rather than {made.budget.cpus}, for few files may be open (ulimit -n)", err=True)
            wait_seconds = _or(wait, made.wait_seconds)
            return replace(made, open_files=inherited.open_files, budget=replace(made.budget, cpus=cpus), wait_seconds=wait_seconds)

        settings = read()
        make_folders(settings.layout)
        if foreground or fds:
            if 2 in inherited.lacked:
                _write_to_log(_open_log(settings))
            os.chdir("/")  # the folder that it was started in can be removed, and its file system unmounted
            _serve(settings, read, fds)
        else:
            _detach(settings, read)
    except PylightnixException as error:
        _tell(f"pylightnixd: {error}", err=True)
        sys.exit(error.exit_status)


def _refuse_empty(options: Mapping[str, Any]) -> None:
    """Refuse a path that is an empty text: an unset variable of a script, most likely, which must not mean the current folder."""
    for name, expected in (("config", "a file"), ("store", "a folder"), ("socket", "a path"), ("state", "a folder")):
        if options[name] == "":
            raise click.BadParameter(f"expected {expected}, found an empty text", param_hint=f"--{name}")


def _settings(said: SettingsFile, fds: list[int]) -> Settings:
    """Return how to run. Options are in `said` already."""
    layout = _layout(said.store, said.state)
    if fds:
        path = _path_of(fds[0])
    elif said.socket is not None:
        path = absolute(said.socket)
        check_socket_path(path)
    else:
        path = usual_socket_path(layout.state, os.environ)
    limits, keep, logs = Limits(), Keep(), said.keep_logs
    if logs is not None:
        # Whoever names one bound means no other.
        keep = Keep(
            math.inf if logs.days is None else logs.days,
            sys.maxsize if logs.size is None else logs.size,
            count=sys.maxsize if logs.count is None else logs.count,
        )
    return Settings(
        layout=layout,
        socket_path=path,
        socket_is_ours=not fds,
        budget=Budget(said.jobs or len(os.sched_getaffinity(0)), said.memory or None, said.tags or {}),
        limits=Limits(
            timeout_max_seconds=_or(said.timeout_max, limits.timeout_max_seconds),
            silent_timeout_max_seconds=_or(said.silent_timeout_max, limits.silent_timeout_max_seconds),
            timeout_seconds=_or(said.timeout, limits.timeout_seconds),
            silent_timeout_seconds=_or(said.silent_timeout, limits.silent_timeout_seconds),
            matcher_seconds=_or(said.matcher_timeout, limits.matcher_seconds),
            worker_seconds=_or(said.worker_timeout, limits.worker_seconds),
            log_bytes=int(_or(said.log_size, limits.log_bytes)),
        ),
        keep_logs=keep,
        keep_failed=_keep_failed(said.keep_failed or KeepFailedTable()),
        reserve_bytes=RESERVE_BYTES if said.reserve is None else said.reserve,
        fetch=_fetch_settings(said.fetch or FetchTable()),
        drain_seconds=_or(said.drain, DRAIN_SECONDS),
        exit_when_idle_seconds=said.exit_when_idle,
    )


def _keep_failed(said: KeepFailedTable) -> KeepFailed:
    usual = KeepFailed()
    return KeepFailed(usual.count if said.count is None else said.count, usual.bytes_in_all if said.size is None else said.size)


def _fetch_settings(said: FetchTable) -> FetchSettings:
    given = {name: value for name in said.__struct_fields__ if (value := getattr(said, name)) is not None}
    if said.hashed_mirrors is not None:
        given["hashed_mirrors"] = tuple(said.hashed_mirrors)
    return FetchSettings(**given)


def _or(value: Optional[float], default: float) -> float:
    return default if value is None else value


def _path_of(fd: int) -> str:
    """Return where a socket that somebody else made listens."""
    with socket.socket(fileno=os.dup(fd)) as listener:
        return os.fsdecode(listener.getsockname())


def _layout(store: Optional[str], state: Optional[str]) -> StoreLayout:
    settings = mkSS(store) if store else None
    layout = store_layout(settings)
    if state is None:
        return layout
    return StoreLayout(storage=str(fsstorage(settings)), tmp=os.path.join(fsroot(settings), "tmp"), state=absolute(state))


class _Escaping(logging.Formatter):
    """Spells out what a terminal would act upon: entries quote names, errors and tracebacks of clients."""

    def format(self, record: logging.LogRecord) -> str:
        return escaped(super().format(record))


def _serve(settings: Settings, read: Callable[[], Settings], fds: list[int], ready_fd: Optional[int] = None) -> None:
    handler = QueuedLog(io.FileIO(2, "w", closefd=False))
    handler.setFormatter(_Escaping("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])

    def listen() -> socket.socket:
        if fds:
            return socket.socket(fileno=fds[0])
        listener = listen_at(settings.socket_path)
        check_folders(settings.socket_path)
        return listener

    def ready() -> None:
        if ready_fd is not None:
            try:
                os.write(ready_fd, b"ready")
            except BrokenPipeError:
                pass  # who started it has gone; others may want it
            os.close(ready_fd)
        else:
            _tell(f"pylightnixd {__version__}: serving {settings.layout.state} at {settings.socket_path}", err=True)

    try:
        trio.run(serve, settings, listen, Notifier(os.environ), ready, read)
    except OSError as error:  # of trio's own start, for one: too many open files
        if not is_refusal(error):
            raise
        raise refusal(error, "serving", settings.layout.state) from error


def _detach(settings: Settings, read: Callable[[], Settings]) -> None:
    """Serve in a process of its own; return when its socket listens, or raise with the reason."""
    log_path, log_fd = _log_path(settings), _open_log(settings)
    ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()  # before trio and any thread
    if pid == 0:
        _be_the_daemon(settings, read, log_fd, ready_read, ready_write)
    os.close(ready_write)
    words = words_from(ready_read, READY_SECONDS)
    os.close(ready_read)
    if words == b"ready":
        _tell(f"pid {pid}\nsocket {settings.socket_path}\nlog {log_path}")
        return
    ended = None if words is None else wait_status(pid, END_SECONDS)
    if words is None or ended is None:
        what = f"does not listen after {READY_SECONDS:g} s" if words is None else "does not end"
        click.echo(f"pylightnixd: process {pid} {what}; it is left alone; see {log_path}", err=True)
        sys.exit(75)
    status = ended
    click.echo(escaped(words.decode("utf-8", "replace")) or f"pylightnixd: ended with status {status}; see {log_path}", err=True)
    sys.exit(status if status > 0 else 70)


def words_from(fd: int, seconds: float) -> Optional[bytes]:
    """Return what comes from a pipe until it is closed; None if that is not within `seconds`."""
    said, deadline, waiting = bytearray(), time.monotonic() + seconds, select.poll()
    waiting.register(fd, select.POLLIN)
    while waiting.poll(max(0.0, deadline - time.monotonic()) * 1000):
        data = os.read(fd, 1 << 16)
        if not data:
            return bytes(said)
        said += data
    return None


def wait_status(pid: int, seconds: float) -> Optional[int]:
    """Return the exit status of a child, minus the signal if that ended it; None if it has not ended within `seconds`."""
    pidfd = os.pidfd_open(pid)
    try:
        waiting = select.poll()
        waiting.register(pidfd, select.POLLIN)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) if waiting.poll(seconds * 1000) else None
    finally:
        os.close(pidfd)


def _log_path(settings: Settings) -> str:
    return os.path.join(settings.layout.state, "logs", "pylightnixd.log")


def _open_log(settings: Settings) -> int:
    """Open the daemon's own log, to be appended to; return the descriptor."""
    log_path = _log_path(settings)
    os.makedirs(os.path.dirname(log_path), 0o700, exist_ok=True)
    _set_aside_if_large(log_path)
    return os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _write_to_log(log_fd: int) -> None:
    """Make a log this process's standard output and standard error."""
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    os.close(log_fd)
    renew_streams()


def _tell(text: str, err: bool = False) -> None:
    """Write a line for whoever listens. A daemon that serves is none the worse if nobody does, or if the disk is full."""
    try:
        click.echo(escaped(text), err=err)
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2 if err else 1)  # or the interpreter would fail on it once more at its end
        os.close(null)


def _set_aside_if_large(log_path: str) -> None:
    """Begin the daemon's own log anew once it is large; the one before is kept beside it."""
    try:
        if os.stat(log_path).st_size > OWN_LOG_BYTES:
            os.replace(log_path, f"{log_path}.old")
    except FileNotFoundError:
        pass


def _be_the_daemon(settings: Settings, read: Callable[[], Settings], log_fd: int, ready_read: int, ready_write: int) -> None:
    os.setsid()
    os.close(ready_read)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    _write_to_log(log_fd)
    os.chdir("/")
    status = 0
    try:
        _serve(settings, read, [], ready_write)
    except PylightnixException as error:
        status = error.exit_status
        os.write(ready_write, f"pylightnixd: {error}".encode())
    except BaseException:  # noqa: BLE001, ASYNC103  # a forked process must not return into its parent's code
        import traceback

        traceback.print_exc()
        status = 70
    logging.shutdown()
    os._exit(status)
