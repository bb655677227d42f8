"""What lenses see in a value: the dict it acts as, the realization it stands for, the path it has.

Must not know how lenses are moved about.
"""

from __future__ import annotations

import json
import os
from typing import Any, NamedTuple, Optional

from pylightnix.build import Build, build_config, build_outpaths
from pylightnix.config import resolve
from pylightnix.errors import AmbiguousMatch, Misuse, kind_of
from pylightnix.query import drefcfg_
from pylightnix.refs import isdref, isrefpath, isrref, isselfpath, rref2dref
from pylightnix.registry import isclosure
from pylightnix.storage import store_layout
from pylightnix.types import Closure, Context, DRef, Path, RefPath, RRef, StorageSettings

__all__ = ["Cache", "LensContext", "as_dict", "only_target", "realizations_at", "shown", "val2dict", "val2path", "val2rref"]

Cache = dict[Any, dict[str, Any]]
"""What was read before: configs by derivation, JSON files by path; those of a running build by inode, size and times, too."""


class LensContext(NamedTuple):
    """What a lens needs to know beyond the value it started from."""

    S: Optional[StorageSettings]
    build_path: Optional[Path]
    """The output folder of the build that the lens is used in."""
    context: Optional[Context]
    """Which realizations references stand for."""
    closure: Optional[Closure]
    dref: Optional[DRef] = None
    """What that build makes, where it is known: only artifacts of this are looked for in `build_path`."""


def shown(value: Any) -> str:
    """Return a value as errors show it."""
    return f"{value!r:.100}"


def val2dict(v: Any, ctx: LensContext) -> Optional[dict[str, Any]]:
    """Return the dict that a value acts as, or None if it acts as none.

    A dict is itself; a reference, a build and a closure with one target are their config; the refpath of
    a JSON file that holds an object is that object.

    Raises:
        Misuse: a refpath leads nowhere, or to something else.
    """
    return as_dict(v, ctx, {})


def as_dict(v: Any, ctx: LensContext, cache: Cache) -> Optional[dict[str, Any]]:
    """Do as `val2dict`, reading nothing that is in `cache`. Only a dict that was given is itself; others are shared."""
    if isinstance(v, dict):
        return v
    if isinstance(v, Build):
        return build_config(v).val
    if isclosure(v):
        return as_dict(only_target(v), ctx, cache)
    if isrref(v) or isdref(v):
        dref = rref2dref(v) if isrref(v) else DRef(v)
        if dref not in cache:
            cache[dref] = resolve(drefcfg_(dref, ctx.S), dref).val
        return cache[dref]
    if isrefpath(v) or isselfpath(v):
        path = val2path(v, ctx)
        return _read_object(path, v, cache, is_stored=ctx.build_path is None or not path.startswith(f"{ctx.build_path}/"))
    return None


def _read_object(path: Path, refpath: RefPath, cache: Cache, *, is_stored: bool) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            stat = os.fstat(file.fileno())
            # An artifact of the running build may be written again; all others stay as they are. Of its times only that of
            # the last change tells: a copy of a stored file has the one time of all files in the store.
            key = (path,) if is_stored else (path, stat.st_ino, stat.st_size, stat.st_ctime_ns)
            if key not in cache:
                found = json.load(file)
                if not isinstance(found, dict):
                    raise Misuse(f"a lens goes into JSON files that hold an object; {path} holds {kind_of(found)}")
                cache[key] = found
    except (OSError, ValueError) as error:
        raise Misuse(f"a lens goes into refpaths of JSON files; {shown(refpath)} is no such file ({error})") from error
    return cache[key]


def only_target(closure: Any) -> DRef:
    """Return the target of a closure that has one."""
    targets = list(dict.fromkeys(Closure(*closure).targets))
    if len(targets) != 1:
        raise Misuse(
            f"a lens looks into closures with one target, found one with {len(targets)}; start from one of them: mklens(dref, closure=…)"
        )
    return targets[0]


def val2rref(v: Any, ctx: LensContext) -> RRef:
    """Return a realization: an RRef itself, a DRef as the context has it.

    Raises:
        Misuse: it is neither, or the context does not have it.
        AmbiguousMatch: several realizations stand for it.
    """
    if isrref(v):
        return RRef(v)
    if not isdref(v):
        raise Misuse(f"expected a reference, found {shown(v)}")
    rrefs = _matched(DRef(v), ctx)
    if not rrefs:
        raise Misuse(f"no realization of {v} is known here; make the lens with rref=… or ctx=…, or start it from an RRef")
    if len(rrefs) != 1:
        advice = "take one by its number, as in mklens(…).models[0], or all of them: for model in mklens(…).models"
        raise AmbiguousMatch(f"a lens on {v}", rrefs, "one realization", advice)
    return rrefs[0]


def realizations_at(v: Any, ctx: LensContext) -> Optional[list[RRef]]:
    """Return the realizations that stand for a derivation, or for that of a refpath, by their texts; None if it is neither."""
    if isrref(v):
        return [RRef(v)]
    dref = v if isdref(v) else v[0] if isrefpath(v) else None
    return None if dref is None else sorted(_matched(DRef(dref), ctx) or [])


def _matched(dref: DRef, ctx: LensContext) -> Optional[list[RRef]]:
    return ctx.context.get(dref) if ctx.context is not None else None


def val2path(v: Any, ctx: LensContext) -> Path:
    """Return where in the file system a value is.

    A realization: its folder. A derivation: that of its realization if the context has one, else its own
    folder. A build: its output. A closure with one target: as that. A refpath: the artifact.

    Raises:
        Misuse: it is nowhere, or not one of these.
        AmbiguousMatch: several realizations stand for it.
    """
    layout = store_layout(ctx.S)
    if isinstance(v, Build):
        return _build_path(v, ctx)
    if isclosure(v):
        return val2path(only_target(v), ctx)
    if isrref(v):
        return Path(layout.realization(v))
    if isdref(v):
        return Path(layout.realization(val2rref(v, ctx)) if _matched(DRef(v), ctx) else layout.derivation(v))
    if isselfpath(v) or (isrefpath(v) and _is_own(DRef(v[0]), ctx)):
        return Path(os.path.join(_build_path(v, ctx), *v[1:]))
    if isrefpath(v):
        return Path(os.path.join(layout.realization(val2rref(v[0], ctx)), *v[1:]))
    raise Misuse(f"expected a reference or a refpath, which have a path, found {shown(v)}")


def _is_own(dref: DRef, ctx: LensContext) -> bool:
    """Tell whether an artifact of `dref` lies in the build folder."""
    if ctx.dref is not None:
        return dref == ctx.dref
    # A build folder was given without saying whose: then it is that of whatever is not a dependency.
    return ctx.build_path is not None and not _matched(dref, ctx)


def _build_path(v: Any, ctx: LensContext) -> Path:
    if ctx.build_path is None and isinstance(v, Build):
        return build_outpaths(v)[0]
    if ctx.build_path is None:
        raise Misuse(
            f"{shown(v)} lies in the output folder of its build, and none is known here; declare outputs first, or pass b=… or o=…"
        )
    return ctx.build_path
