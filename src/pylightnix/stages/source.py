"""`source`: a stage whose realization is a copy of a local file or folder, as it was when the stage was instantiated.

Its bytes are handed over by the program that instantiated it: a daemon never opens what its caller could not. Must not
know how sources are hashed and copied.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

from pylightnix.build import Build, build_outpath, build_wrapper, stored_config
from pylightnix.config import mkconfig
from pylightnix.errors import InvalidSource, Misuse, SourceChanged
from pylightnix.matchers import match_only
from pylightnix.refs import selfref
from pylightnix.registry import Registry, mkdrv, tlregistry
from pylightnix.stages.node import checked_name, problem_with_entry
from pylightnix.storage import store_layout
from pylightnix.types import Context, DRef, Path, RealizeArg, StorageSettings
from pylightnix.workfolder import absolute

__all__ = ["SourceRealizer", "source"]

_KEY = "__tree__"


@dataclass(frozen=True, slots=True)
class SourceRealizer:
    """Copies a local file or folder, after which it compares the copy's digest with that in the config.

    It stays in the program that made it, which may read the path.
    """

    path: str
    exclude: tuple[str, ...]

    def __call__(self, S: StorageSettings, dref: DRef, context: Context, rarg: RealizeArg) -> list[Path]:
        return build_wrapper(self._copy)(S, dref, context, rarg)

    def _copy(self, b: Build) -> None:
        from pylightnix.sources import copy_source

        config = stored_config(b).val
        found = copy_source(self.path, self.exclude, build_outpath(b), config["out"][1])
        if found != config[_KEY]:
            raise SourceChanged(_shown(self.path), config[_KEY], found)


def source(
    path: str | os.PathLike[str],
    name: Optional[str] = None,
    exclude: Sequence[str] = [],  # never changed, and part of the published signature
    r: Optional[Registry] = None,
) -> DRef:
    """Register a derivation whose realization is a copy of a local file or folder.

    The config has a digest of the contents, so the derivation is another one as soon as a name, a file's contents, its
    executable bit or a link's target is; what depends on it is built again then. Times, owners and other modes do not
    count, and neither does where it lies. The realization holds it under the last name of `path`, and
    the config item ``out`` is the refpath: ``[dref, 'data.csv']`` for ``/home/me/data.csv``.

    To find the digest, only files are read that have another size, time (mtime, ctime) or inode than when they were read
    last, by anyone who uses this user's cache folder; files that were changed less than two seconds before are read again
    the next time. The copy is made when the derivation is built, by this process also where a daemon serves the store.

    Links in a folder are kept as links; `path` itself may be one, or lead over some. Sockets, FIFOs and devices are refused.

    Args:
        path: the file or folder, relative to the current one.
        name: the name of the derivation, by default ``source``.
        exclude: what of a folder to leave out: patterns in the form of a ``.gitignore``, ``['*.pyc', '/build/']``.
            An excluded folder is not looked into. They are compared byte for byte, as Git does.
        r: the registry, else the current one.

    Raises:
        InvalidSource: it cannot be read, holds what cannot be stored, changed while it was read, has a name that no config
            can have, or holds the store, which is not excluded. The error says which file.
        Misuse: something is not of these shapes.

    Building raises a `BuildError` that holds a `SourceChanged` if it is not what it was when it was instantiated.
    """
    from pylightnix.sources import Memo, source_digest

    own_name = checked_name("source", name, "source")
    where, own = _located(path)
    patterns = _patterns(exclude)
    _refuse_store(where, patterns, r)
    digest = source_digest(where, patterns, Memo())
    config = mkconfig({"name": own_name, "out": [selfref, own], _KEY: digest})
    return mkdrv(config, match_only(), SourceRealizer(where, patterns), r)


def _located(path: object) -> tuple[str, str]:
    """Return the absolute path of a source, and its name in the realization."""
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise Misuse(f"source: path: expected the path of a file or folder, found {path!r:.100}")
    where = absolute(os.fsdecode(path))
    own = os.path.basename(where)
    shown = _shown(where)
    problem = problem_with_entry(own) or ("it has a NUL" if "\0" in where else None)
    if problem is not None:
        raise InvalidSource(shown, f"its name cannot be that of an artifact: {problem}", "name a folder in it, or rename it")
    if os.fsencode(own).decode("utf-8", "ignore") != own:
        raise InvalidSource(shown, "its name is not UTF-8, which names in configs are", "rename it, or name the folder that it is in")
    return where, own


def _refuse_store(where: str, patterns: tuple[str, ...], r: Optional[Registry]) -> None:
    """Refuse a source that holds the store: each build would change it, and a copy of it would hold itself."""
    from pylightnix.sources import excluding, way_below

    registry = tlregistry(r)
    layout = store_layout(None if registry is None else registry.S)
    excluded = excluding(patterns)
    for folder in dict.fromkeys((layout.state, layout.storage, layout.tmp)):
        way = way_below(where, excluded, folder)
        if way == "":
            raise InvalidSource(_shown(where), "it is a folder of the store itself", "name a folder elsewhere")
        if way is not None:
            pattern = "/" + re.sub(r"[*?[\\]", r"\\\g<0>", way) + "/"
            problem = f"it holds the store, {_shown(folder)}"
            raise InvalidSource(_shown(where), problem, f"exclude it, e.g. exclude=[{pattern!r}], or have the store elsewhere")


def _shown(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _patterns(exclude: object) -> tuple[str, ...]:
    if isinstance(exclude, str) or not isinstance(exclude, Sequence) or not all(isinstance(pattern, str) for pattern in exclude):
        raise Misuse(f"source: exclude: expected a list of patterns as in a .gitignore, found {exclude!r:.100}")
    return tuple(exclude)
