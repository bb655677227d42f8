"""Imports that builds will want, made once in the worker so that every fork has them.

Each build tells which modules of the standard library and of site-packages it has come to load; the worker
loads them before its next fork. Files elsewhere are a project's: they change, and are left to each build.
Such files are parsed ahead, if a build has parsed them to tell what code it runs; a build that finds one
changed parses it again.
A build that has threads running tells nothing: what starts threads when it is imported would make the
worker unfit to fork. When packages are installed or removed, what is loaded may be no longer what is
there, and the worker is stale. Must not know builds.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import json
import os
import socket
import sys
import threading
from typing import Final

from pylightnix._definitions import parse_file, parsed_files
from pylightnix._names import names_of
from pylightnix._origins import installed_roots
from pylightnix._syntax import canonical_text

__all__ = ["Ahead"]

_MESSAGE_BYTES: Final = 1 << 17
_DEFINITIONS_MAX: Final = 500
"""Definitions of one file that are read ahead: a build waits for that, once."""


class Ahead:
    """What was, and is to be, imported ahead."""

    def __init__(self) -> None:
        self._tell, self._hear = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._hear.setblocking(False)
        self._tell.setblocking(False)
        self._seen: set[str] = set()
        self._roots = installed_roots()
        self._parsed: dict[str, object] = {}
        self._stamps = self._root_stamps()
        self._count = len(sys.modules)

    def fileno(self) -> int:
        return self._tell.fileno()

    # --- in a build ---------------------------------------------------------------------------------

    def after_fork(self) -> None:
        """Remember what is loaded; make files of projects be looked for anew."""
        self._hear.close()
        self._count = len(sys.modules)
        self._parsed = parsed_files()
        for path, finder in list(sys.path_importer_cache.items()):
            if finder is not None and not self._is_below_roots(path):
                invalidate = getattr(finder, "invalidate_caches", None)
                if invalidate is not None:
                    invalidate()

    def tell(self) -> None:
        """Tell the worker what this process has loaded. Never waits and never fails."""
        files = [name for name, parsed in parsed_files().items() if self._parsed.get(name) is not parsed and os.path.isabs(name)]
        grown = len(sys.modules) > self._count and threading.active_count() == 1
        names = [name for name in list(sys.modules)[self._count :] if self._is_stable(name)] if grown else []
        try:
            if names or files:
                self._tell.send(json.dumps([names, files]).encode())
        except OSError:
            pass  # too many of them, or too many builds at once: another one will tell

    def _is_stable(self, name: str) -> bool:
        origin = getattr(getattr(sys.modules.get(name), "__spec__", None), "origin", None)
        return isinstance(origin, str) and self._is_below_roots(origin)

    def _is_below_roots(self, path: str) -> bool:
        return f"{path}{os.sep}".startswith(self._roots)  # the folder itself, too

    def _root_stamps(self) -> list[int]:
        return [os.stat(root).st_mtime_ns if os.path.isdir(root) else 0 for root in self._roots]

    # --- in the worker --------------------------------------------------------------------------------

    def is_stale(self) -> bool:
        """Tell whether packages were installed or removed since the worker started: every installer adds or removes an entry."""
        return self._root_stamps() != self._stamps

    def load(self) -> None:
        """Import what builds have told of. What fails is not tried again."""
        loaded = False
        while True:
            try:
                names, files = json.loads(self._hear.recv(_MESSAGE_BYTES))
            except BlockingIOError:
                break
            # In the order in which they were loaded, so that packages come before what is in them.
            for name in names:
                if name not in self._seen and name not in sys.modules:
                    self._seen.add(name)
                    self._import(name)
                    loaded = True
            for name in files:
                for definition in parse_file(name)[:_DEFINITIONS_MAX]:
                    canonical_text(definition)  # is remembered, as the other is
                    names_of(definition)
                    loaded = True
        if loaded:
            settle_memory()

    def _import(self, name: str) -> None:
        try:
            spec = importlib.util.find_spec(name)
            # A build may have changed its import path; here the name may lead elsewhere.
            if spec is not None and spec.origin is not None and self._is_below_roots(spec.origin):
                importlib.import_module(name)
        except (Exception, SystemExit) as error:  # noqa: BLE001  # code of other people's modules
            print(f"not imported ahead: {name}: {type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201  # the worker's log


def settle_memory() -> None:
    """Keep the collector of forked processes off what the worker has made, whose pages they share."""
    gc.collect()
    gc.freeze()
