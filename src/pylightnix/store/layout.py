"""Where everything of a store lies, as text. Looks at no file system."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from pylightnix.refs import assert_valid_dref, assert_valid_rref
from pylightnix.types import DRef, RRef

__all__ = [
    "CONFIG_FILE",
    "CONTEXT_FILE",
    "METADATA_NAMES",
    "START_FILE",
    "STOP_FILE",
    "STORAGE_NAME",
    "StoreLayout",
    "state_folder",
]

STORAGE_NAME: Final = "store-v1"
CONFIG_FILE: Final = "config.json"
CONTEXT_FILE: Final = "context.json"
START_FILE: Final = "__buildstart__.txt"
STOP_FILE: Final = "__buildstop__.txt"
METADATA_NAMES: Final = frozenset({CONTEXT_FILE, START_FILE, STOP_FILE})
"""Names at the top of a realization that are metadata, not part of its tree."""

_HASH_START: Final = len("dref:")
_HASH_CHARACTERS: Final = 32
_DERIVATION_START: Final = len("rref:") + _HASH_CHARACTERS + len("-")


@dataclass(frozen=True, slots=True)
class StoreLayout:
    """The absolute paths of one store."""

    storage: str
    """The folder of derivations, `<root>/store-v1` unless set apart."""
    tmp: str
    """The folder of build folders. On the storage's device."""
    state: str
    """Index, locks, logs, roots and trash. The root itself unless storage was set apart from it."""

    @property
    def index(self) -> str:
        return f"{self.state}/index.sqlite"

    @property
    def snapshot(self) -> str:
        """A copy of the index that a daemon makes once a day while nobody asks for anything."""
        return f"{self.state}/index.sqlite.snapshot"

    @property
    def progress(self) -> str:
        """What an interrupted verification has found whole."""
        return f"{self.state}/verify.progress"

    @property
    def lock(self) -> str:
        return f"{self.state}/lock"

    @property
    def gate(self) -> str:
        return f"{self.state}/lock.gate"

    @property
    def build_locks(self) -> str:
        """A file whose byte ranges stand for (derivation, context)."""
        return f"{self.state}/lock.builds"

    @property
    def owners(self) -> str:
        """Lock files of the processes that work in the store."""
        return f"{self.state}/owners"

    @property
    def trash(self) -> str:
        return f"{self.state}/trash"

    @property
    def failed(self) -> str:
        """What the last failed builds left."""
        return f"{self.state}/failed"

    @property
    def reserve(self) -> str:
        """Room that is given up when the disk is full, for removals to write what they must."""
        return f"{self.state}/reserve"

    @property
    def quarantine(self) -> str:
        """The file that names what could not be removed."""
        return f"{self.state}/quarantine.json"

    @property
    def trash_folders(self) -> tuple[str, str]:
        """Where trees wait to be unlinked: on the state's device, and on the storage's where that is another."""
        return self.trash, f"{self.tmp}/trash"

    @property
    def set_aside_folders(self) -> tuple[str, str]:
        """Where lies what could not be removed, in the same way."""
        return f"{self.state}/set-aside", f"{self.tmp}/set-aside"

    @property
    def quarantine_folders(self) -> tuple[str, str]:
        """Where lie damaged realizations that were moved aside, in the same way."""
        return f"{self.state}/quarantine", f"{self.tmp}/quarantine"

    @property
    def fetch(self) -> str:
        """Files on their way from elsewhere, and files that wait for a build."""
        return f"{self.state}/fetch"

    @property
    def provenances(self) -> str:
        """Who built each realization: a file each. It stays with the trees, wherever a daemon keeps its state."""
        return f"{state_folder(os.path.dirname(self.storage), self.storage)}/provenance"

    def provenance(self, rref: RRef | str) -> str:
        """The hash of a derivation stands for its name, too."""
        assert_valid_rref(rref)
        return f"{self.provenances}/{rref[_HASH_START : _DERIVATION_START + _HASH_CHARACTERS]}.json"

    def derivation(self, dref: DRef | str) -> str:
        assert_valid_dref(dref)
        return f"{self.storage}/{dref[_HASH_START:]}"

    def config(self, dref: DRef | str) -> str:
        return f"{self.derivation(dref)}/{CONFIG_FILE}"

    def realization(self, rref: RRef | str) -> str:
        assert_valid_rref(rref)
        return f"{self.storage}/{rref[_DERIVATION_START:]}/{rref[_HASH_START : _DERIVATION_START - 1]}"


def state_folder(root: str, storage: str) -> str:
    """Return where the state of `storage` lies.

    Two storages under one root must not share an index, so a storage that is not the root's own keeps
    its state beside itself.
    """
    if storage == os.path.join(root, STORAGE_NAME):
        return root
    return f"{storage}.state"
