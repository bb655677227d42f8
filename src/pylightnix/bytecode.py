"""Bytecode that is older than its source: files of a project that Python would run as they were before the last edit.

Python compares the second of the last edit and the size. Of two edits within one second that leave the size as it is,
or where a tool sets times, it notices one. The second time of a file, which no tool can set, gives that away. Where this
package decides how modules are loaded (commands and workers), such bytecode is not taken; in a program, whose modules
Python has loaded before, it is told and removed. Must not know stages.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import marshal
import os
import sys
from collections.abc import Iterator
from typing import Any, Final, Optional

from pylightnix._origins import is_project_file

__all__ = ["ProjectLoader", "load_projects_from_source", "warn_of_outdated_bytecode"]

_HEADER_BYTES: Final = 16
_HOOK: Final[list[Any]] = []


class ProjectLoader(importlib.machinery.SourceFileLoader):
    """A loader of Python files that takes their bytecode only if it is younger than they are."""

    def get_data(self, path: str) -> bytes:
        if path.endswith(tuple(importlib.machinery.BYTECODE_SUFFIXES)) and _is_older(path, self.path):
            raise FileNotFoundError(path)  # by which Python compiles the source and writes it anew
        return super().get_data(path)


def load_projects_from_source() -> None:
    """Make this process load a project's modules, from now on, without bytecode that is older than they are."""
    if not _HOOK:
        kinds = (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES)
        compiled = (importlib.machinery.SourcelessFileLoader, importlib.machinery.BYTECODE_SUFFIXES)
        sources = (ProjectLoader, importlib.machinery.SOURCE_SUFFIXES)
        find = importlib.machinery.FileFinder.path_hook(kinds, sources, compiled)

        def find_in_project(folder: str) -> Any:
            if not is_project_file(os.path.join(folder, "")):
                raise ImportError("not a project's folder", path=folder)
            return find(folder)

        _HOOK.append(find_in_project)
    if _HOOK[0] not in sys.path_hooks:
        first = next((at for at, hook in enumerate(sys.path_hooks) if "FileFinder" in getattr(hook, "__qualname__", "")), None)
        sys.path_hooks.insert(len(sys.path_hooks) if first is None else first, _HOOK[0])
    for folder, finder in list(sys.path_importer_cache.items()):
        if type(finder) is importlib.machinery.FileFinder and is_project_file(os.path.join(folder, "")):
            del sys.path_importer_cache[folder]


_asked: set[str] = set()


def warn_of_outdated_bytecode() -> None:
    """Warn, once a file, where this process runs a project's module as it was before its last edit."""
    for file in _outdated_files():
        import warnings

        from pylightnix.codekey import UnseenCode

        what = f"{file} was edited within a second of the edit before, and Python loaded what it had kept of that one"
        warnings.warn_explicit(f"{what}; this program runs the older code: start it again", UnseenCode, file, 1)


def _outdated_files() -> Iterator[str]:
    """Yield the files of projects of which this process has loaded older bytecode, each once, and remove that bytecode."""
    for name in [name for name in list(sys.modules) if name not in _asked]:
        module = sys.modules.get(name)
        spec = getattr(module, "__spec__", None)
        loader = getattr(spec, "loader", None)
        _asked.add(name)
        if type(loader) is not importlib.machinery.SourceFileLoader or not is_project_file(loader.path):
            continue
        bytecode = _outdated_bytecode(loader)
        if bytecode is not None:
            with contextlib.suppress(OSError):
                os.unlink(bytecode)
            yield loader.path


def _outdated_bytecode(loader: importlib.machinery.SourceFileLoader) -> Optional[str]:
    """Return the file of bytecode that Python takes for a source though it is of another one; None if there is none."""
    try:
        path = importlib.util.cache_from_source(loader.path)
        if not _is_older(path, loader.path):
            return None
        with open(path, "rb") as file:
            taken = file.read()
        stat = os.stat(loader.path)
        seconds, size = int(stat.st_mtime) & 0xFFFFFFFF, stat.st_size & 0xFFFFFFFF
        expected = importlib.util.MAGIC_NUMBER + b"\0\0\0\0" + seconds.to_bytes(4, "little") + size.to_bytes(4, "little")
        if taken[:_HEADER_BYTES] != expected:
            return None  # Python sees that it is older
        made = loader.source_to_code(loader.get_data(loader.path), loader.path)
        return path if marshal.loads(taken[_HEADER_BYTES:]) != made else None
    # NotImplementedError: this Python keeps no bytecode.
    except (OSError, NotImplementedError, SyntaxError, ValueError, EOFError, TypeError, RecursionError):
        return None


def _is_older(path: str, source: str) -> bool:
    """Tell whether bytecode may be of what its source was before the last change of it. False if it is not there."""
    try:
        return os.stat(path).st_mtime_ns <= os.stat(source).st_ctime_ns
    except OSError:
        return False
