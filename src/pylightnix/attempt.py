"""One run of a realizer in this process: its build folder, its call, and the take-over of what it left."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final

from pylightnix.errors import InvalidOutput
from pylightnix.outputs import output_paths
from pylightnix.store.commit import TakenOutput
from pylightnix.store.faults import reach
from pylightnix.store.layout import StoreLayout
from pylightnix.store.owner import is_owner_name
from pylightnix.store.takeover import take_over
from pylightnix.types import DRef

__all__ = ["take_outputs"]

_ADVICE: Final = "make output folders under fstmpdir(S) of the S that the realizer is called with, for example with tempfile.mkdtemp"


def take_outputs(layout: StoreLayout, dref: DRef, folder: str, answer: Any) -> list[TakenOutput]:
    """Take over the output folders that a realizer returned.

    Args:
        layout: the store.
        dref: what was built.
        folder: the build folder.
        answer: what the realizer returned: paths of distinct folders that it made in `folder`. A folder
            directly in the store's `tmp/` is accepted too, for realizers that captured the store's
            settings rather than use those they are called with.

    Raises:
        InvalidOutput: it is anything else, or holds what cannot be stored.
    """
    paths = output_paths(dref, answer)
    taken = []
    for path in paths:
        parent_fd = _open_parent(layout, dref, folder, path)
        try:
            digest = take_over(parent_fd, os.path.basename(path), dref=dref, shown=path)
        finally:
            os.close(parent_fd)
        reach("taken_over")
        taken.append(TakenOutput(path, digest.sha256, digest.nar_bytes, digest.files))
    return taken


def _open_parent(layout: StoreLayout, dref: DRef, folder: str, path: str) -> int:
    """Open the folder that holds the output, which must be the build folder or below it."""
    parent, name = os.path.split(path)
    for top in (folder, os.path.realpath(folder)):
        if parent == top or parent.startswith(f"{top}/"):
            return _open_below(dref, top, parent[len(top) :].strip("/").split("/"), path)
    stray = parent in (layout.tmp, os.path.realpath(layout.tmp)) and not is_owner_name(name)
    if stray and os.path.isdir(path) and os.lstat(path).st_uid == os.geteuid():
        return _open_below(dref, parent, [""], path)
    raise InvalidOutput(dref, path, f"is not a folder of this build ({folder})", _ADVICE)


def _open_below(dref: DRef, top: str, components: Sequence[str], path: str) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for component in components:
        if component:
            try:
                deeper = os.open(component, flags, dir_fd=fd)
            except OSError as error:
                raise InvalidOutput(dref, path, f"cannot be reached without following a link ({error.strerror})", _ADVICE) from error
            finally:
                os.close(fd)
            fd = deeper
    return fd
