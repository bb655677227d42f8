"""Whether something is there.

`os.path.exists` and its like take every error for absence. A disk that fails, or a server of files that restarts, must not
make realizations vanish, nor living owners look dead: here only absence is absence, and everything else is raised.
"""

from __future__ import annotations

import os
import stat

__all__ = ["is_folder", "is_there"]


def is_there(path: str) -> bool:
    """Tell whether there is anything at `path`, be it a symbolic link that leads nowhere. OSError if that cannot be told."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def is_folder(path: str) -> bool:
    """Tell whether there is a folder at `path`, or a symbolic link to one. OSError if that cannot be told."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
