"""The nouns of the language: references, settings, derivations, closures, and the shapes of callables.

Must not know how any of them is made, checked, stored or realized: nothing here does I/O or raises.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Optional, TypeAlias, TypeVar, Union

if TYPE_CHECKING:
    import os
    from typing import Self, SupportsIndex

__all__ = [
    "BuildArgs",
    "Closure",
    "Context",
    "DRef",
    "Derivation",
    "ExceptionText",
    "Hash",
    "HashPart",
    "InstantiateArg",
    "Key",
    "Matcher",
    "MatcherO",
    "Mutator",
    "Name",
    "Output",
    "Path",
    "RRef",
    "RealizeArg",
    "RealizeSeqGen",
    "Realizer",
    "RealizerO",
    "RefPath",
    "SPath",
    "Stage",
    "StageResult",
    "StorageSettings",
]


# Texts without a dict of their own are no business of the garbage collector, and a large closure has many.


if TYPE_CHECKING:
    import pathlib

    # What type checkers see: both at once. Where the two have the same method, that of `str` counts.
    class Path(str, pathlib.PosixPath):  # type: ignore[misc]
        """A path in the file system: a text that has what `pathlib.Path` has, too."""

        def __new__(cls, *parts: Union[str, os.PathLike[str]]) -> Self: ...
        def replace(self, old: str, new: Optional[str] = None, count: SupportsIndex = -1, /) -> str: ...  # type: ignore[override]
        @property
        def parents(self) -> tuple[Path, ...]: ...

else:

    class _TypeOfPath(type):
        """Has the methods of `pathlib.Path` where they are not called on a path: ``filter(Path.is_file, paths)``."""

        def __getattr__(cls, name):
            import pathlib

            if name.startswith("_") or not callable(getattr(pathlib.Path, name, None)):
                raise AttributeError(f"type object {cls.__name__!r} has no attribute {name!r}", name=name, obj=cls)
            return lambda path, *args, **kwargs: getattr(cls(path), name)(*args, **kwargs)

    class Path(str, metaclass=_TypeOfPath):
        """A path in the file system: a text that has what `pathlib.Path` has, too.

        It is a `str` (and equal to that text, with the same hash, the same methods, the same JSON), so that it works
        wherever a text does. Besides it has ``/`` and all methods and properties of `pathlib.Path`; those that return paths return
        this class. Only ``replace`` is a method of both: with two texts it is that of `str`, with one it renames the file, as
        pathlib's does. The text stays as it was given: ``Path('a//b') == 'a//b'``.
        """

        __slots__ = ()

        def __new__(cls, *parts):
            if len(parts) == 1 and isinstance(parts[0], str):
                return str.__new__(cls, parts[0])
            import pathlib

            return str.__new__(cls, pathlib.Path(*parts))

        @classmethod
        def cwd(cls):
            import pathlib

            return cls(pathlib.Path.cwd())

        @classmethod
        def home(cls):
            import pathlib

            return cls(pathlib.Path.home())

        def __fspath__(self):
            return str(self)

        def __truediv__(self, other):
            import pathlib

            return _ours(pathlib.Path(self).__truediv__(other))

        def __rtruediv__(self, other):
            import pathlib

            return _ours(pathlib.Path(self).__rtruediv__(other))

        def replace(self, old, new=None, count=-1, /):
            if new is not None:
                return str.replace(self, old, new, count)
            import pathlib

            return _ours(pathlib.Path(self).replace(old))

        def __getattr__(self, name):
            import pathlib

            if name.startswith("_") or not hasattr(pathlib.Path, name):
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
            found = getattr(pathlib.Path(self), name)
            return (lambda *args, **kwargs: _ours(found(*args, **kwargs))) if callable(found) else _ours(found)

        def __dir__(self):
            import pathlib

            return sorted({*super().__dir__(), *(name for name in dir(pathlib.Path) if not name.startswith("_"))})

    def _ours(value):
        """Return what pathlib returned, with our class in the place of its own."""
        import pathlib

        if isinstance(value, pathlib.PurePath):
            return Path(str(value))
        if isinstance(value, (Generator, map)):  # but no open file
            return map(_ours, value)
        if isinstance(value, Sequence) and not isinstance(value, (str, bytes)) and value and isinstance(value[0], pathlib.PurePath):
            return tuple(map(_ours, value))
        return value


class SPath(Path):
    """A path inside a store."""

    __slots__ = ()


class Hash(str):
    """A SHA-256 digest: 64 hexadecimal digits."""

    __slots__ = ()


class HashPart(str):
    """The first 32 hexadecimal digits of a `Hash`."""

    __slots__ = ()


class Name(str):
    """A label of characters ``[a-zA-Z0-9_-]``, shown at the end of references."""

    __slots__ = ()


class DRef(str):
    """A reference to a derivation, ``dref:<32 hex>-<name>``. Not checked by the constructor."""

    __slots__ = ()


class RRef(str):
    """A reference to a realization, ``rref:<32 hex>-<32 hex>-<name>``. Not checked by the constructor."""

    __slots__ = ()


class StorageSettings(NamedTuple):
    """Where a store lies. A field that is None is taken from the environment, then from its default."""

    root: Optional[Path] = None
    storage: Optional[Path] = None
    tmpdir: Optional[Path] = None


_T = TypeVar("_T")


class Output(Generic[_T]):
    """A list of output folders (or of references to what they became) that one attempt produced."""

    def __init__(self, val: Iterable[_T]) -> None:
        self.val: list[_T] = list(val)

    def __repr__(self) -> str:
        return f"Output({self.val!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Output) and self.val == other.val

    def __hash__(self) -> int:
        return hash(tuple(self.val))


RefPath: TypeAlias = list[Union[DRef, str]]
"""A derivation and a path in it, ``[dref, 'folder', 'file']``: in a config, it names an artifact of another derivation."""
Context: TypeAlias = dict[DRef, Optional[list[RRef]]]
"""Which realizations stand for each derivation, sorted; None for what a dry run found to be built."""
RealizeArg: TypeAlias = dict[str, Any]
"""What `realize` passes to one realizer in `realize_args`; no part of any hash."""
InstantiateArg: TypeAlias = dict[str, Any]
"""The type of ``Build.iarg``, which is always empty."""
Matcher: TypeAlias = Callable[[StorageSettings, list[RRef]], Optional[list[RRef]]]
"""Picks from the realizations that a derivation has in the context at hand, in no order that counts.

None demands a build, after which the matcher is asked again. What it raises reaches the caller of `realize` as it is.
"""
MatcherO: TypeAlias = Callable[[StorageSettings, Output[RRef]], Optional[Output[RRef]]]
"""A `Matcher` that takes and returns an `Output`; `output_matcher` makes one of the other."""
Realizer: TypeAlias = Callable[[StorageSettings, DRef, Context, RealizeArg], list[Path]]
"""Fills new folders under ``fstmpdir(S)`` and returns them; each is moved into the store and becomes a realization.

The context has the realizations of all that the derivation depends on.
"""
RealizerO: TypeAlias = Callable[[StorageSettings, DRef, Context, RealizeArg], Output[Path]]
"""A `Realizer` that returns an `Output`; `output_realizer` makes one of the other."""
ExceptionText: TypeAlias = str
"""Why something is a LEFT: the text of a traceback."""
Key: TypeAlias = Callable[[StorageSettings, RRef], Union[int, float, str, None]]
"""By what `match` and `match_some` rank a realization, the largest first; for `match`, None leaves it out."""
Mutator: TypeAlias = Callable[[Any, Any], Any]
"""Takes a key or index and the value there, and returns what is to be there."""
# The language cannot write that recursion down for mypy without harming callers, hence `Any`.
StageResult: TypeAlias = Any
"""What a stage may return: a DRef, or any nesting of lists, tuples and dicts that holds some."""
Stage: TypeAlias = Callable[..., StageResult]
"""Registers derivations in the registry that it gets as the keyword `r`, and returns what is to be realized."""


class Derivation(NamedTuple):
    """What to make (`dref`), how (`realizer`), and which of the results count (`matcher`)."""

    dref: DRef
    matcher: Matcher
    realizer: Realizer


class Closure(NamedTuple):
    """An immutable plan: what was asked for, and every derivation that was registered with it."""

    result: StageResult
    targets: list[DRef]
    derivations: list[Derivation]
    S: Optional[StorageSettings]


RealizeSeqGen: TypeAlias = Generator[
    tuple[StorageSettings, DRef, Context, Derivation, RealizeArg], tuple[Optional[list[RRef]], bool], Context
]
"""What `realizeSeq` returns: yields what it pauses before, is sent what to do, and returns the context."""


class BuildArgs(NamedTuple):
    """What a `Build` is made from."""

    S: Optional[StorageSettings]
    dref: DRef
    context: Context
    starttime: Optional[str]
    stoptime: Optional[str]
    iarg: InstantiateArg
    rarg: RealizeArg
