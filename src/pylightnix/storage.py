"""Storage settings: which store a call means, and where that store's folders are.

An explicit field always wins, then the environment (`PYLIGHTNIX_ROOT`, `PYLIGHTNIX_STORAGE`,
`PYLIGHTNIX_TMP`, read on each call), then the default. Paths are made absolute when they are asked
for. Must not open a store: it gives names only, but for `fsinit`, which makes one.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, Optional, TypeAlias, Union

from pylightnix.errors import InvalidStorage, Misuse, StoreExists
from pylightnix.store.layout import STORAGE_NAME, StoreLayout, state_folder
from pylightnix.types import Path, StorageSettings
from pylightnix.workfolder import absolute

if TYPE_CHECKING:
    from pylightnix.registry import Registry

__all__ = [
    "PYLIGHTNIX_STORE_VERSION",
    "absolute_settings",
    "assert_valid_storage",
    "current_storage",
    "fsinit",
    "fsroot",
    "fsstorage",
    "fstmpdir",
    "mkSS",
    "root_in",
    "setstorage",
    "storagename",
    "store_layout",
    "tlstorage",
]

AnyPath: TypeAlias = Union[str, os.PathLike[str]]
_ROOT_NAME: Final = "_pylightnix"
PYLIGHTNIX_STORE_VERSION: Final = 1
"""The number in the name of the folder of derivations."""

_storage: ContextVar[Optional[StorageSettings]] = ContextVar("pylightnix_storage", default=None)
_registry: ContextVar[Optional[Registry]] = ContextVar("pylightnix_registry", default=None)
# What a thread falls back to that chose nothing itself: the last `fsinit` of the process. Without it
# a new thread would work on the user's default store unnoticed.
_process_default: Optional[StorageSettings] = None


def storagename() -> str:
    """Return the name of the folder of derivations under a root."""
    return STORAGE_NAME


def mkSS(root: AnyPath, stordir: Optional[AnyPath] = None, tmpdir: Optional[AnyPath] = None) -> StorageSettings:
    """Return settings for the store at `root`, its folders optionally set apart. Touches no file.

    Relative paths are made absolute, for a build works in another folder.
    """
    return StorageSettings(*(None if part is None else Path(absolute(part)) for part in (root, stordir, tmpdir)))


def root_in(folder: AnyPath) -> str:
    """Return the root of a store that people name by `folder`: that itself, or ``_pylightnix`` in it where only that holds a store.

    A string given to `fsinit` names the folder above the root, so people give that folder to programs as well.
    """
    below = os.path.join(folder, _ROOT_NAME)
    if not os.path.isdir(os.path.join(folder, STORAGE_NAME)) and os.path.isdir(os.path.join(below, STORAGE_NAME)):
        return below
    return os.fspath(folder)


def tlstorage(S: Optional[StorageSettings] = None) -> Optional[StorageSettings]:
    """Return `S` if given, else the current storage, else the current registry's, else the process's default."""
    if S is not None:
        return _checked(S)
    current = _storage.get()
    if current is not None:
        return current
    registry = _registry.get()
    if registry is not None and registry.S is not None:
        return registry.S
    return _process_default


def _checked(S: object) -> StorageSettings:
    """Return `S`, with texts where somebody wrote pathlib's paths."""
    if not isinstance(S, StorageSettings):
        advice = f"; write S=mkSS({str(S)!r})" if isinstance(S, (str, os.PathLike)) else ", as mkSS(…) makes them"
        raise Misuse(f"S expects the settings of a store, found {S!r:.200}{advice}")
    if all(part is None or isinstance(part, str) for part in S):
        return S
    return StorageSettings(*(None if part is None else Path(part) for part in S))


def absolute_settings(S: Optional[StorageSettings]) -> Optional[StorageSettings]:
    """Return `S` with its paths made absolute, so that it means the same store after a change of the working folder."""
    if S is None:
        return None
    S = _checked(S)
    if all(part is None or part[:1] == "/" for part in S):
        return S
    return StorageSettings(*(None if part is None else Path(absolute(part)) for part in S))


def setstorage(S: Optional[StorageSettings]) -> Optional[StorageSettings]:
    """Make `S` the current storage of this thread (or task) and return the previous one."""
    previous = _storage.get()
    _storage.set(absolute_settings(S))
    return previous


@contextmanager
def current_storage(S: Optional[StorageSettings]) -> Iterator[Optional[StorageSettings]]:
    """Make `S` the current storage inside the ``with`` block."""
    token = _storage.set(absolute_settings(S))
    try:
        yield S
    finally:
        _storage.reset(token)


def fsroot(S: Optional[StorageSettings] = None) -> Path:
    """Return the root: of `S`, of `PYLIGHTNIX_ROOT`, else the platform's user data folder, absolute."""
    settings = tlstorage(S)
    given = (settings.root if settings else None) or os.environ.get("PYLIGHTNIX_ROOT")
    if given:
        return Path(absolute(given))
    import platformdirs  # here, for it costs every start some milliseconds otherwise

    return Path(platformdirs.user_data_dir("pylightnix"))


def fsstorage(S: Optional[StorageSettings] = None) -> Path:
    """Return the folder of derivations: of `S`, of `PYLIGHTNIX_STORAGE`, else `storagename()` under the root."""
    settings = tlstorage(S)
    if settings and settings.storage:
        return Path(absolute(settings.storage))
    # An explicit root wins over the environment's storage, or one could not name a store at all.
    given = None if settings and settings.root else os.environ.get("PYLIGHTNIX_STORAGE")
    return Path(absolute(given) if given else os.path.join(fsroot(settings), STORAGE_NAME))


def fstmpdir(S: Optional[StorageSettings] = None) -> Path:
    """Return the folder in which build folders are made; inside a realizer, that build's own."""
    settings = tlstorage(S)
    if settings and settings.tmpdir:
        return Path(absolute(settings.tmpdir))
    given = None if settings and settings.root else os.environ.get("PYLIGHTNIX_TMP")
    return Path(absolute(given) if given else os.path.join(fsroot(settings), "tmp"))


def store_layout(S: Optional[StorageSettings] = None) -> StoreLayout:
    """Return where everything of the store lies that `S` (or the current default) means."""
    settings = tlstorage(S)
    if settings is not None and all(part is None or part[:1] == "/" for part in settings) and settings.root:
        return _absolute_layout(settings)
    return _layout(settings)


def _layout(S: Optional[StorageSettings]) -> StoreLayout:
    storage = fsstorage(S)
    return StoreLayout(storage=str(storage), tmp=str(fstmpdir(S)), state=state_folder(str(fsroot(S)), str(storage)))


# Nothing of the environment takes part when the root is given and absolute.
_absolute_layout = functools.lru_cache(maxsize=64)(_layout)


def assert_valid_storage(S: Optional[StorageSettings] = None) -> None:
    """Raise `InvalidStorage` unless both folders are there and on one device."""
    storage, tmpdir = fsstorage(S), fstmpdir(S)
    for what, folder in (("storage", storage), ("tmp", tmpdir)):
        if not os.path.isdir(folder):
            raise InvalidStorage(f"expected the {what} folder of a store at {folder}, found none; make the store with fsinit(…)")
    if os.stat(storage).st_dev != os.stat(tmpdir).st_dev:
        raise InvalidStorage(
            f"{storage} and {tmpdir} are on different devices; outputs are renamed from one to the other, so put both on one"
        )


def fsinit(
    ss: Union[str, os.PathLike[str], StorageSettings, None] = None,
    check_not_exist: bool = False,
    remove_existing: bool = False,
    use_as_default: bool = True,
) -> None:
    """Make the store's folders.

    Args:
        ss: settings; or the root of the store as a `pathlib.Path`; or a text, to which ``/_pylightnix`` is appended
            unless it ends with that.
        check_not_exist: refuse a store that is there already.
        remove_existing: remove a store that is there already; wins over `check_not_exist`.
        use_as_default: make these settings the current storage of the thread, and what threads
            without one of their own fall back to. With ``ss=None`` that clears both.

    Raises:
        StoreExists: there is one and `check_not_exist` was given.
        StoreBusy: it was to be removed, and others work in it.
    """
    settings: Optional[StorageSettings]
    if isinstance(ss, str):
        settings = mkSS(ss if ss.endswith(_ROOT_NAME) else os.path.join(ss, _ROOT_NAME))
    elif isinstance(ss, os.PathLike):
        settings = mkSS(ss)
    else:
        settings = ss
    layout = store_layout(settings)
    if remove_existing:
        from pylightnix.store.access import wipe_store

        wipe_store(layout)
    elif check_not_exist and os.path.lexists(layout.storage):
        raise StoreExists(f"there is a store at {layout.storage} already; pass remove_existing=True to start over")
    from pylightnix.store.access import make_folders

    make_folders(layout)
    assert_valid_storage(settings)
    if use_as_default:
        global _process_default  # noqa: PLW0603  # one default per process is the point
        setstorage(settings)
        _process_default = absolute_settings(settings)
