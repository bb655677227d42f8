"""The program `pylightnixd`: options, detaching, and the exit status."""

from __future__ import annotations

import logging
import os
import socket
import sys
from typing import Optional

import click
import trio

from pylightnix._version import __version__
from pylightnix.errors import PylightnixException
from pylightnix.storage import fsroot, fsstorage, mkSS, store_layout
from pylightnix.store.access import make_folders
from pylightnix.store.layout import StoreLayout
from pylightnixd.builds import Limits
from pylightnixd.listening import check_socket_path, listen_at
from pylightnixd.notify import Notifier, listening_fds
from pylightnixd.server import LINK_NAME, Settings, serve

__all__ = ["main"]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--store", metavar="ROOT", help="The store's root. Default: PYLIGHTNIX_ROOT, else the user's data folder.")
@click.option("--socket", "socket_path", metavar="PATH", help=f"Where to listen. Default: {LINK_NAME} in the state folder.")
@click.option("--state", metavar="DIR", help="Keep index, lock, socket and logs here rather than in the root.")
@click.option("--jobs", "-j", type=click.IntRange(1), help="CPU slots: how many builds run at once. Default: the number of CPUs.")
@click.option("--exit-when-idle", type=click.FloatRange(0), metavar="SECONDS", help="End after so long without client and operation.")
@click.option(
    "--drain", type=click.FloatRange(0), default=30.0, show_default=True, metavar="SECONDS", help="How long builds may go on after SIGTERM."
)
@click.option("--foreground", is_flag=True, help="Do not detach.")
@click.version_option(__version__, prog_name="pylightnixd")
def main(
    store: Optional[str],
    socket_path: Optional[str],
    state: Optional[str],
    jobs: Optional[int],
    exit_when_idle: Optional[float],
    drain: float,
    foreground: bool,
) -> None:
    """Own a store and realize stages for many clients at once, each build once."""
    try:
        layout = _layout(store, state)
        fds = listening_fds(os.environ)
        path = _path_of(fds[0]) if fds else os.path.abspath(socket_path or os.path.join(layout.state, LINK_NAME))
        if not fds:
            check_socket_path(path)
        make_folders(layout)
        settings = Settings(
            layout=layout,
            socket_path=path,
            socket_is_ours=not fds,
            jobs=jobs or len(os.sched_getaffinity(0)),
            limits=Limits(),
            drain_seconds=drain,
            exit_when_idle_seconds=exit_when_idle,
        )
        if foreground or fds:
            _serve(settings, fds)
        else:
            _detach(settings)
    except PylightnixException as error:
        click.echo(f"pylightnixd: {error}", err=True)
        sys.exit(error.exit_status)


def _path_of(fd: int) -> str:
    """Return where a socket that somebody else made listens."""
    with socket.socket(fileno=os.dup(fd)) as listener:
        return os.fsdecode(listener.getsockname())


def _layout(store: Optional[str], state: Optional[str]) -> StoreLayout:
    settings = mkSS(store) if store else None
    layout = store_layout(settings)
    if state is None:
        return layout
    return StoreLayout(storage=str(fsstorage(settings)), tmp=os.path.join(fsroot(settings), "tmp"), state=os.path.abspath(state))


def _serve(settings: Settings, fds: list[int], ready_fd: Optional[int] = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)

    def listen() -> socket.socket:
        return socket.socket(fileno=fds[0]) if fds else listen_at(settings.socket_path)

    def ready() -> None:
        if ready_fd is not None:
            os.write(ready_fd, b"ready")
            os.close(ready_fd)
        else:
            click.echo(f"pylightnixd {__version__}: serving {settings.layout.state} at {settings.socket_path}", err=True)

    trio.run(serve, settings, listen, Notifier(os.environ), ready)


def _detach(settings: Settings) -> None:
    """Serve in a process of its own; return when its socket listens, or raise with the reason."""
    log_path = os.path.join(settings.layout.state, "logs", "pylightnixd.log")
    os.makedirs(os.path.dirname(log_path), 0o700, exist_ok=True)
    log_fd = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()  # before trio and any thread
    if pid == 0:
        _be_the_daemon(settings, log_fd, ready_read, ready_write)
    os.close(ready_write)
    with open(ready_read, "rb") as said:
        words = said.read()
    if words == b"ready":
        click.echo(f"pid {pid}\nsocket {settings.socket_path}\nlog {log_path}")
        return
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    click.echo(words.decode("utf-8", "replace") or f"pylightnixd: ended with status {status}; see {log_path}", err=True)
    sys.exit(status if status > 0 else 70)


def _be_the_daemon(settings: Settings, log_fd: int, ready_read: int, ready_write: int) -> None:
    os.setsid()
    os.close(ready_read)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    os.chdir("/")
    status = 0
    try:
        _serve(settings, [], ready_write)
    except PylightnixException as error:
        status = error.exit_status
        os.write(ready_write, f"pylightnixd: {error}".encode())
    except BaseException:  # noqa: BLE001, ASYNC103  # a forked process must not return into its parent's code
        import traceback

        traceback.print_exc()
        status = 70
    os._exit(status)
