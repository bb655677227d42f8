"""Texts that are paths of a project's own files, as marks: it does not matter where a project lies.

A text is such a path if it was made from the place of the module: it leads into the module's folder or beside it, and
does not begin with an absolute path that the module's file spells out. Must not know what texts are in.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Optional

from pylightnix._definitions import spelled_paths

if TYPE_CHECKING:
    import ast

__all__ = ["NOWHERE", "Place", "mark"]

_LEVELS_SHARED: Final = 2
"""Paths beside a module share that many folders with it: `/home/somebody`, and not `/tmp`."""


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where a value is bound."""

    filename: str = ""
    """Of the module; empty if it has none."""
    namespace: Optional[dict[str, Any]] = None
    """Of the module that binds it, None of values that a module's statements do not bind."""
    name: str = ""
    made: Optional[tuple[ast.AST, ...]] = None
    """What a definition says of how the value is made: of attributes of classes, defaults of parameters, closure cells."""
    is_added: bool = False
    """Whether it is an attribute that no definition tells of, and that code may have added as it ran."""
    is_quiet: bool = False
    """Whether nobody need know what cannot be seen of it: what other packages put into classes."""


NOWHERE: Final = Place()


def mark(text: str, filename: str) -> str:
    """Return a text, with the folder of a file, or one above it, as a mark."""
    if not text.startswith(os.sep) or not filename.startswith(os.sep):
        return text
    folder = os.path.dirname(filename)
    bare = text[:-1] if text.endswith(os.sep) else text
    if len(bare) < 2 or os.path.normpath(bare) != bare or bare.startswith("//"):
        return text
    if bare == folder or bare.startswith(folder + os.sep):
        found = "\0here" + text[len(folder) :]
    else:
        shared = os.path.commonpath([bare, folder])
        if shared.count(os.sep) < _LEVELS_SHARED:
            return text
        found = f"\0above{os.path.relpath(folder, shared).count(os.sep) + 1}{text[len(shared) :]}"
    spelled = {path.rstrip(os.sep) + os.sep for path in spelled_paths(filename)}
    return text if any((bare + os.sep).startswith(path) for path in spelled) else found
