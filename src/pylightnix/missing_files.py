"""The advice for realizers that look for a file of the program by a relative path. Must not know who ran them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from typing import Final, Optional

from pylightnix.errors import BuildError
from pylightnix.workfolder import program_folder

__all__ = ["advise"]

_LINKS_MAX: Final = 20
_REMOTE: Final = "pylightnix.travel.failures"
"""Loaded only where an error may come from another process, for it loads pickle."""
_TOLD: Final = re.compile(r"No such file or directory: '([^'\n]+)'")


def advise(error: BaseException) -> None:
    """Note on the error of a failed build that a file which it missed is in the program's folder, if it is."""
    folder = program_folder()
    if folder is None:
        return
    for path in _missed(error.exception if isinstance(error, BuildError) else error):
        if not os.path.isabs(path) and os.path.lexists(os.path.join(folder, path)):
            note = (
                f"{path} is in {folder}, where the program works, but a build works in an empty folder of its own: "
                f"pass the file as a dependency, source({path!r}), or use its absolute path"
            )
            if note not in getattr(error, "__notes__", ()):
                error.add_note(note)
            return


def _missed(error: Optional[BaseException]) -> Iterator[str]:
    for _ in range(_LINKS_MAX):
        if error is None:
            return
        if isinstance(error, FileNotFoundError) and isinstance(error.filename, (str, bytes)):
            yield os.fsdecode(error.filename)
        if (remote := sys.modules.get(_REMOTE)) is not None and isinstance(error, remote.RemoteTraceback):
            yield from _TOLD.findall(error.text)  # what led to the error stayed in the other process
        error = error.__cause__ or error.__context__
