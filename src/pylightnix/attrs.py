"""Realizations as plain objects: what the functions of stages get in place of references.

A config item becomes an attribute; self-paths become paths in that realization, references to
dependencies become such objects again. They are read from the store when first looked at, each
realization once, so that a deep or diamond-shaped history costs only what is visited.
Must not know how stages are declared.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Optional

from pylightnix.build import Build, build_outpaths
from pylightnix.config import Config
from pylightnix.context import context_deref
from pylightnix.errors import Misuse, NotRealized
from pylightnix.query import drefcfg_
from pylightnix.refs import isdref, isrefpath, isselfpath, rref2dref
from pylightnix.results import map_drefs, result_drefs
from pylightnix.storage import store_layout
from pylightnix.types import Context, DRef, RRef, StageResult, StorageSettings

__all__ = ["Attrs", "Unroller", "realizeU", "unroll", "unrollR"]


class Attrs:
    """The config of a realization as attributes, and its reference as `_rref`.

    A plain object otherwise: ``vars(attrs)`` has all items, and attributes can be set.
    """

    __slots__ = ("_attrs_items", "_attrs_load")

    _attrs_items: dict[str, Any]
    _attrs_load: Optional[Callable[[], dict[str, Any]]]

    def __init__(self, items: dict[str, Any], load: Optional[Callable[[], dict[str, Any]]] = None) -> None:
        object.__setattr__(self, "_attrs_items", dict(items))
        object.__setattr__(self, "_attrs_load", load)

    @property
    def __dict__(self) -> dict[str, Any]:  # type: ignore[override]  # so that vars(), dir() and pickle see the items
        load = self._attrs_load
        if load is not None:
            items = load()
            object.__setattr__(self, "_attrs_load", None)
            for key, value in items.items():
                self._attrs_items.setdefault(key, value)
        return self._attrs_items

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_attrs_"):  # half made, by copy or pickle
            raise AttributeError(name)
        if name not in self._attrs_items and name not in self.__dict__:
            known = ", ".join(sorted(self._attrs_items))
            raise AttributeError(f"{self!r} has no item {name!r}; it has {known}", name=name, obj=self)
        return self._attrs_items[name]

    def __setattr__(self, name: str, value: Any) -> None:
        self._attrs_items[name] = value

    def __delattr__(self, name: str) -> None:
        if name not in self.__dict__:
            raise AttributeError(name)
        del self._attrs_items[name]

    def __reduce__(self) -> tuple[Any, ...]:
        return (Attrs, (self.__dict__,))

    def __repr__(self) -> str:
        return f"Attrs({self._attrs_items.get('_rref', self._attrs_items)})"


class Unroller:
    """Turns config values into what functions get, in one context. Remembers every realization it met."""

    def __init__(self, S: Optional[StorageSettings], context: Context, *, always_multiref: bool = False) -> None:
        self._S, self._context, self._always_multiref = S, context, always_multiref
        self._layout = store_layout(S)
        self._configs: dict[DRef, Config] = {}
        self._known: dict[tuple[RRef, Optional[int]], Attrs] = {}

    def value(self, value: Any, folder: str, depth: Optional[int] = None) -> Any:
        """Return `value` with paths and objects in place of references.

        Args:
            value: a value of a config, self-paths unresolved.
            folder: where self-paths lead.
            depth: at how many levels of dependencies to leave references; None for no end.
        """
        if isinstance(value, str):
            return self.dref(DRef(value), depth) if isdref(value) else value
        if isinstance(value, dict):
            return {key: self.value(item, folder, depth) for key, item in value.items()}
        if not isinstance(value, list):
            return value
        if isselfpath(value):
            return os.path.join(folder, *value[1:])
        # A list of one derivation and nothing else is a list of dependencies, not the path of a folder.
        if isrefpath(value) and len(value) > 1:
            rrefs = context_deref(self._context, DRef(value[0]))
            return [os.path.join(self._layout.realization(rref), *value[1:]) for rref in rrefs]
        return [self.value(item, folder, depth) for item in value]

    def dref(self, dref: DRef, depth: Optional[int] = None) -> Any:
        """Return what stands for `dref`: one object, or a list if several realizations were matched."""
        rrefs = context_deref(self._context, dref)
        found: list[Any] = list(rrefs) if depth == 0 else [self.rref(rref, depth) for rref in rrefs]
        return found[0] if len(found) == 1 and not self._always_multiref else found

    def rref(self, rref: RRef, depth: Optional[int] = None) -> Attrs:
        """Return the object of a realization, always the same one."""
        known = self._known.get((rref, depth))
        if known is None:
            folder = self._layout.realization(rref)
            known = Attrs({"_rref": rref}, lambda: self.items(rref2dref(rref), folder, depth))
            self._known[rref, depth] = known
        return known

    def items(self, dref: DRef, folder: str, depth: Optional[int] = None) -> dict[str, Any]:
        """Return the config items of `dref` unrolled, self-paths leading into `folder`."""
        if dref not in self._configs:
            self._configs[dref] = drefcfg_(dref, self._S)
        below = None if depth is None else depth - 1
        return {key: self.value(item, folder, below) for key, item in self._configs[dref].val.items()}


def unroll(
    ctx: Context,
    dref: DRef,
    b: Optional[Build],
    rindex: int,
    max_depth: Optional[int] = None,
    always_multiref: bool = False,
    S: Optional[StorageSettings] = None,
) -> Attrs:
    """Return one output of a derivation as an object.

    Args:
        ctx: which realizations stand for its dependencies; for `dref` itself too, if it is not being built.
        dref: the derivation.
        b: its build, if it is the one being built: self-paths lead into the output folders then.
        rindex: which output, or which of its realizations in `ctx`.
        max_depth: at how many levels of dependencies to leave RRefs in place; None for no end.
        always_multiref: make lists of dependencies of which one realization was matched, too.
        S: the store.
    """
    settings = b.S if b is not None and S is None else S
    unroller = Unroller(settings, ctx, always_multiref=always_multiref)
    depth = None if max_depth is None else max_depth + 1
    folders: list[Any] = list(build_outpaths(b)) if b is not None else context_deref(ctx, dref)
    if not 0 <= rindex < len(folders):
        raise Misuse(f"unroll was asked for output {rindex} of {dref}, expected one of the {len(folders)} there are, counted from 0")
    if b is None:
        return unroller.rref(folders[rindex], depth)
    return Attrs(unroller.items(dref, folders[rindex], depth))


def unrollR(
    sr: StageResult,
    ctx: Context,
    max_depth: Optional[int] = None,
    always_multiref: bool = False,
    S: Optional[StorageSettings] = None,
) -> Any:
    """Return a stage's result with an object, or a list of them, in place of each DRef. Arguments as of `unroll`."""
    unroller = Unroller(S, ctx, always_multiref=always_multiref)
    return map_drefs(sr, lambda dref: unroller.dref(dref, max_depth))


def realizeU(arg: Any, *args: Any, max_depth: Optional[int] = None, always_multiref: bool = False, **kwargs: Any) -> Any:
    """Realize a closure and return the stage's result with objects in place of DRefs.

    Args:
        arg: a closure, or the pair that `instantiate` returns.
        args: passed on to `realize`.
        max_depth: as of `unroll`; with 0 the result has RRefs.
        always_multiref: as of `unroll`.
        kwargs: passed on to `realize`.

    Raises:
        NotRealized: a dry run found that something in the result would be built. Errors as of `realize` besides.
    """
    from pylightnix.realize import realize

    result, closure, context = realize(arg, *args, **kwargs)
    for dref in result_drefs(result):
        if dref in context and context[dref] is None:
            raise NotRealized(dref, "a dry run builds nothing; realize(…, dry_run=True) says what there is")
    return unrollR(result, context, max_depth, always_multiref, closure.S)
