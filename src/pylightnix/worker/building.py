"""One build, in the process that was forked for it: from the order to the report.

The report is one MessagePack map on the status pipe: ``outputs`` (names of folders in the build folder),
``error`` (None, or a map of `dump_exception` with ``outpaths`` added), ``started`` and ``stopped`` (UTC
seconds). A pipe that is closed without a report means that the process was lost. Must not know the worker.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

import msgpack  # type: ignore[import-untyped]  # it ships no type information

from pylightnix.codekey import pyobjhash
from pylightnix.context import LazyContext
from pylightnix.errors import BuildError, CodeKeyError, Misuse
from pylightnix.query import rrefctx
from pylightnix.stagebody import named
from pylightnix.stages.command import CommandRealizer
from pylightnix.storage import current_storage, fstmpdir
from pylightnix.travel.failures import CodeChanged, dump_exception
from pylightnix.travel.packing import unpack, unpack_node
from pylightnix.types import DRef, Path, Realizer, RRef, StorageSettings
from pylightnix.worker.linux import flush_c_streams
from pylightnix.worker.outputs import kept_names, output_names

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
    """What `pyobjhash` must find, or None to take what comes."""


def parse_order(params: Mapping[str, Any]) -> BuildOrder:
    """Return the order in a request's parameters; unknown ones are let pass.

    Raises:
        Misuse: something is missing, or of another type.
    """
    texts = {key: params.get(key) for key in ("build", "folder", "root", "storage", "dref", "kind")}
    blobs = {key: params.get(key) for key in ("realizer", "args")}
    digest, context = params.get("digest"), params.get("context")
    wrong = [key for key, value in texts.items() if not isinstance(value, str)]
    wrong += [key for key, value in blobs.items() if not isinstance(value, (bytes, type(None)))]
    wrong += [] if isinstance(digest, (str, type(None))) else ["digest"]
    wrong += [] if isinstance(context, bytes) else ["context"]
    if wrong:
        raise Misuse(f"a build was ordered without, or with a wrong type of, {', '.join(wrong)}")
    found: dict[str, Any] = {**texts, **blobs, "digest": digest, "context": json.loads(context or b"{}")}
    return BuildOrder(**found)


def run_build(order: BuildOrder, status_fd: int) -> None:
    """Build, and write the report to `status_fd`, whatever the realizer does short of ending the process."""
    report = _attempt(order)
    _flush()  # so that the log is complete when the report arrives
    content = memoryview(msgpack.packb(report))
    try:
        while content:
            content = content[os.write(status_fd, content) :]
    except BrokenPipeError:
        pass  # nobody wants to know any more
    os.close(status_fd)


def _attempt(order: BuildOrder) -> dict[str, Any]:
    started, begun = time.time(), time.perf_counter()
    names: list[str] = []
    error: Optional[dict[str, Any]] = None
    try:
        names = _realize(order)
    except BaseException as problem:  # noqa: BLE001, ASYNC103  # SystemExit and KeyboardInterrupt are failures of a build, too
        outpaths = problem.outpaths if isinstance(problem, BuildError) else []
        error = {**dump_exception(problem), "outpaths": kept_names(order.folder, outpaths)}
    # By the steady clock, so that no step of the other makes a build end before it began.
    return {"outputs": names, "error": error, "started": started, "stopped": started + (time.perf_counter() - begun)}


def _realize(order: BuildOrder) -> list[str]:
    S = StorageSettings(Path(order.root), Path(order.storage), Path(order.folder))
    with current_storage(S):
        realizer = _realizer(order)
        _check_code(realizer, order)
        arguments = unpack(order.args) if order.args is not None else {}
        context = LazyContext(order.context, lambda: _transitive(order.context, S))
        answer = realizer(S, order.dref, context, arguments)
    tmp = fstmpdir(StorageSettings(S.root, S.storage, None))
    return output_names(order.dref, order.folder, tmp, answer)


def _realizer(order: BuildOrder) -> Realizer:
    if order.kind == "command":
        return CommandRealizer()
    if order.realizer is None or order.kind not in ("python", "mknode"):
        raise Misuse(f"a build of the kind {order.kind!r} was ordered, {'with' if order.realizer else 'without'} a realizer")
    if order.kind == "mknode":
        return unpack_node(order.realizer)
    realizer: Realizer = unpack(order.realizer)
    return realizer


def _transitive(direct: Mapping[DRef, list[RRef]], S: StorageSettings) -> dict[DRef, list[RRef]]:
    found: dict[DRef, set[RRef]] = {dref: set(rrefs) for dref, rrefs in direct.items()}
    for rref in {rref for rrefs in direct.values() for rref in rrefs}:
        for dref, below in rrefctx(rref, S).items():
            found.setdefault(dref, set()).update(below or [])
    return {dref: sorted(rrefs) for dref, rrefs in found.items()}


# --- code -----------------------------------------------------------------------------------------------


def _check_code(realizer: Any, order: BuildOrder) -> None:
    if order.digest is None or _came_by_value(realizer):
        return
    try:
        found = str(pyobjhash([realizer]))
    except CodeKeyError:
        found = "no source"
    if found != order.digest:
        raise CodeChanged(order.dref, order.digest, found)


def _came_by_value(pyobj: Any) -> bool:
    """Tell whether the code itself has travelled. It is what it was then, and its file, if there is one, does not count."""
    while True:
        if isinstance(pyobj, types.MethodType):
            pyobj = pyobj.__func__
        elif isinstance(pyobj, functools.partial):
            pyobj = pyobj.func
        elif not isinstance(pyobj, type) and getattr(pyobj, "__wrapped__", None) is not None:
            pyobj = pyobj.__wrapped__
        elif isinstance(pyobj, types.FunctionType):
            module = sys.modules.get(pyobj.__module__)
            return module is None or vars(module) is not pyobj.__globals__
        elif isinstance(pyobj, type):
            return named(pyobj) is not pyobj
        else:
            pyobj = type(pyobj)


# --- the end ----------------------------------------------------------------------------------------------


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            pass  # the build closed it, or nobody reads it any more
    flush_c_streams()
