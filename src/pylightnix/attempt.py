"""One run of a realizer or a matcher in this process: its call, and the take-over of what it left.

Used wherever users' code runs in the process that asked for it: by the embedded driver, and by the client
of a daemon for what cannot travel. Must not know who decided that it runs, nor what comes of it.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, Optional

from pylightnix.context import DirectContext, LazyContext
from pylightnix.errors import CodeKeyError, InvalidOutput
from pylightnix.outputs import OUTPUT_ADVICE, absolute_outputs, output_paths
from pylightnix.storage import current_storage, fstmpdir
from pylightnix.store.commit import TakenOutput
from pylightnix.store.faults import reach
from pylightnix.store.fixed_outputs import check_output
from pylightnix.store.layout import StoreLayout
from pylightnix.store.owner import is_owner_name
from pylightnix.store.removal import open_unlocked
from pylightnix.store.takeover import take_over
from pylightnix.types import DRef, Matcher, RealizeArg, Realizer, RRef, StorageSettings
from pylightnix.workfolder import working_folder

if TYPE_CHECKING:
    from pylightnix.codekey import CodeManifest

__all__ = [
    "call_matcher",
    "call_realizer",
    "context_below",
    "not_in_forked_child",
    "realizer_digest",
    "realizer_manifest",
    "take_outputs",
]


# --- calling ------------------------------------------------------------------------------------------


def call_realizer(
    realizer: Realizer,
    S: StorageSettings,
    dref: DRef,
    direct: DirectContext,
    transitive: Callable[[], Mapping[DRef, Sequence[RRef]]],
    arguments: RealizeArg,
) -> Any:
    """Run a realizer in a working folder of its own, and return what it answers, relative paths of outputs made absolute.

    Args:
        realizer: raises whatever it likes.
        S: the store, its `tmpdir` being the build folder; the current storage meanwhile.
        dref: what is built.
        direct: the realizations of its direct dependencies.
        transitive: gives those of all its dependencies; called only if the realizer looks at more than `direct`.
        arguments: its last argument.
    """
    with not_in_forked_child(), current_storage(S), working_folder(fstmpdir(S)):
        return absolute_outputs(dref, realizer(S, dref, LazyContext(direct, transitive), arguments))


def call_matcher(matcher: Matcher, S: StorageSettings, rrefs: list[RRef]) -> Any:
    """Ask a matcher and return what it answers. `S` is the current storage meanwhile."""
    with not_in_forked_child(), current_storage(S):
        return matcher(S, rrefs)


def context_below(direct: DirectContext, S: StorageSettings) -> dict[DRef, list[RRef]]:
    """Return the realizations of all dependencies, given those of the direct ones, by reading the store."""
    from pylightnix.query import rrefctx

    found: dict[DRef, set[RRef]] = {dref: set(rrefs) for dref, rrefs in direct.items()}
    for rref in {rref for rrefs in direct.values() for rref in rrefs}:
        for dref, below in rrefctx(rref, S).items():
            found.setdefault(dref, set()).update(below or [])
    return {dref: sorted(rrefs) for dref, rrefs in found.items()}


def realizer_digest(realizer: Realizer) -> Optional[str]:
    """Return what code a realizer is, None if that cannot be told: it is built all the same.

    Raises:
        CodeKeyError: a file that it reaches was changed after it was loaded.
    """
    from pylightnix.codekey import pyobjhash

    try:
        return str(pyobjhash([realizer]))
    except CodeKeyError as error:
        if error.stale:
            raise
        return None
    except Exception:  # noqa: BLE001  # it looks at values of users' modules
        return None


def realizer_manifest(realizer: Realizer) -> Optional[CodeManifest]:
    """Return what the digest of a realizer's code covers, None if that cannot be told."""
    from pylightnix.codekey import code_manifest

    try:
        return code_manifest([realizer])
    except Exception:  # noqa: BLE001  # it looks at values of users' modules
        return None


@contextmanager
def not_in_forked_child() -> Iterator[None]:
    """End, at the end of the block, a process that user code forked in it and let run on.

    Such a child would else go on with what its parent was doing: remove its build folder, commit its batch,
    report for it.
    """
    pid = os.getpid()
    try:
        yield
    finally:
        if os.getpid() != pid:
            _end_stray_child(sys.exc_info()[1])


def _end_stray_child(error: Optional[BaseException]) -> NoReturn:
    status = 0
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else 1 if error.code else 0
    elif error is not None:
        status = 1
        traceback.print_exception(error)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


# --- taking over --------------------------------------------------------------------------------------


def take_outputs(layout: StoreLayout, dref: DRef, folder: str, answer: Any, config: Any = None) -> list[TakenOutput]:
    """Take over the output folders that a realizer returned.

    Args:
        layout: the store.
        dref: what was built.
        folder: the build folder.
        answer: what the realizer returned: paths of distinct folders that it made in `folder`. A folder
            directly in the store's `tmp/` is accepted too, for realizers that captured the store's
            settings rather than use those they are called with.
        config: the derivation's config where the store may not have that yet.

    Raises:
        InvalidOutput: it is anything else, holds what cannot be stored, or is not what the derivation's config fixes.
        StoreError: the system or the store failed.
    """
    paths = output_paths(dref, answer)
    taken = []
    for path in paths:
        parent_fd = _open_parent(layout, dref, folder, path)
        try:
            digest = take_over(parent_fd, os.path.basename(path), dref=dref, shown=path)
            check_output(layout, dref, path, config)
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
    raise InvalidOutput(dref, path, f"is not a folder of this build ({folder})", OUTPUT_ADVICE)


def _open_below(dref: DRef, top: str, components: Sequence[str], path: str) -> int:
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for component in components:
        if component:
            try:
                deeper = open_unlocked(component, fd)
            except OSError as error:
                raise InvalidOutput(dref, path, f"cannot be reached without following a link ({error.strerror})", OUTPUT_ADVICE) from error
            finally:
                os.close(fd)
            fd = deeper
    return fd
