"""What a realizer returned, brought into the form that is reported: names of folders in the build folder.

Whoever reads the report checks it all again; here it is done as the user, for errors that say what is
wrong. Must not know how outputs are taken over.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterable
from typing import Any, Final

from pylightnix.errors import InvalidOutput
from pylightnix.outputs import OUTPUT_ADVICE, output_paths
from pylightnix.store.removal import make_movable
from pylightnix.types import DRef

__all__ = ["kept_names", "output_names"]

_OWNER: Final = re.compile(r"[0-9]+-[0-9a-f]{12}")


def output_names(dref: DRef, folder: str, tmp: str, answer: Any) -> list[str]:
    """Return the names in `folder` of the output folders that a realizer returned.

    Outputs deeper inside are moved up to it, and so are those directly in the store's `tmp`, where
    realizers make them that captured the store's settings rather than use those they are called with.

    Raises:
        InvalidOutput: it is something else than a list of distinct folders there.
    """
    paths = output_paths(dref, answer)
    return [_name_in(folder, tmp, dref, path) for path in paths]


def _name_in(folder: str, tmp: str, dref: DRef, path: str) -> str:
    parent, name = os.path.split(path)
    top = os.path.realpath(folder)
    below = next((parent[len(start) :] for start in (folder, top) if f"{parent}/".startswith(f"{start}/")), None)
    is_stray = parent in (tmp, os.path.realpath(tmp)) and not _OWNER.fullmatch(name)
    if below is None and not is_stray:
        raise InvalidOutput(dref, path, f"is not a folder of this build ({folder})", OUTPUT_ADVICE)
    if below is not None and os.path.realpath(parent) != f"{top}{below}":
        raise InvalidOutput(dref, path, "cannot be reached without following a link", OUTPUT_ADVICE)
    if not os.path.lexists(path):
        raise InvalidOutput(dref, path, "does not exist", "make the folder before returning it")
    if os.path.islink(path) or not os.path.isdir(path):
        raise InvalidOutput(dref, path, "is not a folder", "return folders, not files or links")
    if below == "":
        return _printable(dref, name)
    moved = tempfile.mkdtemp(prefix="out-", dir=top)
    try:
        make_movable(path)
        os.rename(path, moved)  # over an empty folder
    except OSError as error:
        raise InvalidOutput(dref, path, f"cannot be moved into the folder of this build ({error.strerror})", OUTPUT_ADVICE) from error
    return os.path.basename(moved)


def _printable(dref: DRef, name: str) -> str:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidOutput(dref, repr(name), "has a name that is not UTF-8", "name output folders in ASCII") from error
    return name


def kept_names(folder: str, paths: Iterable[Any]) -> list[str]:
    """Return the names of those of `paths` that are folders directly in `folder`. Never fails."""
    names = []
    for path in paths:
        parent, name = os.path.split(os.path.abspath(path)) if isinstance(path, str) else ("", "")
        if parent in (folder, os.path.realpath(folder)) and os.path.isdir(path) and name.isprintable():
            names.append(name)
    return names
