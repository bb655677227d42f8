"""What all commands of one run share: where answers go, which store is meant, and which daemon."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Optional

from pylightnix_client.output import Answers

if TYPE_CHECKING:
    from pylightnix.protocol.errors import TooMany
    from pylightnix.types import StorageSettings
    from pylightnix_client.client import Client

__all__ = ["CONNECT_SECONDS", "Session", "fixed_settings", "hide_output_of_users", "served_settings", "waiting_text"]

CONNECT_SECONDS: Final = 10.0
"""How long connecting to a daemon and its greeting may take."""


def fixed_settings(root: Optional[str]) -> StorageSettings:
    """Return the settings of the store at `root`, else of the environment's, with absolute paths.

    Absolute and complete, so that users' code that changes directory or environment stays in the same store.
    """
    from pylightnix.storage import fsroot, fsstorage, fstmpdir, mkSS
    from pylightnix.store.layout import STORAGE_NAME
    from pylightnix.types import StorageSettings

    given = mkSS(root) if root else StorageSettings()
    top, storage, tmpdir = fsroot(given), fsstorage(given), fstmpdir(given)
    # Folders in their usual places stay unsaid: settings are compared, and programs say mkSS(root).
    return mkSS(
        top,
        None if storage == os.path.join(top, STORAGE_NAME) else storage,
        None if tmpdir == os.path.join(top, "tmp") else tmpdir,
    )


def served_settings(socket: str, deadline_seconds: float = CONNECT_SECONDS) -> StorageSettings:
    """Return the settings of the store that the daemon at `socket` serves; everything in it then goes through that daemon."""
    from pylightnix.storage import mkSS, store_layout
    from pylightnix.store.layout import STORAGE_NAME
    from pylightnix.store.ownership import use_socket
    from pylightnix_client.client import Client

    with Client.connect(socket, deadline_seconds, _patience_seconds(deadline_seconds), _say_waiting) as client:
        welcome = client.welcome
    # A daemon may keep its state elsewhere (--state): only it needs to know where.
    top, name = os.path.split(welcome.storage)
    S = mkSS(top) if name == STORAGE_NAME else mkSS(welcome.store, welcome.storage)
    use_socket(store_layout(S), socket)
    return S


def _patience_seconds(deadline_seconds: float) -> float:
    """Return how long to wait for a free connection: not at all where somebody waits at a prompt."""
    from pylightnix_client.connecting import PATIENCE_SECONDS

    return 0.0 if deadline_seconds < CONNECT_SECONDS else PATIENCE_SECONDS


def _say_waiting(refusal: TooMany) -> None:
    from pylightnix_client.output import note

    note(waiting_text(refusal))


def waiting_text(refusal: TooMany) -> str:
    """Return what people are told who wait for a free connection."""
    return f"the daemon has as many connections of yours as it takes ({refusal.limit}); waiting until one ends …"


def hide_output_of_users() -> None:
    """Send what users' code prints from now on to standard error, if a command of the program is running."""
    import click

    context = click.get_current_context(silent=True)
    session = context.find_object(Session) if context is not None else None
    if session is not None:
        session.answers.divert()


@dataclass(slots=True)
class Session:
    """One run of the program."""

    answers: Answers
    root: Optional[str] = None
    """What `--store` says."""
    socket: Optional[str] = None
    """What `--socket` says."""
    _settings: Optional[StorageSettings] = field(default=None, init=False)

    def settings(self, deadline_seconds: float = CONNECT_SECONDS) -> StorageSettings:
        """Return which store is meant.

        Raises:
            PylightnixException: a socket was given, and there is no daemon to ask.
        """
        if self._settings is None:
            self._settings = fixed_settings(self.root) if self.socket is None else served_settings(self.socket, deadline_seconds)
        return self._settings

    def connect(self, deadline_seconds: float = CONNECT_SECONDS) -> Client:
        """Connect to the store's daemon.

        Raises:
            NoDaemon, SocketRefused, NotYours, DaemonGone, DaemonFull, UnsupportedVersion: there is none to talk to.
        """
        from pylightnix.storage import store_layout
        from pylightnix_client.client import Client

        where = self.socket or store_layout(self.settings(deadline_seconds))
        return Client.connect(where, deadline_seconds, _patience_seconds(deadline_seconds), _say_waiting)

    def own_command(self, *words: str) -> str:
        """Return a command line of this program on the same store, ready to be copied into a shell."""
        import shlex

        where = ["--socket", self.socket] if self.socket else ["--store", self.root] if self.root else []
        return shlex.join(["pylightnix", *where, *words])
