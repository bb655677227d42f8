"""Lenses: looking through configs, references and JSON artifacts with attribute syntax.

``mklens(rref).dataset.url.val`` follows the item ``dataset`` of a realization's config into the config of
the dependency that it names. A lens is a start, the names of the steps from there, and a context that
says which realizations references stand for; it is looked through anew on each use, so that it shows
what a dict holds now. What cannot change (configs; artifacts while their file stays the same) is read
once for all lenses made from one. Must not know how anything is built.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Optional, Union, cast

from pylightnix._lensvalues import Cache, LensContext, as_dict, only_target, realizations_at, shown, val2dict, val2path, val2rref
from pylightnix.build import Build
from pylightnix.context import LazyContext
from pylightnix.errors import Misuse
from pylightnix.query import rrefctx
from pylightnix.refs import isdref, isrefpath, isrref, rref2dref
from pylightnix.registry import Registry, isclosure
from pylightnix.types import Closure, Context, DRef, Path, RefPath, RRef, StorageSettings

__all__ = [
    "Lens",
    "LensContext",
    "MissingKey",
    "lens_repr",
    "mklens",
    "mutate",
    "traverse",
    "val2dict",
    "val2path",
    "val2rref",
]


class MissingKey(Misuse, AttributeError, IndexError):
    """A lens was asked for a key or a number that is not there. An `AttributeError` too, as `hasattr` and `copy` expect."""

    code = "missing-key"


class Lens:
    """A look at a value. Attributes lead to lenses on its items; the properties below give what is there.

    Items that are named like a property or a method are reached with `get`. Where a matcher chose several realizations of a
    dependency, ``lens.models[0]`` is a lens on the first of them, in the order of their references, and ``for model in lens.models`` goes
    through all. Items of lists are reached in the same way.
    """

    __slots__ = ("_lens_cache", "_lens_ctx", "_lens_start", "_lens_steps")

    _lens_ctx: LensContext
    _lens_start: Any
    _lens_steps: tuple[Union[str, int], ...]
    _lens_cache: Cache

    def __init__(self, ctx: LensContext, start: Any, steps: Sequence[Union[str, int]] = ()) -> None:
        self._lens_setup(ctx, start, tuple(steps), {})

    def _lens_setup(self, ctx: LensContext, start: Any, steps: tuple[Union[str, int], ...], cache: Cache) -> None:
        # `__setattr__` is taken by the check that nobody assigns to an item by mistake.
        values = (("_lens_ctx", ctx), ("_lens_start", start), ("_lens_steps", steps), ("_lens_cache", cache))
        for name, value in values:
            object.__setattr__(self, name, value)

    def get(self, key: str) -> Lens:
        """Return the lens on the item `key`.

        Raises:
            MissingKey: there is none, or the value has no items.
        """
        try:
            items = as_dict(traverse(self, f"get({key!r})"), self._lens_ctx, self._lens_cache)
        except Misuse as error:
            raise MissingKey(f"{lens_repr(self)} has no item {key!r}: {error}") from error
        if items is None or key not in items:
            known = "it has no items" if items is None else f"it has {', '.join(map(repr, items)) or 'none'}"
            raise MissingKey(f"{lens_repr(self)} has no item {key!r}; {known}")
        return self._lens_step(key)

    def _lens_step(self, step: Union[str, int]) -> Lens:
        lens = Lens.__new__(Lens)
        lens._lens_setup(self._lens_ctx, self._lens_start, (*self._lens_steps, step), self._lens_cache)
        return lens

    def __getitem__(self, index: int) -> Lens:
        choices = self._lens_choices()
        if not isinstance(index, int) or not -len(choices) <= index < len(choices):
            raise MissingKey(f"{lens_repr(self)} has no item {index!r}; expected a number from 0 to {len(choices) - 1}")
        return choices[index]

    def __iter__(self) -> Iterator[Lens]:
        return iter(self._lens_choices())

    def _lens_choices(self) -> list[Lens]:
        """Return lenses on all that can be reached by number."""
        value, ctx = traverse(self, "[…]"), self._lens_ctx
        rrefs = realizations_at(value, ctx)
        if rrefs is not None:
            starts = [value if isrefpath(value) else rref for rref in rrefs]
            # Each in its own context: what it was made from may differ, too.
            return [Lens(ctx._replace(context=_around(rref, None, ctx.S)), start) for start, rref in zip(starts, rrefs, strict=True)]
        if isinstance(value, list):
            return [self._lens_step(index) for index in range(len(value))]
        raise Misuse(f"{lens_repr(self)} is {shown(value)}; numbers lead to items of lists, and to the realizations of a dependency")

    def __getattr__(self, key: str) -> Lens:
        if key.startswith("_lens_"):  # half made, by copy or pickle
            raise AttributeError(key)
        return self.get(key)

    def __setattr__(self, key: str, value: Any) -> None:
        if key != "val":
            raise Misuse(f"an item is changed with {lens_repr(self)}.{key}.val = …, not by assigning to the lens on it")
        super().__setattr__(key, value)

    def __dir__(self) -> list[str]:
        items = as_dict(traverse(self, "dir"), self._lens_ctx, self._lens_cache)
        return sorted({*super().__dir__(), *(items or {})})

    def __repr__(self) -> str:
        return lens_repr(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Lens, (self._lens_ctx, self._lens_start, self._lens_steps))

    @property
    def optval(self) -> Any:
        """The value, which may be None."""
        return traverse(self, "optval")

    @property
    def val(self) -> Any:
        """The value. Assigning changes it in the dict that the lens started from.

        Raises:
            Misuse: it is None.
        """
        value = traverse(self, "val")
        if value is None:
            raise Misuse(f"{lens_repr(self)} is None; use optval where that is expected")
        return value

    @val.setter
    def val(self, value: Any) -> None:
        mutate(self, value, "val")

    @property
    def dref(self) -> DRef:
        """The value as a derivation; of a realization, its derivation."""
        value = traverse(self, "dref")
        if isrref(value):
            return rref2dref(value)
        if not isdref(value):
            raise Misuse(f"expected a reference at {lens_repr(self)}, found {shown(value)}")
        return DRef(value)

    @property
    def rref(self) -> RRef:
        """The value as a realization; of a derivation, the one that the context has for it."""
        return val2rref(traverse(self, "rref"), self._lens_ctx)

    @property
    def refpath(self) -> RefPath:
        """The value, which is a refpath."""
        value = traverse(self, "refpath")
        if not isrefpath(value):
            raise Misuse(f"expected a refpath at {lens_repr(self)}, found {shown(value)}")
        return cast(RefPath, value)

    @property
    def syspath(self) -> Path:
        """Where the value is in the file system, see `val2path`."""
        return val2path(traverse(self, "syspath"), self._lens_ctx)

    @property
    def contents(self) -> str:
        """The text of the file at `syspath`."""
        path = self.syspath
        try:
            with open(path, encoding="utf-8") as file:
                return file.read()
        except (OSError, UnicodeDecodeError) as error:
            raise Misuse(f"expected a text file at {lens_repr(self)}, found {path} ({error})") from error

    @property
    def closure(self) -> Closure:
        """The closure that the lens was made with, the value (a derivation) its only target."""
        value = traverse(self, "closure")
        known = self._lens_ctx.closure
        if isclosure(value):
            value, known = only_target(value), Closure(*value)
        if not isdref(value):
            raise Misuse(f"expected a derivation at {lens_repr(self)}, found {shown(value)}")
        if known is None:
            raise Misuse(f"no closure is known at {lens_repr(self)}; make the lens with closure=…")
        return known._replace(result=DRef(value), targets=[DRef(value)])


def traverse(l: Lens, hint: str) -> Any:  # noqa: E741  # the parameter's name is part of the interface
    """Return the value that a lens looks at. `hint` names in errors what it is wanted for.

    What comes from a config or a file is a copy; what lies in the dict that the lens started from is that itself.

    Raises:
        Misuse: a step is not there (any more).
    """
    value, borrowed = l._lens_start, False
    for number, step in enumerate(l._lens_steps):
        items: Any = value if isinstance(step, int) else as_dict(value, l._lens_ctx, l._lens_cache)
        if not _has(items, step):
            raise Misuse(
                f"{hint}: {_path_text(l._lens_start, l._lens_steps[:number])} has no item {step!r}; it had one when the lens was made"
            )
        borrowed = borrowed or not isinstance(value, (dict, list))
        value = items[step]
    return copy.deepcopy(value) if borrowed and isinstance(value, (dict, list)) else value


def _has(items: Any, step: Union[str, int]) -> bool:
    return isinstance(items, list) and step < len(items) if isinstance(step, int) else isinstance(items, dict) and step in items


def mutate(l: Lens, v: Any, hint: str) -> None:  # noqa: E741  # as above
    """Set the value that a lens looks at, in the dict that it started from.

    Raises:
        Misuse: there is no such item, the lens is on the whole, or it leads through a reference.
    """
    if not l._lens_steps:
        raise Misuse(f"{hint}: {lens_repr(l)} is where the lens starts; assign to one of its items")
    items: Any = l._lens_start
    for number, step in enumerate(l._lens_steps):
        where = _path_text(l._lens_start, l._lens_steps[:number])
        if not isinstance(items, (dict, list)):
            raise Misuse(f"{hint}: {where} is {shown(items)}, which cannot be changed; a lens changes plain dicts only")
        if not _has(items, step):
            raise Misuse(f"{hint}: {where} has no item {step!r}")
        if number == len(l._lens_steps) - 1:
            items[step] = v  # type: ignore[index]  # `_has` saw to its kind
        items = items[step]  # type: ignore[index]  # as above


def _path_text(start: Any, steps: Sequence[Union[str, int]]) -> str:
    # References are shown whole: half of one names nothing.
    text = repr(start) if isinstance(start, str) else f"{start!r:.60}"
    return f"mklens({text})" + "".join(map(_step_text, steps))


def _step_text(step: Union[str, int]) -> str:
    if isinstance(step, int):
        return f"[{step}]"
    return f".{step}" if step.isidentifier() else f".get({step!r})"


def lens_repr(l: Lens, accessor: str = "") -> str:  # noqa: E741  # as above
    """Return how the lens was reached, with the name of an accessor at the end if one is given."""
    return _path_text(l._lens_start, [*l._lens_steps, *([accessor] if accessor else [])])


# --- making lenses ------------------------------------------------------------------------------------


def _settings(x: Any, b: Optional[Build], closure: Optional[Closure], r: Optional[Registry]) -> Optional[StorageSettings]:
    sources = [b, x if isinstance(x, Build) else None, r, Closure(*x) if isclosure(x) else None, closure]
    return next((source.S for source in sources if source is not None and source.S is not None), None)


def _around(rref: RRef, context: Optional[Context], S: Optional[StorageSettings]) -> Context:
    """Return `context`, else that of the realization `rref`, with `rref` in it for its derivation.

    It is read when something else than `rref` is looked for.
    """

    def others() -> dict[DRef, list[RRef]]:
        return {dref: rrefs or [] for dref, rrefs in (rrefctx(rref, S) if context is None else context).items()}

    return LazyContext({rref2dref(rref): [rref]}, others)


def mklens(
    x: Any,
    o: Optional[Path] = None,
    b: Optional[Build] = None,
    rref: Optional[RRef] = None,
    ctx: Optional[Context] = None,
    closure: Optional[Closure] = None,
    build_output_idx: int = 0,
    S: Optional[StorageSettings] = None,
    r: Optional[Registry] = None,
) -> Lens:
    """Return a lens on `x`: an RRef, a DRef, a Build, a Closure, a refpath or a dict.

    Args:
        x: where to start.
        o: the output folder of a running build, where that build's own artifacts are.
        b: a running build; gives `S`, context and output folder.
        rref: a realization in whose context references are to be read.
        ctx: that context itself.
        closure: a closure, for `Lens.closure`.
        build_output_idx: which output folder of the build.
        S: the store; else that of `b`, `x`, `r` or `closure`, else the current one.
        r: a registry, for its store.

    Raises:
        Misuse: `x` is nothing that a lens can look into, or the build has no such output.
    """
    closure_of_x = Closure(*x) if isclosure(x) else None
    if not (isinstance(x, (dict, Build)) or isrref(x) or isdref(x) or isrefpath(x) or closure_of_x):
        raise Misuse(f"mklens expects an RRef, a DRef, a Build, a Closure, a refpath or a dict, found {shown(x)}")
    build = b if b is not None else x if isinstance(x, Build) else None
    settings = S if S is not None else _settings(x, b, closure, r)
    folder = o if o is not None else _output(build, build_output_idx)
    own = build.dref if build is not None else DRef(x) if o is not None and isdref(x) else None
    context = ctx if ctx is not None or build is None else build.context
    if context is None and rref is not None:
        context = _around(rref, None, settings)
    if isrref(x):
        context = _around(RRef(x), context, settings)
    known = closure if closure is not None else closure_of_x
    return Lens(LensContext(settings, Path(folder) if folder is not None else None, context, known, own), x)


def _output(build: Optional[Build], index: int) -> Optional[Path]:
    """Return an output folder of the build; None while it has none, as its config can be looked at before."""
    if build is None or build.outpaths is None:
        return None
    folders = build.outpaths.val
    if not -len(folders) <= index < len(folders):
        raise Misuse(f"build_output_idx: expected an output of {build.dref}, 0 to {len(folders) - 1}, found {index}")
    return folders[index]
