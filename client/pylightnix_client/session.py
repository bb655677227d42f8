"""What all commands of one run share: where answers go, and which store is meant."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional

from pylightnix_client.output import Answers

if TYPE_CHECKING:
    from pylightnix.types import StorageSettings

__all__ = ["Session", "fixed_settings"]


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


@dataclass(slots=True)
class Session:
    """One run of the program."""

    answers: Answers
    root: Optional[str] = None
    """What `--store` says."""

    def settings(self) -> StorageSettings:
        return fixed_settings(self.root)
