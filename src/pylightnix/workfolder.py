"""The working folder of a build: empty, its own, and the same wherever the build runs.

A relative path in a realizer means a file in this folder. The folder lies in the build folder and goes with it; what
is found in it in the end is no output. Must not know what is built, nor where.

Working folders belong to processes, not to threads. So a thread that begins a build first gets a working folder apart
from all other threads (``unshare``), and these notice nothing. Where the system forbids that, as the default profile of
Docker does, builds of several threads move the working folder of them all: always to that of a build that runs, and back
when the last has ended.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, Optional

from pylightnix.errors import Misuse
from pylightnix.system_errors import refusal

__all__ = [
    "WorkingFolder",
    "absolute",
    "absolute_variables",
    "left_files",
    "program_folder",
    "sample_folder",
    "this_build",
    "working_folder",
]

_CLONE_FS: Final = 0x200
_NAMED_COUNT: Final = 100
_PATH_VARIABLES: Final = ("PYLIGHTNIX_ROOT", "PYLIGHTNIX_STORAGE", "PYLIGHTNIX_TMP", "PYTHONPATH")


@dataclass(slots=True)
class WorkingFolder:
    """The working folder of the build that runs here."""

    path: str
    program: Optional[str]
    """The working folder of the program around all builds; None if that is gone."""
    given: set[str] = field(default_factory=set)
    """Names in it that the realizer did not make."""


_current: ContextVar[Optional[WorkingFolder]] = ContextVar("pylightnix_working_folder", default=None)


def this_build() -> Optional[WorkingFolder]:
    """Return the working folder of the build that runs here, None outside of builds."""
    return _current.get()


def program_folder() -> Optional[str]:
    """Return the folder that relative paths of the program mean, in a build and outside of one; None if it is gone."""
    here = _current.get()
    return _cwd() if here is None else here.program


def absolute(path: str | os.PathLike[str]) -> str:
    """Return a path made absolute.

    Raises:
        Misuse: it is relative, and the working folder was removed.
    """
    try:
        return os.path.abspath(path)
    except FileNotFoundError as error:
        raise Misuse(
            f"{os.fspath(path)!r} is a relative path, and the folder that this program works in was removed; "
            "go to another folder, or give an absolute path"
        ) from error


def _cwd() -> Optional[str]:
    try:
        return os.getcwd()
    except OSError:
        return None


@contextmanager
def working_folder(build_folder: str) -> Iterator[None]:
    """Work in an empty folder in `build_folder` for the block. What is left in it stays there.

    Raises:
        StoreFull, StoreIOError: the folder cannot be made or entered.
    """
    path = f"{build_folder}/work-{os.urandom(4).hex()}"
    here = WorkingFolder(path, program_folder())
    with _inside(path), _absolute_paths(here.program):
        token = _current.set(here)
        try:
            yield
        finally:
            _current.reset(token)


@contextmanager
def sample_folder(rindex: int) -> Iterator[None]:
    """Work in an empty folder beside that of the build, for one of several samples; where no build runs, stay."""
    here = _current.get()
    if here is None:
        yield
        return
    with _inside(f"{here.path}-{rindex}"):
        yield


def left_files() -> list[str]:
    """Return the names of what the build that runs here has left in its working folders so far, sorted; of many the first."""
    here = _current.get()
    if here is None:
        return []
    parent, own = os.path.split(here.path)
    found: list[str] = []
    try:
        for name in sorted(os.listdir(parent)):
            if name == own or name.startswith(f"{own}-"):
                found += [entry for entry in os.listdir(f"{parent}/{name}") if entry not in here.given]
    except OSError:
        pass  # it only helps whoever reads the error
    return sorted(set(found))[:_NAMED_COUNT]


# --- going there and back -----------------------------------------------------------------------------


@contextmanager
def _inside(path: str) -> Iterator[None]:
    pid = os.getpid()
    try:
        os.mkdir(path, 0o700)
        back = _enter(path)
    except OSError as error:
        raise refusal(error, "making the working folder of a build", path) from error
    try:
        yield
    finally:
        if os.getpid() == pid:  # and not a process that the build has forked
            back()
            try:
                os.rmdir(path)
            except OSError:
                pass  # something is in it; it goes with the build folder


def _enter(path: str) -> Callable[[], None]:
    """Change the working folder, and return what changes it back, whatever became of it meanwhile."""
    if not _part_from_threads():
        return _shared.enter(path)
    home = _open_cwd()
    try:
        os.chdir(path)
    except BaseException:
        _close(home)
        raise
    return lambda: _go_home(home)


def _part_from_threads() -> bool:
    """Give this thread a working folder apart from that of others, if they have one in common; tell whether that could be done."""
    if not _libc:
        import ctypes  # here, for it takes its time to load

        _libc.append(ctypes.CDLL(None))
    return int(_libc[0].unshare(_CLONE_FS)) == 0


_libc: list[Any] = []


def _open_cwd() -> Optional[int]:
    # A descriptor leads back even if the folder was removed or has another name by then.
    try:
        return os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None  # this user may not enter it any more


def _go_home(home: Optional[int]) -> None:
    try:
        os.chdir("/" if home is None else home)
    except OSError:
        os.chdir("/")
    finally:
        _close(home)


def _close(fd: Optional[int]) -> None:
    if fd is not None:
        os.close(fd)


class _Shared:
    """The working folder of all threads, where these cannot part."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: list[str] = []
        self._home: Optional[int] = None

    def enter(self, path: str) -> Callable[[], None]:
        with self._lock:
            home = None if self._running else _open_cwd()
            try:
                os.chdir(path)
            except BaseException:
                _close(home)
                raise
            if not self._running:
                self._home = home
            self._running.append(path)
        return lambda: self._leave(path)

    def _leave(self, path: str) -> None:
        with self._lock:
            self._running.remove(path)
            if self._running:
                os.chdir(self._running[-1])
            else:
                _go_home(self._home)
                self._home = None


_shared = _Shared()


# --- what relative paths mean meanwhile ---------------------------------------------------------------


def absolute_variables(variables: Mapping[str, str], folder: str) -> dict[str, str]:
    """Return those environment variables that hold relative paths and would mean others elsewhere, made absolute."""
    found = {}
    for name in _PATH_VARIABLES:
        text = variables.get(name)
        if text:
            parts = text.split(os.pathsep) if name == "PYTHONPATH" else [text]
            found[name] = os.pathsep.join(os.path.normpath(os.path.join(folder, part)) for part in parts)
    return {name: text for name, text in found.items() if text != variables[name]}


class _Absolutes:
    """What this process was given relative paths by, made absolute while any build runs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._builds = 0
        self._entries: list[str] = []
        self._variables: dict[str, tuple[str, str]] = {}

    def begin(self, folder: str) -> None:
        with self._lock:
            self._builds += 1
            if self._builds > 1:
                return
            relative = [(at, entry) for at, entry in enumerate(sys.path) if isinstance(entry, str) and entry[:1] != "/"]
            for at, entry in reversed(relative):
                self._entries.append(os.path.normpath(os.path.join(folder, entry)))
                sys.path.insert(at + 1, self._entries[-1])
            self._variables = {name: (os.environ[name], text) for name, text in absolute_variables(os.environ, folder).items()}
            os.environ.update({name: text for name, (_, text) in self._variables.items()})

    def end(self) -> None:
        with self._lock:
            self._builds -= 1
            if self._builds:
                return
            for entry in self._entries:
                if entry in sys.path:
                    sys.path.remove(entry)
            for name, (before, text) in self._variables.items():
                if os.environ.get(name) == text:
                    os.environ[name] = before
            self._entries, self._variables = [], {}


_absolutes = _Absolutes()


@contextmanager
def _absolute_paths(folder: Optional[str]) -> Iterator[None]:
    if folder is None:
        yield
        return
    _absolutes.begin(folder)
    try:
        yield
    finally:
        _absolutes.end()


def _forget_locks() -> None:
    # In a forked child they may be held by threads that do not exist there.
    _shared._lock, _absolutes._lock = threading.Lock(), threading.Lock()


os.register_at_fork(after_in_child=_forget_locks)
