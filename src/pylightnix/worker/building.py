"""One build, in the process that was forked for it: from the order to the report.

The report is one MessagePack map on the status pipe: ``outputs`` (names of folders in the build folder),
``error`` (None, or a map of `dump_exception` with ``outpaths`` added), ``manifest`` (what the digest of the
code covers, as JSON, or None), ``told`` (warnings for who asked), ``started`` and ``stopped`` (UTC seconds). Before it
there may be MessagePack numbers of one byte: how many samples are left to be made, once they are fewer than are made at a
time. A pipe that is closed without a report means that the process was lost. Must not know the worker.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

import msgpack  # type: ignore[import-untyped]  # it ships no type information

from pylightnix.attempt import context_below, not_in_forked_child
from pylightnix.context import LazyContext
from pylightnix.errors import Misuse
from pylightnix.nesting import running_realizer
from pylightnix.outputs import absolute_outputs
from pylightnix.samples import run_by, samples_of
from pylightnix.stages.command import CommandRealizer
from pylightnix.storage import current_storage, fstmpdir
from pylightnix.store.kept import left_by
from pylightnix.store.ownership import check_encodable
from pylightnix.travel.claims import ClaimedRealizer, CodeClaim
from pylightnix.travel.failures import dump_exception
from pylightnix.travel.packing import unpack, unpack_node
from pylightnix.types import DRef, Path, Realizer, RRef, StorageSettings
from pylightnix.worker.code import checked_code
from pylightnix.worker.outputs import kept_names, output_names
from pylightnix.worker.sampling import SideBySide
from pylightnix.worker.surroundings import flush_output
from pylightnix.workfolder import working_folder

__all__ = ["BuildOrder", "parse_order", "run_build"]


@dataclass(frozen=True, slots=True)
class BuildOrder:
    """What to build."""

    build: str
    folder: str
    """The build folder: absolute, and there."""
    root: str
    storage: str
    dref: DRef
    context: Mapping[DRef, list[RRef]]
    """The direct dependencies only."""
    kind: str
    """``python``, ``command`` or ``mknode``."""
    realizer: Optional[bytes]
    args: Optional[bytes]
    """A pickled dictionary, or None for an empty one."""
    digest: Optional[str]
    """The code that was asked for, or None to take what comes; see `pylightnix.worker.code`."""
    at_once: int = 1
    """How many samples may be made side by side."""
    token: Optional[str] = None
    """By which the realizer tells the store's daemon that it is this build that wants something."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Environment variables that this build has and others do not: they tell what it was given of the host."""


def parse_order(params: Mapping[str, Any]) -> BuildOrder:
    """Return the order in a request's parameters; unknown ones are let pass.

    Raises:
        Misuse: something is missing, or of another type.
    """
    texts = {key: params.get(key) for key in ("build", "folder", "root", "storage", "dref", "kind")}
    blobs = {key: params.get(key) for key in ("realizer", "args")}
    digest, context, at_once = params.get("digest"), params.get("context"), params.get("at_once", 1)
    wrong = [key for key, value in texts.items() if not isinstance(value, str)]
    wrong += [key for key, value in blobs.items() if not isinstance(value, (bytes, type(None)))]
    wrong += [] if isinstance(digest, (str, type(None))) else ["digest"]
    wrong += [] if isinstance(context, bytes) else ["context"]
    wrong += [] if isinstance(at_once, int) and at_once > 0 else ["at_once"]
    wrong += [] if isinstance(params.get("token"), (str, type(None))) else ["token"]
    variables = params.get("variables") or {}
    are_texts = isinstance(variables, dict) and all(isinstance(text, str) for pair in variables.items() for text in pair)
    wrong += [] if are_texts else ["variables"]
    if wrong:
        raise Misuse(f"a build was ordered without, or with a wrong type of, {', '.join(wrong)}")
    found: dict[str, Any] = {**texts, **blobs, "digest": digest, "context": json.loads(context or b"{}"), "at_once": at_once}
    found["token"], found["variables"] = params.get("token"), variables
    return BuildOrder(**found)


def run_build(order: BuildOrder, status_fd: int, before_end: Callable[[], None]) -> None:
    """Build, and write the report to `status_fd`, whatever the realizer does short of ending the process.

    `before_end` is called last, in the process of each sample too.
    """
    os.environ.update(order.variables)
    report = _attempt(order, status_fd, before_end)
    flush_output()  # so that the log is complete when the report arrives
    content = memoryview(msgpack.packb(report, unicode_errors="surrogateescape"))
    try:
        while content:
            content = content[os.write(status_fd, content) :]
    except BrokenPipeError:
        pass  # nobody wants to know any more
    os.close(status_fd)
    before_end()


def _attempt(order: BuildOrder, status_fd: int, before_end: Callable[[], None]) -> dict[str, Any]:
    started, begun = time.time(), time.perf_counter()
    names: list[str] = []
    manifest: Optional[str] = None
    told: list[str] = []
    error: Optional[dict[str, Any]] = None
    try:
        names, manifest = _realize(order, status_fd, before_end, told)
    except BaseException as problem:  # noqa: BLE001, ASYNC103  # SystemExit and KeyboardInterrupt are failures of a build, too
        error = {**dump_exception(problem), "outpaths": kept_names(order.folder, left_by(problem))}
    # By the steady clock, so that no step of the other makes a build end before it began.
    stopped = started + (time.perf_counter() - begun)
    return {"outputs": names, "error": error, "manifest": manifest, "told": told, "started": started, "stopped": stopped}


def _realize(order: BuildOrder, status_fd: int, before_end: Callable[[], None], told: list[str]) -> tuple[list[str], Optional[str]]:
    S = StorageSettings(Path(order.root), Path(order.storage), Path(order.folder))
    check_encodable(order.folder)
    with current_storage(S), running_realizer(order.dref, order.storage, order.token, for_process=True):
        realizer, claim = _realizer(order)
        manifest = checked_code(realizer, order.dref, order.digest, claim, told)
        if samples_of(realizer) > 1:
            # However many at once: what a stage does must not depend on how busy the machine is.
            run = SideBySide(order.dref, order.build, order.at_once, _teller(status_fd), lambda: os.close(status_fd), before_end)
            realizer = run_by(realizer, run)
        arguments = unpack(order.args) if order.args is not None else {}
        context = LazyContext(order.context, lambda: context_below(order.context, S))
        with not_in_forked_child(), working_folder(order.folder):
            answer = absolute_outputs(order.dref, realizer(S, order.dref, context, arguments))
    tmp = fstmpdir(StorageSettings(S.root, S.storage, None))
    return output_names(order.dref, order.folder, tmp, answer), manifest


def _teller(status_fd: int) -> Callable[[int], None]:
    def tell_left(left: int) -> None:
        if 0 < left < 128:
            try:
                os.write(status_fd, bytes([left]))
            except BrokenPipeError:
                pass  # nobody wants to know any more

    return tell_left


def _realizer(order: BuildOrder) -> tuple[Realizer, Optional[CodeClaim]]:
    """Return the realizer, and what is said of its code."""
    if order.kind == "command":
        return CommandRealizer(), None
    if order.realizer is None or order.kind not in ("python", "mknode", "fetch"):
        raise Misuse(f"a build of the kind {order.kind!r} was ordered, {'with' if order.realizer else 'without'} a realizer")
    if order.kind == "mknode":
        return unpack_node(order.realizer), None
    if order.kind == "fetch":
        from pylightnix.travel.fetching import unpack_fetched

        return unpack_fetched(order.realizer), None
    found = unpack(order.realizer)
    return (unpack(found.blob), found.claim) if isinstance(found, ClaimedRealizer) else (found, None)
