"""Small real stores for tests: stages to fill them, pictures of them to compare, children to use them from."""

from __future__ import annotations

import ctypes
import os
import pickle
import secrets
import sqlite3
import stat
import subprocess
import tempfile
import traceback
import tracemalloc
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Optional, TypeVar, overload

import cloudpickle  # type: ignore[import-untyped]  # it ships no type information
import pytest
from tests.waiting import wait_until

from pylightnix import (
    Context,
    DRef,
    Matcher,
    Path,
    PylightnixException,
    Realizer,
    Registry,
    RRef,
    StorageSettings,
    fsinit,
    fstmpdir,
    instantiate,
    match_latest,
    mkconfig,
    mkdrv,
    mkSS,
    realize1,
    rref2path,
    store_gc,
)
from pylightnix.garb import collect
from pylightnix.storage import store_layout
from pylightnix.store.ownership import DAEMON_ROLE, lock_says

T = TypeVar("T")

OTHER_UID = 65534
AS_ROOT = os.geteuid() == 0

# --- stages -------------------------------------------------------------------------------------------

Files = Mapping[str, str]


def new_store(root: object) -> StorageSettings:
    """Make a store at `root` that is nobody's default."""
    settings = mkSS(str(root))
    fsinit(settings, use_as_default=False)
    return settings


def write_files(folder: str, files: Files) -> None:
    for name, text in files.items():
        path = os.path.join(folder, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)


def output(S: StorageSettings, files: Optional[Files] = None) -> Path:
    """Make an output folder with these files, as a raw realizer does."""
    folder = tempfile.mkdtemp(dir=fstmpdir(S))
    write_files(folder, {"out.txt": "text"} if files is None else files)
    return Path(folder)


def writes(*outputs: Files) -> Realizer:
    """Return a raw realizer that leaves these outputs; one with a single file if none are given."""

    def realizer(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Path]:
        return [output(S, files) for files in outputs or [{"out.txt": "text"}]]

    return realizer


def refuses(S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Path]:
    """A realizer that must not be called."""
    raise AssertionError(f"{dref} was built")


def stage(
    r: Registry, name: str = "stage", *, realizer: Optional[Realizer] = None, matcher: Optional[Matcher] = None, **config: Any
) -> DRef:
    """Register a derivation; by default its text is its name and the last realization counts."""
    return mkdrv(mkconfig({"name": name, **config}), matcher or match_latest(), realizer or writes({"out.txt": name}), r)


def _unlink_by(pid: int, path: str) -> None:
    if os.getpid() == pid:  # a process that was forked meanwhile has a copy of the notes, too
        os.unlink(path)


class Notes(Sequence[Any]):
    """A list to append to from realizers and matchers wherever they run: a file, of which copies that travelled know the name."""

    def __init__(self) -> None:
        fd, self._path = tempfile.mkstemp(prefix="test-pylightnix-notes-")
        os.close(fd)
        weakref.finalize(self, _unlink_by, os.getpid(), self._path)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_notes_at, (self._path,))

    def extend(self, items: Iterable[Any]) -> None:
        for item in items:
            self.append(item)

    def append(self, item: Any) -> None:
        with open(self._path, "ab", buffering=0) as file:
            file.write(cloudpickle.dumps(item))

    def clear(self) -> None:
        os.truncate(self._path, 0)

    def _items(self) -> list[Any]:
        items = []
        with open(self._path, "rb") as file:
            while file.peek(1):
                items.append(pickle.load(file))
        return items

    def __len__(self) -> int:
        return len(self._items())

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        return self._items()[index]

    def __eq__(self, other: object) -> bool:
        return self is other or self._items() == (list(other) if isinstance(other, Notes) else other)

    __hash__ = None  # type: ignore[assignment]  # as of lists

    def __repr__(self) -> str:
        return repr(self._items())


def _notes_at(path: str) -> Notes:
    notes = Notes.__new__(Notes)
    notes._path = path
    return notes


@dataclass
class Numbered:
    """A realizer whose every run leaves something new: 1, 2, 3, …; `texts` replaces the numbers."""

    texts: Sequence[str] = ()
    runs: Notes = field(default_factory=Notes)

    def __call__(self, S: StorageSettings, dref: DRef, context: Context, rarg: dict[str, Any]) -> list[Path]:
        self.runs.append(dref)
        number = len(self.runs)
        return [output(S, {"out.txt": self.texts[number - 1] if self.texts else str(number)})]


def text_of(rref: RRef, S: StorageSettings, name: str = "out.txt") -> str:
    with open(os.path.join(rref2path(rref, S), name), encoding="utf-8") as file:
        return file.read()


def index_rows(S: StorageSettings) -> list[tuple[Any, ...]]:
    """Return every row of the index, or nothing while there is none."""
    path = store_layout(S).index
    if not os.path.exists(path):
        return []
    db = sqlite3.connect(path)
    try:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
        return [(table, *row) for table in tables for row in db.execute(f"SELECT * FROM {table} ORDER BY 1, 2")]
    finally:
        db.close()


# --- pictures of a store ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """Everything in a store that must not change when a call is refused."""

    rows: list[tuple[Any, ...]]
    entries: dict[str, tuple[Any, ...]]
    """Path below the storage -> type and mode, owner, size, modification time, content."""


def picture(S: StorageSettings) -> Picture:
    storage = store_layout(S).storage
    entries: dict[str, tuple[Any, ...]] = {}
    for folder, folders, files in os.walk(storage):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            entries[os.path.relpath(path, storage)] = _entry(path)
    return Picture(index_rows(S), entries)


def _entry(path: str) -> tuple[Any, ...]:
    info = os.lstat(path)
    facts = (oct(info.st_mode), info.st_uid)
    if stat.S_ISLNK(info.st_mode):
        return (*facts, os.readlink(path))
    if stat.S_ISREG(info.st_mode):
        with open(path, "rb") as file:
            return (*facts, info.st_mtime_ns, file.read())
    return facts


def is_served(S: StorageSettings) -> bool:
    """Tell whether a daemon owns the store."""
    return lock_says(store_layout(S)).get("role") == DAEMON_ROLE


def check_trash(S: StorageSettings) -> None:
    """What was removed is gone; a daemon, if one owns the store, unlinks it by and by."""
    trash = store_layout(S).trash
    if is_served(S):
        wait_until(lambda: not os.listdir(trash), lambda: os.listdir(trash))
    assert os.listdir(trash) == []


def check_tmp(S: StorageSettings) -> None:
    """Nothing lies in `tmp/` but the folders of this process and of the daemon, if one owns the store, and they are empty."""
    says = lock_says(store_layout(S))
    pids = [os.getpid(), *([says["pid"]] if says.get("role") == DAEMON_ROLE else [])]
    if len(pids) > 1:  # a daemon answers first and tidies up then
        wait_until(lambda: not any(_owners(fstmpdir(S)).values()), lambda: _owners(fstmpdir(S)))
    left = _owners(fstmpdir(S))
    assert not any(left.values()), left
    assert sorted({owner.partition("-")[0] for owner in left}) == sorted(owner.partition("-")[0] for owner in left), left
    assert {int(owner.partition("-")[0]) for owner in left} <= set(pids), left


def _owners(tmp: str) -> dict[str, list[str]]:
    return {owner: os.listdir(os.path.join(tmp, owner)) for owner in os.listdir(tmp)}


def check_usable(S: StorageSettings) -> None:
    """Build something new in the store, and find it again."""
    token = secrets.token_hex(4)

    def main(r: Registry, realizer: Optional[Realizer] = None) -> DRef:
        return stage(r, "above", realizer=realizer, below=stage(r, "below", realizer=realizer, token=token))

    rref = realize1(instantiate(main, S=S))
    assert text_of(rref, S) == "above"
    assert realize1(instantiate(main, S=S, realizer=refuses)) == rref
    check_tmp(S)


@contextmanager
def unharmed(S: StorageSettings) -> Iterator[None]:
    """Check that the block changes nothing in the store, and that the store goes on working."""
    before = picture(S)
    yield
    assert picture(S) == before
    check_tmp(S)
    check_usable(S)


def check_error(error: object, kind: type[PylightnixException], code: str, status: int, *facts: str, retryable: bool = False) -> None:
    """Check the class, the code and the exit status of an error, and that its text has the facts."""
    assert type(error) is kind, repr(error)
    assert isinstance(error, PylightnixException)
    assert (error.code, error.exit_status, error.retryable) == (code, status, retryable)
    text = str(error)
    missing = [fact for fact in facts if fact not in text]
    assert not missing, f"{missing} not in: {text}"
    twin = pickle.loads(pickle.dumps(error))
    assert (type(twin), str(twin)) == (kind, text)


def empty(S: StorageSettings) -> None:
    """Remove all that a store holds."""
    collect(*store_gc([], [], S), S)


# --- memory ---------------------------------------------------------------------------------------------


def peak_bytes(function: Callable[[], Any]) -> int:
    """Call a function and return how much memory there was in use at most for what this process allocated meanwhile."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        function()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


# --- child processes ----------------------------------------------------------------------------------


def in_child(function: Callable[[], T], *, uid: Optional[int] = None, own_mounts: bool = False) -> T:
    """Run a function in a forked child and return what it returns, or raise what it raises.

    Args:
        function: what to run; its result must be picklable.
        uid: become this user first (root only).
        own_mounts: give the child a mount table of its own (root only).
    """
    _import_all()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            with open(writing, "wb") as file:
                file.write(_outcome(function, uid, own_mounts))
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writing)
    with open(reading, "rb") as file:
        data = file.read()
    assert os.waitpid(pid, 0)[1] == 0
    returned, value, trace = pickle.loads(data)
    if not returned:
        value.add_note(trace)
        raise value
    result: T = value
    return result


def _outcome(function: Callable[[], Any], uid: Optional[int], own_mounts: bool) -> bytes:
    try:
        if own_mounts:
            _leave_mounts()
        if uid is not None:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        return pickle.dumps((True, function(), ""))
    except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001  # raised again by the parent
        trace = traceback.format_exc()
        try:
            return pickle.dumps((False, error, trace))
        except (AttributeError, TypeError, pickle.PicklingError):  # of a class that only the child knows
            return pickle.dumps((False, RuntimeError(trace), ""))


def _import_all() -> None:
    """Import what is loaded lazily: another user cannot read an interpreter below /root."""
    import ast
    import linecache

    import pylightnix.build
    import pylightnix.codekey
    import pylightnix.embedded
    import pylightnix.query
    import pylightnix.store.access

    assert None not in (ast, linecache, pylightnix)


def _leave_mounts() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x00020000) != 0:  # CLONE_NEWNS
        raise OSError(ctypes.get_errno(), "unshare")
    mount("--make-rprivate", "/")


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def can_mount() -> bool:
    if not AS_ROOT:
        return False
    try:
        in_child(lambda: None, own_mounts=True)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


needs_root = pytest.mark.skipif(not AS_ROOT, reason="it takes root to be another user")
needs_mounts = pytest.mark.skipif(not can_mount(), reason="it takes root and a mount table of one's own")
