"""Out-links: symbolic links to realizations, where the user wants them.

Replaces links only, and each in one step: whoever looks sees the old one or the new one.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from pylightnix_client.errors import LinkRefused

__all__ = ["check_out_link", "out_link_names", "put_out_link", "put_out_links"]


def out_link_names(path: str, count: int) -> list[str]:
    """Return the names for `count` links: `path`, then `path`-2, `path`-3 and so on."""
    return [path if i == 1 else f"{path}-{i}" for i in range(1, count + 1)]


def check_out_link(path: str) -> None:
    """Raise `LinkRefused` unless a link can be put at `path`, as far as can be told without doing it."""
    if not os.path.basename(path):
        raise LinkRefused(path, "it names a folder, not a link in one")
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise LinkRefused(path, f"there is no folder {folder}")
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise LinkRefused(path, error.strerror or str(error)) from error
    if not stat.S_ISLNK(mode):
        raise LinkRefused(path, f"there is a {'folder' if stat.S_ISDIR(mode) else 'file'}, and only a link would be replaced")


def put_out_link(path: str, target: str) -> None:
    """Make `path` a symbolic link to `target`, replacing a link that is there.

    Raises:
        LinkRefused: something else is there, or the system refuses.
    """
    from pylightnix.links import forcelink

    check_out_link(path)
    try:
        forcelink(target, path)
    except OSError as error:
        raise LinkRefused(path, error.strerror or str(error)) from error


def put_out_links(path: str, targets: Sequence[str]) -> list[str]:
    """Put a link to each of `targets` at the names that `out_link_names` gives; return those names.

    All names are checked before the first link is changed.
    """
    names = out_link_names(path, len(targets))
    for name in names:
        check_out_link(name)
    for name, target in zip(names, targets, strict=True):
        put_out_link(name, target)
    return names
