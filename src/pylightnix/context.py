"""Contexts: which realizations stood for the dependencies of a build.

A realization records its *direct* dependencies; the transitive mapping that realizers and `rrefctx`
see is computed from those on demand. Must not read files: whoever makes a lazy context says how.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from json.encoder import encode_basestring as _quoted
from typing import Any, Optional

from pylightnix.config import canonical_bytes, readable_text
from pylightnix.errors import InvalidReference, Misuse
from pylightnix.refs import assert_valid_dref, assert_valid_rref, rref2dref
from pylightnix.types import Context, DRef, HashPart, RRef

__all__ = [
    "DirectContext",
    "LazyContext",
    "assert_valid_context",
    "context_add",
    "context_deref",
    "context_eq",
    "context_file_text",
    "context_key",
    "context_serialize",
    "mkcontext",
    "parse_context",
    "parse_mapping",
    "realization_hash",
]

DirectContext = Mapping[DRef, Sequence[RRef]]
"""Each direct dependency with the sorted realizations it was matched to."""

_RREF_DOMAIN = b"pylightnix-rref-1\0"
_EMPTY_KEY = hashlib.sha256(b"{}").hexdigest()[:32]


def _canonical_mapping(context: DirectContext) -> str:
    """Return the canonical JSON text of `_plain`, without the general encoder: it is wanted for every step of a plan."""
    items = []
    for dref in sorted(context):
        rrefs = context[dref]
        items.append(f"{_quoted(dref)}:[{','.join(map(_quoted, sorted(rrefs) if len(rrefs) > 1 else rrefs))}]")
    return f"{{{','.join(items)}}}"


def _plain(context: DirectContext) -> dict[str, list[str]]:
    return {str(dref): sorted(map(str, rrefs)) for dref, rrefs in context.items()}


def context_key(deps: DirectContext) -> str:
    """Return 32 hex digits that stand for the direct dependencies `deps`: realizations match when these do."""
    if not deps:
        return _EMPTY_KEY
    return hashlib.sha256(_canonical_mapping(deps).encode("utf-8")).hexdigest()[:32]


def _stored(deps: DirectContext, dynamic: DirectContext) -> dict[str, Any]:
    return {"deps": _plain(deps), "dynamic": _plain(dynamic)}


def context_file_text(deps: DirectContext, dynamic: DirectContext) -> str:
    """Return the text of `context.json`."""
    return readable_text(_stored(deps, dynamic))


def realization_hash(tree_hash: str, deps: DirectContext, dynamic: DirectContext) -> HashPart:
    """Return the first 32 hex digits of the hash of a realization.

    It covers the tree hash (64 hex digits) and the context, hence step by step everything below it.
    """
    digest = hashlib.sha256(_RREF_DOMAIN + tree_hash.encode("ascii") + b"\0" + canonical_bytes(_stored(deps, dynamic)))
    return HashPart(digest.hexdigest()[:32])


def parse_context(value: Any) -> tuple[dict[DRef, list[RRef]], dict[DRef, list[RRef]]]:
    """Return (deps, dynamic) of the parsed `context.json`.

    Raises:
        InvalidReference: it has another shape, or something in it is not a reference.
    """
    if not isinstance(value, dict) or set(value) != {"deps", "dynamic"}:
        raise InvalidReference(value, "a context {'deps': …, 'dynamic': …}")
    return parse_mapping(value["deps"]), parse_mapping(value["dynamic"])


def parse_mapping(value: Any) -> dict[DRef, list[RRef]]:
    """Return parsed JSON as the realizations of some derivations. Raises as `parse_context`."""
    if not isinstance(value, dict):
        raise InvalidReference(value, "a mapping of derivations to lists of realizations")
    result: dict[DRef, list[RRef]] = {}
    for dref, rrefs in value.items():
        assert_valid_dref(dref)
        if not isinstance(rrefs, list):
            raise InvalidReference(rrefs, f"a list of realizations of {dref}")
        if not rrefs:
            raise InvalidReference(rrefs, f"one or more realizations of {dref}")
        for rref in rrefs:
            if rref2dref(rref) != dref:
                raise InvalidReference(rref, f"a realization of {dref}")
        result[DRef(dref)] = [RRef(rref) for rref in rrefs]
    return result


class LazyContext(dict[DRef, Optional[list[RRef]]]):
    """A context that is computed when it is first looked at.

    Realizers get the transitive mapping although most look at their direct dependencies only (which
    are answered at once); computing it for every build would cost the square of a chain's length.
    """

    def __init__(self, direct: DirectContext, transitive: Callable[[], Mapping[DRef, Sequence[RRef]]]) -> None:
        super().__init__({dref: list(rrefs) for dref, rrefs in direct.items()})
        self._transitive: Optional[Callable[[], Mapping[DRef, Sequence[RRef]]]] = transitive

    def _fill(self) -> None:
        compute = self._transitive
        if compute is not None:
            found = dict(super().items())
            for dref, rrefs in compute().items():
                found.setdefault(dref, list(rrefs))
            super().clear()
            super().update(sorted(found.items()))
            # Only now, for the computation may raise, and another thread may read meanwhile.
            self._transitive = None

    def __missing__(self, dref: DRef) -> Optional[list[RRef]]:
        if self._transitive is None:
            raise KeyError(dref)
        self._fill()
        return self[dref]

    def __contains__(self, dref: object) -> bool:
        if super().__contains__(dref):
            return True
        self._fill()
        return super().__contains__(dref)

    def get(self, dref: DRef, default: Any = None) -> Any:
        return self[dref] if dref in self else default

    def __iter__(self) -> Iterator[DRef]:
        self._fill()
        return super().__iter__()

    def __reversed__(self) -> Iterator[DRef]:
        self._fill()
        return super().__reversed__()

    def __len__(self) -> int:
        self._fill()
        return super().__len__()

    def keys(self) -> Any:
        self._fill()
        return super().keys()

    def values(self) -> Any:
        self._fill()
        return super().values()

    def items(self) -> Any:
        self._fill()
        return super().items()

    def __delitem__(self, dref: DRef) -> None:
        self._fill()
        super().__delitem__(dref)

    def setdefault(self, dref: DRef, default: Any = None) -> Any:
        self._fill()
        return super().setdefault(dref, default)

    def pop(self, *args: Any) -> Any:
        self._fill()
        return super().pop(*args)

    def popitem(self) -> Any:
        self._fill()
        return super().popitem()

    def clear(self) -> None:
        self._fill()
        super().clear()

    def copy(self) -> dict[DRef, Optional[list[RRef]]]:
        self._fill()
        return dict(super().items())

    def __eq__(self, other: object) -> bool:
        self._fill()
        if isinstance(other, LazyContext):
            other._fill()
        return super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None  # as every dict

    def __repr__(self) -> str:
        self._fill()
        return super().__repr__()

    def __or__(self, other: Any) -> Any:
        return self.copy() | other

    def __reduce__(self) -> tuple[Any, ...]:
        return (dict, (self.copy(),))


def mkcontext() -> Context:
    """Return the context of what depends on nothing."""
    return {}


def assert_valid_context(c: Context) -> None:
    """Raise `InvalidReference` unless `c` maps DRefs to None or lists of RRefs."""
    if not isinstance(c, dict):
        raise InvalidReference(c, "a context: a dict from derivations to lists of realizations")
    for dref, rrefs in c.items():
        assert_valid_dref(dref)
        if rrefs is not None and not isinstance(rrefs, list):
            raise InvalidReference(rrefs, f"None or a list of realizations of {dref}")
        for rref in rrefs or []:
            assert_valid_rref(rref)


def context_eq(a: Context, b: Context) -> bool:
    """Tell whether two contexts map the same derivations to the same realizations, in any order."""
    return _comparable(a) == _comparable(b)


def _comparable(c: Context) -> dict[DRef, Optional[list[RRef]]]:
    return {dref: sorted(rrefs) if rrefs else None for dref, rrefs in c.items()}


def context_add(ctx: Context, dref: DRef, rrefs: Optional[Iterable[RRef]]) -> Context:
    """Return a new context, sorted, with `dref` added; no realizations are stored as None.

    Raises:
        Misuse: `dref` is in the context already.
    """
    if dref in ctx:
        raise Misuse(f"{dref} is in this context already; a derivation is matched once in a realization")
    listed = sorted(rrefs) if rrefs else None
    return dict(sorted([*ctx.items(), (dref, listed)]))


def context_deref(context: Context, dref: DRef) -> list[RRef]:
    """Return the realizations that stand for `dref` in `context`.

    Raises:
        Misuse: it has none there.
    """
    rrefs = context.get(dref)
    if rrefs is None:
        raise Misuse(f"{dref} is not among the dependencies of this build; mention it in the config to depend on it")
    return rrefs


def context_serialize(c: Context) -> str:
    """Return the context as canonical JSON text."""
    assert_valid_context(c)
    return canonical_bytes({d: sorted(r) if r else None for d, r in c.items()}).decode("utf-8")
