"""Logs that daemons have left, read from the disk while no daemon serves the store.

Answers as a daemon would. Must not change anything there.
"""

from __future__ import annotations

from typing import Optional

from pylightnix.protocol import messages as m
from pylightnix.protocol.errors import MissingLog
from pylightnix.query import realization_info
from pylightnix.storage import store_layout
from pylightnix.store.build_logs import LogCatalog, Made, logs_folder, read_log
from pylightnix.types import RRef, StorageSettings

__all__ = ["StoredLogs"]


class StoredLogs:
    """The logs of one store, as they lie there when this is made.

    Raises:
        UnreadableFile: they are not this user's to read.
    """

    def __init__(self, S: StorageSettings) -> None:
        from pylightnix_client.errors import UnreadableFile

        self._S, folder = S, logs_folder(store_layout(S).state)
        try:
            self._catalog = LogCatalog.of(folder)
        except FileNotFoundError:
            self._catalog = LogCatalog(folder)
        except OSError as error:
            raise UnreadableFile(folder, error.strerror or str(error), "start the store's daemon, which may read it") from error

    def log(self, ref: str, offset: int, limit: int) -> m.LogResult:
        """Return up to `limit` bytes of a log, as `Client.log` does."""
        found = self._catalog.find(ref, self._made)
        if found is None:
            raise MissingLog(ref)
        data = read_log(found.path, offset, limit)
        return m.LogResult(data=data, next=offset + len(data), finished=True, build=found.build, path=found.path)

    def _made(self, rref: RRef) -> Optional[Made]:
        info = realization_info(rref, self._S)
        return None if info is None else Made(info.build, info.started)
