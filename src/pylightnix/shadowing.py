"""Projects whose files have names of Python's own modules: `select.py`, `queue.py`.

Such a file stands before Python's in the import path, and what Pylightnix imports later would get it. So all that it may
need is loaded before a project's folder comes into the path. Costs nothing where no file has such a name. Must not know
whose folder it is.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
import sys
from collections.abc import Iterable
from typing import Final

__all__ = ["load_ahead_of"]

_PACKAGES: Final = ("pylightnix", "pylightnix_client")
_OTHERS: Final = (
    *("ast", "bz2", "contextvars", "copy", "ctypes", "decimal", "difflib", "fractions", "gzip", "inspect", "linecache", "lzma", "numbers"),
    *("opcode", "pdb", "platform", "pprint", "queue", "random", "shlex", "shutil", "socket", "sqlite3", "ssl", "struct", "subprocess"),
    *("tempfile", "threading", "traceback", "zipfile", "zlib", "multiprocessing", "asyncio", "concurrent.futures", "logging.handlers"),
    *("anyio", "anyio.from_thread", "anyio.to_thread", "click", "click.shell_completion", "cloudpickle", "httpx", "msgpack", "msgspec"),
    *("platformdirs", "py7zr", "trio", "zstandard"),
)
"""What is imported where it is needed only, or by what is."""
_THIRD_PARTY: Final = frozenset(name.partition(".")[0] for name in _OTHERS) | {"attr", "certifi", "h11", "httpcore", "idna", "outcome"}


def load_ahead_of(folders: Iterable[str]) -> None:
    """Load what Pylightnix may need later, if a module in one of these folders would take the place of some of it."""
    known = sys.stdlib_module_names | _THIRD_PARTY
    if not any(name in known and name not in sys.modules for folder in folders for name in _modules_in(folder)):
        return
    for name in _OTHERS:
        _load(name)
    for package in _PACKAGES:
        if package in sys.modules:
            for found in pkgutil.walk_packages(sys.modules[package].__path__, f"{package}."):
                if not found.name.endswith("__main__"):
                    _load(found.name)


def _modules_in(folder: str) -> Iterable[str]:
    try:
        names = os.listdir(folder or ".")
    except OSError:
        return
    for name in names:
        if name.endswith(".py"):
            yield name[: -len(".py")]
        elif os.path.isfile(os.path.join(folder, name, "__init__.py")):
            yield name


def _load(name: str) -> None:
    with contextlib.suppress(ImportError):  # it is not installed
        importlib.import_module(name)
