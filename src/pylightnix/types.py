"""The nouns of the language: references, settings, derivations, closures, and the shapes of callables.

Must not know how any of them is made, checked, stored or realized: nothing here does I/O or raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, NamedTuple, Optional, TypeAlias, TypeVar, Union

__all__ = [
    "BuildArgs",
    "Closure",
    "Context",
    "DRef",
    "Derivation",
    "Hash",
    "HashPart",
    "InstantiateArg",
    "Key",
    "Matcher",
    "MatcherO",
    "Name",
    "Output",
    "Path",
    "RRef",
    "RealizeArg",
    "Realizer",
    "RealizerO",
    "RefPath",
    "SPath",
    "Stage",
    "StageResult",
    "StorageSettings",
]


class Path(str):
    """A path in the file system, as text."""


class SPath(Path):
    """A path inside a store."""


class Hash(str):
    """A SHA-256 digest: 64 hexadecimal digits."""


class HashPart(str):
    """The first 32 hexadecimal digits of a `Hash`."""


class Name(str):
    """A label of characters ``[a-zA-Z0-9_-]``, shown at the end of references."""


class DRef(str):
    """A reference to a derivation, ``dref:<32 hex>-<name>``. Not checked by the constructor."""


class RRef(str):
    """A reference to a realization, ``rref:<32 hex>-<32 hex>-<name>``. Not checked by the constructor."""


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
Context: TypeAlias = dict[DRef, Optional[list[RRef]]]
RealizeArg: TypeAlias = dict[str, Any]
InstantiateArg: TypeAlias = dict[str, Any]
Matcher: TypeAlias = Callable[[StorageSettings, list[RRef]], Optional[list[RRef]]]
MatcherO: TypeAlias = Callable[[StorageSettings, Output[RRef]], Optional[Output[RRef]]]
Realizer: TypeAlias = Callable[[StorageSettings, DRef, Context, RealizeArg], list[Path]]
RealizerO: TypeAlias = Callable[[StorageSettings, DRef, Context, RealizeArg], Output[Path]]
Key: TypeAlias = Callable[[StorageSettings, RRef], Union[int, float, str, None]]
# What a stage may return: a DRef, or any nesting of lists, tuples and dicts that holds some. The
# language cannot write that recursion down for mypy without harming callers, hence `Any`.
StageResult: TypeAlias = Any
Stage: TypeAlias = Callable[..., StageResult]


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


class BuildArgs(NamedTuple):
    """What a `Build` is made from."""

    S: Optional[StorageSettings]
    dref: DRef
    context: Context
    starttime: Optional[str]
    stoptime: Optional[str]
    iarg: InstantiateArg
    rarg: RealizeArg
